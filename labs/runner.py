"""Finds the notebooks and their runs, checks parameters, and executes runs side by side.

A *run* is one notebook with one set of parameter values: ``quick`` (the defaults of its parameters cell) or one of
the named runs in ``notebooks/runs.yaml``. Every run has a folder of its own::

    results/<notebook>/<run>/notebook.ipynb   the executed notebook
                             metrics.json     what the notebook recorded (see ``labutils.record``)
                             figures/*.png
                             run.json         status, time, error, and the stamp that tells whether it is fresh

A run works in a hidden folder beside its own, which takes the final name when the run is over. So a result is
there as a whole or not at all, and an interrupted run leaves the earlier result as it was. The trainings of named
runs and of those with other values keep checkpoints in another hidden folder (see ``labutils.checkpoint``), which goes
when the run is done: the same command continues an interrupted run.

This module executes runs in processes of this machine; ``labs.cluster`` hands the same work to Dask workers.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import filelock
import nbformat
import psutil
import yaml

import labutils
from labs import freshness
from labs.freshness import QUICK, Failure

PACKAGE = Path(labutils.__file__).parent
PARTIAL = ".partial"
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
        about: name to what ``runs.yaml`` says about a run: the ``document`` whose settings it has, the run or runs it
            stands ``instead_of``, whether it ``answers`` the notebook's question.
        source: SHA-256 of the cells' kinds, sources and tags; outputs do not count.
    """

    name: str
    path: Path
    title: str
    question: str
    defaults: dict[str, Any] = field(repr=False)
    runs: dict[str, dict[str, Any]] = field(repr=False)
    source: str = field(repr=False)
    about: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)


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

    @property
    def all_parameters(self) -> dict[str, Any]:
        """The values that replace defaults, the device among them."""
        return self.parameters | ({"device": self.device} if self.device else {})


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
            _check_about(values.get("about", {}), run, runs, where=f"{path}: {name}:{run}")
    return {name: dict(runs) for name, runs in named.items()}


def _check_about(about: Any, run: str, runs: Mapping[str, Any], where: str) -> None:
    kinds = {"document": str, "instead_of": str | list, "answers": bool}
    if not isinstance(about, dict) or not all(isinstance(about[key], kinds.get(key, ())) for key in about):
        raise LabsError(f"{where}: about takes document, instead_of and answers: true, got {about}")
    others = about.get("instead_of", [])
    for other in [others] if isinstance(others, str) else others:
        if other not in runs or other == run:
            raise LabsError(f"{where} stands instead_of {other!r}: it takes another of {', '.join(runs)}")


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
        runs={run: {key: value for key, value in values.items() if key != "about"} for run, values in runs.items()},
        source=digest.hexdigest(),
        about={run: values.get("about", {}) for run, values in runs.items()},
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
    for folder in sorted((out / notebook.name).glob("[!.]*-custom-*")):
        if record := freshness.read_record(folder):
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


# --- Executing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened to a run.

    Attributes:
        kind: ``fresh`` (its result is up to date, nothing was done), ``waiting`` (another process works on it),
            ``started``, ``cell`` (one more code cell is done), ``again`` (the first try went wrong, the second
            begins), ``done`` or ``failed``.
        cell: code cells done.
        cells: code cells in the notebook.
        seconds: since the start of the run.
        note: for ``again``: what went wrong.
    """

    run: Run
    kind: Literal["fresh", "waiting", "started", "cell", "again", "done", "failed"]
    cell: int = 0
    cells: int = 0
    seconds: float = 0.0
    note: str = ""


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


@dataclass(frozen=True)
class Job:
    """A run as whoever executes it needs it, on this machine or another.

    Attributes:
        name: the run's name.
        notebook: the bytes of the notebook.
        parameters: the values that replace defaults.
        threads: how many threads to compute with.
        checkpoints: the folder for the checkpoints of its trainings; None where it keeps none.
        made_by: what that folder's ``made_by.json`` says; who finds another text there sees another folder.
    """

    name: str
    notebook: bytes = field(repr=False)
    parameters: dict[str, Any]
    threads: int
    checkpoints: Path | None = None
    made_by: str = field(default="", repr=False)


@dataclass(frozen=True)
class Outcome:
    """How executing a job ended.

    Attributes:
        started: date and time, ISO 8601.
        seconds: how long it took.
        data: the data files that it read, with what tells whether they change.
        failure: what went wrong; None if nothing did.
    """

    started: str
    seconds: float
    data: list[dict[str, Any]] = field(default_factory=list)
    failure: Failure | None = None


Say = Callable[[dict[str, Any]], None]


class Place(Protocol):
    """Where runs are executed: in processes of this machine, or on the workers of ``labs.cluster``."""

    threads: int
    """How many threads a run computes with here."""

    def slots(self) -> int:
        """How many runs there is room for, those at work included."""

    def perform(self, job: Job, folder: Path, say: Say, stopping: Callable[[], bool]) -> Outcome:
        """Execute a job and leave its files in a folder; see ``carry_out``."""


@dataclass(frozen=True)
class _Here:
    """The cores of this machine, a process for each run."""

    cwd: Path
    jobs: int
    threads: int

    def slots(self) -> int:
        return self.jobs

    def perform(self, job: Job, folder: Path, say: Say, stopping: Callable[[], bool]) -> Outcome:
        return carry_out(job, folder, cwd=self.cwd, environment=os.environ, say=say, stopping=stopping)


def count_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def execute(
    project: Project,
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int | None = None,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
    place: Place | None = None,
) -> list[Result]:
    """Execute runs side by side, each in a process of its own; those whose result is fresh are left alone.

    A failing run does not stop the others. An exception that reaches the caller's thread meanwhile (Ctrl-C) ends
    all kernels and leaves earlier results as they were. Several processes may ask for the same run at once: the
    first one executes it, the others wait and find it fresh. An interrupted run goes on from its checkpoints; where
    these were made with other code, parameters, versions or data, it fails and says so.

    Args:
        out: the folder of the results.
        jobs: how many notebooks at once; by default as many as there are cores, or runs. The cores are shared out
            evenly: each process computes with ``cores // jobs`` threads, unless OMP_NUM_THREADS is already set.
        force: execute also what is fresh, and start over what was interrupted.
        on_event: called in the caller's thread for every event.
        place: where to execute them, instead of this machine with ``jobs``. Runs begin in the order given.

    Returns:
        One result for each run, in the order of ``runs``.
    """
    say = on_event or (lambda event: None)
    out = out.resolve()
    results: dict[str, Result] = {}
    for run in runs:
        if not force and freshness.status(project, run, out).state == "done":
            results[run.label] = Result(run, "fresh", run.folder(out))
            say(Event(run, "fresh"))
    waiting = deque(run for run in runs if run.label not in results)
    if place is None:
        jobs = max(1, jobs or min(count_cores(), len(waiting)))
        given = os.environ.get("OMP_NUM_THREADS", "")
        place = _Here(project.notebooks, jobs, int(given) if given.isdigit() else max(1, count_cores() // jobs))
    crew = _Crew(project, out, place, force)
    futures: dict[str, Future[Result]] = {}
    with ThreadPoolExecutor(max(1, len(waiting))) as pool:
        try:
            while waiting or not all(future.done() for future in futures.values()) or not crew.events.empty():
                room = place.slots() - sum(not future.done() for future in futures.values())
                for run in [waiting.popleft() for _ in range(min(room, len(waiting)))]:
                    futures[run.label] = pool.submit(crew.perform, run)
                with contextlib.suppress(queue.Empty):
                    say(crew.events.get(timeout=0.1))
        except BaseException:
            crew.stopping.set()
            raise
    results |= {label: future.result() for label, future in futures.items()}
    return [results[run.label] for run in runs]


class Stopped(Exception):
    """The command is being interrupted."""


class _Crew:
    """The threads at work for one call of ``execute``, each of which waits for one run."""

    def __init__(self, project: Project, out: Path, place: Place, force: bool) -> None:
        self.project = project
        self.out = out
        self.place = place
        self.force = force
        self.events: queue.Queue[Event] = queue.Queue()
        self.stopping = threading.Event()

    def perform(self, run: Run) -> Result:
        """Execute one run."""
        folder = run.folder(self.out)
        partial = folder.with_name(f".{run.name}{PARTIAL}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.with_name(f".{run.name}.lock"))
        waited = self._acquire(lock, run)
        job: Job | None = None
        data: list[dict[str, Any]] = []
        try:
            # whoever held the lock has just executed this run
            if waited and not self.force and freshness.status(self.project, run, self.out).state == "done":
                self.events.put(Event(run, "fresh"))
                return Result(run, "fresh", folder)
            try:
                job = self._prepare(run)
            except LabsError as error:
                self.events.put(Event(run, "failed"))
                return Result(run, "failed", folder, failure=Failure(str(error)))
            _remove(partial)
            partial.mkdir()
            result = self._execute(run, job, folder, partial)
            data = freshness.describe_data(partial)
            _replace(partial, folder)
            if job.checkpoints and result.state == "done":
                _remove(job.checkpoints)
            self.events.put(Event(run, result.state, seconds=result.seconds))
            return result
        finally:
            if job and job.checkpoints and job.checkpoints.is_dir():
                _keep(job.checkpoints, data or freshness.describe_data(partial))
            _remove(partial)
            lock.release()

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
        raise Stopped

    def _prepare(self, run: Run) -> Job:
        """What executes the run, with a folder for checkpoints of which it can go on.

        Raises:
            LabsError: the checkpoints of an earlier try belong to something else.
        """
        threads, made_by = self.place.threads, ""
        folder = freshness.checkpoint_folder(run, self.out)
        if folder:
            if self.force:
                _remove(folder)
            if earlier := freshness.checkpoint(self.project, run, self.out):
                if earlier.changed:
                    raise LabsError(
                        f"the checkpoints in {folder} belong to another state of {', '.join(earlier.changed)}: restore"
                        f" that to go on from them, or start over with labs run {run.label} --force"
                    )
                threads = earlier.threads or threads
            else:
                folder.mkdir()
                made_by = {**freshness.maker(self.project, run), "threads": threads, "data": [], "id": uuid.uuid4().hex}
                _write(folder / freshness.MADE_BY, json.dumps(made_by, indent=2, default=str))
            made_by = (folder / freshness.MADE_BY).read_text(encoding="utf-8")
        return Job(run.name, run.notebook.path.read_bytes(), run.all_parameters, threads, folder, made_by)

    def _execute(self, run: Run, job: Job, folder: Path, partial: Path) -> Result:
        clock = time.monotonic()

        def say(message: dict[str, Any]) -> None:
            self.events.put(Event(run, seconds=time.monotonic() - clock, **message))

        outcome = self.place.perform(job, partial, say, self.stopping.is_set)
        state: Literal["done", "failed"] = "failed" if outcome.failure else "done"
        record = {
            "notebook": run.notebook.name,
            "run": run.name,
            "status": state,
            "started": outcome.started,
            "seconds": round(outcome.seconds, 3),
            "parameters": run.parameters,
            "device": run.device,
            "stamp": freshness.stamp(self.project, run),
            "data": [item | ({} if Path(item["file"]).is_file() else {"elsewhere": True}) for item in outcome.data],
            "files": sorted(p.relative_to(partial).as_posix() for p in partial.rglob("*") if p.is_file()),
            "error": asdict(outcome.failure) if outcome.failure else None,
        }
        (partial / "run.json").write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
        return Result(run, state, folder, outcome.seconds, outcome.failure)


def carry_out(
    job: Job,
    folder: Path,
    *,
    cwd: Path,
    environment: Mapping[str, str],
    say: Say,
    stopping: Callable[[], bool],
) -> Outcome:
    """Execute a job in a process of its own, and wait for it.

    Args:
        folder: an existing, empty folder for what the run makes; if it fails, with a log.
        cwd: where the notebook runs.
        environment: of the process, which adds what labutils needs.
        say: called with ``{"kind": "started" | "cell", "cell": …, "cells": …}`` as the process goes on.
        stopping: asked again and again; once it says yes, the process and its kernel are ended.

    Raises:
        Stopped: because of ``stopping``.
    """
    started, clock = datetime.now(UTC), time.monotonic()
    notebook, log_file = folder / "notebook.ipynb", folder / "log.txt"
    notebook.write_bytes(job.notebook)
    task = {"notebook": str(notebook), "folder": str(cwd), "parameters": job.parameters}
    environment = {
        # Threads that wait by spinning take the cores from the others' work: on a busy machine, small networks then
        # trained up to sixty times slower.
        "OMP_WAIT_POLICY": "PASSIVE",
        **{key: value for key, value in environment.items() if key != "LABUTILS_CHECKPOINTS"},
        **dict.fromkeys(THREAD_VARIABLES, str(job.threads)),
        "LABUTILS_RUN_DIR": str(folder),
        "LABUTILS_RUN": job.name,
        "TQDM_DISABLE": "1",  # a progress bar in a page of the book is litter
        **({"LABUTILS_CHECKPOINTS": str(job.checkpoints)} if job.checkpoints else {}),
    }
    if stopping():
        raise Stopped
    with log_file.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "labs.runner"],  # -P: nothing in the folder shadows a library
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=cwd,
            env=environment,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C reaches this process only, which then ends the others in order
        )
    with process:
        watch = threading.Thread(target=_end_when, args=(stopping, process), daemon=True)
        watch.start()
        failure = _listen(process, task, say)
    watch.join()
    if stopping():
        raise Stopped
    if failure is None and process.returncode:
        tail = log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        failure = Failure(f"the process ended with code {process.returncode}", traceback="\n".join(tail))
    if failure is None:
        log_file.unlink(missing_ok=True)
    seconds = time.monotonic() - clock
    return Outcome(started.isoformat(timespec="seconds"), seconds, freshness.describe_data(folder), failure)


def _listen(process: subprocess.Popen[str], task: Mapping[str, Any], say: Say) -> Failure | None:
    """Give a process its task, pass on what it reports, and return what went wrong as far as it says."""
    assert process.stdin is not None
    assert process.stdout is not None
    failure = None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
    for line in process.stdout:
        message = json.loads(line)
        if message["kind"] == "failed":
            failure = Failure(**message["failure"])
        else:
            say(message)
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return failure


def _end_when(stopping: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for a process; once stopping, end it and its kernel, gently first."""
    while process.poll() is None and not stopping():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    if process.poll() is not None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        family = [parent, *parent.children(recursive=True)]
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=SECONDS_TO_END)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def _keep(checkpoints: Path, data: list[dict[str, Any]]) -> None:
    """Leave the checkpoints of an unfinished run behind, with the data that it is known to have read."""
    if all(path.name == freshness.MADE_BY for path in checkpoints.iterdir()):
        _remove(checkpoints)
    elif data:
        with contextlib.suppress(OSError, ValueError):
            made_by = json.loads((checkpoints / freshness.MADE_BY).read_text(encoding="utf-8"))
            _write(checkpoints / freshness.MADE_BY, json.dumps(made_by | {"data": data}, indent=2))


def _write(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    partial = path.with_name(f".{path.name}{PARTIAL}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


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
            *[task["notebook"].replace("{", "{{").replace("}", "}}")] * 2,  # executed in place
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
