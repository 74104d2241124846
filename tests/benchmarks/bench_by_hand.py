"""Backpropagation and the update steps, written by hand, against torch's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from labutils import backprop, models, optim
from tests.benchmarks import Row, side_by_side

SGD = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 1e-4}
ADAM = {"lr": 1e-6, "weight_decay": 1e-4}


def rows() -> Iterator[Row]:
    """Yield one row a comparison; with one thread, so that none waits for a core that others use."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for loss in ("squared_error", "cross_entropy"):
            yield backpropagation(loss)
        mlp = [p.shape for p in models.mlp((784, 256, 256, 10)).parameters()]
        cnn = [p.shape for p in models.cnn((3, 16, 16, 32, 32, 64), (64, 64, 64, 64, 10)).parameters()]
        yield step("torch's foreach step / SGD.step, MLP", mlp, optim.SGD, torch.optim.SGD, SGD)
        yield step("torch's foreach step / SGD.step, CNN", cnn, optim.SGD, torch.optim.SGD, SGD)
        yield step("torch's foreach step / SGD.step, stack", [(8, 10**6)], optim.SGD, torch.optim.SGD, SGD)
        yield step("torch's foreach step / Adam.step, stack", [(8, 10**6)], optim.Adam, torch.optim.Adam, ADAM)
    finally:
        torch.set_num_threads(threads)


def backpropagation(loss: backprop.Loss, batch_size: int = 128) -> Row:
    """Loss and gradients of 784-256-256-10: autograd's forward and backward, over those by hand."""
    model = models.mlp((784, 256, 256, 10))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, 784, generator=generator)
    labels = torch.randint(0, 10, (batch_size,), generator=generator)
    y = labels if loss == "cross_entropy" else F.one_hot(labels, 10).float()

    def by_hand() -> None:
        backprop.backpropagate(model, x, y, loss)

    def autograd() -> None:
        model.zero_grad()
        outputs = model(x)
        if loss == "cross_entropy":
            F.cross_entropy(outputs, y).backward()
        else:
            (F.mse_loss(outputs, y, reduction="sum") / batch_size).backward()

    ratio = side_by_side(autograd, by_hand, rounds=301)
    return Row(f"autograd / backpropagate, {loss}", ratio, 1, True, f"784-256-256-10, batch {batch_size}, float32")


def step(name: str, shapes: Iterable[tuple[int, ...]], ours: Any, torchs: Any, options: dict[str, float]) -> Row:
    """One step of torch's optimizer over one of ours, on parameters of the same shapes."""
    shapes = list(shapes)
    mine, other = (make(_parameters(shapes), **options) for make in (ours, lambda p, **o: torchs(p, foreach=True, **o)))
    size = sum(torch.Size(shape).numel() for shape in shapes)
    ratio = side_by_side(other.step, mine.step, rounds=301 if size < 10**6 else 21)
    return Row(name, ratio, 1, True, f"{size:,} parameters, {len(shapes)} tensors, {', '.join(options)}")


def _parameters(shapes: Iterable[tuple[int, ...]]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)
    return parameters
