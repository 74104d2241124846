"""The `labs` command: what it prints, its exit codes, its messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from labutils import cli, data, runner, site
from labutils.runner import Event, Failure, Result
from tests.conftest import TinyLab

Labs = Callable[..., SimpleNamespace]


@pytest.fixture
def labs(tiny_lab: TinyLab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Labs:
    """Call the command in the tiny lab; nothing is executed: runs end as `ends` says."""
    tiny_lab.add("21_fit", defaults="n = 3  # how many\ndevice = 'cpu'  # where")
    tiny_lab.add("22_image", text="# Images\n\nDoes depth pay?")
    tiny_lab.name_runs({"21_fit": {"d1-sinc": {"n": 9}}})
    monkeypatch.setattr(runner, "PACKAGE", tiny_lab.project.package)
    monkeypatch.chdir(tiny_lab.root)
    calls: list[SimpleNamespace] = []
    ends: dict[str, Failure] = {}

    def execute(project, runs, out, *, jobs, force, on_event) -> list[Result]:
        calls.append(SimpleNamespace(runs=runs, out=out, jobs=jobs, force=force))
        results = []
        for run in runs:
            failure = ends.get(run.label)
            state = "failed" if failure else "done"
            for kind in ("waiting", "started", "cell", state):
                on_event(Event(run, kind, cell=int(kind == "cell"), cells=2, seconds=61.4))
            results.append(Result(run, state, run.folder(out), 61.4, failure))
        return results

    monkeypatch.setattr(runner, "execute", execute)

    def call(*words: str) -> SimpleNamespace:
        code = cli.main(list(words))
        written = capsys.readouterr()
        return SimpleNamespace(code=code, out=written.out, err=written.err, calls=calls)

    call.ends, call.lab = ends, tiny_lab
    return call


def test_help_names_every_command_and_option(labs: Labs) -> None:
    told = labs("--help")
    assert told.code == 0
    assert all(f"  {name} " in told.out for name in ("list", "run", "book", "data"))
    for name, words in {
        "run": ["NOTEBOOK", "-p", "--profile", "--jobs", "--device", "--out", "--force", "labs run 21"],
        "list": ["--out", "stale"],
        "book": ["--out", "--results", "--jobs", "removed"],
        "data": ["NAME"],
    }.items():
        text = labs(name, "--help").out
        assert all(word in text for word in words)
    assert labs().code == 2
    assert labs("--version").out.startswith("labs ")


def test_list_shows_notebooks_runs_and_their_state(labs: Labs) -> None:
    text = labs("list").out
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["21_fit", "Does", "21_fit", "work?", "quick", "not", "run"],
        ["d1-sinc", "not", "run"],
        ["22_image", "Does", "depth", "pay?", "quick", "not", "run"],
    ]
    folder = labs.lab.results / "21_fit" / "quick"
    folder.mkdir(parents=True)
    record = {"status": "failed", "stamp": {}, "data": [], "files": [], "parameters": {}, "seconds": 75.0}
    (folder / "run.json").write_text(json.dumps(record | {"error": {"error": "ValueError: no"}}))
    (labs.lab.results / "22_image").mkdir()
    folder.with_name("quick").rename(labs.lab.results / "22_image" / "quick")
    assert "failed" in labs("list").out
    assert "1 min 15 s" in labs("list").out
    stale = json.dumps(record | {"status": "done", "error": None})
    (labs.lab.results / "22_image" / "quick" / "run.json").write_text(stale)
    assert "stale (code, notebook, parameters, versions)" in labs("list").out
    assert "stale" not in labs("list", "--out", "elsewhere").out


@pytest.mark.parametrize(
    ("words", "labels"),
    [
        ([], ["21_fit:quick", "22_image:quick"]),
        (["21"], ["21_fit:quick"]),
        (["--profile", "full"], ["21_fit:d1-sinc"]),
        (["22", "21:d1-sinc"], ["22_image:quick", "21_fit:d1-sinc"]),
    ],
)
def test_run_chooses_runs(labs: Labs, words: list[str], labels: list[str]) -> None:
    told = labs("run", *words)
    assert told.code == 0
    assert told.err == ""
    [call] = told.calls
    assert [run.label for run in call.runs] == labels
    assert (call.out, call.jobs, call.force) == (labs.lab.results, None, False)


def test_run_passes_its_options_on(labs: Labs, tmp_path: Path) -> None:
    words = ["-p", "n", "5", "21", "--jobs", "3", "--force", "--device", "cpu", "--out"]
    [call] = labs("run", *words, str(tmp_path)).calls
    [run] = call.runs
    assert run.name.startswith("quick-custom-")
    assert (run.parameters, run.device) == ({"n": 5}, "cpu")
    assert (call.out, call.jobs, call.force) == (tmp_path, 3, True)
    assert "without a parameter `device`, run as always: 22_image" in labs("run", "--device", "cpu").out


def test_without_a_terminal_each_event_is_a_line(labs: Labs) -> None:
    labs.ends["22_image:quick"] = Failure("ValueError: no")
    assert labs("run").out.splitlines() == [
        "21_fit:quick: waits: another process is running it",
        "21_fit:quick: started, 2 cells",
        "21_fit:quick: cell 1/2 (1 min 1 s)",
        "21_fit:quick: done in 1 min 1 s",
        "22_image:quick: waits: another process is running it",
        "22_image:quick: started, 2 cells",
        "22_image:quick: cell 1/2 (1 min 1 s)",
        "22_image:quick: FAILED after 1 min 1 s",
    ]


def test_in_a_terminal_each_run_is_a_line(labs: Labs, monkeypatch: pytest.MonkeyPatch) -> None:
    consoles = []

    def console(**options: object) -> Console:
        consoles.append(Console(force_terminal=True, width=100, color_system=None, record=True))
        return consoles[-1]

    monkeypatch.setattr(cli, "_console", console)
    labs.ends["22_image:quick"] = Failure("ValueError: no")
    assert labs("run").code == 1
    lines = consoles[0].export_text().splitlines()
    assert any("21_fit:quick" in line and "done" in line for line in lines)
    assert any("22_image:quick" in line and "failed" in line for line in lines)


def test_failed_runs_are_reported_with_cell_and_error(labs: Labs) -> None:
    labs.ends["21_fit:quick"] = Failure("ValueError: no", 4, 17, "y = f(x)", "----> 1 y = f(x)")
    told = labs("run")
    assert told.code == 1
    lines = told.err.splitlines()
    assert lines[0] == "labs: 1 of 2 runs failed: 21_fit:quick"
    assert "21_fit:quick, cell 4 of 17: ValueError: no" in lines
    assert "    y = f(x)" in lines
    assert "    ----> 1 y = f(x)" in lines
    assert f"    kept: {labs.lab.results / '21_fit' / 'quick' / 'notebook.ipynb'}" in lines


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "23"], "no notebook '23'; there are: 21_fit, 22_image"),
        (["run", "21:d1-sink"], "no run of 21_fit 'd1-sink' (did you mean d1-sinc?); there are: quick, d1-sinc"),
        (["run", "21", "-p", "m", "3"], "21_fit: no parameter 'm'; there are: n, device"),
        (["run", "21", "-p", "n", "x"], "21_fit: n = 'x' (str): expected int, as 3"),
        (["run", "21", "-p", "n", "[1"], "'[1' is not a value: while parsing"),
        (["run", "22", "--profile", "full"], "nothing to run: notebooks/runs.yaml names no run of 22"),
        (["run", "--jobs", "0"], "Invalid value for '--jobs': 0 is not in the range x>=1. See labs run --help"),
        (["run", "--profile", "huge"], "Invalid value for '--profile': 'huge' is not one of 'quick', 'full'."),
        (["run", "--device", "tpu"], "Invalid value for '--device'"),
        (["run", "--fast"], "No such option"),
        (["rum"], "No such command 'rum'."),
        (["data"], "Missing argument 'NAME'."),
        (["data", "mnits"], "no data set 'mnits' (did you mean mnist?); there are: "),
        (["run", "--device", "cuda"], "--device cuda: this installation of torch sees no CUDA device"),
    ],
)
def test_mistakes_are_answered_in_one_line(labs: Labs, monkeypatch, words: list[str], message: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    told = labs(*words)
    assert told.code == 2
    assert told.err.startswith(f"labs: {message}")
    assert len(told.err.splitlines()) == 1
    assert told.calls == []


def test_a_folder_without_a_lab_is_a_mistake(labs: Labs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "PACKAGE", tmp_path / "labutils")
    told = labs("list")
    assert told.code == 2
    assert told.err.startswith("labs: no notebooks/runs.yaml in ")


def test_a_full_disk_is_one_line(labs: Labs, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device", "results")

    monkeypatch.setattr(runner, "execute", execute)
    told = labs("run")
    assert told.code == 1
    assert told.err == "labs: [Errno 28] No space left on device: 'results'\n"


def test_an_interruption_has_its_exit_code_and_signals_are_as_before(labs: Labs, monkeypatch) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def execute(*arguments: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(runner, "execute", execute)
    told = labs("run")
    assert told.code == 130
    assert told.err.strip().startswith("labs: interrupted")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_book_runs_everything_and_prints_where_the_site_is(labs: Labs, monkeypatch, tmp_path: Path) -> None:
    built = []
    monkeypatch.setattr(site, "build", lambda *arguments: built.append(arguments) or Path("here/index.html"))
    told = labs("book")
    assert told.code == 0
    assert told.out.splitlines()[-1] == "here/index.html"
    [call] = told.calls
    assert [run.label for run in call.runs] == ["21_fit:quick", "22_image:quick"]
    root = labs.lab.root
    [(project, results, out)] = built
    assert (project.root, results, out) == (root, root / "results", root / "_build" / "book")
    labs("book", "--out", str(tmp_path / "o"), "--results", str(tmp_path / "r"))
    assert built[-1][1:] == (tmp_path / "r", tmp_path / "o")


def test_a_failing_notebook_leaves_no_book(labs: Labs, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(site, "build", lambda *arguments: pytest.fail("built"))
    labs.ends["22_image:quick"] = Failure("ValueError: no", 4, 17)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.html").write_text("from before")
    told = labs("book", "--out", str(tmp_path / "book"))
    assert told.code == 1
    assert told.err.startswith("labs: 1 of 2 runs failed: 22_image:quick; no book was built")
    assert not (tmp_path / "book").exists()


def test_a_book_with_warnings_is_a_failure(labs: Labs, monkeypatch) -> None:
    def build(*arguments: object) -> None:
        raise site.BookError("the book was not built:\n    intro.md:3: WARNING: no such page")

    monkeypatch.setattr(site, "build", build)
    told = labs("book")
    assert told.code == 1
    assert told.err == "labs: the book was not built:\n    intro.md:3: WARNING: no such page\n"


def test_data_prints_what_a_data_set_holds(labs: Labs) -> None:
    told = labs("data", "digits")
    assert told.code == 0
    rows = dict(line.split(maxsplit=1) for line in told.out.splitlines())
    dataset = data.load("digits")
    assert rows["name"] == "digits"
    assert rows["train"] == f"{len(dataset.train)} x {tuple(dataset.train.x.shape[1:])}"
    assert rows["fingerprint"] == dataset.fingerprint
    assert rows["classes"] == ", ".join(dataset.classes)


@pytest.mark.parametrize("kind", [data.DataUnavailableError, data.DamagedDataError])
def test_data_that_cannot_be_had_are_one_line(labs: Labs, monkeypatch, kind: type[Exception]) -> None:
    def load(name: str) -> None:
        raise kind(f"{name}: nothing there\nbring it yourself")

    monkeypatch.setattr(data, "load", load)
    told = labs("data", "mnist")
    assert told.code == 1
    assert told.err.startswith("labs: mnist: nothing there")
    assert "Traceback" not in told.err


def test_the_installed_command_is_this_one(tiny_lab: TinyLab) -> None:
    tiny_lab.add("21_fit")
    done = subprocess.run(
        [Path(sys.executable).with_name("labs"), "list"],
        cwd=tiny_lab.root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "21_fit" in done.stdout
