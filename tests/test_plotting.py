"""labutils.plotting: whole figures, from frames and of pictures, cells and sliders."""

import itertools
from itertools import pairwise
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from labutils import plotting
from labutils.drawing import COLORS, contrast, use_style
from labutils.plotting import WIDTH, curves, heatmap, image_grid, label_lines, panels
from labutils.record import _missing_labels

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _house_style():
    with mpl.rc_context():
        use_style()
        yield
    plt.close("all")


# --- panels


@pytest.mark.parametrize(("rows", "columns", "shape"), [(1, 1, ()), (1, 3, (3,)), (2, 1, (2,)), (2, 3, (2, 3))])
def test_panels_have_the_house_size(rows, columns, shape):
    figure, axes = panels(rows, columns)
    assert np.shape(axes) == shape
    width, height = figure.get_size_inches()
    assert width == WIDTH
    assert 2.8 * rows <= height <= 4 * rows


def test_panels_take_a_size_and_options():
    figure, (a, b) = panels(2, width=5, height=1.5, sharex=True)
    np.testing.assert_allclose(figure.get_size_inches(), (5, 3))
    assert a.get_shared_x_axes().joined(a, b)


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("end", [1.0, 30, 2000, 20000])
def test_tick_labels_do_not_touch(columns, end):
    figure, axes = panels(1, columns)
    for ax in np.ravel(axes):
        curves(ax, np.linspace(0, end, 50), np.linspace(0, 1, 50), "model 1")
        label_lines(ax)
    figure.draw_without_rendering()
    for ax in np.ravel(axes):
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
        low, high = ax.get_window_extent().intervalx
        boxes = [box for box in boxes if low - 1 <= (box.x0 + box.x1) / 2 <= high + 1]
        assert len(boxes) >= 2
        assert all(left.x1 + 2 < right.x0 for left, right in pairwise(boxes))


# --- pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_grid_shows_the_images_in_order(channels):
    images = np.random.default_rng(0).random((7, channels, 8, 8))
    figure = image_grid(images, [f"class {i}" for i in range(7)], columns=3)
    assert [ax.get_title() for ax in figure.axes] == [f"class {i}" for i in range(7)]
    for image, ax in zip(images, figure.axes, strict=True):
        expected = image[0] if channels == 1 else image.transpose(1, 2, 0)
        np.testing.assert_allclose(ax.get_images()[0].get_array(), expected)
        assert ax.get_images()[0].get_clim() == (0, 1)
    assert figure.axes[-1].get_subplotspec().get_geometry() == (3, 3, 6, 6)


def test_an_image_grid_undoes_a_normalization():
    pixels = np.random.default_rng(0).random((2, 3, 4, 4))
    data = SimpleNamespace(mean=torch.tensor([0.5, 0.4, 0.3]), std=torch.tensor([0.2, 0.3, 0.1]))
    normalized = torch.tensor((pixels - data.mean.numpy()[:, None, None]) / data.std.numpy()[:, None, None])
    figure = image_grid(normalized.float(), ["a", "b"], dataset=data)
    for image, ax in zip(pixels, figure.axes, strict=True):
        np.testing.assert_allclose(ax.get_images()[0].get_array(), image.transpose(1, 2, 0), atol=1e-6)


def test_long_titles_fit_above_their_images():
    figure = image_grid(np.zeros((10, 1, 8, 8)), ["automobile"] * 10)
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        *((np.zeros(shape), "images must have shape") for shape in ((8, 8), (3, 8, 8), (2, 4, 8, 8), (0, 1, 8, 8))),
        (np.zeros((3, 1, 8, 8)), "3 images but 2 titles"),
        *((np.full((2, 1, 8, 8), value), r"values in \[0, 1\].*dataset") for value in (-0.1, 1.1, np.nan)),
    ],
)
def test_what_is_no_grid_of_images_is_refused(images, message):
    with pytest.raises(ValueError, match=message):
        image_grid(images, ["a", "b"])


# --- heat maps


def test_a_heatmap_shows_its_numbers_names_and_scale():
    table = pd.DataFrame([[0.1, 0.9], [0.456, np.nan], [1.0, 0.0]], [1, 2, 3], ["a", "b"])
    _, ax = panels()
    bar = heatmap(ax, table, "CKA")
    assert [text.get_text() for text in ax.texts] == ["0.10", "0.90", "0.46", "", "1.00", "0.00"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "2", "3"]
    assert (bar.ax.get_ylabel(), ax.get_xlabel(), ax.get_ylabel()) == ("CKA", "column", "row")
    (image,) = ax.get_images()
    assert image.get_clim() == (0, 1)
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), table)
    assert image.get_cmap().name == "viridis"
    assert not any(line.get_visible() for line in ax.get_xgridlines())


def test_a_heatmap_writes_no_negative_zero_and_ones_as_short_as_it_can():
    _, ax = panels()
    heatmap(ax, pd.DataFrame([[-0.004, 0.3]]), "r")
    assert [text.get_text() for text in ax.texts] == ["0.00", "0.30"]
    _, ax = panels()
    heatmap(ax, pd.DataFrame(np.full((14, 14), -1.0)), "r")
    assert {text.get_text() for text in ax.texts} == {"-1.0"}


def test_numbers_in_cells_can_be_read():
    _, ax = panels()
    table = pd.DataFrame(np.linspace(0, 1, 24).reshape(4, 6))
    heatmap(ax, table, "value")
    (image,) = ax.get_images()
    for text, value in zip(ax.texts, table.to_numpy().flat, strict=True):
        assert contrast(text.get_color(), image.cmap(image.norm(value))) > 4.5
        assert text.get_fontsize() >= 6


def test_numbers_stay_within_their_cells_and_long_names_are_turned():
    figure, ax = panels(height=5.5)
    heatmap(ax, pd.DataFrame(1000, range(10), [f"category {i}" for i in range(10)]), "images")
    figure.draw_without_rendering()
    cell = ax.get_window_extent().width / 10
    assert len(ax.texts) == 100
    assert max(text.get_window_extent().width for text in ax.texts) < cell
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {45}


def test_small_cells_get_no_numbers_and_fewer_names():
    figure, ax = panels()
    heatmap(ax, pd.DataFrame(np.random.default_rng(0).random((40, 40))), "similarity")
    assert len(ax.texts) == 0
    figure.draw_without_rendering()
    for labels, side in ((ax.get_xticklabels(), "x"), (ax.get_yticklabels(), "y")):
        shown = [label.get_window_extent() for label in labels if label.get_visible()]
        assert 10 <= len(shown) < 40
        ends = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in shown)
        assert all(a[1] < b[0] for a, b in pairwise(ends))


@pytest.mark.parametrize("rows", [1, 2])
def test_numbers_still_fit_when_further_heatmaps_take_room(rows):
    figure, axes = panels(rows, 2, height=3.2)
    axes = np.ravel(axes)
    for ax in axes:
        heatmap(ax, pd.DataFrame(0.25, range(6), range(6)), "similarity")
    figure.draw_without_rendering()
    for ax in axes:
        cell = ax.get_window_extent().width / 6
        assert len(ax.texts) == 36
        assert max(text.get_window_extent().width for text in ax.texts) < cell
        (bar,) = ax.child_axes
        assert bar.get_window_extent().height == pytest.approx(ax.get_window_extent().height, rel=0.01)
    assert len({round(text.get_fontsize(), 6) for ax in axes for text in ax.texts}) == 1


def test_numbers_lose_their_zero_where_room_is_scarce():
    _, axes = panels(1, 2)
    heatmap(axes[0], pd.DataFrame([[0.25, -0.5, 1.0, 10.25, -1.25, 0.0]] * 6), "value")
    assert [text.get_text() for text in axes[0].texts[:6]] == [".25", "-.50", "1.0", "10.25", "-1.25", ".00"]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 2), (6, 2), (4, 3)])
def test_panel_each_has_one_titled_panel_for_each(count: int, columns: int) -> None:
    titles = [f"title {i}" for i in range(count)]
    figure, axes = plotting.panel_each(titles, columns=columns)
    assert list(axes) == titles
    assert figure.axes == list(axes.values())
    assert [ax.get_title("left") for ax in axes.values()] == titles
    assert len({ax.get_position().x0 for ax in axes.values()}) == min(columns, count)
    for bad in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="one or more, all different"):
            plotting.panel_each(bad)


# --- From frames


def sweep(**settings: list) -> pd.DataFrame:
    """A frame as training.sweep returns it: one row for each combination, seed, epoch and part."""
    names = list(settings)
    rows = [
        dict(zip(names, values, strict=True))
        | {"seed": seed, "epoch": epoch, "part": part, "loss": 1.0 + seed - epoch / 9}
        for values in itertools.product(*settings.values())
        for seed in range(3)
        for epoch in range(4)
        for part in ("train", "test")
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(accuracy=1 / (1 + frame.loss))


def test_lines_says_of_each_panel_what_it_shows_where_they_differ():
    frame = pd.DataFrame(
        [(p, s, e, 1 + s + e) for p, n in (("a", 4), ("b", 3)) for s in range(n) for e in (0, 1)],
        columns=["part", "seed", "epoch", "loss"],
    )
    figure, axes = plotting.lines(frame, x="epoch", y="loss", col="part")
    notes = {name: [t.get_text() for t in ax.texts if t.get_gid() == "band note"] for name, ax in axes.items()}
    assert notes == {"a": ["Median and range of 4 runs"], "b": ["Median and range of 3 runs"]}
    assert figure.get_suptitle() == ""
    figure, axes = plotting.lines(frame[frame.seed < 3], x="epoch", y="loss", col="part")
    assert figure.get_suptitle() == "Median and range of 3 runs"
    assert not any(text.get_gid() == "band note" for ax in axes.values() for text in ax.texts)


@pytest.mark.parametrize("draw", [plotting.lines, plotting.points])
def test_what_tells_lines_apart_must_have_a_value_in_every_row(draw):
    frame = pd.DataFrame({"epoch": [0, 1] * 2, "loss": [2, 1, 3, 2], "schedule": [None, None, "step", "step"]})
    with pytest.raises(ValueError, match=r"schedule is missing .* in 2 rows"):
        draw(frame, x="epoch", y="loss", hue="schedule")


def test_a_fifth_kind_of_line_is_refused():
    frame = pd.DataFrame({"epoch": [0, 1] * 5, "loss": range(10), "part": np.repeat(list("abcde"), 2)})
    with pytest.raises(ValueError, match="part has 5 values: nobody tells more than 4 kinds of lines apart"):
        plotting.lines(frame, x="epoch", y="loss", style="part")


def test_lines_draws_a_median_and_a_band_over_seeds_for_each_hue():
    frame = sweep(lr=[0.1, 0.01]).query("part == 'test'")
    figure, ax = plotting.lines(frame, x="epoch", y="loss", hue="lr", log=["loss"], labels={"loss": "cross-entropy"})
    first, second = ax.get_lines()
    assert [line.get_label() for line in (first, second)] == ["lr 0.01", "lr 0.1"]
    np.testing.assert_allclose(first.get_ydata(), 2 - np.arange(4) / 9)
    assert [line.get_color() for line in (first, second)] == list(plotting.colors([0.1, 0.01]).values())
    axes = ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale(), ax.get_yscale()
    assert axes == ("epoch", "cross-entropy", "linear", "log")
    assert figure.get_suptitle() == "Median and range of 3 runs"
    assert [text.get_text() for text in ax.texts] == ["lr 0.01", "lr 0.1"]


def test_lines_tells_styles_apart_by_dashes_and_says_which():
    figure, axes = plotting.lines(sweep(data=["a", "b"]), x="epoch", y="loss", hue="data", style="part")
    assert [line.get_linestyle() for line in axes.get_lines()] == ["-", "--", "-", "--"]
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    assert figure.get_suptitle() == "Median and range of 3 runs; solid: train, dashed: test"
    assert len(axes.collections) == 2  # bands upon bands hide each other
    _, alone = plotting.lines(sweep(data=["a"]), x="epoch", y="loss", style="part")
    assert [text.get_text() for text in alone.texts] == ["train", "test"]
    figure, _ = plotting.lines(sweep(lr=[0.1, 0.01]), x="epoch", y="loss", hue="part", style="lr")
    assert figure.get_suptitle().endswith("; solid: lr 0.01, dashed: lr 0.1")


@pytest.mark.parametrize(
    ("options", "keys", "titles"),
    [
        ({"y": "loss", "col": "data"}, ["a", "b"], ["a", "b"]),
        ({"y": ["loss", "accuracy"], "hue": "data"}, ["loss", "accuracy"], ["", ""]),
        (
            {"y": ["loss", "accuracy"], "col": "data"},
            [("loss", "a"), ("loss", "b"), ("accuracy", "a"), ("accuracy", "b")],
            ["a", "b", "", ""],
        ),
    ],
)
def test_lines_gives_panels_by_column_and_by_measure(options, keys, titles):
    figure, axes = plotting.lines(sweep(data=["a", "b"]), x="epoch", style="part", **options)
    assert list(axes) == keys
    assert [ax.get_title(loc="left") for ax in axes.values()] == titles
    assert record_accepts(figure)


def record_accepts(figure) -> bool:
    return _missing_labels(figure) == []


def test_a_diverged_seed_is_left_out_and_said():
    frame = sweep(data=["a"]).query("part == 'test'")
    frame.loc[(frame.seed == 2) & (frame.epoch > 1), "loss"] = np.nan
    _, ax = plotting.lines(frame, x="epoch", y="loss", hue="data")
    assert [text.get_text() for text in ax.texts] == ["a (1 of 3 diverged)"]


def test_what_varies_unnamed_is_refused():
    with pytest.raises(ValueError, match=r"several values of 'loss' for seed 0, epoch 0 on one line: name what varies"):
        plotting.lines(sweep(lr=[0.1, 0.2]).query("part == 'test'"), x="epoch", y="loss")
    with pytest.raises(ValueError, match=r"no column 'rate'; there are 'lr', 'seed'"):
        plotting.lines(sweep(lr=[0.1]), x="epoch", y="loss", hue="rate")


def test_colors_are_the_same_for_the_same_names_and_ordered_for_numbers():
    assert plotting.colors(["b", "a", "b"]) == {"b": COLORS[0], "a": COLORS[1]}
    by_number = plotting.colors(range(10))
    contrasts = [contrast(color, "white") for color in by_number.values()]
    assert contrasts == sorted(contrasts, reverse=True)
    assert min(contrasts) >= 3
    with pytest.raises(ValueError, match="8 names for 7 colors"):
        plotting.colors("abcdefgh")


def test_points_have_color_and_marker_and_a_legend():
    frame = sweep(data=["a", "b"], lr=[1, 2])
    figure, ax = plotting.points(frame, x="loss", y="accuracy", hue="data", style="lr", log=["loss"])
    assert [text.get_text() for text in figure.legends[0].texts] == ["a, lr 1", "a, lr 2", "b, lr 1", "b, lr 2"]
    assert len(ax.collections) == 4
    assert sum(len(drawn.get_offsets()) for drawn in ax.collections) == len(frame)
    assert record_accepts(figure)


def test_heatmaps_share_a_scale_that_is_white_at_zero_for_signed_numbers():
    table = pd.DataFrame([[1.0, -3.0], [0.5, np.nan]], index=pd.Index([0.1, 0.01], name="lr"), columns=["a", "b"])
    figure, axes = plotting.heatmaps({"one": table, "two": table / 2}, "effect", signed=True)
    assert {ax.get_images()[0].get_clim() for ax in axes.values()} == {(-3.0, 3.0)}
    image = axes["one"].get_images()[0]
    assert min(image.cmap(image.norm(0.0))[:3]) > 0.95
    assert [label.get_text() for label in axes["one"].get_yticklabels()] == ["0.1", "0.01"]
    assert axes["one"].get_ylabel() == "lr"
    assert record_accepts(figure)
    _, axes = plotting.heatmaps({"one": table}, "effect")
    assert axes["one"].get_images()[0].get_clim() == (-3.0, 1.0)


def test_heatmaps_mark_the_greatest_number_of_each_row_within_its_cell():
    table = pd.DataFrame([[1.0, 3.0, np.nan], [0.5, -1.0, 0.0]], columns=list("abc"))
    figure, axes = plotting.heatmaps({"one": table, "two": -table}, "similarity", mark=True)
    [squares] = axes["one"].lines
    assert squares.get_xdata().tolist() == [1, 0]
    assert list(squares.get_ydata()) == [0, 1]
    assert axes["two"].lines[0].get_xdata().tolist() == [0, 1]
    assert axes["one"].get_xlim() == (-0.5, 2.5)
    figure.draw_without_rendering()
    cell = axes["one"].get_window_extent().width / 3 / figure.dpi * 72
    assert 0.7 * cell < squares.get_markersize() < 0.9 * cell
    _, axes = plotting.heatmaps({"one": table}, "similarity")
    assert not axes["one"].lines


def test_a_forest_shows_ours_beside_the_reported():
    _, ax = plotting.panels()
    table = pd.DataFrame(
        {"mean": [0.9, 0.1], "low": [0.8, 0.0], "high": [1.0, 0.2], "paper": [0.95, np.nan]}, ["CKA", "CCA"]
    )
    plotting.forest(ax, table, reported="paper", names=("ours", "theirs"))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["CKA", "CCA"]
    assert ax.get_ylim() == (1.5, -0.5)
    assert ax.texts[0].get_text() == "● ours, with 95 % interval   × theirs"
    with pytest.raises(ValueError, match="no column 'low'"):
        plotting.forest(ax, table.drop(columns="low"))
