"""Completions that are wrong somewhere: a patch of an image, its true pixels, and a tolerance in grey levels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnrepair.domains.base import Task
from nnrepair.domains.inpainting import contexts
from nnrepair.domains.inpainting.data import grey
from nnrepair.domains.inpainting.networks import Completion
from nnrepair.domains.inpainting.recipes import recipe, trained
from nnrepair.domains.inpainting.training import TOGETHER
from nnrepair.errors import InvalidInput
from nnrepair.methods.episodes import Episode
from nnrepair.spec.criteria import Near
from nnrepair.spec.edits import Edits, EditScope, LocalitySet

#: How far a pixel may be from its target: ten grey levels.
TOLERANCE = 10 / 255
#: Share of the pixels that are given, at random.
SHARE = 0.1
#: Contexts of each edited image by which generality is measured.
OTHERS = 2
#: Sizes of the locality set (where it is less than twice the width of a layer, drift says little of other images), of
#: the two test sets at most, and how many training images episodes take edits from.
KEPT, TESTED, WATCHED, PRACTISED = 300, 500, 50, 200


def task(model: str = "digits", seed: int = 0, edits: int = 20, kept: int = KEPT, own: int = 0) -> Task:
    """Edits: patches that the network completes worst in images to test; kept: completions of images to train on.

    Measured besides: "rest", by how much a repaired network moves the edited pictures outside their patches, mean over
    pixels. Test sets: "error", other images with their true pixels, whose mean squared error is measured; "kept",
    others again with the network's own completions, which should stay within the tolerance. Edit scope: the edited
    images, given other pixels at random. Labels are `Near` criteria throughout.

    Args:
        model: "digits" (8 x 8, no download), "mnist-attentive", "celeba-32" or "celeba-32-attentive".
        seed: of contexts and drawing.
        edits: how many.
        kept: size of the locality set.
        own: so often each completion that is edited is in the locality set besides, as it is. An edit asks nothing of
            the picture around its patch; a norm that looks at the locality set spares it then.

    Raises:
        InvalidInput: another model, or more edits than there are images that it completes wrongly.
    """
    made = recipe(model)
    network = Completion(trained(model), made.size, made.size, _count(made.size**2, SHARE)).eval()
    generator = torch.Generator().manual_seed(seed)
    test, train = made.images("test"), made.images("train")
    order = torch.randperm(len(test), generator=generator)
    mine, asked, skipped = _mistakes(network, test, order, edits, generator)
    rest = order[~torch.isin(order, torch.cat([mine, skipped]))]
    half = min(TESTED, len(rest) // 2)
    tested, watched = rest[:half], rest[half:][:WATCHED]
    some = torch.randperm(len(train), generator=generator)
    stays, practised = some[:kept], some[kept : kept + PRACTISED]
    truth = grey(test[tested])
    stay, completions = _completed(network, grey(train[stays]), generator)
    given = asked.inputs
    assert isinstance(given, Tensor)
    before = _outputs(network, given)
    if own:
        again_and_again = torch.cat([completions.target, before.repeat(own, 1, 1, 1)])
        stay, completions = torch.cat([stay, given.repeat(own, 1, 1, 1)]), Near(again_and_again, TOLERANCE)

    wanted = asked.criterion
    assert isinstance(wanted, Near)
    free = torch.isinf(wanted.tol)

    def further(repaired: nn.Module) -> dict[str, float]:
        return {"rest": float((_outputs(repaired, given) - before).abs()[free].mean())}

    return Task(
        model=network,
        edits=asked,
        locality_set=LocalitySet(stay, completions),
        test_set={
            "error": (shown(truth, generator), Near(truth, 1.0)),
            "kept": _completed(network, grey(test[watched]), generator),
        },
        edit_scope=again(test[mine], asked, generator),
        training=lambda: _training(network, train[practised], train[stays], seed),
        further=further,
    )


def shown(images: Tensor, generator: torch.Generator, share: float = SHARE) -> Tensor:
    """Return images (n, channels, height, width) in [0, 1], masked but for a share of their pixels, at random."""
    count = _count(images.shape[2] * images.shape[3], share)
    return contexts.masked(images, contexts.context("random", images, count, generator))


def _count(pixels: int, share: float) -> int:
    return max(1, round(share * pixels))


def patched(images: Tensor, corner: Tensor, side: int, tolerance: float = TOLERANCE) -> Near:
    """Return what is asked of completions: that they are near the images on a square patch, and free elsewhere.

    Args:
        images: (n, channels, height, width) in [0, 1], the targets.
        corner: (n, 2) the upper left pixel of each patch.
        side: of the patches, in pixels.
        tolerance: in units of the images.

    Raises:
        InvalidInput: targets outside [0, 1], or a patch that is not wholly in its image.
    """
    contexts.in_range(images, "Targets")
    n, _, height, width = images.shape
    limit = torch.tensor([height, width]) - side
    if corner.shape != (n, 2) or side < 1 or not bool(((corner >= 0) & (corner <= limit)).all()):
        raise InvalidInput(
            f"Patches of {side} x {side} pixels need corners ({n}, 2) between 0 and {limit.tolist()}, given "
            f"{tuple(corner.shape)}: {corner.tolist()[:5]}."
        )
    down, right = torch.arange(height)[:, None] - corner[:, :1, None], torch.arange(width) - corner[:, 1:, None]
    inside = (down >= 0) & (down < side) & (right >= 0) & (right < side)
    return Near(images, torch.where(inside[:, None], tolerance, torch.inf).expand_as(images))


def again(images: Tensor, asked: Edits, generator: torch.Generator) -> EditScope:
    """Return the same images (uint8), `OTHERS` times each with other pixels given, and what is asked of them."""
    of = torch.arange(len(images)).repeat_interleave(OTHERS)
    return EditScope(shown(grey(images[of]), generator), asked.criterion[of], of=of)


@torch.no_grad()
def _mistakes(
    network: nn.Module, images: Tensor, order: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, Edits, Tensor]:
    """Return (count,) images, in order, that are completed wrongly, as edits; and those passed over."""
    if count < 1:
        raise InvalidInput(f"edits must be at least 1, given {count}.")
    found: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # images, inputs, targets, tolerances
    passed: list[Tensor] = []
    side, left = patch_side(images), count
    for some in torch.split(order, TOGETHER):
        true = grey(images[some])
        masked = shown(true, generator)
        completed = network(masked)
        asked = patched(true, worst_patch(completed, true, side), side)
        wrong = ~asked.holds(completed)
        index = torch.nonzero(wrong).flatten()[:left]
        passed.append(some[~wrong])
        found.append((some[index], masked[index], asked.target[index], asked.tol[index]))
        left -= len(index)
        if left == 0:
            break
    if left:
        raise InvalidInput(f"{count} edits were asked for, but there are only {count - left} images completed wrongly.")
    mine, inputs, targets, tolerances = (torch.cat(part) for part in zip(*found, strict=True))
    return mine, Edits(inputs, Near(targets, tolerances)), torch.cat(passed)


def patch_side(images: Tensor) -> int:
    """Return the side of patches: a quarter of the image's, 8 of 32 pixels and 3 of 8."""
    return max(3, round(min(images.shape[2:]) / 4 + 0.5))


def worst_patch(found: Tensor, true: Tensor, side: int) -> Tensor:
    """Return (n, 2) the corner of the patch where completions are farthest from the truth, in squares."""
    off = nn.functional.avg_pool2d((found - true).square().mean(1, keepdim=True), side, stride=1)
    place = off.flatten(1).argmax(1)
    return torch.stack([place // off.shape[3], place % off.shape[3]], 1)


def _completed(network: nn.Module, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Near]:
    """Return masked images, and that their completions stay."""
    masked = shown(images, generator)
    return masked, Near(_outputs(network, masked), TOLERANCE)


@torch.no_grad()
def _outputs(network: nn.Module, masked: Tensor) -> Tensor:
    return torch.cat([network(some) for some in torch.split(masked, TOGETHER)])


def _training(network: nn.Module, practised: Tensor, kept: Tensor, seed: int) -> Episode:
    generator = torch.Generator().manual_seed(seed)
    mine, edits, _ = _mistakes(network, practised, torch.arange(len(practised)), len(practised) // 2, generator)
    return Episode(
        edits, LocalitySet(*_completed(network, grey(kept), generator)), again(practised[mine], edits, generator)
    )
