"""Tells whether a result, or what an unfinished run left, belongs to the present code, parameters, versions and data.

A result is stamped, when it is made, with what it depends on; `status` compares the stamp with what is there now.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # runner imports this module
    from labs.runner import Project, Run

QUICK = "quick"
CHECKPOINTS = ".checkpoints"
MADE_BY = "made_by.json"


# --- Is a result fresh? ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Failure:
    """Why a run failed.

    Attributes:
        error: ``ErrorName: message``.
        cell: number of the cell in the notebook, from 1; 0 when no cell was at work.
        cells: number of cells in the notebook.
        source: the first lines of that cell.
        traceback: the last lines of the traceback.
    """

    error: str
    cell: int = 0
    cells: int = 0
    source: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Status:
    """What is known of a run's result.

    Attributes:
        state: ``done`` only where the result belongs to the present code, parameters and data.
        changed: for ``stale``: what changed since.
        seconds: how long the run took; None where there is no result.
        failure: for ``failed``.
    """

    state: Literal["not run", "done", "stale", "failed"]
    changed: tuple[str, ...] = ()
    seconds: float | None = None
    failure: Failure | None = None


def status(project: Project, run: Run, out: Path) -> Status:
    """Compare a run's result with the present code, notebook, parameters, library versions and data.

    Args:
        out: the folder of the results.
    """
    folder = run.folder(out)
    record = read_record(folder)
    if record is None:
        return Status("not run")
    if record["status"] == "failed":
        return Status("failed", seconds=record["seconds"], failure=Failure(**record["error"]))
    now = stamp(project, run)
    changed = [key for key, value in now.items() if record["stamp"].get(key) != value]
    changed += [f"data {Path(item['file']).name}" for item in record["data"] if not _same_data(item)]
    changed += [f"result {name}" for name in record["files"] if not (folder / name).is_file()]
    return Status("stale" if changed else "done", tuple(changed), record["seconds"])


def read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where it is missing or not readable, which means that nothing is known."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return (
            record if {"status", "parameters", "stamp", "data", "files", "seconds", "error"} <= record.keys() else None
        )
    except (OSError, ValueError, AttributeError):
        return None


def stamp(project: Project, run: Run) -> dict[str, str]:
    """What a result is bound to, by name."""
    return {
        "code": hash_code(project.package),
        "notebook": run.notebook.source,
        "parameters": json.dumps(run.parameters, sort_keys=True, default=str),
        "versions": json.dumps(versions(), sort_keys=True),
    }


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries on which every number depends."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in ("torch", "numpy")}


def hash_code(package: Path) -> str:
    """SHA-256 over names and contents of a package's modules."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def describe_data(folder: Path) -> list[dict[str, Any]]:
    """The files that metrics.json says the run has read, with what tells whether they change."""
    try:
        provenance = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, KeyError):
        return []
    names = {entry["file"] for entry in provenance.get("data", []) if entry.get("file")}
    return [
        {"file": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": _hash_file(Path(name))}
        for name in sorted(names)
        if (stat := _stat(name))
    ]


def _same_data(item: Mapping[str, Any]) -> bool:
    stat = _stat(item["file"])
    if stat is None and item.get("elsewhere"):  # on the disk of a worker that has read it
        return True
    if stat is None or stat.st_size != item["size"]:
        return False
    return stat.st_mtime_ns == item["mtime_ns"] or _hash_file(Path(item["file"])) == item["sha256"]


def _stat(name: str) -> os.stat_result | None:
    try:
        return Path(name).stat()
    except OSError:
        return None


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- What an unfinished run left ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkpoint:
    """What an unfinished run left to go on from.

    Attributes:
        folder: where the checkpoints lie.
        changed: what changed since they were made; the run goes on only where this is empty.
        threads: how many threads it computed with: more or fewer give other last digits.
        saved: time of the last one, in seconds since the epoch; None where the run saved none.
    """

    folder: Path
    changed: tuple[str, ...]
    threads: int | None
    saved: float | None


def checkpoint(project: Project, run: Run, out: Path) -> Checkpoint | None:
    """What an earlier try of a run left; None where there is nothing.

    Args:
        out: the folder of the results.
    """
    if (folder := checkpoint_folder(run, out)) is None or not folder.is_dir():
        return None
    times = [path.stat().st_mtime for path in folder.rglob("*") if path.is_file() and path.name != MADE_BY]
    try:
        made_by = json.loads((folder / MADE_BY).read_text(encoding="utf-8"))
        changed = [key for key, value in maker(project, run).items() if made_by.get(key) != value]
        changed += [f"data {Path(item['file']).name}" for item in made_by["data"] if not _same_data(item)]
        threads = made_by["threads"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        changed, threads = [MADE_BY], None
    return Checkpoint(folder, tuple(changed), threads, max(times, default=None))


def checkpoint_folder(run: Run, out: Path) -> Path | None:
    """Where the trainings of a run keep their checkpoints; a quick run is over before it would need any."""
    return None if run.name == QUICK else out / run.notebook.name / f".{run.name}{CHECKPOINTS}"


def maker(project: Project, run: Run) -> dict[str, Any]:
    """What checkpoints are bound to: what a result is, and the device, whose arithmetic has last digits of its own."""
    return {**stamp(project, run), "device": (run.notebook.defaults | run.all_parameters).get("device")}
