"""The house style, and what is drawn into one axes: curves with bands, labels at their ends, readable ticks.

`labutils.plotting` makes whole figures of these; a notebook calls them through it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import colors as mcolors
from matplotlib import patheffects, ticker
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from labutils.statistics import INTERVALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

# After Okabe and Ito (2008), "Color Universal Design", with the lightness changed: every color has a contrast of
# at least 3:1 against white (their yellow has 1.3), and lightness tells apart what color blindness makes one hue.
COLORS = ("#00508F", "#B23A00", "#4C9A68", "#D36DA8", "#222222", "#2492E8", "#A39000")

WIDTH = 7.0  # inches; at the saved resolution as wide as a page of the book
_TEXT = "#222222"
MUTED = "#595959"
# Steps of a decade that log_ticks tries, the most readable first.
_LOG_STEPS = ((1, 2, 5), (1, 3), (1, 2, 3, 4, 6), (1, 1.5, 2, 3, 4, 5, 6, 8), (1,))
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
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 10,
    "ytick.color": "#8C8C8C",
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 10,
}


def use_style() -> None:
    """Make the house style matplotlib's default; `record.start` does so for every notebook.

    Example:
        >>> use_style()
    """
    mpl.rcParams.update(STYLE)


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

    The band "range" (the default) goes from the lowest to the highest run around the median. "interval" is the mean
    with its 95 % t interval; on a logarithmic axis, the geometric mean with the interval of the logarithms (so set the
    scale first). None draws the median alone.

    A run that diverged, with a value missing (NaN or infinite) where others have one or at the last point, is left out
    of line and band throughout, and the label says how many were: a line over survivors would jump where one drops out.
    Points at which no run has a value are passed over. Up to 15 points get markers; more than 1,000 are drawn as 500
    slices, each with the median of the line and the extremes of the band.

    Args:
        ax: Where to draw.
        x: Positions, such as epochs or parameter counts, rising, shape (points,).
        values: One row a run, shape (runs, points); or one run, shape (points,).
        label: Name of the line, written beside it by `label_lines`.
        color: Line color; by default the next of `COLORS`.
        band: "range", "interval" or None.
        linestyle: As in matplotlib, such as "--".
        shade: How strongly the band is colored, from 0 (not at all) to 1.

    Raises:
        ValueError: If the shapes do not match, the band is unknown, or a value is not positive where its logarithm
            is needed.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, ax = plt.subplots()
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
        geometric = ax.get_yscale() == "log"
        intervals = [INTERVALS["ratio" if geometric else "mean"](column) for column in shown.T]
        middle, low, high = np.array([(i.mean, i.low, i.high) for i in intervals]).T
        note = f"{'Geometric mean' if geometric else 'Mean'} of {n} runs with 95 % interval"
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


def label_lines(*axes: Axes, note: bool = True) -> None:
    """Write each line's label beside its right end, moved up or down where labels would overlap.

    Where a line ends left of another's end, its label stands right of both, with a leader. Call it last, when scale,
    limits and title are set; a second call replaces the labels of the first. Lines whose label begins with an
    underscore (matplotlib's way of saying none) are passed over.

    Args:
        *axes: The axes of a figure, all in one call.
        note: Say above the axes what lines and bands drawn by `curves` are.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, ax = plt.subplots()
        >>> line = ax.plot([1, 2, 3], [3, 2, 1], label="training")
        >>> label_lines(ax)
        >>> [text.get_text() for text in ax.texts]
        ['training']
        >>> plt.close(figure)
    """
    for ax in axes:
        for text in [text for text in ax.texts if text.get_gid() in ("line label", "band note")]:
            text.remove()
        if note and (told := band_note(ax)):
            write_note(ax, told)
    named = {ax: [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")] for ax in axes}
    named = {ax: lines for ax, lines in named.items() if lines}
    _settle_layout(named)
    for ax, lines in named.items():
        _label(ax, lines)
    log_ticks(*axes)  # with the room that the labels leave


def _settle_layout(axes: Iterable[Axes]) -> None:
    """Lay out the figures of axes, which decides the distances on paper."""
    for figure in {ax.figure.canvas.figure for ax in axes}:
        if engine := figure.get_layout_engine():
            engine.execute(figure)
        else:
            figure.draw_without_rendering()


def _label(ax: Axes, lines: Sequence[Line2D]) -> None:
    figure = ax.figure.canvas.figure
    point = figure.dpi / 72
    frame = ax.get_window_extent()
    shown = [_on_paper(line, frame) for line in lines]
    ends = np.array([points[-1] if len(points) else frame.max for points in shown])  # diverged runs went up
    farthest = max(points[:, 0].max(initial=frame.x0) for points in shown)
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


def log_ticks(*axes: Axes) -> None:
    """Label logarithmic axes also between the powers of ten where they span less than three decades.

    The ticks are at 1-2-5, at 1-3 where these would touch, or closer where they are too few, and large numbers are
    written as 20k and 5M. Call it when limits are set, for all axes of a figure at once; `label_lines` does so.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, ax = plt.subplots()
        >>> settings = ax.set(xscale="log", xlim=(8_000, 700_000))
        >>> log_ticks(ax)
        >>> figure.draw_without_rendering()
        >>> [label.get_text() for label in ax.get_xticklabels() if 8_000 <= label.get_position()[0] <= 700_000]
        ['10k', '20k', '50k', '100k', '200k', '500k']
        >>> plt.close(figure)
    """
    which = [
        (ax, name, axis)
        for ax in axes
        for name, axis in (("x", ax.xaxis), ("y", ax.yaxis))
        if axis.get_scale() == "log" and axis.get_visible()
    ]
    _settle_layout(ax for ax, _, _ in which)  # which decides how many ticks there is room for
    for ax, name, axis in which:
        low, high = sorted(axis.get_view_interval())
        decades = np.log10(high / low)
        if decades >= 3:
            continue
        frame, point = ax.get_window_extent(), ax.figure.canvas.figure.dpi / 72
        length = (frame.width if name == "x" else frame.height) / point / decades  # points a decade
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
        y: Position of a horizontal line; the label stands above it. One of x and y is given.
        at: Where along the line the label ends, from 0 (bottom, left) to 1 (top, right).

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, ax = plt.subplots()
        >>> reference(ax, "chance", y=0.1)
        >>> [text.get_text() for text in ax.texts]
        ['chance']
        >>> plt.close(figure)
    """
    if (x is None) == (y is None):
        raise ValueError(f"reference {label!r}: give x or y, one of them, got x={x} and y={y}")
    style = {"color": MUTED, "linestyle": ":", "linewidth": 1.2, "zorder": 1.5, "label": "_reference"}
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
        color=MUTED,
        fontsize=mpl.rcParams["font.size"] - 1,
        path_effects=[patheffects.withStroke(linewidth=2.5, foreground="white")],
    )


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


def _on_paper(line: Line2D, frame: Bbox) -> np.ndarray:
    """Return where a line's points lie on paper (pixels), kept within the frame; not those without a place."""
    xy = np.column_stack([np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)])
    shown = line.get_transform().transform(xy[np.isfinite(xy).all(axis=1)])
    return np.clip(shown[np.isfinite(shown).all(axis=1)], frame.min, frame.max)


def _wrapped(label: str) -> str:
    """Return a label in short lines, so that it leaves a narrow panel its width."""
    parts = label.replace(" (", "\n(").split("\n")
    return "\n".join(textwrap.fill(part, 14, break_long_words=False) for part in parts)


def band_note(ax: Axes) -> str:
    """Return what the lines and bands of `curves` are: of the most runs, as lines of fewer say so in their labels.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, ax = plt.subplots()
        >>> line = curves(ax, [1, 2], [[3, 2], [5, 4]], "deep")
        >>> band_note(ax)
        'Median and range of 2 runs'
        >>> plt.close(figure)
    """
    notes = [str(c.get_label()) for c in ax.collections if str(c.get_label()).startswith(_NOTE)]
    return max(notes, key=lambda text: (len(text), text), default="").removeprefix(_NOTE)


def write_note(ax: Axes, note: str) -> None:
    """Write a small line between axes and title.

    Example:
        >>> import matplotlib.pyplot as plt
        >>> figure, ax = plt.subplots()
        >>> write_note(ax, "Median of 5 runs")
        >>> plt.close(figure)
    """
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
        color=MUTED,
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


def contrast(color: Any, background: Any) -> float:
    """Return the contrast ratio of two colors, from 1 to 21 (WCAG 2.2).

    Example:
        >>> round(contrast("black", "white"), 3)
        21.0
    """
    dark, light = sorted((_luminance(color), _luminance(background)))
    return (light + 0.05) / (dark + 0.05)


def _readable(color: Any) -> tuple[float, ...]:
    """Return the color, darkened until text in it can be read on white (a contrast of 4.5:1)."""
    rgb = np.array(mcolors.to_rgb(color))
    while contrast(rgb, "white") < 4.5:
        rgb = rgb * 0.95
    return tuple(rgb)
