"""One house style, and the few figure parts that several notebooks share.

Figures are read on a phone as often as on a desk: few inches wide, labels beside the lines instead of a legend,
colors that survive color blindness, and never color alone. What is one line of matplotlib stays matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib import colors as mcolors
from matplotlib import patheffects
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from labutils.statistics import mean_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.transforms import Bbox

# After Okabe and Ito (2008), "Color Universal Design", with the lightness changed: every color has a contrast of
# at least 3:1 against white (their yellow has 1.3), and lightness tells apart what color blindness makes one hue.
COLORS = ("#00508F", "#B23A00", "#4C9A68", "#D36DA8", "#222222", "#2492E8", "#A39000")

WIDTH = 7.0  # inches; at the saved resolution as wide as a page of the book
_TEXT = "#222222"
_MUTED = "#595959"
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
        ax.locator_params(axis="x", nbins=6 if columns == 1 else 3)  # 20000 beside 17500 is hard to read
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
    if band and n > 1:
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0, label=_NOTE + note)
    return line


def label_lines(ax: Axes, *, note: bool = True) -> None:
    """Write each line's label beside its right end, moved up or down where labels would overlap.

    Call it last, when scale, limits and title are set. A second call replaces the labels of the first. Lines whose
    label begins with an underscore (matplotlib's way of saying none) are passed over.

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
    # Lines of fewer runs (some diverged) say so in their labels: the note of the most runs, the longest, will do.
    notes = [str(c.get_label()) for c in ax.collections if str(c.get_label()).startswith(_NOTE)]
    if note and notes:
        _write_note(ax, max(notes, key=lambda text: (len(text), text)).removeprefix(_NOTE))

    lines = [line for line in ax.get_lines() if not str(line.get_label()).startswith("_")]
    if not lines:
        return
    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()  # settles the layout, which decides the distances on paper
    point = figure.dpi / 72
    frame = ax.get_window_extent()
    ends = np.array([_right_end(line, frame) for line in lines])
    size = mpl.rcParams["font.size"]
    heights = np.array([1.25 * size * (1 + str(line.get_label()).count("\n")) for line in lines])
    wanted = ends[:, 1] / point
    shifts = _spread(wanted, heights, frame.y0 / point, frame.y1 / point) - wanted
    leaders = bool((np.abs(shifts) > 0.3 * size).any())
    for line, end, shift in zip(lines, ax.transData.inverted().transform(ends), shifts, strict=True):
        color = _readable(line.get_color())
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 2}
        ax.annotate(
            str(line.get_label()),
            xy=end,
            xytext=(16 if leaders else 6, shift),
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

    Counts (integers) are written in full, other numbers with two decimals; cells too small for a 6-point font stay
    empty. A missing value (NaN) is a gray cell. Where names would overlap, they are turned or thinned out. The
    axes' labels are the caller's.

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
    low, high = limits or (None, None)
    cmap = mpl.colormaps[mpl.rcParams["image.cmap"]].with_extremes(bad="#CCCCCC")
    image = ax.imshow(np.ma.masked_invalid(matrix), cmap=cmap, vmin=low, vmax=high)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks(range(len(xlabels)), [str(name) for name in xlabels])
    ax.set_yticks(range(len(ylabels)), [str(name) for name in ylabels])
    bar = ax.figure.colorbar(image, ax=ax, label=label)
    bar.outline.set_visible(False)

    figure = ax.figure.canvas.figure
    figure.draw_without_rendering()  # settles the layout, which decides how much room a cell has
    cell = ax.get_window_extent().width / matrix.shape[1] / (figure.dpi / 72)  # in points, as fonts
    width = 0.65  # of a character, relative to its height
    size = ax.get_xticklabels()[0].get_fontsize()
    longest = max(len(str(name)) for name in xlabels)
    turned = longest > 3 and longest * width * size > cell
    if turned:
        plt.setp(ax.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    every = ceil(1.2 * size / cell), ceil((1.2 if turned else 0.4 + width * longest) * size / cell)
    for labels, step in zip((ax.get_yticklabels(), ax.get_xticklabels()), every, strict=True):
        plt.setp([name for i, name in enumerate(labels) if i % step], visible=False)
    if annotate:
        form = "d" if np.issubdtype(matrix.dtype, np.integer) else ".2f"
        texts = [[format(value, form) if np.isfinite(value) else "" for value in row] for row in matrix]
        longest = max(len(text) for row in texts for text in row) or 1
        size = min(10.0, 0.9 * cell / (width * longest))
        if size >= 6:
            for (i, j), value in np.ndenumerate(matrix):
                color = "black" if _contrast(image.cmap(image.norm(value)), "black") > 4.5 else "white"
                ax.text(j, i, texts[i][j], ha="center", va="center", fontsize=size, color=color)
    return bar


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
