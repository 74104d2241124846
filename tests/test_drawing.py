"""labutils.drawing: colors that everyone can tell apart, honest lines and bands, labels that do not overlap."""

from itertools import combinations, pairwise

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colors as mcolors

from labutils import drawing
from labutils.drawing import COLORS, STYLE, curves, label_lines, log_ticks, reference, use_style
from labutils.plotting import panels
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
def test_labels_in_any_color_can_be_read(color):
    _, ax = panels()
    ax.plot([0, 1], [0, 1], color=color, label="line")
    label_lines(ax)
    (text,) = drawn(ax, "line label").values()
    assert contrast(text.get_color()) >= 4.5
    if contrast(color) >= 4.5:
        assert mcolors.same_color(text.get_color(), color)


@given(first=st.sampled_from(COLORS), second=st.sampled_from(["white", "black", *COLORS]))
def test_the_contrast_is_that_of_the_accessibility_guidelines(first, second):
    assert drawing.contrast(first, second) == pytest.approx(contrast(first, second))


def test_the_style_can_be_applied_again():
    first = dict(mpl.rcParams)
    use_style()
    assert dict(mpl.rcParams) == first
    assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLORS)
    assert all(STYLE[size] >= 10 for size in ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"))


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


@pytest.mark.parametrize(("points", "marker"), [(15, "o"), (16, "None")])
def test_color_and_line_are_the_callers_and_few_points_get_markers(points, marker):
    _, ax = panels()
    line = curves(ax, torch.arange(points), torch.ones(2, points), "m", color=COLORS[3], linestyle="--")
    assert (line.get_color(), line.get_linestyle(), line.get_marker()) == (COLORS[3], "--", marker)
    assert mcolors.same_color(ax.collections[0].get_facecolor()[0][:3], COLORS[3])
    np.testing.assert_array_equal(line.get_ydata(), np.ones(points))
    assert curves(ax, [1, 2], [1, 2], "next").get_color() == COLORS[0]


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


SHAPES = r"'m': x must have shape \(points,\) and values \(runs, points\)"


@pytest.mark.parametrize(
    ("x", "values", "band", "message"),
    [
        ([0, 1], [1, 2, 3], None, SHAPES),
        ([0, 1], [[1, 2, 3]], None, SHAPES),
        ([], [], None, SHAPES),
        ([0, 1], np.zeros((0, 2)), None, SHAPES),
        ([[0, 1]], [[0, 1]], None, SHAPES),
        ([0, 1], [0, 1], "std", "band must be 'range', 'interval' or None, got 'std'"),
        ([0, 1], [[1, 2], [-1, 2]], "interval", "must be positive, got -1"),
    ],
)
def test_what_is_no_curve_is_refused(x, values, band, message):
    _, ax = panels()
    ax.set_yscale("log")
    with pytest.raises(ValueError, match=message):
        curves(ax, x, values, "m", band=band)


# --- labels


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_drawn_labels_do_not_overlap_and_stay_on_the_figure(scale):
    figure, axes = panels(1, 2)
    for ax in axes:
        ax.set(yscale=scale, title="Loss", xlabel="epoch", ylabel="loss")
        for i in range(5):
            curves(ax, np.arange(1, 31), 1 + np.ones((3, 30)) * i * 1e-3, f"model {i}")
    label_lines(*axes)
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
        heights = [text.get_window_extent().y0 for text in drawn(ax, "line label").values()]
        assert heights == sorted(heights)  # in the order of the lines


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
    ax.plot([0, 1], [0, 1])  # without a label
    curves(ax, [0, 1], [[0, 1], [1, 2]], "m")
    label_lines(ax)
    label_lines(ax)
    assert sorted(text.get_text() for text in ax.texts) == ["Median and range of 2 runs", "m", "mine"]
    label_lines(ax, note=False)
    assert sorted(text.get_text() for text in ax.texts) == ["m", "mine"]


def test_the_note_counts_the_runs_of_the_fullest_line():
    _, ax = panels()
    curves(ax, [0, 1], [[0, 1]] * 9 + [[0, np.nan]], "some")
    curves(ax, [0, 1], [[0, 1]] * 10, "all")
    label_lines(ax)
    assert list(drawn(ax, "band note")) == ["Median and range of 10 runs"]


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
        ((2e-5, 2e-4), 1, ["$2\\times10^{-5}$", "$5\\times10^{-5}$", "$10^{-4}$", "$2\\times10^{-4}$"]),
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
    for where in ({}, {"x": 1, "y": 1}):
        with pytest.raises(ValueError, match="give x or y, one of them"):
            reference(left, "here", **where)
