"""Execution providers: their names, no silent fall-back, tables of one provider; on OpenVINO where it is, else on a stand-in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import onnxprune
from onnxprune.allocation import latency_model
from onnxprune.errors import LatencyError, ModelError, OptionError
from onnxprune.evaluation.benchmark import BenchmarkConfig
from onnxprune.runtime import session as sessions
from onnxprune.runtime.providers import (
    CPU_PROVIDER,
    OPENVINO_PROVIDER,
    PROVIDERS,
    normal_provider,
    package_of,
    parse_provider,
    short_name,
)
from onnxprune.runtime.session import NO_FALLBACK, REFUSED, SessionConfig, open_session, run_batch

REAL = OPENVINO_PROVIDER in ort.get_available_providers()
on_openvino = pytest.mark.skipif(not REAL, reason="onnxruntime-openvino is not installed")
FEW = {"runs": 12, "warmup": 1}


def test_openvino_is_here_where_it_must_be() -> None:
    assert REAL or os.environ.get("ONNXPRUNE_PROVIDER") != "OpenVINO"


# -------------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cpu", "CPUExecutionProvider"),
        ("CPUExecutionProvider", "CPUExecutionProvider"),
        ("openvino", "OpenVINOExecutionProvider"),
        ("openvinoexecutionprovider", "OpenVINOExecutionProvider"),
        ("cuda, device_id = 1", "CUDAExecutionProvider,device_id=1"),
        ("TensorRT,trt_fp16_enable=1", "TensorrtExecutionProvider,trt_fp16_enable=1"),
        ("tensorrtexecutionprovider", "TensorrtExecutionProvider"),
        ("DirectML", "DmlExecutionProvider"),
        ("DmlExecutionProvider", "DmlExecutionProvider"),
        ("coreml", "CoreMLExecutionProvider"),
        ("QNN,backend_path=C:\\QnnHtp.dll", "QNNExecutionProvider,backend_path=C:\\QnnHtp.dll"),
        ("OpenVINO,device_type=HETERO:GPU,CPU", "OpenVINOExecutionProvider,device_type=HETERO:GPU,CPU"),
        ("MIGraphX", "MIGraphXExecutionProvider"),
        ("OpenVINO,cache_dir=", "OpenVINOExecutionProvider,cache_dir="),
    ],
)
def test_names_of_providers(text: str, expected: str) -> None:
    assert normal_provider(text) == expected
    assert normal_provider(expected) == expected
    assert normal_provider(short_name(text)) == expected
    assert BenchmarkConfig(provider=text).provider == expected
    assert BenchmarkConfig(provider=text).session.label == expected


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has no name"),
        (",a=1", "has no name"),
        ("ExecutionProvider", "has no name"),
        ("device_type=CPU", "has no name"),
        ("CUDA,fast", "cannot be read"),
        ("CUDA,=1", "cannot be read"),
        ("CUDA,a=1,a=2", "cannot be read"),
        ("CUDA,", "cannot be read"),
        ("CPU,a=1", "has no options"),
        ("OpenVINO,num_of_threads=4", "sets num_of_threads"),
    ],
)
def test_texts_that_are_no_provider(text: str, what: str) -> None:
    with pytest.raises(OptionError, match=what):
        parse_provider(text)
    with pytest.raises(OptionError, match=what):
        BenchmarkConfig(provider=text)


def test_a_config_survives_json() -> None:
    config = BenchmarkConfig(provider="OpenVINO,device_type=CPU", fallback=True, threads=2).session
    assert SessionConfig(**json.loads(json.dumps(vars(config)))) == config
    assert hash(config)
    assert (config.provider, config.options) == (OPENVINO_PROVIDER, (("device_type", "CPU"),))


# ----------------------------------------------------------------------------------------------------------- a stand-in


class StandIn:
    """Sessions of any provider: onnxruntime's on the CPU, and a record of what was asked for."""

    def __init__(self, names: tuple[str, ...], *, left: bool = False, absent: bool = False) -> None:
        self.names, self.left, self.absent = names, left, absent
        self.opened: list[tuple[list[tuple[str, dict[str, str]]], bool]] = []
        self.plain = ort.InferenceSession

    def open(self, source: Any, options: Any = None, providers: Any = (), **how: Any) -> Any:
        try:
            strict = options.get_session_config_entry(NO_FALLBACK) == "1"
        except RuntimeError:  # there is no such entry
            strict = False
        self.opened.append((list(providers), strict))
        if strict and (self.left or self.absent):
            raise RuntimeError(f"[ONNXRuntimeError] : 1 : FAIL : This session has nodes on the CPU, but {REFUSED}.")
        if strict:
            options.add_session_config_entry(NO_FALLBACK, "0")
        made = self.plain(source, options, providers=[CPU_PROVIDER], **how)
        asked = [] if self.absent else [name for name, _ in providers]
        made.get_providers = lambda: [*asked, CPU_PROVIDER]
        return made


def stand_in(monkeypatch: pytest.MonkeyPatch, *names: str, **how: bool) -> StandIn:
    found = StandIn(names, **how)
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: [*names, CPU_PROVIDER])
    monkeypatch.setattr(sessions.ort, "InferenceSession", found.open)
    return found


@pytest.mark.parametrize("short", [name for name in PROVIDERS if name != "CPU"])
def test_a_provider_that_is_not_there_says_what_to_install(
    short: str, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: [CPU_PROVIDER])
    name = normal_provider(short)
    with pytest.raises(ModelError, match=f"has no {name} here") as error:
        open_session(str(tiny_path), SessionConfig(short, fallback=True))
    assert f"install {package_of(name)}" in error.value.hint


@pytest.mark.parametrize("short", [name for name in PROVIDERS if name != "CPU"])
def test_options_and_the_refusal_of_fall_back_reach_onnxruntime(
    short: str, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = normal_provider(short)
    found = stand_in(monkeypatch, name)
    open_session(str(tiny_path), SessionConfig(f"{short},key=value"))
    open_session(str(tiny_path), SessionConfig(f"{short},key=value", fallback=True))
    assert found.opened == [([(name, {"key": "value"})], True), ([(name, {"key": "value"})], False)]


def test_the_cpu_is_asked_for_without_a_refusal(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stand_in(monkeypatch)
    open_session(str(tiny_path))
    assert found.opened == [([(CPU_PROVIDER, {})], False)]


def test_threads_of_openvino(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = stand_in(monkeypatch, OPENVINO_PROVIDER)
    for threads in (2, 0):
        open_session(str(tiny_path), SessionConfig("OpenVINO,device_type=CPU", threads=threads))
    options = [options for [(_, options)], _ in found.opened]
    assert options == [{"device_type": "CPU", "num_of_threads": "2"}, {"device_type": "CPU"}]


@pytest.mark.parametrize(("fallback", "names"), [(True, ["Tensorrt", "CUDA"]), (False, ["Tensorrt"])])
def test_tensorrt_leaves_nodes_to_cuda(
    fallback: bool, names: list[str], tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [f"{name}ExecutionProvider" for name in ("Tensorrt", "CUDA")]
    found = stand_in(monkeypatch, *full)
    open_session(str(tiny_path), SessionConfig("TensorRT", fallback=fallback))
    assert [name.removesuffix("ExecutionProvider") for name, _ in found.opened[0][0]] == names


def test_nodes_that_a_provider_leaves_are_an_error(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "CUDAExecutionProvider", left=True)
    with pytest.raises(ModelError, match="CUDA does not run all of the model") as error:
        open_session(str(tiny_path), SessionConfig("CUDA"), where="m.onnx")
    assert "--allow-fallback" in error.value.hint
    assert error.value.where == "m.onnx"
    open_session(str(tiny_path), SessionConfig("CUDA", fallback=True))


@pytest.mark.parametrize("fallback", [True, False])
def test_a_provider_that_cannot_be_set_up_is_an_error(
    fallback: bool, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "CUDAExecutionProvider", absent=True)
    with pytest.raises(ModelError, match="CUDA is in this onnxruntime, but cannot be set up"):
        open_session(str(tiny_path), SessionConfig("CUDA", fallback=fallback))


def test_what_runs_on_the_provider_and_what_on_the_cpu(
    tiny_path: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timing and judging run on it; tracing, calibration, proof and repair on the CPU."""
    found = stand_in(monkeypatch, OPENVINO_PROVIDER)
    monkeypatch.setattr("onnxprune.evaluation.never_slower.RESOLUTION", 1.0)
    common: dict[str, Any] = {"provider": "OpenVINO", **FEW}

    def asked() -> set[str]:
        names = {name for providers, _ in found.opened for name, _ in providers}
        found.opened.clear()
        return names

    onnxprune.bench(tiny_path, **common)
    assert asked() == {OPENVINO_PROVIDER}
    result = onnxprune.prune(tiny_path, data=samples, reduce={"flops": 0.4}, round_to=1, **common)
    assert asked() == {OPENVINO_PROVIDER, CPU_PROVIDER}
    assert result.report.latency.provider == OPENVINO_PROVIDER
    result.save(tmp_path / "s.onnx")
    onnxprune.plan(tiny_path, data=samples, reduce={"flops": 0.4}, round_to=1, **common)
    assert asked() == {CPU_PROVIDER}
    onnxprune.sensitivity(tiny_path, data=samples, augment=(), provider="OpenVINO")
    assert asked() == {OPENVINO_PROVIDER, CPU_PROVIDER}
    onnxprune.sensitivity(tiny_path, data=samples, augment=())
    assert asked() == {CPU_PROVIDER}
    verdict = onnxprune.check(tmp_path / "s.onnx", tiny_path, providers=["openvino,device_type=CPU", "CPU"], **FEW)
    assert [check.name for check in verdict.checks if check.name.startswith("loads")] == [
        "loads on OpenVINO,device_type=CPU",
        "loads on CPU",
    ]


def test_a_table_is_of_one_provider(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, OPENVINO_PROVIDER)
    onnxprune.bench(tiny_path, latency_table=tmp_path / "t.json", provider="OpenVINO,device_type=CPU", **FEW)
    table = latency_model.read(tmp_path / "t.json")
    assert table.environment.provider == "OpenVINOExecutionProvider,device_type=CPU"
    asked: dict[str, Any] = {"limit": {"latency": 100.0}, "repair": "none", "latency_table": tmp_path / "t.json", **FEW}
    for provider in ("CPU", "OpenVINO", "OpenVINO,device_type=GPU"):
        with pytest.raises(LatencyError, match="of another execution provider") as error:
            onnxprune.plan(tiny_path, provider=provider, **asked)
        assert "OpenVINO,device_type=CPU" in error.value.why
    onnxprune.plan(tiny_path, provider="openvino,device_type=CPU", round_to=1, **asked)


# ----------------------------------------------------------------------------------------------------------- on OpenVINO


def unsupported(x: tuple[int, ...] = (1, 4)) -> onnx.ModelProto:
    """Return a model with an operator that OpenVINO does not take."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Unique", ["a"], ["b"]),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in (("x", x), ("y", (None,)))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@on_openvino
def test_openvino_names_the_operators_that_it_leaves() -> None:
    with pytest.raises(ModelError, match="OpenVINO does not run all of the model") as error:
        open_session(unsupported(), SessionConfig("OpenVINO"))
    assert "Unique" in error.value.why
    found = open_session(unsupported(), SessionConfig("OpenVINO", fallback=True))
    assert run_batch(found, {"x": np.ones((1, 4), np.float32)})[0].tolist() == [1]


@on_openvino
@pytest.mark.parametrize("fallback", [True, False])
def test_openvino_without_the_device(fallback: bool, tiny_path: Path) -> None:
    with pytest.raises(ModelError, match=r"OpenVINO,device_type=NPU .*cannot be set up"):
        open_session(str(tiny_path), SessionConfig("OpenVINO,device_type=NPU", fallback=fallback))


@on_openvino
def test_openvino_refuses_options_that_it_does_not_know(tiny_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot load the model") as error:
        open_session(str(tiny_path), SessionConfig("OpenVINO,beauty=1"))
    assert "OpenVINO,beauty=1" in error.value.hint


@on_openvino
@pytest.mark.parametrize("name", ["resnet", "mobile"])
def test_openvino_computes_what_the_cpu_does(name: str, models: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(np.float32)
    feeds = {onnx.load(models / f"{name}.onnx").graph.input[0].name: x}
    opened = [open_session(str(models / f"{name}.onnx"), SessionConfig(p, threads=1)) for p in ("OpenVINO", "CPU")]
    ours, theirs = (run_batch(each, feeds)[0] for each in opened)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@on_openvino
def test_openvino_prunes_to_a_latency_and_passes_the_gate(models: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"provider": "OpenVINO", "runs": 60}
    timed = onnxprune.bench(models / "resnet.onnx", latency_table=tmp_path / "t.json", **common)
    assert [layer.op for layer in timed.report.layers] == ["subgraph"]
    assert timed.report.environment.provider == OPENVINO_PROVIDER
    assert timed.table is not None
    assert timed.table.error < 0.4
    result = onnxprune.prune(
        models / "resnet.onnx",
        data=models / "calibration.npz",
        preprocess=str(models / "28x28.toml"),
        reduce={"latency": 0.2},
        latency_table=tmp_path / "t.json",
        scope="global",
        samples=64,
        **common,
    )
    assert result.report.latency.speedup > 1
    result.save(tmp_path / "s.onnx")
    verdict = onnxprune.check(
        tmp_path / "s.onnx",
        models / "resnet.onnx",
        data=models / "evaluation.npz",
        preprocess=str(models / "28x28.toml"),
        limits=onnxprune.GateLimits(max_peak_memory=1e9),
        latency=False,
        **common,
    )
    assert verdict.verdict.integrity == "PASSED"
    assert "loads on OpenVINO" in [check.name for check in verdict.checks]
