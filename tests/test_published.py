"""labutils.published: what a notebook shows of its source runs."""

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from bs4 import BeautifulSoup

from labutils import published, record
from labutils.claims import judge
from labutils.files import layout

LAB = Path(__file__).parents[1]
ABOUT = {
    "d1": {"about": {"document": "D1", "differs": "a rate of our own"}, "n_train": 60000, "seeds": 5},
    "d2": {
        "about": {"document": "D2", "answers": True},
        **{"n_train": 50000, "epochs": {"a": 25}, "experiments": ["a"], "rates": [1, 2], "augment": True},
    },
    "d2-short": {"about": {"document": "D2", "instead_of": "d2"}, "n_train": 5000, "epochs": {"a": 5, "b": 5}},
    "more": {"n_train": 10},
}
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "runs.yaml").write_text(yaml.safe_dump({"42_width": ABOUT}, sort_keys=False))
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


def publish(root: Path, name: str, claims: list | None = None, **parameters: object) -> None:
    folder = root / "book" / "results" / "42_width" / name
    (folder / "figures").mkdir(parents=True)
    for figure in ("first", "second"):
        (folder / "figures" / f"{figure}.png").write_bytes(PICTURE)
    if claims is None:
        options = {"source": "D2 <1-3>", "measured": [1.0, 1.1, 1.2, 1.3, 1.2], "above": 0, "unit": "<nats>"}
        claims = [judge("a", "Wide & <deep>.", **options), judge("b", "The answer.", key=True, **options)]
        claims = [claim.as_json() for claim in claims]
    metrics = {
        "parameters": {key: value for key, value in ABOUT[name].items() if key != "about"} | parameters,
        "claims": claims,
        "figures": [
            {"name": "first", "file": "figures/first.png", "alt": "First.", "key": False},
            {"name": "second", "file": "figures/second.png", "alt": 'Second "alt" <b>.', "key": True},
        ],
        "provenance": {"data": [{"name": "mnist", "train": 60000, "test": 10000}]},
        "time": {"started": "2026-11-20T10:00:00+00:00"},
    }
    (folder / "metrics.json").write_text(layout(metrics))


def show(root: Path) -> BeautifulSoup:
    shown = record.start("42_width", {}).source_runs()
    assert all(words in repr(shown) for words in ("d1", "d2", "more"))
    return BeautifulSoup(shown._repr_html_(), "html.parser")


def test_nothing_published_is_said_plainly(root: Path) -> None:
    page = show(root)
    assert page.p.text == "No source run of this notebook has been published yet (d1, d2, d2-short, more)."
    assert "d2: at D2's own settings · not published yet: labs run 42_width:d2" in page.text
    assert page.img is None


def test_the_run_that_answers_the_question_comes_first_with_key_figure_and_key_claim(root: Path) -> None:
    publish(root, "d1")
    publish(root, "d2")
    page = show(root)
    head, *_ = page.find_all("p")
    told = "d2: at D2's own settings · MNIST (60,000 to train, 10,000 to test) · 5 seeds · 2026-11-20"
    assert head.text == told
    shown = page.img
    assert shown["alt"] == 'Second "alt" <b>.'
    assert shown["src"] == f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
    [claim] = page.ul.find_all("li")
    assert claim.text.startswith(
        "✔ supported: The answer. (D2 <1-3>)measured 1.16 [1.02, 1.30] <nats>, needs more than 0"
    )
    assert page.find(["b", "deep", "nats"]) is None
    assert [one.summary.strong.text for one in page.find_all("details")] == ["d1"]
    assert "The answer." in page.details.text
    assert "#" not in page.prettify().replace("&#", "")  # no colors of its own, no links that break elsewhere


def test_a_shortened_run_says_so_and_by_how_much(root: Path) -> None:
    publish(root, "d2-short", experiments=["a", "b"], rates=[1, 3], augment=False)
    page = show(root)
    first, second, *_ = page.find_all("p")
    assert first.text.startswith("d2-short: a shortened run in place of d2 · ")
    assert second.text == (
        "Not as in the document: n_train 5,000 instead of 50,000; epochs of a 5 instead of 25; "
        "rates [1, 3] instead of [1, 2]; augment off instead of on."
    )


def test_a_published_run_with_other_settings_than_runs_yaml_says_so(root: Path) -> None:
    publish(root, "d1", seeds=3)
    assert "d1: D1's experiment · " in show(root).text
    assert "Not as in the document: seeds 3 instead of 5; a rate of our own." in show(root).text


def test_numbers_in_runs_yaml_are_what_the_command_takes_them_for(root: Path) -> None:
    (root / "notebooks" / "runs.yaml").write_text("42_width: {d1: {lr: 1e-3, device: None}, d2: {}, more: {}}\n")
    publish(root, "d1", lr=0.001, device=None)
    [run, *_] = published.load(root, "42_width")
    assert (run.settings, run.differences) == ({"lr": 0.001, "device": None}, ())


def test_claims_are_shown_as_text(root: Path) -> None:
    made = judge("grows", "It <b>grows</b>", source="D1", measured=[1.0], above=0, unit="nats")
    publish(root, "d1", claims=[made.as_json()])
    text = show(root).text
    assert "? inconclusive: It <b>grows</b> (D1)measured 1 nats, needs more than 0 · 1 seed · too few seeds" in text
    assert " · 1 seed · 2026" in text


def test_data_of_several_sizes_are_told_by_the_least_and_the_most(root: Path) -> None:
    publish(root, "d1")
    path = root / "book" / "results" / "42_width" / "d1" / "metrics.json"
    data = [{"name": "mnist", "train": train, "test": 20} for train in (300, 500, 400)]
    path.write_text(layout(json.loads(path.read_text()) | {"provenance": {"data": data}}))
    assert "MNIST (300–500 to train, 20 to test)" in show(root).text


def test_what_is_no_seed_is_not_counted_as_one(root: Path) -> None:
    options = {"source": "D1", "above": 0}
    made = [
        judge("grows", "It grows.", measured=[1.0, 1.1, 1.2], **options),
        judge("rises", "It rises.", measured=[1.0, 1.1, 1.2, 1.3], each="points", **options),
    ]
    publish(root, "d1", claims=[claim.as_json() for claim in made])
    assert " · 3 seeds · 2026" in show(root).text


@pytest.mark.parametrize(
    ("there", "first"),
    [("d1 d2 d2-short", "d2"), ("d1 d2-short", "d2-short"), ("d1 more", "d1"), ("more", "more")],
)
def test_which_run_is_shown(root: Path, there: str, first: str) -> None:
    for name in there.split():
        publish(root, name)
    assert published.choose(published.load(root, "42_width")).name == first


def test_a_notebook_without_named_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert repr(record.start("42_width", {}).source_runs()) == "No source runs are named for this notebook."


def test_what_the_lab_has_published_can_be_shown() -> None:
    named = yaml.safe_load((LAB / "notebooks" / "runs.yaml").read_text())
    for notebook in named:
        shown = published.SourceRuns.of(LAB, notebook)
        assert all(run.name in repr(shown) for run in shown.runs)
        assert sum(run.answers for run in shown.runs) == 1, f"{notebook}: one run of runs.yaml answers its question"


class Kept:
    """A published run's numbers: `kept["id"]` is what a claim measured, `kept.table(name)` a table of its metrics."""

    def __init__(self, notebook: str, run: str) -> None:
        self.all = json.loads((LAB / "book" / "results" / notebook / run / "metrics.json").read_text())

    def __getitem__(self, claim: str) -> float:
        return next(one["interval"]["mean"] for one in self.all["claims"] if one["id"] == claim)

    def table(self, name: str) -> pd.DataFrame:
        return pd.DataFrame(self.all["metrics"][name])


QUOTES: list[tuple[str, str, str, Callable[[Kept], bool]]] = [
    (
        "41_random_labels",
        "d1-subset",
        "answered 82 % of the test images right at an early stop, and 60 %",
        lambda kept: (
            list(kept.table("results").query("permuted == 0.5")[["early_stop", "test_accuracy"]].mean().round(2))
            == [0.82, 0.60]
        ),
    ),
    (
        "42_parameters_vs_generalization",
        "threshold",
        "the peak was at 1,510 parameters",
        lambda kept: kept.table("results").groupby("parameters")["test_loss"].mean().idxmax() == 1510,
    ),
    (
        "43_flatness_interpolation",
        "d1-batch",
        "the mean test loss at 4/3 was about 0.01 *higher*",
        lambda kept: round(kept["d1-beyond-loss"], 2) == -0.01,
    ),
    (
        "43_flatness_interpolation",
        "d1-batch",
        "source run was about 0.46 high",
        lambda kept: round(kept["ridge-d1-batch-size"], 2) == 0.46,
    ),
    (
        "53_similarity_sanity_check",
        "d3",
        "linear CKA finds more than four of five layers and SVCCA almost none",
        lambda kept: kept["cka-finds-nine-in-ten"] > 0.8 and kept["svcca-finds-less-than-half"] < 0.01,
    ),
    (
        "53_similarity_sanity_check",
        "d3",
        "CCA, which found 1.4 % for Kornblith et al., finds most of them there",
        lambda kept: kept.all["metrics"]["matching"]["CCA"] > 0.5,
    ),
    (
        "54_gradient_similarity",
        "d3",
        "plain CKA finds more than four in five of the corresponding layers",
        lambda kept: kept.all["metrics"]["found"]["plain CKA"] > 0.8,
    ),
    (
        "54_gradient_similarity",
        "d3",
        "finds about half as many layers with gradients as without",
        lambda kept: 0.4 < np.divide(*reversed(kept.all["metrics"]["found"].values())) < 0.6,
    ),
]


@pytest.mark.parametrize(("notebook", "run", "words", "holds"), QUOTES)
def test_what_a_page_quotes_is_what_the_published_run_gave(
    notebook: str, run: str, words: str, holds: Callable[[Kept], bool]
) -> None:
    cells = nbformat.read(LAB / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    text = " ".join(" ".join(cell.source for cell in cells if cell.cell_type == "markdown").split())
    assert words in text
    assert holds(Kept(notebook, run))


def test_every_page_that_quotes_a_published_run_is_among_them() -> None:
    quoting = set()
    for path in (LAB / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        if any(
            re.search(r"published\s+(source\s+)?run", cell.source) for cell in cells if cell.cell_type == "markdown"
        ):
            quoting.add(path.stem)
    assert quoting == {notebook for notebook, *_ in QUOTES}
