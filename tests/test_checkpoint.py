"""Interrupted computations end with the bytes of uninterrupted ones; foreign, damaged and hostile files are refused."""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labutils import checkpoint, curvature, engine, fingerprint, fused, identity, models, training
from labutils.checkpoint import Checkpoint, Values, bind

K = 5


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test saves at every opportunity, and has no folder unless it asks for one."""
    monkeypatch.setenv(checkpoint.SECONDS, "0")
    monkeypatch.delenv(checkpoint.FOLDER, raising=False)
    fingerprint.code_behind.cache_clear()


class Normalized(nn.Module):
    """Batch normalization and dropout: buffers, and torch's global random numbers."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(models.mlp((4, 6), seed=seed), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Linear(6, 3))
        with torch.no_grad():
            self.layers[3].weight.copy_(torch.linspace(-1, 1, 18).view(3, 6))
            self.layers[3].bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def mlps() -> list[nn.Module]:
    return [models.mlp((4, 6, 3), "tanh", seed=s) for s in range(K)]


def cnns() -> list[nn.Module]:
    return [models.cnn((1, 2), (3,), size=8, seed=s) for s in range(K)]


def points(seed: int = 0, n: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(20, 1, 8, 8, generator=generator), torch.randint(0, 3, (20,), generator=generator)


ADAM = {"optimizer": "adam", "lr": 0.01}
OWN = {"lr": [0.1, 0.02, 0.05, 0.3, 0.01], "momentum": [0.9, 0, 0.5, 0, 0.9], "weight_decay": [0, 0, 0.1, 0.01, 0.1]}
LABELS = torch.randint(0, 3, (K, 20), generator=torch.Generator().manual_seed(9))
CASES: dict[str, tuple[Callable[[], list[nn.Module]], Callable[[], Any], dict[str, Any]]] = {
    "sgd": (mlps, points, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    "adam": (mlps, points, ADAM),
    "full batch": (mlps, points, {"lr": 0.1, "batch_size": None}),
    "own values, own seeds": (mlps, points, OWN | {"seed": range(K)}),
    "own values, AdamW": (mlps, points, {"optimizer": "adamw", "lr": OWN["lr"], "weight_decay": 0.1, "seed": range(K)}),
    "the compiled pass": (mlps, points, {"lr": 0.1}),
    "step schedule": (mlps, points, {"lr": 0.1, "schedule": "step", "step_size": 2}),
    "one cycle, own rates": (mlps, points, OWN | {"schedule": "one_cycle"}),
    "augmented, own seeds": (cnns, images, {"lr": 0.1, "augment": True, "padding": 2, "seed": range(K)}),
    "batch normalization, dropout": (lambda: [Normalized(s) for s in range(K)], points, {"lr": 0.1, "momentum": 0.9}),
    "layers' own rates": (mlps, points, {"lr": 0.1, "momentum": 0.9, "layer_lr": {"3": OWN["lr"], "1": 0.0}}),
    "layers' own rates, Adam": (mlps, points, ADAM | {"layer_lr": {"3": 0.1}, "schedule": "one_cycle"}),
    "own labels and seeds": (mlps, points, {"lr": 0.1, "labels": LABELS, "seed": range(K)}),
    "chunks": (mlps, points, {"lr": 0.1, "momentum": 0.9, "chunk": 2, "seed": range(K)}),
    "one by one": (mlps, points, ADAM | {"chunk": 1}),
    "some diverge": (mlps, points, {"lr": [0.1, 1e20, 0.1, 1e30, 0.1], "momentum": 0.9}),
    "few evaluations": (mlps, points, {"lr": 0.1, "evaluate_every": 3}),
    "no evaluation": (mlps, points, {"lr": 0.1, "evaluate_every": 0}),
    "float64": (lambda: [m.double() for m in mlps()], points, ADAM),
}
EPOCHS = 5


class Interrupted(Exception):
    """What a test throws into a computation."""


def watch() -> training.Measurements:
    """Measures the last batch's gradient and the weights."""
    return training.Measurements(gradient_and_weights, every=2)


def gradient_and_weights(_epoch: int, stack: training.Stack) -> Tensor:
    return torch.stack([stack.gradients.norm(dim=1), stack.weights.norm(dim=1)], dim=1)


def state_of(
    networks: list[nn.Module], history: training.History, hook: training.Measurements | None
) -> dict[str, Any]:
    found: dict[str, Any] = {f.name: getattr(history, f.name) for f in fields(history) if f.name != "seconds"}
    for k, model in enumerate(networks):
        found |= {f"{k}.{name}": value.numpy() for name, value in model.state_dict().items()}
    return found | ({"seen": hook.values, "seen at": np.array(hook.epochs)} if hook else {})


def same(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].tobytes() == b[name].tobytes(), name


def train(case: str, hook: Any = None, **more: Any) -> tuple[list[nn.Module], training.History]:
    build, make_data, options = CASES[case]
    networks = build()
    options = {"epochs": EPOCHS, "batch_size": 8, "progress": False} | options | more
    return networks, training.fit(networks, make_data(), on_epoch=hook, **options)


@pytest.mark.parametrize("case", CASES)
def test_interrupted_at_every_epoch_the_numbers_are_the_same(case: str, tmp_path: Path, monkeypatch) -> None:
    hook, measure = watch(), training.Measurements.__call__
    monkeypatch.setattr(fused, "pays", lambda *_: case == "the compiled pass")
    torch.manual_seed(3)
    expected = state_of(*train(case, hook), hook)
    after = torch.get_rng_state()
    path = tmp_path / "fit.checkpoint"
    for stop_at in range(EPOCHS + 1):

        def interrupt(self: Any, epoch: int, stack: training.Stack, stop_at: int = stop_at) -> None:
            measure(self, epoch, stack)
            if epoch == stop_at:
                raise Interrupted

        torch.manual_seed(3)
        with monkeypatch.context() as patch:
            patch.setattr(training.Measurements, "__call__", interrupt)
            with pytest.raises(Interrupted):
                train(case, watch(), checkpoint=path)
        assert stop_at == 0 or path.exists()
    for _ in range(2):  # to its end, and when that is reached already
        hook = watch()
        torch.manual_seed(3)
        same(state_of(*train(case, hook, checkpoint=path), hook), expected)
        assert torch.equal(torch.get_rng_state(), after)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "case", ["adam", "augmented, own seeds", "batch normalization, dropout", "one cycle, own rates"]
)
def test_interrupted_at_every_step_the_numbers_are_the_same(case: str, tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(3)
    expected = state_of(*train(case, epochs=3), None)
    backward, count = training.Stack.backward, 0

    def interrupt(self: training.Stack, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count % 2 == 0:
            raise Interrupted
        return backward(self, *args, **options)

    monkeypatch.setattr(training.Stack, "backward", interrupt)
    interrupts = 0
    while True:
        torch.manual_seed(3)
        count = 0
        try:
            same(state_of(*train(case, epochs=3, checkpoint=tmp_path / "c"), None), expected)
            break
        except Interrupted:
            interrupts += 1
    assert interrupts == 8  # 9 steps, one at a time


def test_several_batch_sizes_have_a_file_each(tmp_path: Path, monkeypatch) -> None:
    sizes = [8, 4, 8, 20, 4]
    expected = state_of(*train("own values, own seeds", batch_size=sizes), None)
    real, stop = engine._train, 1

    def interrupt(*args: Any, **options: Any) -> Any:
        nonlocal stop
        stop -= 1
        if stop < 0:
            raise Interrupted
        return real(*args, **options)

    monkeypatch.setattr(engine, "_train", interrupt)
    path = tmp_path / "fit.checkpoint"
    with pytest.raises(Interrupted):
        train("own values, own seeds", batch_size=sizes, checkpoint=path)
    assert [p.name for p in tmp_path.iterdir()] == ["fit-8.checkpoint"]
    stop = 3
    same(state_of(*train("own values, own seeds", batch_size=sizes, checkpoint=path), None), expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"fit-{n}.checkpoint" for n in (20, 4, 8)]


def test_a_folder_holds_a_file_for_every_training(tmp_path: Path, monkeypatch) -> None:
    expected = [state_of(*train(case), None) for case in ("sgd", "adam")]
    monkeypatch.setenv(checkpoint.FOLDER, str(tmp_path / "made" / "here"))
    for _ in range(2):
        for case, wanted in zip(("sgd", "adam"), expected, strict=True):
            same(state_of(*train(case), None), wanted)
    assert len(list((tmp_path / "made" / "here").iterdir())) == 2
    monkeypatch.setattr(training.Stack, "backward", None)  # nothing is computed again
    same(state_of(*train("adam"), None), expected[1])


def test_the_time_spent_counts_from_the_first_start(tmp_path: Path, monkeypatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(engine.time, "perf_counter", lambda: float(next(ticks)))  # a second a look at the clock
    first = train("sgd", checkpoint=tmp_path / "c")[1].seconds
    monkeypatch.setattr(training.Stack, "backward", None)  # nothing is computed again
    assert train("sgd", checkpoint=tmp_path / "c")[1].seconds > first / 2 > 5


def test_a_hook_without_a_state_is_never_skipped(tmp_path: Path, monkeypatch) -> None:
    seen = []
    hook = lambda epoch, _stack: seen.append(epoch)  # noqa: E731
    monkeypatch.setenv(checkpoint.FOLDER, str(tmp_path))
    for _ in range(2):
        train("sgd", hook)
    assert seen == [*range(EPOCHS + 1)] * 2
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"on_epoch has no state_dict\(\).*Measurements"):
        train("sgd", hook, checkpoint=tmp_path / "c")


def test_ctrl_c_saves_and_leaves_the_networks_in_order(tmp_path: Path, monkeypatch) -> None:
    expected = state_of(*train("adam"), None)
    monkeypatch.setenv(checkpoint.SECONDS, "1000")  # so that only the interrupt saves
    backward, count = training.Stack.backward, 0

    def press(self: training.Stack, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            signal.raise_signal(signal.SIGINT)
        return backward(self, *args, **options)

    monkeypatch.setattr(training.Stack, "backward", press)
    networks = mlps()
    before, path = signal.getsignal(signal.SIGINT), tmp_path / "c"
    with pytest.raises(KeyboardInterrupt):
        training.fit(networks, points(), epochs=EPOCHS, batch_size=8, progress=False, checkpoint=path, **ADAM)
    assert signal.getsignal(signal.SIGINT) is before
    assert count == 5
    for model in networks:
        for parameter in model.parameters():
            assert parameter.untyped_storage().nbytes() == parameter.numel() * parameter.element_size()
    same(state_of(*train("adam", checkpoint=path), None), expected)
    assert count == 15  # not one step twice


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    reached = []

    def compute(presses: int) -> None:
        with Checkpoint(tmp_path / "c", {}, {}):
            for press in range(presses):
                signal.raise_signal(signal.SIGINT)
                reached.append(press)

    with pytest.raises(KeyboardInterrupt):
        compute(2)
    assert reached == [0]
    with pytest.raises(KeyboardInterrupt):
        compute(1)  # the computation ends before it could save
    assert reached == [0, 0]


def test_other_threads_leave_the_signals_alone(tmp_path: Path) -> None:
    before, failed = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        try:
            with Checkpoint(tmp_path / "c", {}, {"at": Values(n=1)}) as saved:
                saved.keep(now=True)
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "c").exists()


SCRIPT = """
import contextlib, os, random, signal, sys, time
import torch
from labutils import models, training

def train(out):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(60, 4, generator=generator), torch.randint(0, 3, (60,), generator=generator)
    networks = [models.mlp((4, 6, 3), "tanh", seed=s) for s in range(4)]
    path = training.Snapshots(3)
    history = training.fit(networks, data, epochs=15, batch_size=8, lr=[0.1, 0.01, 0.03, 0.3], momentum=0.9,
                           schedule="one_cycle", seed=range(4), on_epoch=path)
    with open(out, "wb") as file:
        file.write(path.weights.numpy().tobytes() + history.train_loss.tobytes() + history.running_accuracy.tobytes())
        file.write(b"".join(p.detach().numpy().tobytes() for m in networks for p in m.parameters()))

def start(out):  # a first training takes seconds of imports: the processes come from one that has them behind it
    process = os.fork()
    if not process:
        train(out)
        os._exit(0)
    return process

def wait_for_a_save(folder, last):
    while (now := [entry.stat().st_mtime_ns for entry in os.scandir(folder)]) in ([], last):
        time.sleep(0.001)
    return now

expected, result, folder, seed = sys.argv[1:]
os.mkdir(folder)
os.environ |= {"LABUTILS_CHECKPOINTS": folder + ".whole", "LABUTILS_CHECKPOINT_SECONDS": "0"}
train(expected)  # the code that it is bound to is read here, once for all
ends = []
os.environ["LABUTILS_CHECKPOINTS"] = folder
moments = random.Random(int(seed))
for _ in range(10):
    process, seen = start(result), []
    for _ in range(moments.randint(0, 6)):
        with contextlib.suppress(FileNotFoundError):
            seen = wait_for_a_save(folder, seen)
    time.sleep(moments.uniform(0.0, 0.02))
    os.kill(process, signal.SIGKILL)
    ends.append(os.waitpid(process, 0)[1])
print(*ends, os.waitpid(start(result), 0)[1])
"""


def test_killed_at_ten_random_moments_a_training_ends_with_the_same_bytes(tmp_path: Path) -> None:
    places = [str(tmp_path / name) for name in ("expected", "result", "checkpoints")]
    environment = {name: value for name, value in os.environ.items() if name != checkpoint.SECONDS}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *places, "1"], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == [*["9"] * 10, "0"]  # none was done before it was killed
    assert (tmp_path / "result").read_bytes() == (tmp_path / "expected").read_bytes()
    assert [path.suffix for path in (tmp_path / "checkpoints").iterdir()] == [".checkpoint"]


def small() -> list[nn.Module]:
    return [models.mlp((4, 3, 2), "tanh", seed=s).double() for s in range(3)]


def targets() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    return x, torch.randn(10, 2, generator=generator, dtype=torch.float64)


def descend(networks: list[nn.Module], **options: Any) -> np.ndarray:
    x, y = targets()
    return curvature.minimize_gradient(
        lambda network: F.mse_loss(network(x), y), networks, **{"steps": 12, "lr": 0.01} | options
    )


def marquardt(networks: list[nn.Module], **options: Any) -> np.ndarray:
    return curvature.levenberg_marquardt(networks, *targets(), **{"steps": 12} | options)


@pytest.mark.parametrize("method", [descend, marquardt])
def test_minimizers_continue_where_they_were(method: Callable[..., np.ndarray], tmp_path: Path, monkeypatch) -> None:
    expected, uninterrupted = small(), None
    uninterrupted = method(expected)
    keep, left = Checkpoint.keep, 0

    def interrupt(self: Checkpoint, *, now: bool = False) -> None:
        nonlocal left
        left -= 1
        keep(self, now=now)
        if left == 0:
            raise Interrupted

    monkeypatch.setattr(Checkpoint, "keep", interrupt)
    for explicit in (True, False):
        if not explicit:
            monkeypatch.setenv(checkpoint.FOLDER, str(tmp_path / "folder"))
        path = tmp_path / "c" if explicit else None
        for _ in range(6):
            left = 3
            with pytest.raises(Interrupted):
                method(small(), checkpoint=path)
        for _ in range(2):
            left, networks = -1, small()
            norms = method(networks, checkpoint=path)
            assert norms.tobytes() == uninterrupted.tobytes()
            for a, b in zip(networks, expected, strict=True):
                assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("method", "change", "named"),
    [
        (descend, {"steps": 13}, "steps 12, now 13"),
        (descend, {"lr": 0.02}, r"lr 0\.01, now 0\.02"),
        (marquardt, {"steps": 13}, "steps 12, now 13"),
    ],
)
def test_minimizers_refuse_another_computations_file(method, change, named, tmp_path: Path) -> None:
    method(small(), checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match=named):
        method(small(), checkpoint=tmp_path / "c", **change)
    with pytest.raises(ValueError, match="other initial weights"):
        method(small()[::-1], checkpoint=tmp_path / "c")
    other = marquardt if method is descend else descend
    with pytest.raises(ValueError, match="computation curvature"):
        other(small(), checkpoint=tmp_path / "c")
    if method is descend:  # a loss is noticed by its values
        x, y = targets()
        with pytest.raises(ValueError, match="other loss"):
            curvature.minimize_gradient(
                lambda network: F.mse_loss(network(x), 2 * y), small(), steps=12, lr=0.01, checkpoint=tmp_path / "c"
            )


BASE = {
    "epochs": 2, "batch_size": 8, "lr": 0.1, "momentum": 0.5, "weight_decay": 0.0, "nesterov": False, "schedule": None,
    "step_size": 10, "gamma": 0.1, "loss": "cross_entropy", "seed": 0, "evaluate_every": 1, "progress": False,
}  # fmt: skip
CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 3}, "epochs 2, now 3"),
    ({"batch_size": 4}, "batch size 8, now 4"),
    ({"lr": 0.2}, r"lr \[0\.1, 0\.1, 0\.1, 0\.1, 0\.1\], now \[0\.2, "),
    ({"lr": [0.1, 0.1, 0.1, 0.1, 0.10000000000000002]}, "lr"),
    ({"momentum": 0.4}, r"momentum \[0\.5, .*now \[0\.4"),
    ({"weight_decay": 0.1}, "weight decay"),
    ({"nesterov": True}, "nesterov False, now True"),
    ({"schedule": "step"}, "schedule None, now step"),
    ({"step_size": 5}, "step size 10, now 5"),
    ({"gamma": 0.5}, r"gamma 0\.1, now 0\.5"),
    ({"loss": "mse"}, "loss cross_entropy, now mse"),
    ({"seed": 1}, r"seed \[0, .*now \[1"),
    ({"seed": range(K)}, "own batches False, now True"),
    ({"evaluate_every": 2}, "evaluate every 1, now 2"),
    ({"layer_lr": {"1": 0.2}}, "layer lr"),
    ({"labels": LABELS}, "other labels"),
    ({"chunk": 2}, "chunk 5, now 2"),
    ({"optimizer": "adam", "momentum": 0.0}, "optimizer sgd, now adam"),
    ({"on_epoch": training.Snapshots(2)}, "other on epoch"),
    ({"dataset": points(1)}, "other train data"),
    ({"dataset": (points()[0], 2 - points()[1])}, "other train data"),
    ({"models": [models.mlp((4, 6, 3), "tanh", seed=s + 1) for s in range(K)]}, "other initial weights"),
    ({"models": [models.mlp((4, 6, 3), "relu", seed=s) for s in range(K)]}, "other networks"),
    ({"models": mlps()[:3]}, "rows"),
]


def fit(path: Path | None, **changes: Any) -> None:
    options = {"models": mlps(), "dataset": points()} | BASE | changes
    networks = copy.deepcopy(options.pop("models"))
    training.fit(networks, options.pop("dataset"), checkpoint=path, **options)


@pytest.mark.parametrize(("change", "named"), CHANGES, ids=[named for _, named in CHANGES])
def test_a_file_of_other_settings_is_refused_by_name(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = tmp_path / "fit.checkpoint"
    fit(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"fit.checkpoint belongs to another computation: .*{named}.*delete it"):
        fit(path, **change)
    assert path.read_bytes() == before


def test_every_setting_has_a_file_of_its_own_in_a_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(checkpoint.FOLDER, str(tmp_path))
    for change, _ in [({}, ""), *CHANGES]:
        fit(None, **change)
    assert len(list(tmp_path.iterdir())) == len(CHANGES) + 1


def test_only_code_that_decides_the_numbers_counts(tmp_path: Path, monkeypatch) -> None:
    """Elsewhere in labutils code may change after hours of training; where numbers come from, none."""
    changed = {
        "plotting": "\n1 / 0\n",
        "training": "\ndef added():\n    return 1\n",
        "optim": "# a comment\n",
        "checkpoint": "\n_SHARE = 0.1\n",
    }
    fit(tmp_path / "c")
    edit_labutils(monkeypatch, changed)
    fit(tmp_path / "c")
    edit_labutils(monkeypatch, {"optim": "\nSGD.step = None\n"})
    with pytest.raises(ValueError, match="other code"):
        fit(tmp_path / "c")


def test_the_networks_own_code_counts(tmp_path: Path) -> None:
    def train_through(change: str) -> None:
        space = {"nn": nn, "__name__": "__main__"}
        exec(f"class Bend(nn.Module):\n    def forward(self, x):\n        return x.sin() {change}", space)
        fit(tmp_path / "c", models=[nn.Sequential(model, space["Bend"]()) for model in mlps()])

    train_through("")
    train_through("  # bends")
    with pytest.raises(ValueError, match="other networks"):
        train_through("+ 1")


def test_what_is_done_is_kept_without_its_optimizer(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "c"
    with monkeypatch.context() as patch:
        patch.setattr(training.Measurements, "__call__", lambda self, epoch, stack: 1 / (EPOCHS - epoch))
        with pytest.raises(ZeroDivisionError):
            train("adam", watch(), checkpoint=path)
    unfinished = path.stat().st_size
    train("adam", watch(), checkpoint=path)
    assert path.stat().st_size < unfinished
    written = path.read_bytes()
    train("adam", watch(), checkpoint=path)
    assert path.read_bytes() == written


def test_the_minimizers_code_counts(tmp_path: Path, monkeypatch) -> None:
    names = ("minimize_gradient", "levenberg_marquardt")
    bound = lambda name: bind(tmp_path / name, {}, lambda: {"computation": f"curvature.{name}"})  # noqa: E731
    for name in names:
        with bound(name) as saved:
            saved.keep(now=True)
    edit_labutils(monkeypatch, {"curvature": "\ndef added():\n    return 2\n"})
    for name in names:
        with bound(name):
            pass
    edit_labutils(monkeypatch, {"curvature": "".join(f"\ndef {name}():\n    return 2\n" for name in names)})
    for name in names:
        with pytest.raises(ValueError, match="other code"):
            bound(name).__enter__()
    with pytest.raises(ValueError, match=r"labutils has no curvature\.nothing"):
        bind(tmp_path / "d", {}, lambda: {"computation": "curvature.nothing"})


def edit_labutils(monkeypatch: pytest.MonkeyPatch, added: dict[str, str]) -> None:
    """Pretend that labutils was imported with more code in some modules."""
    sources = {name: source + added.get(name, "") for name, source in identity.LOADED.sources.items()}
    monkeypatch.setattr(fingerprint, "LOADED", identity.Package(sources))
    fingerprint.code_behind.cache_clear()


def test_another_version_of_torch_is_refused(tmp_path: Path, monkeypatch) -> None:
    fit(tmp_path / "c")
    monkeypatch.setattr(torch, "__version__", "1.0")
    with pytest.raises(ValueError, match=r"torch 2.*, now 1\.0"):
        fit(tmp_path / "c")


def test_dropout_draws_from_the_seed_and_not_from_the_global_state(tmp_path: Path) -> None:
    torch.manual_seed(0)
    networks = [Normalized(s) for s in range(2)]
    fit(tmp_path / "c", models=networks)
    torch.manual_seed(1)
    fit(tmp_path / "c", models=networks)
    with pytest.raises(ValueError, match="seed"):
        fit(tmp_path / "c", models=networks, seed=1)


def kept(path: Path, **values: Any) -> Checkpoint:
    return Checkpoint(path, {"steps": 3}, {"at": Values(**values)})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "sum.checkpoint"
    with kept(path, sum=torch.arange(1000)) as file:
        file.keep(now=True)
    return path


def test_damage_is_named_with_its_remedy(saved: Path) -> None:
    whole = saved.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:500] + bytes([whole[500] ^ 1]) + whole[501:], b"nothing"):
        saved.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{saved.name} is damaged.*delete it, and the computation starts over"):
            kept(saved).__enter__()
        assert saved.read_bytes() == damaged


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch broken-in",)


def disguise(path: Path, content: bytes, version: int = 2) -> None:
    """Write a file whose checksum is right."""
    path.write_bytes(f"labutils checkpoint {version} {hashlib.sha256(content).hexdigest()}\n".encode() + content)


def test_a_file_cannot_bring_code_and_another_format_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, buffer = tmp_path / "hostile", io.BytesIO()
    torch.save({"settings": {"steps": 3}, "state": {"at": Hostile()}}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(Hostile()), b"", b"text"):
        disguise(path, content)
        with pytest.raises(ValueError, match="holds something else than a checkpoint of labutils"):
            kept(path).__enter__()
    assert not (tmp_path / "broken-in").exists()
    disguise(tmp_path / "new", b"", version=1)
    with pytest.raises(ValueError, match="format 1; this version of labutils reads 2"):
        kept(tmp_path / "new").__enter__()


def test_a_half_written_file_is_ignored_and_cleaned(saved: Path) -> None:
    leftover = saved.with_name(f".{saved.name}.tmp")
    leftover.write_bytes(saved.read_bytes()[:100])
    at = Values(sum=None)
    with Checkpoint(saved, {"steps": 3}, {"at": at}):
        assert torch.equal(at.sum, torch.arange(1000))
    assert not leftover.exists()


def test_a_failed_save_leaves_the_last_one(saved: Path, monkeypatch) -> None:
    before = saved.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("no space")

    with kept(saved, sum=0) as file:
        file._parts["at"].sum = 1
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="no space"):
            file.keep()
    assert saved.read_bytes() == before


def test_saves_are_apart_and_take_at_most_a_twentieth_of_the_time(tmp_path: Path, monkeypatch) -> None:
    now, cost, writes = 0.0, 0.1, []
    monkeypatch.setattr(checkpoint.time, "perf_counter", lambda: now)
    monkeypatch.setenv(checkpoint.SECONDS, "30")

    def write(*_: Any) -> None:
        nonlocal now
        writes.append(now)
        now += cost

    def keep_at(*times: float) -> None:
        nonlocal now
        for time_ in times:
            now = time_
            file.keep()

    monkeypatch.setattr(Checkpoint, "_write", write)
    file = kept(tmp_path / "c")
    keep_at(0, 29, 30, 31, 60, 60.2, 61)
    assert writes == [30, 60.2]
    cost = 10
    keep_at(100, 200, 309, 310)
    assert writes[2:] == [100, 310]


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_bad_interval_is_named(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(checkpoint.SECONDS, text)
    with pytest.raises(ValueError, match=f"{checkpoint.SECONDS} = '{text}'"):
        kept(tmp_path / "c")
