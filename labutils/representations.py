"""Representations: what the layers of a network make of the data, and how the loss depends on it.

The hooks copy a layer's output, which an in-place activation may overwrite, and are removed whatever happens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from labutils.training import eval_mode, watched


def extract(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 500,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """Return the outputs of a network's layers for all examples, in eval mode and without gradients.

    Args:
        model: any network that takes one tensor; its layers keep their modes.
        x: (N, ...) examples. They go to the network's device and floating-point type a batch at a time.
        layers: names as in `model.named_modules()`, such as "1" or "encoder.conv1"; None takes every layer that holds
            no other layers and runs.
        batch_size: examples in a pass.
        progress: whether to show a bar; None shows one where somebody watches (a terminal or a notebook in use).

    Returns:
        Copies of the outputs (N, ...) on the CPU by layer name, in the order in which the layers run. A layer that runs
        several times has one entry for each, its name followed by "#2", "#3" and so on.

    Raises:
        ValueError: no examples, an unknown layer name, a layer that did not run (or not for all examples), or whose
            output is not one tensor with one row for each example.

    Example:
        >>> from labutils import models
        >>> found = extract(models.mlp((4, 3, 2)), torch.ones(5, 4), ["2", "3"])
        >>> {name: tuple(output.shape) for name, output in found.items()}
        {'2': (5, 3), '3': (5, 2)}
    """
    names = _check(model, x, layers, batch_size)
    kept = _Kept(len(x))

    def hook(name: str, output: Tensor) -> None:
        kept.add(name, output)

    with torch.no_grad(), eval_mode(model), _hooks(model, names, hook, kept), _bar(x, progress) as bar:
        for batch in _batches(model, x, batch_size):
            kept.begin(len(batch))
            model(batch)
            bar.update(len(batch))
    return kept.finish(names, explicit=layers is not None)


def extract_gradients(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    layers: Sequence[str] | None = None,
    *,
    batch_size: int = 500,
    progress: bool | None = None,
) -> dict[str, Tensor]:
    """Return the gradient of each example's cross-entropy with respect to the layers' outputs.

    In eval mode no example's loss depends on another example, so the gradient of the batch's summed loss holds every
    example's own gradient as one row. Parameters get no gradients.

    Args:
        model: any network that takes one tensor and returns (N, outputs).
        x: (N, ...) examples.
        y: labels (N,) int64.
        layers, batch_size, progress: as for `extract`.

    Returns:
        Gradients by layer name, with the keys, order and shapes of `extract`. Zeros where the loss does not depend on
        the layer.

    Raises:
        ValueError: as `extract`; labels that do not fit the examples or the outputs.

    Example:
        >>> from labutils import models
        >>> model = models.mlp((4, 3, 2))
        >>> found = extract_gradients(model, torch.ones(5, 4), torch.zeros(5, dtype=torch.int64), ["2"])
        >>> tuple(found["2"].shape), model[1].weight.grad
        ((5, 3), None)
    """
    names = _check(model, x, layers, batch_size)
    if len(y) != len(x):
        raise ValueError(f"{len(x)} examples and {len(y)} labels: give one label for each example")
    kept = _Kept(len(x))
    outputs: dict[str, Tensor] = {}

    def hook(name: str, output: Tensor) -> Tensor:
        if not output.requires_grad:  # nothing before this layer has parameters to learn: the graph starts here
            output = output.detach().requires_grad_()
        outputs[name] = output
        return output.clone()  # an in-place activation changes the clone, not what the gradient is taken for

    start = 0
    with torch.enable_grad(), eval_mode(model), _hooks(model, names, hook, kept), _bar(x, progress) as bar:
        for batch in _batches(model, x, batch_size):
            kept.begin(len(batch))
            outputs.clear()
            value = _summed_loss(model(batch), y[start : start + len(batch)])
            gradients = torch.autograd.grad(value, list(outputs.values()), materialize_grads=True) if outputs else ()
            for name, gradient in zip(outputs, gradients, strict=True):
                kept.add(name, gradient)
            start += len(batch)
            bar.update(len(batch))
    return kept.finish(names, explicit=layers is not None)


class _Kept:
    """The rows of every layer, filled a batch at a time into memory of their own."""

    def __init__(self, n: int) -> None:
        self.n, self.start, self.size = n, 0, 0
        self.values: dict[str, Tensor] = {}
        self.filled: dict[str, int] = {}
        self.calls: dict[str, int] = {}

    def begin(self, size: int) -> None:
        self.start += self.size
        self.size = size
        self.calls = {}

    def call(self, name: str, output: Any) -> str:
        """Check an output and return its key, which counts the calls of a layer that runs more than once."""
        if not isinstance(output, Tensor):
            raise ValueError(f"layer {name!r} returns a {type(output).__name__}, not a tensor: name other layers")
        if output.dim() == 0 or len(output) != self.size:
            raise ValueError(
                f"layer {name!r} returns shape {tuple(output.shape)} for {self.size} examples: its first dimension"
                " must be the examples"
            )
        self.calls[name] = self.calls.get(name, 0) + 1
        return name if self.calls[name] == 1 else f"{name}#{self.calls[name]}"

    def add(self, key: str, rows: Tensor) -> None:
        if key not in self.values:
            self.values[key] = torch.empty(self.n, *rows.shape[1:], dtype=rows.dtype)
            self.filled[key] = 0
        if self.values[key].shape[1:] != rows.shape[1:]:
            raise ValueError(
                f"layer {key!r} returns examples of shape {tuple(rows.shape[1:])}, and"
                f" {tuple(self.values[key].shape[1:])} in an earlier batch"
            )
        self.values[key][self.start : self.start + self.size].copy_(rows.detach())
        self.filled[key] += self.size

    def finish(self, names: dict[str, nn.Module], *, explicit: bool) -> dict[str, Tensor]:
        missing = [name for name in names if name not in self.values]
        if (explicit and missing) or not self.values:
            raise ValueError(f"layers that did not run: {', '.join(map(repr, missing)) or 'all'}; name others")
        for key, count in self.filled.items():
            if count != self.n:
                raise ValueError(f"layer {key!r} ran for {count} of {self.n} examples only")
        return self.values


def _check(model: nn.Module, x: Tensor, layers: Sequence[str] | None, batch_size: int) -> dict[str, nn.Module]:
    """Return the chosen layers by name."""
    if x.dim() == 0 or len(x) == 0:
        raise ValueError(f"x of shape {tuple(x.shape)} holds no examples")
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size = {batch_size!r}: must be a whole number, 1 or more")
    if layers is None:
        return {name: layer for name, layer in model.named_modules() if not list(layer.children())}
    if isinstance(layers, str):
        raise ValueError(f"layers must be a list of names, as in [{layers!r}]")
    known = dict(model.named_modules(remove_duplicate=False))
    if unknown := [name for name in layers if name not in known]:
        listed = ", ".join(repr(name) for name in known if name)
        raise ValueError(f"unknown layer {', '.join(map(repr, unknown))}; the network has {listed}")
    if not layers:
        raise ValueError("layers is empty: name at least one, or give None for all")
    return {name: known[name] for name in layers}


def _batches(model: nn.Module, x: Tensor, size: int) -> Iterator[Tensor]:
    like = next(model.parameters(), None)
    for batch in x.split(size):
        if like is None:
            yield batch
        else:
            yield batch.to(like.device, like.dtype if batch.is_floating_point() else None)


def _bar(x: Tensor, progress: bool | None) -> tqdm:
    shown = watched() if progress is None else progress
    return tqdm(total=len(x), unit="example", disable=not shown, leave=False)


@contextlib.contextmanager
def _hooks(model: nn.Module, layers: dict[str, nn.Module], hook: Any, kept: _Kept) -> Iterator[None]:
    """Call hook(key, output) after each layer's forward pass; what it returns, if anything, replaces the output."""

    def attach(name: str, layer: nn.Module) -> Any:
        return layer.register_forward_hook(lambda _layer, _inputs, output: hook(kept.call(name, output), output))

    handles = []
    try:
        handles += [attach(name, layer) for name, layer in layers.items()]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summed_loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Return the sum over examples of each one's cross-entropy."""
    if outputs.dim() != 2:
        raise ValueError(f"the network's output has shape {tuple(outputs.shape)}: (N, outputs) is needed for a loss")
    y = y.to(outputs.device)
    if y.dim() != 1 or y.is_floating_point() or y.min() < 0 or y.max() >= outputs.shape[1]:
        raise ValueError(
            f"labels must be (N,) int64 from 0 to {outputs.shape[1] - 1}, got shape {tuple(y.shape)} {y.dtype} from"
            f" {y.min().item()} to {y.max().item()}"
        )
    return F.cross_entropy(outputs, y.long(), reduction="sum")
