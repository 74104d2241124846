"""Training: one network, or many of the same shape at once.

`fit` keeps the weights of K networks in one (K, P) tensor, a `labutils.stack.Stack`. One optimizer step on it serves
them all, each with its own learning rate, momentum or weight decay.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from labutils import checkpoint as checkpoints
from labutils import engine, fused
from labutils.data import Dataset, Split
from labutils.engine import History, Hook, Measurements, Parts, Snapshots, crop_and_flip, whole
from labutils.models import build as build_named
from labutils.stack import Stack, aligned, check_same, eval_mode, plan

__all__ = [
    "History", "Measurements", "Snapshots", "Stack", "crop_and_flip", "epochs_to_convergence", "eval_mode", "evaluate",
    "evaluate_weights", "fit", "sweep", "watched",
]  # fmt: skip

_COPIES, _COPIES_BYTES = 16, 64 << 20  # networks, and bytes of their weights, that `evaluate_weights` holds at most
_COLUMNS = ("network", "data", "labels", "seed", "epoch", "part", "loss", "accuracy", "diverged", "model")  # of a sweep
_PER_NETWORK = ("lr", "momentum", "weight_decay", "layer_lr")  # what may differ within a stack of a sweep

PerModel = float | Sequence[float]
"""One value for all networks, or one for each."""

Data = Dataset | tuple[Tensor, Tensor]
"""A data set, or examples x (N, ...) with labels (N,) or targets (N, outputs)."""

Builder = str | Callable[[int], nn.Module]
"""A name of `labutils.models.build`, or a function of a seed that builds a network."""


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
    on_epoch: Hook | None = None,
    device: str | torch.device = "cpu",
    chunk: int | None = None,
    progress: bool | None = None,
    checkpoint: str | Path | None = None,
) -> History:
    """Train one network, or many of one architecture at once; their weights change in place.

    A network trained in a stack ends where it would end alone with the same seed, up to rounding. One whose loss stops
    being finite is recorded as diverged and does not touch the others.

    With a checkpoint, an interrupted training continues in the middle of the epoch; one that had finished returns at
    once (see `labutils.checkpoint`); with a hook that has no `state_dict()` and `load_state_dict()`, nothing is saved.
    Where `LABUTILS_SCHEDULER` names a Dask scheduler, its workers train the chunks of a stack (see
    `labutils.distribute`), unless there is a hook other than `Snapshots` and `Measurements`, or a `checkpoint` file.

    Args:
        models: a network, or a list of K networks of one architecture, in float32 or float64.
        dataset: a `Dataset`, or a pair x (N, ...), y of tensors; y holds labels (N,) or targets (N, outputs).
        epochs: passes through the training part.
        lr: learning rate; as momentum and weight_decay, one value, or one for each network.
        layer_lr: {layer name: learning rate} for layers with a rate of their own (one value, or one for each network).
            Names are those of `model.named_modules()`, such as "3". 0 freezes a layer.
        batch_size: examples a step (the last batch of an epoch may be smaller), one value or one for each network
            (networks with the same size are stacked); None takes all.
        optimizer: "sgd", "adam" or "adamw" (`labutils.optim`); momentum and nesterov are SGD's.
        weight_decay: L2 term; decoupled from the gradient for "adamw".
        schedule: None, "step" (lr times `gamma` every `step_size` epochs) or "one_cycle" (Smith & Topin 2019, as in
            `torch.optim.lr_scheduler.OneCycleLR` with `lr` as the peak, without cycling momentum).
        loss: "cross_entropy" on labels, or "mse", the mean over outputs and examples, on targets or one-hot labels.
        augment: randomly crop and flip each batch of images by `crop_and_flip`, with this `padding`.
        labels: (K, N) int64, each network's own labels of the training part, in place of the data set's.
        seed: of the order of the examples and of augmentation; one value for all (every network then sees the same
            batches) or one for each.
        evaluate_every: epochs between two evaluations; the start and the last epoch are always evaluated. 0 evaluates
            nothing, and the History then holds only running values.
        on_epoch: called as `on_epoch(epoch, stack)` at the start (0) and after each epoch; networks are in eval mode.
        device: where to train, "cpu" or "cuda"; the networks return to where they were.
        chunk: networks that compute together, see `Stack`; None chooses, or takes the compiled pass of
            `labutils.fused` for small dense networks that train for long: the same to rounding, several times as fast.
        progress: whether to show a bar; None shows one where somebody watches.
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
        >>> fit(networks, data, epochs=5, lr=[0.01, 0.02, 0.05], loss="mse").train_loss.shape
        (3, 6)
    """
    networks = [models] if isinstance(models, nn.Module) else list(models)
    _check_choice("optimizer", optimizer, ("sgd", "adam", "adamw"))
    _check_choice("schedule", schedule, (None, "step", "one_cycle"))
    _check_choice("loss", loss, ("cross_entropy", "mse"))
    epochs, step_size = whole("epochs", epochs, 1), whole("step_size", step_size, 1)
    evaluate_every, padding = whole("evaluate_every", evaluate_every, 0), whole("padding", padding, 0)
    [gamma] = _per_model("gamma", gamma, 1)
    if optimizer != "sgd" and (nesterov or np.any(momentum)):
        raise ValueError(f"momentum and nesterov belong to 'sgd'; {optimizer!r} has a momentum of its own")
    per_model = {
        name: _per_model(name, value, len(networks))
        for name, value in (("lr", lr), ("momentum", momentum), ("weight_decay", weight_decay), ("seed", seed))
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
    if checkpoint is not None and on_epoch is not None and not engine.has_state(on_epoch):
        raise ValueError("on_epoch has no state_dict(), so that a checkpoint cannot keep it: see Measurements")
    for model in networks:
        model.train()
    jobs = []
    for size in dict.fromkeys(batch_sizes):
        n, rows = min(len(x), size or len(x)), [i for i, b in enumerate(batch_sizes) if b == size]
        planned = plan([networks[i] for i in rows], x[:2], n, torch.device(device), chunk)
        job = engine.Job(
            rows=list(range(len(networks))), epochs=epochs, batch_size=n, optimizer=optimizer, layer_lr=layer_rates,
            nesterov=nesterov, schedule=schedule, step_size=step_size, gamma=gamma, loss=loss,
            augment=augment, padding=padding, labels=labels,
            own_batches=len({per_model["seed"][i] for i in rows}) > 1 and (n < len(x) or augment),
            evaluate_every=evaluate_every, device=str(device), chunk=planned.chunk, draws=planned.draws,
            compiled=chunk is None and _compiles([networks[i] for i in rows], x, loss, epochs, n, device), **per_model,
        )  # fmt: skip
        jobs.append(job.of(rows))
    for name, (_, y) in (parts | ({} if labels is None else {"labels": (x, labels)})).items():
        _check_labels(name, y, planned.outputs)
    show = watched() if progress is None else progress
    return engine.train(networks, parts, jobs, on_epoch, show, None if checkpoint is None else Path(checkpoint))


_SETTINGS = inspect.signature(fit).parameters


def sweep(
    build: Builder | Sequence[str] | Mapping[Any, Builder],
    dataset: Data | Mapping[Any, Data],
    grid: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] = (),
    *,
    seeds: int | Sequence[int] = 5,
    measure: Mapping[str, Hook] | None = None,
    labels: Callable[[int], Tensor] | Mapping[Any, Callable[[int], Tensor]] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train every combination of networks, data sets, settings and seeds; return what was measured as one table.

    Networks of one architecture, on the same data, whose settings differ in `lr`, `momentum`, `weight_decay`,
    `layer_lr`, `labels` or the seed alone, train in one stack. A combination's numbers do not depend on which others
    stand in the grid, up to rounding.

    Where checkpoints are kept (`labutils.checkpoint`), each combination with its seeds has one of its own: more values
    in a grid cost no training again.

    Args:
        build: a name of `labutils.models.build`, or a function of a seed that builds a network; several as a list of
            names, or as a dict of names or functions.
        dataset: as for `fit`; several as a dict.
        grid: {setting of `fit`: values} of which every combination is trained, or a list of combinations, each
            {setting: value}.
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
        did not), what was evaluated (`train_loss`, `test_accuracy` and so on) and measured last, and `model`.

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
        stacks: dict[str, list[_Combination]] = {}
        for (relabeling, labels_of), chosen in product(relabelings.items(), combinations):
            keys = {"network": network, "data": data, "labels": relabeling}
            keys = {name: key for name, key in keys.items() if key is not None}
            built = [builder(seed) for seed in numbers]
            own = None if labels_of is None else torch.stack([labels_of(seed) for seed in numbers])
            one = _Combination(keys | _columns(chosen, examples), chosen | settings, built, own, examples)
            shared = {name: value for name, value in one.settings.items() if name not in _PER_NETWORK}
            stacks.setdefault(repr(sorted(shared.items())), []).append(one)
            done.append(one)
        if len({id(network) for one in done for network in one.networks}) < len(done) * len(numbers):
            raise ValueError(f"the function for network {network!r} gives the same object twice: it must build one")
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
    history: History | None = None
    measured: dict[str, Any] | None = None


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
            columns[name] = len(_split(examples)["train"][0])
        else:
            columns[name] = value
    return columns


def _train_combinations(
    stack: list[_Combination], seeds: list[int], measure: Mapping[str, Hook], progress: bool | None
) -> None:
    """Train combinations in one stack, but for those that checkpoints hold."""
    data = functools.cache(lambda: checkpoints.fingerprint(_split(stack[0].examples)))
    kept = engine.Results([functools.partial(_bound, one, seeds, measure, data) for one in stack])
    todo = [stack[i] for i in kept.missing()]
    if todo:
        hook = Measurements(measure, _measured_at(todo[0].settings)) if measure else None
        networks = [network for one in todo for network in one.networks]
        joined = {"seed": seeds * len(todo), "on_epoch": hook, "progress": progress} | _joined(todo, len(seeds))
        history = fit(networks, todo[0].examples, **joined)
        for i, (number, one) in enumerate(zip(kept.missing(), todo, strict=True)):
            rows = slice(i * len(seeds), (i + 1) * len(seeds))
            measured = None if hook is None else hook.state_dict()
            if measured:
                measured["taken"] = measured["taken"][:, rows]
            kept.put(number, engine.pack(one.networks, history.of(rows), measured))
    for one, result in zip(stack, kept, strict=True):
        one.history, one.measured = engine.unpack(result, one.networks), result["on_epoch"]


def _joined(combinations: list[_Combination], n: int) -> dict[str, Any]:
    """Return the settings of `fit` for a stack of combinations, each with n networks."""
    first, chosen = combinations[0], [one.settings for one in combinations]
    joined = {name: value for name, value in first.settings.items() if name not in _PER_NETWORK}
    for name in ("lr", "momentum", "weight_decay"):
        joined[name] = [settings.get(name, 0.0) for settings in chosen for _ in range(n)]
    rates = [settings.get("layer_lr") or {} for settings in chosen]
    joined["layer_lr"] = {
        layer: [own.get(layer, settings["lr"]) for own, settings in zip(rates, chosen, strict=True) for _ in range(n)]
        for layer in dict.fromkeys(layer for own in rates for layer in own)
    }
    if first.labels is not None:
        joined["labels"] = torch.cat([one.labels for one in combinations])
    return joined


def _measured_at(settings: Mapping[str, Any]) -> list[int]:
    epochs = int(settings["epochs"])
    return engine.evaluated(epochs, int(settings.get("evaluate_every", 1))) or [epochs]


def _bound(one: _Combination, seeds: list[int], measure: Mapping[str, Hook], data: Callable[[], str]) -> dict[str, Any]:
    """Return all that decides the result of a combination."""
    defaults = {name: setting.default for name, setting in _SETTINGS.items() if setting.default is not setting.empty}
    return {
        **defaults, **one.settings, "computation": "a combination in training.fit", "seed": seeds, "data": data(),
        "networks": [repr(one.networks[0]), *map(type, one.networks[0].modules())], "labels": one.labels,
        "initial_weights": [[*model.parameters(), *model.buffers()] for model in one.networks],
        "measure": dict(measure), "chunk": None, "progress": None, "device": str(one.settings.get("device", "cpu")),
    }  # fmt: skip


def _tables(done: list[_Combination], seeds: list[int], measure: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row for each training, epoch and part, and a row for each training."""
    names = dict.fromkeys(name for one in done for name in one.columns)
    trainings = pd.DataFrame([one.columns | {"seed": seed} for one in done for seed in seeds], columns=[*names, "seed"])
    pieces: list[dict[str, Any]] = []
    for i, one in enumerate(done):
        history = one.history
        assert history is not None
        running = np.arange(1, history.running_loss.shape[1] + 1)
        grids = dict.fromkeys(_split(one.examples), history.epochs) | {"running": running}
        for k, (part, epochs) in product(range(len(seeds)), grids.items()):
            measured = np.full((len(epochs), len(measure)), np.nan)
            if one.measured:
                at, values = one.measured["epochs"], one.measured["taken"].numpy()
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
    if one.measured:
        found |= dict(zip(measure, one.measured["taken"][-1].numpy().T, strict=True))
    return pd.DataFrame(found, index=range(len(one.networks)))


def evaluate(
    models: nn.Module | Sequence[nn.Module],
    data: Split | tuple[Tensor, Tensor],
    *,
    loss: str = "cross_entropy",
    device: str | torch.device = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean loss and the accuracy of networks on fixed data, in eval mode; they are left as they were.

    Args:
        models: a network, or K of one architecture.
        data: a part of a `Dataset`, or a pair of tensors as for `fit`.
        loss: "cross_entropy" or "mse".
        device: where to compute.

    Returns:
        Loss (K,), the mean over examples, and accuracy (K,), NaN for regression.

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
    size = min(len(x), engine.EVALUATION_BATCH)
    with eval_mode(*networks), Stack(networks, example=x[:2], batch_size=size, device=device) as stack:
        _check_labels("data", y, stack.plan.outputs)
        return engine.evaluate_stack(stack, x, y, loss)


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
        weights: (..., P), flattened in the order of `model.parameters()`, as in `Stack.weights` and `Snapshots`.
        data, loss, device: as for `evaluate`.
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
    results, size = np.empty((2, len(rows))), min(len(x), engine.EVALUATION_BATCH)
    bar = tqdm(total=len(rows), unit="point", disable=not (watched() if progress is None else progress), leave=False)
    with eval_mode(*copies), Stack(copies, example=x[:2], batch_size=size, device=device) as stack, bar:
        _check_labels("data", y, stack.plan.outputs)
        for start in range(0, len(rows), at_once):
            part = rows[start : start + at_once]
            stack.weights[: len(part)].copy_(part)
            results[:, start : start + at_once] = np.stack(engine.evaluate_stack(stack, x, y, loss))[:, : len(part)]
            bar.update(len(part))
    values, accuracies = results.reshape(2, *weights.shape[:-1])
    return values, accuracies


def watched() -> bool:
    """Whether somebody sees a progress bar: in a terminal or a notebook in use, not in a headless run.

    Example:
        >>> isinstance(watched(), bool)
        True
    """
    if "LABUTILS_RUN_DIR" in os.environ:
        return False
    return "ipykernel" in sys.modules or sys.stderr.isatty()


def epochs_to_convergence(epochs: np.ndarray, loss: np.ndarray, *, drop: float = 1e-6, window: int = 100) -> np.ndarray:
    """Find the first epoch at which each loss curve fell by less than `drop` over the last `window` epochs.

    Args:
        epochs: (E,) evaluated epochs, ascending.
        loss: (K, E) losses at these epochs.

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


def _check_labels(name: str, y: Tensor, outputs: int | None) -> None:
    """Refuse labels that no output stands for, and targets of another number of outputs."""
    if y.is_floating_point() and y.shape[1] != outputs:
        raise ValueError(f"{name}: targets {tuple(y.shape)} for networks of {outputs} outputs")
    if not y.is_floating_point() and outputs is not None and not (y.min() >= 0 and y.max() < outputs):
        raise ValueError(
            f"{name}: labels from {y.min()} to {y.max()}, but the networks' {outputs} outputs stand for 0 to"
            f" {outputs - 1}"
        )


def _parts(dataset: Data, loss: str, augment: bool, dtype: torch.dtype, device: str | torch.device) -> Parts:
    """Return the parts that hold examples, as tensors of the networks' type on the device."""
    converted = {name: _convert(name, part, loss, dtype, device) for name, part in _split(dataset).items()}
    if "train" not in converted:
        raise ValueError("the training part is empty: there is nothing to train on")
    if augment and converted["train"][0].dim() != 4:
        raise ValueError(f"augment needs images (N, C, H, W); x is {tuple(converted['train'][0].shape)}")
    return converted


def _split(dataset: Data) -> Parts:
    """Return the parts of a data set that hold examples, as pairs of tensors."""
    if isinstance(dataset, (tuple, list)):
        return {"train": (dataset[0], dataset[1])}
    parts = {name: getattr(dataset, name) for name in ("train", "validation", "test")}
    return {name: (part.x, part.y) for name, part in parts.items() if len(part) > 0}


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
    x, y = map(torch.as_tensor, (data.x, data.y) if isinstance(data, Split) else data)
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
