"""labs.runner: what exists, what it takes, what is fresh, and executing it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path

import nbformat
import psutil
import pytest
from filelock import FileLock
from nbclient import NotebookClient
from nbformat import NotebookNode

from labs import freshness, jupyter, runner
from labs.runner import Event, LabsError
from tests.conftest import TinyLab, make_tiny_lab, wait_until

# --- What exists -------------------------------------------------------------------------------------------------


def test_the_nearest_folder_with_runs_is_the_project(tiny_lab: TinyLab, tmp_path: Path, monkeypatch) -> None:
    deep = tiny_lab.root / "notebooks" / "deeper"
    deep.mkdir()
    assert runner.find_project(deep).root == tiny_lab.root
    monkeypatch.chdir(tiny_lab.root)
    assert runner.find_project().root == tiny_lab.root
    monkeypatch.setattr(runner, "PACKAGE", tiny_lab.root / "labutils")
    assert runner.find_project(tmp_path).root == tiny_lab.root  # else the checkout of the installed package
    monkeypatch.setattr(runner, "PACKAGE", tmp_path / "labutils")
    with pytest.raises(LabsError, match=r"no notebooks/runs\.yaml in .* or above"):
        runner.find_project(tmp_path)


def test_notebooks_are_read(tiny_lab: TinyLab) -> None:
    tiny_lab.add(
        "02_two", defaults="n: int = 3  # many\nlr = -1e-3  # rate\nsizes = [1, 2]  # of layers\nx = None  # any"
    )
    tiny_lab.add("01_one", text="# Deep or *wide*?\n\nWho fits\n`sinc` better? And why?\n\nMore.")
    about = {"document": "D1", "answers": True}
    tiny_lab.name_runs({"02_two": {"d1-big": {"about": about, "n": 10}}})
    one, two = tiny_lab.load().values()
    assert (one.name, one.title, one.question) == ("01_one", "Deep or *wide*?", "Who fits sinc better?")
    assert two.defaults == {"n": 3, "lr": -0.001, "sizes": [1, 2], "x": None}
    assert two.runs == {"d1-big": {"n": 10}}


@pytest.mark.parametrize("defaults", ["n = 2 * 3", "n = m = 1", "import os", "n = ", "%matplotlib inline"])
def test_a_parameters_cell_holds_plain_values(tiny_lab: TinyLab, defaults: str) -> None:
    tiny_lab.add("11_odd", defaults=defaults)
    with pytest.raises(LabsError, match=r"11_odd\.ipynb: the parameters cell takes only plain values"):
        tiny_lab.load()


def test_a_damaged_notebook_is_named(tiny_lab: TinyLab) -> None:
    (tiny_lab.project.notebooks / "11_odd.ipynb").write_text("{")
    with pytest.raises(LabsError, match=r"11_odd\.ipynb is not a notebook"):
        tiny_lab.load()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("11_fitt: {a: {}}", r"runs\.yaml: no notebook '11_fitt' \(did you mean 11_fit\?\); there are: 11_fit"),
        ("11_fit: {a: {m: 1}}", r"11_fit:a: no parameter 'm'.*; there are: n"),
        ("11_fit: {a: {n: 1.5}}", r"11_fit:a: n = 1.5 \(float\): expected int"),
        ("11_fit: {a: {n: 1}, a: {n: 2}}", "'a' comes twice"),
        ("11_fit: {quick: {n: 1}}", "'quick' .* cannot name a run"),
        ("11_fit: {a/b: {n: 1}}", "'a/b' .* cannot name a run"),
        ("11_fit: {x-custom-1: {n: 1}}", "cannot name a run"),
        ("11_fit: {a: 3}", "expected {run: {parameter: value}}"),
        ("11_fit: [a]", "expected {run: {parameter: value}}"),
        ("[11_fit]", "expected {notebook"),
        ("11_fit: {", "is not valid YAML"),
        ("11_fit: {a: {about: D1}}", "11_fit:a: about takes document, instead_of, differs and answers: true, got D1"),
        ("11_fit: {a: {about: {answers: 1}}}", "11_fit:a: about takes"),
        ("11_fit: {a: {about: {doc: D1}}}", "11_fit:a: about takes"),
        ("11_fit: {a: {about: {instead_of: [b]}}}", "11_fit:a stands instead_of 'b': it takes another of a"),
    ],
)
def test_mistakes_in_runs_yaml_are_named(tiny_lab: TinyLab, text: str, message: str) -> None:
    tiny_lab.add("11_fit")
    (tiny_lab.project.notebooks / "runs.yaml").write_text(text)
    with pytest.raises(LabsError, match=message):
        tiny_lab.load()


# --- Values ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-2", -2),
        ("1e-3", 1e-3),
        ("1.5E3", 1500.0),
        (".5e2", 50.0),
        ("0.1", 0.1),
        ("true", True),
        ("True", True),
        ("None", None),
        ("null", None),
        ("digits", "digits"),
        ("'3'", "3"),
        ("[1e-1, 0.2]", [0.1, 0.2]),
        ("['relu', tanh]", ["relu", "tanh"]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values_are_read_as_people_write_them(text: str, value: object) -> None:
    assert runner.parse_value(text) == value
    assert type(runner.parse_value(text)) is type(value)


def test_an_unreadable_value_is_named() -> None:
    with pytest.raises(LabsError, match=r"'\[1' is not a value"):
        runner.parse_value("[1")


@pytest.mark.parametrize(
    ("default", "good", "bad"),
    [
        ("3", [4, -1], [4.0, True, "4", None, [4]]),
        ("0.5", [0.25, 1], [True, "1", None]),
        ("True", [False], [0, "no", None]),
        ("'sgd'", ["adam"], [1, None, ["adam"]]),
        ("None", [None, 1, "x", [1]], [date(2026, 1, 2)]),
        ("[1, 2]", [[3], [4, 5, 6]], [3, ["3"], [1.5], [True], None]),
        ("[0.1]", [[1, 0.5]], [["1"], [None]]),
        ("[1, 'all']", [["all"], [2, "x"]], [[1.5]]),
        ("(1, 2)", [[3]], [3, ["x"]]),
        ("[[1, 2]]", [[[3], [4, 5]]], [[3], [["x"]]]),
        ("[]", [[], ["x", 1]], ["x", {}]),
        ("{'a': 1}", [{"a": 2}, {"b": "x"}], [{"a": "x"}, [1]]),
    ],
)
def test_a_value_must_be_of_its_defaults_type(tiny_lab: TinyLab, default: str, good: list, bad: list) -> None:
    tiny_lab.add("11_fit", defaults=f"value = {default}  # a value (may be empty)")
    notebooks = tiny_lab.load()
    for value in good:
        assert runner.select(notebooks, ["11"], overrides={"value": value})[0].parameters == {"value": value}
    for value in bad:
        with pytest.raises(LabsError, match=r"11_fit: value = .*: expected "):
            runner.select(notebooks, ["11"], overrides={"value": value})


# --- Choosing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def three(tiny_lab: TinyLab) -> TinyLab:
    tiny_lab.add("21_fit", defaults="n = 3  # many\ndevice = 'cpu'  # where")
    tiny_lab.add("22_image")
    tiny_lab.add("22_image_two")
    tiny_lab.name_runs({"21_fit": {"d1-sinc": {"n": 9}, "d1-sign": {"n": 8}}, "22_image": {"d2": {"n": 7}}})
    return tiny_lab


@pytest.mark.parametrize(
    ("names", "profile", "labels"),
    [
        ([], "quick", ["21_fit:quick", "22_image:quick", "22_image_two:quick"]),
        ([], "full", ["21_fit:d1-sinc", "21_fit:d1-sign", "22_image:d2"]),
        (["21"], "quick", ["21_fit:quick"]),
        (["21"], "full", ["21_fit:d1-sinc", "21_fit:d1-sign"]),
        (["22_image"], "quick", ["22_image:quick"]),  # the whole name, though another one begins so
        (["22_image_"], "quick", ["22_image_two:quick"]),
        (["21:d1-sinc", "21_fit:d1-sinc", "22_image:quick"], "full", ["21_fit:d1-sinc", "22_image:quick"]),
        (["21:q"], "quick", ["21_fit:quick"]),
        (["22_image_two"], "full", []),
    ],
)
def test_names_choose_runs(three: TinyLab, names: list, profile, labels: list) -> None:
    assert [run.label for run in runner.select(three.load(), names, profile=profile)] == labels


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("23", r"no notebook '23'; there are: 21_fit, 22_image, 22_image_two"),
        ("21_fits", r"no notebook '21_fits' \(did you mean 21_fit\?\)"),
        ("22", "notebook '22' may be any of 22_image, 22_image_two"),
        ("", "no notebook ''"),
        ("21:d1-sink", r"no run of 21_fit 'd1-sink' \(did you mean d1-sinc\?\); there are: quick, d1-sinc, d1-sign"),
        ("21:d1", "run of 21_fit 'd1' may be any of d1-sinc, d1-sign"),
        ("21:", "no run of 21_fit ''"),
    ],
)
def test_unknown_names_are_answered_with_what_exists(three: TinyLab, name: str, message: str) -> None:
    with pytest.raises(LabsError, match=message):
        runner.select(three.load(), [name])


def test_other_values_make_another_run(three: TinyLab) -> None:
    notebooks = three.load()
    [first] = runner.select(notebooks, ["21"], overrides={"n": 4})
    [again] = runner.select(notebooks, ["21"], overrides={"n": 4})
    [other] = runner.select(notebooks, ["21"], overrides={"n": 5})
    [named] = runner.select(notebooks, ["21:d1-sinc"], overrides={"device": "cuda"})
    assert first.name.startswith("quick-custom-")
    assert first == again
    assert len({first.name, other.name, "quick"}) == 3
    assert named.name.startswith("d1-sinc-custom-")
    assert named.parameters == {"n": 9, "device": "cuda"}
    with pytest.raises(LabsError, match=r"22_image: no parameter 'device'; there are: n"):
        runner.select(notebooks, overrides={"device": "cuda"})


def test_the_device_is_for_notebooks_that_have_one_and_keeps_the_name(three: TinyLab) -> None:
    runs = runner.select(three.load(), device="cuda")
    assert [(run.name, run.device) for run in runs] == [("quick", "cuda"), ("quick", None), ("quick", None)]
    assert runs[0].parameters == {}


# --- Executing ---------------------------------------------------------------------------------------------------

LOOK = (
    "import json, os, pathlib\n"
    "keys = ('LABUTILS_RUN', 'OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_WAIT_POLICY')\n"
    "seen = {'n': n, 'cwd': os.getcwd(), **{key: os.environ[key] for key in keys}}\n"
    "data = [{'name': 'mnist', 'fingerprint': '', 'file': str(pathlib.Path('mnist.npz').absolute())}]\n"
    "out = pathlib.Path(os.environ['LABUTILS_RUN_DIR'])\n"
    "(out / 'figures').mkdir()\n"
    "(out / 'figures' / 'a.png').write_bytes(b'png')\n"
    "(out / 'metrics.json').write_text(json.dumps({'seen': seen, 'provenance': {'data': data}}))"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyLab, list, list[Event]]:
    """A lab whose runs are over: two good ones, one that fails, one whose kernel dies."""
    lab = make_tiny_lab(tmp_path_factory.mktemp("finished") / "lab {with} braces")
    lab.add("11_good", LOOK)
    lab.add("12_bad", "x = 1", "def f():\n    return 1 / 0\n\n\ny = f()\nz = 2", "(never")
    lab.add("13_dies", "import os\nos._exit(3)")
    lab.name_runs({"11_good": {"d1-big": {"n": 10}}, "12_bad": {"d1": {"n": 4}}})
    (lab.project.notebooks / "mnist.npz").write_bytes(b"pixels")
    events: list[Event] = []

    def hear(event: Event) -> None:
        """Nobody else can connect to this process meanwhile."""
        events.append(event)
        connections = psutil.Process().net_connections("inet")
        assert [one for one in connections if one.status == psutil.CONN_LISTEN] == []

    runs = [lab.run(name) for name in ("11", "12:d1", "13", "11:d1-big")]
    with pytest.MonkeyPatch.context() as patch:
        for name in (*jupyter.THREAD_VARIABLES, "OMP_WAIT_POLICY"):
            patch.delenv(name, raising=False)
        results = runner.execute(lab.project, runs, lab.results, jobs=min(2, runner.count_cores()), on_event=hear)
    return lab, results, events


def test_one_failing_notebook_does_not_stop_the_others(finished) -> None:
    lab, results, events = finished
    assert [(result.run.label, result.state) for result in results] == [
        ("11_good:quick", "done"),
        ("12_bad:d1", "failed"),
        ("13_dies:quick", "failed"),
        ("11_good:d1-big", "done"),
    ]
    cells = [(event.kind, event.cell, event.cells) for event in events if event.run.label == "11_good:quick"]
    assert cells == [("started", 0, 2), ("cell", 1, 2), ("cell", 2, 2), ("done", 0, 0)]
    assert [event.kind for event in events if event.run.label == "12_bad:d1"][-1] == "failed"
    assert [lab.state(result.run.label).state for result in results] == ["done", "failed", "failed", "done"]


def test_a_result_is_complete_and_nothing_else_is_left(finished) -> None:
    lab, _, _ = finished
    folder = lab.results / "11_good" / "quick"
    names = ["figures", "figures/a.png", "metrics.json", "notebook.ipynb", "run.json"]
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == names
    executed = nbformat.read(folder / "notebook.ipynb", as_version=4)
    assert [cell.execution_count for cell in executed.cells if cell.cell_type == "code"] == [1, 2]
    record = json.loads((folder / "run.json").read_text())
    assert (record["notebook"], record["run"], record["status"]) == ("11_good", "quick", "done")
    assert record["error"] is None
    kept = {path.name for path in lab.results.glob("*/*") if not path.name.endswith(".lock")}
    assert kept == {"quick", "d1", "d1-big"}


def test_a_run_has_its_parameters_environment_and_folder(finished) -> None:
    lab, _, _ = finished
    cores = runner.count_cores()
    threads = str(max(1, cores // min(2, cores)))
    for name, n in (("quick", 3), ("d1-big", 10)):
        seen = json.loads((lab.results / "11_good" / name / "metrics.json").read_text())["seen"]
        assert seen == {
            "n": n,
            "cwd": str(lab.project.notebooks),
            "LABUTILS_RUN": name,
            "OMP_WAIT_POLICY": "PASSIVE",
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
        }


def test_a_failure_tells_cell_source_and_error_and_keeps_the_notebook(finished) -> None:
    lab, results, _ = finished
    failure = results[1].failure
    assert (failure.error, failure.cell, failure.cells) == ("ZeroDivisionError: division by zero", 4, 5)
    assert failure.source == "def f():\n    return 1 / 0\n\n"  # the first lines
    assert "----> 2     return 1 / 0" in failure.traceback
    assert "\x1b" not in failure.traceback
    assert lab.state("12:d1").failure == failure
    kept = nbformat.read(results[1].folder / "notebook.ipynb", as_version=4)
    assert any(out.output_type == "error" for cell in kept.cells for out in cell.get("outputs", []))
    dead = results[2].failure
    assert (dead.cell, dead.source) == (3, "import os\nos._exit(3)")
    assert "Kernel died" in dead.error
    assert (results[2].folder / "notebook.ipynb").is_file()


def test_what_is_fresh_is_not_run_again(finished, monkeypatch) -> None:
    lab, _, _ = finished
    monkeypatch.setattr(jupyter, "carry_out", lambda *args, **options: pytest.fail("executed again"))
    events: list[Event] = []
    runs = [lab.run("11"), lab.run("11:d1-big")]
    results = runner.execute(lab.project, runs, lab.results, on_event=events.append)
    assert [result.state for result in results] == [event.kind for event in events] == ["fresh", "fresh"]
    assert runner.execute(lab.project, [], lab.results) == []


def test_known_runs_are_quick_named_and_custom(finished) -> None:
    lab, _, _ = finished
    notebook = lab.load()["11_good"]
    custom = lab.results / "11_good" / "quick-custom-12345678"
    shutil.copytree(lab.results / "11_good" / "quick", custom)
    try:
        runs = runner.known_runs(notebook, lab.results)
        assert [run.name for run in runs] == ["quick", "d1-big", custom.name]
    finally:
        shutil.rmtree(custom)


# --- Side by side ------------------------------------------------------------------------------------------------


def test_two_processes_that_want_the_same_run_execute_it_once(tiny_lab: TinyLab) -> None:
    tiny_lab.add("11_slow", "import time\ntime.sleep(1)", defaults="device = 'cuda'  # where")
    run = runner.select(tiny_lab.load(), device="cpu")[0]
    events: list[list[Event]] = [[], []]
    started = threading.Event()

    def first(event: Event) -> None:
        events[0].append(event)
        started.set()

    thread = threading.Thread(
        target=runner.execute, args=(tiny_lab.project, [run], tiny_lab.results), kwargs={"on_event": first}
    )
    thread.start()
    assert started.wait(60)
    [result] = runner.execute(tiny_lab.project, [run], tiny_lab.results, on_event=events[1].append)
    thread.join()
    assert result.state == "fresh"
    assert [event.kind for event in events[1]] == ["waiting", "fresh"]
    assert [event.kind for event in events[0]].count("started") == 1
    executed = nbformat.read(result.folder / "notebook.ipynb", as_version=4)
    assert executed.cells[2].source.splitlines()[-1] == 'device = "cpu"'


def test_one_who_waits_and_is_interrupted_leaves_the_other_alone(tiny_lab: TinyLab) -> None:
    tiny_lab.add("11_fit")
    partial = tiny_lab.results / "11_fit" / f".quick{runner.PARTIAL}"
    partial.mkdir(parents=True)

    def interrupt(event: Event) -> None:
        assert event.kind == "waiting"
        os.kill(os.getpid(), signal.SIGINT)

    with FileLock(partial.with_name(".quick.lock")), pytest.raises(KeyboardInterrupt):
        runner.execute(tiny_lab.project, [tiny_lab.run("11")], tiny_lab.results, on_event=interrupt)
    assert partial.is_dir()


def test_an_interruption_counts_that_a_library_swallows(tiny_lab: TinyLab, monkeypatch) -> None:
    tiny_lab.add("11_quick", "1", "2", "3")
    begun = []

    async def execute(_client: NotebookClient, cell: NotebookNode, at: int, **_options: object) -> NotebookNode:
        begun.append(at)
        if at == 2:
            os.kill(os.getpid(), signal.SIGINT)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
        return cell

    monkeypatch.setattr(NotebookClient, "async_execute_cell", execute)
    with pytest.raises(KeyboardInterrupt):
        runner.execute(tiny_lab.project, runner.select(tiny_lab.load()), tiny_lab.results, jobs=1)
    assert begun == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_interrupting_leaves_no_half_result_and_no_process(tiny_lab: TinyLab, tmp_path: Path, number) -> None:
    tiny_lab.add("11_slow", f"open({str(tmp_path / 'working')!r}, 'w').close()", "import time\ntime.sleep(600)")
    earlier = tiny_lab.results / "11_slow" / "quick"
    earlier.mkdir(parents=True)
    (earlier / "notebook.ipynb").write_text("the earlier result")
    command = [sys.executable, "-m", "labs.cli", "run", "11"]
    process = subprocess.Popen(command, cwd=tiny_lab.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: (tmp_path / "working").exists() or process.poll() is not None)
        family = psutil.Process(process.pid).children(recursive=True)
        assert any("labs.jupyter" in one.cmdline() for one in family)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    wait_until(lambda: not any(map(jupyter.is_alive, family)))
    assert (earlier / "notebook.ipynb").read_text() == "the earlier result"
    assert not (earlier / "run.json").exists()
    if number != signal.SIGKILL:  # which leaves no time to tidy up; the next run does
        assert process.returncode == 130
        assert errors.strip().splitlines() == ["labs: interrupted; what was finished stays, nothing half-written does"]
        assert {path.name for path in earlier.parent.iterdir()} == {"quick", ".quick.lock"}


# --- Interrupted runs go on --------------------------------------------------------------------------------------

FIT = (
    "import os, pathlib, torch\n"
    "from labutils import models, record, training\n"
    "run = record.start('11_fit', {'n': n})\n"
    "x = torch.linspace(0, 1, 64)[:, None]\n"
    "networks = [models.mlp([1, 8, 1], 'tanh') for _ in range(3)]\n"
    "for seed, network in enumerate(networks):\n"
    "    generator = torch.Generator().manual_seed(seed)\n"
    "    for weights in network.parameters():\n"
    "        torch.nn.init.normal_(weights, generator=generator)\n"
    "history = training.fit(networks, (x, (6 * x).sin()), epochs=n, lr=0.05, momentum=0.9, batch_size=16, loss='mse')",
    "run.metrics(loss=history.train_loss, threads=torch.get_num_threads())",
)
BEGIN = (
    "import sys; from pathlib import Path; from labs import runner\n"
    "root = Path(sys.argv[1]); project = runner.Project(root, package=root / 'package' / 'labutils')\n"
    "runs = runner.select(runner.load_notebooks(project), sys.argv[2:])\n"
    "runner.execute(project, runs, project.results, jobs=1)"
)


@pytest.mark.timeout(600)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tiny_lab: TinyLab, monkeypatch) -> None:
    """Only the command is killed: its kernel ends by itself. It goes on with as many threads as it began with."""
    monkeypatch.setenv("LABUTILS_CHECKPOINT_SECONDS", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    tiny_lab.add("11_fit", *FIT)
    tiny_lab.name_runs({"11_fit": {"killed": {"n": 100}, "whole": {"n": 100}}})
    folder = tiny_lab.results / "11_fit"
    kept = folder / f".killed{freshness.CHECKPOINTS}"

    def saved() -> bool:
        return any(path.name != freshness.MADE_BY for path in kept.glob("*"))

    process = subprocess.Popen([sys.executable, "-c", BEGIN, str(tiny_lab.root), "11:killed"])
    wait_until(lambda: saved() or process.poll() is not None)
    time.sleep(0.1)
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not any(map(jupyter.is_alive, family)))
    assert not (folder / "killed").exists()
    assert (folder / f".killed{runner.PARTIAL}").is_dir()
    [result] = runner.execute(tiny_lab.project, [tiny_lab.run("11:whole")], tiny_lab.results)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    results = [result, *runner.execute(tiny_lab.project, [tiny_lab.run("11:killed")], tiny_lab.results)]
    assert [result.state for result in results] == ["done"] * 2
    documents = [json.loads((folder / name / "metrics.json").read_text()) for name in ("killed", "whole")]
    assert documents[0]["metrics"] == documents[1]["metrics"]
    assert documents[0]["metrics"]["threads"] == 2
    assert len(documents[0]["metrics"]["loss"][0]) >= 100
    names = {name for run in ("killed", "whole") for name in (run, f".{run}.lock", f".{run}{freshness.CHECKPOINTS}")}
    assert {path.name for path in folder.iterdir()} == names
