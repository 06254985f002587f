"""Changes of a linear map under which keys get new values, in closed form.

A change D (out, inp) of a map's weights moves what it says at a key k (inp) by D k. Given m keys K (m, inp) and what
their values lack, R (m, out), these functions return D; C (inp, inp) is the mean of k k^T over the keys that are to
keep their values, without their mean taken off. All work in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Keys whose part beside all others is smaller than this, relative to the largest, count as combinations of these.
SAME = 1e-9


def exact(K: Tensor, R: Tensor, root: Tensor) -> Tensor:
    """Return the D with K D^T = R that has the smallest trace(D C D^T), the mean square by which other values move.

    For one key this is the update of ROME (Meng et al., 2022), r (C^-1 k)^T / (k^T C^-1 k); for several that of EMMET
    (Gupta et al., 2024). Where no D meets all of them, it is the one that comes nearest, in the least squares.

    Args:
        K, R: (m, inp) and (m, out).
        root: (inp, inp) lower triangular, with root root^T = C.
    """
    whitened = torch.linalg.solve_triangular(root, K.T, upper=False).T
    lacking: Tensor = torch.linalg.pinv(whitened, rtol=SAME) @ R
    D: Tensor = torch.linalg.solve_triangular(root.T, lacking, upper=True).T
    return D


def ridge(K: Tensor, R: Tensor, C: Tensor, weight: float) -> Tensor:
    """Return the D that minimises |K D^T - R|^2 + weight trace(D C D^T), R^T K (weight C + K^T K)^-1.

    This is the update of MEMIT (Meng et al., 2023); with C = I it merges what an editor wants at each key, as MALMEN
    does (Tan et al., 2024).

    Args:
        K, R, C: (m, inp), (m, out) and (inp, inp).
        weight: how many points of the mean C weighs.
    """
    D: Tensor = torch.linalg.solve(weight * C + K.T @ K, K.T @ R).T
    return D


def within(K: Tensor, R: Tensor, P: Tensor, weight: float) -> Tensor:
    """Return the D = D P that minimises |K D^T - R|^2 + weight |D|^2, R^T K P (P K^T K P + weight I)^-1.

    This is the update of AlphaEdit (Fang et al., 2025): with P the projection away from the keys that are to keep
    their values, these do.

    Args:
        K, R, P: (m, inp), (m, out) and (inp, inp).
        weight: in squared units of keys.
    """
    return ridge(K @ P, R, torch.eye(len(P)).to(P), weight) @ P


def null_space(C: Tensor, share: float) -> Tensor:
    """Return the projection (inp, inp) onto the directions in which keys are small.

    Args:
        C: (inp, inp).
        share: of the trace of C, how much these directions have together, at most.
    """
    sizes, directions = torch.linalg.eigh(C)
    small = sizes.clamp(min=0).cumsum(0) <= share * sizes.clamp(min=0).sum()
    chosen: Tensor = directions[:, small]
    return chosen @ chosen.T
