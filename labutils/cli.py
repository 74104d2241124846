"""The ``labs`` command: list the notebooks, run them, build the book, get data sets.

Exit codes: 0 all well; 1 a run or the build of the book failed; 2 a mistake on the command line; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from labutils import __version__, runner
from labutils.runner import Event, LabsError, Result, Run

STATE_STYLE = {"done": "green", "fresh": "green", "stale": "yellow", "failed": "bold red", "not run": "dim"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``labs`` command.

    Args:
        arguments: the words after ``labs``; those of the process by default.

    Returns:
        The exit code: 0, 1 (something failed), 2 (a mistake on the command line) or 130 (interrupted).
    """
    try:
        with runner.interruptible():
            return _labs.main(arguments, prog_name="labs", standalone_mode=False) or 0
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
    except OSError as error:  # no room, no permission
        _complain(str(error))
        return 1
    except (KeyboardInterrupt, click.Abort):
        _complain("interrupted; what was finished stays, nothing half-written does")
        return 130


def _complain(message: str) -> None:
    click.echo(f"labs: {message}", err=True)


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    # a pipe or a file has no width: leave room for whole lines
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=160)


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
    done     the result belongs to the present code, parameters and data
    stale    what stands in parentheses changed since: `labs run` repeats it
    failed   it ended with an error; the executed notebook is kept
    """
    project = runner.find_project()
    table = Table("Notebook", "Question", "Run", "Status", box=None, header_style="bold", pad_edge=False)
    table.add_column("Time", justify="right", no_wrap=True)
    for notebook in runner.load_notebooks(project).values():
        heading = [escape(notebook.name), escape(notebook.question or notebook.title)]
        for run in runner.known_runs(notebook, out or project.results):
            status = runner.status(project, run, out or project.results)
            changed = f" ({', '.join(status.changed)})" if status.changed else ""
            state = f"[{STATE_STYLE[status.state]}]{status.state}[/]{escape(changed)}"
            seconds = "" if status.seconds is None else _duration(status.seconds)
            table.add_row(*heading, escape(run.name), state, seconds)
            heading = ["", ""]
    _console().print(table)
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
@_OUT
@click.option("--force", is_flag=True, help="Run also what is up to date.")
def _run(
    names: tuple[str, ...],
    parameters: tuple[tuple[str, str], ...],
    profile: Literal["quick", "full"],
    jobs: int | None,
    device: str | None,
    out: Path | None,
    force: bool,
) -> int:
    """Run notebooks side by side; without names, all of them.

    NOTEBOOK may be cut short where it stays unique. Runs whose code, parameters and data are unchanged are
    not repeated. A failing notebook does not stop the others, and its executed notebook is kept.

    \b
    labs run                          the quick run of every notebook
    labs run 21                       the quick run of 21_function_fitting
    labs run 21:d1-sinc               one of the runs named in notebooks/runs.yaml
    labs run 21 --profile full        all its named runs
    labs run 21 -p epochs 50          the quick run with another value
    """
    project = runner.find_project()
    notebooks = runner.load_notebooks(project)
    overrides = {key: runner.parse_value(value) for key, value in parameters}
    runs = runner.select(notebooks, names, profile=profile, overrides=overrides, device=device)
    if not runs:
        raise LabsError("nothing to run: notebooks/runs.yaml names no run of " + (", ".join(names) or "any notebook"))
    if device == "cuda":
        _require_cuda()
    if device and (without := sorted({run.notebook.name for run in runs if run.device is None})):
        click.echo(f"without a parameter `device`, run as always: {', '.join(without)}")
    results = _execute(project, runs, out or project.results, jobs, force)
    return _conclude(results)


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
@_JOBS
def _book(out: Path | None, results: Path | None, jobs: int | None) -> int:
    """Run what is not up to date, and build the site from the executed notebooks.

    Warnings count as errors. If a notebook fails, no site is built and an earlier one is removed. Prints where
    the first page is.
    """
    from labutils import site

    project = runner.find_project()
    out, results = out or project.root / "_build" / "book", results or project.results
    runs = runner.select(runner.load_notebooks(project))
    ended = _execute(project, runs, results, jobs, force=False)
    if any(result.state == "failed" for result in ended):
        site.remove(out)
        return _conclude(ended, "no book was built")
    try:
        click.echo(site.build(project, results, out))
    except site.BookError as error:
        _complain(str(error))
        return 1
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


def _require_cuda() -> None:
    import torch

    if not torch.cuda.is_available():
        raise LabsError("--device cuda: this installation of torch sees no CUDA device; use --device cpu")


# --- Showing progress --------------------------------------------------------------------------------------------


def _execute(project: runner.Project, runs: Sequence[Run], out: Path, jobs: int | None, force: bool) -> list[Result]:
    console = _console()
    if not console.is_terminal:
        return runner.execute(project, runs, out, jobs=jobs, force=force, on_event=_print_event)
    with _Display(console) as display:
        return runner.execute(project, runs, out, jobs=jobs, force=force, on_event=display)


def _print_event(event: Event) -> None:
    text = {
        "fresh": "up to date",
        "waiting": "waits: another process is running it",
        "started": f"started, {event.cells} cells",
        "cell": f"cell {event.cell}/{event.cells} ({_duration(event.seconds)})",
        "done": f"done in {_duration(event.seconds)}",
        "failed": f"FAILED after {_duration(event.seconds)}",
    }[event.kind]
    click.echo(f"{event.run.label}: {text}")


class _Display:
    """A line for each run at work: cells, time, and how it ended."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Display:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        label = event.run.label
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(escape(label), total=event.cells or 1, note="")
        note = {
            "fresh": "[green]up to date[/]",
            "waiting": "another process is running it",
            "done": "[green]done[/]",
            "failed": "[bold red]failed[/]",
        }.get(event.kind, f"cell {event.cell}/{event.cells}")
        over = event.kind in ("fresh", "done", "failed")
        total, completed = (1, 1) if over else (event.cells or None, event.cell)
        self.progress.update(self.tasks[label], note=note, total=total, completed=completed)


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
        click.echo(f"\n    kept: {result.folder / 'notebook.ipynb'}", err=True)
    return 1


def _duration(seconds: float) -> str:
    """Seconds as people write them.

    Example:
        >>> _duration(4.21), _duration(75), _duration(7260)
        ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


if __name__ == "__main__":
    sys.exit(main())
