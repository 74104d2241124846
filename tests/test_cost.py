"""labs.cost: what runs take, how many at once, and what is left."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labs import cost, jupyter, runner
from labs.cost import Costs, Entry, Estimate, Forecast
from labs.runner import Event, LabsError, Project
from tests.conftest import ROOT, TinyLab

PROBES = {"stacked": 0.4, "dense": 0.5, "convolution": 0.2, "float64": 0.1}
ENTRY = {"seconds": 100, "memory": 600, "kind": "dense", "basis": "measured"}
GOOD = {
    "reference": {"machine": "a machine", "probes": PROBES},
    "quick": {"seconds": 15, "memory": 700, "kind": "stacked", "basis": "estimated"},
    "runs": {"21_fit": {"d1": ENTRY, "d2": ENTRY | {"kind": "convolution", "basis": "estimated", "how": "guess"}}},
}
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


def test_every_named_run_has_an_entry_and_none_is_left_over() -> None:
    notebooks = runner.load_notebooks(Project(ROOT))
    named = {(notebook.name, run) for notebook in notebooks.values() for run in notebook.runs}
    costs = cost.read_costs(Project(ROOT))
    assert named - set(costs.runs) == set(), "add them to notebooks/costs.yaml (tools/measure_costs.py measures)"
    assert set(costs.runs) - named == set(), "these runs are gone: take them out of notebooks/costs.yaml"
    assert all(entry.how for entry in costs.runs.values() if entry.basis == "estimated")
    assert set(costs.probes) == set(cost.KINDS)
    assert all(seconds > 0 for seconds in costs.probes.values())


def test_costs_are_read(lab: TinyLab) -> None:
    costs = cost.read_costs(lab.project)
    assert (costs.machine, costs.probes, costs.quick.seconds) == ("a machine", PROBES, 15)
    assert costs.runs["21_fit", "d1"] == Entry(100, 600, "dense", "measured")
    assert costs.runs["21_fit", "d2"].how == "guess"
    (lab.project.notebooks / "costs.yaml").unlink()
    assert cost.read_costs(lab.project) == Costs()


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({**GOOD, "runs": {"21_fit": {"d1": ENTRY | {"kind": "deep"}}}}, "21_fit:d1: kind 'deep' is none of stacked, "),
        ({**GOOD, "runs": {"21_fit": {"d1": ENTRY | {"basis": "guessed"}}}}, "'guessed' is neither measured nor"),
        ({**GOOD, "runs": {"21_fit": {"d1": ENTRY | {"seconds": 0}}}}, "seconds 0 and memory 600 must be positive"),
        ({**GOOD, "runs": {"21_fit": {"d1": ENTRY | {"hours": 1}}}}, "hours"),
        ({**GOOD, "runs": {"21_fit": ["d1"]}}, "AttributeError"),
        ({**GOOD, "reference": {"machine": "", "probes": {"dense": 1}}}, "KeyError: 'stacked'"),
        ([], "TypeError"),
        (None, "TypeError"),
    ],
)
def test_mistakes_in_costs_yaml_are_named(lab: TinyLab, costs: object, message: str) -> None:
    write(lab, costs)
    with pytest.raises(LabsError, match=rf"costs\.yaml: .*{message}"):
        cost.read_costs(lab.project)


def test_a_file_that_is_not_yaml_is_named(lab: TinyLab) -> None:
    (lab.project.notebooks / "costs.yaml").write_text("runs: {")
    with pytest.raises(LabsError, match=r"costs\.yaml: ParserError"):
        cost.read_costs(lab.project)


# --- What a run takes here ---------------------------------------------------------------------------------------


def test_time_is_that_of_the_reference_machine_times_what_probes_say(lab: TinyLab) -> None:
    costs = cost.read_costs(lab.project)
    slowness = {"dense": 2.0, "stacked": 3.0}
    notebooks = lab.load()

    def estimate(name: str, before: float | None = None, **values: object) -> Estimate:
        return cost.estimate(costs, runner.select(notebooks, [name], overrides=values)[0], slowness, before)

    assert estimate("21:d1") == Estimate(200, 600, "measured")
    assert estimate("21:d2") == Estimate(100, 600, "estimated")  # no probe of its kind
    assert estimate("21:d3") == Estimate(None, cost.MEMORY_OF_UNKNOWN, "unknown")
    assert estimate("21:quick") == Estimate(45, 700, "typical")
    assert estimate("21:quick", before=12) == Estimate(12, 700, "run before")
    assert estimate("21:d1", n=7) == Estimate(200, 600, "as d1")
    assert estimate("21:quick", before=12, n=7) == Estimate(45, 700, "as quick")
    spreads = [estimate(name).spread for name in ("21:d1", "21:d2", "21:d3")]
    assert spreads == [1.5, 2.0, 1.0]
    assert estimate("21:d1", n=7).spread == 4.0


def test_only_named_runs_need_a_calibration(lab: TinyLab, monkeypatch) -> None:
    monkeypatch.setattr(cost, "calibrate", lambda: {kind: 2 * seconds for kind, seconds in PROBES.items()})
    found, slowness = cost.estimates(lab.project, [lab.run("21:d1"), lab.run("21")], lab.results)
    assert slowness == dict.fromkeys(PROBES, 2.0)
    assert [one.seconds for one in found.values()] == [200, 30]
    monkeypatch.setattr(cost, "calibrate", lambda: pytest.fail("calibrated"))
    found, slowness = cost.estimates(lab.project, [lab.run("21"), lab.run("21:d3")], lab.results)
    assert ([one.seconds for one in found.values()], slowness) == ([15, None], {})
    found, _ = cost.estimates(lab.project, [lab.run("21:d1")], lab.results, calibrated=False)
    assert found["21_fit:d1"].seconds == 100


def test_the_time_of_a_quick_run_before_counts(lab: TinyLab) -> None:
    folder = lab.results / "21_fit" / "quick"
    folder.mkdir(parents=True)
    record = {"status": "done", "stamp": {}, "data": [], "files": [], "parameters": {}, "seconds": 7.5, "error": None}
    (folder / "run.json").write_text(json.dumps(record))
    found, _ = cost.estimates(lab.project, [lab.run("21")], lab.results)
    assert found["21_fit:quick"] == Estimate(7.5, 700, "run before")


def test_probes_are_timed_with_one_thread() -> None:
    found = cost.measure_probes(repeats=1)
    assert tuple(found) == cost.KINDS
    assert all(seconds > 0 for seconds in found.values())


def test_the_calibration_runs_in_a_process_of_its_own(monkeypatch) -> None:
    def run(command, env, **options):
        assert command[-2:] == ["-m", "labs.cost"]
        assert {env[name] for name in jupyter.THREAD_VARIABLES} == {"1"}
        return subprocess.CompletedProcess(command, code, json.dumps(PROBES), "Traceback\nImportError: no torch\n")

    monkeypatch.setattr(subprocess, "run", run)
    code = 0
    assert cost.calibrate() == PROBES
    code = 1
    with pytest.raises(LabsError, match="calibration failed: ImportError: no torch"):
        cost.calibrate()


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


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_forecast_follows_what_is_observed(lab: TinyLab) -> None:
    notebooks = lab.load()
    first, second, third = (runner.select(notebooks, [f"21:d{i}"])[0] for i in (1, 2, 3))
    clock = Clock()
    forecast = Forecast({first.label: 100.0, second.label: 50.0, third.label: 40.0}, slots=2, clock=clock)
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


def test_a_forecast_says_nothing_where_nothing_is_known(lab: TinyLab) -> None:
    first, third = lab.run("21:d1"), lab.run("21:d3")
    forecast = Forecast({first.label: 10.0, third.label: None})
    assert (forecast.left(third.label), forecast.total_left()) == (None, None)
    assert forecast.left("no such run") is None
    forecast.hear(Event(third, "done", seconds=5))
    assert forecast.total_left() == 10
    assert forecast.correction == 1


def test_what_goes_on_from_a_checkpoint_says_nothing_of_the_others(lab: TinyLab) -> None:
    run = lab.run("21:d1")
    forecast = Forecast({run.label: 100.0}, resumed=[run.label])
    forecast.hear(Event(run, "started"))
    forecast.hear(Event(run, "done", seconds=1))
    assert forecast.correction == 1


def test_as_many_slots_as_are_seen_at_work(lab: TinyLab) -> None:
    runs = [lab.run(f"21:d{i}") for i in (1, 2, 3)]
    clock = Clock()
    forecast = Forecast(dict.fromkeys((run.label for run in runs), 10.0), clock=clock)
    assert forecast.total_left() == 30
    forecast.hear(Event(runs[0], "started"))
    forecast.hear(Event(runs[1], "started"))
    assert forecast.total_left() == 20


def test_the_measuring_tool_shows_its_help(tmp_path: Path) -> None:

    tool = ROOT / "tools" / "measure_costs.py"
    done = subprocess.run([sys.executable, tool, "--help"], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "costs.yaml" in done.stdout
