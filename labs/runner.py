"""Finds the notebooks and their runs, checks parameters, and executes runs side by side.

A *run* is one notebook with one set of parameter values: ``quick`` (the defaults of its parameters cell) or one of
the named runs in ``notebooks/runs.yaml``. Every run has a folder of its own::

    results/<notebook>/<run>/notebook.ipynb   the executed notebook
                             metrics.json     what the notebook recorded (see ``labutils.record``)
                             figures/*.png
                             run.json         status, time, error, and the stamp that tells whether it is fresh

A run works in a hidden folder beside its own, which takes the final name when the run is over: a result is there as a
whole or not at all. This module executes runs in kernels on this machine, ``labs.cluster`` on Dask workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import filelock
import yaml

import labutils
from labs import freshness, jupyter
from labs.freshness import QUICK, Failure
from labs.jupyter import Forge, Job, Outcome, Say
from labutils import files, parameters

PACKAGE = Path(labutils.__file__).parent
PARTIAL = ".partial"
MANIFEST = "release.json"  # in what `labs.release` makes: there, exercises may be open
Value = TypeVar("Value")
WORTH_A_FORGE = 3  # notebooks: for fewer, importing once and forking takes as long as importing each time


class LabsError(Exception):
    """A mistake of the user's: the message names it and lists what exists."""


# --- What exists -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Project:
    """A folder with notebooks, and the package whose code they use."""

    root: Path  # holds notebooks/runs.yaml
    package: Path = field(default_factory=lambda: PACKAGE)  # its modules are part of a run's stamp

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
    """One notebook as it is in the repository."""

    name: str
    path: Path
    title: str  # its first heading
    question: str  # the first paragraph below it
    declared: dict[str, parameters.Parameter] = field(repr=False)  # by its parameters cell
    runs: dict[str, dict[str, Any]] = field(repr=False)  # name to overriding values, from runs.yaml

    @property
    def defaults(self) -> dict[str, Any]:
        """The values of its parameters cell: the quick run."""
        return {name: parameter.default for name, parameter in self.declared.items()}


@dataclass(frozen=True)
class Run:
    """A notebook with one set of values."""

    notebook: Notebook
    name: str  # "quick", a name in runs.yaml, or "<run>-custom-<hash of the values>"
    parameters: dict[str, Any]  # in place of defaults
    device: str | None = None  # where to compute, if asked for; not part of what makes a result fresh

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
    """Find the nearest folder upward that holds ``notebooks/runs.yaml``, else labutils' own checkout.

    Raises:
        LabsError: there is no such folder.
    """
    here = (start or Path.cwd()).resolve()
    if root := files.find_project(here) or files.find_project(PACKAGE.parent):
        return Project(root)
    raise LabsError(f"no notebooks/runs.yaml in {here} or above: change to the folder of the lab")


def parse_value(text: str) -> Any:
    """Read a value from the command line as YAML.

    Example:
        >>> [parse_value(text) for text in ("3", "1e-3", "true", "None", "[relu, tanh]", "digits")]
        [3, 0.001, True, None, ['relu', 'tanh'], 'digits']
    """
    try:
        return parameters.read_yaml(text)
    except yaml.YAMLError as error:
        raise LabsError(f"{text!r} is not a value: {_one_line(error)}") from None


def load_notebooks(project: Project) -> dict[str, Notebook]:
    """Read every notebook and ``runs.yaml``, by name; check the values there against the parameters cells.

    Raises:
        LabsError: a parameters cell holds something other than plain values, or ``runs.yaml`` names an unknown notebook
            or
            parameter, or gives a value of the wrong type.
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
        named = parameters.read_yaml(path.read_text(encoding="utf-8")) or {}
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
    kinds = {"document": str, "instead_of": str | list, "answers": bool, "differs": str}
    if not isinstance(about, dict) or not all(isinstance(about[key], kinds.get(key, ())) for key in about):
        raise LabsError(f"{where}: about takes document, instead_of, differs and answers: true, got {about}")
    others = about.get("instead_of", [])
    for other in [others] if isinstance(others, str) else others:
        if other not in runs or other == run:
            raise LabsError(f"{where} stands instead_of {other!r}: it takes another of {', '.join(runs)}")


def _read_notebook(path: Path, runs: dict[str, dict[str, Any]]) -> Notebook:
    cells = read_cells(path)
    tagged = [source for kind, source, tags in cells if "parameters" in tags]
    title, question = _opening(next((source for kind, source, _ in cells if kind == "markdown"), ""))
    try:
        declared = parameters.read(tagged[0]) if tagged else {}
    except ValueError as error:
        raise LabsError(f"{path.name}: the parameters cell takes only plain values (name = value): {error}") from None
    notebook = Notebook(
        name=path.stem,
        path=path,
        title=title or path.stem,
        question=question,
        declared=declared,
        runs={run: {key: value for key, value in values.items() if key != "about"} for run, values in runs.items()},
    )
    _check_values(notebook, notebook.defaults, where=f"{path.name}: ")
    return notebook


def read_cells(path: Path) -> list[tuple[str, str, list[str]]]:
    """The kind, source and tags of a notebook's cells, from plain JSON: importing nbformat takes seconds.

    Raises:
        LabsError: the file is not a notebook of format 4.
    """
    try:
        document = json.loads(path.read_bytes())
        assert document["nbformat"] == 4, f"format {document['nbformat']}"
        return [
            (cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in document["cells"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise LabsError(f"{path} is not a notebook of format 4: {_one_line(error)}") from None


def _opening(text: str) -> tuple[str, str]:
    """The first heading and the first paragraph below it (up to its first question mark), as plain text."""
    heading, _, rest = text.strip().partition("\n")
    if not heading.startswith("#"):
        heading, rest = "", text
    paragraphs = [part for part in re.split(r"\n\s*\n", rest.strip()) if not part.startswith(("#", "|", "```"))]
    paragraph = " ".join(paragraphs[0].split()) if paragraphs else ""
    question, mark, _ = paragraph.partition("?")
    return heading.lstrip("# "), re.sub(r"[*`]", "", question + mark)


# --- Choosing runs -----------------------------------------------------------------------------------------------


def pick(kind: str, name: str, known: Iterable[str]) -> str:
    """The one of ``known`` that ``name`` means: itself, or the only one that begins so.

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
        notebooks: what `load_notebooks` returned.
        names: NOTEBOOK or NOTEBOOK:RUN, whole or as a unique prefix; none means every notebook.
        profile: what NOTEBOOK alone stands for: its quick run, or all its named runs.
        overrides: values for all these runs. Such a run has a name of its own and never replaces the result of another.
        device: value for the parameter ``device`` of each notebook that has one; the run keeps its name.

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
    """The quick run, the named runs, and those with other values that have a result in the folder `out`."""
    runs = [Run(notebook, name, notebook.runs.get(name, {})) for name in (QUICK, *notebook.runs)]
    for folder in sorted((out / notebook.name).glob("[!.]*-custom-*")):
        if record := freshness.read_record(folder):
            runs.append(Run(notebook, folder.name, record["parameters"]))
    return runs


def _make_run(notebook: Notebook, name: str, overrides: Mapping[str, Any], device: str | None) -> Run:
    _check_values(notebook, overrides, where=f"{notebook.name}: ")
    changed = {**notebook.runs.get(name, {}), **overrides}
    if overrides:
        values = json.dumps(dict(overrides), sort_keys=True, default=str)
        name = f"{name}-custom-{hashlib.sha256(values.encode()).hexdigest()[:8]}"
    return Run(notebook, name, changed, device if "device" in notebook.defaults else None)


def _check_values(notebook: Notebook, values: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if name not in notebook.defaults:
            raise LabsError(where + _unknown("parameter", name, notebook.defaults))
        default = notebook.defaults[name]
        if not _fits(value, default):
            raise LabsError(
                f"{where}{name} = {value!r} ({type(value).__name__}): expected {_type_name(default)}, as {default!r}"
            )
    try:
        parameters.check(notebook.declared, values, where)
    except ValueError as error:
        raise LabsError(str(error)) from None


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
        kind: "fresh" (its result is up to date), "waiting" (another process works on it), "started", "cell" (one more
            code
            cell is done), "again" (the first try went wrong, the second begins), "done" or "failed".
    """

    run: Run
    kind: Literal["fresh", "waiting", "started", "cell", "again", "done", "failed"]
    cell: int = 0  # code cells done
    cells: int = 0  # code cells in the notebook
    seconds: float = 0.0  # since the start of the run
    note: str = ""  # what went wrong, or which exercises are open


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    run: Run
    state: Literal["done", "fresh", "failed"]  # "fresh": an earlier result is valid
    folder: Path
    seconds: float = 0.0
    failure: Failure | None = None
    open: tuple[str, ...] = ()  # in a release, the exercises that are not solved yet


class Place(Protocol):
    """Where runs are executed: in kernels on this machine, or on the workers of ``labs.cluster``."""

    threads: int  # of a run
    jobs: int  # how many runs at once

    async def perform(self, job: Job, folder: Path, say: Say) -> Outcome:
        """Execute a job and leave its files in a folder; see ``jupyter.carry_out``."""


@dataclass(frozen=True)
class Here:
    """The cores of this machine, a kernel for each run."""

    cwd: Path
    jobs: int
    threads: int
    forge: Forge | None = None

    async def perform(self, job: Job, folder: Path, say: Say) -> Outcome:
        """Execute a job in a kernel."""
        return await jupyter.carry_out(
            job, folder, cwd=self.cwd, environment=os.environ, say=say, forge=None if job.checkpoints else self.forge
        )


def count_cores() -> int:
    """How many cores this process may use; a container may give it a share only."""
    from dask.system import CPU_COUNT

    return CPU_COUNT


def execute(
    project: Project,
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> list[Result]:
    """Execute runs side by side, each in a kernel of its own; those whose result is fresh are left alone.

    A failing run does not stop the others. Ctrl-C ends all kernels and leaves earlier results as they were. Several
    processes may ask for the same run: the first executes it, the others wait and find it fresh. An interrupted run
    goes
    on from its checkpoints.

    Args:
        out: the folder of the results.
        jobs: how many at once; by default as many as cores.
        threads: of each run; by default those of OMP_NUM_THREADS, else the cores are shared out evenly.
        force: execute also what is fresh, and start over what was interrupted.
        on_event: called in the caller's thread for every event.

    Returns:
        One result for each run, in the order of ``runs``.
    """
    todo = [run for run in runs if force or freshness.status(project, run, out).state != "done"]
    at_once = max(1, jobs or min(count_cores(), len(todo)))
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = threads or (int(given) if given.isdigit() else max(1, count_cores() // at_once))
    short = [run for run in todo if freshness.checkpoint_folder(run, out) is None]

    async def run_them() -> list[Result]:
        with contextlib.ExitStack() as stack:
            forge = None
            if len(short) >= WORTH_A_FORGE and sys.platform == "linux":
                forge = stack.enter_context(contextlib.closing(Forge(os.environ | jupyter.thread_environment(threads))))
            place = Here(project.notebooks, at_once, threads, forge)
            return await execute_at(place, project, runs, out, force=force, on_event=on_event)

    return run_until_interrupted(run_them())


def run_until_interrupted(coroutine: Coroutine[Any, Any, Value]) -> Value:
    """Run a coroutine; the first SIGINT, SIGTERM or SIGHUP cancels it, later ones do not disturb its tidying up.

    Raises:
        KeyboardInterrupt: there was a signal, and the coroutine has tidied up.
    """
    if threading.current_thread() is not threading.main_thread():  # only there Python takes signals
        return asyncio.run(coroutine)
    stopped = False

    async def run() -> Value:
        task = asyncio.ensure_future(coroutine)

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = task.cancel()

        for number in before:
            asyncio.get_running_loop().add_signal_handler(number, stop)
        return await task

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


async def execute_at(
    place: Place,
    project: Project,
    runs: Sequence[Run],
    out: Path,
    *,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> list[Result]:
    """Execute runs at a place; else as `execute`. They begin in the order given.

    Raises:
        LabsError: the place cannot be used any more.
        OSError: a result cannot be written.
    """
    crew = _Crew(project, out.resolve(), place, force, on_event or (lambda event: None))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(crew.perform(run)) for run in runs]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None  # the first ends the others
    return [task.result() for task in tasks]


class _Crew:
    """What the runs of one call have in common."""

    def __init__(self, project: Project, out: Path, place: Place, force: bool, say: Callable[[Event], None]) -> None:
        self.project = project
        self.out = out
        self.place = place
        self.force = force
        self.say = say
        self.room = asyncio.Semaphore(place.jobs)

    async def perform(self, run: Run) -> Result:
        """Execute one run, as soon as there is room, or find it fresh."""
        if fresh := self._if_fresh(run):
            return fresh
        async with self.room:
            folder = run.folder(self.out)
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(freshness.lock_file(folder))
            waited = await self._acquire(lock, run)
            try:
                # whoever held the lock has just executed this run
                return (self._if_fresh(run) if waited else None) or await self._perform(run, folder)
            finally:
                lock.release()

    async def _acquire(self, lock: filelock.BaseFileLock, run: Run) -> bool:
        """Take the lock; tell whether that meant waiting."""
        waited = False
        while True:
            try:
                lock.acquire(blocking=False)
                return waited
            except filelock.Timeout:
                if not waited:
                    self.say(Event(run, "waiting"))
                waited = True
                await asyncio.sleep(0.2)

    def _if_fresh(self, run: Run) -> Result | None:
        status = freshness.status(self.project, run, self.out)
        if self.force or status.state != "done":
            return None
        self.say(Event(run, "fresh", note=_tell_open(status.open)))
        return Result(run, "fresh", run.folder(self.out), open=status.open)

    async def _perform(self, run: Run, folder: Path) -> Result:
        partial = folder.with_name(f".{run.name}{PARTIAL}")
        kept = freshness.open_checkpoints(run, self.out, self.place.threads, force=self.force)
        began = time.monotonic() - kept.seconds
        students = (self.project.root / MANIFEST).exists()
        content = run.notebook.path.read_bytes()
        job = Job(run.name, content, run.all_parameters, kept.threads, kept.folder, kept.made_by, students)
        done = False
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            result = await self._execute(run, job, partial, kept.seconds)
            freshness.replace(partial, folder)
            done = result.state == "done"
            self.say(Event(run, result.state, seconds=result.seconds, note=_tell_open(result.open)))
            return result
        except OSError as error:
            error.filename = error.filename or str(folder)  # a full disk does not say where
            raise
        finally:
            if kept.folder:
                freshness.close_checkpoints(kept.folder, done=done, seconds=time.monotonic() - began)
            shutil.rmtree(partial, ignore_errors=True)

    async def _execute(self, run: Run, job: Job, partial: Path, spent: float) -> Result:
        stamp, began = freshness.stamp(self.project, run), time.monotonic()

        def say(message: dict[str, Any]) -> None:
            self.say(Event(run, seconds=time.monotonic() - began, **message))

        outcome = await self.place.perform(job, partial, say)
        outcome = replace(outcome, seconds=outcome.seconds + spent)  # what all tries took
        freshness.write_record(self.project, run, partial, stamp, outcome)
        state: Literal["done", "failed"] = "failed" if outcome.failure else "done"
        return Result(run, state, run.folder(self.out), outcome.seconds, outcome.failure, tuple(outcome.open))


def _tell_open(unsolved: Sequence[str]) -> str:
    return f"exercise{'s' * (len(unsolved) > 1)} open: {', '.join(unsolved)}" if unsolved else ""
