"""Figures for a page that is read on a phone as often as on a desk.

They are few inches wide, with labels beside the lines instead of a legend, in colors that survive color blindness, and
never color alone. Whole figures are drawn from long-format frames, as `training.sweep` returns them (one row a seed
and epoch). What is one line of matplotlib stays matplotlib.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import colors as mcolors
from matplotlib import ticker
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from labutils.drawing import (
    COLORS,
    MUTED,
    WIDTH,
    band_note,
    contrast,
    curves,
    label_lines,
    log_ticks,
    reference,
    use_style,
    write_note,
)
from labutils.slider import growing, slider

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = [  # with what notebooks draw into the axes of such a figure
    "COLORS",
    "colors",
    "curves",
    "forest",
    "growing",
    "heatmap",
    "heatmaps",
    "image_grid",
    "label_lines",
    "lines",
    "log_ticks",
    "panel_each",
    "panels",
    "points",
    "reference",
    "slider",
    "use_style",
]

LINES = {"solid": "-", "dashed": "--", "dotted": ":", "dash-dotted": "-."}
MARKERS = "os^Dv<>"
DIVERGING = "RdBu_r"  # for signed numbers: white is 0
_HEATMAP, _CELL = "heatmap", "cell"
_CHARACTER = 0.65  # width of a character, relative to its height


def panels(
    rows: int = 1, columns: int = 1, *, width: float = WIDTH, height: float | None = None, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure of rows x columns axes in the house size, and its axes.

    Args:
        rows: Number of rows.
        columns: Number of columns. Three are the most that stay readable on a phone.
        width: Width of the whole figure in inches.
        height: Height of one row in inches; by default in proportion to the width of a panel.
        **options: Passed on to `matplotlib.pyplot.subplots`, such as `sharey=True`.

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
    """Return a figure with one titled panel for each of the titles, all different, row by row, and its axes by title.

    The options are those of `panels`, such as `height=2.5`.

    Example:
        >>> figure, axes = panel_each(["x²", "sinc", "square wave"])
        >>> list(axes)
        ['x²', 'sinc', 'square wave']
        >>> plt.close(figure)
    """
    titles = list(titles)
    if not titles or len(set(titles)) < len(titles):
        raise ValueError(f"titles must be one or more, all different, got {titles}")
    figure, axes = _flow(len(titles), columns=columns, **options)
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title)
    return figure, dict(zip(titles, axes, strict=True))


def colors(values: Iterable[Any]) -> dict[Any, Any]:
    """Return a color for each value, to be used in all figures in which the values mean the same.

    Numbers, sorted, get a scale from dark to light, so that color tells their order; names the seven colors of the
    house.

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
        ValueError: If a column is missing, or has missing values where it tells lines or panels apart; more than four
            styles; or something varies on a line that needs a hue, style or col.

    Example:
        >>> frame = pd.DataFrame({"epoch": [0, 1] * 2, "loss": [2, 1, 3, 2], "network": ["a", "a", "b", "b"]})
        >>> figure, axes = lines(frame, x="epoch", y="loss", col="network")
        >>> list(axes)
        ['a', 'b']
        >>> plt.close(figure)
    """
    kinds = _values_of(frame, style)
    if len(kinds) > len(LINES):
        raise ValueError(f"{style} has {len(kinds)} values: nobody tells more than {len(LINES)} kinds of lines apart")
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
                    linestyle=list(LINES.values())[number],
                    shade=0.0 if hue and number else 0.2,  # bands upon bands hide each other
                )
    dashes = [f"{word}: {_named(style, kind)}" for word, kind in zip(LINES, kinds, strict=False) if hue and style]
    notes = {band_note(ax) for ax, _, _ in parts} - {""}
    told = [*(notes if len(notes) == 1 else ()), ", ".join(dashes)]
    if note := "; ".join(filter(None, told)):
        size = mpl.rcParams["font.size"] - 1.5
        figure.suptitle(note, x=0.01, ha="left", fontsize=size, fontweight="normal", color=MUTED)
    label_lines(*(ax for ax, _, _ in parts), note=len(notes) > 1)
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
    """Draw a long-format frame as points, one a row, with a legend below the figure; arguments as in `lines`.

    Style means markers; without it, the values of hue have a marker each, too.

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
    log_ticks(*(ax for ax, _, _ in parts))
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
    mark: bool = False,
    **options: Any,
) -> tuple[Figure, dict[str, Axes]]:
    """Draw tables as heatmaps, a panel each by its title, on one scale with one color bar.

    Counts (integers) are written in full, other numbers with two decimals, as .25 where 0.25 would be small; cells too
    small for a 6-point font stay empty. Where names would overlap, they are turned or thinned out.

    Args:
        tables: Title to table, as `frame.pivot` makes it: names of rows and columns label the cells, the names of
            index and columns the axes.
        label: What the colors mean, with its unit.
        signed: The numbers have a sign that matters: a diverging map, white at 0.
        limits: Values at the two ends of the scale; by default from the least to the greatest number of all tables.
        annotate: Write the numbers into the cells where they fit.
        mark: Draw a square around the greatest number of each row; the squares are the first of the axes' `lines`.
        **options: As in `panel_each`, such as `columns=3` or `height=3.2`.

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
        _draw_cells(ax, table, annotate, limits, signed=signed)
    bar = figure.colorbar(ax.get_images()[0], ax=list(axes.values()), label=label, shrink=0.9, aspect=25)
    bar.outline.set_visible(False)
    _fit_heatmaps(figure)
    for title, table in tables.items() if mark else ():
        size, greatest = 0.8 * _cell_width(axes[title]), np.nanargmax(np.asarray(table), axis=1)
        axes[title].plot(greatest, range(len(table)), "s", markersize=size, mfc="none", mec=COLORS[1], mew=1.5)
    return figure, axes


def heatmap(ax: Axes, table: pd.DataFrame, label: str) -> Colorbar:
    """Draw a table as colored cells with a color bar of its own; label says what the colors mean, with the unit.

    A further heatmap in a figure takes room from those before it, whose numbers are then fitted anew.

    Example:
        >>> figure, ax = plt.subplots()
        >>> bar = heatmap(ax, pd.DataFrame([[8, 1], [0, 9]], ["cat", "dog"], ["cat", "dog"]), "images")
        >>> [text.get_text() for text in ax.texts]
        ['8', '1', '0', '9']
        >>> plt.close(figure)
    """
    image = _draw_cells(ax, table, annotate=True, limits=None)
    # Within the axes' own room: a bar as high as the matrix.
    bar = ax.figure.colorbar(image, cax=ax.inset_axes((1.04, 0, 0.06, 1)), label=label)
    bar.outline.set_visible(False)
    counts = np.issubdtype(image.get_array().dtype, np.integer)
    bar.locator = ticker.MaxNLocator(5, steps=[1, 2, 5, 10], integer=counts)
    if isinstance(engine := ax.figure.canvas.figure.get_layout_engine(), ConstrainedLayoutEngine):
        engine.set(w_pad=0.15)  # inches: the bar's label keeps off the next panel's
    _fit_heatmaps(ax.figure.canvas.figure)
    return bar


def forest(
    ax: Axes, table: pd.DataFrame, *, reported: str | None = None, names: tuple[str, str] = ("ours", "reported")
) -> None:
    """Draw estimates with their intervals, a row each, beside those that somebody reported.

    Args:
        ax: Where to draw.
        table: Columns mean, low and high, from the top; the index names the rows, and its name the axis.
        reported: A further column, drawn as crosses.
        names: What dots and crosses are, written above the axes.

    Example:
        >>> figure, ax = plt.subplots()
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
    write_note(ax, note)


def image_grid(images: ArrayLike, titles: Sequence[str], columns: int = 10, *, dataset: Any = None) -> Figure:
    """Return a figure of small images, each with its title above it.

    Args:
        images: Shape (n, 1 or 3 channels, height, width); values in [0, 1].
        titles: One a picture, such as its class.
        columns: Pictures in a row.
        dataset: The data set that the images come from, to undo its normalization.

    Raises:
        ValueError: If the shape is another, the titles are not one a picture, or values leave [0, 1].

    Example:
        >>> figure = image_grid(np.zeros((3, 1, 8, 8)), ["0", "1", "2"])
        >>> len(figure.axes)
        3
        >>> plt.close(figure)
    """
    images = np.asarray(images, dtype=np.float64)
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must have shape (n, 1 or 3 channels, height, width), got {images.shape}")
    if len(titles) != len(images):
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
    title_height = 0.2 * (1 + max(title.count("\n") for title in titles))
    longest = max(len(line) for title in titles for line in title.split("\n"))
    size = max(6.0, min(9.0, 72 * cell / (0.6 * max(longest, 1))))
    height = rows * (cell * images.shape[2] / images.shape[3] + title_height)
    figure = plt.figure(figsize=(cell * columns, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    for index, (image, title) in enumerate(zip(np.clip(images, 0, 1).transpose(0, 2, 3, 1), titles, strict=True)):
        ax = figure.add_subplot(rows, columns, index + 1)
        ax.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        ax.axis("off")
        ax.set_title(title, fontsize=size, fontweight="normal", loc="center", pad=2)
    return figure


def _flow(number: int, *, columns: int = 2, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure of so many panels, row by row."""
    columns = min(columns, number)
    figure, axes = panels(ceil(number / columns), columns, squeeze=False, **options)
    for ax in axes.flat[number:]:
        ax.remove()
    return figure, list(axes.flat[:number])


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
    crossed = len(names) > 1 and col is not None
    if crossed:
        options.pop("columns", None)
        figure, grid = panels(len(names), len(values), squeeze=False, **{"sharex": "col"} | options)
        flat = list(grid.flat)
    else:
        figure, flat = _flow(max(len(names), len(values)), **options)
    parts, axes = [], {}
    for ax, (name, value) in zip(flat, itertools.product(names, values), strict=True):
        ax.set(xscale="log" if x in log else "linear", yscale="log" if name in log else "linear")
        ax.set_ylabel(labels.get(name, name))
        if not crossed or name == names[-1]:
            ax.set_xlabel(labels.get(x, x))
        if col and name == names[0]:
            ax.set_title(_named(col, value))
        axes[(name, value) if crossed else value if col else name] = ax
        parts.append((ax, name, frame[_is(frame, col, value)]))
    return figure, axes if len(parts) > 1 or col else parts[0][0], parts


def _values_of(frame: pd.DataFrame, column: str | None) -> list[Any]:
    """Return the values of a column: numbers and categories in their order, others as they come; [None] for none."""
    if column is None:
        return [None]
    _check_columns(frame, column)
    values = frame[column]
    if values.isna().any():
        raise ValueError(
            f"{column} is missing (None or NaN) in {values.isna().sum()} rows: give it a value or drop them"
        )
    if isinstance(values.dtype, pd.CategoricalDtype):
        return [value for value in values.cat.categories if (values == value).any()]
    known = list(values.unique())
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
        f"{column} {np.format_float_positional(float(f'{value:.6g}'), trim='-')}"  # 0.00001, not 1e-05
        if isinstance(value, int | float | np.number) and not isinstance(value, bool)
        else str(value)
    )


def _check_columns(frame: pd.DataFrame, *names: str | None) -> None:
    for name in names:
        if name is not None and name not in frame:
            raise ValueError(f"no column {name!r}; there are {', '.join(map(repr, frame))}")


def _draw_cells(
    ax: Axes, table: pd.DataFrame, annotate: bool, limits: tuple[float, float] | None, *, signed: bool = False
) -> AxesImage:
    """Draw a table as cells, with empty texts for their numbers, and its names; a missing value is a gray cell."""
    matrix = np.asarray(table)
    low, high = limits or (None, None)
    cmap = mpl.colormaps[DIVERGING if signed else mpl.rcParams["image.cmap"]].with_extremes(bad="#CCCCCC")
    image = ax.imshow(np.ma.masked_invalid(matrix), cmap=cmap, vmin=low, vmax=high, gid=_HEATMAP)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for axis, names, other in ((ax.xaxis, table.columns, "column"), (ax.yaxis, table.index, "row")):
        axis.set_ticks(range(len(names)), [f"{name:g}" if isinstance(name, float) else str(name) for name in names])
        axis.set_label_text(names.name or other)
    if annotate:
        for (i, j), value in np.ndenumerate(matrix):
            color = "black" if contrast(image.cmap(image.norm(value)), "black") > 4.5 else "white"
            ax.text(j, i, "", ha="center", va="center", color=color, gid=_CELL)
    return image


def _fit_heatmaps(figure: Figure) -> None:
    """Fit names and numbers of all heatmaps of a figure to the room that its layout leaves them."""
    figure.draw_without_rendering()
    for ax in figure.axes:
        if any(image.get_gid() == _HEATMAP for image in ax.get_images()):
            _fit_names(ax)
            _fit_numbers(ax)


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
    texts = ["" if value is np.ma.masked else format(value, "d" if counts else "z.2f") for value in values.flat]
    if not counts and room / max(map(len, texts)) < 9:
        texts = [text[:-1] if text in ("1.00", "-1.00") else re.sub(r"^(-?)0\.", r"\1.", text) for text in texts]
    size = min(10.0, room / (max(map(len, texts)) or 1))
    for cell, text in zip(cells, texts, strict=True):
        if size >= 6:
            cell.set(text=text, fontsize=size)
        else:
            cell.remove()
