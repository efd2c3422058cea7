"""Times that were measured elsewhere: latency tables, profiles of onnxruntime and of TensorRT, CSV."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

import onnxprune
from onnxprune.errors import LatencyError, OptionError
from onnxprune.runtime import profile_files
from onnxprune.runtime.providers import CPU_PROVIDER
from onnxprune.runtime.session import random_feeds


def profiled(path: Path, folder: Path, runs: int) -> Path:
    """Return the profile that onnxruntime itself writes of a model."""
    options = ort.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "p")
    options.intra_op_num_threads = 1
    opened = ort.InferenceSession(str(path), options, providers=[CPU_PROVIDER])
    proto = onnx.load(path)
    shape = tuple(d.dim_value or 1 for d in proto.graph.input[0].type.tensor_type.shape.dim)
    feeds = random_feeds(proto, {proto.graph.input[0].name: shape}, 0)
    for _ in range(runs):
        opened.run(None, feeds)
    return Path(opened.end_profiling())


@pytest.mark.parametrize("runs", [1, 9])
def test_a_profile_of_onnxruntime(runs: int, models: Path, tmp_path: Path) -> None:
    for path in (models / "resnet.onnx", models / "mobile.onnx"):
        found = profile_files.read(profiled(path, tmp_path, runs), onnx.load(path))
        assert found.kind == "onnxruntime profile"
        assert (found.provider, found.runs.shape) == (CPU_PROVIDER, (max(1, runs - 1),))
        heavy = [kernel for kernel in found.kernels if kernel.op in ("Conv", "Gemm", "FusedConv", "MatMul")]
        assert heavy
        assert all(kernel.node is not None for kernel in heavy)
        nodes = [onnx.load(path).graph.node[kernel.node].op_type for kernel in heavy if kernel.node is not None]
        assert set(nodes) <= {"Conv", "Gemm", "MatMul", "Relu", "Clip"}


def names_of(path: Path) -> list[str]:
    return [node.name for node in onnx.load(path).graph.node]


def test_a_csv(tiny_path: Path, tmp_path: Path) -> None:
    (first, second, *_), proto = names_of(tiny_path), onnx.load(tiny_path)
    output = proto.graph.node[2].output[0]
    for header in ("node,microseconds\n", ""):
        (tmp_path / "t.csv").write_text(f"{header}{first},20\n{second},5.5\n\n{output},1\nelsewhere,3\n")
        found = onnxprune.bench(tiny_path, profile_on=tmp_path / "t.csv").report
        assert found.latency.a == pytest.approx(29.5e-3)
        assert [(layer.name, layer.a) for layer in found.layers[:2]] == [(first, 20), (second, 5.5)]
        assert {"(elsewhere, no node of the model)"} < {layer.name for layer in found.layers}
        assert found.source == f"CSV {tmp_path / 't.csv'}"


def test_a_profile_of_trtexec(tiny_path: Path, tmp_path: Path) -> None:
    first, second, third, *_ = names_of(tiny_path)
    rows = [
        {"count": 100},
        {"name": f"{first} + {second}", "timeMs": 4.0, "averageMs": 0.04, "medianMs": 0.04, "percentage": 80},
        {"name": f"PWN({third})", "timeMs": 1.0, "averageMs": 0.01, "medianMs": 0.01, "percentage": 20},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    found = onnxprune.bench(tiny_path, profile_on=tmp_path / "t.json").report
    assert [(layer.name, layer.a) for layer in found.layers] == [(first, 40), (third, 10)]
    assert found.latency.provider == "TensorrtExecutionProvider"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "names no node"),
        ("a,1\nb,2\n", "names no node"),
        ("a,1\nb,much\n", "no profile that can be read"),
        ("a\n", "no profile that can be read"),
        ("a,-1\n", "no profile that can be read"),
        ("[", "no profile that can be read"),
        ("[]", "no profile that can be read"),
        ("[1, 2]", "no profile that can be read"),
        ('[{"count": 1e999}, {"name": "conv1", "averageMs": 1}]', "no profile that can be read"),
        ('[{"cat": "Node", "name": "a_kernel_time", "dur": 1, "args": {"op_name": "Conv"}}]', "no profile that can be"),
        ("{}", "no profile that can be read"),
        ('{"schema": "onnxprune.latency/0"}', "no latency table"),
    ],
)
def test_files_that_hold_no_times(text: str, what: str, tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(text)
    with pytest.raises(LatencyError, match=what):
        onnxprune.bench(tiny_path, profile_on=tmp_path / "t")
    with pytest.raises(LatencyError, match="cannot be read"):
        onnxprune.bench(tiny_path, profile_on=tmp_path / "gone")


def test_a_latency_table(tiny_path: Path, tmp_path: Path, models: Path) -> None:
    onnxprune.bench(tiny_path, latency_table=tmp_path / "t.json", runs=10)
    found = onnxprune.bench(tiny_path, profile_on=tmp_path / "t.json", latency_table=tmp_path / "again.json")
    assert sum(layer.a or 0 for layer in found.report.layers) == pytest.approx(1e3 * found.report.latency.a)
    assert found.report.latency.a > 0
    assert (tmp_path / "again.json").read_text() == (tmp_path / "t.json").read_text()
    with pytest.raises(LatencyError, match="of another model"):
        onnxprune.bench(models / "small.onnx", profile_on=tmp_path / "t.json")
    with pytest.raises(OptionError, match="times of one model"):
        onnxprune.bench(tiny_path, tiny_path, profile_on=tmp_path / "t.json")


def test_no_table_follows_from_a_single_profile(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{names_of(tiny_path)[0]},20\n")
    with pytest.raises(OptionError, match="no latency table follows from a single profile"):
        onnxprune.bench(tiny_path, profile_on=tmp_path / "t.csv", latency_table=tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
