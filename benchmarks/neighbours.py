"""Edits with points near them, which a method may be asked to reach or must."""

from __future__ import annotations

import torch

from nnrepair import Edits, EditScope
from nnrepair.errors import InvalidInput


def beside(edits: Edits, near: EditScope, how: str) -> Edits:
    """Return edits with their neighbours.

    Args:
        edits: one point each, with labels.
        near: points, with labels, that say whose they are.
        how: "wanted": as neighbours; "demanded": an edit holds where its neighbours do, too.
    """
    if how == "wanted":
        return Edits(edits.inputs, edits.criterion, neighbours=near)
    if how != "demanded":
        raise InvalidInput(f'Neighbours are "wanted" or "demanded", given {how!r}.')
    assert near.of is not None
    return Edits(
        torch.cat([edits.inputs, near.inputs]),
        torch.cat([edits.criterion.labels, near.criterion.labels]),
        of=torch.cat([torch.arange(len(edits)), near.of]),
    )
