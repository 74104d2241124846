"""labs.cost: what runs take, how many at once, and what is left."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labs import cost, runner
from labs.cost import Estimate, Forecast
from labs.runner import Event, LabsError, Project
from tests.conftest import ROOT, TinyLab

GOOD = {"any": {"quick": [15, 700]}, "21_fit": {"d1": [100, 600], "d2": [50, 600]}}
DURATIONS = st.lists(st.floats(0, 1e5), max_size=8)


@pytest.fixture
def lab(tiny_lab: TinyLab) -> TinyLab:
    tiny_lab.add("21_fit")
    tiny_lab.name_runs({"21_fit": {"d1": {"n": 1}, "d2": {"n": 2}, "d3": {"n": 3}}})
    write(tiny_lab, GOOD)
    return tiny_lab


def write(lab: TinyLab, costs: object) -> None:
    (lab.project.notebooks / "costs.yaml").write_text(yaml.safe_dump(costs))


# --- What costs.yaml says ----------------------------------------------------------------------------------------


def test_every_named_run_is_published_or_has_an_entry_and_none_is_left_over() -> None:
    notebooks = runner.load_notebooks(Project(ROOT))
    named = {f"{notebook.name}:{run}" for notebook in notebooks.values() for run in notebook.runs}
    published = {
        f"{path.parts[-3]}:{path.parts[-2]}"
        for path in (ROOT / "book" / "results").glob("*/*/metrics.json")
        if not json.loads(path.read_text(encoding="utf-8"))["provenance"]["accelerator"]
    }
    entries = set(cost.read_costs(Project(ROOT)))
    assert named - entries - published == set(), "add them to notebooks/costs.yaml"
    assert entries - {"any:quick"} - (named - published) == set(), "take these out of notebooks/costs.yaml"


@pytest.mark.parametrize("costs", [{"21_fit": {"d1": 3}}, {"21_fit": {"d1": ["long", 1]}}, {"21_fit": ["d1"]}, ["d1"]])
def test_mistakes_in_costs_yaml_are_named(lab: TinyLab, costs: object) -> None:
    write(lab, costs)
    with pytest.raises(LabsError, match=r"costs\.yaml: expected {notebook: {run: \[seconds, MiB\]}}: \S"):
        cost.read_costs(lab.project)
    (lab.project.notebooks / "costs.yaml").write_text("runs: {")
    with pytest.raises(LabsError, match=r"costs\.yaml: expected"):
        cost.read_costs(lab.project)


# --- What a run takes --------------------------------------------------------------------------------------------


def test_a_time_is_of_this_machine_else_published_else_estimated(lab: TinyLab) -> None:
    def estimate(name: str, **values: object) -> Estimate:
        run = runner.select(lab.load(), [name], overrides=values)[0]
        return cost.estimates(lab.project, [run], lab.results)[run.label]

    assert estimate("21:quick") == Estimate(15, 700, "estimated")
    assert estimate("21:d1") == Estimate(100, 600, "estimated")
    assert estimate("21:d3") == Estimate(None, cost.MEMORY_OF_UNKNOWN, "unknown")
    assert estimate("21:d1", n=7) == Estimate(100, 600, "as d1")
    for name, took in (("d1", {"wall_seconds": 40}), ("d3", {"wall_seconds": 40, "peak_memory_mib": 300})):
        folder = lab.root / "book" / "results" / "21_fit" / name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"time": took, "provenance": {"threads": 2}}))
    assert estimate("21:d1") == Estimate(80, 600, "published")
    assert estimate("21:d3") == Estimate(80, 300, "published")
    folder = lab.results / "21_fit" / "d1"
    folder.mkdir(parents=True)
    record = {"status": "done", "stamp": {}, "data": [], "files": [], "parameters": {}, "seconds": 7.5, "error": None}
    (folder / "run.json").write_text(json.dumps(record))
    assert estimate("21:d1") == Estimate(7.5, 600, "run before")


def test_a_gpu_and_a_processor_tell_nothing_of_each_others_time(lab: TinyLab) -> None:
    def estimate(device: str | None) -> Estimate:
        run = replace(runner.select(lab.load(), ["21:d1"])[0], device=device)
        return cost.estimates(lab.project, [run], lab.results)[run.label]

    def publish(accelerator: str | None) -> None:
        provenance = {"threads": 1, "accelerator": accelerator}
        content = json.dumps({"time": {"wall_seconds": 40}, "provenance": provenance})
        (folder / "metrics.json").write_text(content)

    estimated, published = Estimate(100, 600, "estimated"), Estimate(40, 600, "published")
    folder = lab.root / "book" / "results" / "21_fit" / "d1"
    folder.mkdir(parents=True)
    publish("Made-up 9000")
    assert (estimate(None), estimate("cpu"), estimate("cuda")) == (estimated, estimated, published)
    publish(None)
    assert (estimate(None), estimate("cpu"), estimate("cuda")) == (published, published, estimated)
    here = lab.results / "21_fit" / "d1"
    here.mkdir(parents=True)
    record = {"status": "done", "stamp": {}, "data": [], "files": [], "parameters": {}, "seconds": 7.5, "error": None}
    (here / "run.json").write_text(json.dumps(record | {"device": "cuda"}))
    assert (estimate(None), estimate("cuda")) == (published, Estimate(7.5, 600, "run before"))


# --- How many at once, and when all are done ---------------------------------------------------------------------


def test_there_is_room_for_what_memory_cores_and_the_user_allow(monkeypatch) -> None:
    monkeypatch.setattr(runner, "count_cores", lambda: 4)
    needs = [1000, 500, 500, 500, 500]
    assert cost.room(needs, memory=1e6) == 4
    assert cost.room(needs, jobs=3, memory=1e6) == 3
    assert cost.room(needs, memory=2500) == 3  # the largest together
    assert cost.room(needs, memory=1) == 1
    assert cost.room(needs[:2], memory=1e6) == 2
    assert cost.room([], jobs=3) == 1
    assert cost.room(needs, jobs=1) == 1


@given(queue=DURATIONS, busy=DURATIONS, slots=st.integers(1, 4))
def test_wall_time_lies_between_what_no_schedule_beats_and_one_after_the_other(queue, busy, slots) -> None:
    found = cost.wall_seconds(queue, slots, busy)
    everything = [*queue, *busy]
    assert found <= sum(everything) * (1 + 1e-9)
    assert found >= max(everything, default=0)
    assert found * max(slots, len(busy)) >= sum(everything) * (1 - 1e-9)
    assert cost.wall_seconds(queue, 1) == pytest.approx(sum(queue))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that stands still unless `now` is changed."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(cost, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_a_forecast_follows_what_is_observed(lab: TinyLab, clock: SimpleNamespace) -> None:
    notebooks = lab.load()
    first, second, third = (runner.select(notebooks, [f"21:d{i}"])[0] for i in (1, 2, 3))
    forecast = Forecast({first.label: 100.0, second.label: 50.0, third.label: 40.0}, slots=2)
    assert len(forecast) == 3
    assert forecast.total_left() == 100.0
    forecast.hear(Event(first, "started"))
    forecast.hear(Event(second, "started"))
    clock.now += 30
    assert forecast.left(first.label) == 70
    assert forecast.left(third.label) == 40
    assert forecast.total_left() == 70
    clock.now += 70
    assert forecast.left(second.label) == 10  # a tenth of the 100 s that it has taken instead of 50 s
    forecast.hear(Event(second, "done", seconds=100))
    assert forecast.correction == pytest.approx(math.sqrt(2))  # of 2 as observed and 1 for caution
    assert forecast.left(second.label) is None
    assert forecast.left(third.label) == pytest.approx(40 * math.sqrt(2))
    forecast.hear(Event(first, "failed", seconds=100))
    assert forecast.correction == pytest.approx(math.sqrt(2))
    forecast.hear(Event(third, "fresh"))
    assert forecast.total_left() == 0


def test_a_forecast_says_nothing_where_nothing_is_known(lab: TinyLab, clock: SimpleNamespace) -> None:
    first, second, third = (lab.run(f"21:d{i}") for i in (1, 2, 3))
    forecast = Forecast({first.label: 10.0, second.label: 10.0, third.label: None}, resumed=[first.label])
    assert (forecast.left(third.label), forecast.total_left()) == (None, None)
    assert forecast.left("no such run") is None
    forecast.hear(Event(third, "done", seconds=5))
    assert forecast.total_left() == 20
    forecast.hear(Event(first, "started"))
    forecast.hear(Event(second, "started"))
    assert forecast.total_left() == 10, "as many slots as are seen at work"
    forecast.hear(Event(first, "done", seconds=1))
    assert forecast.correction == 1, "what goes on from a checkpoint says nothing of the others"
