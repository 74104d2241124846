"""The ``labs`` command: list the notebooks, run them, build the book, get data sets.

Exit codes: 0 all well; 1 a run or the build of the book failed; 2 a mistake on the command line; 130 interrupted.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from labs import freshness, runner
from labs.runner import LabsError, Result, Run
from labutils import __version__

if TYPE_CHECKING:
    from labs.cost import Estimate

STATE_STYLE = {"done": "green", "fresh": "green", "stale": "yellow", "failed": "bold red", "not run": "dim"}
REMEDIES = {
    "make room there, or name a folder on another disk": (errno.ENOSPC, errno.EDQUOT),
    "give yourself permission there, or name another folder": (errno.EACCES, errno.EPERM, errno.EROFS),
    "move away the file that has the name of a folder, or name another folder": (errno.ENOTDIR, errno.EEXIST),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``labs`` command with the words after ``labs``, by default those of the process; return the exit code."""
    _make_streams_usable()
    try:
        with _interruptible():
            code = _labs.main(arguments, prog_name="labs", standalone_mode=False) or 0
            sys.stdout.flush()
            return code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _complain(error.format_message() + (f" See {context.command_path} --help" if context else ""))
        return 2
    except LabsError as error:
        _complain(str(error))
        return 2
    except BrokenPipeError:  # whoever read this has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _complain(_explain_failure(error))
        return 1
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; what was finished stays, nothing half-written does")
        return 130


def _make_streams_usable() -> None:
    """Terminals that know less than Unicode get question marks; what goes to a closed stream is lost."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, stream)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _explain_failure(error: OSError) -> str:
    """Which folder cannot be used, what is left, and what helps."""
    remedy = next((words for words, numbers in REMEDIES.items() if error.errno in numbers), "name another folder")
    return (
        f"{error.filename or 'a file'}: {error.strerror or error}; what was finished stays, and checkpoints do. To go"
        f" on, {remedy}: --out DIR for results, LABUTILS_DATA for data sets, TMPDIR for temporary files"
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once; later ones do not disturb the tidying up."""

    def handle(number: int, frame: object) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _complain(message: str) -> None:
    click.echo(f"labs: {message}", err=True)


_OUT = click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results (default: results/ in the lab's folder).",
)
_JOBS = click.option(
    "--jobs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Notebooks at once (default: one for each core). They share the cores evenly.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="labs %(version)s")
def _labs() -> None:
    """The course lab on how neural networks learn: its notebooks, its book and its data."""


@_labs.command("list", short_help="Show the notebooks, their runs and results.")
@_OUT
def _list(out: Path | None) -> int:
    """Show the notebooks, their runs, and what is known of each result.

    \b
    done     the result belongs to the present code, parameters and data; exercises may be open
    stale    what stands in parentheses changed since: `labs run` repeats it
    failed   it ended with an error; the executed notebook is kept
    """
    from rich.markup import escape
    from rich.table import Table

    from labs import progress

    project = runner.find_project()
    table = Table("Notebook", "Question", "Run", "Status", box=None, header_style="bold", pad_edge=False)
    table.add_column("Time", justify="right", no_wrap=True)
    for notebook in runner.load_notebooks(project).values():
        heading = [escape(notebook.name), escape(notebook.question or notebook.title)]
        for run in runner.known_runs(notebook, out or project.results):
            status = freshness.status(project, run, out or project.results)
            told = list(status.changed) or [f"open: {name}" for name in status.open]
            changed = f" ({', '.join(told)})" if told else ""
            state = f"[{STATE_STYLE[status.state]}]{status.state}[/]{escape(changed)}"
            seconds = "" if status.seconds is None else progress.duration(status.seconds)
            table.add_row(*heading, escape(run.name), state, seconds)
            heading = ["", ""]
    progress.console().print(table)
    return 0


@_labs.command("run", short_help="Run notebooks side by side.")
@click.argument("names", nargs=-1, metavar="[NOTEBOOK[:RUN]]...")
@click.option(
    "-p",
    "--parameter",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="KEY VALUE",
    help="Another value for a parameter, as YAML (3, 1e-3, true, [relu, tanh]); may be repeated. The result goes "
    "to a run of its own, RUN-custom-HASH, beside RUN.",
)
@click.option(
    "--profile",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="What NOTEBOOK alone means: its quick run, or all its named runs (real data, the sources' settings).",
)
@_JOBS
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Value for the parameter `device` of the notebooks that have one; the others run as always. A finished "
    "run is not repeated because of it (see --force).",
)
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on the workers of this Dask scheduler, such as tls://192.0.2.1:8786. Whoever reaches a scheduler without "
    "TLS (tcp://) can run programs as you: keep it in a network that you trust. Certificates come from Dask's own "
    "configuration (distributed.comm.tls). Without a scheduler, --profile full runs here: as many at once as cores, "
    "memory and --jobs allow.",
)
@_OUT
@click.option("--force", is_flag=True, help="Run also what is up to date, and start over what was interrupted.")
@click.option("--dry-run", is_flag=True, help="Run nothing: print what each run would take on this machine.")
def _run(
    names: tuple[str, ...],
    parameters: tuple[tuple[str, str], ...],
    profile: Literal["quick", "full"],
    jobs: int | None,
    device: str | None,
    scheduler: str | None,
    out: Path | None,
    force: bool,
    dry_run: bool,
) -> int:
    """Run notebooks side by side; without names, all of them.

    NOTEBOOK may be cut short where it stays unique. Runs whose code, parameters and data are unchanged are
    not repeated. A failing notebook does not stop the others, and its executed notebook is kept. A named run
    that was interrupted goes on from its last checkpoint.

    \b
    labs run                          the quick run of every notebook
    labs run 21                       the quick run of 21_function_fitting
    labs run 21:d1-sinc               one of the runs named in notebooks/runs.yaml
    labs run 21 --profile full        all its named runs, each with one thread, the longest first
    labs run --profile full --dry-run what they would take
    labs run 21 -p epochs 50          the quick run with another value
    """
    project = runner.find_project()
    notebooks = runner.load_notebooks(project)
    overrides = {key: runner.parse_value(value) for key, value in parameters}
    runs = runner.select(notebooks, names, profile=profile, overrides=overrides, device=device)
    if not runs:
        raise LabsError("nothing to run: notebooks/runs.yaml names no run of " + (", ".join(names) or "any notebook"))
    if device == "cuda" and not scheduler:
        import torch

        if not torch.cuda.is_available():
            raise LabsError("--device cuda: this installation of torch sees no CUDA device; use --device cpu")
    if device and (without := sorted({run.notebook.name for run in runs if run.device is None})):
        click.echo(f"without a parameter `device`, run as always: {', '.join(without)}")
    out = out or project.results
    if dry_run:
        return _show_costs(project, runs, out, jobs, force, scheduler)
    if profile == "full" or scheduler:
        return _conclude(_execute_long(project, runs, out, jobs, force, scheduler))
    return _conclude(_execute(project, runs, out, jobs, force))


@_labs.command("book", short_help="Run what is not up to date and build the site.")
@click.option(
    "--out",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the book (default: _build/book/ in the lab's folder). What it holds is replaced.",
)
@click.option(
    "--results",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the results (default: results/ in the lab's folder).",
)
@click.option(
    "--without-answers",
    is_flag=True,
    help="A site for students who are graded: no solutions, no hidden tests, no source code of labutils.",
)
@click.option(
    "--pdf", is_flag=True, help="Print the whole book, too, by Chromium or Chrome, as book.pdf beside the site."
)
@_JOBS
def _book(out: Path | None, results: Path | None, without_answers: bool, pdf: bool, jobs: int | None) -> int:
    """Run what is not up to date, and build the site from the executed notebooks.

    Warnings count as errors. If a notebook fails, no site is built and an earlier one is removed. Prints where
    the first page is.
    """
    from labs import site

    project = runner.find_project()
    out, results = out or project.root / "_build" / "book", results or project.results
    runs = runner.select(runner.load_notebooks(project))
    ended = _execute(project, runs, results, jobs, force=False)
    if any(result.state == "failed" for result in ended):
        site.remove(out)
        return _conclude(ended, "no book was built")
    try:
        click.echo(site.build(project, results, out, answers=not without_answers, pdf=pdf))
    except site.BookError as error:
        _complain(str(error))
        return 1
    return 0


@_labs.command("publish", short_help="Keep finished source runs beside the book.")
@click.argument("names", nargs=-1, metavar="[NOTEBOOK[:RUN]]...")
@_OUT
@click.option(
    "--stale",
    is_flag=True,
    help="Publish also a run that earlier code, other versions of libraries or other data files made; the claims "
    "page says what changed since.",
)
def _publish(names: tuple[str, ...], out: Path | None, stale: bool) -> int:
    """Copy numbers, claims, figures and provenance of finished named runs to book/results/, for notebooks and book.

    NOTEBOOK alone means those of its named runs that are done, no name those of all notebooks. No paths of this
    machine go along, at most 100 kB of numbers a run, and at most 60 kB a figure.

    \b
    labs publish 21:d1-sinc           one run
    labs publish 21                   every finished named run of 21_function_fitting
    """
    from labs import publish

    project = runner.find_project()
    results = out or project.results
    runs, left_out = publish.choose(project, runner.load_notebooks(project), names, results, stale=stale)
    for done in publish.publish(project, runs, results):
        kept = f"{done.path.relative_to(project.root)} ({done.size / 1000:.1f} kB)"
        click.echo(f"{done.run.label}: {kept}, {done.change}")
    for label, reason in left_out.items():
        click.echo(f"{label}: not published, {reason}")
    return 0


@_labs.command("data", short_help="Get a data set and say where it is.")
@click.argument("name")
def _data(name: str) -> int:
    """Make sure that the data set NAME is there; print where it is, its sizes, classes and fingerprint."""
    from labutils import data  # takes seconds, which the other commands need not wait for

    try:
        dataset = data.load(runner.pick("data set", name, data.names()))
    except (data.DataUnavailableError, data.DamagedDataError) as error:
        _complain(str(error))
        return 1
    parts = {part: getattr(dataset, part) for part in ("train", "validation", "test")}
    rows = {
        "name": dataset.name,
        "file": dataset.file or "none: made in memory",
        **{part: f"{len(split)} x {tuple(split.x.shape[1:])}" for part, split in parts.items() if len(split)},
        "classes": ", ".join(dataset.classes),
        "fingerprint": dataset.fingerprint,
    }
    for key, value in rows.items():
        click.echo(f"{key:<12} {value}")
    return 0


@_labs.command("doctor", short_help="Check the installation and say what helps.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object in place of the lines.")
def _doctor(as_json: bool) -> int:
    """Check the installation: versions, kernel, notebooks, data, disk, memory, torchvision, GPU.

    Each line is ok, a warning (the lab works, with limits) or a failure, with its remedy. Exit code 1 after a
    failure. Where `labs` itself does not start, `python -m labs.doctor` does the same.
    """
    from labs import doctor

    return doctor.main(as_json=as_json)


@_labs.command("release", short_help="Make the students' version of the lab.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="FOLDER",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with data sets (mnist.npz, fashion_mnist.npz, cifar10.npz) to copy into the release, for a classroom "
    "without internet.",
)
def _release(folder: Path, data: Path | None) -> int:
    """Make the students' version of the lab in DIR: notebooks without solutions, what they need, and an index.

    DIR must be empty, or not there yet. Needs nbgrader (the extra `teach`).
    """
    from labs import release

    made = release.build(runner.find_project(), folder, data=data)
    rows = {
        "release": made.folder,
        "notebooks": f"{len(made.points)}, {sum(made.points.values()):g} points",
        "data": ", ".join(made.data) or "none (see --data)",
    }
    for key, value in rows.items():
        click.echo(f"{key:<10} {value}")
    return 0


@_labs.command("check", short_help="Check notebooks before they are handed in or graded.")
@click.argument("paths", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--repair",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Put the answers into clean notebooks: DIR/NOTEBOOK.ipynb, of a class DIR/STUDENT/NOTEBOOK.ipynb.",
)
@click.option(
    "--assignment",
    metavar="NAME",
    default="",
    help="With --repair: DIR/STUDENT/NAME/NOTEBOOK.ipynb, as nbgrader wants its folder `submitted`.",
)
@click.option(
    "--release",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="The folder that `labs release` made (default: the one in which you are, or `students` in this folder).",
)
def _check(paths: tuple[Path, ...], repair: Path | None, assignment: str, release: Path | None) -> int:
    """Say of each notebook whether a grade finds all that it needs, and what to do if not.

    FILE is a notebook, a folder of submissions, or the zip of a learning platform. Exit code 1 after a problem.

    \b
    labs check notebooks/21_function_fitting.ipynb           before you hand it in
    labs check week1.zip --repair submitted --assignment week1    what a class has handed in, made ready for nbgrader
    """
    from labs import check

    originals = check.find_originals(release)
    reports = [check.check(file, originals) for path in paths for file in check.collect(path)]
    if not reports:
        raise LabsError(f"there is no notebook in {', '.join(map(str, paths))}")
    several = len(reports) > len(paths) or not all(path.is_file() for path in paths)
    for report in reports:
        click.echo(check.describe(report, for_instructor=several))
    troubled = sum(bool(report.problems) for report in reports)
    if several:
        click.echo(f"{len(reports) - troubled} of {len(reports)} notebooks are ready")
    if repair:
        count = check.repair(reports, originals, repair, assignment)
        click.echo(f"clean notebooks with the answers: {count}, in {repair}")
    elif troubled:
        click.echo("labs check --repair NEW_FOLDER FILE puts the answers into clean notebooks")
    return 1 if troubled and not repair else 0


# --- What runs take ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """What is to be done."""

    todo: list[Run]  # without a result that is up to date, the longest first
    estimates: dict[str, Estimate]  # by label, of all runs
    checkpoints: dict[str, float | None]  # by label: when an earlier try saved last
    jobs: int  # at once


def _plan(
    project: runner.Project, runs: Sequence[Run], out: Path, jobs: int | None, force: bool, scheduler: str | None
) -> _Plan:
    from labs import cost

    todo = [run for run in runs if force or freshness.status(project, run, out).state != "done"]
    estimates = cost.estimates(project, runs, out)
    todo.sort(key=lambda run: -(estimates[run.label].seconds or 0.0))
    checkpoints = {run.label: None if force else freshness.last_checkpoint(run, out) for run in todo}
    needs = [estimates[run.label].memory for run in todo]
    jobs = (jobs or len(todo) or 1) if scheduler else cost.room(needs, jobs)
    return _Plan(todo, estimates, checkpoints, jobs)


def _show_costs(
    project: runner.Project, runs: Sequence[Run], out: Path, jobs: int | None, force: bool, scheduler: str | None
) -> int:
    from rich.markup import escape
    from rich.table import Table

    from labs import cost, progress

    plan = _plan(project, runs, out, jobs, force, scheduler)
    table = Table("Run", box=None, header_style="bold", pad_edge=False)
    table.add_column("Time", justify="right", no_wrap=True)
    table.add_column("Memory", justify="right", no_wrap=True)
    table.add_column("Time is", no_wrap=True)
    table.add_column("Result")
    for run in runs:
        estimate = plan.estimates[run.label]
        if run not in plan.todo:
            state = "[green]up to date[/]"
        elif saved := plan.checkpoints[run.label]:
            state = f"checkpoint of {datetime.fromtimestamp(saved):%Y-%m-%d %H:%M}"
        else:
            state = freshness.status(project, run, out).state
        seconds = "unknown" if estimate.seconds is None else progress.duration(estimate.seconds)
        table.add_row(escape(run.label), seconds, f"{estimate.memory:,.0f} MiB", estimate.basis, state)
    known = [seconds for run in plan.todo if (seconds := plan.estimates[run.label].seconds) is not None]
    least = "at least " if len(known) < len(plan.todo) else ""
    cpu, wall = progress.duration(sum(known)), progress.duration(cost.wall_seconds(known, plan.jobs))
    screen = progress.console()
    screen.print(table)
    screen.print(
        f"\n{len(plan.todo)} of {len(runs)} to do: {least}{cpu} of CPU time, {least}{wall} with {plan.jobs} at once"
    )
    if any(plan.checkpoints.values()):
        screen.print("Runs with a checkpoint take what is left of them.")
    screen.print(
        "Times are for one thread on the CPU: of the run before on this machine, else of another one, where they may be"
        " three times longer or shorter."
    )
    return 0


# --- Executing ---------------------------------------------------------------------------------------------------


def _execute(project: runner.Project, runs: Sequence[Run], out: Path, jobs: int | None, force: bool) -> list[Result]:
    from labs import progress

    with progress.showing() as show:
        return runner.execute(project, runs, out, jobs=jobs, force=force, on_event=show)


def _execute_long(
    project: runner.Project, runs: Sequence[Run], out: Path, jobs: int | None, force: bool, scheduler: str | None
) -> list[Result]:
    """The longest first, each with one thread, so that its numbers do not depend on how many others there are."""
    from labs import cost, progress

    plan = _plan(project, runs, out, jobs, force, scheduler)
    seconds = {run.label: plan.estimates[run.label].seconds for run in plan.todo}
    resumed = [run.label for run in plan.todo if plan.checkpoints[run.label]]
    sorted_runs = [*plan.todo, *(run for run in runs if run not in plan.todo)]
    with progress.showing(cost.Forecast(seconds, 1 if scheduler else plan.jobs, resumed)) as show:
        if scheduler:
            from labs import cluster

            how = {"scheduler": scheduler, "jobs": plan.jobs, "force": force, "on_event": show}
            results = cluster.execute(project, sorted_runs, out, **how)
        else:
            results = runner.execute(project, sorted_runs, out, threads=1, jobs=plan.jobs, force=force, on_event=show)
    found = {result.run.label: result for result in results}
    return [found[run.label] for run in runs]


def _conclude(results: Sequence[Result], consequence: str = "") -> int:
    """Tell which runs failed, where and why; return the exit code."""
    failed = [result for result in results if result.failure]
    if not failed:
        return 0
    names = ", ".join(result.run.label for result in failed)
    tail = f"; {consequence}" if consequence else ""
    _complain(f"{len(failed)} of {len(results)} runs failed: {names}{tail}")
    for result in failed:
        failure = result.failure
        assert failure is not None
        where = f", cell {failure.cell} of {failure.cells}" if failure.cell else ""
        click.echo(f"\n{result.run.label}{where}: {failure.error}", err=True)
        for text in (failure.source, failure.traceback):
            if text:
                click.echo("\n" + "\n".join(f"    {line}" for line in text.splitlines()), err=True)
        if failure.cell or failure.traceback:
            click.echo(f"\n    kept: {result.folder / 'notebook.ipynb'}", err=True)
    return 1


if __name__ == "__main__":
    sys.exit(main())
