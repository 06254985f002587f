"""Networks that complete images from some of their pixels: Conditional Neural Processes.

Garnelo et al., "Conditional Neural Processes" (ICML 2018): every given pixel is encoded with its place, the encodings
are averaged, and a decoder says what any other pixel is, as a normal distribution for each channel. The attentive one
looks again at the given pixels for every pixel that is asked for (Kim et al., "Attentive Neural Processes", ICLR 2019).

What differs from the papers: places enter with their sines and cosines; in the attentive network each head's scores
fall with the squared distance, as fast as it learns, so that it begins as a smoother of neighbouring pixels.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nnrepair.errors import InvalidInput

#: Frequencies of the sines and cosines, pi 2^k for k below this, and how many numbers a place becomes.
FREQUENCIES = 4
PLACE = 2 + 4 * FREQUENCIES
#: The least standard deviation, and how the decoder's number makes it larger.
LEAST, MORE = 0.1, 0.9
HEADS = 4


class Gaussian(NamedTuple):
    """A normal distribution for every pixel and channel: `mean` and `scale` (standard deviation), (n, m, channels)."""

    mean: Tensor
    scale: Tensor


class CNP(nn.Module):
    """Pixels at some places, given others: a Conditional Neural Process.

    >>> places, values, asked = torch.rand(2, 5, 2), torch.rand(2, 5, 3), torch.rand(2, 7, 2)
    >>> CNP(channels=3)(places, values, asked).mean.shape
    torch.Size([2, 7, 3])

    Args:
        channels: 3 for colours, 1 for grey.
        width: of hidden layers and of the encodings.
        last: width of the last hidden layer. A repair of the last layer has as many unknowns for each output.
        seed: of the first weights; the global random state is not used.
    """

    def __init__(self, channels: int = 3, width: int = 128, last: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.channels, self.width = channels, width
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.encoder = _layers(PLACE + channels, width, width, width)
            self.place = _he(nn.Linear(PLACE, width))
            self.summary = _he(nn.Linear(width, width, bias=False))
            self.decoder = nn.Sequential(nn.ReLU(), *_layers(width, width, width, last), nn.ReLU())
            self.head = nn.Linear(last, 2 * channels)
            self._extend(width)
        with torch.no_grad():  # begin near the middle grey, hardly depending on anything
            self.head.weight *= 0.1

    def _extend(self, width: int) -> None:
        """Add the layers of a variant, with random numbers of the same seed."""

    def forward(self, context_at: Tensor, context: Tensor, at: Tensor, given: Tensor | None = None) -> Gaussian:
        """Return what the pixels at some places are; the order of the context changes nothing.

        Args:
            context_at: (n, k, 2) places of the given pixels, down and to the right, in [0, 1].
            context: (n, k, channels) their values, in [0, 1].
            at: (n, m, 2) places that are asked for.
            given: (n, k) bool, which of the context counts; all by default. At least one in every row.

        Raises:
            InvalidInput: shapes that do not fit, places outside the image, an empty context, values that are no
                numbers.
        """
        _check(context_at, context, at, given, self.channels)
        order = _ordered(context_at)
        context_at, context = (_taken(part, order) for part in (context_at, context))
        weight = context.new_ones(context.shape[:2]) if given is None else given.to(context).gather(1, order)
        return self.outputs(features(context_at), context, features(at), weight[..., None])

    def outputs(self, context_at: Tensor, context: Tensor, at: Tensor, weight: Tensor) -> Gaussian:
        """Return what `forward` does, of features of places; nothing is checked or sorted.

        Args:
            context_at: (n, k, features).
            context: (n, k, channels).
            at: (n, m, features).
            weight: (n, k, 1), 1 where a pixel counts, else 0.
        """
        encoded = self.encoder(torch.cat([context_at, (context - 0.5) / 0.28], -1))
        hidden = self.place(at) + self.summary(_mean(encoded, weight)) + self._seen(context_at, encoded, at, weight)
        raw = self.head(self.decoder(hidden))
        mean, scale = raw[..., : self.channels], raw[..., self.channels :]
        return Gaussian(0.5 + mean, LEAST + MORE * nn.functional.softplus(scale))

    def _seen(self, context_at: Tensor, encoded: Tensor, at: Tensor, weight: Tensor) -> Tensor | float:
        """Return (n, m, width) what is added to the first hidden layer of the decoder, for each place of its own."""
        return 0.0


class AttentiveCNP(CNP):
    """A CNP that looks at the given pixels again for every place: several heads of attention, by places.

    >>> AttentiveCNP()(torch.rand(2, 5, 2), torch.rand(2, 5, 3), torch.rand(2, 7, 2)).scale.shape
    torch.Size([2, 7, 3])
    """

    def _extend(self, width: int) -> None:
        self.key, self.query = (nn.Sequential(*_layers(PLACE, width, width)) for _ in range(2))
        self.seen = _he(nn.Linear(width, width, bias=False))
        # Lengths over which heads look, at the start: from half a pixel of 32 to a third of the image.
        lengths = torch.logspace(math.log10(0.5 / 32), math.log10(1 / 3), HEADS)
        self.sharpness = nn.Parameter(-2 * lengths.log())  # of the squared distance, as a logarithm

    def _seen(self, context_at: Tensor, encoded: Tensor, at: Tensor, weight: Tensor) -> Tensor:
        # No shape is asked for, so that the network can be cut behind this: it runs once for repairs of what follows.
        query, key, values = (
            torch.unflatten(part, -1, (HEADS, -1)).transpose(1, 2)
            for part in (self.query(at), self.key(context_at), encoded)
        )
        # Scores fall by s |x - x'|^2 = s |x|^2 - 2 s x x' + s |x'|^2; the first is the same for all x', and left out.
        sharp = self.sharpness.exp()[:, None, None]
        here, there = _position(at)[:, None], _position(context_at)[:, None]
        there = torch.cat([there, there.square().sum(-1, keepdim=True)], -1).expand(-1, HEADS, -1, -1)
        query = query / math.sqrt(self.width / HEADS)
        query = torch.cat([query, 2 * sharp * here, -sharp * torch.ones_like(here[..., :1])], -1)
        key, values = torch.cat([key, there], -1), nn.functional.pad(values, (0, 3))
        counts = weight.log().transpose(1, 2)[:, None]  # (n, 1, 1, k): minus infinity where a pixel does not count
        looked = nn.functional.scaled_dot_product_attention(query, key, values, counts, scale=1.0)
        found: Tensor = self.seen(looked[..., :-3].transpose(1, 2).flatten(-2))
        return found


class Completion(nn.Module):
    """A CNP as a network from masked images to completed ones, which `fix` repairs like any other.

    Input: (n, channels + 1, height, width), pixels in [0, 1] and, as the last channel, 1 where a pixel is given and 0
    where it is not; see `contexts.masked`. Output: (n, channels, height, width), the means, of given pixels too.

    >>> Completion(CNP(channels=1), 4, 6)(torch.ones(2, 2, 4, 6)).shape
    torch.Size([2, 1, 4, 6])

    Args:
        model: the CNP, which is a part of this network, not copied.
        height, width: of the images, in pixels; a CNP itself knows none.
        most: pixels that are given at most; all by default. Fewer take less time.
    """

    at: Tensor

    def __init__(self, model: CNP, height: int, width: int, most: int | None = None) -> None:
        super().__init__()
        self.model, self.size, self.most = model, (height, width), height * width if most is None else most
        if not 1 <= self.most <= height * width:
            raise InvalidInput(f"Of {height} x {width} pixels, 1 to {height * width} are given, not {most}.")
        self.register_buffer("at", features(grid(height, width)), persistent=False)

    def forward(self, masked: Tensor) -> Tensor:
        """Return the completed images.

        Raises:
            InvalidInput: images of another size or with other channels, or a mask that leaves nothing.
        """
        return torch.unflatten(self.distribution(masked).mean.transpose(1, 2), 2, self.size)

    def distribution(self, masked: Tensor) -> Gaussian:
        """Return the distribution of all pixels, row by row: (n, height * width, channels) each."""
        masked = _check_masked(masked, self.model.channels, self.size, self.most)
        rows = masked.flatten(2).transpose(1, 2)
        context, weight = rows[..., :-1], rows[..., -1:]
        at = self.at + torch.zeros_like(weight)  # for every image, without asking how many there are
        order = torch.argsort(weight[..., 0], dim=1, descending=True, stable=True)[:, : self.most]  # given ones first
        return self.model.outputs(_taken(at, order), _taken(context, order), at, _taken(weight, order))


def grid(height: int, width: int) -> Tensor:
    """Return (height * width, 2) the centres of all pixels, row by row, down and to the right, in [0, 1].

    >>> grid(1, 2)
    tensor([[0.5000, 0.2500],
            [0.5000, 0.7500]])
    """
    down, right = ((torch.arange(size) + 0.5) / size for size in (height, width))
    return torch.cartesian_prod(down, right)


def features(at: Tensor) -> Tensor:
    """Return (..., 18) what networks see of places (..., 2) in [0, 1]: numbers of mean 0 and about unit size."""
    turns = torch.pi * 2.0 ** torch.arange(FREQUENCIES, device=at.device, dtype=at.dtype)
    waves = (at[..., None] * turns).flatten(-2)
    return torch.cat([(at - 0.5) * math.sqrt(12), math.sqrt(2) * waves.sin(), math.sqrt(2) * waves.cos()], -1)


def _position(of: Tensor) -> Tensor:
    """Return (..., 2) the places of features."""
    return of[..., :2] / math.sqrt(12)


def _mean(encoded: Tensor, weight: Tensor) -> Tensor:
    """Return (n, 1, width) the mean of what counts, summed in float64."""
    total = (encoded * weight).sum(1, keepdim=True, dtype=torch.float64)
    return (total / weight.sum(1, keepdim=True)).to(encoded.dtype)


def _layers(*sizes: int) -> nn.Sequential:
    """Return linear layers with ReLUs between them."""
    made: list[nn.Module] = []
    for before, after in pairwise(sizes):
        made += [_he(nn.Linear(before, after)), nn.ReLU()]
    return nn.Sequential(*made[:-1])


def _he(layer: nn.Linear) -> nn.Linear:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _ordered(at: Tensor) -> Tensor:
    """Return (n, k) int64: the order of places from above to below, and from left to right."""
    order = at[..., 1].argsort(dim=1, stable=True)
    return order.gather(1, at[..., 0].gather(1, order).argsort(dim=1, stable=True))


def _taken(values: Tensor, order: Tensor) -> Tensor:
    """Return (n, k, ...) some of the values (n, m, ...) of each, by their places (n, k)."""
    return torch.take_along_dim(values, order[..., None], 1)


def _check(context_at: Tensor, context: Tensor, at: Tensor, given: Tensor | None, channels: int) -> None:
    """Refuse what is no context, or no places to ask for."""
    shapes = f"{tuple(context_at.shape)}, {tuple(context.shape)} and {tuple(at.shape)}"
    fits = context_at.ndim == context.ndim == at.ndim == 3 and context_at.shape[:2] == context.shape[:2]
    if not fits or context_at.shape[2] != 2 or at.shape[2] != 2 or len(at) != len(context):
        raise InvalidInput(
            f"A CNP needs places (n, k, 2), their values (n, k, {channels}) and (n, m, 2), given {shapes}."
        )
    if context.shape[2] != channels:
        raise InvalidInput(f"This CNP has {channels} channels, the context's values {context.shape[2]}.")
    if given is not None and (given.shape != context.shape[:2] or given.dtype != torch.bool):
        raise InvalidInput(f"given must be bool {tuple(context.shape[:2])}, got {given.dtype} {tuple(given.shape)}.")
    if context.shape[1] == 0 or (given is not None and not bool(given.any(1).all())):
        raise InvalidInput("The context is empty: give at least one pixel of every image.")
    for places in (context_at, at):
        if not bool(((places >= 0) & (places <= 1)).all()):
            raise InvalidInput("Places must lie in the image, in [0, 1] down and to the right; see networks.grid.")
    if not bool(torch.isfinite(context).all()):
        raise InvalidInput("The context's values must be finite numbers, in [0, 1].")


@torch.fx.wrap
def _check_masked(masked: Tensor, channels: int, size: tuple[int, int], most: int) -> Tensor:
    """Refuse what is no masked image of this size; one operation for those who trace the network."""
    wanted = (channels + 1, *size)
    if masked.ndim != 4 or tuple(masked.shape[1:]) != wanted:
        raise InvalidInput(
            f"This network completes masked images (n, {', '.join(map(str, wanted))}), the mask as the last channel; "
            f"given {tuple(masked.shape)}. Completion(model, height, width) makes it one for other sizes."
        )
    if not torch._C._functorch.is_batchedtensor(masked):
        mask = masked[:, -1].flatten(1)
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise InvalidInput("The mask, the last channel, must be 1 where a pixel is given and 0 where it is not.")
        given = mask.count_nonzero(1)
        if not bool((given > 0).all()):
            raise InvalidInput("The mask leaves no pixel of some images: give at least one of each.")
        if not bool((given <= most).all()):
            raise InvalidInput(
                f"{int(given.max())} pixels of an image are given, and this network was made for at most {most}: "
                "Completion(model, height, width) takes any number."
            )
    return masked
