"""labs.cluster: runs on a real scheduler with worker processes, some of which die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from labs import cluster, freshness, runner
from labs.runner import Event, Job, LabsError
from labutils.identity import differences
from tests.conftest import TinyLab, make_tiny_lab, wait_until

# What a notebook of these tests says of itself: the process that holds its worker, its environment and its folder.
TELL = (
    "import json, os, pathlib, psutil\n"
    "out = pathlib.Path(os.environ['LABUTILS_RUN_DIR'])\n"
    "keys = ('LABUTILS_SCHEDULER', 'MALLOC_TRIM_THRESHOLD_', 'OMP_NUM_THREADS')\n"
    "seen = {'n': n, 'cwd': os.getcwd(), **{key: os.environ.get(key) for key in keys}}\n"
    "(out / 'seen.json').write_text(json.dumps(seen))"
)
NUMBERS = (
    "import json, os, pathlib\n"
    "import numpy as np\n"
    "x = np.random.default_rng(n).normal(size=(300, 300)).astype('float32')\n"
    "numbers = {'values': np.linalg.svd(x, compute_uv=False).tolist(), 'sum': float(np.exp(x).sum())}\n"
    "(pathlib.Path(os.environ['LABUTILS_RUN_DIR']) / 'metrics.json').write_text(json.dumps(numbers))"
)
# A training with checkpoints, in small: what it has when its worker dies, the next one goes on from.
STEPS = (
    "import os, pathlib, psutil, time\n"
    "state = pathlib.Path(os.environ['LABUTILS_CHECKPOINTS'], 'steps')\n"
    "steps = state.read_text() if state.exists() else ''\n"
    "state.with_name('worker').write_text(str(psutil.Process().parent().pid))\n"
    "state.write_text(steps + 'x')\n"
    "while steps == '':\n"
    "    time.sleep(0.05)\n"
    "(pathlib.Path(os.environ['LABUTILS_RUN_DIR'], 'steps')).write_text(steps + 'x')"
)


def python(*words: str, **environment: str) -> subprocess.Popen[bytes]:
    """Start Python in a folder that is not this project's."""
    command = [sys.executable, *words]
    return subprocess.Popen(
        command,
        cwd=tempfile.gettempdir(),
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class Workers:
    """A scheduler and its workers, each a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        file = folder / "scheduler.json"
        words = ("--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(file))
        self.processes = [python("-m", "distributed.cli.dask_scheduler", *words)]
        wait_until(lambda: file.exists() and file.read_text().strip().endswith("}"))
        self.address = json.loads(file.read_text())["address"]

    def add(self, **environment: str) -> subprocess.Popen[bytes]:
        words = ("--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(self.folder))
        process = python("-m", "distributed.cli.dask_worker", self.address, *words, **environment)
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    workers = Workers(tmp_path_factory.mktemp("workers"))
    workers.add()
    workers.add()
    yield workers
    workers.close()


def seen(lab: TinyLab, name: str) -> dict:
    return json.loads((lab.results / name / "seen.json").read_text())


def kinds(events: list[Event], label: str) -> list[str]:
    return [event.kind for event in events if event.run.label == label]


@pytest.fixture(scope="module")
def done(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> tuple[TinyLab, dict, list[Event]]:
    """A lab whose runs are over; one of its two workers was killed while it was executing 12_steps:a."""
    lab = make_tiny_lab(tmp_path_factory.mktemp("done") / "lab")
    lab.add("11_numbers", NUMBERS)
    lab.add("12_steps", STEPS)
    lab.add("13_bad", TELL, "1 / 0")
    lab.name_runs({"12_steps": {"a": {"n": 1}}, "11_numbers": {"a": {"n": 1}}, "13_bad": {"a": {"n": 1}}})
    state = lab.results / "12_steps" / ".a.checkpoints" / "steps"
    events: list[Event] = []

    def kill_its_worker() -> None:
        wait_until(state.exists)
        os.kill(int(state.with_name("worker").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill_its_worker)
    killer.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABUTILS_SCHEDULER", workers.address)
        runs = [lab.run(name) for name in ("12:a", "13:a", "11:a")]
        results = cluster.execute(
            lab.project, runs, lab.results, jobs=3, scheduler=workers.address, on_event=events.append
        )
    killer.join()
    return lab, {result.run.label: result for result in results}, events


def test_a_run_whose_worker_is_killed_goes_on_at_another_from_its_checkpoint(done, workers: Workers) -> None:
    lab, results, events = done
    assert results["12_steps:a"].state == "done"
    assert (lab.results / "12_steps" / "a" / "steps").read_text() == "xx"
    assert kinds(events, "12_steps:a") == ["started", "cell", "again", "started", "cell", "cell", "done"]
    assert [event.note for event in events if event.run.label == "12_steps:a" and event.note] == ["its worker is gone"]
    assert sum(process.poll() is None for process in workers.processes[1:]) == 1


def test_a_run_that_fails_twice_is_reported_and_the_others_go_on(done) -> None:
    lab, results, events = done
    assert [result.state for result in results.values()] == ["done", "failed", "done"]
    failure = results["13_bad:a"].failure
    assert (failure.error, failure.cell) == ("ZeroDivisionError: division by zero", 4)
    assert kinds(events, "13_bad:a") == ["started", "cell", "cell", "again", "started", "cell", "cell", "failed"]
    assert lab.state("13:a").failure == failure
    assert (lab.results / "13_bad" / "a" / "log.txt").is_file()


def test_a_run_works_in_a_folder_of_its_worker_with_one_thread(done, workers: Workers) -> None:
    lab, _, _ = done
    told = seen(lab, "13_bad/a")
    assert Path(told["cwd"]).is_relative_to(workers.folder)
    assert (told["n"], told["OMP_NUM_THREADS"]) == (1, "1")
    assert told["LABUTILS_SCHEDULER"] is told["MALLOC_TRIM_THRESHOLD_"] is None
    left = list(workers.folder.glob("dask-scratch-space/*/tmp*"))
    assert len(left) <= 1  # of the killed worker: the next one on this machine tidies up after it


def test_results_come_back_whole(done) -> None:
    lab, results, _ = done
    folder = results["11_numbers:a"].folder
    assert {path.name for path in folder.iterdir()} == {"notebook.ipynb", "metrics.json", "run.json"}
    assert lab.state("11:a").state == "done"
    assert {path.name for path in folder.parent.iterdir()} == {"a", ".a.lock"}


def test_what_is_fresh_needs_no_worker(done) -> None:
    lab, _, _ = done
    runs = [lab.run("11:a")]
    again = cluster.execute(lab.project, runs, lab.results, jobs=1, scheduler="tcp://127.0.0.1:1")
    assert [result.state for result in again] == ["fresh"]


def test_a_worker_and_this_machine_give_the_same_numbers(done, tmp_path: Path) -> None:
    lab, results, _ = done
    there = json.loads((results["11_numbers:a"].folder / "metrics.json").read_text())
    [here] = runner.execute(lab.project, [lab.run("11:a")], tmp_path, threads=1)
    assert json.loads((here.folder / "metrics.json").read_text()) == there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_interrupts_ends_the_work_of_external_workers(workers: Workers, tmp_path: Path, number) -> None:
    lab = make_tiny_lab(tmp_path / "lab")
    lab.add("11_slow", STEPS)
    lab.name_runs({"11_slow": {"a": {"n": 1}}})
    words = ("-m", "labs.cli", "run", "11:a", "--scheduler", workers.address)
    command = subprocess.Popen(
        [sys.executable, *words], cwd=lab.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    state = lab.results / "11_slow" / ".a.checkpoints" / "steps"
    try:
        wait_until(lambda: state.exists() or command.poll() is not None)
        worker = next(process for process in workers.processes[1:] if process.poll() is None)
        family = psutil.Process(worker.pid).children(recursive=True)
        assert any("labs.jupyter" in one.cmdline() for one in family)
        command.send_signal(number)
        _, errors = command.communicate(timeout=60)
    finally:
        command.kill()
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in family))
    assert worker.poll() is None
    assert state.read_text() == "x"
    if number == signal.SIGINT:
        assert command.returncode == 130
        assert errors.strip().splitlines() == ["labs: interrupted; what was finished stays, nothing half-written does"]
        assert {path.name for path in state.parent.parent.iterdir()} == {".a.lock", ".a.checkpoints"}


# --- Workers that will not do ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense", "tcp://127.0.0.1", "x://127.0.0.1:1"])
def test_a_scheduler_that_does_not_answer_is_named(tiny_lab: TinyLab, monkeypatch, address: str) -> None:
    assert cluster.SECONDS_TO_CONNECT < 10
    monkeypatch.setattr(cluster, "SECONDS_TO_CONNECT", 0.5)
    tiny_lab.add("11_fit")
    with pytest.raises(
        LabsError, match=rf"--scheduler {re.escape(address)}: no Dask scheduler answers .*dask scheduler"
    ):
        cluster.execute(tiny_lab.project, [tiny_lab.run("11")], tiny_lab.results, jobs=1, scheduler=address)


def test_workers_must_be_there_and_have_labutils(tiny_lab: TinyLab, tmp_path: Path, monkeypatch) -> None:
    tiny_lab.add("11_fit")
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['labutils'] = None")
    workers = Workers(tmp_path)

    def execute() -> None:
        cluster.execute(tiny_lab.project, [tiny_lab.run("11")], tiny_lab.results, jobs=1, scheduler=workers.address)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "SECONDS_TO_CONNECT", 0.5)
            with pytest.raises(LabsError, match=rf"it has no workers: start some with `dask worker {workers.address}"):
                execute()
        workers.add(PYTHONPATH=str(tmp_path))
        with pytest.raises(LabsError, match=r"worker tcp://.*: no labutils, or an older one: install the same there"):
            execute()
    finally:
        workers.close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"code of labutils": "0", "code of labs": "0"}, "other code of labutils, other code of labs"),
        ({"python": "3", "torch": "0"}, r"python \S+ instead of 3, torch \S+ instead of 0"),
    ],
)
def test_workers_must_have_the_same_code_and_libraries(
    tiny_lab: TinyLab, workers: Workers, monkeypatch, change: dict[str, str], message: str
) -> None:
    tiny_lab.add("11_fit")
    mine = cluster._identity() | change
    monkeypatch.setattr(cluster.identity, "differences", lambda ours, theirs: differences(mine, theirs))
    with pytest.raises(LabsError, match=rf"worker tcp://.*: {message}: install the same there as here .*dask worker"):
        cluster.execute(tiny_lab.project, [tiny_lab.run("11")], tiny_lab.results, jobs=1, scheduler=workers.address)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the workers have a CUDA device")
def test_a_run_on_cuda_needs_workers_with_a_device(tiny_lab: TinyLab, workers: Workers) -> None:
    tiny_lab.add("11_fit", defaults="device = 'cpu'  # where")
    run = replace(tiny_lab.run("11"), device="cuda")
    with pytest.raises(LabsError, match=r"--device cuda: no CUDA device at tcp://"):
        cluster.execute(tiny_lab.project, [run], tiny_lab.results, jobs=1, scheduler=workers.address)


# --- Checkpoints where no disk is shared -------------------------------------------------------------------------


def test_a_worker_uses_checkpoints_only_where_it_sees_the_callers(tmp_path: Path) -> None:
    job = Job("a", b"", {}, 1, tmp_path, '{"id": "0123"}')
    assert not cluster._sees(replace(job, checkpoints=None))
    assert not cluster._sees(job)  # nothing there
    (tmp_path / freshness.MADE_BY).write_text('{"id": "other"}')
    assert not cluster._sees(job)  # a folder of that name on another disk
    (tmp_path / freshness.MADE_BY).write_text(job.made_by)
    assert cluster._sees(job)
