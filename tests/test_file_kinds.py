"""Files that are given in place of another one are named, with what to do."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from onnxprune.file_kinds import ONNX, kind_of
from onnxprune.plan_file import SCHEMA

GRAPH = b"\x0a\x20\x0a\x05input\x12\x0bPlaceholder2\x00" + bytes(40)
MADE = {
    "lite.tflite": (b"\x1c\0\0\0TFL3" + bytes(40), ("TensorFlow Lite", "tf2onnx.convert --tflite")),
    "frozen.pb": (GRAPH, ("TensorFlow graph", "--graphdef")),
    "renamed.onnx": (GRAPH, ("TensorFlow graph", "--graphdef")),
    "saved_model.pb": (b"\x08\x01\x12\x20" + GRAPH, ("SavedModel", "--saved-model")),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(90), ("Keras", "model.export")),
    "w.safetensors": ((30).to_bytes(8, "little") + b'{"w":{"dtype":"F32"}}' + bytes(40), ("safetensors", "optimum-cli")),
    "net.engine": (b"ftrt" + bytes(90), ("TensorRT engine", "that it was made from")),
    "other.engine": (b"\x01\x02\x03" * 30, ("TensorRT engine", "that it was made from")),
    "net.xml": (b'<?xml version="1.0"?>\n<net name="m" version="11"><layers></layers></net>', ("OpenVINO", "made from")),
    "net.ort": (b"\x20\0\0\0ORTM" + bytes(40), ("onnxruntime's own format", "made from")),
    "lm.gguf": (b"GGUF" + bytes(40), ("GGUF", "ONNX")),
    "old.pt": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + bytes(40), ("PyTorch checkpoint", "torch.onnx.export")),
    "plan.json": (json.dumps({"schema": SCHEMA, "groups": []}).encode(), ("a plan of onnxprune", "--plan")),
    "table.json": (b'{"schema": "onnxprune.latency/1"}', ("latency table", "--latency-table")),
    "labels.json": (b'{"images": [], "annotations": []}', ("labels of COCO", "--labels")),
}  # fmt: skip
ZIPS = {
    "m.pth": (("archive/data.pkl", "archive/data/0"), ("PyTorch checkpoint", "torch.onnx.export")),
    "m.torchscript": (("m/data.pkl", "m/constants.pkl", "m/code/a.py"), ("TorchScript", "torch.jit.load")),
    "m.pt2": (("m/archive_format", "m/data/weights.pt"), ("torch.export", "torch.export.load")),
    "m.keras": (("config.json", "model.weights.h5"), ("Keras", "model.export")),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, tuple[Path, tuple[str, ...]]]:
    """Return files of all kinds, and what is said about each."""
    for name, (content, _) in MADE.items():
        (tmp_path / name).write_bytes(content)
    for name, (members, _) in ZIPS.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member in members:
                archive.writestr(member, b"x")
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    np.save(tmp_path / "d.npy", np.zeros(3))
    Image.new("RGB", (4, 4)).save(tmp_path / "i.png")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    says = {name: words for name, (_, words) in {**MADE, **ZIPS}.items()}
    says |= {
        "d.npz": ("arrays of numpy", "--data"),
        "d.npy": ("arrays of numpy", "--data"),
        "i.png": ("an image", "--data"),
    }
    says["saved"] = ("SavedModel", "--saved-model")
    return {name: (tmp_path / name, words) for name, words in says.items()}


def test_a_file_that_is_given_as_a_model_is_named(files, refused) -> None:
    for path, says in files.values():
        refused("inspect", path, says=("not an ONNX model, but", str(path), *says))


def test_what_is_given_as_data_is_named(tiny_path: Path, files, refused) -> None:
    asked = ("--reduce", "flops=40%", "--data")
    out = tiny_path.parent / "out" / "o.onnx"
    refused("prune", tiny_path, "-o", out, *asked, tiny_path, says=("data of type .onnx", "it is an ONNX model"))
    for name in ("m.pth", "plan.json", "i.png"):
        path, says = files[name]
        refused("prune", tiny_path, "-o", out, *asked, path, says=("are not known", says[0]))


def test_what_is_given_as_a_plan_is_named(tiny_path: Path, samples: Path, refused) -> None:
    out = tiny_path.parent / "out" / "o.onnx"
    for path, says in ((tiny_path, "but an ONNX model"), (samples, "but arrays of numpy")):
        refused("prune", tiny_path, "-o", out, "--plan", path, says=("not a plan", says))


def test_models_and_other_files(tiny: onnx.ModelProto, models: Path, tmp_path: Path) -> None:
    for path in models.glob("*.onnx"):
        assert kind_of(path) is ONNX
    for content in (b"", b"P", b"PK\x03\x04" + bytes(50), b"\x80", b'{"schema": "', b'{"schema": "\\x"}', bytes(50)):
        (tmp_path / "odd").write_bytes(content)
        assert kind_of(tmp_path / "odd") is None
    assert kind_of(tmp_path / "none") is None
    assert kind_of(tmp_path) is None
    assert kind_of("/dev/zero") is None


def test_a_share_alone_is_one_of_the_flops(tiny_path: Path, out: Path, run) -> None:
    done = run("plan", tiny_path, "-o", out / "plan.json", "--reduce", "40%", "--round-to", "1")
    assert done.exit_code == 0, done.output
    assert json.loads((out / "plan.json").read_text())["settings"]["reduce"] == {"flops": 0.4}
