"""Measure what a run takes, for notebooks/costs.yaml: time with one thread, and the peak memory of its processes.

    python tools/measure_costs.py 21:d1-sinc                         to its end
    python tools/measure_costs.py 31:d2-cifar --seconds 120          its memory so far, after two minutes
    python tools/measure_costs.py 22:d2-cifar -p epochs '{d2-cifar: 1}'
    python tools/measure_costs.py --probes                           the probes of the reference machine

Results go to a temporary folder. A machine with nothing else to do gives the best numbers.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time

import psutil

from labs import cost

SECONDS_BETWEEN_LOOKS = 0.25


def measure(words: list[str], limit: float) -> dict[str, float | str]:
    """Run `labs run` with these words and look at its processes again and again.

    Args:
        words: what follows `labs run`.
        limit: seconds after which the run is ended.

    Returns:
        The run's seconds, the peak of its processes' resident memory in MiB, and how it ended.
    """
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "labs.cli", "run", *words, "--jobs", "1", "--out", out]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started, peak = time.monotonic(), 0.0
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as labs:
            ended = "to its end"
            while labs.poll() is None:
                peak = max(peak, resident(labs.pid))
                if time.monotonic() - started > limit and ended == "to its end":
                    ended = f"stopped after {limit:g} s"
                    labs.terminate()
                time.sleep(SECONDS_BETWEEN_LOOKS)
    if labs.returncode and ended == "to its end":
        sys.exit(f"labs run {' '.join(words)} ended with code {labs.returncode}")
    return {"seconds": round(time.monotonic() - started, 1), "memory": round(peak / 2**20), "how": ended}


def resident(pid: int) -> float:
    """The resident memory of all processes below one, in bytes."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


def main() -> None:
    """Read the command line and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="NOTEBOOK:RUN, as for labs run")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="end the run after so long")
    parser.add_argument("--probes", action="store_true", help="time the probes instead")
    given = parser.parse_args()
    if given.probes:
        print(json.dumps(cost.calibrate()))
    elif given.name:
        changes = [word for pair in given.p for word in ("-p", *pair)]
        print(json.dumps({"run": given.name, **measure([given.name, *changes], given.seconds)}))
    else:
        parser.error("name a run, or say --probes")


if __name__ == "__main__":
    main()
