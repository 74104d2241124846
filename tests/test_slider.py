"""labutils.slider: pictures drawn beforehand, and the control that shows one of them."""

from __future__ import annotations

import base64
import io
import re
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from labutils import slider as module
from labutils.plotting import growing, panels, slider, use_style
from labutils.record import SavedFigure


@pytest.fixture
def moving() -> SimpleNamespace:
    """A figure with a dot that a slider moves, and its recorded picture."""
    figure, ax = panels()
    (dot,) = ax.plot([0], [0], "o")
    ax.set(xlim=(-1, 3), ylim=(-1, 1))
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=10)
    plt.close(figure)  # as run.figure leaves it
    still = SavedFigure("dot", "A <moving> dot.", picture.getvalue())
    return SimpleNamespace(figure=figure, draw=lambda x: dot.set_xdata([x]), still=still)


def test_each_picture_shows_its_value(moving: SimpleNamespace) -> None:
    it = slider(moving.figure, moving.draw, [0.0, 1.0, 2.0], moving.still, label="x (m)", start=1.0, format="{:.1f}")
    shown = DisplayFormatter().format(it)[0]["text/html"]
    images = re.findall(r"<img src=\"data:image/webp;base64,([^\"]+)\" data-value=\"([^\"]+)\" alt=\"([^\"]+)\"", shown)
    assert [value for _, value, _ in images] == ["0.0", "1.0", "2.0"]
    assert [alt for *_, alt in images] == [f"A &lt;moving&gt; dot. Here, x (m) is {x}.0." for x in range(3)]
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))).astype(int) for code, *_ in images]
    assert len({picture.shape for picture in pictures}) == 1, "the page would jump"
    columns = [np.argwhere(p[..., 2] - p[..., 0] > 80)[:, 1].mean() for p in pictures]
    assert np.diff(columns) == pytest.approx(np.diff(columns)[0], rel=0.05)
    assert np.diff(columns)[0] > 20
    assert [" hidden" in tag for tag in re.findall("<img [^>]+>", shown)] == [True, False, True]
    assert 'value="1" aria-valuetext="1.0"' in shown


def test_axes_stay_where_they_are_while_the_slider_moves() -> None:
    with mpl.rc_context():
        use_style()
        figure, ax = panels()
        ax.plot([0], [0], "o")
        places = []

        def draw(lines: int) -> None:
            places.append(ax.get_position().bounds)
            ax.set_ylabel("\n".join(["higher"] * lines))

        slider(figure, draw, [1, 2, 3, 4], SavedFigure("dot", "A dot.", b""), label="lines")
    assert len(set(places)) == 1


def test_where_no_html_is_shown_there_is_the_recorded_figure(moving: SimpleNamespace) -> None:
    it = slider(moving.figure, moving.draw, [0, 1], moving.still, label="x")
    bundle = DisplayFormatter().format(it)[0]
    assert base64.b64decode(bundle["image/png"]) == moving.still.png
    assert "A <moving> dot." in bundle["text/plain"]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "slider 'x': needs two values or more"),
        ([1], {}, "needs two values or more"),
        ([0.101, 0.102], {"format": "{:.2f}"}, "needs two values or more"),
        ([0, 1], {"start": 3}, "start = 3 is none of its values"),
        ([0, 1], {}, "slider 'x': 2 pictures of .* MB, 1 MB at most: take fewer"),
    ],
)
def test_what_no_slider_shows_is_refused(moving, values: list, options: dict, message: str, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=message):
        slider(moving.figure, moving.draw, values, moving.still, label="x", **options)


def test_lines_grow_and_shrink_before_gray_wholes() -> None:
    figure, (left, right) = panels(1, 2)
    (path,) = left.plot([3, 4, 5], [1, 2, 0], "r")
    (loss,) = right.plot([0, 10, 20], [9, 4, 1], "b")
    draw = growing([left, right], [0, 10, 20], "epoch")
    for stop, points in ((20, 3), (0, 1), (10, 2)):
        draw(stop)
        assert path.get_xydata().tolist() == [[3, 1], [4, 2], [5, 0]][:points]
        assert loss.get_xydata().tolist() == [[0, 9], [10, 4], [20, 1]][:points]
        titles = {ax.get_title(loc) for ax in (left, right) for loc in ("left", "center")}
        assert titles == {"", f"epoch {stop}"}
    whole = [line for line in left.get_lines() if line is not path]
    assert [line.get_xdata().tolist() for line in whole] == [[3, 4, 5]]
    assert whole[0].get_zorder() < path.get_zorder()
    plt.close(figure)
