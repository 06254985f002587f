"""Models as people have them: everyday kinds of modules and wrappers, each with inputs that it takes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from networks import Tied, mlp, randn, seeded
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

#: What three classes are told apart by.
X = randn(12, 6, seed=3)
IMAGES = randn(12, 2, 6, 6, seed=3)
BYTES = torch.randint(0, 256, (12, 2, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(0, 20, (12, 5), generator=torch.Generator().manual_seed(3))
SEQUENCES = randn(12, 5, 6, seed=3)


def net() -> nn.Sequential:
    return mlp(6, 16, 3)


def quietly(make: Callable[[], Any]) -> Any:
    """Make something with a way that torch warns about: people have such models all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return seeded(make)


class Around(nn.Module):
    """A network with something done before or after it."""

    def __init__(self, net: nn.Module, before: Callable[..., Any] = lambda x: x, after: Any = lambda y: y) -> None:
        super().__init__()
        self.net, self.before, self.after = net, before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.net(self.before(x)))


class Camera(nn.Module):
    """Reads bytes, and casts them."""

    def __init__(self, cast: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.cast = nn.Conv2d(2, 8, 3), nn.Linear(8, 3), cast

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(self.cast(x) / 255)).mean((2, 3)))


class Constants(nn.Module):
    """Makes numbers of its own in float32 on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 16, dtype=torch.float32)
        h[:, :] = torch.relu(self.a(x.to(torch.float32)))
        return self.b(h + torch.linspace(0, 1, 16))


class Scaled(torch.autograd.Function):
    """The identity with a backward of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return 2 * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * grad


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(Scaled.apply(self.a(x))))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.body, self.head = kind(6, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class Reads(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6, **options), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.table(x).mean(1)))


class Recomputes(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.a, self.b, self.reentrant = nn.Linear(6, 16), nn.Linear(16, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        return self.b(checkpoint(lambda x: torch.relu(self.a(x)), x, use_reentrant=self.reentrant))


class Remembers(nn.Module):
    """Keeps an activation of the last pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.seen = nn.Linear(6, 16), nn.Linear(16, 3), dict[str, Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen["hidden"] = torch.relu(self.a(x))
        return self.b(self.seen["hidden"])


class Parts(nn.Module):
    """Bare parameters, in a list and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ParameterList([torch.randn(16, 6), torch.randn(16)])
        self.second = nn.ParameterDict({"w": torch.randn(3, 16)})

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.first[0].T + self.first[1]) @ self.second["w"].T


def pruned(how: Callable[..., Any], **options: Any) -> nn.Module:
    model = net()
    how(model[2], "weight", 0.5, **options)
    return model


def called(model: nn.Module, x: Tensor) -> nn.Module:
    model(x)
    return model


def old_weight_norm() -> nn.Module:
    return quietly(lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3)))


class Cut(nn.Module):
    """Runs without gradients, whatever its caller wants."""

    def __init__(self, context: Any) -> None:
        super().__init__()
        self.net, self.context = net(), context

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            return self.net(x)


class Shares(nn.Module):
    """Whose copies share its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def __deepcopy__(self, memo: Any) -> Shares:
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def with_attribute(value: Any) -> nn.Module:
    model = net()
    model[0].helper = value
    return model


def sparse() -> nn.Module:
    model = Around(net())
    model.extra = nn.Parameter(torch.eye(3).to_sparse())
    return model


def eight_bits() -> nn.Module:
    model = net()
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    return model


def exported() -> nn.Module:
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    return torch.export.export(net(), (X,), dynamic_shapes=(batch,)).module()


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


def imitates_quantised() -> nn.Module:
    model = net().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
    return torch.ao.quantization.prepare_qat(model).eval()


Make = Callable[[], nn.Module]

#: Kinds that every method repairs: what makes one, and inputs.
WORK: dict[str, tuple[Make, Tensor]] = {
    "plain": (net, X),
    "float64": (lambda: net().double(), X),
    "training mode": (lambda: nn.Sequential(net(), nn.Dropout(0.5)).train(), X),
    "torch.compile": (lambda: torch.compile(net(), backend="eager"), X),
    "torch.compile inside": (lambda: Around(torch.compile(net(), backend="eager")), X),
    "module.compile()": (lambda: (model := net()).compile(backend="eager") or model, X),
    "data parallel": (lambda: nn.DataParallel(net()), X),
    "exported": (lambda: quietly(exported), X),
    "traced symbolically": (lambda: torch.fx.symbolic_trace(net()), X),
    "pruned": (lambda: pruned(prune.l1_unstructured), X),
    "pruned, called": (lambda: called(pruned(prune.l1_unstructured), X), X),
    "pruned by rows": (lambda: pruned(prune.ln_structured, n=2, dim=1), X),
    "weight norm": (lambda: seeded(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 3)))), X),
    "weight norm, called": (lambda: called(nn.Sequential(parametrizations.weight_norm(net()[0]), *net()[1:]), X), X),
    "old weight norm": (old_weight_norm, X),
    "old weight norm, called": (lambda: called(old_weight_norm(), X), X),
    "spectral norm": (lambda: nn.Sequential(parametrizations.spectral_norm(net()[0]), *net()[1:]), X),
    "old spectral norm": (lambda: quietly(lambda: nn.Sequential(nn.utils.spectral_norm(net()[0]), *net()[1:])), X),
    "casts with float()": (lambda: seeded(lambda: Camera(Tensor.float)), BYTES),
    "casts with to()": (lambda: seeded(lambda: Camera(lambda x: x.to(torch.float32))), BYTES),
    "casts with type()": (lambda: seeded(lambda: Camera(lambda x: x.type(torch.FloatTensor))), BYTES),
    "casts with type() in words": (lambda: seeded(lambda: Camera(lambda x: x.type("torch.FloatTensor"))), BYTES),
    "makes float32 constants": (lambda: seeded(Constants), X),
    "writes in place": (lambda: nn.Sequential(net()[0], nn.ReLU(inplace=True), net()[2]), X),
    "autograd.Function": (lambda: seeded(Custom), X),
    "LSTM": (lambda: seeded(lambda: Recurrent(nn.LSTM)), SEQUENCES),
    "GRU": (lambda: seeded(lambda: Recurrent(nn.GRU)), SEQUENCES),
    "transformer": (lambda: seeded(Attends), SEQUENCES),
    "tokens": (lambda: seeded(Reads), TOKENS),
    "sparse gradients": (lambda: seeded(lambda: Reads(sparse=True)), TOKENS),
    "largest norm of tokens": (lambda: seeded(lambda: Reads(max_norm=1.0)), TOKENS),
    "checkpoints": (lambda: seeded(lambda: Recomputes(False)), X),
    "remembers": (lambda: called(seeded(Remembers), X), X),
    "tied": (lambda: seeded(lambda: nn.Sequential(nn.Linear(6, 4), Tied())), X),
    "bare parameters": (lambda: seeded(Parts), X),
    "channels last": (
        lambda: seeded(lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))).to(
            memory_format=torch.channels_last
        ),
        IMAGES,
    ),
    "hooks": (lambda: hooked(net()), X),
    "a lazy layer that was called": (
        lambda: called(seeded(lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))), X),
        X,
    ),
    "outputs of inference mode": (lambda: with_attribute(torch.inference_mode()(lambda: torch.ones(3))()), X),
}


def hooked(model: nn.Sequential) -> nn.Module:
    model[1].register_forward_hook(lambda module, args, y: 1.5 * y)
    return model


#: Kinds that no method repairs: what makes one, inputs, and what the refusal says.
REFUSED: dict[str, tuple[Make, Tensor, str]] = {
    "scripted": (
        lambda: quietly(lambda: torch.jit.script(net())),
        X,
        r"TorchScript.*script or trace what comes of it \(result\.model\)",
    ),
    "traced": (lambda: quietly(lambda: torch.jit.trace(net(), X)), X, "TorchScript.*the Python module"),
    "scripted inside": (lambda: Around(quietly(lambda: torch.jit.script(net()))), X, "TorchScript.*Found in: net"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3)), X, r"lazy.*Run it once.*0\.weight"),
    "meta": (lambda: net().to("meta"), X, '"meta" device.*Load them'),
    "partly meta": (lambda: nn.Sequential(net()[0].to("meta"), *net()[1:]), X, r'"meta".*Found in: 0\.weight, 0\.bias'),
    "quantised": (lambda: quietly(quantised), X, r"quantised layers.*quantise what comes of it.*Found in: 0, "),
    "imitates quantised": (lambda: quietly(imitates_quantised), X, "quantised layers"),
    "sparse": (sparse, X, r"sparse parameters.*to_dense\(\).*Found in: extra"),
    "eight bits": (eight_bits, X, r"eight bits.*bfloat16.*Found in: 0\.weight"),
    "complex": (lambda: Around(net(), after=lambda y: y + 0j), X, "complex64 outputs"),
    "random": (lambda: Around(net(), after=lambda y: y + torch.rand(1)), X, "random"),
    "batch statistics": (
        lambda: nn.Sequential(net()[0], nn.BatchNorm1d(16, track_running_stats=False), net()[2]),
        X,
        r"Batch normalisation without running statistics \(1\)",
    ),
    "squeezes": (lambda: Around(mlp(6, 16, 1), after=torch.squeeze), X, r"squeeze\(1\)"),
    "two parts": (lambda: Around(net(), after=lambda y: (y, 2 * y)), X, "returns tuple, (in which several|not a ten)"),
    "a lock": (lambda: with_attribute(threading.Lock()), X, r"cannot be copied: attribute 0\.helper \(lock\)"),
    "shares its copies' weights": (Shares, X, "copy of the model shares its weights"),
}

#: Kinds without gradients: what makes one, inputs, and what methods that need gradients say.
WITHOUT_GRADIENTS: dict[str, tuple[Make, Tensor, str]] = {
    "no_grad": (lambda: Cut(torch.no_grad), X, "torch.no_grad"),
    "inference_mode": (lambda: Cut(torch.inference_mode), X, "inference_mode"),
    "detach": (lambda: Around(net(), after=Tensor.detach), X, "detach"),
}
