"""The engine of `labutils.training`: the loop over batches and epochs, and what it keeps and measures on its way."""

from __future__ import annotations

import functools
import math
import operator
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from labutils import checkpoint as checkpoints
from labutils import distribute, optim
from labutils.stack import Plan, Stack, aligned, aligned_rows, eval_mode

EVALUATION_BATCH = 200  # larger ones leave the cache and take up to twice as long
_FROZEN = " frozen"  # no layer's name

Hook = Callable[[int, Stack], Any]
"""What is called at the start (epoch 0) and after each epoch: `hook(epoch, stack)`."""

Parts = dict[str, tuple[Tensor, Tensor]]
"""Examples and labels or targets by the part of the data: "train", "validation", "test"."""


@dataclass
class History:
    """What `fit` measured. K networks, E evaluated epochs; epoch 0 is before the first step.

    Attributes:
        epochs: (E,) the evaluated epochs.
        train_loss: (K, E) mean loss an example, on the training part as it is: fixed weights, no augmentation. Likewise
            for validation and test; NaN without such a part.
        train_accuracy: (K, E) share of examples classified correctly; NaN for regression.
        running_loss: (K, epochs) mean of the loss over an epoch's batches while the weights change.
        running_accuracy: (K, epochs) the same for accuracy.
        diverged: (K,) the first epoch whose loss was not finite, NaN where all were. Losses from then on are NaN.
        seconds: time spent in training, evaluation included.
    """

    epochs: np.ndarray
    train_loss: np.ndarray
    train_accuracy: np.ndarray
    validation_loss: np.ndarray
    validation_accuracy: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    running_loss: np.ndarray
    running_accuracy: np.ndarray
    diverged: np.ndarray
    seconds: float

    @classmethod
    def empty(cls, k: int, epochs: int, every: int) -> History:
        """Return the history of K networks before training: NaN everywhere."""
        at = evaluated(epochs, every)
        arrays = {f.name: np.full((k, len(at)), np.nan) for f in fields(cls)}
        arrays |= {name: np.full((k, epochs), np.nan) for name in ("running_loss", "running_accuracy")}
        return cls(**arrays | {"epochs": np.array(at, dtype=int), "diverged": np.full(k, np.nan), "seconds": 0.0})

    @classmethod
    def joined(cls, histories: Sequence[History]) -> History:
        """Return one history of all networks."""
        arrays = {name: np.concatenate([getattr(h, name) for h in histories]) for name in cls._by_network()}
        return replace(histories[0], **arrays, seconds=float(sum(h.seconds for h in histories)))

    def of(self, rows: Any) -> History:
        """Return the history of some of the networks, given by their rows."""
        return replace(self, **{name: getattr(self, name)[rows] for name in self._by_network()})

    def add(self, part: str, epoch: int, loss: np.ndarray, accuracy: np.ndarray) -> None:
        """Enter what was measured, each (K,); nothing of networks that have diverged."""
        column = epoch - 1 if part == "running" else int(np.searchsorted(self.epochs, epoch))
        self.diverged[~np.isfinite(loss) & np.isnan(self.diverged)] = epoch
        alive = np.isnan(self.diverged)
        getattr(self, f"{part}_loss")[alive, column] = loss[alive]
        getattr(self, f"{part}_accuracy")[alive, column] = accuracy[alive]

    def state_dict(self) -> dict[str, Any]:
        """Return the arrays as tensors."""
        return {f.name: torch.as_tensor(getattr(self, f.name)) for f in fields(self)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the arrays."""
        for name, value in state.items():
            setattr(self, name, value.item() if name == "seconds" else value.numpy())

    @classmethod
    def _by_network(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name not in ("epochs", "seconds")]


def evaluated(epochs: int, every: int) -> list[int]:
    """Return the epochs at which a training is evaluated.

    Example:
        >>> evaluated(5, 2), evaluated(5, 0)
        ([0, 2, 4, 5], [])
    """
    return sorted({*range(0, epochs + 1, every), epochs}) if every else []


def whole(name: str, value: Any, minimum: int) -> int:
    """Return a whole number, of whatever type, as Python's own.

    Raises:
        ValueError: another number, or one below the minimum.

    Example:
        >>> whole("epochs", np.int64(3), 1)
        3
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < minimum:
        raise ValueError(f"{name} = {value!r}: must be a whole number, {minimum} or more")
    return operator.index(value)


class Measurements:
    """Collects what a function measures while `fit` trains; pass it as `on_epoch`. A checkpoint of `fit` keeps it.

    Args:
        function: called as `function(epoch, stack)`; returns an array or tensor with one row for each network (K, ...),
            of the same shape every time. A network's row must not depend on the others, which may train elsewhere.
            Several functions, by name, give one number (K,) each: together (K, functions).
        every: epochs between two measurements, of which the start (epoch 0) is one; or the epochs to measure at.

    Attributes:
        epochs: the epochs at which was measured.

    Example:
        >>> from labutils import functions, models, training
        >>> lengths = Measurements(lambda epoch, stack: stack.weights.norm(dim=1), every=2)
        >>> data = functions.sample("sinc", 9, -1, 1)
        >>> _ = training.fit(models.mlp((1, 2, 1)), data, epochs=4, lr=0.1, loss="mse", on_epoch=lengths)
        >>> lengths.epochs, lengths.values.shape
        ([0, 2, 4], (1, 3))
    """

    def __init__(self, function: Hook | Mapping[str, Hook], every: int | Collection[int] = 1) -> None:
        if not isinstance(every, Collection):
            every = whole("every", every, 1)
        self.function, self.every = function, every
        self.epochs: list[int] = []
        self._taken: list[Tensor] = []  # each (times, K, ...)

    def __call__(self, epoch: int, stack: Stack) -> None:
        """Measure, if it is time to."""
        if epoch in self.every if isinstance(self.every, Collection) else epoch % self.every == 0:
            if isinstance(self.function, Mapping):
                columns = [torch.as_tensor(measure(epoch, stack)).double().cpu() for measure in self.function.values()]
                value = torch.stack(columns, dim=-1)
            else:
                value = self.function(epoch, stack)
            value = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.asarray(value))
            if value.dim() == 0 or len(value) != len(stack):
                raise ValueError(
                    f"measured {tuple(value.shape)}: one row for each of the {len(stack)} networks is needed"
                )
            self._taken.append(value.to("cpu", copy=True).unsqueeze(0))
            self.epochs.append(epoch)

    @property
    def values(self) -> np.ndarray:
        """What was measured so far, (K, times, ...)."""
        return self._all().transpose(0, 1).numpy()

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured, and how."""
        every = sorted(self.every) if isinstance(self.every, Collection) else self.every
        how = {"every": every, "function": checkpoints.fingerprint(self.function)}
        return how | {"epochs": list(self.epochs), "taken": self._all() if self._taken else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what was measured."""
        self.epochs, self._taken = list(state["epochs"]), [] if state["taken"] is None else [state["taken"]]

    @staticmethod
    def joined(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return the state for all networks, from the states of parts of them."""
        taken = [state["taken"] for state in states]
        return states[0] | {"taken": None if taken[0] is None else torch.cat(taken, dim=1)}

    def _all(self) -> Tensor:
        """Everything in one tensor (times, K, ...), in which it stays: a list of thousands is slow to save."""
        if not self._taken:
            raise ValueError("nothing has been measured yet: pass it to fit as on_epoch first")
        self._taken = [self._taken[0] if len(self._taken) == 1 else torch.cat(self._taken)]
        return self._taken[0]


class Snapshots(Measurements):
    """Collects the weights (K, snapshots, P) while `fit` trains; see `Measurements`.

    Example:
        >>> from labutils import functions, models, training
        >>> path = Snapshots(every=2)
        >>> data = functions.sample("sinc", 9, -1, 1)
        >>> _ = training.fit(models.mlp((1, 2, 1)), data, epochs=4, lr=0.1, loss="mse", on_epoch=path)
        >>> path.epochs, tuple(path.weights.shape)
        ([0, 2, 4], (1, 3, 7))
    """

    def __init__(self, every: int | Collection[int] = 1) -> None:
        super().__init__(_weights_of, every)

    @property
    def weights(self) -> Tensor:
        """The weights taken so far, (K, snapshots, P)."""
        return self._all().transpose(0, 1)


def _weights_of(_epoch: int, stack: Stack) -> Tensor:
    return stack.weights


def crop_and_flip(x: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Shift images x (N, C, H, W) by up to `padding` pixels each, reflecting at the border, and mirror half of them.

    Args:
        generator: source of the shifts and flips, on the CPU.
        padding: largest shift in pixels, below H and W.

    Raises:
        ValueError: x is no batch of images, or too small for the padding.

    Example:
        >>> crop_and_flip(torch.rand(2, 3, 8, 8), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 8, 8])
    """
    if x.dim() != 4 or min(x.shape[2:]) <= padding:
        raise ValueError(f"x of shape {tuple(x.shape)}: images (N, C, H, W) of more than {padding} pixels a side")
    n, channels, height, width = x.shape
    shifts = torch.randint(-padding, padding + 1, (2, n, 1), generator=generator)
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    rows = _reflect(torch.arange(height) + shifts[0], height)
    columns = _reflect(torch.arange(width) + shifts[1], width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).view(n, 1, -1).to(x.device)
    return x.flatten(2).gather(2, pixels.expand(n, channels, -1)).view(x.shape)


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)


@dataclass(frozen=True)
class Job:
    """How to train networks that share a batch size: what a checkpoint is bound to, and what a worker gets."""

    rows: list[int]  # the networks' places in the call of `fit`
    epochs: int
    batch_size: int
    optimizer: str
    lr: list[float]
    layer_lr: dict[str, list[float]]
    momentum: list[float]
    weight_decay: list[float]
    nesterov: bool
    schedule: str | None
    step_size: int
    gamma: float
    loss: str
    augment: bool
    padding: int
    labels: Tensor | None
    seed: list[int]
    own_batches: bool
    evaluate_every: int
    device: str
    chunk: int
    draws: bool
    compiled: bool

    def of(self, rows: list[int]) -> Job:
        """Return the job of some of the networks, given by their places."""
        at = [self.rows.index(row) for row in rows]
        lists = {name: [getattr(self, name)[i] for i in at] for name in ("lr", "momentum", "weight_decay", "seed")}
        layers = {name: [rates[i] for i in at] for name, rates in self.layer_lr.items()}
        return replace(
            self, rows=rows, layer_lr=layers, labels=None if self.labels is None else self.labels[at], **lists
        )


def train(
    networks: list[nn.Module], parts: Parts, jobs: list[Job], on_epoch: Hook | None, progress: bool, path: Path | None
) -> History:
    """Train networks, in training mode, as jobs say: here, or in parts on workers where there are some.

    There is a job for each batch size; together they name each network once. The data are on the jobs' device; `path`
    is that of the checkpoint, see `labutils.checkpoint.bind`.

    Example:
        >>> from labutils import functions, models, training
        >>> training.fit(models.mlp((1, 1)), functions.sample("sinc", 9, -1, 1), epochs=2, lr=0.1, loss="mse").epochs
        array([0, 1, 2])
    """
    pieces = [job.of(job.rows[i : i + job.chunk]) for job in jobs for i in range(0, len(job.rows), job.chunk)]
    # Parts of a stack share no state, unless a hook has some.
    alone = on_epoch is None or (isinstance(on_epoch, Measurements) and not on_epoch.epochs)
    if distribute.wanted() and path is None and alone and len(pieces) > 1:
        jobs, histories = pieces, _train_elsewhere(networks, parts, pieces, on_epoch, progress)
    else:
        files = [path.with_name(f"{path.stem}-{job.batch_size}{path.suffix}") if path else None for job in jobs]
        histories = [
            _train([networks[i] for i in job.rows], parts, job, on_epoch, progress, file if len(jobs) > 1 else path)
            for job, file in zip(jobs, files, strict=True)
        ]
    return History.joined(histories).of(np.argsort(np.concatenate([job.rows for job in jobs])))


def _train(
    networks: list[nn.Module], parts: Parts, job: Job, on_epoch: Hook | None, progress: bool, path: Path | None = None
) -> History:
    """Train networks that share a batch size, from where they were if there is a checkpoint."""
    if job.labels is not None:
        parts = parts | {"train": (parts["train"][0], job.labels)}
    history, batches = History.empty(len(networks), job.epochs, job.evaluate_every), _Batches(*parts["train"], job)
    bar = tqdm(total=job.epochs, unit="epoch", disable=not progress, leave=False)
    # The first network's mode is that of all that compute together.
    switched = networks if job.chunk == 1 or on_epoch is not None else networks[:1]
    planned = Plan(job.chunk, job.draws, compiled=job.compiled)
    with Stack(networks, device=job.device, planned=planned, seeds=job.seed) as stack, bar:
        step = _optimizer(stack, job)
        rates = [group["lr"] for group in step.param_groups]
        nothing = torch.zeros(2, len(stack), dtype=torch.float64, device=stack.device)
        at = checkpoints.Values(epoch=0, batch=0, sums=nothing)
        state = {"at": at, "networks": stack, "optimizer": step, "batches": batches, "record": history}
        with _checkpoint(path, state, stack, parts, job, on_epoch) as saved:
            began = time.perf_counter() - history.seconds
            factors = _schedule(job, len(batches), skip=max(0, at.epoch - 1) * len(batches) + at.batch)
            bar.update(max(0, at.epoch - 1))
            for epoch in range(at.epoch, job.epochs + 1):
                if epoch > 0:
                    for (xb, yb), factor in zip(batches.epoch(skip=at.batch), factors, strict=False):
                        saved.keep()
                        sums = torch.stack(stack.backward(xb, yb, job.loss, own=batches.own)) * xb.shape[batches.own]
                        for group, rate in zip(step.param_groups, rates, strict=True):
                            group["lr"] = rate * factor
                        step.step()
                        at.batch, at.sums = at.batch + 1, at.sums + sums
                    history.add("running", epoch, *(at.sums / len(batches.x)).cpu().numpy())
                    bar.update()
                with eval_mode(*switched):
                    for name, (x, y) in parts.items() if epoch in history.epochs else ():
                        history.add(name, epoch, *evaluate_stack(stack, x, y, job.loss))
                    if on_epoch is not None:
                        on_epoch(epoch, stack)
                alive = np.isnan(history.diverged)
                if epoch in history.epochs and alive.any():
                    loss = np.median(history.train_loss[alive, np.searchsorted(history.epochs, epoch)])
                    bar.set_postfix_str(f"median train loss {loss:.3g}", refresh=False)
                at.epoch, at.batch, at.sums = epoch + 1, 0, nothing
                history.seconds = time.perf_counter() - began
            saved.keep(now=True, without=["optimizer"])
        step.zero_grad()  # the gradients' memory serves the networks' own weights, see Stack.release
    for model in networks:
        model.eval()
    return history


def evaluate_stack(stack: Stack, x: Tensor, y: Tensor, loss: str) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean loss (K,) and accuracy (K,) of a stack's networks, in batches.

    Example:
        >>> with Stack([nn.Linear(1, 2)]) as stack:
        ...     evaluate_stack(stack, torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), "cross_entropy")[1].shape
        (1,)
    """
    totals = torch.zeros(2, len(stack), dtype=torch.float64, device=stack.device)
    for start in range(0, len(x), EVALUATION_BATCH):
        batch = slice(start, start + EVALUATION_BATCH)
        xb, yb = x[batch], y[batch] if y.dim() == 1 or y.is_floating_point() else y[:, batch]
        totals += torch.stack(stack.measure(xb, yb, loss)) * len(xb)
    values, accuracies = (totals / len(x)).cpu().numpy()
    return values, accuracies


def _checkpoint(
    path: Path | None, state: dict[str, Any], stack: Stack, parts: Parts, job: Job, on_epoch: Hook | None
) -> checkpoints.Checkpoint:
    """Return the checkpoint of a training; one that saves nothing if `on_epoch` has no state."""
    if on_epoch is not None and not has_state(on_epoch):
        return checkpoints.Checkpoint(None, {}, {})
    bound = functools.partial(_settings, "training.fit", stack.models, parts, job, on_epoch)
    return checkpoints.bind(path, state if on_epoch is None else state | {"on_epoch": on_epoch}, bound)


def _settings(
    computation: str, networks: Sequence[nn.Module], parts: Mapping[str, Any], job: Job, on_epoch: Any
) -> dict[str, Any]:
    """Return all that decides the numbers of a training."""
    return {
        "computation": computation,
        "networks": [repr(networks[0]), *map(type, networks[0].modules())],  # a class counts by its methods
        "initial_weights": [[*model.parameters(), *model.buffers()] for model in networks],
        **{f"{name} data": data for name, data in parts.items()},
        "on_epoch": None if on_epoch is None else [on_epoch, on_epoch.state_dict()],
        **vars(job),
    }


def has_state(hook: Hook) -> bool:
    """Whether a checkpoint can keep a hook.

    Example:
        >>> has_state(Snapshots()), has_state(print)
        (True, False)
    """
    return hasattr(hook, "state_dict") and hasattr(hook, "load_state_dict")


def _train_elsewhere(
    networks: list[nn.Module], parts: Parts, jobs: list[Job], on_epoch: Measurements | None, progress: bool
) -> list[History]:
    """Train parts of a stack on workers, and bring everything back."""
    tasks = [([networks[i] for i in job.rows], job, on_epoch) for job in jobs]
    data = functools.cache(lambda: {name: checkpoints.fingerprint(part) for name, part in parts.items()})
    kept = Results([lambda t=task: _settings("part of training.fit", t[0], data(), *t[1:]) for task in tasks])
    todo = kept.missing()
    for n, result in distribute.run(_train_sent, [tasks[i] for i in todo], parts, progress=progress):
        kept.put(todo[n], result)
    if on_epoch is not None:
        on_epoch.load_state_dict(Measurements.joined([result["on_epoch"] for result in kept]))
    return [unpack(result, task[0]) for result, task in zip(kept, tasks, strict=True)]


def _train_sent(task: tuple[list[nn.Module], Job, Measurements | None], parts: Parts) -> dict[str, Any]:
    """Train the networks of one task, on a worker; return what a checkpoint can hold."""
    networks, job, on_epoch = task
    parts = {name: (aligned(x), aligned(y)) for name, (x, y) in parts.items()}  # what arrives may lie anywhere
    history = _train(networks, parts, job, on_epoch, progress=False)
    return pack(networks, history, None if on_epoch is None else on_epoch.state_dict())


class Results:
    """Results of parts of a computation; where checkpoints are kept, each has a file as soon as it is there.

    Each part has a function that returns all that decides it, see `labutils.checkpoint.bind`.

    Example:
        >>> results = Results([lambda: {"part": 1}, lambda: {"part": 2}])
        >>> for part in results.missing():
        ...     results.put(part, part * 10)
        >>> list(results)
        [0, 10]
    """

    def __init__(self, settings: Sequence[Callable[[], Mapping[str, Any]]]) -> None:
        self._found = [checkpoints.Values(result=None) for _ in settings]
        self._files = [
            checkpoints.bind(None, {"result": found}, bound) for found, bound in zip(self._found, settings, strict=True)
        ]
        for file in self._files:
            with file:  # restores what is done
                pass

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there yet."""
        return [i for i, found in enumerate(self._found) if found.result is None]

    def put(self, part: int, result: Any) -> None:
        """Keep the result of a part."""
        with self._files[part] as file:
            self._found[part].result = result
            file.keep(now=True)

    def __iter__(self) -> Iterator[Any]:
        return (found.result for found in self._found)


def pack(networks: list[nn.Module], history: History, on_epoch: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a training gives, as a checkpoint can hold it.

    Example:
        >>> sorted(pack([nn.Linear(1, 1)], History.empty(1, 2, 1), None))
        ['history', 'networks', 'on_epoch']
    """
    tensors = [[tensor.detach().cpu() for tensor in (*m.parameters(), *m.buffers())] for m in networks]
    return {"networks": tensors, "history": history.state_dict(), "on_epoch": on_epoch}


def unpack(result: dict[str, Any], networks: list[nn.Module]) -> History:
    """Give networks the trained weights and buffers of a result; return its history.

    Example:
        >>> line = nn.Linear(1, 1)
        >>> unpack(pack([line], History.empty(1, 2, 1), None), [line]).epochs
        array([0, 1, 2])
    """
    for model, state in zip(networks, result["networks"], strict=True):
        for tensor, new in zip((*model.parameters(), *model.buffers()), state, strict=True):
            tensor.data.copy_(new)
        model.eval()
    history = History.empty(len(networks), 1, 0)
    history.load_state_dict(result["history"])
    return history


class _Batches:
    """The training part in random order, a batch at a time, for all networks or for each its own."""

    def __init__(self, x: Tensor, y: Tensor, job: Job) -> None:
        self.x, self.y, self.size, self.own = x, y, job.batch_size, job.own_batches
        self.padding = job.padding if job.augment else None
        self.own_labels = y.dim() > 1 and not y.is_floating_point()  # (K, N)
        self.generators = [torch.Generator().manual_seed(seed) for seed in (job.seed if self.own else job.seed[:1])]
        self._remember()

    def __len__(self) -> int:
        return math.ceil(len(self.x) / self.size)

    def epoch(self, *, skip: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, but for the first ones: these are drawn, and left out."""
        yield from islice(self._draw(), skip, None)
        self._remember()

    def state_dict(self) -> dict[str, Any]:
        """Return the generators' states (G, bytes) at the beginning of the epoch."""
        return {"generators": torch.stack(self._began)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for generator, began in zip(self.generators, state["generators"], strict=True):
            generator.set_state(began.clone())  # which takes no view of a tensor
        self._remember()

    def _remember(self) -> None:
        self._began = [generator.get_state() for generator in self.generators]

    def _draw(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.size == len(self.x) and self.padding is None:
            yield self.x, self.y  # the order of a full batch does not matter
            return
        n = len(self.x)
        orders = [torch.randperm(n, generator=g).to(self.x.device) for g in self.generators]
        for start in range(0, n, self.size):
            chosen = [order[start : start + self.size] for order in orders]
            x = [self.x.index_select(0, index) for index in chosen]
            if self.padding is not None:
                x = [crop_and_flip(batch, g, padding=self.padding) for batch, g in zip(x, self.generators, strict=True)]
            if not self.own:
                yield x[0], self.y.index_select(int(self.own_labels), chosen[0])
                continue
            labels = self.y if self.own_labels else [self.y] * len(x)
            rows = aligned_rows(len(x), x[0].numel(), x[0].dtype, x[0].device).view(len(x), *x[0].shape)
            yield (
                torch.stack(x, out=rows),
                torch.stack([y.index_select(0, i) for y, i in zip(labels, chosen, strict=True)]),
            )


def _one(values: list[float]) -> float | list[float]:
    """Return one number where all are equal: an optimizer is faster with it than with K equal ones."""
    return values[0] if len(set(values)) == 1 else values


def _groups(stack: Stack, lr: list[float], layer_lr: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Return parameter groups for an optimizer: the whole stack, or its columns where layers differ or are frozen."""
    stack.weights.grad = stack.gradients
    if not layer_lr and all(stack.trainable):
        return [{"params": [stack.weights], "lr": _one(lr)}]
    runs: list[tuple[str | None, int]] = []  # layer with a rate of its own (or None), and its columns' number
    for name, shape, trainable in zip(stack.names, stack.shapes, stack.trainable, strict=True):
        layer = name.rpartition(".")[0]
        key = _FROZEN if not trainable else layer if layer in layer_lr else None
        before = runs.pop()[1] if runs and runs[-1][0] == key else 0
        runs.append((key, before + shape.numel()))
    sizes = [size for _, size in runs]
    columns = zip(stack.weights.split(sizes, dim=1), stack.gradients.split(sizes, dim=1), strict=True)
    groups: dict[str | None, dict[str, Any]] = {}
    for (key, _), (weights, gradients) in zip(runs, columns, strict=True):
        if key == _FROZEN:
            continue
        weights.grad = gradients
        rates = lr if key is None else layer_lr[key]
        groups.setdefault(key, {"params": [], "lr": _one(rates)})["params"].append(weights)
    return list(groups.values())


def _optimizer(stack: Stack, job: Job) -> torch.optim.Optimizer:
    groups, weight_decay = _groups(stack, job.lr, job.layer_lr), _one(job.weight_decay)
    if job.optimizer == "sgd":
        nesterov = job.nesterov and any(job.momentum)  # some networks may have no momentum
        return optim.SGD(groups, momentum=_one(job.momentum), weight_decay=weight_decay, nesterov=nesterov)
    return optim.Adam(groups, weight_decay=weight_decay, decoupled=job.optimizer == "adamw")


def _schedule(job: Job, steps_an_epoch: int, *, skip: int = 0) -> Iterator[float]:
    """Yield the factor of the learning rate for every step but the first ones, from torch's own schedulers."""
    carrier = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    steps = job.epochs * steps_an_epoch
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    if job.schedule == "step":
        scheduler = torch.optim.lr_scheduler.StepLR(carrier, job.step_size * steps_an_epoch, job.gamma)
    elif job.schedule == "one_cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(carrier, 1.0, steps, cycle_momentum=False)
    for i in range(steps):
        if i >= skip:
            yield carrier.param_groups[0]["lr"]
        if scheduler is not None:
            carrier.step()
            scheduler.step()
