"""labutils.plotting: colors that everyone can tell apart, honest lines and bands, labels that do not overlap."""

import base64
import io
import itertools
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import nbclient
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colors as mcolors
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from labutils import plotting
from labutils.plotting import (
    COLORS,
    STYLE,
    WIDTH,
    Interactive,
    curves,
    heatmap,
    image_grid,
    label_lines,
    log_ticks,
    panels,
    reference,
    slider,
    use_style,
)
from labutils.record import SavedFigure, _missing_labels
from labutils.statistics import mean_interval

mpl.use("Agg")

# Machado, Oliveira and Fernandes (2009), IEEE TVCG 15(6), full severity, for linear RGB.
SIGHTS = {
    "usual": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(autouse=True)
def _house_style():
    with mpl.rc_context():
        use_style()
        yield
    plt.close("all")


def linear(color: str) -> np.ndarray:
    rgb = np.array(mcolors.to_rgb(color))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(color: str, background: str = "white") -> float:
    weights = [0.2126, 0.7152, 0.0722]
    dark, light = sorted(float(linear(c) @ weights) + 0.05 for c in (color, background))
    return light / dark


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB (D65): distances in it are roughly those that are seen; about 2 is just noticeable."""
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def drawn(ax, gid: str) -> dict[str, object]:
    ax.figure.draw_without_rendering()
    return {text.get_text(): text for text in ax.texts if text.get_gid() == gid}


# --- style


def test_colors_stand_out_from_white():
    assert len(set(COLORS)) == len(COLORS)
    assert min(map(contrast, COLORS)) >= 3


@pytest.mark.parametrize("sight", SIGHTS)
def test_colors_can_be_told_apart_with_every_kind_of_sight(sight):
    seen = [lab(np.array(SIGHTS[sight]) @ linear(color)) for color in COLORS]
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen[:5], 2)) > 20
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 10


@pytest.mark.parametrize("color", [*COLORS, "yellow", "white", "black"])
def test_text_in_any_color_can_be_read(color):
    assert contrast(plotting._readable(color)) >= 4.5
    if contrast(color) >= 4.5:
        np.testing.assert_allclose(plotting._readable(color), mcolors.to_rgb(color))


def test_the_style_can_be_applied_again():
    first = dict(mpl.rcParams)
    use_style()
    assert dict(mpl.rcParams) == first
    assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLORS)
    assert all(STYLE[size] >= 10 for size in ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"))


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


# --- curves


def band_of(ax) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, low and high of the only band."""
    (band,) = ax.collections
    xy = band.get_paths()[0].vertices
    x = np.unique(xy[:, 0])
    return x, np.array([xy[xy[:, 0] == at, 1].min() for at in x]), np.array([xy[xy[:, 0] == at, 1].max() for at in x])


@given(runs=st.integers(2, 6), points=st.integers(2, 8), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_the_default_is_the_median_with_the_range(runs, points, seed):
    values = np.random.default_rng(seed).normal(size=(runs, points))
    figure, ax = plt.subplots()
    line = curves(ax, np.arange(points), values, "m")
    np.testing.assert_allclose(line.get_ydata(), np.median(values, axis=0))
    x, low, high = band_of(ax)
    np.testing.assert_allclose(x, np.arange(points))
    np.testing.assert_allclose(low, values.min(axis=0))
    np.testing.assert_allclose(high, values.max(axis=0))
    assert line.get_label() == "m"
    plt.close(figure)


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_the_interval_is_that_of_the_mean_geometric_on_a_logarithmic_axis(scale):
    values = np.exp(np.random.default_rng(0).normal(size=(5, 3)))
    _, ax = panels()
    ax.set_yscale(scale)
    line = curves(ax, [1, 2, 3], values, "m", band="interval")
    forth, back = (np.log, np.exp) if scale == "log" else (np.asarray, np.asarray)
    expected = [mean_interval(forth(column)) for column in values.T]
    np.testing.assert_allclose(line.get_ydata(), [back(i.mean) for i in expected])
    _, low, high = band_of(ax)
    np.testing.assert_allclose(low, [back(i.low) for i in expected])
    np.testing.assert_allclose(high, [back(i.high) for i in expected])
    label_lines(ax)
    (note,) = drawn(ax, "band note")
    assert note == ("Geometric mean" if scale == "log" else "Mean") + " of 5 runs with 95 % interval"


def test_no_band_is_drawn_where_there_is_none():
    _, ax = panels()
    curves(ax, [1, 2], [[1, 2], [3, 4]], "without", band=None)
    curves(ax, [1, 2], [1, 2], "one run")
    curves(ax, [1, 2], [[1, 2]], "one run in a row", band="interval")
    assert len(ax.collections) == 0
    label_lines(ax)
    assert drawn(ax, "band note") == {}


def test_values_may_be_tensors():
    _, ax = panels()
    line = curves(ax, torch.arange(3), torch.ones(2, 3), "m")
    np.testing.assert_array_equal(line.get_ydata(), [1, 1, 1])


def test_color_and_linestyle_are_the_callers():
    _, ax = panels()
    line = curves(ax, [1, 2], [[1, 2], [3, 4]], "m", color=COLORS[3], linestyle="--")
    assert (line.get_color(), line.get_linestyle()) == (COLORS[3], "--")
    assert mcolors.same_color(ax.collections[0].get_facecolor()[0][:3], COLORS[3])
    assert curves(ax, [1, 2], [1, 2], "next").get_color() == COLORS[0]


@pytest.mark.parametrize(("points", "marker"), [(15, "o"), (16, "None")])
def test_few_points_get_markers(points, marker):
    _, ax = panels()
    assert curves(ax, np.arange(points), np.arange(points), "m").get_marker() == marker


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_diverged_run_is_left_out_and_counted(bad):
    values = np.array([[3.0, 2.0, 1.0], [4.0, 3.0, 2.0], [9.0, 99.0, bad]])
    _, ax = panels()
    line = curves(ax, [0, 1, 2], values, "m")
    np.testing.assert_allclose(line.get_ydata(), [3.5, 2.5, 1.5])
    assert line.get_label() == "m (1 of 3 diverged)"
    assert band_of(ax)[2].max() == 4.0


def test_points_that_were_not_evaluated_are_passed_over():
    values = np.array([[3.0, np.nan, 1.0], [4.0, np.nan, 2.0]])
    _, ax = panels()
    line = curves(ax, [0, 1, 2], values, "m")
    np.testing.assert_allclose(line.get_xdata(), [0, 2])
    np.testing.assert_allclose(line.get_ydata(), [3.5, 1.5])
    assert line.get_label() == "m"


@pytest.mark.parametrize(
    ("values", "label"), [([[1.0, np.nan], [1.0, np.inf]], "m (all 2 diverged)"), ([1.0, np.nan], "m (diverged)")]
)
def test_when_all_runs_diverged_the_figure_still_says_so(values, label):
    _, ax = panels()
    curves(ax, [0, 1], [1.0, 0.5], "other")
    line = curves(ax, [0, 1], values, "m", band="interval")
    assert line.get_label() == label
    assert len(line.get_xdata()) == 0
    label_lines(ax)
    assert set(drawn(ax, "line label")) == {"other", label}


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_long_noisy_curves_are_drawn_in_slices_that_keep_their_extremes(scale):
    rng = np.random.default_rng(0)
    x = np.arange(1, 20001)
    values = np.exp(-x / 5000) + 0.1 * rng.normal(size=(4, x.size))
    values[2, 777], values[1, 15000] = 50.0, -50.0
    _, ax = panels()
    ax.set_xscale(scale)
    line = curves(ax, x, values, "m")
    at, low, high = band_of(ax)
    assert 300 < len(at) <= 500
    assert (low.min(), high.max()) == (-50.0, 50.0)
    assert high[np.argmin(np.abs(at - x[777]))] == 50.0
    assert np.all(np.diff(at) > 0)
    np.testing.assert_allclose(line.get_ydata(), np.exp(-line.get_xdata() / 5000), atol=0.15)
    start = 1 if scale == "log" else 21  # a logarithmic axis shows the first epochs one by one
    assert at[0] <= start


def test_a_geometric_mean_needs_positive_values():
    _, ax = panels()
    ax.set_yscale("log")
    with pytest.raises(ValueError, match=r"'m': a geometric mean needs positive values, the least is -1"):
        curves(ax, [0, 1], [[1.0, 2.0], [-1.0, 2.0]], "m", band="interval")


@pytest.mark.parametrize(
    ("x", "values"),
    [([0, 1], [1, 2, 3]), ([0, 1], [[1, 2, 3]]), ([], []), ([0, 1], np.zeros((0, 2))), ([[0, 1]], [[0, 1]])],
)
def test_shapes_that_do_not_match_are_refused(x, values):
    _, ax = panels()
    with pytest.raises(ValueError, match=r"'m': x must have shape \(points,\) and values \(runs, points\)"):
        curves(ax, x, values, "m")


def test_an_unknown_band_is_refused():
    _, ax = panels()
    with pytest.raises(ValueError, match="band must be 'range', 'interval' or None, got 'std'"):
        curves(ax, [0, 1], [0, 1], "m", band="std")


# --- labels


@given(
    wanted=st.lists(st.floats(0, 100), min_size=1, max_size=7),
    rows=st.lists(st.integers(1, 2), min_size=7, max_size=7),
)
def test_labels_are_spread_without_overlap_in_order_within_bounds(wanted, rows):
    wanted, heights = np.array(wanted), 5.0 * np.array(rows[: len(wanted)])
    centers = plotting._spread(wanted, heights, 0.0, 100.0)
    order = np.argsort(wanted, kind="stable")
    room = (heights[order][1:] + heights[order][:-1]) / 2
    assert np.all(np.diff(centers[order]) >= room - 1e-9)
    assert np.all(centers >= -1e-9)
    assert np.all(centers + heights / 2 <= 100 + 1e-9)


@given(gaps=st.lists(st.floats(5.001, 20), min_size=1, max_size=5))
def test_labels_that_do_not_overlap_stay(gaps):
    wanted = np.cumsum(gaps)
    np.testing.assert_allclose(plotting._spread(wanted, np.full(len(gaps), 5.0), 0.0, 200.0), wanted)


def test_two_labels_at_one_place_move_apart_evenly():
    np.testing.assert_allclose(plotting._spread(np.array([50.0, 50.0]), np.array([6.0, 6.0]), 0, 100), [47, 53])


def test_more_labels_than_room_run_over_at_the_top_only():
    centers = plotting._spread(np.full(5, 10.0), np.full(5, 10.0), 0.0, 20.0)
    np.testing.assert_allclose(np.diff(np.sort(centers)), 10.0)
    assert centers.min() == 0.0


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_drawn_labels_do_not_overlap_and_stay_on_the_figure(scale):
    figure, axes = panels(1, 2)
    for ax in axes:
        ax.set(yscale=scale, title="Loss", xlabel="epoch", ylabel="loss")
        for i in range(5):
            curves(ax, np.arange(1, 31), 1 + np.ones((3, 30)) * i * 1e-3, f"model {i}")
        label_lines(ax)
    figure.draw_without_rendering()
    frame = figure.bbox
    for ax in axes:
        texts = [text for text in ax.texts if text.get_gid()] + [ax.title, ax._left_title]
        boxes = [mpl.text.Text.get_window_extent(text) for text in texts if text.get_text()]
        assert len(boxes) == 7  # five labels, the note, the title
        for a, b in combinations(boxes, 2):
            assert not mpl.transforms.Bbox.intersection(a.padded(-1), b.padded(-1))
        for box in boxes:
            assert frame.x0 <= box.x0 < box.x1 <= frame.x1
            assert frame.y0 <= box.y0 < box.y1 <= frame.y1


def test_labels_stand_beside_their_lines_in_their_color():
    _, ax = panels()
    low = curves(ax, [0, 1, 2], [0, 0, 0], "low")
    curves(ax, [0, 1, 2], [1, 1, 1], "high")
    label_lines(ax)
    texts = drawn(ax, "line label")
    assert list(texts) == ["low", "high"]
    assert texts["low"].xy == pytest.approx((2, 0))
    assert texts["high"].xy == pytest.approx((2, 1))
    assert mcolors.same_color(texts["low"].get_color(), low.get_color())
    assert all(text.arrow_patch is None for text in texts.values())


def test_lines_that_end_outside_the_limits_are_labeled_at_the_edge():
    _, ax = panels()
    ax.plot([0, 1], [0, 50], label="up")
    ax.set_ylim(0, 1)
    label_lines(ax)
    (text,) = drawn(ax, "line label").values()
    assert text.xy == pytest.approx((1, 1))


def test_a_line_that_turns_back_is_labeled_beyond_all_lines():
    _, ax = panels()
    ax.plot([0, 3, 1], [0, 1, 2], label="back")
    ax.plot([0, 2], [4, 5], label="ahead")
    ax.plot([], [], label="nowhere")
    label_lines(ax)
    texts = drawn(ax, "line label")
    edge = ax.transData.transform((3, 0))[0]
    assert all(mpl.text.Text.get_window_extent(text).x0 > edge for text in texts.values())  # without its leader
    assert texts["back"].xy == pytest.approx((1, 2))  # where its leader points
    assert texts["back"].arrow_patch is not None
    assert texts["nowhere"].arrow_patch is None


def test_labeling_again_replaces_the_labels():
    _, ax = panels()
    ax.annotate("mine", (0, 0))
    curves(ax, [0, 1], [[0, 1], [1, 2]], "m")
    label_lines(ax)
    label_lines(ax)
    assert sorted(text.get_text() for text in ax.texts) == ["Median and range of 2 runs", "m", "mine"]
    label_lines(ax, note=False)
    assert sorted(text.get_text() for text in ax.texts) == ["m", "mine"]


def test_lines_without_label_are_passed_over():
    _, ax = panels()
    ax.plot([0, 1], [0, 1])
    label_lines(ax)
    assert len(ax.texts) == 0


def test_the_note_counts_the_runs_of_the_fullest_line():
    _, ax = panels()
    curves(ax, [0, 1], [[0, 1]] * 9 + [[0, np.nan]], "some")
    curves(ax, [0, 1], [[0, 1]] * 10, "all")
    label_lines(ax)
    assert list(drawn(ax, "band note")) == ["Median and range of 10 runs"]


# --- pictures


@pytest.mark.parametrize("shape", [(7, 8, 8), (7, 1, 8, 8), (7, 3, 8, 8)])
def test_an_image_grid_shows_the_images_in_order(shape):
    images = np.random.default_rng(0).random(shape)
    figure = image_grid(images, [f"class {i}" for i in range(7)], columns=3)
    assert [ax.get_title() for ax in figure.axes] == [f"class {i}" for i in range(7)]
    for image, ax in zip(images, figure.axes, strict=True):
        expected = image if image.ndim == 2 else image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        np.testing.assert_allclose(ax.get_images()[0].get_array(), expected)
        assert ax.get_images()[0].get_clim() == (0, 1)
    assert figure.axes[-1].get_subplotspec().get_geometry() == (3, 3, 6, 6)


def test_an_image_grid_undoes_a_normalization():
    pixels = np.random.default_rng(0).random((2, 3, 4, 4))
    data = SimpleNamespace(mean=torch.tensor([0.5, 0.4, 0.3]), std=torch.tensor([0.2, 0.3, 0.1]))
    normalized = torch.tensor((pixels - data.mean.numpy()[:, None, None]) / data.std.numpy()[:, None, None])
    figure = image_grid(normalized.float(), dataset=data)
    for image, ax in zip(pixels, figure.axes, strict=True):
        np.testing.assert_allclose(ax.get_images()[0].get_array(), image.transpose(1, 2, 0), atol=1e-6)


def test_long_titles_fit_above_their_images():
    figure = image_grid(np.zeros((10, 8, 8)), ["automobile"] * 10)
    figure.draw_without_rendering()
    boxes = [ax.title.get_window_extent() for ax in figure.axes]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


@pytest.mark.parametrize("shape", [(8, 8), (2, 4, 8, 8), (0, 1, 8, 8), (1, 2, 3, 4, 5)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="images must have shape"):
        image_grid(np.zeros(shape))


def test_titles_must_be_one_an_image():
    with pytest.raises(ValueError, match="3 images but 2 titles"):
        image_grid(np.zeros((3, 8, 8)), ["a", "b"])


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_normalized_images_are_refused(value):
    with pytest.raises(ValueError, match=r"values in \[0, 1\].*dataset"):
        image_grid(np.full((3, 8, 8), value))


# --- heat maps


def test_a_heatmap_shows_its_numbers_names_and_scale():
    matrix = np.array([[0.1, 0.9], [0.456, np.nan], [1.0, 0.0]])
    _, ax = panels()
    bar = heatmap(ax, matrix, ["a", "b"], [1, 2, 3], "CKA", limits=(0, 1))
    assert [text.get_text() for text in ax.texts] == ["0.10", "0.90", "0.46", "", "1.00", "0.00"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["1", "2", "3"]
    assert bar.ax.get_ylabel() == "CKA"
    (image,) = ax.get_images()
    assert image.get_clim() == (0, 1)
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), matrix)
    assert image.get_cmap().name == "viridis"
    assert not any(line.get_visible() for line in ax.get_xgridlines())


def test_numbers_in_cells_can_be_read():
    _, ax = panels()
    matrix = np.linspace(0, 1, 24).reshape(4, 6)
    heatmap(ax, matrix, range(6), range(4), "value")
    (image,) = ax.get_images()
    for text, value in zip(ax.texts, matrix.flat, strict=True):
        assert contrast(text.get_color(), image.cmap(image.norm(value))) > 4.5
        assert text.get_fontsize() >= 6


def test_numbers_stay_within_their_cells():
    figure, ax = panels(height=5.5)
    heatmap(ax, np.full((10, 10), 1000), [f"category {i}" for i in range(10)], range(10), "images")
    figure.draw_without_rendering()
    cell = ax.get_window_extent().width / 10
    assert len(ax.texts) == 100
    assert max(text.get_window_extent().width for text in ax.texts) < cell


def test_small_cells_get_no_numbers_and_fewer_names():
    figure, ax = panels()
    heatmap(ax, np.random.default_rng(0).random((40, 40)), range(40), range(40), "similarity")
    assert len(ax.texts) == 0
    figure.draw_without_rendering()
    for labels, side in ((ax.get_xticklabels(), "x"), (ax.get_yticklabels(), "y")):
        shown = [label.get_window_extent() for label in labels if label.get_visible()]
        assert 10 <= len(shown) < 40
        ends = sorted((getattr(box, f"{side}0"), getattr(box, f"{side}1")) for box in shown)
        assert all(a[1] < b[0] for a, b in pairwise(ends))


def test_long_names_are_turned():
    _, ax = panels()
    heatmap(ax, np.zeros((10, 10)), ["automobile"] * 10, range(10), "images", annotate=False)
    assert {label.get_rotation() for label in ax.get_xticklabels()} == {45}
    assert len(ax.texts) == 0


@pytest.mark.parametrize("rows", [1, 2])
def test_numbers_still_fit_when_further_heatmaps_take_room(rows):
    figure, axes = panels(rows, 2, height=3.2)
    axes = np.ravel(axes)
    for ax in axes:
        heatmap(ax, np.full((6, 6), 0.25), range(6), range(6), "similarity")
        ax.set(xlabel="layer of one network", ylabel="layer of another")
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
    matrix = np.tile([0.25, -0.5, 1.0, 10.25, -1.25, 0.0], (6, 1))
    heatmap(axes[0], matrix, range(6), range(6), "value")
    assert [text.get_text() for text in axes[0].texts[:6]] == [".25", "-.50", "1.0", "10.25", "-1.25", ".00"]


@pytest.mark.parametrize("matrix", [np.zeros(3), np.zeros((0, 3)), 1.0])
def test_what_is_no_matrix_is_refused(matrix):
    _, ax = panels()
    with pytest.raises(ValueError, match=r"matrix must have shape \(rows, columns\)"):
        heatmap(ax, matrix, [], [], "value")


def test_names_must_be_one_a_row_and_column():
    _, ax = panels()
    with pytest.raises(ValueError, match=r"\(2, 3\) needs as many ylabels and xlabels, got 3 and 2"):
        heatmap(ax, np.zeros((2, 3)), "ab", "abc", "value")


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (3, 2), (6, 2), (4, 3)])
def test_panel_each_has_one_titled_panel_for_each(count: int, columns: int) -> None:
    titles = [f"title {i}" for i in range(count)]
    figure, axes = plotting.panel_each(titles, columns=columns)
    assert list(axes) == titles
    assert figure.axes == list(axes.values())
    assert [ax.get_title("left") for ax in axes.values()] == titles
    assert len({ax.get_position().x0 for ax in axes.values()}) == min(columns, count)
    plt.close(figure)


@pytest.mark.parametrize("titles", [[], ["a", "a"]])
def test_panel_each_refuses(titles: list[str]) -> None:
    with pytest.raises(ValueError, match="one or more, all different"):
        plotting.panel_each(titles)


# --- ticks and reference lines


def ticks(ax, which: str) -> list[str]:
    """The tick labels that a reader sees."""
    ax.figure.draw_without_rendering()
    low, high = sorted(getattr(ax, f"get_{which}lim")())
    axis = getattr(ax, f"{which}axis")
    shown = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
    return [label.get_text() for place, label in shown if low <= place <= high]


@pytest.mark.parametrize(
    ("limits", "columns", "expected"),
    [
        ((8, 600), 1, ["10", "20", "50", "100", "200", "500"]),
        ((8, 600), 3, ["10", "30", "100", "300"]),
        ((9e3, 7e4), 2, ["10k", "20k", "50k"]),
        ((2e5, 3e6), 1, ["200k", "500k", "1M", "2M"]),
        ((0.004, 0.2), 3, ["0.01", "0.03", "0.1"]),
        ((3e-4, 4e-4), 2, ["$3\\times10^{-4}$", "$4\\times10^{-4}$"]),
        (
            (2e-5, 7e-4),
            1,
            ["$2\\times10^{-5}$", "$5\\times10^{-5}$", "$10^{-4}$", "$2\\times10^{-4}$", "$5\\times10^{-4}$"],
        ),
    ],
)
def test_logarithmic_axes_have_ticks_between_powers(limits, columns, expected):
    _, axes = panels(1, columns)
    ax = np.ravel(axes)[0]
    ax.set(xscale="log", xlim=limits)
    log_ticks(ax)
    assert ticks(ax, "x") == expected


@settings(max_examples=8)
@given(low=st.floats(-6, 6), decades=st.floats(0.2, 2.9), columns=st.integers(1, 3))
def test_ticks_of_logarithmic_axes_do_not_touch(low, decades, columns):
    figure, axes = panels(1, columns)
    ax = np.ravel(axes)[0]
    ax.set(xscale="log", yscale="log", xlim=(10**low, 10 ** (low + decades)), ylim=(10**low, 10 ** (low + decades)))
    log_ticks(ax)
    shown = ticks(ax, "y")
    assert 1 <= len(shown) <= 9
    assert len(set(shown)) == len(shown)
    boxes = [t.get_window_extent() for t in ax.get_yticklabels()]
    frame = ax.get_window_extent()
    boxes = sorted((box for box in boxes if frame.y0 <= (box.y0 + box.y1) / 2 <= frame.y1), key=lambda box: box.y0)
    assert all(below.y1 <= above.y0 + 1 for below, above in pairwise(boxes))
    plt.close(figure)


def test_linear_and_long_axes_keep_their_ticks():
    _, ax = panels()
    ax.set(yscale="log", ylim=(1e-4, 1), xlim=(0, 10))
    before = ticks(ax, "x"), ticks(ax, "y")
    log_ticks(ax)
    assert (ticks(ax, "x"), ticks(ax, "y")) == before


def test_there_is_no_epoch_two_and_a_half():
    _, axes = panels(1, 2)
    for ax, end in zip(axes, (6, 7.5), strict=True):
        ax.plot([0, end], [0, 1])
        assert all(float(text).is_integer() for text in ticks(ax, "x"))


def test_a_reference_line_carries_its_name():
    _, (left, right) = panels(1, 2)
    for ax in (left, right):
        ax.plot([0, 4], [0, 2], label="line")
    reference(left, "chance", y=1)
    reference(right, "threshold", x=3, at=0.5)
    for ax, name, at in ((left, "chance", (0.97, 1)), (right, "threshold", (3, 0.5))):
        label_lines(ax)
        assert list(drawn(ax, "line label")) == ["line"]  # the reference has its own
        (text,) = [text for text in ax.texts if text.get_text() == name]
        assert text.xy == at
        assert contrast(text.get_color()) >= 4.5
        assert [line.get_linestyle() for line in ax.get_lines()] == ["-", ":"]
    box, line = text.get_window_extent(), right.transData.transform((3, 0))[0]
    assert line < box.x0 < line + 20


@pytest.mark.parametrize("where", [{}, {"x": 1, "y": 1}])
def test_a_reference_line_has_one_place(where):
    _, ax = panels()
    with pytest.raises(ValueError, match="give x or y, one of them"):
        reference(ax, "here", **where)


# --- sliders


@pytest.fixture
def moving(monkeypatch):
    """A figure with a dot that a slider moves, its static picture, and what was drawn."""
    figure, ax = panels()
    (dot,) = ax.plot([0], [0], "o")
    ax.set(xlim=(-1, 3), ylim=(-1, 1))
    drawn = []

    def draw(x: float) -> None:
        drawn.append(x)
        dot.set_xdata([x])

    plt.close(figure)  # as Run.figure leaves it
    return SimpleNamespace(
        figure=figure, draw=draw, drawn=drawn, static=SavedFigure("dot", "A <moving> dot.", b"\x89PNG" + bytes(20))
    )


def picture(view) -> np.ndarray:
    """The pixels of the picture that a slider shows."""
    code = view.value.partition("base64,")[2].partition('"')[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code))).convert("RGB")).astype(int)


def test_a_slider_draws_where_it_is_moved_to(moving, monkeypatch):
    monkeypatch.setattr(plotting, "_watched", lambda: True)
    it = slider(moving.figure, moving.draw, [0.0, 1.0, 2.0], moving.static, label="x (m)", format="{:.1f}")
    assert isinstance(it, Interactive)
    assert it.control.description == "x (m)"
    assert [name for name, _ in it.control.options] == ["0.0", "1.0", "2.0"]
    assert it.control.value == 0.0
    pictures = [picture(it.view)]
    for value in (1.0, 2.0):
        it.control.value = value
        assert f'alt="A &lt;moving&gt; dot. Here, x (m) is {value:.1f}."' in it.view.value
        pictures.append(picture(it.view))
    assert len({p.shape for p in pictures}) == 1  # the page does not jump
    columns = [np.argwhere(p[..., 2] - p[..., 0] > 80)[:, 1].mean() for p in pictures]
    assert np.diff(columns) == pytest.approx(np.diff(columns)[0], rel=0.02)
    assert np.diff(columns)[0] > 20
    it.control.value = 0.0
    assert moving.drawn == [0.0, 1.0, 2.0]  # what was drawn before is only shown again
    assert (picture(it.view) == pictures[0]).all()


def test_a_slider_has_the_static_picture_to_fall_back_on(moving, monkeypatch):
    monkeypatch.setattr(plotting, "_watched", lambda: True)
    bundle, _ = slider(moving.figure, moving.draw, [0, 1], moving.static, label="x")._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "A &lt;moving&gt; dot." in bundle["text/html"]
    assert "image/png" in bundle


def test_nobody_watches_a_test(moving, monkeypatch):
    monkeypatch.delenv("LABUTILS_RUN_DIR", raising=False)
    assert slider(moving.figure, moving.draw, [0, 1], moving.static, label="x") is moving.static
    assert moving.drawn == []


@pytest.mark.parametrize(("values", "form"), [([], "{}"), ([1], "{}"), ([0.101, 0.102], "{:.2f}")])
def test_a_slider_needs_values_that_can_be_told_apart(moving, values, form):
    with pytest.raises(ValueError, match="slider 'x': needs two values or more"):
        slider(moving.figure, moving.draw, values, moving.static, label="x", format=form)


@pytest.mark.parametrize("headless", [True, False])
def test_a_run_shows_the_static_figure_and_a_reader_the_slider(headless, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if headless:
        monkeypatch.setenv("LABUTILS_RUN_DIR", str(tmp_path / "run"))
    else:
        monkeypatch.delenv("LABUTILS_RUN_DIR", raising=False)
    code = """
from labutils import plotting, record
run = record.start("99_slider", {})
figure, ax = plotting.panels()
(dot,) = ax.plot([0, 1], [0, 1], "o")
ax.set(xlabel="x", ylabel="y")
static = run.figure(figure, "dots", alt="Two dots, one of which moves up.")
plotting.slider(figure, lambda y: dot.set_ydata([0, y]), [1, 2], static, label="y")
"""
    book = new_notebook(cells=[new_code_cell(code)])
    nbclient.execute(book, kernel_name="python3", timeout=120)
    (output,) = book.cells[0].outputs
    assert "Two dots, one of which moves up." in output.data["text/html"]
    assert ("application/vnd.jupyter.widget-view+json" in output.data) is not headless
    assert ("widgets" in book.metadata) is not headless
    figures = "run/figures" if headless else "results/99_slider/interactive/figures"
    assert (tmp_path / figures / "dots.png").is_file()
    nbformat.validate(book)


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


def test_lines_draws_a_median_and_a_band_over_seeds_for_each_hue():
    frame = sweep(lr=[0.1, 0.01]).query("part == 'test'")
    figure, ax = plotting.lines(frame, x="epoch", y="loss", hue="lr", log=["loss"], labels={"loss": "cross-entropy"})
    first, second = ax.get_lines()
    assert [line.get_label() for line in (first, second)] == ["lr 0.01", "lr 0.1"]
    np.testing.assert_allclose(first.get_ydata(), 2 - np.arange(4) / 9)
    assert [line.get_color() for line in (first, second)] == list(plotting.colors([0.1, 0.01]).values())
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_xscale(), ax.get_yscale()) == (
        "epoch",
        "cross-entropy",
        "linear",
        "log",
    )
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
    lightness = [plotting._luminance(color) for color in by_number.values()]
    assert lightness == sorted(lightness)
    assert all(plotting._contrast(color, "white") >= 3 for color in by_number.values())
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
