"""Distribution: parts of a computation on other processes, by Dask or joblib.

`LABUTILS_SCHEDULER` names the address of a Dask scheduler, such as `tcp://host:8786`; `training.fit` then sends parts
of its stacks to its workers. Without, they go to processes of this machine if joblib is told so, as by `with
joblib.parallel_config(n_jobs=4):`. Workers need the same code and packages as this process. The numbers stay the same,
bit for bit with the same kind of processor and number of threads a computation (`OMP_NUM_THREADS=1`, and `dask worker
ADDRESS --nthreads 1`, is best: one task uses one core).
"""

from __future__ import annotations

import atexit
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import joblib
from tqdm.auto import tqdm

from labutils import identity

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


def wanted() -> bool:
    """Whether parts of a computation go to other processes.

    Example:
        >>> with joblib.parallel_config(n_jobs=2):
        ...     wanted()
        True
    """
    return scheduler() is not None or joblib.parallel.get_active_backend()[1] not in (None, 1)


def run(
    function: Callable[[Any, Any], Any], tasks: Sequence[Any], shared: Any, *, progress: bool = False
) -> Iterator[tuple[int, Any]]:
    """Compute `function(task, shared)` for every task on other processes.

    A task whose worker died is computed again by another. What a task raises is raised here.

    Args:
        function: a function of a module of labutils.
        tasks: what differs from task to task.
        shared: what all tasks get, such as the data; it is sent to a worker once.

    Yields:
        The number of a task, from 0, and its result, in the order in which they are done.

    Raises:
        ConnectionError: no scheduler answers at the address, or it has no worker.
        RuntimeError: workers with other code or packages; a task whose workers died again and again.

    Example:
        >>> list(run(max, [], 0))  # without tasks nobody is asked
        []
    """
    if not tasks:
        return
    calls = [functools.partial(_call, function, n, task) for n, task in enumerate(tasks)]
    address = scheduler()
    results = _on_workers(address, calls, shared) if address else _on_this_machine(calls, shared)
    try:
        yield from tqdm(results, total=len(tasks), unit="part", disable=not progress, leave=False)
    except Exception as error:
        if type(error).__name__ not in ("KilledWorker", "TerminatedWorkerError"):
            raise
        raise RuntimeError(
            "a part of the computation was given up, as every worker that took it died: is there enough memory?"
        ) from error
    finally:
        results.close()  # what nobody waits for any more is cancelled


def _on_this_machine(calls: Sequence[Callable[[Any], Any]], shared: Any) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input task iterator", category=UserWarning)
        yield from joblib.Parallel(return_as="generator_unordered")(joblib.delayed(call)(shared) for call in calls)


def _on_workers(address: str, calls: Sequence[Callable[[Any], Any]], shared: Any) -> Iterator[Any]:
    from distributed import as_completed

    client = _client(address)
    _check_workers(client)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sending large graph", category=UserWarning)
        # The data is the result of a task, which the scheduler gives to another worker when the one that held it dies.
        # Scattered data would be lost: Dask keeps one copy of it, however many workers it was sent to.
        data = client.submit(functools.partial(_itself, shared), pure=False)
        futures = [client.submit(call, data, pure=False) for call in calls]
    try:
        for _, result in as_completed(futures, loop=client.loop, with_results=True):
            yield result
    finally:
        client.cancel(futures)


def _itself(shared: Any) -> Any:
    return shared


def _call(function: Callable[[Any, Any], Any], number: int, task: Any, shared: Any) -> tuple[int, Any]:
    return number, function(task, shared)


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
    """Refuse a scheduler without workers, and workers whose numbers would not be ours."""
    try:
        client.wait_for_workers(1, timeout=_PATIENCE)
    except TimeoutError as error:
        raise ConnectionError(
            f"the scheduler at {scheduler()} has no worker: start some, as by `dask worker {scheduler()} --nthreads 1`"
        ) from error
    for worker, found in client.run(identity.of_this_process, on_error="return").items():
        if isinstance(found, Exception):
            raise RuntimeError(f"the worker {worker} has no labutils, or an older one: install it there") from found
        if differences := identity.differences(identity.of_this_process(), found):
            raise RuntimeError(f"the worker {worker} has {', '.join(differences)}: install the same there as here")
