"""Executes one notebook in a kernel of its own, as a coroutine: any number of them side by side.

papermill puts the parameters into the notebook, nbclient sends its cells. A kernel listens on sockets in a folder that
nobody else may enter, demands a signature on every message, and ends when the process that started it ends, in
whatever way. Importing torch, scipy and the rest takes it five seconds of processor time: where many short notebooks
are to be executed, a `Forge` imports them once and forks the kernels from there.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

import labutils
from labs import freshness
from labs.freshness import Failure

if TYPE_CHECKING:  # nbformat takes seconds, which the command's other words need not wait for
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from nbformat import NotebookNode

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
SECONDS_TO_START = 120.0
SECONDS_TO_END = 5.0
LONGEST_SOCKET_NAME = 90  # characters of a folder in which the name of a Unix socket has room

Say = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Job:
    """A run as whoever executes it needs it, on this machine or another."""

    name: str
    notebook: bytes = field(repr=False)
    parameters: dict[str, Any]  # in place of defaults
    threads: int
    checkpoints: Path | None = None  # their folder, if it keeps any
    made_by: str = field(
        default="", repr=False
    )  # what made_by.json says there: who finds another text sees another folder
    students: bool = False  # exercises may be open: they do not end the run


@dataclass(frozen=True)
class Outcome:
    """How executing a job ended."""

    started: str  # ISO 8601
    seconds: float
    data: list[dict[str, Any]] = field(default_factory=list)  # see `freshness.describe_data`
    failure: Failure | None = None
    open: list[str] = field(default_factory=list)  # exercises that a student has not solved yet


async def carry_out(
    job: Job, folder: Path, *, cwd: Path, environment: Mapping[str, str], say: Say, forge: Forge | None = None
) -> Outcome:
    """Execute a job in a kernel of its own. Cancelling the coroutine ends the kernel and all that it started.

    Args:
        folder: an existing, empty folder for what the run makes; if it fails, with a log.
        cwd: where the notebook runs.
        environment: of the kernel, which adds what labutils needs.
        say: called with ``{"kind": "started" | "cell", "cell": …, "cells": …}`` as the notebook goes on.
        forge: what starts the kernel; without one it is a new process.
    """
    import nbformat

    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    notebook, log = nbformat.reads(job.notebook.decode(), as_version=4), folder / "log.txt"
    environment = {
        **{key: value for key, value in environment.items() if key != "LABUTILS_CHECKPOINTS"},
        **thread_environment(job.threads),
        "LABUTILS_RUN_DIR": str(folder),
        "LABUTILS_RUN": job.name,
        "TQDM_DISABLE": "1",  # a progress bar in a page of the book is litter
        **({"LABUTILS_CHECKPOINTS": str(job.checkpoints)} if job.checkpoints else {}),
    }
    unsolved: list[str] | None = [] if job.students else None
    try:
        failure = await _execute(notebook, job.parameters, Start(environment, cwd, log), say, forge, unsolved)
    finally:
        nbformat.write(notebook, folder / "notebook.ipynb")
    if failure is None:
        log.unlink(missing_ok=True)
    return Outcome(started, time.monotonic() - clock, freshness.describe_data(folder), failure, unsolved or [])


def thread_environment(threads: int) -> dict[str, str]:
    """The environment variables of a process that computes with so many threads beside others.

    Threads that wait by spinning take the cores from the others' work: small networks trained up to sixty times slower.
    """
    return {**dict.fromkeys(THREAD_VARIABLES, str(threads)), "OMP_WAIT_POLICY": "PASSIVE"}


# --- One notebook ------------------------------------------------------------------------------------------------


async def _execute(
    notebook: NotebookNode,
    parameters: Mapping[str, Any],
    start: Start,
    say: Say,
    forge: Forge | None,
    unsolved: list[str] | None,
) -> Failure | None:
    """Execute the cells of a notebook, in place; return what went wrong.

    Cells of exercises that fail are added to `unsolved`, where that is a list, and the others go on.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError
    from papermill.parameterize import parameterize_notebook

    progress = {"cell": 0, "cells": sum(cell.cell_type == "code" for cell in notebook.cells)}
    cells = len(notebook.cells)
    if parameters:
        notebook.metadata["papermill"] = {}  # which papermill fills, and where it looks for tags
        for cell in notebook.cells:
            cell.metadata.setdefault("tags", [])
        notebook.cells = parameterize_notebook(notebook, dict(parameters), comment="Parameters of this run").cells
    injected = {
        index for index, cell in enumerate(notebook.cells) if "injected-parameters" in cell.metadata.get("tags", ())
    }
    at = -1  # the cell at work

    def failure(error: str, traceback: str = "") -> Failure:
        number = at + 1 - sum(index <= at for index in injected)  # as in the notebook's source
        source = notebook.cells[at].source if at >= 0 else ""
        lines = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", traceback).splitlines()
        return Failure(error, number, cells, "\n".join(source.splitlines()[:4]), "\n".join(lines[-15:]))

    say({"kind": "started", **progress})
    try:
        async with _kernel(start, forge) as client:
            executor = NotebookClient(notebook, timeout=None)
            executor.kc = client
            notebook.metadata["language_info"] = (await client.kernel_info(reply=True))["content"]["language_info"]
            for at, cell in enumerate(notebook.cells):
                _leave_if_cancelled()
                try:
                    await executor.async_execute_cell(cell, at, execution_count=executor.code_cells_executed + 1)
                except CellExecutionError:
                    exercise = cell.metadata.get("nbgrader", {}).get("grade_id")
                    if unsolved is None or exercise is None:
                        raise
                    unsolved.append(exercise)
                if cell.cell_type == "code" and at not in injected:
                    progress["cell"] += 1
                    say({"kind": "cell", **progress})
            executor.set_widgets_metadata()
    except CellExecutionError as error:
        return failure(f"{error.ename}: {error.evalue}", error.traceback)
    except Exception as error:  # the kernel died or did not start: its own last words say why
        _leave_if_cancelled()  # which nbclient takes for the kernel's death
        told = start.log.read_text(encoding="utf-8", errors="replace") if start.log.exists() else ""
        return failure(f"{type(error).__name__}: {' '.join(str(error).split())}", told)
    return None


def _leave_if_cancelled() -> None:
    """End a task that was cancelled while nbclient waited: `asyncio.wait_for` of Python 3.11 may swallow that."""
    if (task := asyncio.current_task()) and task.cancelling():
        raise asyncio.CancelledError from None


@dataclass(frozen=True)
class Start:
    """What a kernel starts with."""

    environment: dict[str, str]  # all of it
    cwd: Path
    log: Path  # takes what its process writes outside of cells


@contextlib.asynccontextmanager
async def _kernel(start: Start, forge: Forge | None) -> AsyncIterator[AsyncKernelClient]:
    """A client of a new kernel, which ends with the block."""
    from jupyter_client import write_connection_file
    from jupyter_client.asynchronous.client import AsyncKernelClient
    from jupyter_client.session import new_id_bytes

    class Client(AsyncKernelClient):
        """A client that knows the process of its kernel."""

        async def _async_is_alive(self) -> bool:
            return is_alive(process)

        is_alive = _async_is_alive

    # The folder and the file with the key are for this user only.
    with tempfile.TemporaryDirectory(prefix="labs-", ignore_cleanup_errors=True) as folder:
        how = {"transport": "ipc", "ip": f"{folder}/k"} if len(folder) < LONGEST_SOCKET_NAME else {"transport": "tcp"}
        connection, _ = write_connection_file(f"{folder}/kernel.json", key=new_id_bytes(), **how)
        client = Client()
        client.load_connection_file(connection)
        process = await asyncio.to_thread(forge.fork, connection, start) if forge else _spawn(connection, start)
        try:
            client.start_channels()
            await client.wait_for_ready(timeout=SECONDS_TO_START)
            client.allow_stdin = False
            yield client
        finally:
            client.stop_channels()
            _end(process)


def _spawn(connection: str, start: Start) -> psutil.Process:
    """Start a kernel as a new process."""
    with start.log.open("wb") as log:
        return psutil.Popen(
            [sys.executable, "-P", "-m", "labs.jupyter", connection],  # -P: nothing in the folder shadows a library
            cwd=start.cwd,
            env=start.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the command only, which then ends its kernels in order
        )


def _become_kernel(connection: str) -> None:
    """Be a kernel, until the process that started this one ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        shutil.rmtree(Path(connection).parent, ignore_errors=True)
        os.killpg(0, signal.SIGKILL)  # and what it has started

    threading.Thread(target=watch, daemon=True).start()
    from ipykernel.kernelapp import launch_new_instance

    quiet = ["--HistoryManager.hist_file=:memory:", "--Application.log_level=CRITICAL"]
    sys.argv = ["ipykernel_launcher", "-f", connection, *quiet]
    launch_new_instance()


def is_alive(process: psutil.Process) -> bool:
    """Whether a process is there, and has not ended without its parent's notice."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _end(process: psutil.Process) -> None:
    """End a kernel and what it started: it leads a group of processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(psutil.Error, subprocess.TimeoutExpired):
        process.kill()
        process.wait(SECONDS_TO_END)


# --- Kernels from one process ------------------------------------------------------------------------------------


class Forge:
    """A process that has imported what labutils imports, and forks kernels: each starts in a moment.

    labutils itself is left to the kernels, so that each has the code as it is then. Linux only: elsewhere libraries do
    not take well to forking.
    """

    def __init__(self, environment: Mapping[str, str], cwd: Path | None = None) -> None:
        # Where the user has not chosen one: the backend of Jupyter, as in any other kernel.
        backend = {"MPLBACKEND": environment.get("MPLBACKEND") or "module://matplotlib_inline.backend_inline"}
        self._asking = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "labs.jupyter"],  # -P: nothing in the folder shadows a library
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**environment, **backend},
            cwd=cwd,
            start_new_session=True,
        )

    def fork(self, connection: str, start: Start) -> psutil.Process:
        """Start a kernel."""
        start.log.touch()
        task = {"connection": connection, "cwd": str(start.cwd), "log": str(start.log)}
        line = json.dumps(task | {"environment": start.environment}).encode() + b"\n"
        with self._asking:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()
            return psutil.Process(int(self._process.stdout.readline()))

    def close(self) -> None:
        """End it, and the kernels."""
        with self._process:
            self._process.kill()


def _imports() -> Iterator[str]:
    """The statements with which labutils imports other packages."""
    for path in sorted(Path(labutils.__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom) and not re.search(
                r"__future__|labutils", ast.unparse(node)
            ):
                yield ast.unparse(node)


def _serve() -> None:
    """Fork a kernel for each line on standard input, and say its process; end when standard input does."""
    with warnings.catch_warnings(action="ignore"):
        for statement in dict.fromkeys(_imports()):
            with contextlib.suppress(Exception):  # whoever needs it will hear of it
                exec(statement, {})
        import ipykernel.kernelapp  # noqa: F401
        import torch._dynamo  # noqa: F401, which every notebook's first optimizer imports
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the kernels: they leave no zombies
    for line in sys.stdin.buffer:
        task = json.loads(line)
        if (pid := os.fork()) == 0:
            break
        print(pid, flush=True)
    else:
        return
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(task["environment"])
    os.chdir(task["cwd"])
    for number, name in enumerate((os.devnull, task["log"], task["log"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_APPEND), number)
    _become_kernel(task["connection"])


if __name__ == "__main__":
    _become_kernel(sys.argv[1]) if len(sys.argv) > 1 else _serve()
