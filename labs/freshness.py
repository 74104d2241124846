"""Tells whether a result belongs to the present code, parameters, versions and data; keeps results and checkpoints.

A result is stamped, when it is made, with what it depends on; `status` compares the stamp with what is there now:
parameters, data, versions of packages, the device where one is asked for, the notebook's code cells, and the code of
labutils that these reach (see `labutils.identity`), without comments and docstrings. Exercises do not count, unless a
later cell uses what they define.

Checkpoints (see `labutils.checkpoint`) are bound to what their training reads, not to the notebook: they stay in a
hidden folder beside the result, so that a run that is repeated for another figure trains nothing again. A run that is
done keeps those that it used, at most `LARGEST_KEPT` bytes of them, for `DAYS_KEPT` days.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import filelock

import labutils
from labutils import identity
from labutils.files import hash_file, write_atomically

if TYPE_CHECKING:  # these import this module
    from labs.jupyter import Outcome
    from labs.runner import Project, Run

QUICK = "quick"
CHECKPOINTS = ".checkpoints"
MADE_BY = "made_by.json"
LARGEST_KEPT = 2**30
DAYS_KEPT = 30
_SHOWS_OTHERS = "published"  # the module of labutils that shows the source runs
_NAMED = 2  # changed parts of labutils that are told by name


@dataclass(frozen=True)
class Failure:
    """Why a run failed."""

    error: str  # "ErrorName: message"
    cell: int = 0  # its number in the notebook, from 1; 0 when no cell was at work
    cells: int = 0  # how many the notebook has
    source: str = ""  # its first lines
    traceback: str = ""  # the last lines


@dataclass(frozen=True)
class Status:
    """What is known of a run's result.

    Attributes:
        changed: for "stale": what changed since: "code …" with names of labutils, "notebook", "parameters", "versions",
            "device", "exercise", "data …" and "result …" with names of files.
        seconds: how long the run took; None where there is no result.
        open: in a release, the exercises that were not solved.
    """

    state: Literal["not run", "done", "stale", "failed"]
    changed: tuple[str, ...] = ()
    seconds: float | None = None
    failure: Failure | None = None
    open: tuple[str, ...] = ()


def status(project: Project, run: Run, out: Path) -> Status:
    """Compare a run's result in the folder `out` with what it depends on, as that is now."""
    folder = run.folder(out)
    restore(folder)
    record = read_record(folder)
    if record is None:
        return Status("not run")
    if record["status"] == "failed":
        return Status("failed", seconds=record["seconds"], failure=Failure(**record["error"]))
    before, now = record["stamp"], _outside(project, run)
    if before.get("sources") != now["sources"]:
        now |= _inside(project, run)
    changed = _changed_code(before.get("code"), now["code"]) if "code" in now else []
    changed += [key for key in ("notebook", "parameters", "versions") if key in now and before.get(key) != now[key]]
    if before.get("device") != now["device"] and (run.device or not record.get("device")):
        changed.append("device")
    changed += [f"data {Path(item['file']).name}" for item in record["data"] if not _same_data(item)]
    changed += [f"result {name}" for name in record["files"] if not (folder / name).is_file()]
    unsolved = tuple(record.get("open", ()))
    if unsolved and record["exercises"] != _hash_exercises(run.notebook.path):
        changed.append("exercise")
    return Status("stale" if changed else "done", tuple(changed), record["seconds"], open=unsolved)


# --- What a result depends on ------------------------------------------------------------------------------------


def stamp(project: Project, run: Run) -> dict[str, Any]:
    """Return what a result that is made now depends on, by name."""
    return _outside(project, run) | _inside(project, run)


def _outside(project: Project, run: Run) -> dict[str, Any]:
    """All but the code, which takes longer to read; "sources" tells whether a single byte of it changed."""
    parameters = run.notebook.defaults | run.all_parameters
    device = parameters.pop("device", None)
    sources = [hash_code(project.package), [source for source, _ in _code_cells(run.notebook.path)]]
    return {
        "parameters": json.dumps(parameters, sort_keys=True, default=str),
        "device": device,
        "versions": identity.versions(),
        "sources": identity.digest(json.dumps(sources)),
    }


def _inside(project: Project, run: Run) -> dict[str, Any]:
    cells = _counted(_code_cells(run.notebook.path))
    package = _read_package(project.package, hash_code(project.package))
    code = package.reached("\n".join(source for source, _ in cells))
    return {"notebook": identity.digest(json.dumps([_strip(*cell) for cell in cells])), "code": code}


def _code_cells(path: Path) -> list[tuple[str, bool]]:
    """The sources of a notebook's code cells but for its parameters, and whether each belongs to an exercise."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        ("".join(cell["source"]), "nbgrader" in cell["metadata"])
        for cell in cells
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])
    ]


def _hash_exercises(path: Path) -> str:
    return identity.digest(json.dumps([source for source, exercise in _code_cells(path) if exercise]))


def _counted(cells: Sequence[tuple[str, bool]]) -> list[tuple[str, ast.Module | None]]:
    """The cells without the exercises whose names no later cell uses."""
    found, used = [], set()
    for source, exercise in reversed(cells):
        tree = None
        with contextlib.suppress(SyntaxError):  # a magic, or half of an exercise
            tree = ast.parse(source)
        nodes = list(ast.walk(tree)) if tree else []
        bound = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        bound |= {getattr(node, "name", None) for node in nodes}
        if not exercise or bound & used:
            used |= {node.id for node in nodes if isinstance(node, ast.Name)}
            found.insert(0, (source, tree))
    return found


def _strip(source: str, tree: ast.Module | None) -> str:
    return identity.strip(tree) if tree else source


@functools.lru_cache(maxsize=4)
def _read_package(folder: Path, _version: str) -> identity.Package:
    package = identity.Package.read(folder)
    # What other runs found stands beside a result, which it does not change.
    return identity.Package(package.sources | {_SHOWS_OTHERS: ""}, package.name)


def hash_code(package: Path) -> str:
    """SHA-256 over names and contents of a package's modules, comments and docstrings included."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _changed_code(before: Any, now: Mapping[str, str]) -> list[str]:
    if not isinstance(before, dict):
        return ["code"]
    changed = sorted(name for name in {**before, **now} if before.get(name) != now.get(name))
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    return [f"code {', '.join(changed[:_NAMED])}{more}"] if changed else []


def describe_data(folder: Path) -> list[dict[str, Any]]:
    """The files that metrics.json says the run has read, with what tells whether they change."""
    try:
        provenance = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["provenance"]
    except (OSError, ValueError, KeyError):
        return []
    names = {entry["file"] for entry in provenance.get("data", []) if entry.get("file")}
    return [
        {"file": name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": hash_file(Path(name))}
        for name in sorted(names)
        if (stat := _stat(Path(name)))
    ]


def _same_data(item: Mapping[str, Any]) -> bool:
    path = Path(item["file"])
    stat = _stat(path)
    if stat is None and item.get("elsewhere"):  # on the disk of a worker that has read it
        return True
    if stat is None or stat.st_size != item["size"]:
        return False
    return stat.st_mtime_ns == item["mtime_ns"] or hash_file(path) == item["sha256"]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:  # also where another process tidies up
        return None


# --- Results -----------------------------------------------------------------------------------------------------


def write_record(project: Project, run: Run, folder: Path, stamp: Mapping[str, Any], outcome: Outcome) -> None:
    """Write run.json, by which `status` knows a result.

    Args:
        folder: where the run has left its files.
        stamp: what `stamp` returned when the run began.
        outcome: how it ended.
    """
    record = {
        "notebook": run.notebook.name,
        "run": run.name,
        "status": "failed" if outcome.failure else "done",
        "started": outcome.started,
        "seconds": round(outcome.seconds, 3),
        "parameters": run.parameters,
        "device": run.device,
        "stamp": stamp,
        "version": labutils.__version__,
        "commit": _commit(project.root),
        "data": [{**item} | ({} if Path(item["file"]).is_file() else {"elsewhere": True}) for item in outcome.data],
        "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        "error": asdict(outcome.failure) if outcome.failure else None,
        "open": outcome.open,
        "exercises": _hash_exercises(run.notebook.path) if outcome.open else "",
    }
    write_atomically(folder / "run.json", json.dumps(record, indent=2, default=str) + "\n")


def read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where nothing is known."""
    return _read(folder / "run.json", {"status", "parameters", "stamp", "data", "files", "seconds", "error"})


def made_by(folder: Path) -> dict[str, str | None]:
    """Tell which code made the result in a folder, for those who publish or show it; empty where there is none.

    Returns:
        ``code``: a digest of the notebook's and labutils' code that it depends on; ``version`` of labutils; ``commit``:
        git's name of the project's state, "-dirty" if changed since; ``date``: when the run began, ISO 8601.
    """
    record = read_record(folder)
    if record is None:
        return {}
    code = [record["stamp"].get(name) for name in ("notebook", "code")]
    return {
        "code": identity.digest(json.dumps(code, sort_keys=True)),
        "version": record.get("version"),
        "commit": record.get("commit"),
        "date": record.get("started"),
    }


def _commit(root: Path) -> str | None:
    if not (root / ".git").exists():  # in another project's git, perhaps
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() or None
    return None


def replace(partial: Path, folder: Path) -> None:
    """Let a finished result take the place of the earlier one; whoever calls it holds the run's lock.

    A kill between the two renames leaves the earlier one beside its place, from where `restore` brings it back.
    """
    old = _restore(folder)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def restore(folder: Path) -> None:
    """Put a result back that was about to be replaced when its process died."""
    if _old(folder).exists() and (lock := _lock_if_free(folder)):
        _restore(folder)
        lock.release()


def _restore(folder: Path) -> Path:
    old = _old(folder)
    if old.exists():
        if not folder.exists():
            os.replace(old, folder)
        shutil.rmtree(old, ignore_errors=True)
    return old


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def lock_file(folder: Path) -> Path:
    """The file by which whoever works on the result in a folder keeps others away."""
    return folder.with_name(f".{folder.name}.lock")


def _lock_if_free(folder: Path) -> filelock.BaseFileLock | None:
    lock = filelock.FileLock(lock_file(folder))
    try:
        lock.acquire(blocking=False)
    except OSError:  # held by another, or not ours to write
        return None
    return lock


# --- Checkpoints -------------------------------------------------------------------------------------------------


class Checkpoints(NamedTuple):
    """What a run goes on from."""

    folder: Path | None  # None where the run keeps none
    threads: int  # to compute with: those of an interrupted run, as others give other last digits
    seconds: float  # how long earlier tries computed what the folder holds
    made_by: str  # what its made_by.json says, by which another machine knows whether it sees the same folder


def last_checkpoint(run: Run, out: Path) -> float | None:
    """When an earlier try of a run saved last, in seconds since the epoch; None where it left nothing."""
    folder = checkpoint_folder(run, out)
    return max((stat.st_mtime for path in _files(folder) if (stat := _stat(path))), default=None) if folder else None


def checkpoint_folder(run: Run, out: Path) -> Path | None:
    """Where a run keeps its checkpoints; a quick run is over before it would need any."""
    return None if run.name == QUICK else out / run.notebook.name / f".{run.name}{CHECKPOINTS}"


def open_checkpoints(run: Run, out: Path, threads: int, *, force: bool = False) -> Checkpoints:
    """Prepare the folder of a run's checkpoints; whoever calls it holds the run's lock.

    Args:
        threads: how many threads the run would compute with.
        force: whether to throw away what is there.
    """
    folder = checkpoint_folder(run, out)
    if folder is None:
        return Checkpoints(None, threads, 0.0, "")
    if force:
        shutil.rmtree(folder, ignore_errors=True)
    before = _read_made_by(folder)
    if before and not before["done"]:
        threads = before["threads"]
    folder.mkdir(parents=True, exist_ok=True)
    spent = before.get("seconds", 0.0)
    now = {"id": before.get("id") or uuid.uuid4().hex, "threads": threads, "done": False, "seconds": spent}
    text = json.dumps(now)
    write_atomically(folder / MADE_BY, text)
    return Checkpoints(folder, threads, spent, text)


def close_checkpoints(folder: Path, *, done: bool, seconds: float) -> None:
    """Tidy up when a run has ended, after so many seconds of all tries; whoever calls it holds the run's lock.

    An interrupted run leaves everything, one that is done what it used. Others' that nobody used for `DAYS_KEPT` days
    go.
    """
    if done:
        _drop_unused(folder, (folder / MADE_BY).stat().st_mtime_ns)
    with contextlib.suppress(OSError):  # of a full disk the run itself tells
        now = _read_made_by(folder) | {"done": done, "seconds": round(seconds, 3)}
        write_atomically(folder / MADE_BY, json.dumps(now))
    if not _files(folder):
        shutil.rmtree(folder, ignore_errors=True)
    for other in folder.parent.parent.glob(f"*/.*{CHECKPOINTS}"):
        _remove_if_old(other)


def _drop_unused(folder: Path, since: int) -> None:
    """Remove the checkpoints not used since a time (in ns since the epoch), and the largest of too many bytes."""
    stats = {path: stat for path in _files(folder) if (stat := _stat(path))}
    used = [path for path, stat in stats.items() if stat.st_mtime_ns >= since]
    used.sort(key=lambda path: stats[path].st_size)
    while sum(stats[path].st_size for path in used) > LARGEST_KEPT:
        used.pop()
    for path in stats.keys() - used:
        path.unlink(missing_ok=True)


def _remove_if_old(folder: Path) -> None:
    stat = _stat(folder / MADE_BY)
    if stat is None or time.time() - stat.st_mtime < DAYS_KEPT * 86400 or not _read_made_by(folder).get("done"):
        return
    result = folder.with_name(folder.name.removeprefix(".").removesuffix(CHECKPOINTS))
    if lock := _lock_if_free(result):
        shutil.rmtree(folder, ignore_errors=True)
        lock.release()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != MADE_BY]


def _read_made_by(folder: Path) -> dict[str, Any]:
    return _read(folder / MADE_BY, {"id", "threads", "done"}) or {}


def _read(path: Path, keys: set[str]) -> dict[str, Any] | None:
    """A JSON object with these keys; None where a file is missing, damaged or of another form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and keys <= found.keys() else None
