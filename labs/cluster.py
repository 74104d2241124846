"""Executes runs over Dask: on the cores of this machine, or on the workers of any scheduler.

A worker gets a notebook's bytes and parameters, executes it in a folder of its own with one thread, and sends the
folder back as bytes: it needs labutils, but no disk in common with the caller. Where it does see the folder of the
run's checkpoints, it keeps them there; else on its own machine, until the run is done.

What happens to a run on the way: a worker that dies loses it, and Dask gives it to another one; a run that has failed
goes to a worker once more. After the second time, of whatever kind, it counts as failed. Ctrl-C, or the end of the
caller in any other way, ends the processes on the workers, too.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import signal
import socket
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs
from distributed import Client, KilledWorker, LocalCluster, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError
from distributed.comm import get_address_host_port

from labs import freshness, runner
from labs.runner import PACKAGE, Event, Failure, Job, LabsError, Outcome, Project, Result, Run, Say, Stopped

TRIES = 2
ELSEWHERE = "elsewhere.txt"  # says on which machines a run's checkpoints lie
SECONDS_TO_CONNECT = 8.0
SECONDS_WITHOUT_ANSWER = 30.0
SECONDS_WITHOUT_WORKERS = 300.0
SECONDS_TO_KEEP = 30 * 24 * 3600.0  # checkpoints on a worker's machine whose caller has not come back
# What a worker process knows that the process of a notebook must not: sweeps inside it would go back to the scheduler
# that it came from, and an allocator that returns memory at once makes trainings slower.
_NOT_INHERITED = ("LABUTILS_SCHEDULER", "MALLOC_TRIM_THRESHOLD_")


def execute(
    project: Project,
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
    scheduler: str | None = None,
) -> list[Result]:
    """Execute runs over Dask, each with one thread; else as `runner.execute` does.

    Args:
        out: the folder of the results.
        jobs: how many runs at once, at most. Without a scheduler, as many worker processes start here.
        force: execute also what is fresh, and start over what was interrupted.
        on_event: called in the caller's thread for every event.
        scheduler: address of a scheduler whose workers do it, such as ``tcp://192.0.2.1:8786``.

    Raises:
        LabsError: the scheduler does not answer or goes away, or its workers lack labutils, have another version of
            the code or libraries, or no CUDA device where a run asks for one.
    """

    def run_them(**more: Any) -> list[Result]:
        return runner.execute(project, runs, out, force=force, on_event=on_event, **more)

    todo = [run for run in runs if force or freshness.status(project, run, out).state != "done"]
    if not todo:
        return run_them()
    with _connect(scheduler, min(jobs, len(todo))) as client:
        _check_workers(client, scheduler, cuda=any(run.device == "cuda" for run in todo))
        return run_them(place=_Workers(client, jobs))


@contextmanager
def _connect(scheduler: str | None, jobs: int) -> Iterator[Client]:
    """A client of the scheduler with that address, or of one that ends with the block."""
    options: dict[str, Any] = {"set_as_default": False, "timeout": SECONDS_TO_CONNECT}
    if scheduler is None:
        # No memory limit: a worker's own process hardly takes any, and Dask does not see those of the notebooks.
        # A page for the browser at any free port (None would mean 8787), so that two commands do not meet there.
        # The log is silent, as it would only say that a worker was ended.
        settings = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": 50}
        with (
            # not where all clusters of this machine lock and tidy up together
            tempfile.TemporaryDirectory(prefix="labs-", ignore_cleanup_errors=True) as folder,
            LocalCluster(jobs, threads_per_worker=1, memory_limit=0, local_directory=folder, **settings) as cluster,
            Client(cluster, **options) as client,
        ):
            client.register_plugin(_LeaveInterruptsToTheCaller())
            yield client
        return
    try:
        # A client that finds nobody leaves a thread behind and takes its time: knock first.
        socket.create_connection(get_address_host_port(scheduler), timeout=SECONDS_TO_CONNECT).close()
        client = Client(scheduler, **options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # TimeoutError is an OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabsError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({reason}): start one with `dask scheduler` and"
            " give the address that it prints, such as tcp://192.0.2.1:8786"
        ) from None
    with client:
        yield client


class _LeaveInterruptsToTheCaller(WorkerPlugin):
    """Ctrl-C in a terminal reaches every process there: the caller ends its workers in order, without their help."""

    def setup(self, worker: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# --- The caller's side -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Identity:
    """What must be the same here and at a worker for their results to be the same.

    Attributes:
        python: its version.
        torch: the version of torch.
        numpy: the version of numpy.
        labutils: SHA-256 of its code.
    """

    python: str
    torch: str
    numpy: str
    labutils: str

    @classmethod
    def of_this_process(cls) -> Identity:
        """What this process has; the code is that of the files."""
        return cls(**freshness.versions(), labutils=freshness.hash_code(PACKAGE))

    def differences(self, other: Identity) -> list[str]:
        """How another identity differs from this one, in words."""
        found = []
        for name, mine in vars(self).items():
            theirs = vars(other)[name]
            if theirs != mine and name == "labutils":
                found.append("other code of labutils")
            elif theirs != mine:
                found.append(f"{name} {theirs} instead of {mine}")
        return found


def _remedy(where: str, differences: Sequence[str], scheduler: object) -> LabsError:
    return LabsError(
        f"{where}: {', '.join(differences)}: install the same there as here (in the lab's folder: python -m pip install"
        f" -c constraints.txt -e .), then start it again with `dask worker {scheduler}`"
    )


def _check_workers(client: Client, scheduler: str | None, cuda: bool) -> None:
    """Refuse workers whose results would not be ours."""
    try:
        client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
    except OSError:
        raise LabsError(
            f"--scheduler {scheduler}: it has no workers: start some with `dask worker {scheduler} --nthreads 1`"
        ) from None
    address = scheduler or client.scheduler.address
    # First with nothing that another version of Python could not read, then with nothing of labutils.
    for worker, python in client.run(platform.python_version).items():
        if python != platform.python_version():
            raise _remedy(f"worker {worker}", [f"python {python} instead of {platform.python_version()}"], address)

    def find_labutils() -> str:
        from importlib.util import find_spec

        found = find_spec("labs") and find_spec("labs.cluster")
        return "" if found else "no labutils, or an older one"

    for worker, lack in client.run(find_labutils).items():
        if lack:
            raise _remedy(f"worker {worker}", [lack], address)
    here = Identity.of_this_process()
    for worker, there in client.run(Identity.of_this_process).items():
        if differences := here.differences(there):
            raise _remedy(f"worker {worker}", differences, address)
    if cuda:

        def sees_cuda() -> bool:
            import torch

            return torch.cuda.is_available()

        if blind := [worker for worker, sees in client.run(sees_cuda).items() if not sees]:
            raise LabsError(f"--device cuda: no CUDA device at {', '.join(blind)}; use --device cpu, or other workers")


class _Workers:
    """The workers of a scheduler, as a place for runs."""

    threads = 1  # so that the numbers do not depend on how many runs there are at once

    def __init__(self, client: Client, jobs: int) -> None:
        self.client = client
        self.jobs = jobs
        self.topic = f"labs-{uuid.uuid4().hex}"
        self.listeners: dict[str, Say] = {}
        client.subscribe_topic(self.topic, self._hear)
        self._slots, self._asked = 0, float("-inf")
        self._seen = self._answered = time.monotonic()

    def slots(self) -> int:
        """How many threads the workers have, asked for once a second."""
        now = time.monotonic()
        if now - self._asked > 1:
            try:
                self._slots, self._answered = sum(self.client.nthreads().values()), now
            except (OSError, RuntimeError, AttributeError) as error:  # no connection, in one way or another
                if now - self._answered > SECONDS_WITHOUT_ANSWER or self.client.status == "closed":
                    raise self._lost(error) from None
            self._asked = now
        if self._slots:
            self._seen = now
        elif now - self._seen > SECONDS_WITHOUT_WORKERS:
            raise LabsError("the scheduler has no workers any more; what was finished stays, and checkpoints do")
        return min(self.jobs, self._slots)

    def perform(self, job: Job, folder: Path, say: Say, stopping: Callable[[], bool]) -> Outcome:
        """Have a worker execute a job, a second one if the first dies or the job fails, and unpack what it made."""
        begun = tries = 0

        def hear(message: dict[str, Any]) -> None:
            nonlocal begun
            if message["kind"] != "begun":
                say(message)
                return
            begun += 1
            if job.checkpoints and message["own"]:
                with (job.checkpoints / ELSEWHERE).open("a", encoding="utf-8") as file:
                    file.write(message["own"] + "\n")
            if max(tries, 1) < begun <= TRIES:
                say({"kind": "again", "note": "its worker is gone"})

        while True:
            tries += 1
            outcome = self._submit(job, folder, hear, stopping, dead=lambda: begun > TRIES)
            tries = max(tries, begun)
            if outcome.failure is None or tries >= TRIES:
                return outcome
            say({"kind": "again", "note": outcome.failure.error})

    def _submit(
        self, job: Job, folder: Path, hear: Say, stopping: Callable[[], bool], dead: Callable[[], bool]
    ) -> Outcome:
        started = time.monotonic()

        def failed(why: str) -> Outcome:
            return Outcome("", time.monotonic() - started, failure=Failure(why))

        ticket = f"labs-run-{uuid.uuid4().hex}"
        self.listeners[ticket] = hear
        caller = Identity.of_this_process()  # now: the code may have changed since the run before
        future = self.client.submit(_perform, job, caller, self.topic, ticket, key=ticket, pure=False)
        try:
            while not future.done():
                if stopping():
                    raise Stopped
                if dead():
                    return failed("two workers ended while they were executing it: was there too little memory?")
                time.sleep(0.05)
            outcome, archive = future.result()
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
            return outcome
        except FutureCancelledError as error:
            raise self._lost(error) from None
        except KilledWorker:
            return failed("workers ended again and again while they were executing it: was there too little memory?")
        except (Stopped, LabsError):
            raise
        except Exception as error:  # whatever a worker may raise
            return failed(f"{type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            self.listeners.pop(ticket, None)
            # The worker notices and ends the process; if the scheduler is gone, it has done so already.
            future.cancel() if not future.done() else future.release()

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Pass on what a worker says; in the client's thread."""
        message = dict(event[1])
        message.pop("worker", None)  # which Dask adds
        if listener := self.listeners.get(message.pop("ticket")):
            listener(message)

    def _lost(self, error: BaseException) -> LabsError:
        why = " ".join(f"{type(error).__name__} {error}".split())
        return LabsError(f"the scheduler is gone ({why}); what was finished stays, and checkpoints do")


# --- The worker's side -------------------------------------------------------------------------------------------


def _perform(job: Job, caller: Identity, topic: str, ticket: str) -> tuple[Outcome, bytes]:
    """Execute a job in a folder of its own; return how it ended and the folder, packed."""
    worker = get_worker()

    def say(message: dict[str, Any]) -> None:
        worker.log_event(topic, {"ticket": ticket, **message})

    def stopping() -> bool:
        """Whether nobody wants this any more: it was cancelled, or whoever asked for it is gone."""
        task = worker.state.tasks.get(ticket)
        return task is None or task.state not in ("executing", "long-running")

    checkpoints, own = _checkpoints_here(job)
    say({"kind": "begun", "own": f"{platform.node()}:{own}" if own else ""})
    if differences := caller.differences(Identity.of_this_process()):  # of a worker that came later
        error = _remedy(f"worker {worker.address}", differences, worker.scheduler.address)
        return Outcome("", 0.0, failure=Failure(str(error))), _pack(None)
    # In the worker's folder, so that the next worker on this machine tidies up after one that was killed.
    with tempfile.TemporaryDirectory(dir=worker.local_directory, ignore_cleanup_errors=True) as name:
        folder, cwd = Path(name, "run"), Path(name, "notebooks")
        folder.mkdir()
        cwd.mkdir()
        outcome = runner.carry_out(
            replace(job, checkpoints=checkpoints),
            folder,
            cwd=cwd,
            environment={key: value for key, value in os.environ.items() if key not in _NOT_INHERITED},
            say=say,
            stopping=stopping,
        )
        if own and outcome.failure is None:
            shutil.rmtree(own, ignore_errors=True)
        return outcome, _pack(folder)


def _pack(folder: Path | None) -> bytes:
    """The files of a folder as a tar archive; an empty one for None."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path in sorted(folder.iterdir()) if folder else ():
            tar.add(path, arcname=path.name)
    return buffer.getvalue()


def _checkpoints_here(job: Job) -> tuple[Path | None, Path | None]:
    """The folder for the job's checkpoints: the caller's if this machine sees it, else one of this machine's own.

    Returns:
        The folder, and again if it is this machine's own.
    """
    if job.checkpoints is None:
        return None, None
    try:
        seen = (job.checkpoints / freshness.MADE_BY).read_text(encoding="utf-8") == job.made_by
    except (OSError, ValueError):
        seen = False
    if seen and os.access(job.checkpoints, os.W_OK):
        return job.checkpoints, None
    folders = platformdirs.user_cache_path("labutils") / "checkpoints"
    own = folders / json.loads(job.made_by)["id"]
    own.mkdir(parents=True, exist_ok=True)
    os.utime(own)
    for old in folders.iterdir():
        if time.time() - old.stat().st_mtime > SECONDS_TO_KEEP:
            shutil.rmtree(old, ignore_errors=True)
    return own, own
