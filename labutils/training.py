"""Training: one network, or many of the same shape at once.

`fit` keeps the weights of K networks in one (K, P) tensor, a `labutils.stack.Stack`. One optimizer step on it serves
them all, each with its own learning rate, momentum or weight decay.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from labutils import checkpoint as checkpoints
from labutils import distribute, fused, optim
from labutils.data import Dataset, Split
from labutils.models import build as build_named
from labutils.stack import Plan, Stack, aligned, aligned_rows, check_same, plan

_COPIES, _COPIES_BYTES = 64, 64 << 20  # networks, and bytes of their weights, that `evaluate_weights` holds at most
_FROZEN = " frozen"  # no layer's name
_EVALUATION_BATCH = 200  # larger ones leave the cache and take up to twice as long

_PARTS = ("train", "validation", "test")
_COLUMNS = ("network", "data", "labels", "seed", "epoch", "part", "loss", "accuracy", "diverged", "model")  # of a sweep
_PER_NETWORK = ("lr", "momentum", "weight_decay", "layer_lr")  # what may differ within a stack of a sweep

PerModel = float | Sequence[float]
"""One value for all networks, or one for each."""

Data = Dataset | tuple[Tensor, Tensor]
"""A data set, or examples x (N, ...) with labels (N,) or targets (N, outputs)."""

Builder = str | Callable[[int], nn.Module]
"""A name of `labutils.models.build`, or a function of a seed that builds a network."""


@dataclass
class History:
    """What `fit` measured. K networks, E evaluated epochs; epoch 0 is before the first step.

    Attributes:
        epochs: (E,) the evaluated epochs.
        train_loss: (K, E) mean loss an example, on the training part as it is: fixed weights, no augmentation.
        train_accuracy: (K, E) share of examples classified correctly; NaN for regression.
        validation_loss: (K, E), NaN without a validation part; likewise `validation_accuracy`.
        test_loss: (K, E), NaN without a test part; likewise `test_accuracy`.
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

    def of(self, rows: Any) -> History:
        """Return the history of some of the networks, given by their rows."""
        kept = ("epochs", "seconds")
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in kept})


def fit(
    models: nn.Module | Sequence[nn.Module],
    dataset: Data,
    *,
    epochs: int,
    lr: PerModel,
    layer_lr: Mapping[str, PerModel] | None = None,
    batch_size: int | Sequence[int] | None = None,
    optimizer: str = "sgd",
    momentum: PerModel = 0.0,
    weight_decay: PerModel = 0.0,
    nesterov: bool = False,
    schedule: str | None = None,
    step_size: int = 10,
    gamma: float = 0.1,
    loss: str = "cross_entropy",
    augment: bool = False,
    padding: int = 4,
    labels: Tensor | None = None,
    seed: int | Sequence[int] = 0,
    evaluate_every: int = 1,
    on_epoch: Callable[[int, Stack], None] | None = None,
    device: str | torch.device = "cpu",
    chunk: int | None = None,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
) -> History:
    """Train one network, or many of one architecture at once; their weights change in place.

    A network trained in a stack ends where it would end alone with the same seed, up to rounding. One whose loss stops
    being finite is recorded as diverged and does not touch the others.

    With a checkpoint, a training that was interrupted, by Ctrl-C or a power cut, continues in the middle of the epoch
    when it is called again with the same settings, data and initial networks, and one that had finished returns at
    once; see `labutils.checkpoint`. For that, `on_epoch` needs a state to save (`state_dict()` and
    `load_state_dict()`), as `Checkpoints` and `Measurements` have it: with another hook, nothing is saved.

    Where `LABUTILS_SCHEDULER` names a Dask scheduler, a stack of several chunks is sent to its workers chunk by chunk,
    see `labutils.distribute`. The numbers stay the same, bit for bit where the workers have the same kind of processor,
    the same torch and the same number of threads as this process: each chunk is the same computation, wherever it runs.
    Networks with dropout train here, since they share one random stream; so do those with a hook other than
    `Checkpoints` and `Measurements`, and those with a `checkpoint` of their own.

    Args:
        models: a network, or a list of K networks of one architecture, of any floating-point type.
        dataset: a `Dataset`, or a pair x (N, ...), y of tensors; y holds labels (N,) or targets (N, outputs).
        epochs: passes through the training part.
        lr: learning rate; as momentum and weight_decay, one value, or one for each network.
        layer_lr: {layer name: learning rate} for layers with a rate of their own (one value, or one for each network);
            all others train with `lr`. Names are those of `model.named_modules()`, such as "3". 0 freezes a layer.
        batch_size: examples a step (the last batch of an epoch may be smaller), one value or one for each network
            (networks with the same size are stacked); None takes all.
        optimizer: "sgd", "adam" or "adamw" (`labutils.optim`).
        momentum: SGD's momentum.
        weight_decay: L2 term; decoupled from the gradient for "adamw".
        nesterov: Nesterov momentum for SGD.
        schedule: None, "step" (lr times `gamma` every `step_size` epochs) or "one_cycle" (Smith & Topin 2019, as in
            `torch.optim.lr_scheduler.OneCycleLR` with `lr` as the peak, without cycling momentum).
        step_size: epochs between two steps of the schedule.
        gamma: factor of such a step.
        loss: "cross_entropy" on labels, or "mse", the mean over outputs and examples, on targets or one-hot labels.
        augment: randomly crop and flip each batch of images, see `crop_and_flip`.
        padding: largest shift of such a crop, in pixels.
        labels: (K, N) int64, each network's own labels of the training part, in place of the data set's: the same
            images, differently labeled.
        seed: seed of the order of the examples and of augmentation; one value for all (every network then sees the
            same batches) or one for each.
        evaluate_every: epochs between two evaluations; the start and the last epoch are always evaluated. 0 evaluates
            nothing, and the History then holds only running values.
        on_epoch: called as `on_epoch(epoch, stack)` at the start (0) and after each epoch, with the networks in eval
            mode, such as a `Checkpoints`.
        device: where to train, "cpu" or "cuda"; the networks return to where they were.
        chunk: networks that compute together, see `Stack`; None chooses, or takes the compiled pass of
            `labutils.fused` for small dense networks that train for long: the same to rounding, several times as fast.
        progress: whether to show a bar; None shows one where somebody watches (a terminal or a notebook in use).
        checkpoint: file to continue from, and to save to (with several batch sizes, one file for each beside it);
            None takes a file in the folder `LABUTILS_CHECKPOINTS`, if that is set.

    Returns:
        The History; its arrays have one row a network.

    Raises:
        ValueError: a setting out of range, a sequence of the wrong length, unknown names, mismatched data; a checkpoint
            that is damaged or belongs to another training.
        KeyboardInterrupt: Ctrl-C was pressed; with a checkpoint, after saving.

    Example:
        >>> from labutils import functions, models
        >>> networks = [models.mlp((1, 8, 1), "tanh", seed=s) for s in range(3)]
        >>> data = functions.sample("quadratic", 50, -1, 1)
        >>> history = fit(networks, data, epochs=5, lr=[0.01, 0.02, 0.05], loss="mse")
        >>> history.train_loss.shape
        (3, 6)
    """
    networks = [models] if isinstance(models, nn.Module) else list(models)
    _check_choice("optimizer", optimizer, ("sgd", "adam", "adamw"))
    _check_choice("schedule", schedule, (None, "step", "one_cycle"))
    _check_choice("loss", loss, ("cross_entropy", "mse"))
    epochs, step_size, evaluate_every, padding = _whole(
        epochs=(epochs, 1), step_size=(step_size, 1), evaluate_every=(evaluate_every, 0), padding=(padding, 0)
    )
    [gamma] = _per_model("gamma", gamma, 1)
    if optimizer != "sgd" and (nesterov or np.any(momentum)):
        raise ValueError(f"momentum and nesterov belong to 'sgd'; {optimizer!r} has a momentum of its own")
    per_model = {
        name: _per_model(name, value, len(networks))
        for name, value in (
            ("lr", lr),
            ("momentum", momentum),
            ("weight_decay", weight_decay),
            ("seed", seed),
        )
    }
    if nesterov and not any(per_model["momentum"]):
        raise ValueError("nesterov needs a momentum: set it for one network at least")
    batch_sizes = _per_model("batch_size", batch_size, len(networks))
    check_same(networks)
    if not any(p.requires_grad for p in networks[0].parameters()):
        raise ValueError("every parameter is frozen (requires_grad is False): there is nothing to train")
    layer_rates = _layer_rates(layer_lr or {}, networks)
    parts = _parts(dataset, loss, augment, next(networks[0].parameters()).dtype, device)
    x = parts["train"][0]
    labels = _own_labels(labels, len(networks), *parts["train"])
    if on_epoch is not None and len(set(batch_sizes)) > 1:
        raise ValueError("on_epoch sees one stack: with several batch sizes, call fit once for each of them")
    if checkpoint is not None and on_epoch is not None and not _has_state(on_epoch):
        raise ValueError("on_epoch has no state_dict(), so that a checkpoint cannot keep it: see Measurements")
    for model in networks:
        model.train()
    jobs = []
    for size in dict.fromkeys(batch_sizes):
        n, rows = min(len(x), size or len(x)), [i for i, b in enumerate(batch_sizes) if b == size]
        planned = plan([networks[i] for i in rows], x[:2], n, torch.device(device), chunk)
        whole = _Job(
            rows=list(range(len(networks))), epochs=epochs, batch_size=n, optimizer=optimizer, layer_lr=layer_rates,
            nesterov=nesterov, schedule=schedule, step_size=step_size, gamma=gamma, loss=loss,
            augment=augment, padding=padding, labels=labels,
            own_batches=len({per_model["seed"][i] for i in rows}) > 1 and (n < len(x) or augment),
            evaluate_every=evaluate_every, device=str(device), chunk=planned.chunk, draws=planned.draws,
            compiled=chunk is None and _compiles([networks[i] for i in rows], x, loss, epochs, n, device), **per_model,
        )  # fmt: skip
        jobs.append(whole.of(rows))
    for name, (_, y) in (parts | ({} if labels is None else {"labels": (x, labels)})).items():
        _check_labels(name, y, planned.outputs)
    show = watched() if progress is None else progress
    if distribute.scheduler() and checkpoint is None and _can_travel(on_epoch):
        pieces = [job.of(job.rows[i : i + job.chunk]) for job in jobs for i in range(0, len(job.rows), job.chunk)]
        if len(pieces) > 1:
            return _train_elsewhere(networks, parts, pieces, on_epoch, show)
    histories = []
    for job in jobs:
        path = Path(checkpoint) if checkpoint is not None else None
        if path is not None and len(jobs) > 1:
            path = path.with_name(f"{path.stem}-{job.batch_size}{path.suffix}")
        histories.append(_train([networks[i] for i in job.rows], parts, job, on_epoch, show, path))
    return _merge(jobs, histories)


_SETTINGS = inspect.signature(fit).parameters


def sweep(
    build: Builder | Sequence[str] | Mapping[Any, Builder],
    dataset: Data | Mapping[Any, Data],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] = (),
    *,
    seeds: int | Sequence[int] = 5,
    measure: Mapping[str, Callable[[int, Stack], Any]] | None = None,
    labels: Callable[[int], Tensor] | Mapping[Any, Callable[[int], Tensor]] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every combination of networks, data sets, settings and seeds; return what was measured as one table.

    Networks of one architecture, on the same data, whose settings differ in `lr`, `momentum`, `weight_decay`,
    `layer_lr`, `labels` or the seed alone, train in one stack. A combination's numbers do not depend on which others
    stand in the grid, up to rounding.

    Where checkpoints are kept (`labutils.checkpoint`), what is done is kept for each combination of a network, a data
    set and settings with its seeds: more values in a grid, or another plot, cost no training again.

    Args:
        build: a name of `labutils.models.build`, or a function of a seed that builds a network; several as a list of
            names, or as a dict of names or functions.
        dataset: a `Dataset` or a pair of tensors, as for `fit`; several as a dict.
        grid: {setting: values} of which every combination is trained, or a list of combinations, each {setting: value}.
            Settings are those of `fit`.
        seeds: how many (from 0), or which. A seed decides a network's initial weights and the order of its examples.
        measure: {column: function(epoch, stack)}, each with one number for each network (K,), see `Measurements`. Taken
            at the evaluated epochs; without any (`evaluate_every=0`) after the last one.
        labels: a function of a seed that gives labels (N,) of the training part, in place of the data set's; several
            as a dict.
        progress: whether to show bars, as for `fit`.
        **settings: further settings of `fit`, the same for all.

    Returns:
        A table with a row for each training, epoch and part, and one with a row for each training. Both have the
        columns `network`, `data`, `labels` (the keys, where there are several), one for each setting in the grid
        (`lr NAME` for each layer of `layer_lr`), and `seed`. The first further has `epoch`, `part` ("train",
        "validation", "test" as far as the data have them, and "running", the mean over an epoch's batches), `loss`,
        `accuracy`, and those of `measure` (NaN where there is none). The second has `diverged` (the epoch, NaN if it
        did not), what was evaluated last (`train_loss`, `train_accuracy`, `test_loss` and so on) and measured last, and
        `model`, the trained network.

    Raises:
        ValueError: as `fit`; a setting that `fit` does not have, or that is given twice; a function that gives no
            network, or labels, of its seed.

    Example:
        >>> from labutils import functions, models
        >>> frame, networks = sweep(
        ...     lambda seed: models.mlp((1, 8, 1), "tanh", seed=seed), functions.sample("sinc", 50, -1, 1),
        ...     {"lr": [0.1, 0.01]}, seeds=3, epochs=2, loss="mse",
        ... )  # fmt: skip
        >>> list(frame.columns), len(networks)
        (['lr', 'seed', 'epoch', 'part', 'loss', 'accuracy'], 6)
        >>> frame.query("part == 'train' and epoch == 2").groupby("lr").loss.mean().shape
        (2,)
    """
    networks = _builders(build)
    datasets = dict(dataset) if isinstance(dataset, Mapping) else {None: dataset}
    relabelings = dict(labels) if isinstance(labels, Mapping) else {None: labels}
    combinations = _combinations(grid, settings, measure or {})
    numbers = list(range(seeds)) if hasattr(seeds, "__index__") else [int(seed) for seed in seeds]
    if not (networks and datasets and relabelings and numbers):
        raise ValueError("nothing to train: a network, data and a seed are needed")
    done: list[_Combination] = []
    for (network, builder), (data, examples) in product(networks.items(), datasets.items()):
        labeled = {"network": network, "data": data}
        stacks: dict[str, list[_Combination]] = {}
        for (relabeling, labels_of), chosen in product(relabelings.items(), combinations):
            keys = {name: key for name, key in (labeled | {"labels": relabeling}).items() if key is not None}
            built = [builder(seed) for seed in numbers]
            own = None if labels_of is None else torch.stack([labels_of(seed) for seed in numbers])
            one = _Combination(keys | _columns(chosen, examples), chosen | settings, built, own, examples)
            shared = {name: value for name, value in one.settings.items() if name not in _PER_NETWORK}
            stacks.setdefault(repr(sorted(shared.items())), []).append(one)
            done.append(one)
        for stack in stacks.values():
            _train_combinations(stack, numbers, measure or {}, progress)
    return _tables(done, numbers, list(measure or {}))


@dataclass
class _Combination:
    """One network on one data set with one choice of settings, and a training for each seed."""

    columns: dict[str, Any]  # how the tables name it
    settings: dict[str, Any]  # of `fit`
    networks: list[nn.Module]
    labels: Tensor | None  # (seeds, N)
    examples: Data
    found: checkpoints.Values = field(default_factory=lambda: checkpoints.Values(result=None))
    history: History | None = None


def _builders(build: Any) -> dict[Any, Callable[[int], nn.Module]]:
    """Return functions of a seed, by the label of the network; None is the label of the only one."""
    if isinstance(build, str) or callable(build):
        build = {None: build}
    elif not isinstance(build, Mapping):
        build = {name: name for name in build}
    return {key: functools.partial(_named, one) if isinstance(one, str) else one for key, one in build.items()}


def _named(name: str, seed: int) -> nn.Module:
    return build_named(name, seed=seed)


def _combinations(
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    settings: dict[str, Any],
    measure: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Return every combination of a grid, checked."""
    if isinstance(grid, Mapping):
        found = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    else:
        found = [dict(combination) for combination in grid] or [{}]
    if not found:
        raise ValueError("the grid holds a setting without values")
    allowed = set(_SETTINGS) - {"models", "dataset", "labels", "progress"}
    taken = {"seed": "seeds", "on_epoch": "measure", "checkpoint": "LABUTILS_CHECKPOINTS"}
    for name in dict.fromkeys(name for chosen in (settings, *found) for name in chosen):
        if name in taken:
            raise ValueError(f"a sweep sets {name} itself: see {taken[name]}")
        if name not in allowed:
            raise ValueError(f"fit has no setting {name!r}; there are {', '.join(sorted(allowed - set(taken)))}")
        if name in settings and any(name in chosen for chosen in found):
            raise ValueError(f"{name} is given twice: in the grid, and as a setting for all")
    for name in ("epochs", "lr"):
        if any(name not in chosen | settings for chosen in found):
            raise ValueError(f"{name} is missing: give it for every combination")
    for name in (*measure, *(name for chosen in found for name in chosen)):
        if name in _COLUMNS or (name in measure and name in found[0]):
            raise ValueError(f"{name!r} is a column of the table already: choose another name, or one sweep for each")
    return found


def _columns(chosen: Mapping[str, Any], examples: Data) -> dict[str, Any]:
    """Return the columns that tell a choice of settings in a table."""
    columns: dict[str, Any] = {}
    for name, value in chosen.items():
        if name == "layer_lr":
            columns |= {f"lr {layer}": rate for layer, rate in (value or {}).items()}
        elif name == "batch_size" and value is None:
            columns[name] = len(examples[0] if isinstance(examples, tuple) else examples.train)
        else:
            columns[name] = value
    return columns


def _train_combinations(
    stack: list[_Combination],
    seeds: list[int],
    measure: Mapping[str, Callable[[int, Stack], Any]],
    progress: bool | None,
) -> None:
    """Train combinations in one stack, but for those that checkpoints hold."""
    parts = _split(stack[0].examples).values()
    data = functools.cache(lambda: checkpoints.fingerprint([p if isinstance(p, tuple) else (p.x, p.y) for p in parts]))
    files = {id(one): _file(one, seeds, measure, data) for one in stack}
    for file in files.values():
        with file:  # restores what is done
            pass
    todo, n = [one for one in stack if one.found.result is None], len(seeds)
    if todo:
        common = {name: value for name, value in todo[0].settings.items() if name not in _PER_NETWORK}
        for name in ("lr", "momentum", "weight_decay"):
            if any(name in one.settings for one in todo):
                common[name] = [one.settings.get(name, 0.0) for one in todo for _ in seeds]
        rates = [one.settings.get("layer_lr") or {} for one in todo]
        if layers := dict.fromkeys(layer for own in rates for layer in own):
            common["layer_lr"] = {
                layer: [own.get(layer, one.settings["lr"]) for own, one in zip(rates, todo, strict=True) for _ in seeds]
                for layer in layers
            }
        if todo[0].labels is not None:
            common["labels"] = torch.cat([one.labels for one in todo])
        hook = Measurements(measure, _measured_at(todo[0].settings)) if measure else None
        networks = [network for one in todo for network in one.networks]
        seed = seeds * len(todo)
        history = fit(networks, todo[0].examples, seed=seed, on_epoch=hook, progress=progress, **common)
        for i, one in enumerate(todo):
            rows = slice(i * n, (i + 1) * n)
            measured = None if hook is None else hook.state_dict()
            one.found.result = _pack(one.networks, history.of(rows), measured)
            if measured:
                measured["taken"] = measured["taken"][:, rows]
            with files[id(one)] as file:
                file.keep(now=True)
    for one in stack:
        one.history = _unpack(one.found.result, one.networks)


def _measured_at(settings: Mapping[str, Any]) -> list[int]:
    epochs = int(settings["epochs"])
    return _evaluated(epochs, int(settings.get("evaluate_every", 1))) or [epochs]


def _file(
    one: _Combination, seeds: list[int], measure: Mapping[str, Any], data: Callable[[], str]
) -> checkpoints.Checkpoint:
    """Return the file of a combination's result, bound to all that decides it."""

    def settings() -> dict[str, Any]:
        return {
            **{name: setting.default for name, setting in _SETTINGS.items() if setting.default is not setting.empty},
            **one.settings, "computation": "a combination of training.sweep", "seed": seeds,
            "networks": [repr(one.networks[0]), *map(type, one.networks[0].modules())],
            "labels": one.labels, "data": data(),
            "initial_weights": [[*model.parameters(), *model.buffers()] for model in one.networks],
            "measure": dict(measure), "chunk": None, "progress": None, "device": str(one.settings.get("device", "cpu")),
        }  # fmt: skip

    return checkpoints.bind(None, {"result": one.found}, settings)


def _tables(done: list[_Combination], seeds: list[int], measure: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row for each training, epoch and part, and a row for each training."""
    names = dict.fromkeys(name for one in done for name in one.columns)
    trainings = pd.DataFrame([one.columns | {"seed": seed} for one in done for seed in seeds], columns=[*names, "seed"])
    pieces: list[dict[str, Any]] = []
    for i, one in enumerate(done):
        history, result = one.history, one.found.result
        assert history is not None
        running = np.arange(1, history.running_loss.shape[1] + 1)
        grids = dict.fromkeys(_split(one.examples), history.epochs) | {"running": running}
        for k, (part, epochs) in product(range(len(seeds)), grids.items()):
            measured = np.full((len(epochs), len(measure)), np.nan)
            if measure:
                at, values = result["on_epoch"]["epochs"], result["on_epoch"]["taken"].numpy()
                _, mine, theirs = np.intersect1d(epochs, at, return_indices=True)
                measured[mine] = values[theirs, k]
            pieces.append(
                {"row": np.full(len(epochs), i * len(seeds) + k), "epoch": epochs}
                | {"part": np.full(len(epochs), part, object)}
                | {what: getattr(history, f"{part}_{what}")[k] for what in ("loss", "accuracy")}
                | dict(zip(measure, measured.T, strict=True))
            )
    long = pd.DataFrame({name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]})
    frame = pd.concat([trainings.iloc[long.pop("row")].reset_index(drop=True), long], axis=1)
    models = np.empty(len(trainings), object)
    models[:] = [model for one in done for model in one.networks]
    diverged = np.concatenate([one.history.diverged for one in done])
    ends = pd.concat([_last(one, measure) for one in done], ignore_index=True)
    return frame, trainings.assign(diverged=diverged, **ends, model=models)


def _last(one: _Combination, measure: list[str]) -> pd.DataFrame:
    """Return what was evaluated and measured last, a row for each seed."""
    history, found = one.history, {}
    assert history is not None
    if len(history.epochs):
        found = {
            f"{part}_{what}": getattr(history, f"{part}_{what}")[:, -1]
            for part, what in product(_split(one.examples), ("loss", "accuracy"))
        }
    if measure:
        found |= dict(zip(measure, one.found.result["on_epoch"]["taken"][-1].numpy().T, strict=True))
    return pd.DataFrame(found, index=range(len(one.networks)))


def evaluate(
    models: nn.Module | Sequence[nn.Module],
    data: Split | tuple[Tensor, Tensor],
    *,
    loss: str = "cross_entropy",
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean loss and the accuracy of networks on fixed data.

    Args:
        models: a network, or K of one architecture.
        data: a part of a `Dataset`, or a pair of tensors as for `fit`.
        loss: "cross_entropy" or "mse".
        device: where to compute.

    Returns:
        Loss (K,), the mean over examples, and accuracy (K,), NaN for regression. The networks are evaluated in eval
        mode, and are left as they were.

    Example:
        >>> from labutils import models
        >>> loss, accuracy = evaluate(models.mlp((4, 3)), (torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64)))
        >>> loss.shape
        (1,)
    """
    networks = [models] if isinstance(models, nn.Module) else list(models)
    _check_choice("loss", loss, ("cross_entropy", "mse"))
    check_same(networks)
    x, y = _convert("data", data, loss, next(networks[0].parameters()).dtype, device)
    size = min(len(x), _EVALUATION_BATCH)
    with eval_mode(*networks), Stack(networks, example=x[:2], batch_size=size, device=device) as stack:
        _check_labels("data", y, stack.plan.outputs)
        return _evaluate(stack, x, y, loss)


def evaluate_weights(
    model: nn.Module,
    weights: Tensor,
    data: Split | tuple[Tensor, Tensor],
    *,
    loss: str = "cross_entropy",
    device: str | torch.device = "cpu",
    progress: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean loss and the accuracy that a network has with other weights: along a path, on a surface.

    Args:
        model: the network; its own weights are left alone, its buffers (such as batch normalization's) are used.
        weights: (..., P), flattened in the order of `model.parameters()`, as in `Stack.weights` and `Checkpoints`.
        data: a part of a `Dataset`, or a pair of tensors as for `fit`.
        loss: "cross_entropy" or "mse".
        device: where to compute.
        progress: whether to show a bar; None shows one where somebody watches.

    Returns:
        Loss and accuracy, each (...).

    Raises:
        ValueError: the last dimension of weights is not the number of the network's parameters.

    Example:
        >>> from labutils import models
        >>> model, data = models.mlp((1, 1)), (torch.ones(3, 1), torch.zeros(3, 1))
        >>> evaluate_weights(model, torch.tensor([[0.0, 0.0], [1.0, 1.0]]), data, loss="mse")[0]  # w x + b
        array([0., 4.])
    """
    _check_choice("loss", loss, ("cross_entropy", "mse"))
    dtype, count = next(model.parameters()).dtype, sum(p.numel() for p in model.parameters())
    if weights.numel() == 0 or weights.shape[-1] != count:
        raise ValueError(f"weights of shape {tuple(weights.shape)}: (..., {count}) are needed, one set or more")
    x, y = _convert("data", data, loss, dtype, device)
    rows = weights.reshape(-1, count)
    # The copies serve again and again, so that a large surface needs no more memory than a small one.
    at_once = min(len(rows), _COPIES, max(1, _COPIES_BYTES // (count * dtype.itemsize)))
    copies = [copy.deepcopy(model) for _ in range(at_once)]
    results, size = np.empty((2, len(rows))), min(len(x), _EVALUATION_BATCH)
    bar = tqdm(total=len(rows), unit="point", disable=not (watched() if progress is None else progress), leave=False)
    with eval_mode(*copies), Stack(copies, example=x[:2], batch_size=size, device=device) as stack, bar:
        _check_labels("data", y, stack.plan.outputs)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            stack.weights[: len(part)].copy_(part)
            results[:, start : start + at_once] = np.stack(_evaluate(stack, x, y, loss))[:, : len(part)]
            bar.update(len(part))
    values, accuracies = results.reshape(2, *weights.shape[:-1])
    return values, accuracies


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
        >>> from labutils import functions, models
        >>> lengths = Measurements(lambda epoch, stack: stack.weights.norm(dim=1), every=2)
        >>> data = functions.sample("sinc", 9, -1, 1)
        >>> _ = fit(models.mlp((1, 2, 1)), data, epochs=4, lr=0.1, loss="mse", on_epoch=lengths)
        >>> lengths.epochs, lengths.values.shape
        ([0, 2, 4], (1, 3))
    """

    def __init__(
        self, function: Callable[[int, Stack], Any] | Mapping[str, Callable[[int, Stack], Any]],
        every: int | Collection[int] = 1,
    ) -> None:  # fmt: skip
        if not isinstance(every, Collection):
            [every] = _whole(every=(every, 1))
        self.function, self.every = function, every
        self.epochs: list[int] = []
        self._taken: list[Tensor] = []  # each (times, K, ...)

    def __call__(self, epoch: int, stack: Stack) -> None:
        """Measure, if it is time to."""
        if epoch in self.every if isinstance(self.every, Collection) else epoch % self.every == 0:
            if isinstance(self.function, Mapping):
                columns = [torch.as_tensor(measure(epoch, stack)).double() for measure in self.function.values()]
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


class Checkpoints(Measurements):
    """Collects the weights while `fit` trains; pass it as `on_epoch`. A checkpoint of `fit` keeps it.

    Args:
        every: epochs between two checkpoints, of which the start (epoch 0) is one; or the epochs to take.

    Attributes:
        epochs: the epochs at which weights were taken.

    Example:
        >>> from labutils import functions, models
        >>> path = Checkpoints(every=2)
        >>> data = functions.sample("sinc", 9, -1, 1)
        >>> _ = fit(models.mlp((1, 2, 1)), data, epochs=4, lr=0.1, loss="mse", on_epoch=path)
        >>> path.epochs, tuple(path.weights.shape)
        ([0, 2, 4], (1, 3, 7))
    """

    def __init__(self, every: int | Collection[int] = 1) -> None:
        super().__init__(_weights_of, every)

    @property
    def weights(self) -> Tensor:
        """The weights taken so far, (K, checkpoints, P)."""
        return self._all().transpose(0, 1)


def _weights_of(_epoch: int, stack: Stack) -> Tensor:
    return stack.weights


def watched() -> bool:
    """Whether somebody sees a progress bar: in a terminal or a notebook in use, not in a headless run.

    Example:
        >>> isinstance(watched(), bool)
        True
    """
    if "LABUTILS_RUN_DIR" in os.environ:
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def crop_and_flip(x: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Shift each image of a batch by up to `padding` pixels, reflecting at the border, and mirror half of them.

    The same as padding by reflection, cropping at random and flipping at random, done for the whole batch with one
    gather.

    Args:
        x: (N, C, H, W) images.
        generator: source of the shifts and flips, on the CPU.
        padding: largest shift in pixels, below H and W.

    Returns:
        (N, C, H, W), new storage.

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


def epochs_to_convergence(epochs: np.ndarray, loss: np.ndarray, *, drop: float = 1e-6, window: int = 100) -> np.ndarray:
    """Find the first epoch at which each loss curve fell by less than `drop` over the last `window` epochs.

    Args:
        epochs: (E,) evaluated epochs, ascending.
        loss: (K, E) losses at these epochs.
        drop: smallest fall that counts as progress, in units of the loss.
        window: epochs over which the fall is measured.

    Returns:
        (K,) epochs, NaN where the criterion was not met.

    Raises:
        ValueError: no two evaluated epochs are `window` apart.

    Example:
        >>> epochs_to_convergence(np.array([0, 100, 200]), np.array([[1.0, 0.5, 0.5]]))
        array([200.])
    """
    position = {int(epoch): i for i, epoch in enumerate(epochs)}
    pairs = [(position[e - window], i) for e, i in position.items() if e - window in position]
    if not pairs:
        raise ValueError(f"no two of the evaluated epochs are {window} apart; choose evaluate_every to divide it")
    before, after = np.array(pairs).T
    flat = loss[:, before] - loss[:, after] < drop
    return np.where(flat.any(1), epochs[after[flat.argmax(1)]].astype(float), np.nan)


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index < size, index, 2 * (size - 1) - index)


@dataclass(frozen=True)
class _Job:
    """How to train a stack, checked: what a checkpoint is bound to, and what a worker gets."""

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

    def of(self, rows: list[int]) -> _Job:
        """Return the job of some of the networks, given by their places."""
        at = [self.rows.index(row) for row in rows]
        lists = {name: [getattr(self, name)[i] for i in at] for name in ("lr", "momentum", "weight_decay", "seed")}
        layers = {name: [rates[i] for i in at] for name, rates in self.layer_lr.items()}
        return replace(
            self, rows=rows, layer_lr=layers, labels=None if self.labels is None else self.labels[at], **lists
        )


def _train(
    networks: list[nn.Module],
    parts: dict[str, tuple[Tensor, Tensor]],
    job: _Job,
    on_epoch: Callable[[int, Stack], None] | None,
    progress: bool,
    path: Path | None = None,
) -> History:
    """Train networks that share a batch size, from where they were if there is a checkpoint."""
    if job.labels is not None:
        parts = parts | {"train": (parts["train"][0], job.labels)}
    x, y = parts["train"]
    own = job.own_batches
    record = _Recorder(len(networks), job.epochs, job.evaluate_every)
    batches = _Batches(x, y, job)
    for model in networks:
        model.train()
    bar = tqdm(total=job.epochs, unit="epoch", disable=not progress, leave=False)
    # The first network's mode is that of all that compute together.
    switched = networks if job.chunk == 1 or on_epoch is not None else networks[:1]
    planned = Plan(job.chunk, job.draws, compiled=job.compiled)
    with Stack(networks, device=job.device, planned=planned, seeds=job.seed) as stack, bar:
        step = _optimizer(stack, job)
        rates = [group["lr"] for group in step.param_groups]
        nothing = torch.zeros(2, len(stack), dtype=torch.float64, device=stack.device)
        at = checkpoints.Values(epoch=0, batch=0, sums=nothing)
        state = {"at": at, "networks": stack, "optimizer": step, "batches": batches, "record": record}
        with _checkpoint(path, state, stack, parts, job, on_epoch) as saved:
            factors = _schedule(job, len(batches), skip=max(0, at.epoch - 1) * len(batches) + at.batch)
            bar.update(max(0, at.epoch - 1))
            for epoch in range(at.epoch, job.epochs + 1):
                if epoch > 0:
                    for (xb, yb), factor in zip(batches.epoch(skip=at.batch), factors, strict=False):
                        saved.keep()
                        sums = torch.stack(stack.backward(xb, yb, job.loss, own=own)) * xb.shape[own]
                        for group, rate in zip(step.param_groups, rates, strict=True):
                            group["lr"] = rate * factor
                        step.step()
                        at.batch, at.sums = at.batch + 1, at.sums + sums
                    record.running(epoch, at.sums / len(x))
                    bar.update()
                with eval_mode(*switched):
                    if record.due(epoch):
                        record.evaluated(
                            epoch, {name: _evaluate(stack, *part, job.loss) for name, part in parts.items()}
                        )
                        bar.set_postfix_str(record.latest, refresh=False)
                    if on_epoch is not None:
                        on_epoch(epoch, stack)
                at.epoch, at.batch, at.sums = epoch + 1, 0, nothing
            saved.keep(now=True, without=["optimizer"])
        step.zero_grad()  # the gradients' memory serves the networks' own weights, see Stack.release
    for model in networks:
        model.eval()
    return record.history()


def _checkpoint(
    path: Path | None,
    state: dict[str, checkpoints.Part],
    stack: Stack,
    parts: dict[str, tuple[Tensor, Tensor]],
    job: _Job,
    on_epoch: Callable[[int, Stack], None] | None,
) -> checkpoints.Checkpoint:
    """Return the checkpoint of a training; one that saves nothing if `on_epoch` has no state."""
    if on_epoch is not None and not _has_state(on_epoch):
        return checkpoints.Checkpoint(None, {}, {})

    def settings() -> dict[str, Any]:
        return {"computation": "training.fit"} | _settings(stack.models, parts, job, on_epoch)

    return checkpoints.bind(path, state if on_epoch is None else state | {"on_epoch": on_epoch}, settings)


def _settings(networks: Sequence[nn.Module], parts: Mapping[str, Any], job: _Job, on_epoch: Any) -> dict[str, Any]:
    """Return all that decides the numbers of a training."""
    return {
        "networks": [repr(networks[0]), *map(type, networks[0].modules())],  # a class counts by its methods
        "initial_weights": [[*model.parameters(), *model.buffers()] for model in networks],
        **{f"{name} data": data for name, data in parts.items()},
        "on_epoch": None if on_epoch is None else [on_epoch, on_epoch.state_dict()],
        **vars(job),
    }


def _has_state(hook: Any) -> bool:
    return hasattr(hook, "state_dict") and hasattr(hook, "load_state_dict")


def _can_travel(on_epoch: Callable[[int, Stack], None] | None) -> bool:
    """Whether parts of a stack may train in different places: they share no state."""
    return on_epoch is None or (isinstance(on_epoch, Measurements) and not on_epoch.epochs)


def _train_elsewhere(
    networks: list[nn.Module],
    parts: dict[str, tuple[Tensor, Tensor]],
    jobs: list[_Job],
    on_epoch: Measurements | None,
    progress: bool,
) -> History:
    """Train parts of a stack on the workers of a scheduler, and bring everything back.

    Where checkpoints are kept, there is one for each part that is done.
    """
    tasks = [([networks[i] for i in job.rows], job, on_epoch) for job in jobs]
    data = functools.cache(lambda: {name: checkpoints.fingerprint(part) for name, part in parts.items()})
    results = [checkpoints.Values(result=None) for _ in jobs]
    files = [
        checkpoints.bind(
            None,
            {"result": result},
            lambda t=task: {"computation": "part of training.fit"} | _settings(t[0], data(), *t[1:]),
        )
        for task, result in zip(tasks, results, strict=True)
    ]
    for file in files:
        with file:  # restores what is done
            pass
    todo = [i for i, found in enumerate(results) if found.result is None]
    for n, result in distribute.run(_train_sent, [tasks[i] for i in todo], parts, progress=progress):
        with files[todo[n]] as file:
            results[todo[n]].result = result
            file.keep(now=True)
    histories = [_unpack(found.result, task[0]) for task, found in zip(tasks, results, strict=True)]
    if on_epoch is not None:
        on_epoch.load_state_dict(Measurements.joined([found.result["on_epoch"] for found in results]))
    return _merge(jobs, histories)


def _train_sent(
    task: tuple[list[nn.Module], _Job, Measurements | None], parts: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Any]:
    """Train the networks of one task, on a worker; return what a checkpoint can hold."""
    networks, job, on_epoch = task
    parts = {name: (aligned(x), aligned(y)) for name, (x, y) in parts.items()}  # what arrives may lie anywhere
    history = _train(networks, parts, job, on_epoch, progress=False)
    return _pack(networks, history, None if on_epoch is None else on_epoch.state_dict())


def _pack(networks: list[nn.Module], history: History, on_epoch: dict[str, Any] | None) -> dict[str, Any]:
    """Return what a training gives, as a checkpoint can hold it."""
    return {
        "networks": [[tensor.detach().cpu() for tensor in (*m.parameters(), *m.buffers())] for m in networks],
        "history": {field.name: torch.as_tensor(getattr(history, field.name)) for field in fields(history)},
        "on_epoch": on_epoch,
    }


def _unpack(result: dict[str, Any], networks: list[nn.Module]) -> History:
    """Give networks their trained weights and buffers; return the history."""
    for model, state in zip(networks, result["networks"], strict=True):
        for tensor, new in zip((*model.parameters(), *model.buffers()), state, strict=True):
            tensor.data.copy_(new)
        model.eval()
    return History(**{name: np.asarray(values) for name, values in result["history"].items()})


class _Batches:
    """The training part in random order, a batch at a time, for all networks or for each its own."""

    def __init__(self, x: Tensor, y: Tensor, job: _Job) -> None:
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


def _evaluated(epochs: int, every: int) -> list[int]:
    """Return the epochs at which a training is evaluated."""
    return sorted({*range(0, epochs + 1, every), epochs}) if every else []


class _Recorder:
    """Fills the arrays of a History, with NaN for what was not measured or came after divergence."""

    def __init__(self, k: int, epochs: int, evaluate_every: int) -> None:
        self.epochs = _evaluated(epochs, evaluate_every)
        self.column = {epoch: i for i, epoch in enumerate(self.epochs)}
        self.values = {
            f"{part}_{what}": np.full((k, len(self.epochs)), np.nan)
            for part in ("train", "validation", "test")
            for what in ("loss", "accuracy")
        }
        self.values |= {f"running_{what}": np.full((k, epochs), np.nan) for what in ("loss", "accuracy")}
        self.diverged = np.full(k, np.nan)
        self.latest = ""
        self.started = time.perf_counter()

    def due(self, epoch: int) -> bool:
        return epoch in self.column

    def running(self, epoch: int, means: Tensor) -> None:
        self._store("running", epoch - 1, epoch, *means.cpu().numpy())

    def evaluated(self, epoch: int, results: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        for part, (loss, accuracy) in results.items():
            self._store(part, self.column[epoch], epoch, loss, accuracy)

    def _store(self, part: str, column: int, epoch: int, loss: np.ndarray, accuracy: np.ndarray) -> None:
        self.diverged[~np.isfinite(loss) & np.isnan(self.diverged)] = epoch
        alive = np.isnan(self.diverged)
        self.values[f"{part}_loss"][alive, column] = loss[alive]
        self.values[f"{part}_accuracy"][alive, column] = accuracy[alive]
        if part == "train" and alive.any():
            self.latest = f"median train loss {np.median(loss[alive]):.3g}"

    def state_dict(self) -> dict[str, Any]:
        arrays = {name: torch.from_numpy(array) for name, array in (self.values | {"diverged": self.diverged}).items()}
        return {"arrays": arrays, "latest": self.latest, "seconds": time.perf_counter() - self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, saved in state["arrays"].items():
            np.copyto(self.diverged if name == "diverged" else self.values[name], saved.numpy())
        self.latest, self.started = state["latest"], time.perf_counter() - state["seconds"]

    def history(self) -> History:
        seconds = time.perf_counter() - self.started
        return History(epochs=np.array(self.epochs, dtype=int), **self.values, diverged=self.diverged, seconds=seconds)


def _merge(jobs: list[_Job], histories: list[History]) -> History:
    """Put the rows of several histories back into the order of their networks."""
    order = np.argsort(np.concatenate([job.rows for job in jobs]))
    merged: dict[str, Any] = {"epochs": histories[0].epochs, "seconds": float(sum(h.seconds for h in histories))}
    for name in (each.name for each in fields(History) if each.name not in merged):
        merged[name] = np.concatenate([getattr(h, name) for h in histories])[order]
    return History(**merged)


def _evaluate(stack: Stack, x: Tensor, y: Tensor, loss: str) -> tuple[np.ndarray, np.ndarray]:
    totals = torch.zeros(2, len(stack), dtype=torch.float64, device=stack.device)
    for start in range(0, len(x), _EVALUATION_BATCH):
        batch = slice(start, start + _EVALUATION_BATCH)
        xb, yb = x[batch], y[batch] if y.dim() == 1 or y.is_floating_point() else y[:, batch]
        totals += torch.stack(stack.measure(xb, yb, loss)) * len(xb)
    values, accuracies = (totals / len(x)).cpu().numpy()
    return values, accuracies


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


def _optimizer(stack: Stack, job: _Job) -> torch.optim.Optimizer:
    groups, weight_decay = _groups(stack, job.lr, job.layer_lr), _one(job.weight_decay)
    if job.optimizer == "sgd":
        nesterov = job.nesterov and any(job.momentum)  # some networks may have no momentum
        return optim.SGD(groups, momentum=_one(job.momentum), weight_decay=weight_decay, nesterov=nesterov)
    return optim.Adam(groups, weight_decay=weight_decay, decoupled=job.optimizer == "adamw")


def _schedule(job: _Job, steps_an_epoch: int, *, skip: int = 0) -> Iterator[float]:
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


def _compiles(networks: list[nn.Module], x: Tensor, loss: str, epochs: int, batch_size: int, device: Any) -> bool:
    """Whether networks train in the compiled pass; that depends on sizes and settings alone."""
    weights, steps = [p for network in networks for p in network.parameters()], epochs * math.ceil(len(x) / batch_size)
    enough = fused.pays(sum(p.numel() for p in weights), epochs * len(x), steps)
    return enough and fused.supports(networks[0], loss, weights[0].dtype, device, x.dim())


def _per_model(name: str, value: Any, k: int) -> list[Any]:
    """Return one value for each network, checked."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy and torch
    many = isinstance(value, Sequence) and not isinstance(value, str)
    values = [v.item() if hasattr(v, "item") else v for v in value] if many else [value] * k
    if len(values) != k:
        raise ValueError(f"{name} has {len(values)} values for {k} networks: give one, or one for each network")
    for v in values:
        if name == "batch_size" and v is None:
            continue
        whole = name in ("batch_size", "seed")
        if isinstance(v, bool) or not isinstance(v, int if whole else (int, float)):
            raise ValueError(f"{name} = {v!r}: a {'whole number' if whole else 'number'} is needed")
        if not math.isfinite(v) or v < (1 if name == "batch_size" else 0) or (whole and v >= 2**63):
            raise ValueError(f"{name} = {v!r}: must be {1 if name == 'batch_size' else 0} or more, and finite")
    return values


def _layer_rates(layer_lr: Mapping[str, PerModel], networks: list[nn.Module]) -> dict[str, list[float]]:
    """Return one rate for each network by layer, checked."""
    known = [name for name, layer in networks[0].named_modules() if name and list(layer.parameters(recurse=False))]
    for name in layer_lr:
        if name not in known:
            raise ValueError(f"layer_lr: no layer {name!r} with parameters; there are {', '.join(map(repr, known))}")
    return {name: _per_model(f"layer_lr[{name!r}]", value, len(networks)) for name, value in layer_lr.items()}


def _check_choice(name: str, value: str | None, known: tuple[str | None, ...]) -> None:
    if value not in known:
        raise ValueError(f"unknown {name} {value!r}; there are {', '.join(map(repr, known))}")


def _whole(**settings: tuple[int, int]) -> list[int]:
    """Return whole numbers, each given with its minimum, as Python's own."""
    for name, (value, minimum) in settings.items():
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < minimum:
            raise ValueError(f"{name} = {value!r}: must be a whole number, {minimum} or more")
    return [operator.index(value) for value, _ in settings.values()]


def _check_labels(name: str, y: Tensor, outputs: int | None) -> None:
    """Refuse labels that no output stands for, and targets of another number of outputs."""
    if y.is_floating_point() and y.shape[1] != outputs:
        raise ValueError(f"{name}: targets {tuple(y.shape)} for networks of {outputs} outputs")
    if not y.is_floating_point() and outputs is not None and not (y.min() >= 0 and y.max() < outputs):
        raise ValueError(
            f"{name}: labels from {y.min()} to {y.max()}, but the networks' {outputs} outputs stand for 0 to"
            f" {outputs - 1}"
        )


def _parts(
    dataset: Data,
    loss: str,
    augment: bool,
    dtype: torch.dtype,
    device: str | torch.device,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the parts that hold examples, as tensors of the networks' type on the device."""
    converted = {name: _convert(name, part, loss, dtype, device) for name, part in _split(dataset).items()}
    if "train" not in converted:
        raise ValueError("the training part is empty: there is nothing to train on")
    if augment and converted["train"][0].dim() != 4:
        raise ValueError(f"augment needs images (N, C, H, W); x is {tuple(converted['train'][0].shape)}")
    return converted


def _split(dataset: Data) -> dict[str, Any]:
    """Return the parts of a data set that hold examples."""
    if isinstance(dataset, tuple):
        return {"train": dataset}
    return {name: getattr(dataset, name) for name in _PARTS if len(getattr(dataset, name)) > 0}


def _own_labels(labels: Tensor | None, k: int, x: Tensor, y: Tensor) -> Tensor | None:
    """Return the networks' own labels (K, N) on the device, checked."""
    if labels is None:
        return None
    if y.is_floating_point() or labels.dtype != torch.int64 or labels.shape != (k, len(x)):
        raise ValueError(
            f"labels {tuple(labels.shape)} {labels.dtype}: {k} networks and {len(x)} labeled examples need"
            f" ({k}, {len(x)}) int64"
        )
    return labels.to(y.device)


def _convert(
    name: str, data: Split | tuple[Tensor, Tensor], loss: str, dtype: torch.dtype, device: str | torch.device
) -> tuple[Tensor, Tensor]:
    x, y = (data.x, data.y) if isinstance(data, Split) else data
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(
            f"{name}: {len(x)} examples and {len(y)} labels or targets; equal numbers are needed, 1 or more"
        )
    if loss == "cross_entropy" and (y.is_floating_point() or y.dim() != 1):
        raise ValueError(
            f"{name}: cross-entropy takes labels (N,) int64, y is {tuple(y.shape)} {y.dtype}; or use loss='mse'"
        )
    if y.dim() != 2 and (y.is_floating_point() or y.dim() != 1):
        raise ValueError(f"{name}: targets must be (N, outputs), y is {tuple(y.shape)}; unsqueeze(1) makes one output")
    y = y.to(device, torch.int64 if y.dim() == 1 else dtype)  # one-hot targets may be integers
    return aligned(x.to(device, dtype)), aligned(y)
