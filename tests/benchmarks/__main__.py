"""Run the benchmarks, print the table, and keep it as Markdown and JSON; words select parts.

Exit code: 0 where every goal is reached, 1 where one is missed or a part failed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pkgutil
import platform
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from tests.benchmarks import Row

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "_build" / "bench"
PUBLISHED = ROOT / "book" / "results" / "benchmarks.json"
PACKAGES = ("labutils", "torch", "torchvision", "numpy", "scipy", "numba", "jax", "ckatorch", "torch-cka")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected parts one after another; a part that fails does not stop the others."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("select", nargs="*", help="parts of module names, such as 'training'; none runs all")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of benchmarks.md and benchmarks.json")
    parser.add_argument("--publish", action="store_true", help="keep the whole table for the book, too")
    chosen = parser.parse_args(arguments)
    parts = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name.startswith("bench_")]
    selected = [name for name in parts if not chosen.select or any(part in name for part in chosen.select)]
    if not selected:
        parser.error(f"nothing is called {chosen.select}; there are {', '.join(parts)}")
    if chosen.publish and (len(selected) < len(parts) or _missing_peers()):
        parser.error("--publish wants all parts and all peers: pip install -e '.[bench]', and select none")

    kept: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "rows": [],
        "failed": {},
    }
    print("\n".join(heading(kept)), flush=True)
    for part in selected:
        try:
            for row in importlib.import_module(f"tests.benchmarks.{part}").rows():
                kept["rows"].append({"part": part.removeprefix("bench_"), **entry(row)})
                print(line(kept["rows"][-1]), flush=True)
        except Exception as error:  # whatever it is, the other parts have something to say
            traceback.print_exc()
            kept["failed"][part.removeprefix("bench_")] = f"{type(error).__name__}: {error}"
    print("\n" + verdict(kept))
    write(kept, chosen.out)
    print(f"kept in {chosen.out / 'benchmarks.md'} and benchmarks.json")
    if chosen.publish and not kept["failed"]:
        PUBLISHED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"published as {PUBLISHED.relative_to(ROOT)}")
    return 0 if all(row["reached"] for row in kept["rows"]) and not kept["failed"] else 1


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    names = [line.partition(":")[2].strip() for line in _cpu_info() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "load_before": round(psutil.getloadavg()[0], 2),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the packages compared."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # a peer that is not installed
            continue
    return found


def entry(row: Row) -> dict[str, Any]:
    """A row as benchmarks.json holds it; four digits are more than a timing can promise."""
    return asdict(row) | {"ratio": float(f"{row.ratio:.4g}"), "reached": row.reached}


def heading(kept: dict[str, Any]) -> list[str]:
    """What stands above the table."""
    about = kept["machine"]
    return [
        "# Benchmarks",
        "",
        f"- Date: {kept['date']}",
        f"- Machine: {about['cpu']}, {about['cores']} cores, {about['memory_gib']:g} GiB, {about['system']}",
        f"- Threads: {about['threads']}; load before the run: {about['load_before']:g}",
        "- Versions: " + ", ".join(f"{name} {version}" for name, version in kept["versions"].items()),
        "",
        "| Part | Comparison | Against | Measured | Goal | |",
        "|---|---|---|---|---|---|",
    ]


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    unit = " s" if row["against"] == "clock" else ""
    goal = f"{'≥' if row['at_least'] else '≤'} {row['target']:g}{unit}"
    reached = "reached" if row["reached"] else "**MISSED**"
    what = f"{row['name']} ({row['note']})"
    return f"| {row['part']} | {what} | {row['against']} | {row['ratio']:.2f}{unit} | {goal} | {reached} |"


def verdict(kept: dict[str, Any]) -> str:
    """How many goals were reached, and what failed."""
    rows = kept["rows"]
    failed = "".join(f"\n{part} failed: {error}" for part, error in kept["failed"].items())
    return f"{sum(row['reached'] for row in rows)} of {len(rows)} goals reached{failed}"


def write(kept: dict[str, Any], out: Path) -> None:
    """Write benchmarks.md and benchmarks.json."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "benchmarks.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = "\n".join([*heading(kept), *map(line, kept["rows"]), "", verdict(kept), ""])
    (out / "benchmarks.md").write_text(text, encoding="utf-8")


def _missing_peers() -> list[str]:
    parts = [importlib.import_module(f"tests.benchmarks.bench_{part}") for part in ("fused", "similarity")]
    peers = [name for part in parts for name in part.PEERS]
    return [name for name in peers if importlib.util.find_spec(name) is None]


def _cpu_info() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []


if __name__ == "__main__":
    sys.exit(main())
