"""Stacks on the workers of a real scheduler: the bits of a local training, also when a worker dies in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import distributed
import joblib
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from labutils import checkpoint, distribute, identity, models, training
from tests.conftest import wait_until
from tests.test_checkpoint import ADAM, LABELS, K, cnns, images, mlps, points, state_of
from tests.test_checkpoint import same as same_values

ONE_THREAD = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1")


def start(module: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"distributed.cli.dask_{module}", *arguments]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler with two workers, each a process of one thread, on the loopback."""
    train("own values, own seeds")  # they find what numba has compiled here
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    known = ["--scheduler-file", str(file)]
    local = [*ONE_THREAD, "--local-directory", str(folder)]
    processes = [start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", *known)]
    processes += [start("worker", *known, *local) for _ in range(2)]
    try:
        while not file.exists():
            assert processes[0].poll() is None, "the scheduler did not start"
            time.sleep(0.05)
        with distributed.Client(scheduler_file=str(file), set_as_default=False, timeout=60) as client:
            client.wait_for_workers(2, timeout=60)
            found = client.scheduler.address
        yield found
        distribute._client(found).close()
        distribute._client.cache_clear()
    finally:
        for process in processes:
            process.kill()
            process.wait()


@pytest.fixture
def elsewhere(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """From here on, trainings go to the workers."""
    monkeypatch.setenv(distribute.ADDRESS, address)
    return address


def odd() -> list[nn.Module]:
    return [models.mlp((3, 5, 7, 3), seed=s) for s in range(K)]


def normalized() -> list[nn.Module]:
    return [nn.Sequential(models.mlp((4, 3), seed=s), nn.BatchNorm1d(3)) for s in range(K)]


def dropouts() -> list[nn.Module]:
    return [nn.Sequential(models.mlp((4, 9), seed=s), nn.Dropout(), models.mlp((9, 3))) for s in range(K)]


OWN = {"lr": [0.1, 0.02, 0.1, 0.1, 0.01], "momentum": [0.9, 0, 0.5, 0.5, 0.9], "weight_decay": [0, 0, 0.1, 0.1, 0.1]}
SEEDS = [1, 2, 3, 3, 4]  # two that one chunk has in common
CASES: dict[str, tuple[Callable[[], list[nn.Module]], Callable[[], Any], dict[str, Any]]] = {
    "own values, own seeds": (mlps, points, OWN | {"seed": SEEDS, "chunk": 2}),
    "one seed, Adam, layers' rates": (mlps, points, ADAM | {"chunk": 2, "layer_lr": {"1": 0.1}}),
    "one by one, one cycle": (mlps, points, OWN | {"chunk": 1, "schedule": "one_cycle"}),
    "augmented": (cnns, images, {"lr": 0.1, "augment": True, "padding": 2, "seed": SEEDS, "chunk": 2}),
    "odd sizes": (odd, lambda: (points()[0][:, :3], points()[1]), OWN | {"seed": SEEDS, "chunk": 2, "batch_size": 7}),
    "odd sizes, one by one": (odd, lambda: (points()[0][:, :3], points()[1]), OWN | {"seed": SEEDS, "chunk": 1}),
    "several batch sizes": (mlps, points, OWN | {"batch_size": [8, 4, 8, 8, 4], "chunk": 2, "seed": SEEDS}),
    "own labels": (mlps, points, {"lr": 0.1, "labels": LABELS, "chunk": 2}),
    "batch normalization": (normalized, points, {"lr": 0.1, "chunk": 2}),
    "dropout": (dropouts, points, {"lr": 0.1, "seed": SEEDS}),
    "some diverge": (mlps, points, {"lr": [0.1, 1e20, 0.1, 1e30, 0.1], "momentum": 0.9, "chunk": 2}),
}


def train(case: str, hook: Any = None, **more: Any) -> tuple[list[nn.Module], training.History]:
    build, make_data, options = CASES[case]
    networks = build()
    return networks, training.fit(
        networks, make_data(), on_epoch=hook, **{"epochs": 4, "batch_size": 8, "progress": False} | options | more
    )


def same(ours: tuple[list[nn.Module], training.History], theirs: tuple[list[nn.Module], training.History]) -> None:
    same_values(state_of(*ours, None), state_of(*theirs, None))
    assert [model.training for model in ours[0]] == [model.training for model in theirs[0]]


@pytest.mark.parametrize("case", CASES)
def test_workers_compute_the_bits_of_a_local_training(case: str, elsewhere: str, monkeypatch) -> None:
    sent = []
    real = distribute.run
    monkeypatch.setattr(distribute, "run", lambda f, tasks, *a, **b: sent.append(len(tasks)) or real(f, tasks, *a, **b))
    there = train(case)
    monkeypatch.delenv(distribute.ADDRESS)
    same(there, train(case))
    assert sent == [5 if "one by one" in case or "dropout" in case else 3]


def test_weights_and_measurements_come_back_in_order(elsewhere: str, monkeypatch) -> None:
    found = []
    for _ in range(2):
        path, norms = training.Snapshots(2), training.Measurements(lambda _, s: s.gradients.norm(dim=1), [0, 3])
        train("own values, own seeds", path)
        train("own values, own seeds", norms)
        found.append((path.weights, path.epochs, norms.values, norms.epochs))
        monkeypatch.delenv(distribute.ADDRESS, raising=False)
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == [0, 2, 4]
    assert np.array_equal(found[0][2], found[1][2])
    assert found[0][3] == found[1][3] == [0, 3]


def test_an_error_on_a_worker_is_raised_here(elsewhere: str) -> None:
    x, y = points()
    hook = training.Measurements(lambda _epoch, _stack: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        training.fit(mlps(), (x, y), epochs=1, lr=0.1, chunk=2, on_epoch=hook, progress=False)


def test_parts_that_are_done_are_not_sent_again(elsewhere: str, tmp_path: Path, monkeypatch) -> None:
    real, sent = distribute.run, []

    def run(function: Any, tasks: list[Any], *args: Any, **options: Any) -> Iterator[tuple[int, Any]]:
        sent.append(len(tasks))
        for result in real(function, tasks, *args, **options):
            yield result
            if len(sent) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(distribute, "run", run)
    monkeypatch.setenv(checkpoint.FOLDER, str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train("own values, own seeds", training.Snapshots())
    for _ in range(2):
        path = training.Snapshots()
        there = train("own values, own seeds", path)
    assert sent == [3, 2, 0]
    monkeypatch.delenv(distribute.ADDRESS)
    monkeypatch.delenv(checkpoint.FOLDER)
    here = training.Snapshots()
    same(there, train("own values, own seeds", here))
    assert torch.equal(path.weights, here.weights)


def test_a_worker_that_dies_in_the_middle_costs_only_time(elsewhere: str, tmp_path: Path, monkeypatch) -> None:
    """The last of the tests that need two workers."""
    dies_in_the_middle(tmp_path / "died", monkeypatch)


def test_the_only_worker_dies_and_one_that_comes_later_goes_on(elsewhere: str, tmp_path: Path, monkeypatch) -> None:
    """Nobody holds the data then. The worker before last has died in the test above."""
    marker, newcomers = tmp_path / "died", []

    def come_later() -> None:
        wait_until(marker.exists, 60)
        newcomers.append(start("worker", elsewhere, *ONE_THREAD, "--local-directory", str(tmp_path)))

    coming = threading.Thread(target=come_later)
    coming.start()
    try:
        dies_in_the_middle(marker, monkeypatch)
    finally:
        coming.join()
        for process in newcomers:
            process.kill()
            process.wait()


def dies_in_the_middle(marker: Path, monkeypatch) -> None:
    """The first worker that comes to epoch 2 dies there, and writes down who it was."""

    def die_once(epoch: int, stack: training.Stack) -> Tensor:
        if epoch == 2 and not marker.exists():
            marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return stack.weights

    seen = training.Measurements(die_once)
    there = train("own values, own seeds", seen)
    assert int(marker.read_text()) != os.getpid()
    monkeypatch.delenv(distribute.ADDRESS)
    expected = training.Snapshots()
    same(there, train("own values, own seeds", expected))
    assert np.array_equal(seen.values, expected.values)


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("it was sent away")


@pytest.mark.parametrize(
    "more",
    [
        {"chunk": 5},
        {"on_epoch": lambda _epoch, _stack: None},
        {"checkpoint": "here"},
        {"models": models.mlp((4, 3))},
    ],
    ids=["one chunk", "another hook", "a checkpoint of its own", "one network"],
)
def test_what_cannot_be_split_trains_here(more: dict[str, Any], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(distribute.ADDRESS, "tcp://127.0.0.1:1")
    monkeypatch.setattr(distribute, "run", never)
    monkeypatch.chdir(tmp_path)
    options = {"models": mlps(), "epochs": 1, "lr": 0.1, "progress": False, "chunk": 1} | more
    training.fit(options.pop("models"), points(), **options)


def test_a_hook_that_has_measured_before_stays_here(monkeypatch) -> None:
    path = training.Snapshots()
    train("own values, own seeds", path)
    monkeypatch.setenv(distribute.ADDRESS, "tcp://127.0.0.1:1")
    monkeypatch.setattr(distribute, "run", never)
    train("own values, own seeds", path)
    assert path.weights.shape[1] == 10


@pytest.mark.parametrize("case", ["own values, own seeds", "batch normalization"])
def test_processes_of_this_machine_compute_the_bits_too(case: str, monkeypatch) -> None:
    here, there = train(case), training.Snapshots()
    with joblib.parallel_config(n_jobs=2):
        same(train(case, there), here)
    assert torch.equal(there.weights[:, -1], torch.stack([parameters_to_vector(m.parameters()) for m in here[0]]))


def test_an_address_without_a_scheduler_is_named(monkeypatch) -> None:
    monkeypatch.setattr(distribute, "_PATIENCE", 0.5)
    for wrong in ("tcp://127.0.0.1:1", "nowhere at all"):
        monkeypatch.setenv(distribute.ADDRESS, wrong)
        with pytest.raises(ConnectionError, match=f"{distribute.ADDRESS} = '{wrong}': no Dask scheduler answers"):
            train("own labels")


class Fake:
    """A client as far as the check of the workers goes."""

    def __init__(self, found: Any) -> None:
        self.found = found

    def wait_for_workers(self, n: int, timeout: float) -> None:
        if not self.found:
            raise TimeoutError

    def run(self, function: Any, on_error: str) -> dict[str, Any]:
        assert (function, on_error) == (identity.of_this_process, "return")
        return {"tcp://a": identity.of_this_process(), "tcp://b": self.found}


@pytest.mark.parametrize(
    ("found", "error", "message"),
    [
        (None, ConnectionError, r"the scheduler at tcp://s has no worker"),
        (identity.of_this_process() | {"torch": "1.0"}, RuntimeError, r"worker tcp://b has torch 1\.0 instead of"),
        (identity.of_this_process() | {"code of labutils": "old"}, RuntimeError, "b has other code of labutils"),
        (ModuleNotFoundError("labutils"), RuntimeError, "worker tcp://b has no labutils, or an older one: install"),
    ],
)
def test_unfit_workers_are_named(found: Any, error: type[Exception], message: str, monkeypatch) -> None:
    monkeypatch.setenv(distribute.ADDRESS, "tcp://s")
    with pytest.raises(error, match=message):
        distribute._check_workers(Fake(found))


def test_a_part_that_kills_every_worker_is_given_up(monkeypatch) -> None:
    def given_up(**_: Any) -> Any:
        def call(_calls: Any) -> Iterator[Any]:
            raise distributed.KilledWorker("part", None, 3)
            yield

        return call

    monkeypatch.setattr(distribute.joblib, "Parallel", given_up)
    with pytest.raises(RuntimeError, match="given up, as every worker that took it died"):
        list(distribute.run(max, [1], 2))
