"""A slider over pictures that are drawn beforehand: it needs no kernel, so that it moves on a page, too."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BYTES = 1_000_000  # of a page, for one slider
_DPI, _PAGE_DPI = 126, 90  # drawn, and shown
_QUALITY = 80

# Moving it hides all pictures but one. The box keeps its place; printed, it is the picture that shows the point.
_MOVE = (
    "const figure = this.closest('figure'), all = figure.querySelectorAll('img'), at = all[this.value];"
    "all.forEach(one => one.hidden = one !== at);"
    "figure.querySelector('output').textContent = at.dataset.value;"
    "this.setAttribute('aria-valuetext', at.dataset.value)"
)


@dataclass(frozen=True)
class Slider:
    """Pictures of which a slider shows one, as a notebook displays them.

    Attributes:
        label: what the slider sets.
        values: how its values are written.
        pictures: (len(values),) WebP files.
        start: index of the picture that is shown first.
        still: the recorded figure, for where no HTML is shown.
        width: of the pictures on a page, in pixels.
    """

    label: str
    values: tuple[str, ...]
    pictures: tuple[bytes, ...]
    start: int
    still: Any
    width: int

    def __repr__(self) -> str:
        return f"Slider over {self.label}: {self.still!r}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        bundle, more = self.still._repr_mimebundle_()
        alt, label = html.escape(self.still.alt), html.escape(self.label)
        images = "".join(
            f'<img src="data:image/webp;base64,{base64.b64encode(picture).decode()}" data-value="{html.escape(value)}"'
            f' alt="{alt} Here, {label} is {html.escape(value)}." width="{self.width}"'
            f' style="max-width: 100%; height: auto"{"" if at == self.start else " hidden"}>'
            for at, (value, picture) in enumerate(zip(self.values, self.pictures, strict=True))
        )
        now = html.escape(self.values[self.start])
        control = (
            f'<label class="slider">{label} <input type="range" min="0" max="{len(self.values) - 1}"'
            f' value="{self.start}" aria-valuetext="{now}" oninput="{html.escape(_MOVE)}"'
            f' style="width: min(20rem, 50%); vertical-align: middle"> <output>{now}</output></label>'
        )
        return bundle | {"text/html": f'<figure class="slider">{control}<div>{images}</div></figure>'}, more


def slider(
    figure: Figure,
    draw: Callable[[Any], object],
    values: Iterable[Any],
    still: Any,
    *,
    label: str,
    start: Any = None,
    format: str = "{:g}",
) -> Slider:
    """Draw a figure at several values, and return a slider over the pictures, to be shown as the last value of a cell.

    It moves by mouse and arrow keys, in Jupyter and on a page without a kernel; printed, it is one picture.

    Args:
        figure: the figure; it may be closed, as `run.figure` leaves it.
        draw: called with each value; changes the figure's artists to show it.
        values: what the slider selects from, two or more.
        still: the figure as `run.figure` returns it, at the value `start`.
        label: what the slider sets, with its unit.
        start: the value that it begins at, one that shows the point without moving; by default the first.
        format: how a value is written, as in `str.format`.

    Raises:
        ValueError: fewer than two values, two that are written alike, a start that is none of them, or pictures that
            take more than 1 MB.

    Example:
        >>> from labutils import plotting
        >>> figure, ax = plotting.panels()
        >>> (dot,) = ax.plot([0], [1], "o")
        >>> it = slider(figure, lambda x: dot.set_xdata([x]), [0, 1, 2], "the picture", label="position", start=1)
        >>> it.values, it.start
        (('0', '1', '2'), 1)
    """
    chosen = list(values)
    names = tuple(format.format(value) for value in chosen)
    if len(chosen) < 2 or len(set(names)) < len(names):
        raise ValueError(f"slider {label!r}: needs two values or more that format={format!r} tells apart, got {names}")
    if start is not None and start not in chosen:
        raise ValueError(f"slider {label!r}: start = {start!r} is none of its values {names}")
    figure.draw_without_rendering()
    box = figure.get_tightbbox().padded(0.1)
    pictures = []
    # The layout is settled: while the slider moves, the axes stay where they are. Without the setting, matplotlib would
    # take None for "as the style says", and savefig would put that engine back.
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        for value in chosen:
            draw(value)
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", dpi=_DPI, bbox_inches=box, pil_kwargs={"compress_level": 1})
            packed = io.BytesIO()
            Image.open(buffer).convert("RGB").save(packed, format="webp", quality=_QUALITY)
            pictures.append(packed.getvalue())
    size = sum(map(len, pictures)) * 4 // 3  # as text
    if size > MOST_BYTES:
        raise ValueError(f"slider {label!r}: {len(pictures)} pictures of {size / 1e6:.1f} MB, 1 MB at most: take fewer")
    at = 0 if start is None else chosen.index(start)
    return Slider(label, names, tuple(pictures), at, still, round(_PAGE_DPI * box.width))


def growing(axes: Sequence[Axes], stops: Sequence[Any], name: str) -> Callable[[Any], None]:
    """Make lines grow: in gray as wholes, in their own color up to a stop that a `slider` selects.

    Args:
        axes: axes with lines of one point a stop; the title of the last names the stop.
        stops: what the points belong to, such as epochs.
        name: what a stop is, such as "epoch".

    Returns:
        A function that draws the lines up to a stop, and with it.

    Example:
        >>> from labutils import plotting
        >>> figure, ax = plotting.panels()
        >>> (line,) = ax.plot([0, 10, 20], [3, 2, 1])
        >>> growing([ax], [0, 10, 20], "epoch")(10)
        >>> line.get_xdata().tolist()
        [0, 10]
    """
    lines = [(line, *line.get_data()) for ax in axes for line in ax.get_lines()]
    for line, x, y in lines:
        line.axes.plot(x, y, color="0.8", zorder=1, label="_whole")

    def draw(stop: Any) -> None:
        end = list(stops).index(stop) + 1
        for line, x, y in lines:
            line.set_data(x[:end], y[:end])
        axes[-1].set_title(f"{name} {stop}")

    return draw
