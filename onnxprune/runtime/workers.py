"""Run independent jobs in this process, in several, or on a Dask cluster, with the same results."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

from onnxprune.errors import OptionError, first_line
from onnxprune.runtime import worker_lifetime

T = TypeVar("T")
ATTEMPTS = 3
"""Times that a job is handed out before the loss of its worker is an error."""


def run(
    function: Callable[[T], Any],
    jobs: Sequence[T],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    done: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """Call a function once for each job and return the results in the order of the jobs.

    Args:
        function: defined at the top level of a module; an exception in it ends the run.
        jobs: arguments of the function; they and the results can be pickled.
        workers: number of processes; 1: this one.
        scheduler: address of a Dask scheduler, used in place of `workers`; its workers have onnxprune installed and see the same files.
        done: called with the number and the result of each job when it is done.

    Raises:
        OptionError: Dask is not installed, or does not answer.
    """
    results: dict[int, Any] = {}
    with contextlib.ExitStack() as scope:
        here = scheduler is None and (workers == 1 or len(jobs) < 2)
        parallel = _serial if here else scope.enter_context(_backend(workers, scheduler))
        for attempt in range(1, ATTEMPTS + 1):
            left = [(number, job) for number, job in enumerate(jobs) if number not in results]
            try:
                with contextlib.closing(parallel(function, left)) as found:
                    for number, result in found:
                        results[number] = result
                        if done:
                            done(number, result)
                break
            except Exception as error:
                if attempt == ATTEMPTS or type(error).__name__ not in LOST:
                    raise
    return [results[number] for number in range(len(jobs))]


LOST = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker")
"""Names of the exceptions of joblib and Dask where a worker is lost."""
Parallel = Callable[[Callable[[Any], Any], Sequence[tuple[int, Any]]], Generator[tuple[int, Any], None, None]]


def _serial(function: Callable[[Any], Any], jobs: Sequence[tuple[int, Any]]) -> Generator[tuple[int, Any], None, None]:
    return ((number, function(job)) for number, job in jobs)


@contextlib.contextmanager
def _backend(workers: int, scheduler: str | None) -> Iterator[Parallel]:
    import joblib

    if scheduler is None:
        yield functools.partial(_processes, workers)
        return

    def parallel(
        function: Callable[[Any], Any], jobs: Sequence[tuple[int, Any]]
    ) -> Generator[tuple[int, Any], None, None]:
        runner = joblib.Parallel(n_jobs=len(jobs), **HANDED_OUT)
        yield from runner(joblib.delayed(_numbered)(function, number, job) for number, job in jobs)

    try:
        from distributed import Client
    except ImportError as error:
        raise OptionError("--scheduler needs Dask", hint="pip install 'onnxprune[dask]'") from error
    try:
        client = Client(scheduler, timeout="5s", set_as_default=True)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {scheduler}",
            why=first_line(error),
            hint="start one with `dask scheduler`",
        ) from error
    try:
        with joblib.parallel_config(backend="dask"):
            yield parallel
    finally:
        client.close()  # type: ignore[no-untyped-call]


HANDED_OUT = {"return_as": "generator_unordered", "batch_size": 1, "pre_dispatch": "all"}
"""How joblib hands out jobs: all at once, one by one, results as they come."""


def _processes(
    workers: int, function: Callable[[Any], Any], jobs: Sequence[tuple[int, Any]]
) -> Generator[tuple[int, Any], None, None]:
    """Yield the results from processes of this machine, which end with this one."""
    import joblib
    from joblib.parallel import LokyBackend

    class Ending(LokyBackend):  # type: ignore[misc]
        """Let jobs delete their files before their processes are killed."""

        def abort_everything(self, ensure_ready: bool = True) -> None:
            crew.stop()
            super().abort_everything(ensure_ready=False)  # new workers at once would outlive the run, with their locks

    with worker_lifetime.crew() as crew:
        runner = joblib.Parallel(n_jobs=workers, backend=Ending(inner_max_num_threads=1), **HANDED_OUT)
        yield from runner(joblib.delayed(_watched)(crew, function, number, job) for number, job in jobs)


def _watched(crew: worker_lifetime.Crew, function: Callable[[Any], Any], number: int, job: Any) -> tuple[int, Any]:
    with worker_lifetime.job(crew):
        return number, function(job)


def _numbered(function: Callable[[Any], Any], number: int, job: Any) -> tuple[int, Any]:
    return number, function(job)
