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
import yaml
from rich.console import Console

from labs import cli, cluster, freshness, progress, runner, site
from labs.runner import Event, Failure, Result
from labutils import data
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

    def execute(project, runs, out, *, jobs, force, on_event, scheduler=None, threads=None) -> list[Result]:
        calls.append(SimpleNamespace(runs=runs, out=out, jobs=jobs, force=force, scheduler=scheduler, threads=threads))
        results = []
        for run in runs:
            failure = ends.get(run.label)
            state = "failed" if failure else "done"
            for kind in ("waiting", "started", "cell", state):
                on_event(Event(run, kind, cell=int(kind == "cell"), cells=2, seconds=61.4))
                if kind == "started" and scheduler:
                    on_event(Event(run, "again", note="its worker is gone"))
            results.append(Result(run, state, run.folder(out), 61.4, failure))
        return results

    monkeypatch.setattr(runner, "execute", execute)
    monkeypatch.setattr(cluster, "execute", execute)

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
        "run": ["NOTEBOOK", "-p", "--profile", "--jobs", "--device", "--out", "--force", "--scheduler", "--dry-run"],
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


def test_run_passes_its_options_on(labs: Labs, tmp_path: Path) -> None:
    words = ["-p", "n", "5", "21", "--jobs", "3", "--force", "--device", "cpu", "--out"]
    [call] = labs("run", *words, str(tmp_path)).calls
    [run] = call.runs
    assert run.name.startswith("quick-custom-")
    assert (run.parameters, run.device) == ({"n": 5}, "cpu")
    assert (call.out, call.jobs, call.force) == (tmp_path, 3, True)
    told = labs("run", "--device", "cpu")
    assert "without a parameter `device`, run as always: 22_image" in told.out
    assert (told.code, told.err) == (0, "")
    [*_, call] = told.calls
    assert [run.label for run in call.runs] == ["21_fit:quick", "22_image:quick"]
    assert (call.out, call.force) == (labs.lab.results, False)


COSTS = {"any": {"quick": [15, 700]}, "21_fit": {"d1-sinc": [90, 600], "d1-long": [7200, 600]}}


@pytest.fixture
def costly(labs: Labs, monkeypatch: pytest.MonkeyPatch) -> Labs:
    """Two named runs with known costs, on a machine with two cores."""
    labs.lab.name_runs({"21_fit": {"d1-sinc": {"n": 9}, "d1-long": {"n": 99}}})
    (labs.lab.project.notebooks / "costs.yaml").write_text(yaml.safe_dump(COSTS))
    monkeypatch.setattr(runner, "count_cores", lambda: 2)
    return labs


def test_the_full_profile_begins_with_the_longest_run_one_thread_each(costly: Labs) -> None:
    told = costly("run", "--profile", "full")
    [call] = told.calls
    assert [run.label for run in call.runs] == ["21_fit:d1-long", "21_fit:d1-sinc"]
    assert (call.scheduler, call.jobs, call.threads) == (None, 2, 1)
    assert told.out.splitlines()[1] == "21_fit:d1-long: started (about 1 h 58 min, all in about 1 h 58 min)"
    assert told.out.splitlines()[2].startswith("21_fit:d1-long: done in 1 min 1 s (all in about ")
    assert told.out.splitlines()[-1] == "21_fit:d1-sinc: done in 1 min 1 s"
    [*_, call] = costly("run", "--profile", "full", "--jobs", "1").calls
    assert call.jobs == 1


@pytest.mark.parametrize(("words", "jobs"), [([], 2), (["--jobs", "7"], 7)])
def test_a_scheduler_gets_quick_runs_as_well(costly: Labs, words: list[str], jobs: int) -> None:
    told = costly("run", "--scheduler", "tcp://192.0.2.1:8786", *words)
    [call] = told.calls
    assert (call.scheduler, call.jobs) == ("tcp://192.0.2.1:8786", jobs)
    assert "21_fit:quick: tries once more, its worker is gone" in told.out


def test_cuda_at_a_scheduler_is_a_matter_of_its_workers(costly: Labs, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    [call] = costly("run", "21", "--scheduler", "tcp://192.0.2.1:8786", "--device", "cuda").calls
    assert [run.device for run in call.runs] == ["cuda"]


def test_a_dry_run_says_what_runs_take_and_runs_nothing(costly: Labs) -> None:
    told = costly("run", "--profile", "full", "--dry-run")
    assert (told.code, told.calls) == (0, [])
    lines = told.out.splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["21_fit:d1-sinc", "1", "min", "30", "s", "600", "MiB", "estimated", "not", "run"],
        ["21_fit:d1-long", "2", "h", "0", "min", "600", "MiB", "estimated", "not", "run"],
    ]
    assert lines[4] == "2 of 2 to do: 2 h 1 min of CPU time, 2 h 0 min with 2 at once"
    alone = costly("run", "--profile", "full", "--dry-run", "--jobs", "1").out
    assert "2 h 1 min with 1 at once" in alone


def test_a_dry_run_takes_names_values_and_quick_runs(costly: Labs) -> None:
    assert "21_fit:d1-sinc-custom-" in costly("run", "21:d1-sinc", "-p", "n", "4", "--dry-run").out
    quick = costly("run", "--dry-run").out.splitlines()
    assert [line.split()[:3] for line in quick[1:3]] == [["21_fit:quick", "15.0", "s"], ["22_image:quick", "15.0", "s"]]
    (costly.lab.project.notebooks / "costs.yaml").unlink()
    unknown = costly("run", "--dry-run").out
    assert "unknown" in unknown
    assert "at least 0.0 s of CPU time" in unknown


def test_a_dry_run_shows_results_and_checkpoints(costly: Labs) -> None:
    notebooks = costly.lab.load()
    [short] = runner.select(notebooks, ["21:d1-sinc"])
    project, out = costly.lab.project, costly.lab.results
    record = {"status": "done", "stamp": freshness.stamp(project, short), "data": [], "files": [], "parameters": {}}
    short.folder(out).mkdir(parents=True)
    (short.folder(out) / "run.json").write_text(json.dumps(record | {"seconds": 75.0, "error": None}))
    kept = out / "21_fit" / ".d1-long.checkpoints"
    kept.mkdir()
    (kept / "fit").write_text("")
    text = costly("run", "--profile", "full", "--dry-run").out
    assert "up to date" in text
    assert "checkpoint of 20" in text
    assert "1 of 2 to do: 2 h 0 min of CPU time" in text
    assert "Runs with a checkpoint take what is left of them." in text
    assert "2 of 2 to do" in costly("run", "--profile", "full", "--dry-run", "--force").out


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """What a terminal shows in the end."""
    screen = Console(force_terminal=True, width=120, color_system=None, record=True)
    monkeypatch.setattr(progress, "console", lambda: screen)
    return lambda: screen.export_text().splitlines()


def test_in_a_terminal_the_time_left_is_shown(costly: Labs, terminal: Callable[[], list[str]], monkeypatch) -> None:
    def execute(project, runs, out, *, on_event, **options: object) -> list[Result]:
        on_event(Event(runs[0], "started", cells=2, seconds=600.0))
        on_event(Event(runs[0], "again", note="its worker is gone"))
        return [Result(run, "done", run.folder(out)) for run in runs]

    monkeypatch.setattr(runner, "execute", execute)
    assert costly("run", "--profile", "full").code == 0
    lines = terminal()
    assert any("21_fit:d1-long" in line and "1 h 50 min left" in line and "tries once more" in line for line in lines)
    assert any("all runs" in line and "1 h 50 min left" in line for line in lines)


def test_in_a_terminal_each_run_is_a_line(labs: Labs, terminal: Callable[[], list[str]]) -> None:
    labs.ends["22_image:quick"] = Failure("ValueError: no")
    assert labs("run").code == 1
    lines = terminal()
    assert any("21_fit:quick" in line and "done" in line for line in lines)
    assert any("22_image:quick" in line and "FAILED" in line for line in lines)


def test_without_a_terminal_each_run_is_a_line(labs: Labs) -> None:
    labs.ends["22_image:quick"] = Failure("ValueError: no")
    assert labs("run").out.splitlines() == [
        "21_fit:quick: waits: another process is running it",
        "21_fit:quick: done in 1 min 1 s",
        "22_image:quick: waits: another process is running it",
        "22_image:quick: FAILED after 1 min 1 s",
    ]


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
        (["run", "21", "-p", "n", "x"], "21_fit: n = 'x' (str): expected int, as 3"),
        (["run", "21", "-p", "n", "[1"], "'[1' is not a value: while parsing"),
        (["run", "22", "--profile", "full"], "nothing to run: notebooks/runs.yaml names no run of 22"),
        (["run", "--jobs", "0"], "Invalid value for '--jobs': 0 is not in the range x>=1. See labs run --help"),
        (["run", "--fast"], "No such option"),
        (["rum"], "No such command 'rum'."),
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


@pytest.mark.parametrize(
    ("number", "words"),
    [(28, "make room there"), (30, "give yourself permission there"), (13, "permission"), (20, "move away the file")],
)
def test_a_folder_that_cannot_be_used_is_named_with_what_helps(
    labs: Labs, monkeypatch, number: int, words: str
) -> None:
    def execute(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "some/results")

    monkeypatch.setattr(runner, "execute", execute)
    told = labs("run")
    assert told.code == 1
    assert told.err.startswith(f"labs: some/results: {os.strerror(number)}; what was finished stays")
    assert words in told.err
    assert len(told.err.splitlines()) == 1


def test_results_that_are_a_file_are_named(labs: Labs, monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(labs.lab.root)
    labs.lab.results.write_text("mine")
    told = labs("run", "22")
    assert (told.code, labs.lab.results.read_text()) == (1, "mine")
    assert str(labs.lab.results) in told.err
    assert "move away the file" in told.err


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

    def build(*arguments: object, answers: bool, pdf: bool) -> Path:
        built.append((*arguments, answers, pdf))
        return Path("here/index.html")

    monkeypatch.setattr(site, "build", build)
    told = labs("book")
    assert told.code == 0
    assert told.out.splitlines()[-1] == "here/index.html"
    [call] = told.calls
    assert [run.label for run in call.runs] == ["21_fit:quick", "22_image:quick"]
    root = labs.lab.root
    [(project, results, out, answers, pdf)] = built
    assert (project.root, results, out, answers, pdf) == (root, root / "results", root / "_build" / "book", True, False)
    labs("book", "--out", str(tmp_path / "o"), "--results", str(tmp_path / "r"), "--without-answers")
    assert built[-1][1:] == (tmp_path / "r", tmp_path / "o", False, False)


def test_a_failing_notebook_leaves_no_book(labs: Labs, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(site, "build", lambda *arguments, **more: pytest.fail("built"))
    labs.ends["22_image:quick"] = Failure("ValueError: no", 4, 17)
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.html").write_text("from before")
    told = labs("book", "--out", str(tmp_path / "book"))
    assert told.code == 1
    assert told.err.startswith("labs: 1 of 2 runs failed: 22_image:quick; no book was built")
    assert not (tmp_path / "book").exists()


def test_a_book_with_warnings_is_a_failure(labs: Labs, monkeypatch) -> None:
    def build(*arguments: object, answers: bool, pdf: bool) -> None:
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


HEAVY = {"nbformat", "jsonschema", "torch", "numpy", "scipy", "pandas", "dask", "distributed", "papermill", "nbclient"}


@pytest.mark.parametrize(
    ("words", "also"),
    [(["--help"], {"rich"}), (["list"], set()), (["run", "--help"], {"rich"})],
)
def test_the_command_starts_without_what_it_does_not_need(tiny_lab: TinyLab, words: list[str], also: set[str]) -> None:
    tiny_lab.add("21_fit")
    code = f"import sys; from labs.cli import main; code = main({words}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny_lab.root, capture_output=True, text=True, check=True)
    assert done.stdout
    assert set(done.stderr.split()) & (HEAVY | also) == set()


def test_reading_a_notebook_leaves_out_a_grammar_that_takes_two_seconds() -> None:
    code = "import labs, nbformat, sys; assert 'jsonschema' in sys.modules; assert 'lark' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_completion_in_a_shell_knows_the_commands() -> None:
    environment = {**os.environ, "_LABS_COMPLETE": "bash_complete", "COMP_WORDS": "labs r", "COMP_CWORD": "1"}
    command = Path(sys.executable).with_name("labs")  # as it is installed
    done = subprocess.run([command], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,release", "plain,run"]


def test_odd_terminals(tiny_lab: TinyLab) -> None:
    """A reader that has read enough, no Unicode and few columns, a closed output: no traceback, no noise."""
    for number in range(3):
        tiny_lab.add(f"2{number}_fit", text="# Größe\n\nDoes ∂f help?")
    command = f"'{sys.executable}' -m labs.cli list"
    poor = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": str(int(not sys.prefix.isascii())),  # without it, Python would not find itself there
        "PYTHONIOENCODING": "ascii",
        "TERM": "dumb",
        "COLUMNS": "20",
    }
    for line in (f"{command} | true", command, f"{command} >&-", f"{command} | head -1"):
        done = subprocess.run(
            ["bash", "-c", line], cwd=tiny_lab.root, env=poor, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), line
    assert "fit" in done.stdout or "Notebook" in done.stdout
