"""Losses and gradients of many small dense networks, by one compiled pass over the data: backpropagation at full speed.

A training step of a network with a few hundred parameters is so little arithmetic that PyTorch spends most of the time
around it: each layer reads its input from memory and writes its output there. This pass does the same sums in another
order:

1. *Blocks of examples.* A block of examples goes through all layers forward, and back again, before the next one does.
   What the way back needs, a layer's outputs and the slopes of its activation, is then still in the processor's cache.
   The gradients of the blocks are added up.
2. *Examples last.* A layer's outputs for a block are a matrix (units, examples), so that neighbors in memory are
   multiplied by one weight: 8 of them (4 in float64) with one instruction.
3. *A few weights at a time.* What has been loaded from the cache serves several times: forward, two units at a time
   take in four vectors of examples; for the gradients, two rows of deltas meet four rows of inputs.
4. *One loop over networks* around all this: what a network gets does not depend on its company, to the last bit.

The formulas are those of `labutils.backprop`: z = W h + b and h = f(z) forward; backward, from δ = ∂loss/∂z at the
output, ∂loss/∂W = Σ δ hᵀ over the examples, and δ ← f'(z) · Wᵀ δ for the layer below.

`labutils.loops` holds these loops; numba compiles them at their first use (about 5 seconds for each floating-point
type) and keeps the result on the disk if it can. That is why `Pass` is for trainings that are long enough, see `pays`:
whether it is used depends on sizes and settings alone, so that a seed gives the same numbers on every use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

_LARGEST = 2**14  # weights of a layer; beyond, the matrix products of a BLAS library are faster
_CACHE = 512 << 10  # bytes of a block's numbers: a common second-level cache
_BLOCK = 320  # examples; longer blocks gain nothing
# PyTorch's time on one core, about: so much a step of several layers, and a nanosecond a parameter and example.
# The pass takes a tenth to a third of it. Compiling takes 5 seconds, but once on a machine; loading it, one second in a
# process. A notebook trains several such stacks: one that takes PyTorch this long by itself repays both.
_SECONDS_A_STEP, _SECONDS_A_PRODUCT, _SECONDS_WORTH = 2.5e-3, 1e-9, 2.0


_KINDS = {
    nn.Linear: "dense",
    nn.ReLU: "leaky relu",
    nn.LeakyReLU: "leaky relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
    nn.GELU: "gelu",
}


def supports(model: nn.Module, loss: str, dtype: torch.dtype, device: str | torch.device, dim: int = 2) -> bool:
    """Whether a `Pass` computes a network, and computes it faster than PyTorch.

    That is so for `nn.Sequential` networks of dense layers of at most 16,384 weights (128 × 128) and the activations of
    `models.ACTIVATIONS`, in float32 or float64 on the CPU, all of whose parameters are trained. A batch (N, ...) with
    more than two dimensions, `dim`, needs `nn.Flatten` at the beginning.

    Example:
        >>> from labutils import models
        >>> supports(models.build("fit-1"), "mse", torch.float32, "cpu")
        True
        >>> supports(models.build("cifar-1"), "cross_entropy", torch.float32, "cpu")
        False
    """
    known = loss in ("cross_entropy", "mse") and dtype in (torch.float32, torch.float64)
    if not known or torch.device(device).type != "cpu" or _layers(model) is None:
        return False
    return dim == 2 or (dim > 2 and isinstance(model[0], nn.Flatten))


def pays(parameters: int, examples: int, steps: int) -> bool:
    """Whether a training is long enough to repay compiling, even where that has not been done yet.

    That depends on all networks' parameters together, the examples each sees (again in each epoch), and the steps.

    Example:
        >>> pays(64 * 571, 300 * 10, 10), pays(64 * 571, 300 * 1000, 1000), pays(571, 60 * 3000, 18_000)
        (False, True, True)
    """
    return steps * _SECONDS_A_STEP + parameters * examples * _SECONDS_A_PRODUCT >= _SECONDS_WORTH


class Pass:
    """The pass for networks of one architecture, given by one of them, which `supports` must allow.

    Raises:
        ValueError: a network that the pass cannot compute.

    Example:
        >>> from labutils import models
        >>> model = models.mlp((2, 3, 1), "tanh")
        >>> step, x = Pass(model), torch.ones(5, 2)
        >>> weights = torch.cat([p.detach().flatten() for p in model.parameters()]).unsqueeze(0)  # (1, P): one network
        >>> torch.allclose(step.outputs(weights, x)[0], model(x))
        True
    """

    def __init__(self, model: nn.Module) -> None:
        layers = _layers(model)
        if layers is None:
            raise ValueError("only nn.Sequential networks of dense layers and some activations: see fused.supports")
        from labutils import loops  # here, since numba takes half a second to load

        self._run = loops.run
        self._dtype = next(model.parameters()).dtype
        self._parameters = sum(p.numel() for p in model.parameters())
        self._flattens = isinstance(model[0], nn.Flatten)
        self._table, self._settings = _table(layers, self._dtype, loops.KINDS)
        self._features, self._classes = int(self._table[0, 1]), int(self._table[-1, 2])
        self._width = int(self._table[:, 2].max())
        self._rows = int(self._table[-1, [1, 2, 5]].sum()) + 2 * self._width  # of all layers, and of two with deltas

    def losses_and_gradients(
        self, weights: Tensor, x: Tensor, y: Tensor, loss: str, *, out: Tensor, own: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Compute each network's mean loss over a batch, and its gradient.

        Args:
            weights: (K, P), each row a network's parameters, flattened in the order of `model.parameters()`.
            x, y, loss, own: as for `labutils.stack.Stack.backward`.
            out: (K, P), filled with the gradients.

        Returns:
            Mean losses (K,), and the share (K,) of examples classified correctly (NaN for targets), both float64.

        Raises:
            ValueError: shapes, types or a loss that do not fit.
            IndexError: a label that is not one of 0 to outputs − 1.
        """
        x, labeled = self._examples(weights, x, own), not y.is_floating_point()
        y = y if y.dim() > 2 - labeled else y.unsqueeze(0)
        shape, kind = x.shape[1:2] if labeled else (x.shape[1], self._classes), torch.int64 if labeled else self._dtype
        if y.shape[1:] != shape or len(y) not in (1, len(weights)) or y.dtype != kind:
            raise ValueError(f"y {tuple(y.shape)} {y.dtype}: ({len(weights)}, {', '.join(map(str, shape))}) {kind}")
        if loss not in ("cross_entropy", "mse") or (loss == "cross_entropy" and not labeled):
            raise ValueError(f"loss {loss!r}: 'cross_entropy' takes labels, 'mse' labels or targets")
        if labeled and not 0 <= int(y.min()) <= int(y.max()) < self._classes:
            raise IndexError(f"labels from {int(y.min())} to {int(y.max())}: there are {self._classes} outputs")
        if out.shape != weights.shape or out.dtype != self._dtype or out.stride(1) != 1:
            raise ValueError(f"out {tuple(out.shape)} {out.dtype}: {tuple(weights.shape)} {self._dtype} is needed")
        losses, correct = np.empty(len(weights)), np.full(len(weights), math.nan)
        self._call(weights, x, losses, correct, loss, y if labeled else None, None if labeled else y, out)
        return torch.from_numpy(losses), torch.from_numpy(correct)

    def outputs(self, weights: Tensor, x: Tensor, *, own: bool = False) -> Tensor:
        """Compute each network's outputs (K, N, outputs), for weights and x as `losses_and_gradients` takes them."""
        x = self._examples(weights, x, own)
        outputs = x.new_empty(len(weights), x.shape[1], self._classes)
        self._call(weights, x, np.empty(0), np.empty(0), outputs=outputs)
        return outputs

    def _examples(self, weights: Tensor, x: Tensor, own: bool) -> Tensor:
        """Return examples as (1 or K, N, features), checked."""
        dim = 2 + own
        if self._flattens and x.dim() > dim:
            x = x.flatten(dim - 1)
        if x.dim() != dim or x.shape[-1] != self._features or x.dtype != self._dtype or x.shape[-2] == 0:
            raise ValueError(
                f"x {tuple(x.shape)} {x.dtype}: {'(K, N' if own else '(N'}, {self._features}) {self._dtype}"
            )
        if weights.dim() != 2 or weights.shape[1] != self._parameters or weights.dtype != self._dtype:
            raise ValueError(f"weights {tuple(weights.shape)} {weights.dtype}: (K, {self._parameters}) {self._dtype}")
        if own and len(x) != len(weights):
            raise ValueError(f"x has examples for {len(x)} networks, there are {len(weights)}")
        return x if own else x.unsqueeze(0)

    def _call(
        self,
        weights: Tensor,
        x: Tensor,
        losses: np.ndarray,
        correct: np.ndarray,
        loss: str = "mse",
        labels: Tensor | None = None,
        targets: Tensor | None = None,
        gradients: Tensor | None = None,
        outputs: Tensor | None = None,
    ) -> None:
        """Run the loops; what is not there becomes an array without numbers, so that one compiled form serves all."""
        labels = x.new_empty((1, 0), dtype=torch.int64) if labels is None else labels
        targets = x.new_empty(1, 0, 0) if targets is None else targets
        outputs = x.new_empty(0, 0, 0) if outputs is None else outputs
        weights = weights if weights.stride(1) == 1 else weights.contiguous()
        gradients = weights if gradients is None else gradients
        arrays = [t.detach().contiguous().numpy() for t in (x, labels, targets, outputs)]
        block = self._block(x.shape[1])
        self._run(
            _flat(weights), weights.stride(0), _flat(gradients), gradients.stride(0), *arrays, losses, correct,
            self._table, self._settings, loss == "cross_entropy", len(weights), self._parameters,
            x.new_empty(self._rows * block).numpy(), x.new_zeros(self._width).numpy(), block,
        )  # fmt: skip

    def _block(self, n: int) -> int:
        """Return how many examples go through the layers at a time, in blocks of about one size."""
        most = max(32, min(_BLOCK, _CACHE // (self._rows * self._dtype.itemsize)))
        return -(-math.ceil(n / math.ceil(n / most)) // 32) * 32


def _flat(rows: Tensor) -> np.ndarray:
    """Return the numbers from the first to the last of (K, P) in one dimension, with those between the rows."""
    return rows.detach().as_strided(((len(rows) - 1) * rows.stride(0) + rows.shape[1],), (1,)).numpy()


def _layers(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers that compute something, in order; None for a network that the pass does not know."""
    layers = dense_layers(model)
    if layers is None or not all(parameter.requires_grad for parameter in model.parameters()):
        return None
    if max(layer.weight.numel() for layer in layers if type(layer) is nn.Linear) > _LARGEST:
        return None
    return layers


def dense_layers(model: nn.Module) -> list[nn.Module] | None:
    """Return the layers of a plain dense network that compute something, in order; None for any other network.

    Plain is an `nn.Sequential` of `nn.Linear`, `nn.Flatten` and the activations of `models.ACTIVATIONS`, with no
    parameters tied and no hooks.

    Example:
        >>> from labutils import models
        >>> dense_layers(models.mlp((2, 3, 1)))
        [Linear(in_features=2, out_features=3, bias=True), ReLU(), Linear(in_features=3, out_features=1, bias=True)]
    """
    if type(model) is not nn.Sequential:
        return None
    layers, dense = list(model), [layer for layer in model if type(layer) is nn.Linear]
    owned = [p for layer in dense for p in (layer.weight, layer.bias) if p is not None]
    used = list(model.parameters())
    if not dense or len(owned) != len(used) or any(a is not b for a, b in zip(owned, used, strict=True)):
        return None  # tied or further parameters
    for layer in (model, *layers):
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "forward" in vars(layer):
            return None
    layers = [layer for layer in layers if type(layer) is not nn.Identity and not _is_flatten(layer)]
    return layers if all(map(_is_known, layers)) else None


def _is_flatten(layer: nn.Module) -> bool:
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)


def _is_known(layer: nn.Module) -> bool:
    usual = getattr(layer, "threshold", 20) == 20 and getattr(layer, "approximate", "none") == "none"
    return type(layer) in _KINDS and usual


def _table(layers: list[nn.Module], dtype: torch.dtype, kinds: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a line for each stage of the pass, and its parameter (the slope of a leaky relu, softplus's beta).

    A line has the stage's kind, its numbers of inputs and outputs, where its weights and its bias begin in a network's
    parameters (−1: nowhere), and the row of its first input. The outputs' rows come after those of the inputs.
    """
    table, settings, at, row = [], [], 0, 0
    width = next(layer.in_features for layer in layers if type(layer) is nn.Linear)
    for layer in layers:
        kind, before, weights, bias = _KINDS[type(layer)], width, -1, -1
        if kind == "dense":
            width, weights, at = layer.out_features, at, at + layer.weight.numel()
            if layer.bias is not None:
                bias, at = at, at + width
        elif kind == "tanh" and dtype == torch.float32:
            kind = "tanh32"
        table.append([kinds.index(kind), before, width, weights, bias, row])
        settings.append(getattr(layer, "negative_slope", getattr(layer, "beta", 0.0)))
        row += before
    return np.array(table, dtype=np.int64), np.array(settings, dtype=np.float64)
