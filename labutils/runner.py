"""Finds the notebooks and their runs, checks parameters, and executes runs side by side.

A *run* is one notebook with one set of parameter values: ``quick`` (the defaults of its parameters cell) or one of
the named runs in ``notebooks/runs.yaml``. Every run has a folder of its own::

    results/<notebook>/<run>/notebook.ipynb   the executed notebook
                             metrics.json     what the notebook recorded (see ``labutils.record``)
                             figures/*.png
                             run.json         status, time, error, and the stamp that tells whether it is fresh

A run works in a hidden folder beside its own, which takes the final name when the run is over. So a result is
there as a whole or not at all, and an interrupted run leaves the earlier result as it was.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import json
import os
import platform
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import filelock
import nbformat
import psutil
import yaml

PACKAGE = Path(__file__).parent
QUICK = "quick"
PARTIAL = ".partial"
# These modules start the notebooks; no result depends on what they say.
COMMAND_MODULES = {"cli.py", "runner.py", "site.py"}
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SECONDS_TO_END = 5.0


class LabsError(Exception):
    """A mistake of the user's: the message names it and lists what exists."""


# --- What exists -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Project:
    """A folder with notebooks, and the package whose code the notebooks use.

    Args:
        root: the folder that holds ``notebooks/runs.yaml``.
        package: the folder of the ``labutils`` package; its modules are part of a run's stamp.
    """

    root: Path
    package: Path = field(default_factory=lambda: PACKAGE)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", self.root.resolve())  # the processes of runs work in another folder

    @property
    def notebooks(self) -> Path:
        """The folder of the notebooks; they run in it."""
        return self.root / "notebooks"

    @property
    def results(self) -> Path:
        """Where results go unless told otherwise."""
        return self.root / "results"


@dataclass(frozen=True)
class Notebook:
    """One notebook as it is in the repository.

    Attributes:
        name: file name without ``.ipynb``.
        path: the file.
        title: its first heading.
        question: the first paragraph below that heading.
        defaults: the values of its parameters cell: the quick run.
        runs: name to overriding values, from ``runs.yaml``.
        source: SHA-256 of the cells' kinds, sources and tags; outputs do not count.
    """

    name: str
    path: Path
    title: str
    question: str
    defaults: dict[str, Any] = field(repr=False)
    runs: dict[str, dict[str, Any]] = field(repr=False)
    source: str = field(repr=False)


@dataclass(frozen=True)
class Run:
    """A notebook with one set of values.

    Attributes:
        notebook: the notebook.
        name: ``quick``, a name in ``runs.yaml``, or ``<run>-custom-<hash of the values>``.
        parameters: the values that replace defaults.
        device: where to compute; None leaves it to the parameters. Not part of what makes a result fresh.
    """

    notebook: Notebook
    name: str
    parameters: dict[str, Any]
    device: str | None = None

    @property
    def label(self) -> str:
        """What the command line calls it: ``notebook:run``."""
        return f"{self.notebook.name}:{self.name}"

    def folder(self, out: Path) -> Path:
        """The folder of this run's result below ``out``."""
        return out / self.notebook.name / self.name


def find_project(start: Path | None = None) -> Project:
    """Find the project: the nearest folder upward that holds ``notebooks/runs.yaml``, else labutils' own checkout.

    Args:
        start: where to begin; the current folder by default.

    Raises:
        LabsError: there is no such folder.
    """
    here = (start or Path.cwd()).resolve()
    for root in (here, *here.parents, PACKAGE.parent):
        if (root / "notebooks" / "runs.yaml").is_file():
            return Project(root)
    raise LabsError(f"no notebooks/runs.yaml in {here} or above: change to the folder of the lab")


class _Loader(yaml.SafeLoader):
    """YAML as it is meant here: 1e-3 is a number, None is null, and no key comes twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"{key!r} comes twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])


def parse_value(text: str) -> Any:
    """Read a value from the command line as YAML.

    Example:
        >>> [parse_value(text) for text in ("3", "1e-3", "true", "None", "[relu, tanh]", "digits")]
        [3, 0.001, True, None, ['relu', 'tanh'], 'digits']
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise LabsError(f"{text!r} is not a value: {_one_line(error)}") from None


def load_notebooks(project: Project) -> dict[str, Notebook]:
    """Read every notebook and ``runs.yaml``, and check the values there against the parameters cells.

    Returns:
        Name to notebook, in the order of their names.

    Raises:
        LabsError: a parameters cell holds something other than plain values, or ``runs.yaml`` names an unknown
            notebook or parameter, or gives a value of the wrong type.
    """
    named = _read_runs(project.notebooks / "runs.yaml")
    paths = {path.stem: path for path in sorted(project.notebooks.glob("*.ipynb"))}
    for name in named:
        if name not in paths:
            raise LabsError(f"runs.yaml: {_unknown('notebook', name, paths)}")
    notebooks = {name: _read_notebook(path, named.get(name, {})) for name, path in paths.items()}
    for notebook in notebooks.values():
        for run, values in notebook.runs.items():
            _check_values(notebook, values, where=f"runs.yaml, {notebook.name}:{run}: ")
    return notebooks


def _read_runs(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    try:
        named = yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}
    except yaml.YAMLError as error:
        raise LabsError(f"{path} is not valid YAML: {_one_line(error)}") from None
    if not isinstance(named, dict):
        raise LabsError(f"{path}: expected {{notebook: {{run: {{parameter: value}}}}}}")
    for name, runs in named.items():
        for run, values in (runs if isinstance(runs, dict) else {"": None}).items():
            if not isinstance(values, dict):
                raise LabsError(f"{path}: expected {{run: {{parameter: value}}}} under {name!r}")
            if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", str(run)) or run == QUICK or "-custom-" in run:
                raise LabsError(f"{path}: {run!r} under {name!r} cannot name a run")
    return {name: dict(runs) for name, runs in named.items()}


def _read_notebook(path: Path, runs: dict[str, dict[str, Any]]) -> Notebook:
    try:
        cells = nbformat.read(path, as_version=4).cells
    except Exception as error:  # nbformat raises many kinds for a file that is not a notebook
        raise LabsError(f"{path} is not a notebook: {_one_line(error)}") from None
    tagged = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    title, question = _opening(texts[0] if texts else "")
    digest = hashlib.sha256()
    for cell in cells:
        digest.update(json.dumps([cell.cell_type, cell.source, cell.metadata.get("tags", [])]).encode())
    return Notebook(
        name=path.stem,
        path=path,
        title=title or path.stem,
        question=question,
        defaults=_read_defaults(tagged[0], path) if tagged else {},
        runs=runs,
        source=digest.hexdigest(),
    )


def _opening(text: str) -> tuple[str, str]:
    """The first heading and the first paragraph below it (up to its first question mark), as plain text."""
    heading, _, rest = text.strip().partition("\n")
    if not heading.startswith("#"):
        heading, rest = "", text
    paragraphs = [part for part in re.split(r"\n\s*\n", rest.strip()) if not part.startswith(("#", "|", "```"))]
    paragraph = " ".join(paragraphs[0].split()) if paragraphs else ""
    question, mark, _ = paragraph.partition("?")
    return heading.lstrip("# "), re.sub(r"[*`]", "", question + mark)


def _read_defaults(source: str, path: Path) -> dict[str, Any]:
    defaults: dict[str, Any] = {}
    try:
        for node in ast.parse(source).body:
            match node:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    defaults[name] = ast.literal_eval(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    defaults[name] = ast.literal_eval(value)
                case _:
                    raise ValueError(ast.unparse(node))
    except (SyntaxError, ValueError) as error:
        raise LabsError(
            f"{path.name}: the parameters cell takes only plain values (name = value): {_one_line(error)}"
        ) from None
    return defaults


# --- Choosing runs -----------------------------------------------------------------------------------------------


def pick(kind: str, name: str, known: Iterable[str]) -> str:
    """The one of ``known`` that ``name`` means: itself, or the only one that begins so.

    Args:
        kind: what is looked for, for the message ("notebook", "run").

    Raises:
        LabsError: none or several begin so.

    Example:
        >>> pick("notebook", "21", ["21_function_fitting", "22_image_classification"])
        '21_function_fitting'
    """
    known = list(known)
    if name in known:
        return name
    matches = [one for one in known if name and one.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise LabsError(f"{kind} {name!r} may be any of {', '.join(matches)}: write more of it")
    raise LabsError(_unknown(kind, name, known))


def select(
    notebooks: Mapping[str, Notebook],
    names: Sequence[str] = (),
    *,
    profile: Literal["quick", "full"] = "quick",
    overrides: Mapping[str, Any] | None = None,
    device: str | None = None,
) -> list[Run]:
    """The runs that the words of a command line mean.

    Args:
        notebooks: what ``load_notebooks`` returned.
        names: ``NOTEBOOK`` or ``NOTEBOOK:RUN``, each as a unique prefix or whole; none means every notebook.
        profile: what a notebook without a run's name stands for: its quick run, or all its named runs.
        overrides: parameter values for all these runs. Such a run gets a name of its own,
            ``<run>-custom-<8 hex digits of the values>``, so that it never replaces the result of ``<run>``.
        device: value for the parameter ``device`` of each notebook that has one. The run keeps its name: where a
            run is computed is not part of what it is.

    Raises:
        LabsError: an unknown notebook, run or parameter, or a value of the wrong type.
    """
    chosen: dict[str, Run] = {}
    for name in names or notebooks:
        prefix, colon, wanted = name.partition(":")
        notebook = notebooks[pick("notebook", prefix, notebooks)]
        if colon:
            run_names = [pick(f"run of {notebook.name}", wanted, [QUICK, *notebook.runs])]
        else:
            run_names = [QUICK] if profile == "quick" else list(notebook.runs)
        for run_name in run_names:
            run = _make_run(notebook, run_name, overrides or {}, device)
            chosen.setdefault(run.label, run)
    return list(chosen.values())


def known_runs(notebook: Notebook, out: Path) -> list[Run]:
    """The quick run, the named runs, and those with other values that have a result.

    Args:
        out: the folder of the results.
    """
    runs = [Run(notebook, name, notebook.runs.get(name, {})) for name in (QUICK, *notebook.runs)]
    for folder in sorted((out / notebook.name).glob("*-custom-*")):
        if record := _read_record(folder):
            runs.append(Run(notebook, folder.name, record["parameters"]))
    return runs


def _make_run(notebook: Notebook, name: str, overrides: Mapping[str, Any], device: str | None) -> Run:
    _check_values(notebook, overrides, where=f"{notebook.name}: ")
    parameters = {**notebook.runs.get(name, {}), **overrides}
    if overrides:
        values = json.dumps(dict(overrides), sort_keys=True, default=str)
        name = f"{name}-custom-{hashlib.sha256(values.encode()).hexdigest()[:8]}"
    return Run(notebook, name, parameters, device if "device" in notebook.defaults else None)


def _check_values(notebook: Notebook, values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if name not in notebook.defaults:
            raise LabsError(where + _unknown("parameter", name, notebook.defaults))
        default = notebook.defaults[name]
        if not _fits(value, default):
            raise LabsError(
                f"{where}{name} = {value!r} ({type(value).__name__}): expected {_type_name(default)}, as {default!r}"
            )


def _fits(value: Any, default: Any) -> bool:
    match default:
        case None:
            return value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
        case bool():
            return isinstance(value, bool)
        case float():
            return isinstance(value, int | float) and not isinstance(value, bool)
        case int():
            return isinstance(value, int) and not isinstance(value, bool)
        case list() | tuple():
            # a list in which kinds are mixed takes any of these kinds
            return isinstance(value, list | tuple) and (
                not default or all(any(_fits(item, one) for one in default) for item in value)
            )
        case dict():
            return isinstance(value, dict) and all(_fits(value[key], default[key]) for key in value if key in default)
        case _:
            return isinstance(value, type(default))


def _type_name(default: Any) -> str:
    if isinstance(default, list | tuple) and default:
        return "list of " + " or ".join(sorted({_type_name(item) for item in default}))
    return "list" if isinstance(default, tuple) else type(default).__name__


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    known = [str(one) for one in known]
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"no {kind} {name!r}{hint}; there are: {', '.join(known) or 'none'}"


def _one_line(error: object) -> str:
    return " ".join(str(error).split())


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
    record = _read_record(folder)
    if record is None:
        return Status("not run")
    if record["status"] == "failed":
        return Status("failed", seconds=record["seconds"], failure=Failure(**record["error"]))
    now = _stamp(project, run)
    changed = [key for key, value in now.items() if record["stamp"].get(key) != value]
    changed += [f"data {Path(item['file']).name}" for item in record["data"] if not _same_data(item)]
    changed += [f"result {name}" for name in record["files"] if not (folder / name).is_file()]
    return Status("stale" if changed else "done", tuple(changed), record["seconds"])


def _read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where it is missing or not readable, which means that nothing is known."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return (
            record if {"status", "parameters", "stamp", "data", "files", "seconds", "error"} <= record.keys() else None
        )
    except (OSError, ValueError, AttributeError):
        return None


def _stamp(project: Project, run: Run) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("torch", "numpy")}
    return {
        "code": hash_code(project.package),
        "notebook": run.notebook.source,
        "parameters": json.dumps(run.parameters, sort_keys=True, default=str),
        "versions": json.dumps(versions, sort_keys=True),
    }


def hash_code(package: Path, leave_out: Iterable[str] = COMMAND_MODULES) -> str:
    """SHA-256 over names and contents of a package's modules.

    Args:
        package: the folder of the package.
        leave_out: file names that do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if path.name not in leave_out:
            digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _describe_data(folder: Path) -> list[dict[str, Any]]:
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


# --- Executing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Attributes:
        kind: ``fresh`` (its result is up to date, nothing was done), ``waiting`` (another process works on it),
            ``started``, ``cell`` (one more code cell is done), ``done`` or ``failed``.
        cell: code cells done.
        cells: code cells in the notebook.
        seconds: since the start of the run.
    """

    run: Run
    kind: Literal["fresh", "waiting", "started", "cell", "done", "failed"]
    cell: int = 0
    cells: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        state: ``fresh`` means that an earlier result is still valid and nothing was executed.
        folder: where the result lies; a failed run keeps its executed notebook there.
    """

    run: Run
    state: Literal["done", "fresh", "failed"]
    folder: Path
    seconds: float = 0.0
    failure: Failure | None = None


def execute(
    project: Project,
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int | None = None,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> list[Result]:
    """Execute runs side by side, each in a process of its own; those whose result is fresh are left alone.

    A failing run does not stop the others. An exception that reaches the caller's thread meanwhile (Ctrl-C) ends
    all kernels and leaves earlier results as they were. Several processes may ask for the same run at once: the
    first one executes it, the others wait and find it fresh.

    Args:
        out: the folder of the results.
        jobs: how many notebooks at once; by default as many as there are cores, or runs. The cores are shared out
            evenly: each process computes with ``cores // jobs`` threads, unless OMP_NUM_THREADS is already set.
        force: execute also what is fresh.
        on_event: called in the caller's thread for every event.

    Returns:
        One result for each run, in the order of ``runs``.
    """
    say = on_event or (lambda event: None)
    out = out.resolve()
    results: dict[str, Result] = {}
    for run in runs:
        if not force and status(project, run, out).state == "done":
            results[run.label] = Result(run, "fresh", run.folder(out))
            say(Event(run, "fresh"))
    waiting = [run for run in runs if run.label not in results]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = max(1, jobs or min(cores, len(waiting)))
    crew = _Crew(project, out, threads=max(1, cores // jobs), force=force)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = {run.label: pool.submit(crew.perform, run) for run in waiting}
            while not all(future.done() for future in futures.values()) or not crew.events.empty():
                with contextlib.suppress(queue.Empty):
                    say(crew.events.get(timeout=0.1))
        except BaseException:
            crew.stop()
            pool.shutdown(cancel_futures=True)
            raise
    results |= {label: future.result() for label, future in futures.items()}
    return [results[run.label] for run in runs]


class _Stopped(Exception):
    """The command is being interrupted."""


class _Crew:
    """The processes at work for one call of ``execute``."""

    def __init__(self, project: Project, out: Path, threads: int, force: bool) -> None:
        self.project = project
        self.out = out
        self.force = force
        self.events: queue.Queue[Event] = queue.Queue()
        # Threads that wait by spinning take the cores from the others' work: on a busy machine, small networks then
        # trained up to sixty times slower.
        self.environment = {"OMP_WAIT_POLICY": "PASSIVE", **dict.fromkeys(THREAD_VARIABLES, str(threads))} | os.environ
        self.processes: set[subprocess.Popen[str]] = set()
        self.stopping = threading.Event()
        self.guard = threading.Lock()

    def perform(self, run: Run) -> Result:
        """Execute one run; in a worker thread."""
        folder = run.folder(self.out)
        partial = folder.with_name(f".{run.name}{PARTIAL}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f".{run.name}.lock"))
        waited = self._acquire(lock, run)
        try:
            # whoever held the lock has just executed this run
            if waited and not self.force and status(self.project, run, self.out).state == "done":
                self.events.put(Event(run, "fresh"))
                return Result(run, "fresh", folder)
            _remove(partial)
            partial.mkdir()
            result = self._execute(run, folder, partial)
            _replace(partial, folder)
            self.events.put(Event(run, result.state, seconds=result.seconds))
            return result
        finally:
            _remove(partial)
            lock.release()

    def stop(self) -> None:
        """End every process and its kernel, gently first."""
        with self.guard:
            self.stopping.set()
            processes = list(self.processes)
        family: list[psutil.Process] = []
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                family += [parent, *parent.children(recursive=True)]
                process.terminate()
        _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_END)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def _acquire(self, lock: filelock.BaseFileLock, run: Run) -> bool:
        """Take the lock; tell whether that meant waiting."""
        waited = False
        while not self.stopping.is_set():
            try:
                lock.acquire(timeout=0.2)
                return waited
            except filelock.Timeout:
                if not waited:
                    self.events.put(Event(run, "waiting"))
                waited = True
        raise _Stopped

    def _execute(self, run: Run, folder: Path, partial: Path) -> Result:
        started, clock = datetime.now(UTC), time.monotonic()
        stamp = _stamp(self.project, run)
        failure = self._follow(run, partial, clock)
        seconds = time.monotonic() - clock
        if not failure:
            (partial / "log.txt").unlink(missing_ok=True)
        state: Literal["done", "failed"] = "failed" if failure else "done"
        record = {
            "notebook": run.notebook.name,
            "run": run.name,
            "status": state,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "parameters": run.parameters,
            "device": run.device,
            "stamp": stamp,
            "data": _describe_data(partial),
            "files": sorted(p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file()),
            "error": asdict(failure) if failure else None,
        }
        (partial / "run.json").write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        return Result(run, state, folder, seconds, failure)

    def _follow(self, run: Run, partial: Path, clock: float) -> Failure | None:
        """Start the process of a run, pass its events on, and return what went wrong."""
        task = {
            "notebook": str(run.notebook.path),
            "output": str(partial / "notebook.ipynb"),
            "folder": str(self.project.notebooks),
            "parameters": run.parameters | ({"device": run.device} if run.device else {}),
        }
        environment = self.environment | {
            "LABUTILS_RUN_DIR": str(partial),
            "LABUTILS_RUN": run.name,
            "TQDM_DISABLE": "1",  # a progress bar in a page of the book is litter
        }
        with (partial / "log.txt").open("w", encoding="utf-8") as log:
            with self.guard:
                if self.stopping.is_set():
                    raise _Stopped
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "labutils.runner"],  # -P: nothing in the folder shadows a library
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=self.project.notebooks,
                    env=environment,
                    text=True,
                    encoding="utf-8",
                    start_new_session=True,  # Ctrl-C reaches this process only, which then ends the others in order
                )
                self.processes.add(process)
            with process:
                assert process.stdin is not None
                assert process.stdout is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(task) + "\n")
                    process.stdin.flush()
                failure, ended = None, False
                for line in process.stdout:
                    message = json.loads(line)
                    if message["kind"] == "failed":
                        failure = Failure(**message["failure"])
                    elif message["kind"] == "ended":
                        ended = True
                    else:
                        seconds = time.monotonic() - clock
                        self.events.put(Event(run, message["kind"], message["cell"], message["cells"], seconds))
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            with self.guard:
                self.processes.discard(process)
        if self.stopping.is_set():
            raise _Stopped
        if failure is None and not ended:
            tail = (partial / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
            failure = Failure(f"the process ended with code {process.returncode}", traceback="\n".join(tail))
        return failure


def _replace(partial: Path, folder: Path) -> None:
    """Let a finished result take the place of the earlier one."""
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    _remove(old)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# --- The process of one run --------------------------------------------------------------------------------------


def _work() -> int:
    """Execute one notebook as a line of JSON on standard input says, and report as lines of JSON."""
    task = json.loads(sys.stdin.readline())
    # The kernel inherits standard output, and compiled code may write there: keep it apart from the reports.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import papermill  # takes a second, which the parent need not wait for
    from papermill.exceptions import PapermillExecutionError

    notebook = nbformat.read(task["notebook"], as_version=4)
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    progress = {"cell": 0, "cells": count}
    at: list[tuple[int, str]] = [(-1, "")]  # the cell at work

    def report(kind: str, **more: Any) -> None:
        reports.write(json.dumps({"kind": kind, **more}) + "\n")

    def on_cell_start(cell: nbformat.NotebookNode, cell_index: int) -> None:
        at[0] = (cell_index, cell.source)

    def on_cell_executed(cell: nbformat.NotebookNode, cell_index: int, execute_reply: dict[str, Any]) -> None:
        succeeded = execute_reply["content"]["status"] == "ok"
        if succeeded and "injected-parameters" not in cell.metadata.get("tags", []):
            progress["cell"] += 1
            report("cell", **progress)

    def failure(error: str, index: int, source: str, traceback: Iterable[str] = ()) -> Failure:
        # papermill adds a cell below the parameters: count as in the notebook's source
        tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
        before = next((i for i, tag in enumerate(tags) if "parameters" in tag), len(tags))
        number = index + 1 - (bool(task["parameters"]) and index > before)
        lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", "\n".join(traceback)).splitlines()
        head = "\n".join(source.splitlines()[:4])
        return Failure(error, number, len(notebook.cells), head, "\n".join(lines[-15:]))

    report("started", **progress)
    try:
        papermill.execute_notebook(
            *(task[key].replace("{", "{{").replace("}", "}}") for key in ("notebook", "output")),
            task["parameters"],
            kernel_name="python3",
            language="python",
            progress_bar=False,
            cwd=task["folder"],
            start_timeout=120,
            shutdown_kernel="immediate",
            on_cell_start=on_cell_start,
            on_cell_executed=on_cell_executed,
        )
        report("ended")
    except PapermillExecutionError as error:
        text = f"{error.ename}: {error.evalue}"
        report("failed", failure=asdict(failure(text, error.cell_index, error.source, error.traceback)))
    except Exception as error:  # the kernel died or did not start; say so instead of a traceback through papermill
        text = f"{type(error).__name__}: {_one_line(error)}"
        report("failed", failure=asdict(failure(text, *at[0])))
    except KeyboardInterrupt:
        return 130
    return 0


def _end_with_parent() -> None:
    """Standard input closes when the parent ends, in whatever way: end too, and the kernel with us."""
    with contextlib.suppress(ValueError, OSError):
        while sys.stdin.read(1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once; later ones do not disturb the tidying up."""
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def handle(number: int, frame: object) -> None:
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, handle) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


if __name__ == "__main__":
    sys.exit(_work())
