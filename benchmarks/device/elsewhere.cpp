// A device that is not the CPU as far as torch knows, and whose memory and arithmetic are the CPU's all the same.
// Whatever mixes tensors of the two, or hands one of "elsewhere" to numpy, fails as it would on a GPU.
#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/extension.h>
#include <torch/library.h>

#include <unordered_map>

namespace {

constexpr auto ELSEWHERE = c10::DeviceType::PrivateUse1;
const c10::Device HERE(ELSEWHERE, 0);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return ELSEWHERE; }
  c10::Device exchangeDevice(c10::Device) const override { return HERE; }
  c10::Device getDevice() const override { return HERE; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream getNewStream(c10::Device, int = 0) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::Stream exchangeStream(c10::Stream) const override { return c10::Stream(c10::Stream::DEFAULT, HERE); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

void release(void* memory) { std::free(memory); }

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* memory = bytes ? std::malloc(bytes) : nullptr;
    return {memory, memory, &release, HERE};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { std::memcpy(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(ELSEWHERE, &memory);

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory,
                                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                           c10::dtype_or_default(dtype));
}

at::Tensor made(const at::Tensor& like) {
  return empty_strided(like.sizes(), like.strides(), like.scalar_type(), {}, {}, {});
}

at::Tensor over(const at::Tensor& like, c10::Storage storage, c10::DispatchKey key) {
  auto found = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  found.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return found;
}

// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& x) {
  auto kept = new c10::Storage(x.storage());
  c10::DataPtr data(const_cast<void*>(x.storage().data()), kept, [](void* s) { delete static_cast<c10::Storage*>(s); },
                    at::kCPU);
  c10::Storage storage(c10::Storage::use_byte_size_t(), x.storage().nbytes(), std::move(data), c10::GetAllocator(at::kCPU), true);
  auto seen = over(x, std::move(storage), c10::DispatchKey::CPU);
  if (x.is_conj()) seen._set_conj(true);
  if (x.is_neg()) seen._set_neg(true);
  return seen;
}

bool is_elsewhere(const at::Tensor& x) { return x.defined() && x.device().type() == ELSEWHERE; }

struct Call {
  std::string name;
  bool here = false, there = false;
  std::vector<std::pair<at::Tensor, at::Tensor>> seen;  // as given, as the CPU sees it

  at::Tensor take(const at::Tensor& x, bool index) {
    if (!x.defined()) return x;
    if (!is_elsewhere(x)) {
      here = here || (x.dim() > 0 && !index);
      return x;
    }
    there = true;
    for (auto& [given, cpu] : seen)
      if (given.is_same(x)) return cpu;
    seen.emplace_back(x, on_cpu(x));
    return seen.back().second;
  }

  at::Tensor give(const at::Tensor& y) {
    if (!y.defined()) return y;
    for (auto& [given, cpu] : seen)
      if (cpu.is_same(y)) {
        if (given.sizes() != cpu.sizes() || given.strides() != cpu.strides() ||
            given.storage().data() != cpu.storage().data()) {  // resized
          auto fresh = made(cpu);
          on_cpu(fresh).copy_(cpu);
          given.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh.storage());
          given.unsafeGetTensorImpl()->set_sizes_and_strides(fresh.sizes(), fresh.strides(), 0);
        }
        return given;
      }
    for (auto& [given, cpu] : seen)
      if (y.storage().unsafeGetStorageImpl() == cpu.storage().unsafeGetStorageImpl()) {
        auto view = over(y, given.storage(), c10::DispatchKey::PrivateUse1);
        view._set_conj(y.is_conj());
        view._set_neg(y.is_neg());
        return view;
      }
    auto fresh = made(y);
    on_cpu(fresh).copy_(y);
    return fresh;
  }
};

void run_on_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack, bool mixed, bool indices) {
  const auto& schema = op.schema();
  Call call{schema.name()};
  const auto count = schema.arguments().size(), start = stack->size() - count;
  bool asked = false;
  for (size_t i = 0; i < count; ++i) {
    auto& value = (*stack)[start + i];
    if (value.isTensor()) {
      value = call.take(value.toTensor(), indices && i > 0 && schema.arguments()[i].name() == "index");
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> all;
      for (const auto& x : value.toTensorVector()) all.push_back(call.take(x, false));
      value = c10::List<at::Tensor>(all);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> all;
      for (const auto& x : value.toOptionalTensorVector())
        all.push_back(x ? std::optional<at::Tensor>(call.take(*x, indices)) : std::nullopt);
      value = all;
    } else if (value.isDevice() && value.toDevice().type() == ELSEWHERE) {
      asked = true;
      value = c10::Device(at::kCPU);
    }
  }
  TORCH_CHECK(mixed || !(call.here && call.there), "Expected all tensors to be on the same device, but ", call.name,
              " got some of the CPU and some of elsewhere");
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  const auto returns = schema.returns().size(), first = stack->size() - returns;
  if (!call.there && !asked) return;
  for (size_t i = 0; i < returns; ++i) {
    auto& value = (*stack)[first + i];
    if (value.isTensor()) {
      value = call.give(value.toTensor());
    } else if (value.isTensorList()) {
      std::vector<at::Tensor> all;
      for (const auto& x : value.toTensorVector()) all.push_back(call.give(x));
      value = c10::List<at::Tensor>(all);
    }
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& name = op.schema().name();
  bool indices = name == "aten::index" || name == "aten::index_put_" || name == "aten::index_put" ||
                 name == "aten::_index_put_impl_" || name == "aten::_unsafe_index" || name == "aten::_unsafe_index_put";
  run_on_cpu(op, stack, false, indices);
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  auto source = is_elsewhere(from) ? on_cpu(from) : from;
  auto target = is_elsewhere(to) ? on_cpu(to) : to;
  target.copy_(source);
  return to;
}

at::Tensor& set_storage(at::Tensor& x, c10::Storage storage, int64_t offset, at::IntArrayRef size,
                        at::IntArrayRef stride) {
  x.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  if (stride.data() != nullptr || size.size() == 0) {
    x.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  } else {
    x.unsafeGetTensorImpl()->set_sizes_contiguous(size);
    x.unsafeGetTensorImpl()->set_storage_offset(offset);
  }
  return x;
}

at::Tensor& set_whole_storage(at::Tensor& x, c10::Storage storage) {
  auto count = static_cast<int64_t>(storage.nbytes() / x.dtype().itemsize());
  x.unsafeGetTensorImpl()->set_storage_keep_dtype(storage);
  x.unsafeGetTensorImpl()->set_storage_offset(0);
  x.unsafeGetTensorImpl()->set_sizes_contiguous({count});
  return x;
}

const at::Tensor& resize(const at::Tensor& x, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  at::Tensor fresh = at::detail::empty_generic(size, &memory, c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                         x.scalar_type(), std::nullopt);
  auto least = std::min(fresh.storage().nbytes(), x.storage().nbytes());
  if (least > 0 && x.storage_offset() == 0)
    std::memcpy(const_cast<void*>(fresh.storage().data()), x.storage().data(), least);
  x.unsafeGetTensorImpl()->set_storage_keep_dtype(fresh.storage());
  x.unsafeGetTensorImpl()->set_sizes_and_strides(fresh.sizes(), fresh.strides(), 0);
  return x;
}

void same_device(std::initializer_list<at::Tensor> all) {
  for (const auto& x : all) TORCH_CHECK(!x.defined() || is_elsewhere(x), "convolution: a tensor of the CPU among some of elsewhere");
}

at::Tensor elsewhere(const at::Tensor& y) { return y.defined() ? y.to(HERE) : y; }

at::Tensor convolution(const at::Tensor& x, const at::Tensor& w, const std::optional<at::Tensor>& b,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  auto bias = b.value_or(at::Tensor());
  same_device({x, w, bias});
  return elsewhere(at::convolution(on_cpu(x), on_cpu(w), bias.defined() ? on_cpu(bias) : bias, stride, padding,
                                   dilation, transposed, output_padding, groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& w, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  same_device({grad, x, w});
  auto outputs = transposed ? w.size(1) * groups : w.size(0);
  auto [a, b, c] = at::convolution_backward(on_cpu(grad), on_cpu(x), on_cpu(w), at::IntArrayRef({outputs}), stride,
                                            padding, dilation, transposed, output_padding, groups, mask);
  return {elsewhere(a), elsewhere(b), elsewhere(c)};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("set_.source_Storage_storage_offset", set_storage);
  m.impl("set_.source_Storage", set_whole_storage);
  m.impl("resize_", resize);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {}
