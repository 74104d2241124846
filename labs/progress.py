"""Shows how runs get on: a line for each in a log, a display that moves in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from labs.runner import Event

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID
    from rich.text import Text

    from labs.cost import Forecast


# Kind of event to what is said of its run, and how; a run at work tells its cell.
STATES = {
    "fresh": ("up to date", "green"),
    "waiting": ("waits: another process is running it", "dim"),
    "started": ("started", "default"),
    "cell": ("", ""),
    "again": ("tries once more", "yellow"),
    "done": ("done", "green"),
    "failed": ("FAILED", "bold red"),
}


def console() -> Console:
    """Standard output, as wide as it is; a pipe or a file has no width: there is room for whole lines."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=160)


@contextmanager
def showing(forecast: Forecast | None = None) -> Iterator[Callable[[Event], None]]:
    """What shows each event, and with a forecast the time left."""
    screen = console()
    lively = screen.is_terminal and not screen.is_dumb_terminal
    display = _Display(screen, forecast) if lively else None

    def show(event: Event) -> None:
        if forecast:
            forecast.hear(event)
        if display:
            display.show(event)
        else:
            _print(event, forecast)

    if display is None:
        yield show
        return
    with display.progress:
        yield show


def _print(event: Event, forecast: Forecast | None) -> None:
    """A line for what has become of a run; of one that takes long, also that it has begun."""
    if event.kind == "cell" or (event.kind == "started" and not forecast):
        return
    told = []
    if forecast and event.kind in ("started", "done", "failed"):
        own, total = forecast.left(event.run.label), forecast.total_left()
        told += [f"about {duration(own)}"] if own is not None and event.kind == "started" else []
        told += [f"all in about {duration(total)}"] if total else []
    took = {"done": f" in {duration(event.seconds)}", "failed": f" after {duration(event.seconds)}"}.get(event.kind, "")
    note = f", {event.note}" if event.note else ""
    left = f" ({', '.join(told)})" if told else ""
    click.echo(f"{event.run.label}: {STATES[event.kind][0]}{took}{note}{left}")


class _Display:
    """A line for each run at work: cells, time, how it ended, and with a forecast the time left."""

    def __init__(self, screen: Console, forecast: Forecast | None) -> None:
        from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
        from rich.text import Text

        class Left(ProgressColumn):
            """The time left of a run, or of all for the task without a run."""

            def render(self, task: Task) -> Text:
                """The time as it is now."""
                assert forecast is not None
                label = task.fields["label"]
                seconds = forecast.total_left() if label is None else forecast.left(label)
                return Text("" if seconds is None or task.finished else f"{duration(seconds)} left", style="cyan")

        self.progress: Progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            *([Left()] if forecast else []),
            TextColumn("{task.fields[note]}"),
            console=screen,
        )
        self.tasks: dict[str, TaskID] = {}
        self.total: TaskID | None = None
        if forecast:
            self.total = self.progress.add_task("all runs", total=len(forecast), label=None, note="")

    def show(self, event: Event) -> None:
        """Show an event."""
        label = event.run.label
        if label not in self.tasks:
            self.tasks[label] = self.progress.add_task(escape(label), total=event.cells or 1, note="", label=label)
        text, style = STATES[event.kind]
        state = f"[{style}]{text}[/]" if text else f"cell {event.cell}/{event.cells}"
        note = state + (f", {escape(event.note)}" if event.note else "")
        over = event.kind in ("fresh", "done", "failed")
        total, completed = (1, 1) if over else (event.cells or None, event.cell)
        self.progress.update(self.tasks[label], note=note, total=total, completed=completed)
        if self.total is not None and event.kind in ("done", "failed"):
            self.progress.advance(self.total)


def duration(seconds: float) -> str:
    """Seconds as people write them.

    Example:
        >>> duration(4.21), duration(75), duration(7260)
        ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
