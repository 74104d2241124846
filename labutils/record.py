"""What a run found: its numbers, figures and claims, with what is needed to get them again.

A notebook calls `start` right after its parameters and records through the `Record` it gets back. Every call leaves a
complete metrics.json behind. Two identical runs differ under "time" only.
"""

from __future__ import annotations

import base64
import copy
import html
import io
import os
import platform
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike
from PIL import Image, ImageChops
from torch import nn

from labutils import __version__
from labutils.claims import SLUG, Claim, Claims, judge
from labutils.drawing import use_style
from labutils.files import find_project, layout, write_atomically
from labutils.identity import versions
from labutils.parameters import check_cells
from labutils.published import SourceRuns
from labutils.statistics import Interval, Kind

try:
    import resource
except ImportError:  # Windows
    resource = None

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from labutils.data import Dataset

SHORTEST_ALT = 20  # characters: less cannot say what there is to see

_IPYTHON_NAMES = frozenset({"In", "Out", "exit", "quit", "get_ipython"})
_DPI = 180
_CSS_DPI = _DPI / 2  # shown at half its size, the picture is sharp on a high-resolution screen


def start(notebook: str, parameters: Mapping[str, Any]) -> Record:
    """Begin the record of a run: an empty metrics.json, no figures, and the house style for plots.

    The folder is that of the environment variable LABUTILS_RUN_DIR, which `labs run` sets together with LABUTILS_RUN,
    the run's name; without it, results/NOTEBOOK/interactive under the project, or else under the working folder.

    Args:
        notebook: Name of the notebook without its ending, such as "21_function_fitting".
        parameters: Usually `globals()`. Plain values (numbers, strings, booleans, None; lists, tuples and dicts of
            these) under public names are kept, also those of later cells that have run: restart the kernel for a clean
            record.

    Raises:
        ValueError: The notebook's name is not a plain file name, or a value is none of those that the parameters cell
            allows (see `labutils.parameters`).

    Example:
        >>> import contextlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        ...     run = start("demo", {"seed": 0, "epochs": 5})
        ...     run.metrics(loss=0.25)
        ...     claim = run.claim("helps", "It helps.", source="D1", measured=[0.4, 0.5, 0.6], above=0, unit="nats")
        ✔ supported: It helps. (D1)
          measured 0.50 [0.25, 0.75] nats, needs more than 0 · 3 seeds
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", notebook):
        raise ValueError(f"notebook must be a name such as '21_function_fitting', got {notebook!r}")
    check_cells(parameters)
    given = os.environ.get("LABUTILS_RUN_DIR")
    folder = Path(given).absolute() if given else (find_project() or Path.cwd()) / "results" / notebook / "interactive"
    name = os.environ.get("LABUTILS_RUN") or (folder.name if given else "interactive")
    kept = {
        key: value
        for key, value in parameters.items()
        if not key.startswith("_") and key not in _IPYTHON_NAMES and _is_plain(value)
    }
    use_style()
    return Record(notebook, name, folder, kept)


class Record:
    """The record of one run of a notebook, in the folder of metrics.json and figures/; made by `start`."""

    def __init__(self, notebook: str, name: str, folder: Path, parameters: Mapping[str, Any]) -> None:
        self.notebook, self.name, self.folder = notebook, name, folder
        self.parameters = copy.deepcopy(dict(parameters))  # as they are now, whatever the notebook does with its lists
        self._started, self._clock = _now(), time.perf_counter()
        self._provenance = _provenance(self.parameters.get("device"))
        self._data: dict[tuple[str, str], dict[str, Any]] = {}
        self._metrics: dict[str, tuple[Any, bool]] = {}
        self._figures: dict[str, dict[str, Any]] = {}
        self._claims: dict[str, Claim] = {}
        self._figure_folder.mkdir(parents=True, exist_ok=True)
        self._write()
        for stale in self._figure_folder.glob("*.png"):  # of the run that was here before
            stale.unlink()

    def __repr__(self) -> str:
        return f"Run {self.name!r} of {self.notebook}"

    def uses(self, dataset: Dataset) -> None:
        """Record name, sizes, fingerprint and source file of a data set of `labutils.data.load`."""
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

        Strings, booleans, None, `Interval`, arrays, tensors, Series, and lists, tuples and dicts of these are numbers,
        too; DataFrames become lists by column, networks left out. NaN and infinite numbers, unknown to JSON, become
        null, and the names of such metrics are listed under "non_finite".

        Raises:
            TypeError: A value of another type; the message names the metric. None of the call is recorded then.
        """
        self._metrics |= {name: _as_json(value, f"metric {name!r}") for name, value in numbers.items()}
        self._write()

    def figure(self, figure: Figure, name: str, *, alt: str, key: bool = False) -> SavedFigure:
        """Save a figure as figures/NAME.png, close it and return it for display; a figure of that name is replaced.

        Args:
            figure: Every axes that shows data needs a label at both axes: its own, that of an axes in its column (row)
                that shares the axis, or the figure's `supxlabel` (`supylabel`). A color bar needs its label. Where an
                axis is switched off, as for pictures, a title (or the figure's `suptitle`) stands for it.
            name: Lower-case words joined by "-" or "_", such as "loss-by-epoch".
            alt: What there is to see, for those who cannot see it: kind of plot, axes and finding.
            key: Whether it answers the question of the notebook: those of a source run stand above the quick run.

        Raises:
            ValueError: A label is missing (the message says where), no axes shows data, alt is shorter than 20
                characters, or the name is not a slug. The figure is closed then, too.
        """
        try:
            if not SLUG.fullmatch(name):
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
        self._figures[name] = {"name": name, "file": file, "alt": alt, "key": key}
        self._write()
        return SavedFigure(name, alt, png)

    def claim(
        self,
        id: str,
        text: str,
        *,
        source: str,
        measured: ArrayLike,
        unit: str = "",
        kind: Kind = "mean",
        key: bool = False,
        each: str = "seeds",
        **needs: Any,
    ) -> Claim:
        """Record and show a claim; its verdict is computed from the measured values, see `labutils.claims.judge`.

        Args:
            id: A name for it, unique in the run, such as "depth-helps".
            text: The claim as a sentence that stands alone: subject named, threshold said.
            source: Who says so, such as "D2 1-1".
            measured: One value a seed, shape (seeds,); for a share, booleans.
            unit: Unit of the values, or a few words that say what they are.
            kind: "mean", "fraction", "share", "correlation" or "ratio".
            key: Whether it answers the question of the notebook: such claims stand above the quick run.
            each: What has one value each, in the plural, where it is not the seeds.
            **needs: `above=` or `below=` a number, or `within=(low, high)`.

        Returns:
            The claim with its verdict. It has shown itself; as the last value of a cell it is not shown again.

        Raises:
            ValueError, TypeError: As `labutils.claims.judge`, and if another claim of the run has this id.
        """
        claim = judge(id, text, source=source, measured=measured, unit=unit, kind=kind, key=key, each=each, **needs)
        if (earlier := self._claims.get(id)) and earlier.text != claim.text:
            raise ValueError(f"claim id {id!r} is that of {earlier.text!r}: give {claim.text!r} another id")
        self._claims[id] = claim
        self._write()
        claim.show()
        return claim

    def source_runs(self) -> SourceRuns:
        """Return what the published source runs of this notebook found, to be displayed: figures, claims, settings.

        Those that answer its question (`answers: true` in runs.yaml) stand first, the others are folded up below.
        """
        return SourceRuns.of(find_project() or Path.cwd(), self.notebook)

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
            "provenance": {**self._provenance, "threads": torch.get_num_threads(), "data": list(self._data.values())},
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
    """A recorded figure, as a notebook displays it: its name, what there is to see in words, the bytes of the file."""

    name: str
    alt: str
    png: bytes

    def __repr__(self) -> str:
        return f"Figure {self.name}: {self.alt}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        code = base64.b64encode(self.png).decode()
        width, height = (round(size * _CSS_DPI / _DPI) for size in Image.open(io.BytesIO(self.png)).size)
        picture = (
            f'<img src="data:image/png;base64,{code}" alt="{html.escape(self.alt)}" width="{width}"'
            ' style="max-width: 100%; height: auto">'
        )
        bundle = {"text/html": picture, "image/png": code, "text/plain": repr(self)}
        return bundle, {"image/png": {"width": width, "height": height}}


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
    elif isinstance(value, pd.DataFrame):
        value = value.drop(columns=[c for c in value if any(isinstance(item, nn.Module) for item in value[c])])
        value = value.to_dict("list")
    elif isinstance(value, np.ndarray | np.generic | torch.Tensor | pd.Series):
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


def _provenance(device: object) -> dict[str, Any]:
    """Return what the numbers may depend on besides code, parameters and data."""
    accelerator = None
    if isinstance(device, str) and device.startswith("cuda") and torch.cuda.is_available():
        accelerator = torch.cuda.get_device_name(device)
    return {
        **versions(),
        **{"labutils": __version__, "matplotlib": mpl.__version__},
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device,
        "accelerator": accelerator,
    }


def _peak_memory() -> float | None:
    """Return the largest resident memory of this process so far, in MiB, without its children's; None on Windows."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS says bytes, Linux KiB
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
