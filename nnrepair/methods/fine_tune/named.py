"""Fine-tuning by the names that it has in papers: each is a penalty, or a place of the change, and its usual weight."""

from __future__ import annotations

from nnrepair.methods.base import register
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.methods.fine_tune.penalties import EWC, KL, L2, LInf, Rewired, TopShare


# Weights at which 50 foggy digits still hold on an MNIST network; other models will want others.
def _l2() -> FineTune:
    """Fine-tuning in which every weight is pulled back to what it was."""
    return FineTune(penalties=(L2(0.1),))


def _linf() -> FineTune:
    """Fine-tuning in which no weight may move by more than a tenth of what is usual in its tensor."""
    return FineTune(penalties=(LInf(0.1, relative=True),))


def _kl() -> FineTune:
    """Fine-tuning in which outputs on the points to keep are pulled back to what they were."""
    return FineTune(penalties=(KL(10.0),))


def _ewc() -> FineTune:
    """Fine-tuning in which the weights that decide about the points to keep are pulled back to what they were."""
    return FineTune(penalties=(EWC(1000.0),))


def _gre() -> FineTune:
    """Fine-tuning whose steps are turned so that they raise no loss on the points to keep, to first order."""
    return FineTune(penalties=(Rewired(),))


def _gre_plus() -> FineTune:
    """As gre, with a gradient for each of three parts of the points to keep."""
    return FineTune(penalties=(Rewired(3),))


def _masked() -> FineTune:
    """Fine-tuning of the tenth of the weights that matter most for the edits, and least for the points to keep."""
    return FineTune(penalties=(TopShare(0.1),))


def _lora() -> FineTune:
    """Fine-tuning in which every weight matrix changes by a product of two thin ones, and nothing else does."""
    return FineTune(lr=0.01, rank=4)


register("ft", FineTune)
register("ft+l2", _l2)
register("ft+linf", _linf)
register("ft+kl", _kl)
register("ewc", _ewc)
register("gre", _gre)
register("gre+", _gre_plus)
register("ft+mask", _masked)
register("lora", _lora)
