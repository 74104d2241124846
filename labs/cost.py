"""What runs take in time and memory: known before they start, and better the longer they are at work.

Times come from this machine's own results, else from the published ones in ``book/results``, else from
``notebooks/costs.yaml``. They are those of one thread. What a GPU took says nothing of a processor, and the other way
round: a time counts for runs on the same of the two.
"""

from __future__ import annotations

import heapq
import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import psutil
import yaml

from labs import freshness, runner
from labs.runner import Event, LabsError, Project, Run

MEMORY_OF_UNKNOWN = 1024.0  # MiB
SHARE_OF_MEMORY = 0.9  # the rest is for whatever else goes on


@dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    seconds: float | None  # with one thread; None where nothing is known
    memory: float  # in MiB
    basis: str  # "run before" here, "published" or "estimated" elsewhere, "as RUN" with other values, or "unknown"


def estimates(project: Project, runs: Sequence[Run], out: Path) -> dict[str, Estimate]:
    """What runs take: label to estimate.

    Args:
        out: the folder of the results, which tell how long a run took before.

    Raises:
        LabsError: ``costs.yaml`` is not readable.
    """
    table = read_costs(project)
    return {run.label: _estimate(project, run, out, table) for run in runs}


def read_costs(project: Project) -> dict[str, Estimate]:
    """Read ``notebooks/costs.yaml``, which has seconds and MiB by notebook and run; a lab without it has no costs.

    Raises:
        LabsError: it is not of that form.
    """
    path = project.notebooks / "costs.yaml"
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return {
            f"{notebook}:{run}": Estimate(float(seconds), float(memory), "estimated")
            for notebook, entries in found.items()
            for run, (seconds, memory) in entries.items()
        }
    except (yaml.YAMLError, TypeError, ValueError, AttributeError) as error:
        raise LabsError(
            f"{path}: expected {{notebook: {{run: [seconds, MiB]}}}}: {' '.join(str(error).split())}"
        ) from None


def _estimate(project: Project, run: Run, out: Path, table: Mapping[str, Estimate]) -> Estimate:
    base, other, _ = run.name.partition("-custom-")
    label = f"{run.notebook.name}:{base}"
    known = table.get(label) or table.get(f"any:{base}") or Estimate(None, MEMORY_OF_UNKNOWN, "unknown")
    on_gpu = run.all_parameters.get("device") == "cuda"
    record = freshness.read_record(run.folder(out))
    if record and record["status"] == "done" and (record.get("device") == "cuda") == on_gpu:
        return Estimate(record["seconds"], known.memory, "run before")
    path = project.root / "book" / "results" / run.notebook.name / base / "metrics.json"
    if published := _published(path, on_gpu):
        known = Estimate(published[0], published[1] or known.memory, "published")
    return Estimate(known.seconds, known.memory, f"as {base}") if other and known.seconds else known


def _published(path: Path, on_gpu: bool) -> tuple[float, float | None] | None:
    """The seconds and MiB of a published run, if it ran on a GPU or not as this one will."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        took, provenance = metrics["time"], metrics["provenance"]
        if bool(provenance.get("accelerator")) != on_gpu:
            return None
        return took["wall_seconds"] * provenance["threads"], took.get("peak_memory_mib")
    except (OSError, ValueError, KeyError, TypeError):
        return None


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
        from distributed.system import MEMORY_LIMIT  # that of a container, if there is one

        memory = min(psutil.virtual_memory().available, MEMORY_LIMIT) / 2**20
    fits = sum(total <= SHARE_OF_MEMORY * memory for total in accumulate(needs))
    return max(1, min(len(needs), fits, runner.count_cores(), jobs or len(needs)))


def wall_seconds(queue: Iterable[float], slots: int, busy: Iterable[float] = ()) -> float:
    """When the last of many runs is done, if each begins as soon as one of the slots is free.

    Args:
        queue: seconds of the runs to come, in their order.
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
    """

    def __init__(
        self,
        estimates: Mapping[str, float | None],
        slots: int = 1,
        resumed: Iterable[str] = (),
    ) -> None:
        self._estimates = dict(estimates)
        self._slots = slots
        self._resumed = set(resumed)
        self._began: dict[str, float] = {}
        self._over: set[str] = set()
        self._ratios: list[float] = []

    def hear(self, event: Event) -> None:
        """Take an event of `runner.execute` into account."""
        label, estimated = event.run.label, self._estimates.get(event.run.label)
        if event.kind == "started":
            self._began.setdefault(label, time.monotonic() - event.seconds)
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
        spent = time.monotonic() - self._began[label]
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
