"""Executes runs on the workers of a Dask scheduler.

A worker gets a notebook's bytes and parameters, executes it in a folder of its own with one thread, and sends the
folder back as bytes: it needs labutils, but no disk in common with the caller. Only where it does see the folder of the
run's checkpoints, an interrupted run goes on from them.

A worker that dies loses its run, and Dask gives it to another one; a run that has failed goes to a worker once more,
then counts as failed. When the caller ends, in whatever way, the kernels on the workers end, too.

Dask executes what it receives. A scheduler that is reached over the network should demand certificates (``tls://``),
which Dask's own configuration names.
"""

from __future__ import annotations

import asyncio
import functools
import io
import os
import platform
import socket
import tarfile
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from distributed import Client, KilledWorker, get_worker
from distributed.client import FutureCancelledError
from distributed.comm import get_address_host_port

from labs import freshness, jupyter, runner
from labs.jupyter import Failure, Job, Outcome, Say
from labs.runner import PACKAGE, Event, LabsError, Project, Result, Run
from labutils import identity

SECONDS_TO_CONNECT = 8.0
_FOLDERS = (PACKAGE, Path(__file__).parent)  # of the code that must be the same
# What a worker process knows that a notebook's kernel must not: sweeps inside it would go back to the scheduler that it
# came from, and an allocator that returns memory at once makes trainings slower.
_NOT_INHERITED = ("LABUTILS_SCHEDULER", "MALLOC_TRIM_THRESHOLD_")


def execute(
    project: Project,
    runs: Sequence[Run],
    out: Path,
    *,
    jobs: int,
    scheduler: str,
    force: bool = False,
    on_event: Callable[[Event], None] | None = None,
) -> list[Result]:
    """Execute runs on the workers of a scheduler, each with one thread; else as `runner.execute`.

    Args:
        jobs: how many runs at once, at most.
        scheduler: its address, such as ``tls://192.0.2.1:8786``.

    Raises:
        LabsError: the scheduler does not answer or goes away, or its workers lack labutils, have another version of
            the code or libraries, or no CUDA device where a run asks for one.
    """
    todo = [run for run in runs if force or freshness.status(project, run, out).state != "done"]
    if not todo:
        return runner.execute(project, runs, out, on_event=on_event)

    async def run_them() -> list[Result]:
        async with await _connect(scheduler) as client:
            await _check_workers(client, scheduler, cuda=any(run.device == "cuda" for run in todo))
            place = _Workers(client, jobs)
            return await runner.execute_at(place, project, runs, out, force=force, on_event=on_event)

    return runner.run_until_interrupted(run_them())


async def _connect(scheduler: str) -> Client:
    try:
        # A client that finds nobody leaves a thread behind and takes its time: knock first.
        socket.create_connection(get_address_host_port(scheduler), timeout=SECONDS_TO_CONNECT).close()
        client = Client(scheduler, set_as_default=False, asynchronous=True, timeout=SECONDS_TO_CONNECT)
        try:
            return await client
        except BaseException:
            await client.close()  # else it does so later, and tells of it
            raise
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # TimeoutError is an OSError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LabsError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({reason}): start one with `dask scheduler` and"
            " give the address that it prints, such as tcp://192.0.2.1:8786"
        ) from None


# --- The caller's side -------------------------------------------------------------------------------------------


def _identity() -> dict[str, str]:
    """What must be the same here and at a worker for their results to be the same; the code is that of the files."""
    return _identity_of(*map(freshness.hash_code, _FOLDERS))


@functools.lru_cache(maxsize=2)
def _identity_of(*_hashes: str) -> dict[str, str]:
    return identity.of_this_process(*map(identity.Package.read, _FOLDERS))  # takes a second


def _remedy(where: str, differences: Sequence[str], scheduler: object) -> LabsError:
    return LabsError(
        f"{where}: {', '.join(differences)}: install the same there as here (in the lab's folder: python -m pip install"
        f" -c constraints.txt -e .), then start it again with `dask worker {scheduler}`"
    )


async def _check_workers(client: Client, scheduler: str, cuda: bool) -> None:
    """Refuse workers whose results would not be ours."""
    try:
        await client.wait_for_workers(1, timeout=SECONDS_TO_CONNECT)
    except OSError:
        raise LabsError(
            f"--scheduler {scheduler}: it has no workers: start some with `dask worker {scheduler} --nthreads 1`"
        ) from None
    # First with nothing that another version of Python could not read.
    for worker, python in (await client.run(platform.python_version)).items():
        if python != platform.python_version():
            raise _remedy(f"worker {worker}", [f"python {python} instead of {platform.python_version()}"], scheduler)
    for worker, there in (await client.run(_identity, on_error="return")).items():
        differences = (
            identity.differences(_identity(), there) if isinstance(there, dict) else ["no labutils, or an older one"]
        )
        if differences:
            raise _remedy(f"worker {worker}", differences, scheduler)

    def sees_cuda() -> bool:
        import torch

        return torch.cuda.is_available()

    if cuda and (blind := [worker for worker, sees in (await client.run(sees_cuda)).items() if not sees]):
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

    async def perform(self, job: Job, folder: Path, say: Say) -> Outcome:
        """Have a worker execute a job, a second one if the first dies or the job fails, and unpack what it made."""
        started, begun, note = time.monotonic(), 0, ""

        def hear(message: dict[str, Any]) -> None:
            nonlocal begun, note
            if message["kind"] == "failed":
                note = message["error"]
            elif message["kind"] != "begun":
                say(message)
            else:
                begun += 1
                if begun > 1:
                    say({"kind": "again", "note": note or "its worker is gone"})

        def failed(why: str) -> Outcome:
            return Outcome("", time.monotonic() - started, failure=Failure(why))

        ticket = f"labs-run-{uuid.uuid4().hex}"
        self.listeners[ticket] = hear
        caller = _identity()  # now: the code may have changed since the run before
        future = self.client.submit(_perform, job, caller, self.topic, ticket, key=ticket, pure=False, retries=1)
        try:
            outcome, archive = await future
        except FailedRun as error:
            outcome, archive = error.args
        except FutureCancelledError as error:
            raise LabsError(f"the scheduler is gone ({error}); what was finished stays, and checkpoints do") from None
        except KilledWorker:
            return failed("workers ended again and again while they were executing it: was there too little memory?")
        except Exception as error:  # whatever a worker may raise
            return failed(f"{type(error).__name__}: {' '.join(str(error).split())}")
        finally:
            self.listeners.pop(ticket, None)
            if not future.done():  # the worker notices and ends the kernel
                await self.client.cancel([future], force=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="data")
        return outcome

    def _hear(self, event: tuple[float, dict[str, Any]]) -> None:
        """Pass on what a worker says."""
        message = dict(event[1])
        message.pop("worker", None)  # which Dask adds
        if listener := self.listeners.get(message.pop("ticket")):
            listener(message)


# --- The worker's side -------------------------------------------------------------------------------------------


class FailedRun(Exception):
    """A run failed: how it ended, and the folder that it left, packed. Dask tries a task again that raises."""


async def _perform(job: Job, caller: dict[str, str], topic: str, ticket: str) -> tuple[Outcome, bytes]:
    """Execute a job in a folder of its own; return how it ended and the folder, packed."""
    worker = get_worker()

    def say(message: dict[str, Any]) -> None:
        worker.log_event(topic, {"ticket": ticket, **message})

    def is_wanted() -> bool:
        """Whether somebody still waits for this: it was not cancelled, and whoever asked for it is there."""
        task = worker.state.tasks.get(ticket)
        return task is not None and task.state in ("executing", "long-running")

    say({"kind": "begun"})
    if differences := identity.differences(caller, _identity()):  # of a worker that came later
        error = _remedy(f"worker {worker.address}", differences, worker.scheduler.address)
        raise FailedRun(Outcome("", 0.0, failure=Failure(str(error))), _pack(None))
    # In the worker's folder, so that the next worker on this machine tidies up after one that was killed.
    with tempfile.TemporaryDirectory(dir=worker.local_directory, ignore_cleanup_errors=True) as name:
        folder, cwd = Path(name, "run"), Path(name, "notebooks")
        folder.mkdir()
        cwd.mkdir()
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        here = job if _sees(job) else replace(job, checkpoints=None)
        work = asyncio.ensure_future(jupyter.carry_out(here, folder, cwd=cwd, environment=environment, say=say))
        try:
            while not work.done() and is_wanted():
                await asyncio.wait([work], timeout=0.2)
        finally:
            work.cancel()
            await asyncio.wait([work])
        outcome = work.result()
        if outcome.failure:
            say({"kind": "failed", "error": outcome.failure.error})
            raise FailedRun(outcome, _pack(folder))
        return outcome, _pack(folder)


def _pack(folder: Path | None) -> bytes:
    """The files of a folder as a tar archive; an empty one for None."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for path in sorted(folder.iterdir()) if folder else ():
            tar.add(path, arcname=path.name)
    return buffer.getvalue()


def _sees(job: Job) -> bool:
    """Whether this machine sees the folder of the job's checkpoints, and not another one of that name."""
    if job.checkpoints is None or not os.access(job.checkpoints, os.W_OK):
        return False
    with suppress(OSError, ValueError):
        return (job.checkpoints / freshness.MADE_BY).read_text(encoding="utf-8") == job.made_by
    return False
