"""Run independent jobs: here, on several processors, or on a Dask cluster, with the same results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from onnxprune.errors import OptionError

T = TypeVar("T")
ATTEMPTS = 3
"""How often jobs are handed out again whose worker was lost."""


def run(
    function: Callable[[T], Any],
    jobs: Sequence[T],
    *,
    workers: int = 1,
    scheduler: str | None = None,
    done: Callable[[int, Any], None] | None = None,
) -> list[Any]:
    """Call a function once for each job.

    Args:
        function: at the top level of a module, so that another process finds it. What it raises ends the run.
        jobs: its arguments; they and the results can be pickled.
        workers: processes; 1: this one.
        scheduler: address of a Dask scheduler whose workers have onnxprune installed and see the same files; `workers` then has no say.
        done: called with the number of a job and its result, as they come.

    Returns:
        The results, in the order of the jobs.

    Raises:
        OptionError: Dask is not installed, or does not answer.
    """
    results: dict[int, Any] = {}

    def take(number: int, result: Any) -> None:
        results[number] = result
        if done:
            done(number, result)

    if scheduler is None and (workers == 1 or len(jobs) < 2):
        for number, job in enumerate(jobs):
            take(number, function(job))
        return [results[number] for number in range(len(jobs))]
    with _backend(workers, scheduler) as parallel:
        for attempt in range(1, ATTEMPTS + 1):
            left = [number for number in range(len(jobs)) if number not in results]
            try:
                for number, result in parallel(function, [(number, jobs[number]) for number in left]):
                    take(number, result)
                break
            except Exception as error:
                if attempt == ATTEMPTS or type(error).__name__ not in LOST:
                    raise
    return [results[number] for number in range(len(jobs))]


LOST = ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker")
"""What joblib and Dask raise when a worker is gone."""
Parallel = Callable[[Callable[[Any], Any], Sequence[tuple[int, Any]]], Iterator[tuple[int, Any]]]


@contextlib.contextmanager
def _backend(workers: int, scheduler: str | None) -> Iterator[Parallel]:
    import joblib

    def parallel(function: Callable[[Any], Any], jobs: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        count = len(jobs) if scheduler else workers
        runner = joblib.Parallel(n_jobs=count, return_as="generator_unordered", batch_size=1, pre_dispatch="all")
        yield from runner(joblib.delayed(_numbered)(function, number, job) for number, job in jobs)

    if scheduler is None:
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1):
            yield parallel
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise OptionError("--scheduler needs Dask", hint="pip install 'onnxprune[dask]'") from error
    try:
        client = Client(scheduler, timeout="5s", set_as_default=True)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {scheduler}",
            why=str(error).splitlines()[0][:200],
            hint="start one with `dask scheduler`",
        ) from error
    try:
        with joblib.parallel_config(backend="dask"):
            yield parallel
    finally:
        client.close()  # type: ignore[no-untyped-call]


def _numbered(function: Callable[[Any], Any], number: int, job: Any) -> tuple[int, Any]:
    return number, function(job)
