"""What is lost in rounding is told from what a model does to its batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import mlp, randn
from torch import Tensor, nn

import nnrepair
from nnrepair import UnsupportedModel
from nnrepair.spec.noise import noise


class Cancelling(nn.Module):
    """A network of which 4e9 cancels; what it returns for one point alone is off by `far`, as another sum would be."""

    def __init__(self, far: float = 0.0) -> None:
        super().__init__()
        self.inner, self.far = nn.Linear(2, 2, bias=False), far
        with torch.no_grad():
            self.inner.weight.copy_(torch.tensor([[4e9, 1.0], [4e9, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(torch.cat([torch.ones_like(x[:, :1]), x[:, 1:]], 1))
        difference = y[:, :1] - y[:, 1:] + (self.far if len(x) == 1 else 0.0)
        return torch.cat([difference, torch.zeros_like(difference)], 1)


def test_noise_is_next_to_nothing_unless_digits_cancel() -> None:
    x, model = randn(6, 4), mlp(4, 30, 30, 3)
    kept = [p.detach().clone() for p in model.parameters()]
    far = noise(model, lambda twin: twin(x))
    assert far.shape == (6, 3) and 0 < float(far.max()) < 64 * 20 * torch.finfo(torch.float32).eps
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), kept, strict=True))
    far = noise(Cancelling(), lambda twin: twin(x[:, :2]))
    assert float(far[:, 0].min()) > 64 * 256 and float(far[:, 1].max()) == 0  # a unit in the last place of 4e9 is 256


def test_nothing_is_put_down_to_rounding_where_outputs_overflow() -> None:
    model, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0]])
    with torch.no_grad():
        model.weight.fill_(torch.finfo(torch.float32).max)  # finite as it is, infinite a little further
    assert bool(torch.isfinite(model(x)).all()) and float(noise(model, lambda twin: twin(x))) == 0


@pytest.mark.parametrize(
    "far, said", [(512.0, "lost in rounding: .* by 5.1e.02 between"), (1e6, "depends on the other")]
)
def test_a_network_that_lost_its_digits_is_not_said_to_mix_points(far: float, said: str) -> None:
    edits = nnrepair.Edits(randn(3, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(UnsupportedModel, match=said):
        nnrepair.fix(Cancelling(far), edits)


def test_files_are_told_apart_likewise() -> None:
    points: Any = pytest.importorskip("nnrepair.onnx.points", reason="ONNX files need the extra [onnx]")
    model, pair = Cancelling().double(), [randn(2, 2).double()]
    y = model(pair[0])
    one = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).double()
    assert points._agree(y + 5e-7 * one, y, model, pair)  # a unit in the last place of 4e9 in float64
    assert not points._agree(y + 1e-3 * one, y, model, pair)
    assert not points._agree(y + 5e-7 * one.roll(1, 1), y, model, pair)  # an output that is exactly 0
    assert not points._agree(y[:1], y, model, pair)
    sound = mlp(2, 9, 2).double()
    y = sound(pair[0])
    assert points._agree(y + 1e-12, y, sound, pair) and not points._agree(y + 1e-4, y, sound, pair)
