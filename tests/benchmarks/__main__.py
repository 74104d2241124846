"""Run every benchmark of this folder and print the table; `--json FILE` keeps it, a word selects modules."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import platform
from dataclasses import asdict
from pathlib import Path

import torch

from tests.benchmarks import Row


def main() -> None:
    """Run the selected modules one after another."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("select", nargs="*", help="parts of module names, such as 'training'; none runs all")
    parser.add_argument("--json", type=Path, default=Path("results/benchmarks.json"), help="where to keep the table")
    arguments = parser.parse_args()
    found = [m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]) if m.name.startswith("bench_")]
    chosen = [name for name in found if not arguments.select or any(part in name for part in arguments.select)]
    if not chosen:
        parser.error(f"nothing is called {arguments.select}; there are {', '.join(found)}")
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(f"Machine: {machine}\n\n| comparison | ratio | goal | |\n|---|---|---|---|")
    rows: list[Row] = []
    for name in chosen:
        for row in importlib.import_module(f"tests.benchmarks.{name}").rows():
            rows.append(row)
            goal = f"{'≥' if row.at_least else '≤'} {row.target:g}"
            verdict = "reached" if row.reached else "MISSED"
            print(f"| {row.name} ({row.note}) | {row.ratio:.2f} | {goal} | {verdict} |", flush=True)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    table = {"machine": machine, "rows": [asdict(row) | {"reached": row.reached} for row in rows]}
    arguments.json.write_text(json.dumps(table, indent=2) + "\n")
    missed = [row.name for row in rows if not row.reached]
    print(f"\n{len(rows) - len(missed)} of {len(rows)} goals reached; kept in {arguments.json}")


if __name__ == "__main__":
    main()
