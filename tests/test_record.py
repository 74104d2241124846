"""labutils.record: metrics.json, figures, verdicts and displays, and that nothing is left half-written."""

import contextlib
import json
import os
import platform
import re
from base64 import b64decode
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from labutils import record
from labutils.drawing import STYLE
from labutils.statistics import mean_interval

mpl.use("Agg")
ALT = "A line rising from 1 to 3 over two epochs."


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("LABUTILS_RUN", "quick")
    return tmp_path / "run"


@pytest.fixture
def run(folder):
    return record.start("21_demo", {"seed": 0})


@pytest.fixture(autouse=True)
def _leave_no_figure_open():
    yield
    assert plt.get_fignums() == []


def read(folder: Path) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)


def labeled(xlabel: str = "epoch", ylabel: str = "loss"):
    figure, ax = plt.subplots()
    ax.plot([1, 2], [1, 3])
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def dataset(**changes) -> SimpleNamespace:
    part = {"name": "digits", "fingerprint": "ab12", "train": [0] * 5, "validation": [], "test": [0] * 2, "file": None}
    return SimpleNamespace(**(part | changes))


def test_a_new_run_is_a_complete_record(folder):
    run = record.start("21_demo", {"seed": 3, "device": "cpu"})
    found = read(folder)
    assert list(found) == [
        *("notebook", "run", "parameters", "metrics", "non_finite"),
        *("claims", "figures", "provenance", "time"),
    ]
    assert (found["notebook"], found["run"]) == ("21_demo", "quick")
    assert found["parameters"] == {"seed": 3, "device": "cpu"}
    assert (found["metrics"], found["claims"], found["figures"]) == ({}, [], [])
    assert (run.notebook, run.name, run.folder) == ("21_demo", "quick", folder)
    assert repr(run) == "Run 'quick' of 21_demo"
    assert mpl.rcParams["axes.titlelocation"] == STYLE["axes.titlelocation"]


def test_provenance_names_what_the_numbers_may_depend_on(folder):
    record.start("21_demo", {"device": "cpu"})
    found = read(folder)["provenance"]
    for package in ("labutils", "torch", "torchvision", "numpy", "scipy", "matplotlib"):
        assert found[package] == version(package)
    assert found["python"] == platform.python_version()
    assert found["platform"] == f"{platform.system()} {platform.machine()}"
    assert (found["device"], found["accelerator"]) == ("cpu", None)
    assert found["threads"] == torch.get_num_threads()
    assert found["data"] == []


def test_parameters_are_the_plain_public_values(folder):
    namespace = {
        **{"epochs": 5, "lr": 1e-3, "name": "digits", "fast": True, "limit": None, "widths": [1, 5, (2, 3)]},
        "options": {"momentum": 0.9, "layers": [1]},
        **{"_hidden": 1, "__name__": "__main__", "In": ["x = 1"], "Out": {}, "exit": "exit", "quit": "quit"},
        **{"get_ipython": "shell", "np": np, "array": np.zeros(2), "scalar": np.float64(1), "call": len},
        **{"mixed": [1, np], "keys": {1: 2}, "kinds": {"a": {1, 2}}, "tensor": torch.zeros(1)},
    }
    run = record.start("21_demo", namespace)
    kept = {"epochs", "lr", "name", "fast", "limit", "widths", "options"}
    assert set(run.parameters) == kept
    assert read(folder)["parameters"] == {name: namespace[name] for name in kept} | {"widths": [1, 5, [2, 3]]}


def test_parameters_are_recorded_as_they_were_at_the_start(folder):
    namespace = {"widths": [1, 5], "stop": float("inf")}
    run = record.start("21_demo", namespace)
    namespace["widths"].append(9)
    run.metrics(loss=1.0)
    assert read(folder)["parameters"] == {"widths": [1, 5], "stop": None}
    assert read(folder)["non_finite"] == ["parameters.stop"]


@pytest.mark.parametrize("name", ["", "a/b", "../up", ".hidden", "a b"])
def test_a_notebook_name_that_is_no_file_name_is_refused(folder, name):
    with pytest.raises(ValueError, match="notebook must be a name such as"):
        record.start(name, {})
    assert not folder.exists()


@pytest.mark.parametrize(("where", "project"), [("notebooks", True), (".", True), (".", False)])
def test_interactive_results_go_to_the_project_or_below_the_working_folder(tmp_path, monkeypatch, where, project):
    monkeypatch.delenv("LABUTILS_RUN_DIR", raising=False)
    monkeypatch.delenv("LABUTILS_RUN", raising=False)
    (tmp_path / "notebooks").mkdir()
    if project:
        (tmp_path / "notebooks" / "runs.yaml").touch()
    with contextlib.chdir(tmp_path / where):
        run = record.start("21_demo", {})
    assert run.folder == tmp_path / "results" / "21_demo" / "interactive"
    assert read(run.folder)["run"] == "interactive"


def test_a_relative_run_folder_stays_where_it_was_when_the_notebook_moves_on(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_RUN_DIR", "here")
    monkeypatch.delenv("LABUTILS_RUN", raising=False)
    with contextlib.chdir(tmp_path):
        run = record.start("21_demo", {})
    run.metrics(loss=1.0)
    assert read(tmp_path / "here")["metrics"] == {"loss": 1.0}
    assert run.name == "here"


def test_starting_again_leaves_nothing_of_the_last_run(folder, run):
    run.metrics(loss=1.0)
    run.claim("learns", "It learns.", source="D1", measured=[1.0, 2.0, 3.0], above=0)
    run.figure(labeled(), "loss", alt=ALT)
    (folder / "notebook.ipynb").touch()
    record.start("21_demo", {"seed": 0})
    found = read(folder)
    assert (found["metrics"], found["claims"], found["figures"]) == ({}, [], [])
    assert sorted(path.name for path in folder.rglob("*")) == ["figures", "metrics.json", "notebook.ipynb"]


def test_metrics_of_every_kind(folder, run):
    run.metrics(
        number=1,
        ratio=0.1,
        flag=True,
        word="best",
        nothing=None,
        array=np.arange(4).reshape(2, 2),
        single=np.float32(0.5),
        tensor=torch.ones(2, requires_grad=True),
        half=torch.tensor([0.5], dtype=torch.bfloat16),
        nested={"a": [(1, 2.5), np.bool_(True)]},
        interval=mean_interval([1.0, 3.0]),
    )
    found = read(folder)["metrics"]
    interval = found.pop("interval")
    assert found == {
        **{"number": 1, "ratio": 0.1, "flag": True, "word": "best", "nothing": None},
        **{"array": [[0, 1], [2, 3]], "single": 0.5, "tensor": [1.0, 1.0], "half": [0.5]},
        "nested": {"a": [[1, 2.5], True]},
    }
    assert found["flag"] is True
    assert (interval["mean"], interval["n"], interval["confidence"]) == (2.0, 2, 0.95)


@given(
    values=hnp.arrays(
        st.sampled_from([np.float64, np.float32]),
        hnp.array_shapes(max_dims=3, max_side=4),
        elements=st.floats(width=32),
    )
)
def test_finite_numbers_come_back_exactly_and_others_as_null(values):
    content, finite = record._as_json(values, "x")
    back = np.array(json.loads(json.dumps(content, allow_nan=False)), dtype=np.float64)
    expected = np.where(np.isfinite(values), values.astype(np.float64), np.nan)
    np.testing.assert_array_equal(back, expected)
    assert finite == bool(np.isfinite(values).all())


def test_names_of_metrics_that_are_not_finite_are_listed_until_they_are(folder, run):
    run.metrics(loss=[1.0, float("nan")], worst=np.inf, fine=1.0, interval=mean_interval([1.0]))
    found = read(folder)
    assert found["non_finite"] == ["loss", "worst", "interval"]
    assert found["metrics"]["loss"] == [1.0, None]
    assert found["metrics"]["worst"] is None
    assert found["metrics"]["interval"] == {"mean": 1.0, "low": None, "high": None, "n": 1, "confidence": 0.95}
    run.metrics(loss=[1.0, 2.0])
    assert read(folder)["non_finite"] == ["worst", "interval"]
    assert read(folder)["metrics"]["fine"] == 1.0


@pytest.mark.parametrize("bad", [object(), {1, 2}, 1j, np.array([1j]), b"bytes", [1, [object()]], Path("x")])
def test_what_cannot_be_recorded_is_named_and_nothing_of_the_call_is_kept(folder, run, bad):
    with pytest.raises(TypeError, match=r"metric 'strange': a \w+ cannot be recorded"):
        run.metrics(fine=1.0, strange=bad)
    with pytest.raises(TypeError, match="metric 'by_epoch': keys must be strings, got 3"):
        run.metrics(by_epoch={3: 0.5})
    run.metrics(later=2.0)
    assert read(folder)["metrics"] == {"later": 2.0}


def test_data_is_recorded_with_its_fingerprint_and_file(folder, run, tmp_path):
    run.uses(dataset())
    run.uses(dataset(name="mnist", fingerprint="cd34", file=tmp_path / "mnist.npz", validation=[0]))
    run.uses(dataset())
    embedded, real = read(folder)["provenance"]["data"]
    assert embedded == {
        **{"name": "digits", "fingerprint": "ab12", "file": None},
        **{"train": 5, "validation": 0, "test": 2},
    }
    assert (real["name"], real["validation"], real["file"]) == ("mnist", 1, str(tmp_path / "mnist.npz"))


def everything(notebook: str) -> None:
    run = record.start(notebook, {"seed": 1, "lr": 0.1})
    run.uses(dataset())
    run.metrics(loss=np.linspace(0, 1, 7), worst=float("inf"))
    run.figure(labeled(), "loss", alt=ALT)
    run.claim("learns", "It learns.", source="D1", measured=np.array([0.1, 0.2, 0.4]), above=0)


def test_two_identical_runs_differ_under_time_only(tmp_path, monkeypatch):
    found, pictures = [], []
    for name in ("first", "second"):
        monkeypatch.setenv("LABUTILS_RUN_DIR", str(tmp_path / name))
        monkeypatch.setenv("LABUTILS_RUN", "quick")
        everything("21_demo")
        text = (tmp_path / name / "metrics.json").read_text(encoding="utf-8")
        found.append(text[: text.index('"time"')])
        assert list(read(tmp_path / name))[-1] == "time"
        pictures.append((tmp_path / name / "figures" / "loss.png").read_bytes())
    assert found[0] == found[1]
    assert pictures[0] == pictures[1]
    assert b"Software" not in pictures[0]
    assert str(tmp_path) not in found[0]


def test_time_says_when_and_how_long(folder, run):
    run.metrics(loss=1.0)
    found = read(folder)["time"]
    assert found["wall_seconds"] >= 0
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found[key]) for key in ("started", "updated"))
    assert found["started"] <= found["updated"]


def test_a_failed_write_leaves_the_old_record_and_no_scrap(folder, run, monkeypatch):
    run.metrics(loss=1.0)
    before = (folder / "metrics.json").read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            run.metrics(loss=2.0)
        with pytest.raises(OSError, match="disk full"):
            run.figure(labeled(), "loss", alt=ALT)
    assert (folder / "metrics.json").read_bytes() == before
    assert sorted(path.name for path in folder.rglob("*")) == ["figures", "metrics.json"]
    run.metrics(other=3.0)
    assert read(folder)["metrics"]["other"] == 3.0
    assert read(folder)["figures"] == []


def test_a_figure_is_saved_recorded_closed_and_displayed(folder, run):
    shown = run.figure(labeled(), "loss-by_epoch", alt=" A line rising\n from 1 to 3. ", key=True)
    file = folder / "figures" / "loss-by_epoch.png"
    alt = "A line rising from 1 to 3."
    expected = {"name": "loss-by_epoch", "file": "figures/loss-by_epoch.png", "alt": alt, "key": True}
    assert read(folder)["figures"] == [expected]
    assert plt.get_fignums() == []
    assert repr(shown) == "Figure loss-by_epoch: A line rising from 1 to 3."
    data, metadata = DisplayFormatter().format(shown)
    assert set(data) == {"text/html", "image/png", "text/plain"}
    assert b64decode(data["image/png"]) == file.read_bytes()
    image = BeautifulSoup(data["text/html"], "html.parser").img
    kind, _, code = image["src"].partition(",")
    assert kind == "data:image/png;base64"
    assert b64decode(code) == file.read_bytes()
    height, width = mpl.image.imread(BytesIO(file.read_bytes())).shape[:2]
    assert metadata == {"image/png": {"width": round(width / 2), "height": round(height / 2)}}
    assert image["width"] == str(round(width / 2))
    assert "max-width: 100%" in image["style"]


def rendered(figure) -> np.ndarray:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=180, bbox_inches="tight")
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def test_a_typical_line_plot_is_sharp_small_and_looks_the_same(folder, run):
    figure, ax = plt.subplots()
    rng = np.random.default_rng(0)
    for _ in range(4):
        ax.plot(np.cumsum(rng.normal(size=300)))
    ax.set(xlabel="epoch", ylabel="loss")
    expected = rendered(figure)
    run.figure(figure, "loss", alt=ALT)
    file = folder / "figures" / "loss.png"
    saved = np.asarray(Image.open(file).convert("RGB")).astype(int)
    assert file.stat().st_size < 100_000
    assert saved.shape[1] > 1000
    assert np.abs(saved - expected).max() <= 24


def test_pictures_of_many_colors_keep_them(folder, run):
    figure, ax = plt.subplots(figsize=(3, 3))
    ax.imshow(np.random.default_rng(0).random((64, 64, 3)))
    ax.axis("off")
    ax.set_title("noise")
    expected = rendered(figure)
    run.figure(figure, "noise", alt=ALT)
    saved = np.asarray(Image.open(folder / "figures" / "noise.png").convert("RGB")).astype(int)
    np.testing.assert_array_equal(saved, expected)


def test_alt_text_survives_as_it_is(run):
    alt = 'Loss < 1 & "rising" isn\'t <b>bold</b>: x > 0'
    html = run.figure(labeled(), "loss", alt=alt)._repr_mimebundle_()[0]["text/html"]
    soup = BeautifulSoup(html, "html.parser")
    assert soup.img["alt"] == alt
    assert soup.b is None


def test_a_figure_of_the_same_name_is_replaced_in_place(folder, run):
    run.figure(labeled(), "loss", alt=ALT)
    run.figure(labeled(), "other", alt=ALT)
    run.figure(labeled("step"), "loss", alt="Another line rising from 1 to 3.")
    assert [(f["name"], f["alt"]) for f in read(folder)["figures"]] == [
        ("loss", "Another line rising from 1 to 3."),
        ("other", ALT),
    ]


@pytest.mark.parametrize("alt", ["", "   ", "loss", "x" * 19, " " * 30])
def test_alt_text_that_says_nothing_is_refused(folder, run, alt):
    with pytest.raises(ValueError, match=r"'loss': alt must say what there is to see.*20 characters"):
        run.figure(labeled(), "loss", alt=alt)
    assert list((folder / "figures").iterdir()) == []
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ["", "Loss by Epoch", "a/b", "../loss", "loss.png", "-loss", "a--b"])
def test_a_figure_name_that_is_no_slug_is_refused(run, name):
    slug = "loss-by-epoch" if "Loss" in name or not name else "[a-z-]+"
    with pytest.raises(ValueError, match=f"lower-case words joined by - or _, such as '{slug}'"):
        run.figure(labeled(), name, alt=ALT)


def one(**labels: str):
    figure, ax = plt.subplots()
    ax.scatter([1, 2], [1, 2])
    ax.set(**labels)
    return figure


def grid(**options: object):
    figure, axes = plt.subplots(2, 2, **options)
    for ax in axes.flat:
        ax.plot([0, 1], [0, 1])
    return figure, axes


def picture(axis: str = "off", **labels: str):
    figure, ax = plt.subplots()
    ax.imshow(np.eye(3))
    ax.axis(axis)
    ax.set(**labels)
    return figure


def shared(drop: str = ""):
    figure, axes = grid(sharex=True, sharey=True)
    for ax in axes[-1]:
        ax.set_xlabel("epoch")
    for ax in axes[:, 0]:
        ax.set_ylabel("loss")
    if drop == "corner":
        axes[1, 1].set_xlabel("")
    return figure


def super_labels(**labels: str):
    figure, _ = grid()
    for which, text in labels.items():
        getattr(figure, f"sup{which}label")(text)
    return figure


def twin(ylabel: str):
    figure = one(xlabel="epoch", ylabel="loss")
    second = figure.axes[0].twinx()
    second.plot([1, 2], [3, 4])
    second.set_ylabel(ylabel)
    return figure


def bar(label: str, **options: str):
    figure, ax = plt.subplots()
    figure.colorbar(ax.imshow(np.eye(3)), label=label, **options)
    ax.set(xlabel="layer", ylabel="layer")
    return figure


def solid(**labels: str):
    figure, ax = plt.subplots(subplot_kw={"projection": "3d"})
    ax.plot([0, 1], [0, 1], [0, 1])
    ax.set(**labels)
    return figure


def with_hidden_and_empty():
    figure, axes = grid()
    axes[0, 0].set(xlabel="epoch", ylabel="loss")
    axes[0, 1].set_visible(False)
    for ax in axes[1]:
        ax.clear()
    return figure


def titled_grid():
    figure, axes = plt.subplots(1, 2)
    for ax in axes:
        ax.imshow(np.eye(3))
        ax.axis("off")
    figure.suptitle("Filters of the first layer")
    return figure


GOOD = {
    "both labels": lambda: one(xlabel="epoch", ylabel="loss"),
    "outer labels of shared axes": shared,
    "labels of the whole figure": lambda: super_labels(x="epoch", y="loss"),
    "a twin with its own label": lambda: twin("accuracy"),
    "a labeled color bar": lambda: bar("CKA"),
    "a labeled horizontal color bar": lambda: bar("CKA", orientation="horizontal"),
    "a picture with a title": lambda: picture(title="cat"),
    "a picture with labeled axes": lambda: picture("on", xlabel="column", ylabel="row"),
    "pictures under one title": titled_grid,
    "a 3-D plot": lambda: solid(xlabel="a", ylabel="b", zlabel="loss"),
    "hidden and empty axes": with_hidden_and_empty,
}
BAD = {
    "no labels": (one, "axes 1 of 1 lacks xlabel and ylabel"),
    "no ylabel": (lambda: one(xlabel="epoch", ylabel=" "), "axes 1 of 1 lacks ylabel"),
    "no xlabel": (lambda: one(ylabel="loss", title="Fit"), r"axes 1 of 1 \(Fit\) lacks xlabel"),
    "a label missing from the outer row": (lambda: shared("corner"), "'demo': axes 2 of 4 lacks xlabel; axes 4 of 4"),
    "only one label of the whole figure": (lambda: super_labels(x="epoch"), "axes 4 of 4 lacks ylabel"),
    "a twin without label": (lambda: twin(""), "axes 2 of 2 lacks ylabel"),
    "a color bar without label": (lambda: bar(""), "axes 2 of 2, a color bar, lacks its label"),
    "a picture without title": (lambda: picture(xlabel="a", ylabel="b"), "axes 1 of 1 has an axis switched off and"),
    "a picture with bare axes": (lambda: picture("on", title="cat"), r"axes 1 of 1 \(cat\) lacks xlabel and ylabel"),
    "a 3-D plot without zlabel": (lambda: solid(xlabel="a", ylabel="b"), "lacks zlabel"),
    "nothing drawn": (lambda: plt.subplots()[0], "no axes shows data"),
    "no axes": (plt.figure, "no axes shows data"),
}


@pytest.mark.parametrize("make", GOOD.values(), ids=GOOD.keys())
def test_a_figure_that_says_what_its_axes_are_is_accepted(run, make):
    run.figure(make(), "demo", alt=ALT)


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD.keys())
def test_a_figure_that_does_not_is_refused_and_closed(folder, run, make, message):
    with pytest.raises(ValueError, match=message):
        run.figure(make(), "demo", alt=ALT)
    assert plt.get_fignums() == []
    assert read(folder)["figures"] == []
    assert list((folder / "figures").iterdir()) == []


def test_a_claim_shows_itself_once_is_recorded_and_returned(folder, run, capsys):
    claim = run.claim(
        "learns", "The loss falls.", source="D1", measured=[1.0, 1.1, 1.2], above=0, unit="nats", key=True
    )
    assert capsys.readouterr().out == f"{claim}\n"
    assert DisplayFormatter().format(claim) == ({}, {})  # the last value of a cell is not shown again
    assert read(folder)["claims"] == [json.loads(json.dumps(claim.as_json()))]
    assert read(folder)["claims"][0]["key"] is True
    assert list(run.claims()) == [claim]


def test_a_claim_of_the_same_id_and_text_is_replaced_in_place(folder, run):
    for text, measured in (
        ("It learns.", [-1.0, -1.1, -1.2]),
        ("It forgets.", [1, 2, 3]),
        ("It learns.", [1.0, 1.1, 1.2]),
    ):
        run.claim(text[3:-1], text, source="D1", measured=measured, above=0)
    assert [(claim["id"], claim["verdict"]) for claim in read(folder)["claims"]] == [
        ("learns", "supported"),
        ("forgets", "inconclusive"),
    ]
    with pytest.raises(ValueError, match=r"claim id 'learns' is that of 'It learns.': give 'It copies.' another id"):
        run.claim("learns", "It copies.", source="D1", measured=[1, 2, 3], above=0)
    with pytest.raises(ValueError, match="NaN"):
        run.claim("copies", "It copies.", source="D1", measured=[1.0, float("nan")], above=0)
    assert len(run.claims()) == len(read(folder)["claims"]) == 2


def test_a_value_that_the_parameters_cell_does_not_allow_is_refused(folder):
    cells = ["", "epochs = 10  # passes (>= 1)"]
    with pytest.raises(ValueError, match=r"epochs = 0 is not allowed: it must be >= 1"):
        record.start("11_fit", {"In": cells, "epochs": 0})
    record.start("11_fit", {"In": cells, "epochs": 1})


def test_frames_become_lists_by_column_without_their_networks(run):
    frame = pd.DataFrame({"lr": [0.1, 0.2], "loss": [1.0, np.nan], "model": [torch.nn.Linear(1, 1)] * 2})
    run.metrics(table=frame, losses=frame.loss)
    assert read(run.folder)["metrics"] == {"table": {"lr": [0.1, 0.2], "loss": [1.0, None]}, "losses": [1.0, None]}
    assert read(run.folder)["non_finite"] == ["table", "losses"]
