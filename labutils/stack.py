"""Stacks: many networks of one architecture as one (K, P) tensor of weights, with a joint forward and backward pass.

`torch.func.vmap` computes a network's `forward` for many sets of weights at once. The sum of the K losses gives every
network exactly its own gradient, since no loss depends on another network's weights.

One pass takes as many networks (`Stack.chunk`) as keep the activations of a batch within the cache. Tiny networks so go
many at a time, which saves their overhead; a large convolution goes alone. Alone go, too, networks that draw random
numbers, and those for which vmap does not give what each gives by itself: that is tried out on the example.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from labutils import fused

# Measured on two cores: 64 networks of 571 parameters train 8 times faster in one stack than in stacks of one, and
# CIFAR-sized convolutions up to 1.6 times as fast alone. What decides is whether a batch's activations fit the cache;
# convolutions, which gain less from company, are given less of it, and go alone unless it holds four of them.
_CPU_BYTES_PER_THREAD = {"dense": 4 << 20, "convolutional": 2 << 20}
_FEWEST = {"dense": 1, "convolutional": 4}
_CUDA_BYTES = 4 << 30
_ALIGNMENT = 64  # bytes; torch aligns what it allocates to as many


class Plan(NamedTuple):
    """How a stack computes.

    Attributes:
        chunk: networks that compute together; with 1, each runs by itself as a module.
        draws: whether the networks draw random numbers, as dropout does.
        outputs: outputs of a network; None if that is not known.
        compiled: whether all compute together in the compiled pass of `labutils.fused`.
    """

    chunk: int
    draws: bool = False
    outputs: int | None = None
    compiled: bool = False


class _Chunk(NamedTuple):
    """Networks of a stack that compute together: which ones, and views of the stack's tensors by name."""

    models: slice
    state: dict[str, Tensor]  # parameters and buffers
    trainable: list[Tensor]
    gradients: list[Tensor]


class Stack:
    """The weights of K same-shaped networks as one (K, P) tensor, with their joint forward and backward pass.

    While a stack is in use, its networks' parameters and buffers are views of the stack's. `release` gives the networks
    storage of their own again; as a context manager, a stack does so at the end. Networks compute in the mode (training
    or eval) in which the first one is.

    Args:
        models: K ≥ 1 networks of one architecture and floating-point type, with outputs (N, outputs).
        example: an example or a few (n, ...), to plan with, see `plan`; None makes one chunk of all.
        batch_size: examples in a batch.
        device: where to compute, such as "cpu" or "cuda".
        chunk: networks that compute together; None applies the rule in this module's docstring.
        planned: a plan made before, in place of the three.
        seeds: of the random numbers that each network draws; None leaves them to torch's global generator.

    Attributes:
        weights: (K, P), each row a network's parameters, flattened in the order of `model.parameters()`.
        gradients: (K, P), filled by `backward`; 0 for parameters that do not require gradients.
        names, shapes, trainable: of the parameters, in the same order.
        plan: how the stack computes.

    Raises:
        ValueError: no networks, networks that differ, or a `chunk` that they do not allow.

    Example:
        >>> from labutils import models
        >>> with Stack([models.mlp((2, 3, 1), seed=s) for s in range(4)]) as stack:
        ...     tuple(stack.weights.shape), tuple(stack.forward(torch.ones(5, 2)).shape)
        ((4, 13), (4, 5, 1))
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        *,
        example: Tensor | None = None,
        batch_size: int = 1,
        device: str | torch.device = "cpu",
        chunk: int | None = None,
        planned: Plan | None = None,
        seeds: Sequence[int] | None = None,
    ) -> None:
        self.models, self.device = list(models), torch.device(device)
        if planned is None:
            check_same(self.models)
        self.plan = planned or plan(self.models, example, batch_size, self.device, chunk)
        parameters = dict(self.models[0].named_parameters())
        self.names, self.shapes = list(parameters), [p.shape for p in parameters.values()]
        self.trainable = [p.requires_grad for p in parameters.values()]
        first = next(iter(parameters.values()))
        self.dtype, self._home = first.dtype, first.device
        self._function, self._seeds, self._step = functional(self.models[0]), seeds, 0
        self._dense = fused.dense_layers(self.models[0])
        self._pass = fused.Pass(self.models[0]) if self.plan.compiled else None
        self._bind()

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def __len__(self) -> int:
        return len(self.models)

    @property
    def chunk(self) -> int:
        """Networks that compute together."""
        return self.plan.chunk

    def forward(self, x: Tensor, *, own: bool = False) -> Tensor:
        """Compute every network's outputs (K, N, outputs), without gradients.

        Args:
            x: (N, ...) examples for all networks; with `own`, (K, N, ...), the examples of each.
        """
        if self._pass:
            return self._pass.outputs(self.weights, x, own=own)
        with torch.no_grad():
            return torch.cat([self._outputs(chunk, _of(chunk, x, own), own) for chunk in self._chunks])

    def backward(self, x: Tensor, y: Tensor, loss: str, *, own: bool = False) -> tuple[Tensor, Tensor]:
        """Fill `gradients` with each network's gradient of its mean loss over the batch.

        Args:
            x: (N, ...) examples for all networks; with `own`, (K, N, ...), the examples of each.
            y: labels (N,) int64, or targets (N, outputs); with `own`, with a leading K. Labels (K, N) also go with
                shared examples: then each network has its own.
            loss: "cross_entropy" or "mse", see `mean_loss`.

        Returns:
            Mean losses (K,) before any step, and the share (K,) of examples classified correctly (NaN for targets),
            both float64.

        Raises:
            ValueError: labels or targets that do not fit the outputs; networks without a trainable parameter.
        """
        if not any(self.trainable):
            raise ValueError("every parameter is frozen (requires_grad is False): there is nothing to differentiate by")
        if self._pass:
            return self._pass.losses_and_gradients(self.weights, x, y, loss, out=self.gradients, own=own)
        measured = []
        for chunk in self._chunks:
            losses, shares = self._measure(chunk, x, y, loss, own)
            gradients = torch.autograd.grad(losses.sum(), chunk.trainable, materialize_grads=True)
            for mine, new in zip(chunk.gradients, gradients, strict=True):
                mine.copy_(new)
            measured.append((losses.detach().double(), shares))
        self._step += self.models[0].training
        losses, shares = map(torch.cat, zip(*measured, strict=True))
        return losses, shares

    def measure(self, x: Tensor, y: Tensor, loss: str) -> tuple[Tensor, Tensor]:
        """Compute what `backward` returns, for examples that all networks share, without gradients."""
        if self._pass:
            outputs = self.forward(x)
            return mean_loss(outputs, y, loss).double(), mean_accuracy(outputs, y)
        with torch.no_grad():  # by chunks, too: the last bit of a loss depends on how many are computed at once
            each = [self._measure(chunk, x, y, loss, False) for chunk in self._chunks]
        losses, shares = map(torch.cat, zip(*each, strict=True))
        return losses.double(), shares

    def state_dict(self) -> dict[str, Any]:
        """Return the weights (K, P), each buffer of the networks as (K, ...), and the steps made."""
        buffers = zip(*(model.buffers() for model in self.models), strict=True)
        return {
            "weights": self.weights.contiguous(), "buffers": [torch.stack(each) for each in buffers], "step": self._step
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy weights and buffers from a state into the networks."""
        self.weights.copy_(state["weights"])
        self._step = state["step"]
        for k, model in enumerate(self.models):
            for buffer, saved in zip(model.buffers(), state["buffers"], strict=True):
                buffer.copy_(saved[k])

    def release(self) -> None:
        """Give every network tensors of its own again, on the device that it came from; ends the stack's use."""
        # The gradients go first: their memory serves the copies.
        self._chunks, self.weights.grad, self.gradients = [], None, self.gradients.new_empty(0)
        for model in self.models:
            for tensor in (*model.parameters(), *model.buffers()):
                before = self._lent.get(tensor)
                tensor.data = tensor.data.clone() if before is None else before.copy_(tensor.data)
            if self._home != self.device:  # a visit to every module takes time
                model.to(self._home)

    def _bind(self) -> None:
        """Move all parameters into `weights`, and make the networks' own parameters views of it."""
        sizes = [shape.numel() for shape in self.shapes]
        tensors = [tensor for model in self.models for tensor in (*model.parameters(), *model.buffers())]
        # What is part of something larger stays so: the networks may be those of another stack, as in a hook of `fit`.
        self._lent = {t: t.data for t in tensors if t.untyped_storage().nbytes() > t.numel() * t.element_size()}
        self.weights, self.gradients = (aligned_rows(len(self), sum(sizes), self.dtype, self.device) for _ in range(2))
        for model, row in zip(self.models, self.weights, strict=True):
            if self._home != self.device:
                model.to(self.device)
            for parameter, part in zip(model.parameters(), row.split(sizes), strict=True):
                part = part.view(parameter.shape)
                part.copy_(parameter.detach())
                parameter.data = part
        self._chunks = []
        for start in range(0, len(self), self.chunk):
            part = slice(start, min(start + self.chunk, len(self)))
            state = dict(zip(self.names, self._views(self.weights[part], sizes), strict=True))
            if self.chunk == 1:
                state = dict(self.models[start].named_parameters())
            for parameter, trainable in zip(state.values(), self.trainable, strict=True):
                parameter.requires_grad_(trainable)
            chosen = [p for p in state.values() if p.requires_grad]
            gradients = self._views(self.gradients[part], sizes)
            gradients = [g for g, trainable in zip(gradients, self.trainable, strict=True) if trainable]
            self._chunks.append(_Chunk(part, state | self._buffers(part), chosen, gradients))

    def _views(self, flat: Tensor, sizes: list[int]) -> list[Tensor]:
        """Cut rows (c, P) into parameters (c, ...); into (...) where networks run by themselves."""
        leading = () if self.chunk == 1 else (len(flat),)
        return [p.view(*leading, *s) for p, s in zip(flat.split(sizes, dim=1), self.shapes, strict=True)]

    def _buffers(self, part: slice) -> dict[str, Tensor]:
        """Move a chunk's buffers together, and make the networks' own buffers views of them."""
        if self.chunk == 1:
            return {}
        each = [dict(model.named_buffers()) for model in self.models[part]]
        # With a row more than needed, they tell that they are a part of something larger.
        stacked = {name: torch.stack([*(buffers[name] for buffers in each), each[0][name]])[:-1] for name in each[0]}
        for k, buffers in enumerate(each):
            for name, buffer in buffers.items():
                buffer.data = stacked[name][k]
        return stacked

    def _outputs(self, chunk: _Chunk, x: Tensor, own: bool) -> Tensor:
        if self.chunk == 1:
            with self._random(chunk.models.start):
                return self.models[chunk.models.start](_channels_last(x[0] if own else x)).unsqueeze(0)
        if self._dense:
            return _dense_outputs(self._dense, list(chunk.state.values()), x, own)
        return vmap(self._function, (0, 0 if own else None))(chunk.state, x)

    def _measure(self, chunk: _Chunk, x: Tensor, y: Tensor, loss: str, own: bool) -> tuple[Tensor, Tensor]:
        outputs = self._outputs(chunk, _of(chunk, x, own), own)
        y = _of(chunk, y, y.dim() > 1 + y.is_floating_point())
        return mean_loss(outputs, y, loss), mean_accuracy(outputs.detach(), y)

    @contextlib.contextmanager
    def _random(self, k: int) -> Iterator[None]:
        """Let a network draw from a random stream of its own, which a seed and the step determine."""
        if not self.plan.draws or self._seeds is None:
            yield
            return
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int(np.random.SeedSequence([self._seeds[k], self._step]).generate_state(1)[0]))
            yield


def functional(model: nn.Module) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    """Return a network as a function of its parameters and buffers; calls do not change it.

    `torch.func.functional_call` by itself leaves a layer that stands in a network twice with the tensors of the call.

    Returns:
        A function of tensors by name (those of `named_parameters()` and `named_buffers()`, or some of them; the others
        are the network's own) and of examples. A buffer that the network replaces is replaced in the dict.

    Example:
        >>> line = nn.Linear(1, 1)
        >>> functional(line)({"weight": torch.ones(1, 1), "bias": torch.ones(1)}, torch.tensor([[2.0]])).item()
        3.0
    """
    named = {tensor: name for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    places = {
        f"{path}.{name}" if path else name: named[tensor]
        for path, layer in model.named_modules()  # each layer once; one tensor may be in several
        for name, tensor in (*layer._parameters.items(), *layer._buffers.items())
        if tensor is not None
    }

    def call(state: dict[str, Tensor], x: Tensor) -> Tensor:
        tensors = {place: state[name] for place, name in places.items() if name in state}
        outputs = functional_call(model, tensors, (x,), tie_weights=False)
        state.update({places[place]: tensor for place, tensor in tensors.items()})
        return outputs

    return call


def mean_loss(outputs: Tensor, y: Tensor, loss: str) -> Tensor:
    """Compute the mean loss () of a network's outputs (N, outputs), or (K,) of several networks' (K, N, outputs).

    Args:
        y: labels (N,) int64, or targets (N, outputs) of a floating-point type; (K, N) or (K, N, outputs) for networks
            that have their own.
        loss: "cross_entropy" on labels, or "mse", the mean over outputs and examples, on targets or one-hot labels.

    Raises:
        ValueError: an unknown loss, or labels or targets whose shape or type does not fit.
        IndexError: a label that is not one of 0 to outputs − 1.

    Example:
        >>> mean_loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]), "mse")
        tensor(0.5000)
    """
    if loss not in ("cross_entropy", "mse"):
        raise ValueError(f"unknown loss {loss!r}; there are 'cross_entropy', 'mse'")
    if outputs.dim() not in (2, 3):
        raise ValueError(f"outputs {tuple(outputs.shape)}: a network must give (N, outputs)")
    labels, classes = not y.is_floating_point(), outputs.shape[-1]
    shape = outputs.shape[:-1] if labels else outputs.shape
    fits = y.shape in (shape, shape[outputs.dim() - 2 :]) and (not labels or y.dtype == torch.int64)
    if not fits or (loss == "cross_entropy" and not labels):
        raise ValueError(
            f"{loss} of outputs {tuple(outputs.shape)} takes labels {tuple(outputs.shape[-2:-1])} int64"
            f"{f' or targets {tuple(outputs.shape[-2:])}' * (loss == 'mse')}, y is {tuple(y.shape)} {y.dtype}"
        )
    if loss == "cross_entropy":
        y = y.expand(shape).reshape(-1)  # no label is one to ignore, as torch ignores −100
        values = F.cross_entropy(outputs.reshape(-1, classes), y, reduction="none", ignore_index=-(2**62))
        return values.view(shape).mean(-1)
    if labels:
        y = F.one_hot(y, classes).to(outputs.dtype)
    return (outputs - y).square().mean((-2, -1))


def mean_accuracy(outputs: Tensor, y: Tensor) -> Tensor:
    """Compute the share of examples whose largest output is that of their label; shapes as for `mean_loss`.

    Example:
        >>> mean_accuracy(torch.eye(2), torch.tensor([0, 0])), mean_accuracy(torch.eye(2), torch.eye(2))
        (tensor(0.5000, dtype=torch.float64), tensor(nan, dtype=torch.float64))
    """
    if y.is_floating_point():
        return torch.full(outputs.shape[:-2], math.nan, dtype=torch.float64, device=outputs.device)
    return (outputs.argmax(-1) == y).double().mean(-1)


def plan(
    models: Sequence[nn.Module], example: Tensor | None, batch_size: int, device: torch.device, chunk: int | None = None
) -> Plan:
    """Decide how networks compute in a stack, by the rule in this module's docstring.

    Args:
        models: K networks of one architecture, see `check_same`.
        example: an example or a few (n, ...), on which they are tried in the mode that they are in; two for batch
            normalization. With None, they are taken to compute together, and to draw no random numbers.
        batch_size, device: of the computation.
        chunk: networks that compute together, if that is to be so.

    Raises:
        ValueError: networks that give no outputs (n, outputs), or that cannot compute together.

    Example:
        >>> plan([nn.Linear(2, 3) for _ in range(8)], torch.ones(1, 2), 100, torch.device("cpu"))
        Plan(chunk=8, draws=False, outputs=3, compiled=False)
    """
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk = {chunk}: networks that compute together are 1 or more")
    k, draws, outputs = len(models), False, None
    together = min(chunk or k, k)
    if example is not None:
        x = example.detach().to(next(models[0].parameters()))
        room, draws, given = _try_alone(models[0], x, batch_size, device)
        shape = tuple(given.shape) if isinstance(given, Tensor) else f"a {type(given).__name__}"
        if len(shape) != 2 or shape[0] != len(x):
            raise ValueError(f"a network must give (N, outputs), but {len(x)} examples give {shape}")
        outputs, together = shape[1], min(chunk or room, k)
        problem = "they draw random numbers" if draws else None
        if together > 1 and not draws and not fused.dense_layers(models[0]):
            problem = _problem_together(models, x)
        if problem and chunk:
            raise ValueError(f"chunk = {chunk}: these networks run one by one (1), since {problem}")
        together = 1 if problem else together
    return Plan(math.ceil(k / math.ceil(k / together)), draws, outputs)


def check_same(models: Sequence[nn.Module]) -> None:
    """Refuse networks that are not of one architecture: none, one twice, shared parameters, several types of numbers.

    Raises:
        ValueError: says what is wrong.

    Example:
        >>> check_same([nn.Linear(1, 1), nn.Linear(1, 1)])
    """
    if not models:
        raise ValueError("no models: give at least one network")
    if len({id(model) for model in models}) < len(models):
        raise ValueError("the same network object is given twice: build one for each place in the stack")
    each = [parameter for model in models for parameter in model.parameters()]
    if len({id(parameter) for parameter in each}) < len(each):
        raise ValueError("networks share parameters: what one learns would change another, so build each by itself")
    described = [
        (repr(m), [(n, p.shape, p.dtype, p.requires_grad) for n, p in (*m.named_parameters(), *m.named_buffers())])
        for m in models
    ]
    for k, description in enumerate(described):
        if description != described[0]:
            raise ValueError(f"models[{k}] differs from models[0]: only networks of one architecture train together")
    if len({p.dtype for p in models[0].parameters()}) != 1:
        raise ValueError("a network needs parameters, all of one floating-point type")


def _try_alone(model: nn.Module, x: Tensor, batch_size: int, device: torch.device) -> tuple[int, bool, Any]:
    """Return how many networks' activations stay within the cache, whether they draw, and the outputs."""
    values = 0

    def count(_layer: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal values
        values += output.numel() if isinstance(output, Tensor) else 0

    hooks = [layer.register_forward_hook(count) for layer in model.modules() if not list(layer.children())]
    state: Callable[[], Tensor] = torch.get_rng_state if x.device.type == "cpu" else torch.cuda.get_rng_state
    try:
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
            before, (outputs, _) = state(), _alone(model, x)
            draws = not torch.equal(state(), before)
    finally:
        for hook in hooks:
            hook.remove()
    bytes_per_model = values / len(x) * batch_size * x.dtype.itemsize
    kind = "convolutional" if any(isinstance(layer, nn.Conv2d) for layer in model.modules()) else "dense"
    limit = _CPU_BYTES_PER_THREAD[kind] * torch.get_num_threads() if device.type == "cpu" else _CUDA_BYTES
    room = int(limit / max(1, bytes_per_model))
    return room if room >= _FEWEST[kind] else 1, draws, outputs


def _problem_together(models: Sequence[nn.Module], x: Tensor) -> str | None:
    """Say why networks cannot compute together; None if they do, and each gives what it gives alone."""
    each = [_alone(model, x) for model in models]
    parameters, buffers = stack_module_state(list(models))
    try:
        with torch.no_grad():
            outputs = vmap(functional(models[0]), (0, None))(parameters | buffers, x)
    except Exception as error:  # whatever a foreign network may raise here
        return f"vmap cannot take them: {error}"
    for k, (alone, its_buffers) in enumerate(each):
        for mine, other in ((outputs, alone), *((buffers[name], b) for name, b in its_buffers.items())):
            tolerance = 4 * torch.finfo(x.dtype).eps ** 0.5
            largest = other.abs().max().item() if other.numel() else 0.0
            if not torch.allclose(mine[k], other, tolerance, tolerance * largest, equal_nan=True):
                return "under vmap they give something else than each by itself"
    return None


def _alone(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a network's outputs, and what its buffers would then be; the network is not changed."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        return functional(model)(buffers, x), buffers


@contextlib.contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Put networks, and every layer in them, into eval mode for a while; then each layer is as it was before.

    Example:
        >>> layer = nn.Dropout()
        >>> with eval_mode(layer):
        ...     layer.training
        False
        >>> layer.training
        True
    """
    modes = [(layer, layer.training) for network in networks for layer in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _channels_last(x: Tensor) -> Tensor:
    """Lay images of several channels out pixel by pixel on the CPU: convolutions then take half to 0.85 of the time."""
    if x.dim() == 4 and x.shape[1] > 1 and x.device.type == "cpu":
        return x.contiguous(memory_format=torch.channels_last)
    return x


def _dense_outputs(layers: Sequence[nn.Module], parameters: Sequence[Tensor], x: Tensor, own: bool) -> Tensor:
    """Compute what vmap would, with the examples last: narrow layers then take a third to two thirds of the time."""
    rest, h = iter(parameters), x.flatten(1 + own).mT
    for layer in layers:
        if isinstance(layer, nn.Linear):
            weight = next(rest)
            h = h.expand(len(weight), *h.shape[-2:])
            h = torch.bmm(weight, h) if layer.bias is None else torch.baddbmm(next(rest).unsqueeze(2), weight, h)
        else:
            h = layer(h)
    return h.mT


def aligned_rows(k: int, size: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return zeros (k, size), part of a larger tensor, whose rows begin at aligned addresses.

    The last bit of a product depends on the address. So a network's numbers do not depend on its place in the stack.

    Example:
        >>> aligned_rows(2, 3, torch.float32, "cpu").stride()
        (16, 1)
    """
    step = _ALIGNMENT // dtype.itemsize
    return torch.zeros(k, (size // step + 1) * step, dtype=dtype, device=device)[:, :size]


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that begins at an aligned address: itself, or else a copy.

    Example:
        >>> aligned(torch.ones(3)[1:])
        tensor([1., 1.])
    """
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _of(chunk: _Chunk, batch: Tensor, own: bool) -> Tensor:
    return batch[chunk.models] if own else batch
