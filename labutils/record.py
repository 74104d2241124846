"""What a run found: its numbers, figures and claims, with what is needed to get them again.

A notebook calls `start` right after its parameters and records through the `Run` it gets back. Every call leaves a
complete metrics.json behind, so that a run stopped halfway has recorded what it knew. Two identical runs differ under
"time" only.
"""

from __future__ import annotations

import base64
import copy
import html
import io
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageChops

from labutils.plotting import use_style
from labutils.statistics import Interval, mean_interval, share_interval

try:
    import resource
except ImportError:  # Windows
    resource = None

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from labutils.data import Dataset

SYMBOLS = {"supported": "✔", "not supported": "✘", "inconclusive": "?"}
PACKAGES = ("labutils", "torch", "torchvision", "numpy", "scipy", "matplotlib")
FEWEST_SEEDS = 3
FEWEST_OUTCOMES = 6  # the exact 95 % interval of five agreeing outcomes still includes one half
SHORTEST_ALT = 20  # characters: less cannot say what there is to see

_IPYTHON_NAMES = frozenset({"In", "Out", "exit", "quit", "get_ipython"})
_SLUG = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_DPI = 180
_CSS_DPI = _DPI / 2  # shown at half its size, the picture is sharp on a high-resolution screen


def start(notebook: str, parameters: Mapping[str, Any]) -> Run:
    """Begin the record of a run: an empty metrics.json, no figures, and the house style for plots.

    Call it right after the parameters cell. The folder is that of the environment variable LABUTILS_RUN_DIR, which
    `labs run` sets together with LABUTILS_RUN, the run's name; without it, results/NOTEBOOK/interactive under the
    project (the nearest folder upwards that holds notebooks/runs.yaml; if there is none, under the working folder).

    Args:
        notebook: Name of the notebook without its ending, such as "21_function_fitting".
        parameters: Usually `globals()`. Plain values (numbers, strings, booleans, None; lists, tuples and dicts of
            these) under public names are kept as the parameters, everything else is passed over. In a kernel that
            has run later cells, their plain values count, too: restart it for a clean record.

    Returns:
        The run, to record with.

    Raises:
        ValueError: If the notebook's name is not a plain file name.

    Example:
        >>> import contextlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ...     run = start("demo", {"seed": 0, "epochs": 5})
        ...     run.metrics(loss=0.25)
        ...     run.claim("Training helps", source="an example", holds=[0.4, 0.5, 0.6], evidence="fall of the loss")
        ✔ supported: Training helps (an example)
          mean effect 0.50 [0.25, 0.75], n = 3 (95 % interval, above 0): fall of the loss
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", notebook):
        raise ValueError(f"notebook must be a name such as '21_function_fitting', got {notebook!r}")
    given = os.environ.get("LABUTILS_RUN_DIR")
    folder = Path(given).absolute() if given else _project_root() / "results" / notebook / "interactive"
    name = os.environ.get("LABUTILS_RUN") or (folder.name if given else "interactive")
    kept = {
        key: value
        for key, value in parameters.items()
        if not key.startswith("_") and key not in _IPYTHON_NAMES and _is_plain(value)
    }
    use_style()
    return Run(notebook, name, folder, kept)


class Run:
    """The record of one run of a notebook; made by `start`.

    Attributes:
        notebook: Name of the notebook.
        name: Name of the run, such as "quick".
        folder: Where metrics.json and figures/ are.
        parameters: The parameters of the run.
    """

    def __init__(self, notebook: str, name: str, folder: Path, parameters: Mapping[str, Any]) -> None:
        self.notebook, self.name, self.folder = notebook, name, folder
        self.parameters = copy.deepcopy(dict(parameters))  # as they are now, whatever the notebook does with its lists
        self._started, self._clock = _now(), time.perf_counter()
        self._provenance = _provenance(self.parameters.get("device"))
        self._data: dict[tuple[str, str], dict[str, Any]] = {}
        self._metrics: dict[str, tuple[Any, bool]] = {}
        self._figures: dict[str, dict[str, str]] = {}
        self._claims: dict[str, Claim] = {}
        self._figure_folder.mkdir(parents=True, exist_ok=True)
        self._write()
        for stale in self._figure_folder.glob("*.png"):  # of the run that was here before
            stale.unlink()

    def __repr__(self) -> str:
        return f"Run {self.name!r} of {self.notebook}"

    def uses(self, dataset: Dataset) -> None:
        """Record name, sizes, fingerprint and source file of a data set as the run's data.

        Args:
            dataset: As returned by `labutils.data.load`.
        """
        self._data[dataset.name, dataset.fingerprint] = {
            "name": dataset.name,
            "fingerprint": dataset.fingerprint,
            "train": len(dataset.train),
            "validation": len(dataset.validation),
            "test": len(dataset.test),
            "file": None if dataset.file is None else str(Path(dataset.file).absolute()),
        }
        self._write()

    def metrics(self, **numbers: Any) -> None:
        """Record numbers by name; a name used before gets the new value.

        Args:
            **numbers: Numbers, strings, booleans, None, `Interval` values, numpy arrays and torch tensors, and lists,
                tuples and dicts of these. NaN and infinite numbers, unknown to JSON, become null, and the names
                of such metrics are listed under "non_finite".

        Raises:
            TypeError: If a value is of another type; the message names the metric. None of the call is recorded then.
        """
        self._metrics |= {name: _as_json(value, f"metric {name!r}") for name, value in numbers.items()}
        self._write()

    def figure(self, figure: Figure, name: str, *, alt: str) -> SavedFigure:
        """Save a figure as figures/NAME.png, close it and return it for display; a figure of that name is replaced.

        Args:
            figure: Every axes that shows data needs a label at both axes: its own, that of an axes in its column (row)
                that shares the axis, or the figure's `supxlabel` (`supylabel`). A color bar needs its label. Where an
                axis is switched off, as for pictures, a title (or the figure's `suptitle`) stands for it.
            name: Lower-case words joined by "-" or "_", such as "loss-by-epoch".
            alt: What there is to see, for those who cannot see it: kind of plot, axes and finding.

        Returns:
            The figure, to be displayed as the last value of a cell.

        Raises:
            ValueError: If a label is missing (the message says where), no axes shows data, alt is shorter than 20
                characters, or the name is not a slug. The figure is closed then, too.
        """
        try:
            if not _SLUG.fullmatch(name):
                slug = "-".join(re.findall(r"[a-z0-9]+", name.lower())) or "loss-by-epoch"
                raise ValueError(f"figure name {name!r} must be lower-case words joined by - or _, such as {slug!r}")
            alt = " ".join(alt.split())
            if len(alt) < SHORTEST_ALT:
                raise ValueError(
                    f"figure {name!r}: alt must say what there is to see (kind of plot, axes, finding) in at least"
                    f" {SHORTEST_ALT} characters, got {alt!r}"
                )
            if missing := _missing_labels(figure):
                raise ValueError(f"figure {name!r}: " + "; ".join(missing))
            png = _png(figure)
        finally:
            plt.close(figure)
        file = f"figures/{name}.png"
        write_atomically(self.folder / file, png)
        self._figures[name] = {"name": name, "file": file, "alt": alt}
        self._write()
        return SavedFigure(name, alt, png)

    def claim(self, text: str, *, source: str, holds: ArrayLike, evidence: str = "") -> Claim:
        """Record whether a claim is borne out by repeated seeds; the verdict is computed, see `judge`.

        Args:
            text: The claim as a sentence; the same text again replaces the claim.
            source: Who says so, such as "D2 1-1".
            holds: One value a seed, shape (seeds,): effects (numbers, positive where the claim holds) or outcomes
                (booleans).
            evidence: What the numbers are, with their unit, such as "loss of M2 minus loss of M0".

        Returns:
            The claim with its verdict, to be displayed.

        Raises:
            ValueError: If text or source is empty, or holds has the wrong shape or values that are not finite.
            TypeError: If holds is neither numbers nor booleans.
        """
        if not text.strip() or not source.strip():
            raise ValueError(f"a claim needs a text and a source, got {text!r} and {source!r}")
        claim = judge(text.strip(), source=source.strip(), holds=holds, evidence=evidence.strip())
        self._claims[claim.text] = claim
        self._write()
        return claim

    def claims(self) -> Claims:
        """Return all claims so far as one table, to be displayed."""
        return Claims(tuple(self._claims.values()))

    @property
    def _figure_folder(self) -> Path:
        return self.folder / "figures"

    def _write(self) -> None:
        parameters = {name: _as_json(value, f"parameter {name!r}") for name, value in self.parameters.items()}
        document = {
            "notebook": self.notebook,
            "run": self.name,
            "parameters": {name: value for name, (value, _) in parameters.items()},
            "metrics": {name: value for name, (value, _) in self._metrics.items()},
            "non_finite": [f"parameters.{name}" for name, (_, finite) in parameters.items() if not finite]
            + [name for name, (_, finite) in self._metrics.items() if not finite],
            "claims": [claim.as_json() for claim in self._claims.values()],
            "figures": list(self._figures.values()),
            "provenance": {
                **self._provenance,
                "threads": torch.get_num_threads(),
                "data": list(self._data.values()),
            },
            "time": {
                "started": self._started,
                "updated": _now(),
                "wall_seconds": round(time.perf_counter() - self._clock, 3),
                "peak_memory_mib": _peak_memory(),
            },
        }
        write_atomically(self.folder / "metrics.json", (layout(document) + "\n").encode())


@dataclass(frozen=True)
class SavedFigure:
    """A recorded figure, as a notebook displays it.

    Attributes:
        name: Its name; the file is figures/NAME.png in the folder of the run.
        alt: What there is to see, in words.
        png: The bytes of the file.
    """

    name: str
    alt: str
    png: bytes

    def __repr__(self) -> str:
        return f"Figure {self.name}: {self.alt}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        code = base64.b64encode(self.png).decode()
        # Width and height are the first two fields of a PNG file's header chunk.
        pixels = (int.from_bytes(self.png[at : at + 4], "big") for at in (16, 20))
        width, height = (round(size * _CSS_DPI / _DPI) for size in pixels)
        picture = (
            f'<img src="data:image/png;base64,{code}" alt="{html.escape(self.alt)}" width="{width}"'
            ' style="max-width: 100%; height: auto">'
        )
        bundle = {"text/html": picture, "image/png": code, "text/plain": repr(self)}
        return bundle, {"image/png": {"width": width, "height": height}}


@dataclass(frozen=True, repr=False)
class Claim:
    """A claim with its verdict, as a notebook displays it; made by `judge`.

    Attributes:
        text: The claim.
        source: Who says so.
        verdict: "supported", "not supported" or "inconclusive".
        reason: Why this verdict.
        measure: "mean effect" or "share of seeds".
        interval: The estimate over the seeds.
        evidence: What the numbers are.
        values: The effect or outcome of each seed.
    """

    text: str
    source: str
    verdict: str
    reason: str
    measure: str
    interval: Interval
    evidence: str
    values: tuple[float | bool, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the claim as metrics.json holds it."""
        return _as_json(asdict(self), "claim")[0]

    def __repr__(self) -> str:
        return f"{self._verdict}: {self.text} ({self.source})\n  {self._numbers}"

    def _repr_html_(self) -> str:
        verdict, text, source, numbers = map(html.escape, (self._verdict, self.text, self.source, self._numbers))
        # No colors: text and border take those of the page, light or dark.
        return (
            '<div style="border: 1px solid; border-left-width: 5px; border-radius: 4px; padding: 0.4em 0.8em;'
            f' max-width: 45em"><strong>{verdict}</strong>: {text} <cite>({source})</cite><br>'
            f"<small>{numbers}</small></div>"
        )

    @property
    def _verdict(self) -> str:
        return f"{SYMBOLS[self.verdict]} {self.verdict}"

    @property
    def _numbers(self) -> str:
        confidence = f"{100 * self.interval.confidence:g} % interval"
        about = f": {self.evidence}" if self.evidence else ""
        return f"{self.measure} {self.interval} ({confidence}, {self.reason}){about}"


@dataclass(frozen=True, repr=False)
class Claims:
    """Claims as one table, as a notebook displays it."""

    claims: tuple[Claim, ...]

    def __len__(self) -> int:
        return len(self.claims)

    def __iter__(self) -> Iterator[Claim]:
        return iter(self.claims)

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.claims)) or "No claims recorded."

    def _repr_html_(self) -> str:
        if not self.claims:
            return f"<p>{self!r}</p>"
        cell = 'style="text-align: left; vertical-align: top"'
        heads = ("Verdict", "Claim", "Source", "Over the seeds")
        rows = [
            f'<tr><td {cell}><strong>{html.escape(claim._verdict)}</strong></td><th scope="row" {cell}>'
            f"{html.escape(claim.text)}</th><td {cell}>{html.escape(claim.source)}</td>"
            f"<td {cell}>{html.escape(claim._numbers)}</td></tr>"
            for claim in self.claims
        ]
        counts = [f"{sum(claim.verdict == verdict for claim in self.claims)} {verdict}" for verdict in SYMBOLS]
        return (
            f"<table><caption>Claims: {', '.join(counts)}</caption><thead><tr>"
            + "".join(f'<th scope="col" {cell}>{head}</th>' for head in heads)
            + f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
        )


def judge(text: str, *, source: str, holds: ArrayLike, evidence: str = "") -> Claim:
    """Decide a claim from one effect or one outcome a seed.

    Effects are judged by the Student t interval for their mean, against 0; outcomes by the exact (Clopper-Pearson)
    interval for the share of seeds in which the claim holds, against one half. With the whole 95 % interval above, the
    claim is supported; with the whole interval below, not supported; else inconclusive, as with fewer than 3 seeds.
    Outcomes need at least 6 seeds to decide anything.

    Args:
        text: The claim.
        source: Who says so.
        holds: One value a seed, shape (seeds,): effects (numbers, positive where the claim holds) or outcomes
            (booleans).
        evidence: What the numbers are, with their unit.

    Returns:
        The claim with its verdict.

    Raises:
        ValueError: If holds is empty, not one-dimensional, not finite, or integers of 0 and 1 only, which could be
            either.
        TypeError: If holds is neither numbers nor booleans.

    Example:
        >>> judge("Deeper is better", source="D1 Q1", holds=[True] * 5 + [False]).verdict
        'inconclusive'
    """
    values = np.asarray(holds.detach().cpu() if isinstance(holds, torch.Tensor) else holds)
    outcomes = values.dtype == np.bool_
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"claim {text!r}: holds must have shape (seeds,), one value a seed, got {values.shape}")
    if not outcomes and values.dtype.kind not in "fiu":
        raise TypeError(f"claim {text!r}: holds must be numbers (effects) or booleans (outcomes), got {values.dtype}")
    if values.dtype.kind in "iu" and np.isin(values, (0, 1)).all():
        raise ValueError(
            f"claim {text!r}: holds is 0 and 1 only: pass booleans if these are outcomes, floats if these are effects"
        )
    if bad := int(np.count_nonzero(~np.isfinite(values))):
        raise ValueError(
            f"claim {text!r}: {bad} of {values.size} values of holds are NaN or infinite: decide what a diverged run"
            " counts as (an outcome False, or a stated worst effect) and put that in"
        )
    if outcomes:
        interval, threshold, measure = share_interval(values), 0.5, "share of seeds"
    else:
        interval, threshold, measure = mean_interval(values), 0.0, "mean effect"
    if values.size < FEWEST_SEEDS:
        verdict, reason = "inconclusive", f"only {values.size} of at least {FEWEST_SEEDS} seeds"
    elif interval.low > threshold:
        verdict, reason = "supported", f"above {threshold:g}"
    elif interval.high < threshold:
        verdict, reason = "not supported", f"below {threshold:g}"
    else:
        verdict, reason = "inconclusive", f"includes {threshold:g}"
        if outcomes and values.size < FEWEST_OUTCOMES:
            reason += f"; {FEWEST_OUTCOMES} seeds are the fewest that can decide"
    return Claim(text, source, verdict, reason, measure, interval, evidence, tuple(values.tolist()))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that at every moment it is either the old or the new one, never a part.

    Args:
        path: The file; its folder must exist.
        content: What it is to hold.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "note.txt"), b"done")
        ...     [path.name for path in Path(folder).iterdir()]
        ['note.txt']
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:  # Ctrl-C, too
        partial.unlink(missing_ok=True)
        raise


def _png(figure: Figure) -> bytes:
    """Return the figure as a PNG file whose bytes depend on nothing but the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches="tight", pil_kwargs={"compress_level": 1})
    picture = Image.open(buffer).convert("RGB")
    if picture.getcolors(10_000):  # few colors, by 256 of which a plot takes a third of the space and looks the same
        small = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        difference = ImageChops.difference(picture, small.convert("RGB"))
        if max(high for _, high in difference.getextrema()) <= 12:
            picture = small
    buffer = io.BytesIO()
    picture.save(buffer, format="png")  # without matplotlib's metadata, which name its version
    return buffer.getvalue()


def _missing_labels(figure: Figure) -> list[str]:
    """Return what keeps a reader from knowing what the figure shows, in words."""
    shown = [ax for ax in figure.axes if ax.get_visible() and (ax.has_data() or _is_colorbar(ax))]
    if not any(ax.has_data() for ax in shown):
        return ["no axes shows data: draw before saving"]
    missing = []
    for number, ax in enumerate(shown, start=1):
        title = next((text for side in ("left", "center", "right") if (text := ax.get_title(loc=side).strip())), "")
        what = f"axes {number} of {len(shown)}" + (f" ({title})" if title else "")
        if _is_colorbar(ax):
            if not (ax.get_xlabel().strip() or ax.get_ylabel().strip() or title):
                missing.append(f"{what}, a color bar, lacks its label: colorbar(..., label=...)")
            continue
        axis_on = _axis_on(ax)
        unlabeled = [which for which in ("x", "y", "z") if hasattr(ax, f"{which}axis") and not _labeled(ax, which)]
        absent = [which for which in unlabeled if axis_on and getattr(ax, f"{which}axis").get_visible()]
        if absent:
            missing.append(f"{what} lacks " + " and ".join(f"{which}label" for which in absent))
        elif unlabeled and not (title or figure.get_suptitle().strip()):
            missing.append(f"{what} has an axis switched off and lacks a title")
    return missing


def _labeled(ax: Axes, which: str) -> bool:
    """Whether the reader sees what this axis is: its own label, one that it shares, or one for the whole figure."""
    if which == "z":  # of a 3-D plot, which shares nothing
        return bool(ax.get_zlabel().strip())
    if _axis_on(ax) and getattr(ax.figure, f"get_sup{which}label")().strip():
        return True
    group = getattr(ax, f"get_shared_{which}_axes")().get_siblings(ax)
    return any(
        _axis_on(other)
        and getattr(other, f"{which}axis").get_visible()
        and getattr(other, f"get_{which}label")().strip()
        and (other is ax or _aligned(ax, other, which))
        for other in group
    )


def _aligned(ax: Axes, other: Axes, which: str) -> bool:
    """Whether two axes stand in one column (for x) or one row (for y)."""
    mine, theirs = (a.get_position() for a in (ax, other))
    low, high = ("x0", "x1") if which == "x" else ("y0", "y1")
    return getattr(mine, low) < getattr(theirs, high) and getattr(theirs, low) < getattr(mine, high)


def _axis_on(ax: Axes) -> bool:
    return ax.axison or ax.name == "3d"  # 3-D axes draw their own and switch the flat ones off


def _is_colorbar(ax: Axes) -> bool:
    return hasattr(ax, "_colorbar")  # matplotlib has no public way to ask


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def _as_json(value: Any, name: str) -> tuple[Any, bool]:
    """Return a value as JSON has it (null for what is not finite) and whether all of it was finite."""
    if isinstance(value, Interval):
        value = asdict(value)
    elif isinstance(value, np.ndarray | np.generic | torch.Tensor):
        value = value.tolist()
    if isinstance(value, dict):
        if strange := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"{name}: keys must be strings, got {strange[0]!r}")
        items = {key: _as_json(item, name) for key, item in value.items()}
        return {key: item for key, (item, _) in items.items()}, all(finite for _, finite in items.values())
    if isinstance(value, list | tuple):
        parts = [_as_json(item, name) for item in value]
        return [item for item, _ in parts], all(finite for _, finite in parts)
    if isinstance(value, float):
        return (float(value), True) if isfinite(value) else (None, False)
    if value is None or isinstance(value, bool | int | str):
        return value, True
    raise TypeError(
        f"{name}: a {type(value).__name__} cannot be recorded; use numbers, strings, arrays, and lists or dicts of them"
    )


def layout(document: Mapping[str, Any]) -> str:
    """Return JSON with one line an entry of each section: readable, and a long curve stays one line.

    Args:
        document: The sections by name, of what JSON knows.

    Returns:
        The text of a metrics.json, without a line break at its end.

    Raises:
        ValueError: If a number is NaN or infinite.

    Example:
        >>> print(layout({"run": "quick", "metrics": {"loss": [0.5, 0.25], "epochs": 2}}))
        {
         "run": "quick",
         "metrics": {
          "loss": [0.5, 0.25],
          "epochs": 2
         }
        }
    """

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)

    def section(value: Any) -> str:
        if isinstance(value, dict) and value:
            return "{\n  " + ",\n  ".join(f"{line(key)}: {line(item)}" for key, item in value.items()) + "\n }"
        if isinstance(value, list) and value:
            return "[\n  " + ",\n  ".join(map(line, value)) + "\n ]"
        return line(value)

    return "{\n " + ",\n ".join(f"{line(key)}: {section(value)}" for key, value in document.items()) + "\n}"


def _provenance(device: object) -> dict[str, Any]:
    """Return what the numbers may depend on besides code, parameters and data."""
    versions: dict[str, Any] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)  # asks the installed metadata: nothing is imported for it
        except PackageNotFoundError:
            versions[package] = None
    accelerator = None
    if isinstance(device, str) and device.startswith("cuda") and torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name(device)
    return {
        "python": platform.python_version(),
        **versions,
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "accelerator": accelerator,
    }


def _peak_memory() -> float | None:
    """Return the largest resident memory of this process so far, in MiB: without that of its children.

    On a GPU machine, the host's memory only. None on Windows, which does not tell.
    """
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS says bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _project_root() -> Path:
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks" / "runs.yaml").is_file()), here)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
