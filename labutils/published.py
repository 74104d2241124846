"""The published source runs of a notebook: what they found, and how near they come to a document's own settings.

`labs publish` keeps a finished run as book/results/NOTEBOOK/RUN/metrics.json, with its figures beside it; what it is
stands in notebooks/runs.yaml, under *about*. `Record.source_runs` shows them above the quick run.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from labutils import parameters
from labutils.claims import SYMBOLS, Claim

FOLDER = Path("book") / "results"
LONGEST_VALUE = 60  # characters of a setting


@dataclass(frozen=True)
class SourceRun:
    """A named run of a notebook, published or not.

    Attributes:
        notebook, name: As in runs.yaml.
        settings: The values that replace the notebook's defaults.
        folder: Where it is published; it may be missing.
        document: The document whose settings it has, such as "D2"; empty for an experiment of the lab's own.
        instead_of: The runs that it stands in for, in less time.
        answers: Whether it answers the question of its notebook.
        metrics: What its metrics.json holds; empty if it has not been published.
        differences: Where it differs from the document's own settings, in words; what runs.yaml says under *differs* is
            among them: where a document leaves a setting open, or ours is another one on purpose.
    """

    notebook: str
    name: str
    settings: Mapping[str, Any]
    folder: Path
    document: str = ""
    instead_of: tuple[str, ...] = ()
    answers: bool = False
    metrics: Mapping[str, Any] = field(default_factory=dict, repr=False)
    differences: tuple[str, ...] = ()

    @property
    def claims(self) -> list[Claim]:
        """Its claims: the key ones, or all if none is."""
        claims = [Claim.from_json(entry) for entry in self.metrics.get("claims", [])]
        return [claim for claim in claims if claim.key] or claims

    @property
    def figures(self) -> list[Mapping[str, Any]]:
        """Its figures that were kept: the key ones, or the first if none is."""
        kept = [figure for figure in self.metrics.get("figures", []) if (self.folder / figure["file"]).is_file()]
        return [figure for figure in kept if figure.get("key")] or kept[:1]

    @property
    def heading(self) -> str:
        """What it is: whose settings, which data, how many seeds, when."""
        if self.instead_of:
            what = f"a shortened run in place of {' and '.join(self.instead_of)}"
        elif self.document:
            what = f"{self.document}'s experiment" if self.differences else f"at {self.document}'s own settings"
        else:
            what = "an experiment of this lab's own"
        if not self.metrics:
            return f"{what} · not published yet: labs run {self.notebook}:{self.name}"
        from labutils.data import TITLES  # brings torch, which other commands need not wait for

        data = self.metrics.get("provenance", {}).get("data", [])
        parts = []
        for name in dict.fromkeys(entry["name"] for entry in data):
            train, test = (_span(entry[part] for entry in data if entry["name"] == name) for part in ("train", "test"))
            parts.append(f"{TITLES.get(name, name)} ({train} to train, {test} to test)")
        claims = self.metrics.get("claims", [])
        seeds = sorted({entry["interval"]["n"] for entry in claims if entry.get("each", "seeds") == "seeds"})
        if seeds:
            least = f"{seeds[0]} to " if seeds[0] < seeds[-1] else ""
            parts.append(f"{least}{seeds[-1]} {'seed' if seeds[-1] == 1 else 'seeds'}")
        day = self.metrics.get("time", {}).get("started", "")[:10]
        return " · ".join([what, *parts, *([day] if day else [])])


def load(root: Path, notebook: str) -> list[SourceRun]:
    """Return the named runs of a notebook of the project (or a release) `root`, in the order of runs.yaml.

    Example:
        >>> load(Path("/no/such/project"), "21_function_fitting")
        []
    """
    try:
        text = (root / "notebooks" / "runs.yaml").read_text(encoding="utf-8")
        named = parameters.read_yaml(text)[notebook]
    except (OSError, KeyError, TypeError):
        return []
    settings = {run: {key: value for key, value in values.items() if key != "about"} for run, values in named.items()}
    runs = []
    for name, values in named.items():
        about = dict(values.get("about", {}))
        instead_of = about.pop("instead_of", [])
        about["instead_of"] = (instead_of,) if isinstance(instead_of, str) else tuple(instead_of)
        folder = root / FOLDER / notebook / name
        try:
            metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            metrics = {}
        if metrics:  # the evidence in the words of today
            metrics["claims"] = [Claim.from_json(entry).as_json() for entry in metrics.get("claims", [])]
        found = metrics.get("parameters", {})
        own = about["instead_of"] or (name,)
        told = [_differences(found, settings[one]) for one in own] if metrics else []
        told += [[named[one]["about"]["differs"]] for one in own if "differs" in named[one].get("about", {})]
        about.pop("differs", None)
        differences = tuple(dict.fromkeys(text for texts in told for text in texts))
        runs.append(
            SourceRun(notebook, name, settings[name], folder, metrics=metrics, differences=differences, **about)
        )
    return runs


def choose(runs: Sequence[SourceRun]) -> SourceRun | None:
    """Return the run to show first: of the published ones the one that answers the notebook's question.

    If that one is not published, a run in place of it, then the first of a document's own, then any.

    Example:
        >>> choose([])
    """
    answers = {run.name for run in runs if run.answers}
    wanted: list[Callable[[SourceRun], bool]] = [
        lambda run: run.answers,
        lambda run: bool(answers & set(run.instead_of)),
        lambda run: bool(run.document and not run.instead_of),
        lambda run: True,
    ]
    published = [run for run in runs if run.metrics]
    return next((run for is_wanted in wanted for run in published if is_wanted(run)), None)


@dataclass(frozen=True)
class SourceRuns:
    """All named runs of a notebook as it displays them: one shown at once, the others folded up below."""

    runs: tuple[SourceRun, ...]
    shown: SourceRun | None

    @classmethod
    def of(cls, root: Path, notebook: str) -> Self:
        """Return those of a notebook of the project (or a release) `root`."""
        runs = load(root, notebook)
        return cls(tuple(runs), choose(runs))

    def __repr__(self) -> str:
        return "\n".join(_as_text(part) for part in self._parts())

    def _repr_html_(self) -> str:
        return f'<div class="source-runs">{"".join(self._parts())}</div>'

    def _parts(self) -> Iterator[str]:
        if not self.runs:
            yield "<p>No source runs are named for this notebook.</p>"
            return
        if self.shown is None:
            names = ", ".join(run.name for run in self.runs)
            yield f"<p>No source run of this notebook has been published yet ({html.escape(names)}).</p>"
        else:
            yield f"<p>{_head(self.shown)}</p>{_body(self.shown)}"
        for run in self.runs:
            if run is not self.shown:
                head = _head(run)
                yield f"<details><summary>{head}</summary>{_body(run)}</details>" if run.metrics else f"<p>{head}</p>"


def _span(numbers: Iterable[int]) -> str:
    """A number, or the least and the greatest of several."""
    found = sorted(numbers)
    least, most = found[0], found[-1]
    return f"{least:,}" if least == most else f"{least:,}–{most:,}"


def _head(run: SourceRun) -> str:
    return f"<strong>{html.escape(run.name)}</strong>: {html.escape(run.heading)}"


def _body(run: SourceRun) -> str:
    parts = []
    if run.differences:
        parts.append(f"<p>Not as in the document: {html.escape('; '.join(run.differences))}.</p>")
    parts += [_picture(run.folder / figure["file"], figure["alt"]) for figure in run.figures]
    lines = [
        f"<li><strong>{SYMBOLS[claim.verdict]} {claim.verdict}</strong>: {html.escape(claim.text)} "
        f"<cite>({html.escape(claim.source)})</cite><br><small>{html.escape(claim.evidence)}</small></li>"
        for claim in run.claims
    ]
    return "".join([*parts, f'<ul style="list-style: none; padding-left: 0">{"".join(lines)}</ul>' if lines else ""])


def _picture(path: Path, alt: str) -> str:
    """Return a picture that needs no file beside the page: it shows in Jupyter and on the site alike."""
    code = base64.b64encode(path.read_bytes()).decode()
    source = f"data:image/{path.suffix[1:]};base64,{code}"
    style = "width: 630px; max-width: 100%; height: auto"
    return f'<p><img src="{source}" alt="{html.escape(alt)}" style="{style}"></p>'


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    """Tell which settings of a run are not those that are wanted."""
    for name, value in wanted.items():
        if name not in found or found[name] == value:
            continue
        other = found[name]
        if isinstance(value, dict) and isinstance(other, dict):  # one value for each experiment
            yield from _differences(*({f"{name} of {key}": one for key, one in d.items()} for d in (other, value)))
        elif isinstance(value, list) and all(isinstance(one, str) and one in other for one in value):
            continue  # a run of more experiments at once
        else:
            yield f"{name} {_brief(other)} instead of {_brief(value)}"


def _brief(value: Any) -> str:
    if isinstance(value, list | dict):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "the default"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value)


def _as_text(part: str) -> str:
    """Return what HTML says as lines of text."""
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"</p>|</li>|</summary>|<br>", "\n", part))).strip()
