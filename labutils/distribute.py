"""Distribution: tasks on the workers of a Dask scheduler that somebody has started.

`LABUTILS_SCHEDULER` names its address, such as `tcp://host:8786`; `training.fit` then sends its stacks there. Workers
need the same version of labutils, and for equal numbers the same torch, the same kind of processor, and the same number
of threads a computation (`OMP_NUM_THREADS=1`, and `--nthreads 1`, is best: one task uses one core).
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

import labutils

if TYPE_CHECKING:
    from distributed import Client

ADDRESS = "LABUTILS_SCHEDULER"
_PATIENCE = 10  # seconds to wait for a scheduler, or for a worker


def scheduler() -> str | None:
    """Return the address of the scheduler that computations are sent to, None if there is none.

    Example:
        >>> scheduler() is None
        True
    """
    return os.environ.get(ADDRESS) or None


def run(
    function: Callable[[Any, Any], Any], tasks: Sequence[Any], shared: Any, *, progress: bool = False
) -> Iterator[tuple[int, Any]]:
    """Compute `function(task, shared)` for every task on the scheduler's workers.

    A task whose worker died is computed again by another. What a task raises is raised here, and the others are
    cancelled.

    Args:
        function: a function of a module of labutils.
        tasks: what differs from task to task.
        shared: what all tasks get, such as the data; it is sent to a worker once.
        progress: whether to show a bar of the tasks.

    Yields:
        The number of a task, from 0, and its result, in the order in which they are done.

    Raises:
        ConnectionError: no scheduler answers at the address, or it has no worker.
        RuntimeError: workers without labutils, or with another version; a task whose workers died again and again.

    Example:
        >>> for number, result in run(max, [], 0):  # without tasks nobody is asked
        ...     print(number, result)
    """
    if not tasks:
        return
    import cloudpickle
    from distributed import KilledWorker, as_completed

    client = _client(scheduler() or "")
    _check_workers(client)
    with warnings.catch_warnings():
        # As a task of their own, not scattered, the data outlive the worker that holds them. As bytes, they spare the
        # scheduler the import of torch.
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        data = client.submit(pickle.loads, pickle.dumps(shared), pure=False)
        futures = [client.submit(_call, cloudpickle.dumps((function, task)), data, pure=False) for task in tasks]
    try:
        with tqdm(total=len(tasks), unit="part", disable=not progress, leave=False) as bar:
            numbers = {future.key: number for number, future in enumerate(futures)}
            for future in as_completed(futures, loop=client.loop):
                yield numbers[future.key], future.result()
                future.release()
                bar.update()
    except KilledWorker as error:
        raise RuntimeError(
            "a part of the computation was given up, as every worker that took it died: is there enough memory?"
        ) from error
    finally:
        client.cancel([data, *futures])


@functools.cache
def _client(address: str) -> Client:
    """Return the one client of this process for a scheduler; it closes when the process ends."""
    from distributed import Client

    try:
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:  # TimeoutError is an OSError
        raise ConnectionError(
            f"{ADDRESS} = {address!r}: no Dask scheduler answers there within {_PATIENCE} s. Start one"
            " (`dask scheduler`, then `dask worker ADDRESS --nthreads 1`), or unset the variable"
        ) from error
    atexit.register(client.close)
    return client


def _check_workers(client: Client) -> None:
    """Refuse a scheduler without workers, and workers whose labutils is not this one."""
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        raise ConnectionError(
            f"the scheduler at {scheduler()} has no worker: start some, as by `dask worker {scheduler()} --nthreads 1`"
        ) from error
    # A function of Python's own library: it needs no labutils there.
    found = client.run(importlib.metadata.version, "labutils", on_error="return")
    for worker, version in found.items():
        if isinstance(version, importlib.metadata.PackageNotFoundError):
            raise RuntimeError(f"the worker {worker} has no labutils: install {labutils.__version__} there")
        if isinstance(version, Exception):
            raise version
        if version != labutils.__version__:
            raise RuntimeError(
                f"the worker {worker} has labutils {version}, here it is {labutils.__version__}: install the same there"
            )


def _call(content: bytes, shared: Any) -> Any:
    function, task = pickle.loads(content)
    return function(task, shared)
