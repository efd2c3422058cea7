"""Fixtures that several tests share: the reference models, a tiny model, and the command line in this process."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper, numpy_helper
from reports import PLAN, made_report
from threadpoolctl import threadpool_limits

from onnxprune.allocation import channel_multiple
from onnxprune.cli import main
from onnxprune.report import saving
from onnxprune.runtime import process_memory
from onnxprune.runtime.session import Feeds, SessionConfig

Run = Callable[..., Result]


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep what is measured out of the user's cache, and channels in multiples of 8 whatever the machine computes at once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXPRUNE_CACHE", str(folder))
        channel_multiple.remember(8)
        yield folder


@pytest.fixture(autouse=True)
def no_layer_times(cache: Path) -> Iterator[None]:
    """Keep no times of layers from one test to the next: some tests make them up, and would decide what others choose."""
    yield
    for path in cache.glob("layers-*.json"):
        path.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def one_thread_per_worker() -> Iterator[None]:
    """Let sessions of parallel test workers use one thread each, unless they ask for a number; linear algebra and torch as well."""
    plain = onnxruntime.InferenceSession

    def opened(source: Any, sess_options: Any = None, *more: Any, **how: Any) -> Any:
        if sess_options is not None and not sess_options.intra_op_num_threads:
            sess_options.intra_op_num_threads = 1
        return plain(source, sess_options, *more, **how)

    with pytest.MonkeyPatch.context() as patch:
        if "PYTEST_XDIST_WORKER" not in os.environ:
            yield
            return
        patch.setattr(onnxruntime, "InferenceSession", opened)
        patch.setenv("OMP_NUM_THREADS", "1")  # of torch, which is imported later
        with threadpool_limits(1):
            yield


@pytest.fixture(scope="session", autouse=True)
def peak_memory_once() -> Iterator[None]:
    """Measure the peak memory of equal files with equal inputs once: each measurement starts a process."""
    measured: dict[object, int | None] = {}
    plain = process_memory.measure

    def measure(path: str | os.PathLike[str], feeds: Feeds, config: SessionConfig) -> int | None:
        content = Path(path).read_bytes() if Path(path).is_file() else b""
        if not content or b"external" in content or b"location" in content:
            return plain(path, feeds, config)
        shapes = [(name, value.shape, value.dtype.str) for name, value in feeds.items()]
        key = (hashlib.sha256(content).digest(), repr((shapes, config)))
        if key not in measured:
            measured[key] = plain(path, feeds, config)
        return measured[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_memory, "measure", measure)
        yield


@pytest.fixture(scope="session")
def models() -> Path:
    return Path(__file__).parent.parent / "models"


@pytest.fixture
def tiny() -> onnx.ModelProto:
    """Return a new classifier: input "x" (n, 3, 8, 8), two Conv of 16 filters, output "y" (n, 4)."""
    rng = np.random.default_rng(17)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "conv1", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], "conv2", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"], "relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "head", transB=1),
    ]
    shapes = {"w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 16, 3, 3), "b2": (16,), "w3": (4, 16), "b3": (4,)}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name) for name, shape in shapes.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def tiny_path(tiny: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny.SerializeToString())
    return path


@pytest.fixture
def images() -> np.ndarray:
    """Return eight samples for the tiny model, which it puts into different classes."""
    rng = np.random.default_rng(1)
    return (rng.normal(size=(8, 3, 8, 8)) + 3 * rng.normal(size=(8, 3, 1, 1))).astype(np.float32)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    """Return a file with 64 samples for the tiny model; no labels."""
    rng = np.random.default_rng(5)
    path = tmp_path / "samples.npz"
    np.savez(path, x=(rng.normal(size=(64, 3, 8, 8)) + 2 * rng.normal(size=(64, 3, 1, 1))).astype(np.float32))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Return the folder that results are written to; empty."""
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report as a page, with everything that may be in one."""
    pytest.importorskip("bokeh")
    path = tmp_path_factory.mktemp("page") / "report.html"
    saving.save(path, made_report(20), "onnxprune prune 'a <model>.onnx'", PLAN)
    return path


@pytest.fixture
def run() -> Run:
    """Return a function that runs the command line in this process; warnings are errors."""

    def invoke(*args: object) -> Result:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("error", UserWarning)
            return CliRunner().invoke(main, [str(arg) for arg in args])

    return invoke


@pytest.fixture
def refused(run: Run, out: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs a command which must end in one clear message and leave `out` as it was.

    The message must hold every text of `says`, and tell what to do; nothing is on stdout, unless the result is `shown` all the same.
    """

    def invoke(*args: object, says: str | tuple[str, ...], code: int = 1, shown: bool = False) -> Result:
        before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
        capfd.readouterr()
        result = run(*args)
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        assert "defect" not in result.stderr
        assert len(re.findall(r"^error:", result.stderr, re.MULTILINE | re.IGNORECASE)) == 1
        for text in (says,) if isinstance(says, str) else says:
            assert text in result.stderr
        if result.stderr.startswith("error:"):  # a message of onnxprune, not of click
            assert "\n  do:    " in result.stderr
            assert len(result.stderr.splitlines()) <= 5
            assert code != 1 or "\n  where: " in result.stderr or "\n  why:   " in result.stderr
        assert bool(result.stdout) == shown
        assert capfd.readouterr() == ("", "")  # nothing from the libraries
        assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
        return result

    return invoke
