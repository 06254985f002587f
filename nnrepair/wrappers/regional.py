"""The network with patches on linear regions: inside of an edit's own region outputs are shifted, and nowhere else."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.jacobian.relus import Noted
from nnrepair.wrappers.base import Wrapper


class Regional(Wrapper):
    """base(x) + sum over patches of support(x) shift, with each support on one linear region of the base.

    A linear region is where every ReLU is on, or off, as it is at the patch's own point. With z what the ReLUs are
    applied to there, and z(x) at another point, the support is the smallest z_i(x) / z_i, between 0 and 1: it is 1 at
    the patch's own point, falls towards the region's faces, and is 0 outside, where outputs are the base's, bit for
    bit. So the network stays continuous. Units that are exactly 0 at a patch's point have no say.

    Args:
        base: the network as it was; kept as the submodule `base`, in eval mode.
        places: (k, units) what the base's ReLUs are applied to at the patches' own points.
        shifts: (k, ...) what is added to the network's outputs.

    Example:
        >>> base = nn.Sequential(nn.Linear(1, 1), nn.ReLU())
        >>> _ = base[0].weight.data.fill_(1.0), base[0].bias.data.zero_()
        >>> made = Regional(base, torch.tensor([[2.0]]), torch.tensor([[5.0]]))
        >>> made(torch.tensor([[3.0], [1.0], [-1.0]])).flatten().tolist()
        [8.0, 3.5, 0.0]
    """

    carries: ClassVar[str] = "the patches' shifts, which the network carries beside the original weights"
    exports: ClassVar[bool] = False
    places: Tensor
    shifts: Tensor

    def __init__(self, base: nn.Module, places: Tensor, shifts: Tensor) -> None:
        super().__init__(base)
        if places.ndim != 2 or len(places) != len(shifts):
            shapes = tuple(places.shape), tuple(shifts.shape)
            raise InvalidInput(f"Patches have places (k, units) and shifts (k, ...), got {shapes}.")
        self.register_buffer("places", places.detach().clone())
        self.register_buffer("shifts", shifts.detach().clone())

    def __len__(self) -> int:
        return len(self.places)

    @property
    def change(self) -> dict[str, Tensor]:
        return {"shifts": self.shifts}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Regional:
        return cls(base, tensors["places"], tensors["shifts"])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not len(self):
            return self.base(*args, **kwargs)
        y, z = with_places(self.base, *args, **kwargs)
        if z.shape[1] != self.places.shape[1] or y.shape[1:] != self.shifts.shape[1:]:
            raise InvalidInput(
                f"The patches are for {self.places.shape[1]} ReLUs and outputs {tuple(self.shifts.shape[1:])}; the "
                f"network has {z.shape[1]} and {tuple(y.shape[1:])}."
            )
        for place, shift in zip(self.places, self.shifts, strict=True):
            inside = support(z, place.to(z)).to(y.dtype).reshape(-1, *[1] * (y.ndim - 1))
            y = torch.where(inside > 0, y + inside * shift.to(y), y)
        return y


def support(z: Tensor, place: Tensor) -> Tensor:
    """Return (n,) the support of a patch, see `Regional`.

    Args:
        z, place: (n, units) at points, and (units,) at the patch's own one.
    """
    ratio = torch.where(place == 0, 1.0, z / torch.where(place == 0, 1.0, place))
    return ratio.amin(1).clamp(0.0, 1.0).nan_to_num(0.0)


def with_places(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return outputs (n, ...), and (n, units) what ReLUs were applied to.

    Raises:
        UnsupportedModel: there are none, or not one row of them for each output.
    """
    with Noted() as noted:
        y = model(*args, **kwargs)
    if not noted.seen or not isinstance(y, Tensor) or any(z.ndim < 2 or len(z) != len(y) for z in noted.seen):
        found = ", ".join(str(tuple(z.shape)) for z in noted.seen) or "none"
        raise UnsupportedModel(
            "Patches on linear regions need ReLUs with one row of units for each output of the network; found: "
            f"{found}. Take another method."
        )
    return y, torch.cat([z.flatten(1) for z in noted.seen], 1)
