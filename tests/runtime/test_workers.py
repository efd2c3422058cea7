"""Independent jobs on several processes and on a Dask cluster: the same results, also where workers are lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from onnxprune.errors import OptionError
from onnxprune.runtime import workers


def square(number: int) -> int:
    return number * number


def dies_once(job: tuple[str, int]) -> int:
    """Kill the process at the first call for the job 2; leave a mark, so that the next one lives."""
    folder, number = job
    mark = Path(folder) / "died"
    if number == 2 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fails(number: int) -> int:
    raise ValueError(f"no {number}")


@pytest.mark.parametrize("count", [1, 2])
def test_results_come_in_order(count: int) -> None:
    told = {}
    found = workers.run(square, range(7), workers=count, done=told.__setitem__)
    assert found == [n * n for n in range(7)]
    assert told == dict(enumerate(found))


def test_lost_workers_are_replaced(tmp_path: Path) -> None:
    assert workers.run(dies_once, [(str(tmp_path), n) for n in range(5)], workers=2) == list(range(5))
    assert (tmp_path / "died").exists()


@pytest.mark.parametrize("count", [1, 2])
def test_errors_come_through(count: int) -> None:
    with pytest.raises(ValueError, match="no "):
        workers.run(fails, [1, 2], workers=count)


def test_dask_with_a_worker_that_dies(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, scheduler_port=0, silence_logs=50
    ) as cluster:
        jobs = [(str(tmp_path), n) for n in range(6)]
        assert workers.run(dies_once, jobs, scheduler=cluster.scheduler_address) == list(range(6))
    assert (tmp_path / "died").exists()


def test_no_scheduler_there() -> None:
    pytest.importorskip("distributed")
    with pytest.raises(OptionError, match="no Dask scheduler"):
        workers.run(square, [1, 2], scheduler="tcp://127.0.0.1:1")
