"""What runs cost in time and memory: known before they start, and better the longer they are at work.

``notebooks/costs.yaml`` says what each named run takes on one core of a reference machine, and how long a few short
probes took there, one for each kind of work. The same probes on this machine tell how much faster or slower it is.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import psutil
import yaml

from labs import freshness, runner
from labs.jupyter import THREAD_VARIABLES
from labs.runner import QUICK, Event, LabsError, Project, Run

KINDS = ("stacked", "dense", "convolution", "float64")
# By which factor an estimate may be wrong, in both directions.
SPREAD = {"measured": 1.5, "estimated": 2.0, "run before": 1.5, "typical": 2.0, "as": 4.0}
MEMORY_OF_UNKNOWN = 1024.0  # MiB
SHARE_OF_MEMORY = 0.9  # the rest is for whatever else goes on


@dataclass(frozen=True)
class Entry:
    """What a run takes on one core of the reference machine.

    Attributes:
        seconds: wall time with one thread.
        memory: the largest memory of its processes together, in MiB.
        kind: what it spends its time with: "stacked" (many small networks at once), "dense" (wide layers),
            "convolution" or "float64" (linear algebra in double precision).
        basis: "measured" or "estimated".
        how: how the numbers come about.
    """

    seconds: float
    memory: float
    kind: str
    basis: Literal["measured", "estimated"]
    how: str = ""


@dataclass(frozen=True)
class Costs:
    """What ``costs.yaml`` says.

    Attributes:
        machine: the reference machine, in words.
        probes: kind of work to the seconds that its probe took there.
        quick: what a quick run takes if nothing more is known.
        runs: notebook and run to its entry.
    """

    machine: str = ""
    probes: dict[str, float] = field(default_factory=dict)
    quick: Entry | None = None
    runs: dict[tuple[str, str], Entry] = field(default_factory=dict)


@dataclass(frozen=True)
class Estimate:
    """What a run takes here.

    Attributes:
        seconds: with one thread; None where nothing is known.
        memory: in MiB.
        basis: where it is from: "measured" or "estimated" on the reference machine, "run before" on this one,
            "typical" of a quick run, "as RUN" for a run with other values, or "unknown".
    """

    seconds: float | None
    memory: float
    basis: str

    @property
    def spread(self) -> float:
        """The factor by which the time may be wrong."""
        return SPREAD.get(self.basis.partition(" ")[0], SPREAD.get(self.basis, 1.0))


def read_costs(project: Project) -> Costs:
    """Read ``notebooks/costs.yaml``; a lab without it has no costs.

    Raises:
        LabsError: it is not what `Costs` describes.
    """
    path = project.notebooks / "costs.yaml"
    if not path.is_file():
        return Costs()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        reference = found["reference"]
        probes = {kind: float(reference["probes"][kind]) for kind in KINDS}
        runs = {
            (notebook, run): _read_entry(values, f"{notebook}:{run}")
            for notebook, entries in found["runs"].items()
            for run, values in entries.items()
        }
        return Costs(str(reference["machine"]), probes, _read_entry(found["quick"], QUICK), runs)
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise LabsError(f"{path}: {type(error).__name__}: {reason}; see labs.cost for what it holds") from None


def _read_entry(values: Mapping[str, Any], label: str) -> Entry:
    entry = Entry(**values)
    if entry.kind not in KINDS:
        raise ValueError(f"{label}: kind {entry.kind!r} is none of {', '.join(KINDS)}")
    if entry.basis not in ("measured", "estimated"):
        raise ValueError(f"{label}: basis {entry.basis!r} is neither measured nor estimated")
    if not (entry.seconds > 0 and entry.memory > 0):
        raise ValueError(f"{label}: seconds {entry.seconds} and memory {entry.memory} must be positive")
    return entry


def estimate(costs: Costs, run: Run, slowness: Mapping[str, float], before: float | None = None) -> Estimate:
    """What a run takes here with one thread.

    Args:
        slowness: kind of work to how many times longer it takes here than on the reference machine; without one of
            its kind, the reference machine's time counts.
        before: for a quick run: how long it took on this machine, in seconds.
    """
    base, other, _ = run.name.partition("-custom-")
    entry = costs.quick if base == QUICK else costs.runs.get((run.notebook.name, base))
    if entry is None:
        return Estimate(before, MEMORY_OF_UNKNOWN, "unknown" if before is None else "run before")
    if before is not None and run.name == QUICK:
        return Estimate(before, entry.memory, "run before")
    basis = f"as {base}" if other else "typical" if base == QUICK else entry.basis
    return Estimate(entry.seconds * slowness.get(entry.kind, 1.0), entry.memory, basis)


def estimates(
    project: Project, runs: Sequence[Run], out: Path, calibrated: bool = True
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """What runs take here, from ``costs.yaml`` and a calibration of a few seconds where a named run needs it.

    Args:
        out: the folder of the results, which tell how long a quick run took before.
        calibrated: False leaves the calibration out: times are then those of the reference machine.

    Returns:
        Label to estimate, and the calibration: kind of work to how many times longer it takes here than on the
        reference machine (empty where nothing was calibrated).
    """
    costs = read_costs(project)
    known = any((run.notebook.name, run.name.partition("-custom-")[0]) in costs.runs for run in runs)
    slowness = {}
    if calibrated and known:
        slowness = {kind: here / costs.probes[kind] for kind, here in calibrate().items()}
    found = {}
    for run in runs:
        before = freshness.status(project, run, out).seconds if run.name == QUICK else None
        found[run.label] = estimate(costs, run, slowness, before)
    return found, slowness


# --- How many at once, and when all are done ---------------------------------------------------------------------


def room(needs: Iterable[float], jobs: int | None = None, memory: float | None = None) -> int:
    """How many runs at once: no more than cores, than asked for, and than memory holds even of the largest.

    Args:
        needs: the memory of each run, in MiB.
        jobs: the most that the user wants.
        memory: what there is, in MiB; by default what is available on this machine now.

    Example:
        >>> room([500, 500, 3000], memory=3600)
        1
    """
    needs = sorted(needs, reverse=True)
    if memory is None:
        memory = psutil.virtual_memory().available / 2**20
    fits = sum(total <= SHARE_OF_MEMORY * memory for total in accumulate(needs))
    return max(1, min(len(needs), fits, runner.count_cores(), jobs or len(needs)))


def wall_seconds(queue: Iterable[float], slots: int, busy: Iterable[float] = ()) -> float:
    """When the last of many runs is done, if each begins as soon as there is room.

    Args:
        queue: seconds of the runs to come, in their order.
        slots: how many at once.
        busy: seconds left of those at work.

    Example:
        >>> wall_seconds([30, 20, 10], slots=2)
        30.0
    """
    free = [*map(float, busy)]
    free += [0.0] * (slots - len(free))
    heapq.heapify(free)
    end = max(free, default=0.0)
    for seconds in queue:
        done = heapq.heappop(free) + seconds
        end = max(end, done)
        heapq.heappush(free, done)
    return end


class Forecast:
    """How much time is left, by estimates that what is observed corrects.

    Args:
        estimates: label to estimated seconds, in the order in which the runs begin; None where nothing is known.
        slots: how many runs at once, as far as known; more are counted when more are seen at work.
        resumed: labels of runs that go on from a checkpoint: how long they take says nothing of the others.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        estimates: Mapping[str, float | None],
        slots: int = 1,
        resumed: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._estimates = dict(estimates)
        self._slots = slots
        self._resumed = set(resumed)
        self._clock = clock
        self._began: dict[str, float] = {}
        self._over: set[str] = set()
        self._ratios: list[float] = []

    def hear(self, event: Event) -> None:
        """Take an event of `runner.execute` into account."""
        label, estimated = event.run.label, self._estimates.get(event.run.label)
        if event.kind == "started":
            self._began.setdefault(label, self._clock() - event.seconds)
            self._slots = max(self._slots, len(self._began))
        elif event.kind in ("done", "failed", "fresh"):
            self._began.pop(label, None)
            self._over.add(label)
            if event.kind == "done" and estimated and event.seconds and label not in self._resumed:
                self._ratios.append(event.seconds / estimated)

    def __len__(self) -> int:
        return len(self._estimates)

    @property
    def correction(self) -> float:
        """By what factor runs take longer than estimated: the geometric mean of those done, and of 1 for caution."""
        return math.exp(sum(map(math.log, self._ratios)) / (len(self._ratios) + 1))

    def left(self, label: str) -> float | None:
        """Seconds left for a run at work or to come; None where nothing is known.

        A run that takes longer than estimated is taken to need a tenth of its time yet.
        """
        estimated = self._estimates.get(label)
        if estimated is None or label in self._over:
            return None
        whole = estimated * self.correction
        if label not in self._began:
            return whole
        spent = self._clock() - self._began[label]
        return max(whole - spent, spent / 10)

    def total_left(self) -> float | None:
        """Seconds until all are done; None where nothing is known of one of them."""
        open_runs = [label for label in self._estimates if label not in self._over]
        left = {label: self.left(label) for label in open_runs}
        if any(seconds is None for seconds in left.values()):
            return None
        known = {label: seconds for label, seconds in left.items() if seconds is not None}
        busy = [seconds for label, seconds in known.items() if label in self._began]
        return wall_seconds((s for label, s in known.items() if label not in self._began), self._slots, busy)


# --- How fast this machine is ------------------------------------------------------------------------------------


def calibrate() -> dict[str, float]:
    """Seconds that the probe of each kind of work takes on this machine with one thread; a few seconds in all.

    Raises:
        LabsError: the process of the probes failed.
    """
    # In a process of its own: it computes with one thread, and the caller need not keep torch in its memory.
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1"), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-P", "-m", "labs.cost"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabsError(f"calibration failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    return {str(kind): float(seconds) for kind, seconds in json.loads(done.stdout).items()}


def measure_probes(repeats: int = 5) -> dict[str, float]:
    """Time the probe of each kind of work in this process: the shortest of several repeats.

    Args:
        repeats: how many.

    Returns:
        Kind of work to seconds.
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    def train(forward: Callable[[], torch.Tensor], weights: list[torch.Tensor], steps: int) -> None:
        for _ in range(steps):
            for weight, gradient in zip(weights, torch.autograd.grad(forward(), weights), strict=True):
                weight.data.sub_(gradient, alpha=1e-4)

    def stacked() -> None:  # 16 networks of five narrow layers on 300 points
        x = random(16, 300, 10)
        weights = [(random(16, 10, 10) / 4).requires_grad_() for _ in range(5)]

        def forward() -> torch.Tensor:
            hidden = x
            for weight in weights:
                hidden = torch.baddbmm(weight[:, :1], hidden, weight).relu()
            return hidden.square().mean()

        train(forward, weights, 100)

    def dense() -> None:  # 784-1000-10 on batches of 200
        x = random(200, 784)
        weights = [(random(784, 1000) / 28).requires_grad_(), (random(1000, 10) / 32).requires_grad_()]
        train(lambda: ((x @ weights[0]).relu() @ weights[1]).square().mean(), weights, 25)

    def convolution() -> None:  # two layers on 64 color pictures
        x = random(64, 3, 32, 32)
        weights = [nn.Parameter(random(16, 3, 3, 3) / 5), nn.Parameter(random(32, 16, 3, 3) / 12)]

        def forward() -> torch.Tensor:
            hidden = F.max_pool2d(F.conv2d(x, weights[0], padding=1).relu(), 2)
            return F.conv2d(hidden, weights[1], padding=1).relu().square().mean()

        train(forward, list(weights), 8)

    def float64() -> None:  # least squares and eigenvalues of 400 unknowns
        jacobian = random(500, 400, dtype=torch.float64)
        gram = jacobian.T @ jacobian
        for _ in range(3):
            torch.linalg.eigvalsh(gram)
            torch.linalg.solve(gram, jacobian.T)

    def seconds(probe: Callable[[], None]) -> float:
        probe()
        found = []
        for _ in range(repeats):
            started = time.process_time()  # what a core without other work would take
            probe()
            found.append(time.process_time() - started)
        return min(found)

    return {probe.__name__: round(seconds(probe), 4) for probe in (stacked, dense, convolution, float64)}


if __name__ == "__main__":
    print(json.dumps(measure_probes()))
