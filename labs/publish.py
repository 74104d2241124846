"""Keeps what finished source runs found beside the book: `labs publish`.

A published run is its metrics.json under ``book/results/<notebook>/<run>/``: numbers, claims and provenance, without
paths of the machine; beside it lie its figures, compressed. The notebooks show them above their quick runs, and the
book makes its pages of claims and results from them.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labs import freshness, runner, site
from labs.runner import LabsError, Notebook, Project, Run
from labutils.files import layout, write_atomically

LARGEST = 100_000  # bytes of a published metrics.json
LARGEST_FIGURE = 60_000  # bytes of each picture
# A run of another notebook text or with other parameters is another run, whatever one says about it.
NEVER_PASSED_OVER = ("notebook", "parameters", "result ")
# A path from the root of a file system: /home/ann/x, ~/x, C:\\x; not a/b, https://a/b or 1/2.
_MACHINE_PATH = re.compile(r"(?<![\w.:/~-])(?:~?(?:/[\w.+-]+){2,}|~/[\w.+-]+|[A-Za-z]:\\[\w.+-]+)")


@dataclass(frozen=True)
class Published:
    """A run that was published."""

    run: Run
    path: Path  # its metrics.json beside the book
    size: int  # of this file and the figures, in bytes
    change: str  # "new", "replaced" or "unchanged"


def folder(project: Project) -> Path:
    """Where the published runs are."""
    return project.root / "book" / site.PUBLISHED


def choose(
    project: Project, notebooks: Mapping[str, Notebook], names: Sequence[str], results: Path, *, stale: bool = False
) -> tuple[list[Run], dict[str, str]]:
    """Choose the runs that the words of a command line mean.

    Args:
        names: NOTEBOOK:RUN, which must be fit to be published, or NOTEBOOK, which means those of its named runs that
            are;
            none means those of every notebook.
        results: the folder of the results.
        stale: take also a run that earlier code, other versions of libraries or other data files made.

    Returns:
        The runs to publish, and for the other named runs that have a result what is against it: label to reason.

    Raises:
        LabsError: a run that was asked for by its name cannot be published, or nothing can.
    """
    chosen: dict[str, Run] = {}
    left_out: dict[str, str] = {}
    for name in names or notebooks:
        asked = ":" in name
        if "-custom-" in name:
            raise LabsError(f"{name} has parameters of its own: name them in notebooks/runs.yaml, and run that")
        for run in runner.select(notebooks, [name], profile="full"):
            reason = _against(project, run, results, stale)
            if reason is None:
                chosen[run.label] = run
            elif asked:
                raise LabsError(f"{run.label} cannot be published: {reason}")
            elif freshness.status(project, run, results).state != "not run":
                left_out[run.label] = reason
    if not chosen:
        told = "".join(f"\n    {label}: {reason}" for label, reason in left_out.items())
        raise LabsError(f"no finished named run of {', '.join(names) or 'any notebook'} in {results}{told}")
    return list(chosen.values()), left_out


def publish(project: Project, runs: Sequence[Run], results: Path) -> list[Published]:
    """Copy metrics and figures of chosen runs to the book: of all of them, or of none where one is not fit.

    Raises:
        LabsError: a run's metrics.json or one of its figures is missing or another run's, holds a path of this machine,
            or takes more than 100 kB. Nothing is written then.
    """
    contents = {run.label: _content(project, run, results) for run in runs}
    done = []
    for run in runs:
        target, files = folder(project) / run.notebook.name / run.name, contents[run.label]
        path = target / "metrics.json"
        before = {name: (target / name).read_bytes() for name in files if (target / name).is_file()}
        for name, content in files.items():  # metrics.json comes last: what it names is there
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(target / name, content)
        for stray in (target / "figures").glob("*"):
            if f"figures/{stray.name}" not in files:
                stray.unlink()
        size = sum(map(len, files.values()))
        change = "unchanged" if before == files else "replaced" if before else "new"
        done.append(Published(run, path, size, change))
    return done


def _against(project: Project, run: Run, results: Path, stale: bool) -> str | None:
    """Return what is against publishing a run, with the remedy; None where nothing is."""
    if run.name == runner.QUICK:
        return "the book shows quick runs by itself; name a run of notebooks/runs.yaml"
    status = freshness.status(project, run, results)
    again = f"labs run {run.label}"
    if status.state == "done":
        return None
    if status.state == "not run":
        return f"it is not run: {again}"
    if status.state == "failed":
        assert status.failure is not None
        return f"it failed ({status.failure.error}): {again}"
    changed = ", ".join(status.changed)
    if any(name.startswith(NEVER_PASSED_OVER) for name in status.changed):
        return f"it is stale ({changed} changed since): {again}"
    return (
        None if stale else f"it is stale ({changed} changed since): {again}, or publish it with --stale, which says so"
    )


def _content(project: Project, run: Run, results: Path) -> dict[str, bytes]:
    """The files to publish for a run, by name: its figures, and at the end metrics.json."""
    source = run.folder(results)
    path = source / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise LabsError(f"{run.label} has recorded nothing: {path} is missing or not readable") from None
    recorded = f"{metrics.get('notebook')}:{metrics.get('run')}"
    if recorded != run.label:
        raise LabsError(f"{path} is that of {recorded}, not of {run.label}")
    provenance = metrics.setdefault("provenance", {})
    for data in provenance.get("data", []):
        if data.get("file"):  # its folder belongs to this machine
            data["file"] = re.split(r"[\\/]", data["file"])[-1]
    provenance["made_by"] = freshness.made_by(source)
    if record := freshness.read_record(source):
        metrics.setdefault("time", {})["wall_seconds"] = record["seconds"]  # with those of interrupted tries
    if changed := freshness.status(project, run, results).changed:
        provenance["changed_since"] = list(changed)
    files = {}
    for figure in metrics.get("figures", []):
        try:
            suffix, content = compress((source / figure["file"]).read_bytes())
        except OSError:
            raise LabsError(f"{run.label} cannot be published: its figure {figure['file']} is missing") from None
        figure["file"] = str(Path(figure["file"]).with_suffix(suffix).as_posix())
        files[figure["file"]] = content
    for where, text in _texts(metrics):
        if found := _MACHINE_PATH.search(text):
            raise LabsError(
                f"{run.label} cannot be published: {where} holds a path of this machine, {found.group()}; "
                "record a name instead"
            )
    content = (layout(metrics) + "\n").encode()
    if len(content) > LARGEST:
        raise LabsError(_too_big(run, metrics, len(content)))
    return files | {"metrics.json": content}


def compress(picture: bytes) -> tuple[str, bytes]:
    """Make a PNG picture at most 60 kB large: without loss if that will do, else with as little as it takes.

    Returns:
        The ending of its name and the content: of the smaller one of PNG and WebP.
    """
    from PIL import Image

    image = Image.open(io.BytesIO(picture)).convert("RGB")

    def webp(**options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, format="webp", method=4, **options)
        return buffer.getvalue()

    smallest = webp(lossless=True)
    if len(picture) <= min(len(smallest), LARGEST_FIGURE):
        return ".png", picture
    while len(smallest) > LARGEST_FIGURE:
        for quality in (90, 75, 60):
            smallest = min(smallest, webp(quality=quality), key=len)
            if len(smallest) <= LARGEST_FIGURE:
                return ".webp", smallest
        image = image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS)
        smallest = webp(quality=75)
    return ".webp", smallest


def _too_big(run: Run, metrics: Mapping[str, Any], size: int) -> str:
    sizes = {name: len(json.dumps(value, ensure_ascii=False)) for name, value in metrics.get("metrics", {}).items()}
    most = max(sizes, key=sizes.__getitem__, default="")
    return (
        f"{run.label} cannot be published: its metrics take {size / 1000:.1f} kB of at most {LARGEST / 1000:.0f} kB "
        f"(most of it {most!r}). Let the notebook record what its figures show, a summary or one training instead of "
        "every curve, and run it again"
    )


def _texts(value: Any, where: str = "metrics.json") -> Iterator[tuple[str, str]]:
    """Every text in a document, names too, with the place where it stands."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield where, key
            yield from _texts(item, f"{where}, {key}" if where != "metrics.json" else key)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, where)
