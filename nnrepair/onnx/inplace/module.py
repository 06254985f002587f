"""Any ONNX file as a module repaired in place: onnxruntime runs what comes before a layer, torch the rest."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.files import replacing
from nnrepair.fingerprint import digest_of_state
from nnrepair.onnx.inplace.cut import Cut
from nnrepair.onnx.inplace.deployed import deployed, ordered
from nnrepair.onnx.inplace.rewrite import rewrite
from nnrepair.onnx.inplace.runtime import Port, Runtime
from nnrepair.onnx.inplace.stored import Stored
from nnrepair.spec.network import copied

Array = npt.NDArray[Any]
#: How far the part behind the cut may be from onnxruntime, relative to the largest output, by the type of its numbers.
AGREE = {np.dtype(np.float64): 1e-6, np.dtype(np.float32): 1e-3, np.dtype(np.float16): 3e-2}
#: What is nothing: a sigmoid that is 0 in onnxruntime and 1e-8 in torch.
TINY = 1e-6
#: The same where numbers lie on a grid: onnxruntime then rounds what such a layer reads, too.
AGREED_ON_GRID = 3e-2


class InPlace(nn.Module):
    """An ONNX file as a module: onnxruntime computes what a layer reads, torch the layer and what follows.

    Maps inputs (n, ...), one tensor for each input of the file, to one of its outputs (n, ...). Only the layer and what
    follows it have parameters; a repair of these is written into the file, of which every other byte stays as it is.
    Made by `in_place`.

    Attributes:
        path: the file.
        layer: the name of the first layer that can be repaired.
        output: the value of the file that is returned.
        suffix: the layer and what follows.
        notes: what cannot be changed, and why.
        grids: parameters whose numbers lie on a grid in the file: give the method `OnGrid()`.
        scores: the value from which a sigmoid or softmax computes the output; None where none does.
        fixed: inputs that are constants; where they are given by name all the same, they are passed over.
        step: how far outputs may be from the file's, where these are rounded to a grid.
    """

    def __init__(self, source: Source, runtime: Runtime, suffix: nn.Module, places: Mapping[str, Place]) -> None:
        super().__init__()
        self._source, self._runtime, self._places = source, runtime, dict(places)
        self.suffix = suffix
        self.path, self.output, self.notes = source.path, source.cut.output, list(source.notes)
        names = [name for name, _ in suffix.named_parameters()]
        mine = [name for name, parameter in suffix.named_parameters() if parameter.requires_grad]
        first = next(
            (name for name in names if name in mine and places[name].operand in source.cut.layer.input), mine[0]
        )
        self.layer = f"suffix.{first}".rpartition(".")[0]
        self.scores, self.step, self.fixed = source.scores, source.cut.step, dict(source.fixed)
        self.grids = [
            f"suffix.{name}" for name, place in places.items() if place.stored.grid and not place.stored.frozen
        ]
        self._base = digest_of_state(suffix.state_dict())
        self._agreed = False

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        given = {name: x for name, x in named.items() if name not in self.fixed}
        crossing, y = self._before(inputs if not named else ordered(self._source.ports, given))
        made: Tensor = self.suffix(*crossing)
        made = made.reshape(y.shape) if made.numel() == y.numel() else made  # an axis of one point more or less
        if not self._agreed and self._base == digest_of_state(self.suffix.state_dict()):
            self._compare(crossing, made, y)
            self._agreed = True
        return made

    def get_extra_state(self) -> str:
        """Return what tells this file from others, but for the numbers that can change; part of a fingerprint."""
        return self._source.digest

    def set_extra_state(self, state: str) -> None:
        """Refuse the state of another file."""
        if state != self._source.digest:
            raise InvalidInput("These weights belong to another ONNX file, or to another layer of it.")

    def _before(self, inputs: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Return what crosses the cut, and the file's own output, from onnxruntime."""
        like = next(self.suffix.parameters())
        dtype, device = like.dtype, like.device
        made = dict(zip(self._source.names, self._runtime.values(inputs), strict=True))
        ports = [port.name for port in self._source.ports]
        found = [torch.from_numpy(made[n]) if n in made else inputs[ports.index(n)] for n in self._source.cut.crossing]
        found = [value.to(device, dtype if value.dtype.is_floating_point else value.dtype) for value in found]
        return found, torch.from_numpy(made[self.output])

    def _compare(self, crossing: Sequence[Tensor], made: Tensor, y: Tensor) -> None:
        """Refuse a suffix that makes of what crosses the cut another output than onnxruntime does."""
        made, y = made.detach().cpu().double(), y.double()
        share = AGREED_ON_GRID if self.grids else self._source.rounding
        far = share * float(y.abs().max() if y.numel() else 0) + 1.01 * self._source.cut.inner + TINY
        if made.shape != y.shape or not bool((made - y).abs().max() <= far):
            raise UnsupportedModel(
                self._rounds(crossing, made, far)
                or f"What follows layer {self.layer!r} of {self.path} was read as another function than onnxruntime "
                f"computes (outputs {tuple(made.shape)} and {tuple(y.shape)}). Choose a later layer, or an output "
                "before the operations that differ."
            )
        if self.grids and made.numel():
            self.step = max(self.step, 2 * float((made - y).abs().max()))

    def _rounds(self, crossing: Sequence[Tensor], made: Tensor, far: float) -> str:
        """Return that rounding alone takes outputs further apart than may be, and what to do; nothing otherwise."""
        with torch.no_grad(), suppress(RuntimeError):  # it may have constants of a type of its own
            given = [x.double() if x.dtype.is_floating_point else x for x in crossing]
            off = float((copied(self.suffix).double()(*given).cpu().reshape(made.shape) - made).abs().max())
            if math.isfinite(off) and off > far:
                return (
                    f"Rounding decides what follows layer {self.layer!r} of {self.path}: in its own precision and in "
                    f"float64 outputs are {off:.3g} apart. Numbers much larger than the outputs cancel there, so no "
                    "repair would say what runs do. Scale weights so that less cancels, or choose a later layer."
                )
        return ""

    def stored(self) -> dict[str, Array]:
        """Return the tensors of the file that have to change, by name, as they will be stored."""
        found = {}
        for name, place in self._places.items():
            parameter = self.suffix.get_parameter(name).detach().cpu()
            used = place.layout(parameter.numpy())
            new = place.stored.of(used) if not np.array_equal(used, place.used) else place.stored.array
            if not place.stored.frozen and new.tobytes() != place.stored.array.tobytes():
                found[place.stored.name] = new
        return found

    def rounded(self) -> InPlace:
        """Return a copy whose numbers are those that the file can hold: on its grid where it is quantised."""
        twin = copied(self)
        twin.round_()
        return twin

    def round_(self) -> None:
        """Take the nearest numbers that the file can hold, in place."""
        with torch.no_grad():
            for name, place in self._places.items():
                parameter = self.suffix.get_parameter(name)
                used = place.layout(parameter.detach().cpu().numpy())
                if not place.stored.frozen and not np.array_equal(used, place.used):
                    back = place.stored.used(place.stored.of(used))
                    parameter.copy_(torch.from_numpy(place.back(back, tuple(parameter.shape))))

    def neighbours(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the next lower and the next higher numbers that the file can hold, of parameters on a grid."""
        found = {}
        for name, place in self._places.items():
            if f"suffix.{name}" in self.grids:
                parameter = self.suffix.get_parameter(name).detach()
                now, used = place.stored.beside(place.layout(parameter.cpu().numpy())), dict[int, Tensor]()
                for side, array in enumerate(now):
                    back = place.back(np.asarray(place.stored.used(array)), tuple(parameter.shape))
                    used[side] = torch.from_numpy(back).to(parameter)
                found[f"suffix.{name}"] = used[0], used[1]
        return found

    @property
    def patch_about(self) -> dict[str, Any]:
        """What a patch tells of how the file was cut, for who applies it."""
        fixed = {name: np.asarray(value).tolist() for name, value in self.fixed.items()}
        told = {"layer": self._source.cut.layer.output[0], "output": self.output}
        return {"onnx": told | ({"fixed": fixed} if fixed else {})}

    def in_file(self, name: str) -> str | None:
        """Return the tensor of the file that a parameter is kept in; None where there is no such one."""
        place = self._places.get(name.removeprefix("suffix."))
        return None if place is None else place.stored.name

    def save(self, path: str | os.PathLike[str], judge: Callable[[nn.Module], object] | None = None) -> Path:
        """Write the file with this module's numbers in it; every other byte stays.

        Weights that lie in files beside it stay there where the new file goes to the same folder, and are copied with
        it otherwise; those that changed come into the file. Before it gets its name, onnxruntime runs it on some
        points, and must compute what this module does.

        Args:
            path: where to write.
            judge: is called with the written file in onnxruntime, as a module; what it raises leaves no file.

        Raises:
            InvalidInput: numbers that the file cannot hold (see `rounded`), the original changed meanwhile, or another
                file lies where its data would go.
            UnsupportedModel: onnxruntime computes something else.
            OSError: it cannot be written; a file that was there before is there still.
        """
        target, source = Path(path), self._source
        if hashlib.sha256(source.path.read_bytes()).hexdigest() != source.sha256:
            raise InvalidInput(f"{source.path} is no longer the file that was read. Read it again.")
        if any(not torch.equal(a, b) for a, b in zip(self.parameters(), self.rounded().parameters(), strict=True)):
            raise InvalidInput(
                f"Numbers of {', '.join(self.grids) or 'this module'} lie on a grid in the file, and those of this "
                "module do not. Repair with the method nnrepair.methods.OnGrid(), or save model.rounded() and judge it "
                "anew."
            )
        with replacing(target, ending=".onnx") as part:
            rewrite(source.path, part, target, self.stored(), source.ways)
            whole = deployed(part, self.output, ports=source.ports, fixed=source.fixed)
            if source.example is not None:
                with torch.no_grad():
                    self._compare(self._before(source.example)[0], self(*source.example), whole(*source.example))
            if judge is not None:
                judge(whole)
        return target


@dataclass(frozen=True)
class Source:
    """What an `InPlace` keeps of its file; shared by all copies, never changed.

    Attributes:
        path, sha256: of the file.
        digest: of all that cannot be changed in it.
        cut, ports: where it is cut, and its inputs.
        names: of what onnxruntime computes.
        rounding: see `AGREE`.
        example: inputs on which a written file is compared, or None.
        notes, scores: see `InPlace`.
        fixed: inputs that are constants.
        ways: where in the file the tensors of branches lie; see `spliced`.
    """

    path: Path
    sha256: str
    digest: str
    cut: Cut
    ports: tuple[Port, ...]
    names: tuple[str, ...]
    rounding: float
    example: tuple[Tensor, ...] | None
    notes: tuple[str, ...]
    scores: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    ways: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Source:
        return self


@dataclass(frozen=True)
class Place:
    """Which constant of the file a parameter is, and how it lies there.

    Attributes:
        operand: the constant as the layer reads it, '' where there is no single one.
        stored: where its numbers are kept.
        used: its numbers.
        transposed: whether the parameter is it, transposed.
    """

    operand: str
    stored: Stored
    used: Array
    transposed: bool = False

    def __deepcopy__(self, memo: dict[int, Any]) -> Place:
        return self

    def layout(self, parameter: Array) -> Array:
        """Return a parameter's numbers as the constant has them."""
        turned = parameter.T if self.transposed else parameter
        return np.ascontiguousarray(turned).reshape(self.used.shape).astype(self.used.dtype)

    def back(self, used: Array, shape: tuple[int, ...]) -> Array:
        """Return a constant's numbers as the parameter has them."""
        turned = used.reshape(shape[::-1]).T if self.transposed else used.reshape(shape)
        return np.ascontiguousarray(turned)
