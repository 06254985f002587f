"""Training of classifiers of images."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from nnrepair.domains.images.data import Images
from nnrepair.errors import InvalidInput
from nnrepair.progress import progress_bar
from nnrepair.provenance import digest
from nnrepair.spec.network import copied
from nnrepair.training import Batches, Checkpoint, Descent, Training


def train_classifier(
    model: nn.Module,
    images: Images,
    *,
    epochs: int = 15,
    lr: float = 2e-3,
    batch_size: int = 64,
    weight_decay: float = 0.0,
    seed: int = 0,
    progress: bool = False,
    resume: str | Path | None = None,
) -> nn.Module:
    """Train a copy of a classifier with Adam on the cross-entropy, and return it in eval mode.

    The model given and the global random state stay as they were; the same seed gives the same result on the CPU.

    Args:
        model: Maps inputs (n, ...) to logits (n, classes).
        images: The training set; batches move to the model's device.
        epochs: Passes over the training set.
        lr: Adam's step size.
        batch_size: Images per step.
        weight_decay: Adam's L2 penalty.
        seed: Decides the order of the images, and the dropout masks if there are any (on the CPU).
        progress: Show a progress bar on stderr.
        resume: A file (.safetensors) in which progress is stored; the same call goes on from there.

    Raises:
        InvalidInput: What cannot be trained, or `resume` is the progress of another training.

    Warns when the loss becomes infinite or no number; the network is then that of the step before.

    >>> from nnrepair.domains.vision import digits, digits_cnn
    >>> train, test = digits()
    >>> model = train_classifier(digits_cnn(), train, epochs=1)
    >>> model(test.inputs).shape
    torch.Size([450, 10])
    """
    if epochs < 1 or batch_size < 1 or not (lr > 0 and math.isfinite(lr)):
        raise InvalidInput(f"epochs, batch_size and lr must be positive, given {epochs}, {batch_size} and {lr}.")
    if len(images) == 0:
        raise InvalidInput("The training set is empty.")
    model = copied(model).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidInput("The model has no trainable parameters: set requires_grad_(True) on some.")
    checkpoint = None
    if resume is not None:
        values = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "weight_decay": weight_decay, "seed": seed}
        key = {"model": digest(model), "images": digest(images)} | {name: repr(each) for name, each in values.items()}
        checkpoint = Checkpoint(Path(resume), key)
    step = Descent(torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay))
    order = torch.Generator().manual_seed(seed)
    batches = Batches(len(images), batch_size, order)
    device, dtype = parameters[0].device, parameters[0].dtype

    def loss() -> Tensor:
        batch = images[batches.next()]
        return nn.functional.cross_entropy(model(batch.inputs.to(device, dtype)), batch.labels.to(device))

    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), progress_bar("train", progress) as report:
        torch.default_generator.manual_seed(seed)
        for one in devices:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed)
        Training(
            loss,
            step,
            epochs * batches.a_pass,
            model=model,
            state={**step.state, "order": order, "batches": batches, "dropout": torch.default_generator},
            checkpoint=checkpoint,
            report=report,
        ).run().warn()
    model.zero_grad()
    return model.eval()
