"""Ways to spoil a file: its bytes, or what it says, packed properly again so that the damage lies deeper."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from benchmarks.checkers import fuzz
from nnrepair.errors import NNRepairError
from nnrepair.spec.state import packed_tensors
from nnrepair.verify.suite.stored import checksum

Way = Callable[[np.random.Generator, bytes], bytes]

LETTERS = ["", "x", "\x1b[2J", "\0", "../../../etc/passwd", "/etc/passwd", "a" * 5000, "é\u2028", "\ud800", "0", "nan"]
NUMBERS = [0, 1, -1, 7, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), float("-inf")]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [1], {"a": {}}, {"tensor": "0"}, {"tensor": []}, {"items": [[1]]}]
OTHERS += [{"items": [["a", 1], ["a", 2]]}, {"float": "nan"}, {"float": {}}, {"tuple": 5}, {"list": {"a": 1}}]


def chosen(rng: np.random.Generator, options: Any) -> Any:
    """Return one of a list."""
    return options[int(rng.integers(len(options)))]


def odd(rng: np.random.Generator) -> Any:
    """Return a value that hardly anyone expects."""
    value = chosen(rng, chosen(rng, (LETTERS, NUMBERS, OTHERS)))
    if rng.random() < 0.02:
        for _ in range(int(rng.integers(2, 300))):
            value = [value]
    return value


def in_json(rng: np.random.Generator, value: Any) -> Any:
    """Return nested plain values with another one in some place, one missing, one twice, or one too many."""
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chosen(rng, keys)
        new = dict(value) if isinstance(value, dict) else list(value)
        if rng.random() < 0.7:
            new[key] = in_json(rng, new[key])  # type: ignore[index]
        elif rng.random() < 0.5:
            del new[key]  # type: ignore[arg-type]
        elif isinstance(new, dict):
            new[chosen(rng, [*LETTERS, *keys])] = chosen(rng, [odd(rng), value[key]])
        else:
            new.insert(int(rng.integers(len(new) + 1)), chosen(rng, [odd(rng), value[key]]))
        return new
    return odd(rng)


def in_text(rng: np.random.Generator, text: str) -> str:
    """Return a text that holds JSON, or none, with something else in it."""
    try:
        return json.dumps(in_json(rng, json.loads(text)))
    except (ValueError, RecursionError):
        return str(chosen(rng, [*LETTERS, *map(str, NUMBERS[:8]), text[:-1], text.upper(), text * 2]))


def in_tensor(rng: np.random.Generator, tensor: Tensor) -> Tensor:
    """Return a tensor with other numbers, of another type or of another shape."""
    made = tensor.detach().clone()
    types = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)
    match int(rng.integers(8)):
        case 0:
            return made.to(chosen(rng, types))
        case 1:
            return made.flatten()
        case 2:
            return chosen(rng, (made.T if made.ndim == 2 else made[None], made[:0] if made.ndim else made[None]))
        case 3:
            return torch.zeros(chosen(rng, ((), (0,), (1,), (3, 3), (0, 2**40), (1,) * 70)))
        case 4 if made.numel() and made.is_floating_point():
            made.flatten()[int(rng.integers(made.numel()))] = chosen(
                rng, (torch.nan, torch.inf, -torch.inf, 1e38, -0.0)
            )
            return made
        case 5 if made.dtype == torch.float32:
            return made.to(torch.float8_e4m3fn)
        case _:
            return made + 1


def tensors_of_the_file(rng: np.random.Generator, data: bytes) -> bytes:
    """Spoil a tensor, a name or a text of a safetensors file, and store it with a right checksum."""
    tensors, texts = _opened(data)
    form, names = texts.pop("format"), list(tensors)
    texts.pop("sha256", None)
    if names and rng.random() < 0.5:
        name = chosen(rng, names)
        match int(rng.integers(4)):
            case 0:
                del tensors[name]
            case 1:
                tensors[chosen(rng, [*LETTERS, name + ".x", name.upper(), *names])] = tensors.pop(name)
            case _:
                tensors[name] = in_tensor(rng, tensors[name])
    else:
        name = chosen(rng, list(texts))
        texts[name] = in_text(rng, texts[name])
        if rng.random() < 0.05:
            del texts[name]
    try:
        return packed_tensors(form, tensors, texts, "file")
    except NNRepairError:  # no file can hold it
        return header_of_the_file(rng, data)


def header_of_the_file(rng: np.random.Generator, data: bytes) -> bytes:
    """Spoil what a safetensors file says of its tensors and of itself."""
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.dumps(in_json(rng, json.loads(data[8 : 8 + size]))).encode()
    except ValueError:  # it is no such file
        return fuzz.flip(rng, data)
    told = chosen(rng, (len(header),) * 20 + (0, 2**62, len(header) + 1))
    return int(told).to_bytes(8, "little") + header + data[8 + size :]


def _opened(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    size = int.from_bytes(data[:8], "little")
    texts: dict[str, str] = json.loads(data[8 : 8 + size])["__metadata__"]
    return safetensors.torch.load(data), texts


def result_of_the_suite(rng: np.random.Generator, data: bytes) -> bytes:
    """Spoil a value of a stored result, and store it with a right checksum."""
    content = in_json(rng, json.loads(data))
    try:
        if isinstance(content, dict) and rng.random() < 0.9:
            content.pop("sha256", None)
            form = content.pop("format", None)
            content |= {"format": form, "sha256": checksum(content)}
    except ValueError:  # of what is no number no checksum is taken
        pass
    return json.dumps(content).encode()


def meta_of_the_archive(rng: np.random.Generator, data: bytes) -> bytes:
    """Spoil what an .npz file tells about itself."""
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    if "meta" not in arrays:
        return fuzz.array_of_the_archive(rng, data)
    text = in_text(rng, arrays["meta"].tobytes().decode())
    arrays["meta"] = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def arrays_of_the_archive(rng: np.random.Generator, data: bytes) -> bytes:
    """Give an array of an .npz file other numbers, another type, shape or name."""
    with np.load(io.BytesIO(data)) as file:
        arrays = {name: file[name] for name in file.files}
    name = chosen(rng, list(arrays))
    array = arrays.pop(name)
    kinds = ("f2", "f8", ">f4", "i1", "i8", "u1", "u8", "?", "c8", "U3", "S2", "M8[s]", "f4,i4")
    with np.errstate(all="ignore"):
        try:
            match int(rng.integers(6)):
                case 0:
                    arrays[name] = array.astype(chosen(rng, kinds))
                case 1:
                    arrays[name] = chosen(
                        rng, (array.ravel(), array[None], array.T, array[:0] if array.ndim else array)
                    )
                case 2:
                    arrays[name] = np.zeros(chosen(rng, ((), (0,), (1, 1), (0, 2**40))), array.dtype)
                case 3:
                    arrays[chosen(rng, ("../x", "/x", "", "a" * 300, "inputs", "meta", "\x1b"))] = array
                case 4 if array.size:
                    spoiled = array.copy()
                    spoiled.flat[int(rng.integers(array.size))] = chosen(rng, (-1, 0, 1, 127))
                    if array.dtype.kind == "f":
                        spoiled.flat[int(rng.integers(array.size))] = chosen(rng, (np.nan, np.inf, -np.inf, 1e38))
                    arrays[name] = spoiled
                case _:  # it is missing
                    pass
        except (TypeError, ValueError, OverflowError):  # numpy makes no such array of it
            return fuzz.array_of_the_archive(rng, data)
    made = io.BytesIO()
    np.savez(made, **arrays)
    return made.getvalue()


def cells_of_the_list(rng: np.random.Generator, data: bytes) -> bytes:
    """Put something else into a line of a list."""
    lines = data.split(b"\n")
    at = int(rng.integers(len(lines)))
    cells = lines[at].split(b",")
    new = chosen(rng, [*LETTERS, *map(str, NUMBERS), '"', '"a\nb"', "'", ";", "\r", "\ufeff"])
    cells[int(rng.integers(len(cells)))] = new.encode("utf-8", "surrogatepass")
    lines[at] = b",".join(cells)
    return b"\n".join(lines)


def zipped(rng: np.random.Generator, data: bytes) -> bytes:
    """Gzip a file, and mostly spoil that."""
    made = gzip.compress(data, mtime=0)
    return chosen(rng, (fuzz.flip, fuzz.overwrite, fuzz.cut, fuzz.repeat, lambda rng, made: made))(rng, made)  # type: ignore[no-any-return]
