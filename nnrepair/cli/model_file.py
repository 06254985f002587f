"""Model files of the command line: .onnx and .pt2 in, the same file with other weights out."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.files import replacing
from nnrepair.fingerprint import fingerprint
from nnrepair.results.certificate import Certificate
from nnrepair.results.result import Asked
from nnrepair.rounding import first, that_hold
from nnrepair.spec.edits import Edits
from nnrepair.spec.inputs import to_like
from nnrepair.spec.network import stated_shape
from nnrepair.spec.problem import fitted
from nnrepair.spec.running import outputs
from nnrepair.spec.scores import scored
from nnrepair.wrappers.base import Wrapper


@dataclass(frozen=True)
class OnnxCut:
    """How an ONNX file is to be read.

    Attributes:
        in_place: cut it in front of a layer, also where it could be read as a whole.
        layer: the layer; None for the last.
        output: the value to look at; None for the file's output.
        fixed: inputs that are constants, by name.
    """

    in_place: bool = False
    layer: str | None = None
    output: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class ModelFile:
    """A model as a file holds it: the module to repair, and all that must be the same in the file written.

    Attributes:
        path: of the file.
        model: what it holds.
        program: the ExportedProgram of a .pt2.
        layer: the name of the layer that is repaired, where an ONNX file was cut in front of it; else None.
        notes: how it was read.
        output: which part of what it returns are the scores, of a .pt2; None to look.
    """

    path: Path
    model: nn.Module
    program: Any = None
    layer: str | None = None
    notes: list[str] = field(default_factory=list)
    output: str | int | None = None

    @classmethod
    def load(cls, path: Path, cut: OnnxCut | None = None, example: Any = None) -> ModelFile:
        """Read an .onnx or .pt2 file; an .onnx file in place where that is allowed and it can be read in no other way.

        Args:
            path: of the file.
            cut: where an ONNX file is cut if it is read in place; None to read it as a whole alone.
            example: some of the points it will run on.

        Raises:
            InvalidInput: another kind of file (with what to do), or one that is missing or damaged.
        """
        require_model(path)
        if is_onnx(path):
            return cls._onnx(path, cut, example)
        program = _exported_program(path)
        model = program.module()
        for parameter in model.parameters():
            if parameter.dtype.is_floating_point:
                parameter.requires_grad_(True)
        return cls(path, model, program)

    @classmethod
    def _onnx(cls, path: Path, cut: OnnxCut | None, example: Any) -> ModelFile:
        from nnrepair import onnx

        refused: InvalidInput | UnsupportedModel | None = None
        if cut is None or not (cut.in_place or cut.output is not None or cut.fixed):
            try:
                whole = onnx.load(path, example=example if isinstance(example, Tensor) else None)
                return cls(path, whole, notes=[*whole.notes])
            except (InvalidInput, UnsupportedModel) as refusal:  # perhaps it is but unusual, and onnxruntime runs it
                if cut is None:
                    raise
                refused = refusal
        try:
            model = onnx.in_place(path, layer=cut.layer, output=cut.output, example=example, fixed=cut.fixed)
            if cut.output is None and model.scores is not None:  # labels say as much of these, and yes begins at 0
                model = onnx.in_place(path, layer=cut.layer, output=model.scores, example=example, fixed=cut.fixed)
        except UnsupportedModel as refusal:
            why = "" if refused is None else f"{refused} Nor can it be repaired in place: "
            raise UnsupportedModel(f"{why}{refusal}") from refusal
        stored = model.in_file(f"{model.layer}.weight")
        named = "" if stored is None else f" (--layer {stored} names it)"
        before = f"onnxruntime runs what comes before layer {model.layer}{named}"
        how = f"read in place: {before}, torch up to {model.output}"
        return cls(path, model, layer=model.layer, notes=[how, *model.notes])

    def refuse_fixed_batch(self) -> None:
        """Refuse a .pt2 that was exported for one batch size: a repair runs the model on batches of every size."""
        if self.program is None:
            return
        names = self.program.graph_signature.user_inputs
        shapes = [node.meta["val"].shape for node in self.program.graph.nodes if node.name in names]
        if shapes and isinstance(shapes[0][0], int):
            raise InvalidInput(
                f"{self.path} takes batches of {shapes[0][0]} only. Export it with a free batch size: "
                'torch.export.export(model, (inputs,), dynamic_shapes=({0: torch.export.Dim("batch")},)).'
            )

    def write(self, changed: nn.Module, out: Path, edits: tuple[Tensor, Tensor] | None = None) -> bool:
        """Write `changed`, this model with other weights, and return whether the file is this one in all else.

        With edits, the new file is read back, and they must hold in it before it gets its name.
        """
        if self.layer is not None:
            return self._write_cut(changed, out, edits)
        example = self._example() if edits is None else edits[0][:1]
        with replacing(out, ending=".onnx" if is_onnx(out) else out.suffix) as part:
            in_place = self._write_in_place(changed, part, out)
            if not in_place:
                self._write_anew(changed, part, example)
            if edits is not None:
                read = scored(ModelFile.load(part).model, Edits(*edits).inputs, self.output)
                _check_written(read, edits, out)
        return in_place

    def _write_cut(self, changed: nn.Module, out: Path, edits: tuple[Any, Tensor] | None) -> bool:
        """Write a file that was cut; onnxruntime judges it."""
        from nnrepair.onnx import InPlace

        if not is_onnx(out) or not isinstance(changed, InPlace):
            raise UnsupportedModel(
                f"{self.path} was read in place, so that only other numbers of {self.layer} can be written, as .onnx. "
                "Take a method that changes weights, and a name that ends in .onnx."
            )
        changed.save(out, None if edits is None else lambda model: _check_written(model, edits, out))
        return True

    def measured(self, written: Path, asked: Asked | None) -> list[str]:
        """Return what onnxruntime makes of the points of a repair in a written ONNX file."""
        if not is_onnx(written) or asked is None or asked.edits.of is not None:
            return []
        from nnrepair.onnx.inplace.deployed import deployed

        model = deployed(written, getattr(self.model, "output", None), fixed=getattr(self.model, "fixed", None))
        points = {("edit", "edits"): (asked.edits.inputs, asked.edits.criterion)}
        if (kept := asked.locality) is not None:
            points["point to keep", "points to keep"] = (kept.inputs[kept.holds], kept.criterion[kept.holds])
        counts = [
            that_hold(int(criterion.holds(outputs(model, inputs).double()).sum()), len(inputs), *what)
            for what, (inputs, criterion) in points.items()
            if len(inputs)
        ]
        return [f"onnxruntime, {written}: {', '.join(counts)}"]

    def _write_in_place(self, changed: nn.Module, part: Path, out: Path) -> bool:
        """Write this file with other numbers in it, where that is possible."""
        state = changed.state_dict()
        if is_onnx(self.path) != is_onnx(part) or state.keys() != self.model.state_dict().keys():
            return False
        if self.program is not None:
            program = _exported_program(self.path)  # a fresh one: ours shares its tensors with `model`
            with torch.no_grad():
                for name, tensor in program.state_dict.items():
                    tensor.copy_(state[name])
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
            part.write_bytes(buffer.getvalue())
            return True
        from nnrepair.onnx.inplace.rewrite import rewrite
        from nnrepair.onnx.reader import parsed

        proto, arrays = parsed(self.path), {}
        for name, old in self.model.state_dict().items():
            if torch.equal(old, state[name]):
                continue
            found, transposed = self._in_file(proto, name)
            if found is None:
                return False
            new = state[name].detach().cpu().numpy()
            arrays[found] = np.ascontiguousarray(new.T if transposed else new)
        rewrite(self.path, part, out, arrays)
        # One tensor of a file may serve several layers, of which only one was to change.
        return fingerprint(ModelFile.load(part).model) == fingerprint(changed)

    def _in_file(self, proto: Any, name: str) -> tuple[str | None, bool]:
        """Return which tensor of the file a parameter is, and whether it is transposed there."""
        import onnx.numpy_helper

        value = self.model.state_dict()[name].detach().cpu().numpy()
        found = []
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor)
            for transposed in (False, True):
                if array.dtype == value.dtype and np.array_equal(array.T if transposed else array, value):
                    found.append((tensor.name, transposed))
                    break
        same_name = [each for each in found if each[0] == name]
        chosen = same_name or found
        return chosen[0] if len(chosen) == 1 else (None, False)

    def named_as_in_file(self, certificate: Certificate) -> Certificate:
        """Return a certificate that calls weight and bias as this ONNX file does: the checker reads the file alone."""
        if self.program is not None:
            return certificate
        from nnrepair.onnx.reader import parsed

        proto = parsed(self.path)
        names = {
            part: self._in_file(proto, name)[0] or name
            for part, name in (("weight", certificate.weight), ("bias", certificate.bias))
            if name is not None
        }
        return dataclasses.replace(certificate, **names)  # type: ignore[arg-type]

    def _write_anew(self, changed: nn.Module, part: Path, example: Tensor) -> None:
        """Export the module, to the other format or because the file's own structure cannot take the change."""
        if isinstance(changed, Wrapper) and not changed.exports:
            raise UnsupportedModel(
                f"A {type(changed).__name__} cannot be written as .onnx or .pt2: what runs depends on its points. "
                "Write the change alone with --patch, and put it on in Python: nnrepair.Patch.load(FILE).apply(model)."
            )
        example = example.to(next(changed.parameters())) if example.dtype.is_floating_point else example
        if is_onnx(part):
            from nnrepair import onnx

            onnx.save(changed, example, part)
            return
        batch = torch.cat([example, example])  # the exporter would take a batch of 1 for a fixed size
        try:
            program = torch.export.export(changed, (batch,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        except Exception as error:  # the exporter raises many kinds
            reason = str(error).strip().split("\n")[0]
            raise UnsupportedModel(
                f"The model could not be written as .pt2 with a free batch size: {reason}"
            ) from error
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        part.write_bytes(buffer.getvalue())

    def _example(self) -> Tensor:
        if self.program is not None and self.program.example_inputs:
            example: Tensor = self.program.example_inputs[0][0][:1]
            return example
        shape = stated_shape(self.model)
        if shape is None:
            return torch.zeros(0)  # good enough in place; an exporter will say what it needs
        return torch.zeros(1, *shape)


def is_onnx(path: Path) -> bool:
    """Whether a name is that of an ONNX file, perhaps compressed."""
    return path.name.endswith((".onnx", ".onnx.gz"))


def require_model(path: Path) -> None:
    """Refuse what is no model file, or is not there.

    Raises:
        InvalidInput: another kind of file (with what to do), or one that is missing.
        MissingExtra: an ONNX file, without the packages that read it.
    """
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"):
        raise InvalidInput(
            f"{path} is a pickle: it can run any code when it is opened, and holds no network without its class. "
            "Export the model instead: torch.export.save(torch.export.export(model, (inputs,), "
            'dynamic_shapes=({0: torch.export.Dim("batch")},)), "model.pt2").'
        )
    if path.suffix != ".pt2" and not is_onnx(path):
        raise InvalidInput(f"{path}: a model is read from a file whose name ends in .onnx, .onnx.gz or .pt2.")
    if not path.is_file():
        raise InvalidInput(f"There is no model {str(path)!r}.")
    if is_onnx(path):
        from nnrepair import onnx

        assert onnx.load is not None  # known before anything else is read


def _exported_program(path: Path) -> Any:
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # torch would fall back to full unpickling of example inputs
    try:
        return torch.export.load(io.BytesIO(path.read_bytes()))
    except Exception as error:  # zipfile, JSON, pickle and torch raise many kinds on a damaged file
        reason = str(error).strip().split("\n")[0]
        raise InvalidInput(f"{path} was not written by torch.export.save, or it is damaged: {reason}") from error
    finally:
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _check_written(model: nn.Module, edits: tuple[Any, Tensor], out: Path) -> None:
    inputs, labels = edits
    given, like = Edits(inputs, labels), next(model.parameters(), None)
    y = outputs(model, given.inputs if like is None else to_like(given.inputs, like))
    holds = fitted(given.criterion, y).holds(y.double())
    if not bool(holds.all()):
        lost = torch.nonzero(~holds).flatten().tolist()
        raise UnsupportedModel(
            f"{out} was not written: edits {first(lost)} hold in the repaired model, but not in the file made of it, "
            "whose operations round differently. Give a larger --margin."
        )
