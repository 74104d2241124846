"""Timings as ratios, each pair measured side by side in one run: `make bench`.

Absolute times belong to one machine on one day. A ratio of two things that took turns in the same minute says more,
and it is what the goals are stated in.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Row:
    """One line of the table: a measured ratio and its goal.

    Attributes:
        name: what is compared with what.
        ratio: what the other takes over what ours takes, so that more is better; seconds where it was measured
            against the clock.
        target: the goal.
        at_least: True if it should be `target` or more, as every ratio; False if `target` or less, as seconds.
        note: what was run, with sizes.
        against: what stands beside it: "peer" (other code for the same thing), "limit" (the plain arithmetic or
            memory of the task, with nothing around it) or "clock" (a goal in seconds).
    """

    name: str
    ratio: float
    target: float
    at_least: bool
    note: str
    against: Literal["peer", "limit", "clock"] = "peer"

    @property
    def reached(self) -> bool:
        """Whether the goal is met."""
        return self.ratio >= self.target if self.at_least else self.ratio <= self.target


def side_by_side(a: Callable[[], object], b: Callable[[], object], *, rounds: int = 9) -> float:
    """Return the median over rounds of time(a) / time(b), the two taking turns after a warm-up of each.

    Neighbors in time share what the machine does besides, so that the ratio is steadier than either time.
    """
    a(), b()
    ratios = []
    enabled = gc.isenabled()
    gc.disable()
    try:
        for i in range(rounds):
            pair = (a, b) if i % 2 == 0 else (b, a)
            times = [seconds(call) for call in pair]
            ratios.append(times[0] / times[1] if i % 2 == 0 else times[1] / times[0])
    finally:
        if enabled:
            gc.enable()
    return statistics.median(ratios)


def seconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
