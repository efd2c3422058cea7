"""Outputs that are large on all samples are kept at some positions; what is not finite is still seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import load
from onnx import numpy_helper

import onnxprune
from onnxprune.data.dataset import load_data
from onnxprune.evaluation import compare
from onnxprune.graph.model import inputs_of
from onnxprune.metrics.outputs import compare_outputs
from onnxprune.pipeline import reporting, run

SAMPLES, SIDE = 12, 32


def segmenter(scale: float) -> onnx.ModelProto:
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        m (float[N, 3, 32, 32] x) => (float[N, 5, 32, 32] y, float[N, 5] z) {
            y = Conv <pads = [1, 1, 1, 1]> (x, w)
            g = GlobalAveragePool (y)
            z = Flatten (g)
        }""")
    weight = np.random.default_rng(0).normal(size=(5, 3, 3, 3)) + scale
    proto.graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), "w"))
    return proto


@pytest.mark.parametrize("kept", [10**9, 100_000, 10_000])
def test_figures_of_thinned_maps(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [load(segmenter(scale)) for scale in (0, 0.2)]
    data = load_data(
        np.random.default_rng(1).normal(size=(SAMPLES, 3, SIDE, SIDE)).astype(np.float32), inputs_of(models[0])
    )
    whole = [compare.predict(compare.runner(m.session(), "m"), data, 4, m.signature) for m in models]
    monkeypatch.setattr(compare, "KEPT_BYTES", kept)
    few = [compare.predict(compare.runner(m.session(), "m"), data, 4, m.signature) for m in models]
    for outputs, complete in zip(few, whole, strict=True):
        assert len(outputs[0]) == SAMPLES
        assert outputs[0].nbytes <= 2 * kept
        np.testing.assert_array_equal(outputs[1], complete[1])
    first, second = (compare_outputs(a[:1], b[:1], classes=False) for a, b in (whole, few))
    assert first["explained"] == pytest.approx(second["explained"], abs=1.0)


def test_a_number_that_is_not_finite_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(segmenter(0))
    images = np.zeros((SAMPLES, 3, SIDE, SIDE), np.float32)
    images[5, 0, 17, 19] = np.float32(3e38)
    monkeypatch.setattr(compare, "KEPT_BYTES", 10_000)
    weights = model.graph.nodes[0].inputs[1]
    weights.values = weights.values * np.float32(1e3)
    found, _ = compare.predict(
        compare.runner(model.session(), "m"), load_data(images, inputs_of(model)), 4, model.signature
    )
    assert not np.isfinite(found[5]).all()
    assert np.isfinite(np.delete(found, 5, axis=0)).all()


def test_runs_of_an_evaluation_fit_into_memory(
    tiny_path: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def figures() -> dict[str, float]:
        found = onnxprune.prune(
            tiny_path, data=images, reduce={"flops": 0.4}, repair="none", scope="global", latency=False
        )
        return found.report.fidelity

    sizes: list[int] = []
    original = reporting.compare

    def spy(*given: Any) -> Any:
        sizes.append(given[4].eval_batch)
        return original(*given)

    monkeypatch.setattr(reporting, "compare", spy)
    whole = figures()
    monkeypatch.setattr(run, "EVALUATION_BYTES", 1)
    assert figures() == pytest.approx(whole, rel=1e-4)
    assert sizes == [64, 1]


def test_texts_are_decoded_from_whole_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task is found on whole outputs, on fewer samples where these are large: thinned classes fit no characters."""
    proto = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        m (float[N, 6, 4] x) => (float[N, 6, 40] y) { y = MatMul (x, w) }""")
    weight = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    (tmp_path / "characters.txt").write_text("\n".join(chr(0x4E00 + k) for k in range(39)), encoding="utf-8")
    texts = np.array(["\u4e00\u4e01"] * SAMPLES)
    np.savez(tmp_path / "data.npz", x=np.ones((SAMPLES, 6, 4), np.float32), labels=texts)
    monkeypatch.setattr(compare, "KEPT_BYTES", 3 * 6 * 40 * 4)
    verdict = onnxprune.check(
        tmp_path / "m.onnx",
        data=tmp_path / "data.npz",
        task="ctc",
        characters=tmp_path / "characters.txt",
        limits=onnxprune.GateLimits(max={"cer": 1000.0}),
        latency=False,
    )
    assert next(check for check in verdict.checks if "character error rate" in check.name).passed
