"""Sweeps against single trainings: the same numbers in one table, whatever else stands in the grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from labutils import checkpoint, data, models, training


def mlp(seed: int, width: int = 5) -> nn.Module:
    return models.mlp((6, width, 3), "tanh", seed=seed).double()


def examples(n: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator).double(), torch.randint(0, 3, (n,), generator=generator)


GRID = {"lr": [0.1, 0.02], "batch_size": [8, None], "momentum": [0.0, 0.9]}
MEASURE = {"length": lambda _, stack: stack.weights.norm(dim=1)}
COMMON: dict[str, Any] = {"epochs": 3, "progress": False}

LAST = ["loss", "accuracy"]
ENDS = ["train_loss", "train_accuracy"]  # of the second table
OTHER_ENDS = ["validation_loss", "validation_accuracy", "test_loss", "test_accuracy"]


ONLY = mlp(0)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def row(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    return table[np.logical_and.reduce([table[name] == value for name, value in values.items()])]


def test_a_sweep_is_single_trainings_in_one_table() -> None:
    frame, networks = training.sweep(mlp, examples(), GRID, seeds=3, weight_decay=0.01, **COMMON)
    assert list(frame.columns) == ["lr", "batch_size", "momentum", "seed", "epoch", "part", "loss", "accuracy"]
    assert list(networks.columns) == ["lr", "batch_size", "momentum", "seed", "diverged", *ENDS, "model"]
    assert (len(frame), len(networks)) == (2 * 2 * 2 * 3 * (4 + 3), 24)
    first = networks.drop_duplicates(["lr", "batch_size", "momentum"])[["lr", "batch_size", "momentum"]]
    assert [tuple(each) for each in first.to_numpy()] == [
        (lr, size, momentum) for lr in (0.1, 0.02) for size in (8, 20) for momentum in (0.0, 0.9)
    ]
    for _, trained in networks.iterrows():
        alone, size = mlp(trained.seed), int(trained.batch_size)
        chosen = {name: trained[name] for name in GRID} | {"batch_size": size}
        history = training.fit(alone, examples(), seed=trained.seed, weight_decay=0.01, **chosen, **COMMON)
        torch.testing.assert_close(flat(trained.model), flat(alone), rtol=1e-10, atol=1e-14)
        assert not trained.model.training
        mine = row(frame, seed=trained.seed, **chosen)
        for part, epochs in (("train", [0, 1, 2, 3]), ("running", [1, 2, 3])):
            found = row(mine, part=part)
            assert found.epoch.tolist() == epochs
            for what in ("loss", "accuracy"):
                np.testing.assert_allclose(found[what], getattr(history, f"{part}_{what}")[0], rtol=1e-9)
        assert [trained.train_loss, trained.train_accuracy] == row(mine, part="train", epoch=3)[LAST].iloc[0].tolist()


def test_several_networks_and_data_sets_are_columns() -> None:
    whole = data.load("digits", n_train=30, n_validation=12, n_test=10, size=8)
    pairs = {"whole": whole, "train": (whole.train.x, whole.train.y)}
    builders = {width: lambda seed, width=width: models.mlp((64, width, 10), seed=seed) for width in (5, 2)}
    frame, networks = training.sweep(builders, pairs, seeds=[3, 7], lr=0.1, evaluate_every=2, **COMMON)
    assert list(networks.columns) == ["network", "data", "seed", "diverged", *ENDS, *OTHER_ENDS, "model"]
    assert networks.groupby(["network", "data"]).seed.apply(list).tolist() == [[3, 7]] * 4
    found = frame.groupby("data").part.unique().apply(list).to_dict()
    assert found == {"train": ["train", "running"], "whole": ["train", "validation", "test", "running"]}
    for _, trained in networks.iterrows():
        split = pairs[trained.data].test if trained.data == "whole" else pairs["train"]
        [loss], [accuracy] = training.evaluate(trained.model, split)
        part = "test" if trained.data == "whole" else "train"
        last = row(frame, network=trained.network, data=trained.data, seed=trained.seed, part=part, epoch=3)
        np.testing.assert_allclose(last[LAST].to_numpy(), [[loss, accuracy]], rtol=1e-6)
        assert trained[f"{part}_loss"] == last.loss.item()
        assert np.isnan(trained.test_loss) == (trained.data == "train")
    by_name, _ = training.sweep(["cifar-1", "d1-cnn-shallow"][1:], data.load("digits", n_train=8, n_test=4, size=28),
                                seeds=1, lr=0.1, epochs=1, progress=False)  # fmt: skip
    assert by_name.network.unique().tolist() == ["d1-cnn-shallow"]


def test_layers_rates_come_in_combinations() -> None:
    grid = [{"lr": 0.1}, {"lr": 0.02, "layer_lr": {"3": 0.5}}, {"lr": 0.02, "layer_lr": {"3": 0.1, "1": 0.0}}]
    frame, networks = training.sweep(mlp, examples(), grid, seeds=2, **COMMON)
    assert list(networks.columns) == ["lr", "lr 3", "lr 1", "seed", "diverged", *ENDS, "model"]
    for k, trained in enumerate(networks.itertuples()):
        alone = mlp(trained.seed)
        training.fit(alone, examples(), seed=trained.seed, **grid[k // 2], **COMMON)
        torch.testing.assert_close(flat(trained.model), flat(alone), rtol=1e-10, atol=1e-14)
    assert frame["lr 3"].isna().mean() == pytest.approx(1 / 3)


def test_labels_of_their_own() -> None:
    x, y = examples()

    def permuted(seed: int) -> Tensor:
        return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]

    labels = {"true": lambda _seed: y, "permuted": permuted}
    frame, networks = training.sweep(mlp, (x, y), {"lr": [0.1, 0.3]}, seeds=2, labels=labels, **COMMON)
    assert list(networks.columns) == ["labels", "lr", "seed", "diverged", *ENDS, "model"]
    for trained in networks.itertuples():
        alone, own = mlp(trained.seed), y if trained.labels == "true" else permuted(trained.seed)
        history = training.fit(alone, (x, own), seed=trained.seed, lr=trained.lr, **COMMON)
        mine = row(frame, labels=trained.labels, lr=trained.lr, seed=trained.seed, part="train")
        np.testing.assert_allclose(mine.loss, history.train_loss[0], rtol=1e-9)


@pytest.mark.parametrize(("evaluate_every", "epochs"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (0, [3])])
def test_measures_are_columns(evaluate_every: int, epochs: list[int]) -> None:
    measure = MEASURE | {"epoch seen": lambda epoch, stack: [epoch] * len(stack)}
    frame, networks = training.sweep(
        mlp, examples(), {"lr": [0.1, 0.2]}, seeds=2, measure=measure, evaluate_every=evaluate_every, **COMMON
    )
    assert set(frame.part) == ({"train", "running"} if evaluate_every else {"running"})
    for part, found in frame.groupby("part"):
        seen = found.dropna(subset="epoch seen")
        assert sorted(set(seen.epoch)) == [e for e in epochs if e > 0 or part != "running"]
        assert (seen.epoch == seen["epoch seen"]).all()
        lengths = found[found.epoch == 3].length
        np.testing.assert_allclose(lengths, [flat(model).norm() for model in networks.model], rtol=1e-12)
        assert networks.length.tolist() == lengths.tolist()
    assert ("train_loss" in networks) == bool(evaluate_every)


def test_what_is_done_is_kept_for_each_combination(tmp_path: Path, monkeypatch) -> None:
    expected, models_ = training.sweep(mlp, examples(), {"lr": [0.1, 0.2, 0.3]}, seeds=2, measure=MEASURE, **COMMON)
    monkeypatch.setenv(checkpoint.FOLDER, str(tmp_path))
    real, trained = training.fit, []
    monkeypatch.setattr(training, "fit", lambda networks, *a, **b: trained.append(b["lr"]) or real(networks, *a, **b))
    for grid in ([0.1, 0.2], [0.1, 0.2], [0.3, 0.1, 0.2]):
        frame, networks = training.sweep(mlp, examples(), {"lr": grid}, seeds=2, measure=MEASURE, **COMMON)
    assert trained == [[0.1, 0.1, 0.2, 0.2], [0.3, 0.3]]
    order = ["lr", "seed", "part", "epoch"]
    frame, expected = (table.sort_values(order, ignore_index=True) for table in (frame, expected))
    pd.testing.assert_frame_equal(frame, expected)
    for model, other in zip(networks.sort_values(["lr", "seed"]).model, models_.model, strict=True):
        torch.testing.assert_close(flat(model), flat(other))
    for changed in ({"seeds": [1, 0]}, {"dataset": examples(seed=1)}, {"momentum": 0.5}, {"measure": {}}):
        options = {"dataset": examples(), "seeds": 2, "measure": MEASURE} | changed
        training.sweep(mlp, options.pop("dataset"), {"lr": [0.1]}, **options, **COMMON)
    assert len(trained) == 6


def test_a_diverged_training_is_told() -> None:
    options = COMMON | {"epochs": 60, "loss": "mse"}
    frame, networks = training.sweep(mlp, examples(), {"lr": [0.1, 1e30]}, seeds=1, **options)
    assert networks.diverged.isna().tolist() == [True, False]
    late = frame[(frame.lr == 1e30) & (frame.part == "train") & (frame.epoch >= networks.diverged[1])]
    assert late.loss.isna().all()
    assert frame[frame.lr == 0.1].loss.notna().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": {"lr": []}}, "the grid holds a setting without values"),
        ({"grid": {"rate": [0.1]}}, "fit has no setting 'rate'; there are .*'?weight_decay"),
        ({"grid": {"lr": [0.1]}, "lr": 0.2}, "lr is given twice"),
        ({"grid": {}}, "lr is missing"),
        ({"grid": [{"lr": 0.1}, {"momentum": 0.9}]}, "lr is missing"),
        ({"seed": 3}, "a sweep sets seed itself: see seeds"),
        ({"grid": {"on_epoch": [None]}}, "a sweep sets on_epoch itself: see measure"),
        ({"grid": {"loss": ["mse"], "lr": [0.1]}}, "'loss' is a column of the table already"),
        ({"measure": {"part": lambda _, stack: stack.weights[:, 0]}}, "'part' is a column"),
        ({"measure": {"lr": lambda _, stack: stack.weights[:, 0]}}, "'lr' is a column"),
        ({"seeds": 0}, "nothing to train"),
        ({"build": []}, "nothing to train"),
        ({"build": "lenet"}, "unknown network 'lenet'"),
        ({"build": lambda _seed: ONLY, "grid": {"lr": [0.1], "batch_size": [4, 8]}}, "same object twice"),
        ({"grid": {"lr": [[0.1, 0.2]]}}, r"lr = \[0.1, 0.2\]: a number is needed"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    options = {"build": mlp, "dataset": examples(), "grid": {"lr": [0.1]}, "seeds": 1} | COMMON | change
    with pytest.raises(ValueError, match=message):
        training.sweep(options.pop("build"), options.pop("dataset"), options.pop("grid"), **options)
