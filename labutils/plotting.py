"""One house style, and the few figure parts that several notebooks share.

Figures are read on a phone as often as on a desk: few inches wide, labels beside the lines instead of a legend,
colors that survive color blindness, and never color alone. What is one line of matplotlib stays matplotlib.

Whole figures are drawn from long-format frames, as `training.sweep` returns them (one row a seed and epoch): `lines`
with bands over seeds, `points`, `heatmaps` and `forest` (estimates with intervals, beside reported ones):

    >>> import pandas as pd
    >>> rows = [
    ...     {"lr": lr, "seed": seed, "epoch": epoch, "loss": (1 + seed / 9) * (1 - lr) ** epoch}
    ...     for lr in (0.1, 0.3) for seed in range(3) for epoch in range(5)
    ... ]
    >>> figure, ax = lines(pd.DataFrame(rows), x="epoch", y="loss", hue="lr", log=["loss"])
    >>> [text.get_text() for text in ax.texts]  # at the lines' ends
    ['lr 0.1', 'lr 0.3']
    >>> plt.close(figure)
"""

from __future__ import annotations

import base64
import functools
import html
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, Protocol

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib import colors as mcolors
from matplotlib import patheffects, ticker
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from labutils.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

# After Okabe and Ito (2008), "Color Universal Design", with the lightness changed: every color has a contrast of
# at least 3:1 against white (their yellow has 1.3), and lightness tells apart what color blindness makes one hue.
COLORS = ("#00508F", "#B23A00", "#4C9A68", "#D36DA8", "#222222", "#2492E8", "#A39000")

DIVERGING = "RdBu_r"  # for signed numbers: white is 0
LINES = ("-", "--", ":", "-.")
MARKERS = "os^Dv<>"
WIDTH = 7.0  # inches; at the saved resolution as wide as a page of the book
_TEXT = "#222222"
_MUTED = "#595959"
# Steps of a decade that log_ticks tries, the most readable first.
_LOG_STEPS = ((1, 2, 5), (1, 3), (1, 2, 3, 4, 6), (1, 1.5, 2, 3, 4, 5, 6, 8), (1,))
_CSS_DPI = 90  # pixels of a page for an inch: half the saved resolution
_HEATMAP, _CELL = "heatmap", "cell"
_CHARACTER = 0.65  # width of a character, relative to its height
_NOTE = "_note: "  # matplotlib keeps labels that begin with an underscore out of legends

STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#8C8C8C",
    "axes.formatter.min_exponent": 3,  # 0.2 instead of 2 x 10^-1 on logarithmic axes
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": _TEXT,
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(color=COLORS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.xmargin": 0.02,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,  # inches: a label at the right end keeps off the next panel
    "figure.facecolor": "white",
    "figure.figsize": (WIDTH, 4.0),
    "figure.titlesize": 12,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures are the same everywhere
    "font.size": 10.5,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "image.cmap": "viridis",
    "image.interpolation": "nearest",
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "savefig.dpi": 180,
    "savefig.facecolor": "white",
    "text.color": _TEXT,
    "xtick.color": "#8C8C8C",
    "xtick.labelcolor": _MUTED,
    "xtick.labelsize": 10,
    "ytick.color": "#8C8C8C",
    "ytick.labelcolor": _MUTED,
    "ytick.labelsize": 10,
}


def use_style() -> None:
    """Make the house style matplotlib's default; `record.start` does so for every notebook.

    Example:
        >>> use_style()
        >>> mpl.rcParams["figure.figsize"]
        [7.0, 4.0]
    """
    mpl.rcParams.update(STYLE)


def panels(
    rows: int = 1, columns: int = 1, *, width: float = WIDTH, height: float | None = None, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure of rows x columns axes in the house size.

    Args:
        rows: Number of rows.
        columns: Number of columns. Three are the most that stay readable on a phone.
        width: Width of the whole figure in inches.
        height: Height of one row in inches; by default in proportion to the width of a panel.
        **options: Passed on to `matplotlib.pyplot.subplots`, such as `sharey=True`.

    Returns:
        The figure, and its axes: one `Axes`, a 1-D array for a single row or column, else a 2-D array.

    Example:
        >>> figure, (left, right) = panels(1, 2, sharey=True)
        >>> plt.close(figure)
    """
    if height is None:
        height = min(max(0.6 * width / columns, 2.8), 4.0)
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * height), layout="constrained", **options)
    for ax in figure.axes:
        # 20000 beside 17500 is hard to read, and there is no epoch 2.5.
        ax.locator_params(axis="x", nbins=6 if columns == 1 else 3, steps=[1, 2, 5, 10])
    return figure, axes


def panel_each(titles: Iterable[str], *, columns: int = 2, **options: Any) -> tuple[Figure, dict[str, Axes]]:
    """Return a figure with one titled panel for each of the titles, row by row.

    Args:
        titles: Titles of the panels, all different.
        columns: Panels in a row; a single title gets a single panel.
        **options: Passed on to `panels`, such as `height=2.5`.

    Returns:
        The figure, and the axes by title, in the given order.

    Raises:
        ValueError: If there is no title, or one occurs twice.

    Example:
        >>> figure, axes = panel_each(["x²", "sinc", "square wave"])
        >>> list(axes)
        ['x²', 'sinc', 'square wave']
        >>> plt.close(figure)
    """
    titles = list(titles)
    if not titles or len(set(titles)) < len(titles):
        raise ValueError(f"titles must be one or more, all different, got {titles}")
    columns = min(columns, len(titles))
    figure, axes = panels(ceil(len(titles) / columns), columns, squeeze=False, **options)
    for ax in axes.flat[len(titles) :]:
        ax.remove()
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(title)
    return figure, dict(zip(titles, axes.flat, strict=False))


def curves(
    ax: Axes,
    x: ArrayLike,
    values: ArrayLike,
    label: str,
    *,
    color: str | None = None,
    band: Literal["range", "interval"] | None = "range",
    linestyle: str = "-",
    shade: float = 0.2,
) -> Line2D:
    """Draw repeated runs as one line, with a band for how far the runs differ.

    The band "range" (the default) goes from the lowest to the highest run around the median, which hides no run and
    holds on any scale. "interval" is the mean with the 95 % t interval for the mean; on a logarithmic axis, the
    geometric mean with the interval of the logarithms (so set the scale first). None draws the median alone.

    A run that diverged, with a value missing (NaN or infinite) where others have one or at the last point, is left
    out of line and band throughout, and the label says how many were: a line over survivors would jump where one
    drops out. Points at which no run has a value were not evaluated and are passed over.

    Up to 15 points get markers. More than 1,000 are drawn as 500 slices, each with the median of the line and the
    extremes of the band in it: finer than a pixel, noise would cover the other lines.

    Args:
        ax: Where to draw.
        x: Positions, such as epochs or parameter counts, rising, shape (points,).
        values: One row a run, shape (runs, points); or one run, shape (points,).
        label: Name of the line, written beside it by `label_lines`.
        color: Line color; by default the next of `COLORS`.
        band: "range", "interval" or None.
        linestyle: As in matplotlib, such as "--".
        shade: How strongly the band is colored, from 0 (not at all) to 1.

    Returns:
        The line.

    Raises:
        ValueError: If the shapes do not match, the band is unknown, or a value is not positive where its logarithm
            is needed.

    Example:
        >>> figure, ax = panels()
        >>> line = curves(ax, [1, 2], [[0.4, 0.2], [0.6, 0.4], [0.5, float("nan")]], "deep")
        >>> line.get_label()
        'deep (1 of 3 diverged)'
        >>> plt.close(figure)
    """
    x, values = np.asarray(x), np.atleast_2d(np.asarray(values, dtype=np.float64))
    if x.ndim != 1 or x.size == 0 or values.shape[1:] != x.shape or len(values) == 0:
        raise ValueError(
            f"{label!r}: x must have shape (points,) and values (runs, points), got {x.shape} and {values.shape}"
        )
    if band not in ("range", "interval", None):
        raise ValueError(f"{label!r}: band must be 'range', 'interval' or None, got {band!r}")

    finite = np.isfinite(values)
    evaluated = finite.any(axis=0)
    evaluated[-1] = True
    complete = finite[:, evaluated].all(axis=1)
    runs, n = len(values), int(complete.sum())
    if n < runs:
        who = "" if runs == 1 else f"all {runs} " if n == 0 else f"{runs - n} of {runs} "
        label = f"{label} ({who}diverged)"
    if n == 0:  # no line, but label_lines still says so
        return ax.plot([], [], color=color, linestyle=linestyle, label=label)[0]

    x, shown = x[evaluated], values[complete][:, evaluated]
    if band == "interval":
        logarithmic = ax.get_yscale() == "log"
        if logarithmic and (shown <= 0).any():
            raise ValueError(f"{label!r}: a geometric mean needs positive values, the least is {shown.min():.3g}")
        intervals = [mean_interval(column) for column in (np.log(shown) if logarithmic else shown).T]
        middle, low, high = np.array([(i.mean, i.low, i.high) for i in intervals]).T
        if logarithmic:
            middle, low, high = np.exp([middle, low, high])
        note = f"{'Geometric mean' if logarithmic else 'Mean'} of {n} runs with 95 % interval"
    else:
        middle, low, high = np.median(shown, axis=0), shown.min(axis=0), shown.max(axis=0)
        note = f"Median and range of {n} runs"
    if x.size > 1000:
        x, middle, low, high = _slices(x, middle, low, high, logarithmic=ax.get_xscale() == "log")
    marker = "o" if x.size <= 15 else None
    (line,) = ax.plot(x, middle, color=color, linestyle=linestyle, marker=marker, label=label)
    if band and n > 1 and shade:
        ax.fill_between(x, low, high, color=line.get_color(), alpha=shade, linewidth=0, label=_NOTE + note)
    return line


def label_lines(ax: Axes, *, note: bool = True) -> None:
    """Write each line's label beside its right end, moved up or down where labels would overlap.

    Where a line ends left of another's end, its label stands right of both, with a leader. Logarithmic axes get the
    ticks of `log_ticks`. Call it last, when scale, limits and title are set. A second call replaces the labels of the
    first. Lines whose label begins with an underscore (matplotlib's way of saying none) are passed over.

    Args:
        ax: The axes.
        note: Say above the axes what lines and bands drawn by `curves` are.

    Example:
        >>> figure, ax = panels()
        >>> line = ax.plot([1, 2, 3], [3, 2, 1], label="training")
        >>> label_lines(ax)
        >>> [text.get_text() for text in ax.texts]
        ['training']
        >>> plt.close(figure)
    """
    for text in [text for text in ax.texts if text.get_gid() in ("line label", "band note")]:
        text.remove()
    if note and (told := _told(ax)):
        _write_note(ax, told)

    log_ticks(ax)
    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    if not lines:
        return
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()  # settles the layout, which decides the distances on paper
    point = figure.dpi / 72
    frame = ax.get_window_extent()
    ends = np.array([_right_end(line, frame) for line in lines])
    farthest = max(_farthest(line, frame) for line in lines)
    size = mpl.rcParams["font.size"]
    narrow = frame.width < 0.6 * figure.bbox.width
    texts = [_wrapped(str(line.get_label())) if narrow else str(line.get_label()) for line in lines]
    heights = np.array([1.25 * size * (1 + text.count("\n")) for text in texts])
    wanted = ends[:, 1] / point
    shifts = _spread(wanted, heights, frame.y0 / point, frame.y1 / point) - wanted
    outward = (farthest - ends[:, 0]) / point
    leaders = bool((np.abs(shifts) > 0.3 * size).any() or (outward > size).any())
    places = ax.transData.inverted().transform(ends)
    for line, text, end, out, shift in zip(lines, texts, places, outward, shifts, strict=True):
        color = _readable(line.get_color())
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2}
        ax.annotate(
            text,
            xy=end,
            xytext=(out + (16 if leaders else 6), shift),
            textcoords="offset points",
            ha="left",
            va="center",
            fontsize=size,
            color=color,
            annotation_clip=False,
            arrowprops=arrow if leaders and np.size(line.get_xdata()) else None,
            path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
            gid="line label",
        )


def log_ticks(ax: Axes) -> None:
    """Label logarithmic axes also between the powers of ten where they span less than three decades.

    Matplotlib labels the powers alone as soon as there are two of them, which leaves a reader little to go by. Here
    the ticks are at 1-2-5, at 1-3 where these would touch, or closer where they are too few, and large numbers are
    written as 20k and 5M. Linear axes and those of three decades and more stay as they are. Call it when limits are
    set; `label_lines` does so.

    Args:
        ax: The axes.

    Example:
        >>> figure, ax = panels()
        >>> settings = ax.set(xscale="log", xlim=(8_000, 700_000))
        >>> log_ticks(ax)
        >>> figure.draw_without_rendering()
        >>> [label.get_text() for label in ax.get_xticklabels() if 8_000 <= label.get_position()[0] <= 700_000]
        ['10k', '20k', '50k', '100k', '200k', '500k']
        >>> plt.close(figure)
    """
    which = {
        name: axis
        for name, axis in (("x", ax.xaxis), ("y", ax.yaxis))
        if axis.get_scale() == "log" and axis.get_visible()
    }
    if not which:
        return
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()  # settles the layout, which decides how many ticks there is room for
    frame = ax.get_window_extent()
    for name, axis in which.items():
        low, high = sorted(axis.get_view_interval())
        decades = np.log10(high / low)
        if decades >= 3:
            continue
        length = (frame.width if name == "x" else frame.height) / (figure.dpi / 72) / decades  # points a decade
        needed = mpl.rcParams["font.size"] * (2.6 if name == "x" else 1.4)
        steps = _tick_steps(low, high, needed / length)
        axis.set_major_locator(ticker.LogLocator(subs=steps, numticks=20))
        axis.set_major_formatter(ticker.FuncFormatter(_brief))
        axis.set_minor_formatter(ticker.NullFormatter())


def reference(ax: Axes, label: str, *, x: float | None = None, y: float | None = None, at: float = 0.97) -> None:
    """Draw a dotted line across the axes, with its meaning written along it.

    Args:
        ax: The axes.
        label: What the line marks, in a word or two.
        x: Position of a vertical line; the label stands right of it.
        y: Position of a horizontal line; the label stands above it.
        at: Where along the line the label ends, from 0 (bottom, left) to 1 (top, right).

    Raises:
        ValueError: If not exactly one of x and y is given.

    Example:
        >>> figure, ax = panels()
        >>> reference(ax, "chance", y=0.1)
        >>> [text.get_text() for text in ax.texts]
        ['chance']
        >>> plt.close(figure)
    """
    if (x is None) == (y is None):
        raise ValueError(f"reference {label!r}: give x or y, one of them, got x={x} and y={y}")
    style = {"color": _MUTED, "linestyle": ":", "linewidth": 1.2, "zorder": 1.5, "label": "_reference"}
    if x is not None:
        ax.axvline(x, **style)
        place: dict[str, Any] = {"xy": (x, at), "xycoords": ("data", "axes fraction"), "xytext": (4, 0), "ha": "left"}
    else:
        ax.axhline(y, **style)
        place = {"xy": (at, y), "xycoords": ("axes fraction", "data"), "xytext": (0, 3), "ha": "right"}
    ax.annotate(
        label,
        **place,
        textcoords="offset points",
        va="top" if x is not None else "bottom",
        color=_MUTED,
        fontsize=mpl.rcParams["font.size"] - 1,
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
    )


class Picture(Protocol):
    """What `slider` shows where nobody can move it; `labutils.record.SavedFigure` is one."""

    alt: str
    png: bytes

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]: ...


class Interactive:
    """A slider with its figure, as a notebook displays it; made by `slider`.

    Where a page shows no widgets, the static picture stands in.

    Attributes:
        control: The slider, an `ipywidgets.SelectionSlider`.
        view: The picture below it, an `ipywidgets.HTML`.
        static: The static picture.
    """

    def __init__(
        self, render: Callable[[Any], str], options: list[tuple[str, Any]], label: str, static: Picture
    ) -> None:
        import ipywidgets  # takes a while to import, which headless runs need not wait for

        self.static = static
        self.control = ipywidgets.SelectionSlider(
            options=options, description=label, style={"description_width": "initial"}, layout={"width": "95%"}
        )
        self.view = ipywidgets.HTML(render(self.control.value))
        self._box = ipywidgets.VBox([self.control, self.view])
        self.control.observe(lambda change: setattr(self.view, "value", render(change["new"])), names="value")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, metadata = self.static._repr_mimebundle_()
        return {**bundle, **self._box._repr_mimebundle_()}, metadata


def slider(
    figure: Figure,
    draw: Callable[[Any], object],
    values: Iterable[Any],
    static: Picture,
    *,
    label: str,
    format: str = "{:g}",
) -> Picture | Interactive:
    """Return a slider that moves through precomputed values, or the static figure where nobody could move it.

    Somebody watches in an interactive kernel (Jupyter, Colab) unless LABUTILS_RUN_DIR is set, as in `labs run`, tests
    and the book. The arrow keys move a slider that has the focus; its value stands beside it and in the picture's
    alternative text.

    Args:
        figure: The figure; it may be closed, as `Run.figure` leaves it.
        draw: Called with a value; changes the figure's artists to show it. It should compute nothing: a move is
            as quick as drawing is.
        values: What the slider selects from, at least two, hashable; it begins at the first.
        static: The figure as `Run.figure` returns it, at a position that shows the point without moving.
        label: What the slider sets, with its unit.
        format: How a value is written, as in `str.format`.

    Returns:
        What to display, as the last value of a cell.

    Raises:
        ValueError: If there are fewer than two values, or two that are written alike.

    Example:
        >>> from labutils import record
        >>> figure, ax = panels()
        >>> (dot,) = ax.plot([0], [1], "o")
        >>> static = record.SavedFigure("dot", "A dot that goes to the right.", b"")
        >>> slider(figure, lambda x: dot.set_xdata([x]), [0, 1, 2], static, label="position")
        Figure dot: A dot that goes to the right.
        >>> plt.close(figure)
    """
    options = [(format.format(value), value) for value in values]
    names = [name for name, _ in options]
    if len(options) < 2 or len(set(names)) < len(names):
        raise ValueError(f"slider {label!r}: needs two values or more that format={format!r} tells apart, got {names}")
    if not _watched():
        return static
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # settled: while the slider moves, the axes stay where they are
    box = figure.get_tightbbox().padded(0.1)

    @functools.cache
    def render(value: Any) -> str:
        draw(value)
        buffer = io.BytesIO()  # sharp enough, and drawn in the time between two moves
        figure.savefig(buffer, format="png", dpi=1.5 * _CSS_DPI, bbox_inches=box, pil_kwargs={"compress_level": 1})
        code = base64.b64encode(buffer.getvalue()).decode()
        alt = f"{static.alt} Here, {label} is {format.format(value)}."
        style = f"width: {_CSS_DPI * box.width:.0f}px; max-width: 100%; height: auto"
        return f'<img src="data:image/png;base64,{code}" alt="{html.escape(alt)}" style="{style}">'

    return Interactive(render, options, label, static)


def _watched() -> bool:
    """Whether this runs in a notebook that somebody has open."""
    if os.environ.get("LABUTILS_RUN_DIR"):
        return False
    from IPython import get_ipython

    return hasattr(get_ipython(), "kernel")


def image_grid(
    images: ArrayLike, titles: Sequence[str] | None = None, columns: int = 10, *, dataset: Any = None
) -> Figure:
    """Return a figure of small images, each with its title above it.

    Args:
        images: Shape (n, channels, height, width) with 1 or 3 channels, or (n, height, width); values in [0, 1].
        titles: One a picture, such as its class. Without, give the figure a `suptitle`.
        columns: Pictures in a row.
        dataset: The data set that the images come from, to undo its normalization with its `mean` and `std`, shape
            (channels,).

    Returns:
        The figure.

    Raises:
        ValueError: If the shape is none of the above, the titles are not one a picture, or values leave [0, 1].

    Example:
        >>> figure = image_grid(np.zeros((3, 1, 8, 8)), ["0", "1", "2"])
        >>> len(figure.axes)
        3
        >>> plt.close(figure)
    """
    images = np.asarray(images, dtype=np.float64)
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(
            f"images must have shape (n, 1 or 3 channels, height, width) or (n, height, width), got {images.shape}"
        )
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"there are {len(images)} images but {len(titles)} titles: give one a picture")
    if dataset is not None:
        mean, std = (np.reshape(np.asarray(value), (-1, 1, 1)) for value in (dataset.mean, dataset.std))
        images = images * std + mean
    tolerance = 1e-3  # rounding, where a normalization was undone
    if not ((images >= -tolerance) & (images <= 1 + tolerance)).all():
        raise ValueError(
            f"images must have values in [0, 1], got {images.min():.3g} to {images.max():.3g}: pass dataset=... to"
            " undo its normalization"
        )
    columns = min(columns, len(images))
    rows = ceil(len(images) / columns)
    cell = min(WIDTH / columns, 1.6)
    lines = [line for title in titles or [] for line in title.split("\n")]
    title_height = 0.2 * (1 + max(title.count("\n") for title in titles)) if titles else 0.05
    size = max(6.0, min(9.0, 72 * cell / (0.6 * max(map(len, lines), default=1))))
    height = rows * (cell * images.shape[2] / images.shape[3] + title_height)
    figure = plt.figure(figsize=(cell * columns, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for index, image in enumerate(np.clip(images, 0, 1).transpose(0, 2, 3, 1)):
        ax = figure.add_subplot(rows, columns, index + 1)
        ax.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        ax.axis("off")
        if titles is not None:
            ax.set_title(titles[index], fontsize=size, fontweight="normal", loc="center", pad=2)
    return figure


def heatmap(
    ax: Axes,
    matrix: ArrayLike,
    xlabels: Sequence[object],
    ylabels: Sequence[object],
    label: str,
    *,
    annotate: bool = True,
    limits: tuple[float, float] | None = None,
) -> Colorbar:
    """Draw a matrix as colored cells with a color bar and, where they fit, the numbers.

    Counts (integers) are written in full, other numbers with two decimals, as .25 where 0.25 would be small; cells
    too small for a 6-point font stay empty. A further heatmap in a figure takes room from those before it, whose
    numbers are then fitted anew. A missing value (NaN) is a gray cell. Where names would overlap, they are turned or
    thinned out. The axes' labels are the caller's.

    Args:
        ax: Where to draw.
        matrix: Shape (rows, columns).
        xlabels: Names of the columns.
        ylabels: Names of the rows, from the top.
        label: What the colors mean, with its unit.
        annotate: Write the numbers into the cells.
        limits: Values of the darkest and the brightest color; by default the least and the greatest value.

    Returns:
        The color bar.

    Raises:
        ValueError: If the matrix is not 2-D, empty, or the names are not one a row and column.

    Example:
        >>> figure, ax = panels()
        >>> bar = heatmap(ax, [[8, 1], [0, 9]], ["cat", "dog"], ["cat", "dog"], "images")
        >>> [text.get_text() for text in ax.texts]
        ['8', '1', '0', '9']
        >>> plt.close(figure)
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"matrix must have shape (rows, columns), got {matrix.shape}")
    if matrix.shape != (len(ylabels), len(xlabels)):
        raise ValueError(
            f"a matrix of shape {matrix.shape} needs as many ylabels and xlabels, got {len(ylabels)} and {len(xlabels)}"
        )
    image = _draw_cells(ax, matrix, xlabels, ylabels, annotate, limits)
    # Within the axes' own room: a bar as high as the matrix.
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.04, 0, 0.06, 1)), label=label)
    bar.outline.set_visible(False)
    bar.locator = ticker.MaxNLocator(5, steps=[1, 2, 5, 10], integer=np.issubdtype(matrix.dtype, np.integer))
    if isinstance(engine := ax.figure.canvas.figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(w_pad=0.15)  # inches: the bar's label keeps off the next panel's
    _fit_heatmaps(ax.figure.canvas.figure)
    return bar


def _draw_cells(
    ax: Axes,
    matrix: np.ndarray,
    xlabels: Iterable[object],
    ylabels: Iterable[object],
    annotate: bool,
    limits: tuple[float, float] | None,
    *,
    signed: bool = False,
) -> AxesImage:
    """Draw a matrix as cells, with empty texts for their numbers."""
    low, high = limits or (None, None)
    cmap = mpl.colormaps[DIVERGING if signed else mpl.rcParams["image.cmap"]].with_extremes(bad="#CCCCCC")
    image = ax.imshow(np.ma.masked_invalid(matrix), cmap=cmap, vmin=low, vmax=high, gid=_HEATMAP)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for axis, names in ((ax.xaxis, xlabels), (ax.yaxis, ylabels)):
        axis.set_ticks(range(len(names)), [f"{name:g}" if isinstance(name, float) else str(name) for name in names])
    if annotate:
        for (i, j), value in np.ndenumerate(matrix):
            color = "black" if _contrast(image.cmap(image.norm(value)), "black") > 4.5 else "white"
            ax.text(j, i, "", ha="center", va="center", color=color, gid=_CELL)
    return image


def _fit_heatmaps(figure: Figure) -> None:
    """Fit names and numbers of all heatmaps of a figure to the room that its layout leaves them."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        if any(image.get_gid() == _HEATMAP for image in ax.get_images()):
            _fit_names(ax)
            _fit_numbers(ax)


# --- From frames --------------------------------------------------------------------------------------------------


def colors(values: Iterable[Any]) -> dict[Any, Any]:
    """Return a color for each value, to be used in all figures in which the values mean the same.

    Numbers get a scale from dark to light, so that color tells their order; names the seven colors of the house.

    Args:
        values: Names or numbers; repetitions do not count.

    Returns:
        Value to color; numbers in rising order, names in the given one.

    Raises:
        ValueError: If there are more than seven names, which nobody tells apart by color.

    Example:
        >>> colors(["deep", "wide", "deep"])
        {'deep': '#00508F', 'wide': '#B23A00'}
        >>> list(colors([0.1, 0.001]))
        [0.001, 0.1]
    """
    known = list(dict.fromkeys(values))
    if len(known) > 1 and all(isinstance(value, int | float | np.number) for value in known):
        known.sort()
        return dict(
            zip(known, map(mcolors.to_hex, mpl.colormaps["plasma"](np.linspace(0, 0.6, len(known)))), strict=True)
        )
    if len(known) > len(COLORS):
        raise ValueError(
            f"{len(known)} names for {len(COLORS)} colors: {known}: show fewer, or give each a panel (col=)"
        )
    return dict(zip(known, COLORS, strict=False))


def lines(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str | Sequence[str],
    hue: str | None = None,
    style: str | None = None,
    col: str | None = None,
    log: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    palette: Mapping[Any, Any] | None = None,
    band: Literal["range", "interval"] | None = "range",
    unit: str | Sequence[str] = "seed",
    **options: Any,
) -> tuple[Figure, Any]:
    """Draw a long-format frame as lines with bands over the seeds, labeled at their ends.

    Args:
        frame: One row an observation, with columns as named below.
        x: Column of positions, numbers.
        y: Column of heights; several get a panel each.
        hue: Column whose values get a color each, and their name at the line's end.
        style: Column whose values get a kind of line each, explained above the first panel: solid, dashed, dotted.
        col: Column whose values get a panel each, side by side.
        log: The columns among x and y that get a logarithmic axis.
        labels: Column to what its axis says, such as {"loss": "cross-entropy"}; else the column's name.
        palette: Value of hue to color, as `colors` returns it, where several figures share them.
        band: As in `curves`: "range" around the median, "interval" around the mean, or None.
        unit: Column or columns that tell repeated runs apart. Where the frame lacks it, rows are runs in their order.
        **options: Passed on to `panels`, such as `height=2.6` or `sharey=True`; `columns=3` panels in a row.

    Returns:
        The figure, and its axes: one `Axes`; with several panels, a dict by the values of col, by the names of y, or
        by both (name, value).

    Raises:
        ValueError: If a column is missing, or a unit has several values for one point of a line: then something else
            varies that needs a hue, style or col, or `frame.query` to choose.

    Example:
        >>> frame = pd.DataFrame({"epoch": [0, 1] * 2, "loss": [2, 1, 3, 2], "network": ["a", "a", "b", "b"]})
        >>> figure, axes = lines(frame, x="epoch", y="loss", col="network")
        >>> list(axes)
        ['a', 'b']
        >>> plt.close(figure)
    """
    kinds = _values_of(frame, style)
    figure, axes, parts = _panels_of(frame, x, y, col, log, labels, options, [hue, style])
    palette = palette or colors(_values_of(frame, hue))
    units = [one for one in ([unit] if isinstance(unit, str) else unit) if one in frame]
    for ax, name, part in parts:
        for value in _values_of(part, hue):
            for kind in _values_of(part, style):
                rows = part[_is(part, hue, value) & _is(part, style, kind)]
                if rows.empty:
                    continue
                number = kinds.index(kind)
                label = _named(hue, value) if hue else _named(style, kind) if style else f"_{name}"
                curves(
                    ax,
                    *_runs(rows, x, name, units),
                    f"_{label}" if hue and number else label,
                    color=palette[value] if hue else COLORS[number],
                    band=band,
                    linestyle=LINES[number % len(LINES)],
                    shade=0.0 if hue and number else 0.2,  # bands upon bands hide each other
                )
    words = zip(("solid", "dashed", "dotted", "dash-dotted"), kinds, strict=False)
    told = [_told(parts[0][0]), ", ".join(f"{word}: {kind}" for word, kind in words) if hue and style else ""]
    if note := "; ".join(filter(None, told)):
        size = mpl.rcParams["font.size"] - 1.5
        figure.suptitle(note, x=0.01, ha="left", fontsize=size, fontweight="normal", color=_MUTED)
    for ax, _, _ in parts:
        label_lines(ax, note=False)
    return figure, axes


def points(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str | Sequence[str],
    hue: str | None = None,
    style: str | None = None,
    col: str | None = None,
    log: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    palette: Mapping[Any, Any] | None = None,
    **options: Any,
) -> tuple[Figure, Any]:
    """Draw a long-format frame as points, one a row, with a legend below the figure.

    Args:
        frame: One row a point, with columns as named below.
        x: Column of positions, numbers.
        y: Column of heights; several get a panel each.
        hue: Column whose values get a color each; without style, each a marker, too.
        style: Column whose values get a marker each.
        col: Column whose values get a panel each.
        log: The columns among x and y that get a logarithmic axis.
        labels: Column to what its axis says; else the column's name.
        palette: Value of hue to color, as `colors` returns it.
        **options: As in `lines`.

    Returns:
        The figure, and its axes, as from `lines`.

    Raises:
        ValueError: If a column is missing.

    Example:
        >>> frame = pd.DataFrame({"sharpness": [1, 2, 4], "gap": [0.1, 0.3, 0.2], "batch": [10, 10, 100]})
        >>> figure, ax = points(frame, x="sharpness", y="gap", hue="batch", log=["sharpness"])
        >>> [text.get_text() for text in figure.legends[0].texts]
        ['batch 10', 'batch 100']
        >>> plt.close(figure)
    """
    figure, axes, parts = _panels_of(frame, x, y, col, log, labels, options, [hue, style])
    palette = palette or colors(_values_of(frame, hue))
    hues, kinds = _values_of(frame, hue), _values_of(frame, style)
    drawn: dict[str, Any] = {}
    for ax, name, part in parts:
        for value in hues:
            for kind in kinds:
                rows = part[_is(part, hue, value) & _is(part, style, kind)]
                label = ", ".join(_named(*one) for one in ((hue, value), (style, kind)) if one[0])
                marker = MARKERS[(kinds.index(kind) if style else hues.index(value)) % len(MARKERS)]
                color = palette[value] if hue else COLORS[0]
                drawn[label] = ax.scatter(
                    rows[x], rows[name], color=color, marker=marker, s=26, alpha=0.75, linewidth=0
                )
        ax.margins(0.06)
        log_ticks(ax)
    if hue or style:
        figure.legend(drawn.values(), drawn, loc="outside lower center", ncols=min(len(drawn), 3))
    return figure, axes


def heatmaps(
    tables: Mapping[str, pd.DataFrame],
    label: str,
    *,
    signed: bool = False,
    limits: tuple[float, float] | None = None,
    annotate: bool = True,
    **options: Any,
) -> tuple[Figure, dict[str, Axes]]:
    """Draw tables as heatmaps, a panel each, on one scale with one color bar.

    Args:
        tables: Title to table, as `frame.pivot` makes it: names of rows and columns label the cells, the names of index
            and columns the axes.
        label: What the colors mean, with its unit.
        signed: The numbers have a sign that matters: a diverging map, white at 0.
        limits: Values at the two ends of the scale; by default from the least to the greatest number of all tables.
        annotate: Write the numbers into the cells where they fit.
        **options: As in `panel_each`, such as `columns=3` or `height=3.2`.

    Returns:
        The figure, and its axes by title.

    Raises:
        ValueError: If there is no table.

    Example:
        >>> table = pd.DataFrame([[1.0, -0.5], [-0.5, 1.0]], index=["a", "b"], columns=["a", "b"])
        >>> figure, axes = heatmaps({"weights": table.rename_axis(index="row", columns="column")}, "r", signed=True)
        >>> axes["weights"].get_xlabel(), axes["weights"].get_images()[0].get_clim()
        ('column', (-1.0, 1.0))
        >>> plt.close(figure)
    """
    figure, axes = panel_each(tables, **{"height": 3.2} | options)
    if limits is None:
        every = np.concatenate([np.asarray(table, dtype=np.float64).ravel() for table in tables.values()])
        largest = float(np.nanmax(np.abs(every)))
        limits = (-largest, largest) if signed else (float(np.nanmin(every)), float(np.nanmax(every)))
    for title, table in tables.items():
        ax = axes[title]
        _draw_cells(ax, np.asarray(table), table.columns, table.index, annotate, limits, signed=signed)
        ax.set(xlabel=table.columns.name or "column", ylabel=table.index.name or "row")
    bar = figure.colorbar(ax.get_images()[0], ax=list(axes.values()), label=label, shrink=0.9, aspect=25)
    bar.outline.set_visible(False)
    _fit_heatmaps(figure)
    return figure, axes


def forest(
    ax: Axes, table: pd.DataFrame, *, reported: str | None = None, names: tuple[str, str] = ("ours", "reported")
) -> None:
    """Draw estimates with their intervals, a row each, beside those that somebody reported.

    Args:
        ax: Where to draw; the label of its x axis is the caller's.
        table: Columns mean, low and high, from the top; the index names the rows, and its name the axis.
        reported: A further column, drawn as crosses.
        names: What dots and crosses are, written above the axes.

    Raises:
        ValueError: If a column is missing.

    Example:
        >>> figure, ax = panels()
        >>> table = pd.DataFrame({"mean": [0.9], "low": [0.8], "high": [1.0], "paper": [0.95]}, index=["CKA"])
        >>> forest(ax, table, reported="paper", names=("ours", "Kornblith et al."))
        >>> [label.get_text() for label in ax.get_yticklabels()]
        ['CKA']
        >>> plt.close(figure)
    """
    _check_columns(table, "mean", "low", "high", reported)
    places = np.arange(len(table))
    ax.hlines(places, table["low"], table["high"], color=COLORS[0], linewidth=5, alpha=0.35)
    ax.plot(table["mean"], places, "o", color=COLORS[0], markersize=7)
    note = f"● {names[0]}, with 95 % interval"
    if reported:
        ax.plot(table[reported], places, "x", color=COLORS[1], markersize=8, markeredgewidth=2)
        note += f"   × {names[1]}"
    ax.set(ylim=(len(table) - 0.5, -0.5), ylabel=table.index.name or "row")
    ax.set_yticks(places, [str(name) for name in table.index])
    _write_note(ax, note)


def _panels_of(
    frame: pd.DataFrame,
    x: str,
    y: str | Sequence[str],
    col: str | None,
    log: Sequence[str],
    labels: Mapping[str, str] | None,
    options: dict[str, Any],
    more: Sequence[str | None],
) -> tuple[Figure, Any, list[tuple[Axes, str, pd.DataFrame]]]:
    """Return a figure, its axes for the caller, and for each panel the axes, the column to draw and its rows."""
    names, values = [y] if isinstance(y, str) else list(y), _values_of(frame, col)
    _check_columns(frame, x, *names, col, *more)
    log, labels = [log] if isinstance(log, str) else log, labels or {}
    if len(names) > 1 and col:
        options.pop("columns", None)
        figure, grid = panels(len(names), len(values), squeeze=False, **{"sharex": "col"} | options)
    else:
        total = max(len(names), len(values))
        columns = min(options.pop("columns", 2), total)
        figure, grid = panels(ceil(total / columns), columns, squeeze=False, **options)
        for ax in grid.flat[total:]:
            ax.remove()
    parts, axes = [], {}
    for ax, (name, value) in zip(grid.flat, [(name, value) for name in names for value in values], strict=False):
        ax.set(xscale="log" if x in log else "linear", yscale="log" if name in log else "linear")
        ax.set_ylabel(labels.get(name, name))
        if len(names) == 1 or not col or name == names[-1]:
            ax.set_xlabel(labels.get(x, x))
        if col and name == names[0]:
            ax.set_title(_named(col, value))
        key = (name, value) if len(names) > 1 and col else value if col else name
        axes[key] = ax
        parts.append((ax, name, frame[_is(frame, col, value)]))
    return figure, axes if len(parts) > 1 or col else parts[0][0], parts


def _values_of(frame: pd.DataFrame, column: str | None) -> list[Any]:
    """Return the values of a column: numbers and categories in their order, others as they come; [None] for none."""
    if column is None:
        return [None]
    _check_columns(frame, column)
    values = frame[column]
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [value for value in values.cat.categories if (values == value).any()]
    known = list(values.dropna().unique())
    return sorted(known) if pd.api.types.is_numeric_dtype(values) and values.dtype != bool else known


def _is(frame: pd.DataFrame, column: str | None, value: Any) -> pd.Series:
    return pd.Series(True, frame.index) if column is None else frame[column] == value


def _runs(rows: pd.DataFrame, x: str, y: str, units: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (points,) and values (runs, points) of one line."""
    if not units:
        rows = rows.assign(run=rows.groupby(x).cumcount())
        units = ["run"]
    if rows.duplicated([*units, x]).any():
        row = rows[rows.duplicated([*units, x])].iloc[0]
        where = ", ".join(f"{name} {row[name]}" for name in [*units, x])
        raise ValueError(
            f"several values of {y!r} for {where} on one line: name what varies as hue, style or col, or choose with"
            " frame.query"
        )
    table = rows.pivot(index=units, columns=x, values=y)
    return table.columns.to_numpy(dtype=np.float64), table.to_numpy(dtype=np.float64)


def _named(column: str | None, value: Any) -> str:
    """Return a value as a reader needs it: a number with the name of its column."""
    return (
        f"{column} {value:g}"
        if isinstance(value, int | float | np.number) and not isinstance(value, bool)
        else str(value)
    )


def _check_columns(frame: pd.DataFrame, *names: str | None) -> None:
    for name in names:
        if name is not None and name not in frame:
            raise ValueError(f"no column {name!r}; there are {', '.join(map(repr, frame))}")


def _cell_width(ax: Axes) -> float:
    """Return the width of a heatmap's cell in points, as fonts are measured."""
    return ax.get_window_extent().width / ax.get_images()[0].get_array().shape[1] / (ax.figure.dpi / 72)


def _fit_names(ax: Axes) -> None:
    """Turn the names of a heatmap's columns, and thin out those of both sides, where they would overlap."""
    cell, names = _cell_width(ax), ax.get_xticklabels()
    plt.setp([*names, *ax.get_yticklabels()], visible=True)
    plt.setp(names, rotation=0, ha="center", rotation_mode="default")
    size = names[0].get_fontsize()
    width = max(name.get_window_extent().width for name in names) / (ax.figure.dpi / 72) + 0.2 * size
    turned = max(len(name.get_text()) for name in names) > 3 and width > cell
    if turned:
        plt.setp(names, rotation=45, ha="right", rotation_mode="anchor")
    every = ceil(1.2 * size / cell), ceil((1.2 * size if turned else width) / cell)
    for labels, step in zip((ax.get_yticklabels(), names), every, strict=True):
        plt.setp([name for i, name in enumerate(labels) if i % step], visible=False)


def _fit_numbers(ax: Axes) -> None:
    """Write the numbers of a heatmap as large as its cells allow."""
    cells = [text for text in ax.texts if text.get_gid() == _CELL]
    if not cells:
        return
    values = ax.get_images()[0].get_array()
    counts, room = np.issubdtype(values.dtype, np.integer), 0.9 * _cell_width(ax) / _CHARACTER
    texts = ["" if value is np.ma.masked else format(value, "d" if counts else ".2f") for value in values.flat]
    if not counts and room / max(map(len, texts)) < 9:
        texts = [re.sub(r"^(-?)0\.", r"\1.", "1.0" if text == "1.00" else text) for text in texts]
    size = min(10.0, room / (max(map(len, texts)) or 1))
    for cell, text in zip(cells, texts, strict=True):
        if size >= 6:
            cell.set(text=text, fontsize=size)
        else:
            cell.remove()


def _tick_steps(low: float, high: float, gap: float) -> tuple[float, ...]:
    """Return the most readable steps of a decade that give three ticks, or the most there are, gap decades apart."""
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))

    def worth(steps: tuple[float, ...]) -> int:
        shown = sum(low <= step * power <= high for power in powers for step in steps)
        return min(3, shown) if np.diff(np.log10([*steps, 10])).min() >= gap else 0

    return max(_LOG_STEPS, key=worth)  # the first of the best


def _brief(value: float, position: int | None = None) -> str:
    """Return a number as a tick of a logarithmic axis: 0.2, 500, 20k."""
    if value >= 1e4:
        return ticker.EngFormatter(sep="")(value)
    if value >= 0.999e-3:
        return f"{value:g}"
    power = int(np.floor(np.log10(value * 1.001)))
    step = f"{value / 10.0**power:.2g}"
    return f"$10^{{{power}}}$" if step == "1" else rf"${step}\times10^{{{power}}}$"


def _slices(
    x: np.ndarray, middle: np.ndarray, low: np.ndarray, high: np.ndarray, *, logarithmic: bool
) -> tuple[np.ndarray, ...]:
    """Return a long curve as 500 slices, even on its axis: center, median of the line, extremes of the band."""
    space = np.geomspace if logarithmic and x[0] > 0 else np.linspace
    starts = np.unique(np.searchsorted(x, space(x[0], x[-1], 500, endpoint=False)))
    medians = [[np.median(part) for part in np.split(row, starts[1:])] for row in (x, middle)]
    return *np.array(medians), np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)


def _right_end(line: Line2D, frame: Bbox) -> np.ndarray:
    """Return where a line ends on paper (pixels), kept within the frame; the top right corner if it has no points."""
    xy = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
    xy = line.get_transform().transform(xy)
    xy = xy[np.isfinite(xy).all(axis=1)]
    end = xy[-1] if len(xy) else frame.max  # without points the runs diverged: they went up
    return np.clip(end, frame.min, frame.max)


def _farthest(line: Line2D, frame: Bbox) -> float:
    """Return how far to the right on paper (pixels) a line goes, kept within the frame."""
    x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
    shown = line.get_transform().transform(np.column_stack([x, y])[np.isfinite(x) & np.isfinite(y)])
    return float(np.clip(shown[:, 0].max(initial=frame.x0), frame.x0, frame.x1))


def _wrapped(label: str) -> str:
    """Return a label in short lines, so that it leaves a narrow panel its width."""
    parts = label.replace(" (", "\n(").split("\n")
    return "\n".join(textwrap.fill(part, 14, break_long_words=False) for part in parts)


def _told(ax: Axes) -> str:
    """Return what the lines and bands of `curves` are: of the most runs, as lines of fewer say so in their labels."""
    notes = [str(c.get_label()) for c in ax.collections if str(c.get_label()).startswith(_NOTE)]
    return max(notes, key=lambda text: (len(text), text), default="").removeprefix(_NOTE)


def _write_note(ax: Axes, note: str) -> None:
    """Write a small line between axes and title."""
    size = mpl.rcParams["font.size"] - 1.5
    ax.annotate(
        note,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(0, 5),
        textcoords="offset points",
        ha="left",
        va="bottom",
        fontsize=size,
        color=_MUTED,
        gid="band note",
    )
    for side in ("left", "center", "right"):
        if title := ax.get_title(loc=side):
            ax.set_title(title, loc=side, pad=size + 11)


def _spread(wanted: np.ndarray, heights: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return centers that do not overlap, with the least sum of squared moves from those wanted.

    Measured from the stack of labels without gaps, the order to keep is a rising sequence: an isotonic regression.
    """
    order = np.argsort(wanted, kind="stable")
    tall = heights[order]
    stacked = np.cumsum(tall) - tall / 2
    slack = isotonic_regression(wanted[order] - stacked).x
    slack = np.clip(slack, low - tall[0] / 2, max(high - tall.sum(), low - tall[0] / 2))
    centers = np.empty_like(wanted)
    centers[order] = slack + stacked
    return centers


def _luminance(color: Any) -> float:
    """Return the relative luminance of a color, from 0 to 1 (WCAG 2.2)."""
    rgb = np.array(mcolors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _contrast(color: Any, background: Any) -> float:
    """Return the contrast ratio of two colors, from 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((_luminance(color), _luminance(background)))
    return (light + 0.05) / (dark + 0.05)


def _readable(color: Any) -> tuple[float, ...]:
    """Return the color, darkened until text in it can be read on white (a contrast of 4.5:1)."""
    rgb = np.array(mcolors.to_rgb(color))
    while _contrast(rgb, "white") < 4.5:
        rgb = rgb * 0.95
    return tuple(rgb)
