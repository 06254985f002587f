"""The scoped network: points within the scope of an edit get the edit's answer, and all others the base's."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput, UnsupportedModel
from nnrepair.wrappers.base import Wrapper
from nnrepair.wrappers.codebook import distances
from nnrepair.wrappers.parallel import query_of

#: A point is in an edit's scope where its score, exp(-sharpness d^2), is larger than this.
INSIDE = 0.5


class Scoped(Wrapper):
    """A network that answers for itself, but within the scopes of its edits, where it gives the nearest one's answer.

    A point's embedding is a linear map of what a layer takes of it, of several positions the mean. Outside of all
    scopes the output is the base's, bit for bit, in whatever batch.

    Args:
        base: the network as it was; kept as the submodule `base`, in eval mode.
        layer: the name of one of its modules.
        projection: (features, numbers that the layer takes), which makes embeddings.
        sharpness: (), how soon scores fall with distance.
        keys: (k, features), the edits' embeddings; answers: (k, ...), outputs of the network.

    Example:
        >>> base, key = nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2)
        >>> made = Scoped(base, "0", torch.eye(2), torch.tensor(4.0), key, torch.ones(1, 2))
        >>> made(torch.tensor([[0.1, 0.0]])).tolist(), torch.equal(made(torch.eye(2)), base(torch.eye(2)))
        ([[1.0, 1.0]], True)
    """

    projection: Tensor
    sharpness: Tensor
    keys: Tensor
    carries: ClassVar[str] = "the edits' answers, which the network carries beside the original weights"
    exports: ClassVar[bool] = False

    def __init__(
        self, base: nn.Module, layer: str, projection: Tensor, sharpness: Tensor, keys: Tensor, answers: Tensor
    ) -> None:
        super().__init__(base)
        shapes = tuple(projection.shape), tuple(keys.shape), tuple(answers.shape), tuple(sharpness.shape)
        if projection.ndim != 2 or keys.ndim != 2 or len(keys) != len(answers) or sharpness.ndim:
            raise InvalidInput(f"A scoped network has a projection, keys, answers and a sharpness, got {shapes}.")
        if keys.shape[1] != len(projection):
            raise InvalidInput(f"Keys have the projection's {len(projection)} features, got {shapes}.")
        base.get_submodule(layer)
        self.layer = layer
        for name, value in (("projection", projection), ("sharpness", sharpness), ("keys", keys)):
            self.register_buffer(name, value.detach().clone())
        self.register_buffer("answers", answers.detach().clone())

    answers: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def settings(self) -> dict[str, Any]:
        return {"layer": self.layer}

    @property
    def change(self) -> dict[str, Tensor]:
        return {"answers": self.answers.detach()}

    @classmethod
    def around(cls, base: nn.Module, settings: dict[str, Any], tensors: dict[str, Tensor]) -> Scoped:
        names = ("projection", "sharpness", "keys", "answers")
        return cls(base, settings["layer"], *(tensors[name] for name in names))

    def without(self, edits: Any) -> Scoped:
        """Return the network without some of its edits, by number: they are forgotten."""
        stays = torch.ones(len(self), dtype=torch.bool)
        stays[torch.as_tensor(edits, dtype=torch.long)] = False
        return Scoped(self.base, self.layer, self.projection, self.sharpness, self.keys[stays], self.answers[stays])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not len(self):
            return self.base(*args, **kwargs)
        seen: list[Tensor] = []

        def noted(module: nn.Module, taken: tuple[Any, ...], out: Any) -> None:
            seen.append(of_points(query_of(module, taken, out, self.layer)).detach())

        handle = self.base.get_submodule(self.layer).register_forward_hook(noted)
        try:
            y = self.base(*args, **kwargs)
        finally:
            handle.remove()
        if len(seen) != 1 or not isinstance(y, Tensor) or len(seen[0]) != len(y):
            raise UnsupportedModel(
                f"Layer {self.layer!r} does not run exactly once with one row for each of the network's outputs. "
                "Choose another layer."
            )
        if y.shape[1:] != self.answers.shape[1:]:
            raise UnsupportedModel(
                f"The network returns {tuple(y.shape[1:])} for a point, and its answers are "
                f"{tuple(self.answers.shape[1:])}: they were made where "
                "parts of what it returns were asked for, as of texts. Choose another method."
            )
        apart, nearest = distances(seen[0].to(self.projection) @ self.projection.T, self.keys).min(1)
        inside = self.sharpness.double() * apart.square() < -math.log(INSIDE)
        answers = self.answers[nearest].to(y.dtype)
        return torch.where(inside.reshape(-1, *[1] * (y.ndim - 1)), answers, y)


def of_points(query: Tensor) -> Tensor:
    """Return (n, features), of several positions the mean."""
    return query.flatten(1, -2).mean(1) if query.ndim > 2 else query
