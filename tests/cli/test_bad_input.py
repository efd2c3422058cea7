"""Bad input ends in one message on stderr, exit code 1 or 2, and no new file."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

TARGET = ("--reduce", "flops=40%")
FAST = ("--no-latency", "--repair", "none")
COMMAND = [sys.executable, "-c", "from onnxprune.cli import main; main()"]
Edit = Callable[[onnx.ModelProto], None]


def name_of(value: object) -> str:
    """Name a test after what its message says, or after its options."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return value if isinstance(value, str) else "edit"


# ------------------------------------------------------------------------------------------------------- models


def every_command(path: Path, out: Path) -> list[tuple[object, ...]]:
    return [
        ("prune", path, "-o", out / "small.onnx", *TARGET, *FAST),
        ("plan", path, "-o", out / "plan.json", *TARGET),
        ("inspect", path),
        ("bench", path, "--runs", 1),
        ("check", path, "--baseline", path, "--runs", 1),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"# a model\nnot really\n", "not an ONNX"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0", "not an ONNX"),
        (np.random.default_rng(0).bytes(5000), "not an ONNX"),
        (b"PK\x03\x04" + bytes(100), "not an ONNX"),
    ],
    ids=["empty", "text", "png", "random", "zip"],
)
def test_file_that_is_no_model(content, says, tmp_path, out, refused):
    path = tmp_path / "odd.onnx"
    path.write_bytes(content)
    for command in every_command(path, out):
        refused(*command, says=(says, "odd.onnx"))


def test_missing_model(tmp_path, out, refused):
    for command in every_command(tmp_path / "gone.onnx", out):
        refused(*command, says=("no such model file", "gone.onnx"))


def test_folder_instead_of_a_model(tmp_path, out, refused):
    for command in every_command(tmp_path, out):
        refused(*command, says="the model path is a folder")


@pytest.mark.parametrize("percent", [*range(10, 100, 10), 100])
def test_truncated_model(percent, models, tmp_path, out, refused):
    content = (models / "resnet.onnx").read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(content[: min(len(content) * percent // 100, len(content) - 1)])
    refused("prune", path, "-o", out / "small.onnx", *TARGET, *FAST, says="cut.onnx")


def test_changed_bytes_never_end_in_a_stack_trace(tiny, tmp_path, out, run):
    content = tiny.SerializeToString()
    path = tmp_path / "changed.onnx"
    rng = np.random.default_rng(0)
    for _ in range(150):
        changed = bytearray(content)
        for at in rng.integers(0, 700, 2):
            changed[at] = rng.integers(256)
        path.write_bytes(changed)
        result = run("plan", path, "-o", out / "plan.json", *TARGET, "--repair", "none")
        assert result.exit_code in (0, 1)
        assert "defect" not in result.stderr
        assert (result.stdout == "") == bool(result.exit_code)


def set_opset(model: onnx.ModelProto, version: int | None) -> None:
    del model.opset_import[:]
    if version is not None:
        model.opset_import.append(helper.make_opsetid("", version))


def quantise(model: onnx.ModelProto) -> None:
    node = helper.make_node("ConvInteger", ["x", "w"], ["c"], "q1", pads=[1] * 4)
    cast = helper.make_node("Cast", ["c"], ["y"], "cast", to=TensorProto.FLOAT)
    weight = numpy_helper.from_array(np.ones((16, 3, 3, 3), np.uint8), "w")
    replace_graph(model, [node, cast], [weight], TensorProto.UINT8, 16)


def quantise_with_scales(model: onnx.ModelProto) -> None:
    node = helper.make_node(
        "QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["c"], "q1", kernel_shape=[3, 3], pads=[1] * 4
    )
    dequantise = helper.make_node("DequantizeLinear", ["c", "s", "z"], ["y"])
    weights = [
        numpy_helper.from_array(np.ones((16, 3, 3, 3), np.uint8), "w"),
        numpy_helper.from_array(np.float32(0.1), "s"),
        numpy_helper.from_array(np.uint8(0), "z"),
    ]
    replace_graph(model, [node, dequantise], weights, TensorProto.UINT8, 16)


def only_relu(model: onnx.ModelProto) -> None:
    replace_graph(model, [helper.make_node("Relu", ["x"], ["y"])], [], TensorProto.FLOAT, 3)


def one_conv(model: onnx.ModelProto) -> None:
    weight = numpy_helper.from_array(np.ones((16, 3, 3, 3), np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], "only", pads=[1] * 4)
    replace_graph(model, [node], [weight], TensorProto.FLOAT, 16)


def replace_graph(model: onnx.ModelProto, nodes: list, weights: list, dtype: int, channels: int) -> None:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", channels, 8, 8])],
        weights,
    )
    model.graph.CopyFrom(graph)


def set_weight(name: str, index: int, value: float) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = numpy_helper.to_array(tensor).copy()
        array.flat[index] = value
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return edit


def loop_back(model: onnx.ModelProto) -> None:
    model.graph.node[1].input[0] = "r2"


def sequence_input(model: onnx.ModelProto) -> None:
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, ["n", 3, 8, 8]))
    model.graph.input[0].CopyFrom(helper.make_value_info("s", kind))
    model.graph.initializer.append(numpy_helper.from_array(np.int64(0), "zero"))
    model.graph.node.insert(0, helper.make_node("SequenceAt", ["s", "zero"], ["x"]))


def no_rank(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.ClearField("shape")


def cut_raw_data(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def cut_weight(name: str, axis: int, size: int) -> Edit:
    """Return an edit after which weights don't fit each other: onnxruntime loads the model, but cannot run it."""

    def edit(model: onnx.ModelProto) -> None:
        tensor = next(t for t in model.graph.initializer if t.name == name)
        array = np.take(numpy_helper.to_array(tensor), range(size), axis)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))

    return edit


def change_node(n: int, **fields: str) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        for name, value in fields.items():
            setattr(model.graph.node[n], name, value)

    return edit


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m.graph.ClearField("node"), "the graph is empty"),
        (lambda m: m.graph.ClearField("output"), "the graph is empty"),
        (lambda m: m.ClearField("graph"), "not an ONNX model"),
        (lambda m: m.ClearField("ir_version"), "not an ONNX model"),
        (lambda m: m.graph.ClearField("input"), "the model has no inputs"),
        (lambda m: set_opset(m, 99), "opset 99 is not supported"),
        (lambda m: set_opset(m, 1), "opset 1 is not supported"),
        (lambda m: set_opset(m, None), "names no ONNX opset"),
        (change_node(1, domain="my.company"), ("domain 'my.company' is unknown", "relu1")),
        (change_node(1, op_type="Reluu"), ("onnxruntime cannot load the model", "Reluu")),
        (change_node(1, op_type="Gelu"), ("onnxruntime cannot load the model", "Gelu")),  # newer than opset 17
        (lambda m: m.graph.node[0].ClearField("input"), "onnxruntime cannot load the model"),
        (lambda m: m.graph.node[1].output.__setitem__(0, "c1"), "onnxruntime cannot load the model"),
        (lambda m: m.graph.node[1].input.__setitem__(0, "nowhere"), ("onnxruntime cannot load the model", "nowhere")),
        (loop_back, "onnxruntime cannot load the model"),
        (cut_raw_data, "a tensor of the model is damaged"),
        (sequence_input, "input s is not a tensor of numbers"),
        (no_rank, ("an input has no rank", "input x")),
        (quantise, ("the model is quantized", "ConvInteger")),
        (quantise_with_scales, ("the model is quantized", "QLinearConv")),
        (only_relu, "nothing can be pruned"),
        (one_conv, ("nothing can be pruned", "output y")),
        (cut_weight("w2", 1, 15), ("onnxruntime cannot run the model", "conv2")),
        (cut_weight("w1", 0, 15), ("onnxruntime cannot run the model", "conv1")),
        (cut_weight("w1", 0, 0), "onnxruntime cannot run the model"),
        (cut_weight("b1", 0, 15), ("onnxruntime cannot run the model", "conv1")),
        (cut_weight("w3", 1, 7), "onnxruntime cannot"),
        (set_weight("w2", 5, np.nan), ("a weight is NaN", "w2", "conv2")),
    ],
    ids=name_of,
)
def test_model_that_cannot_be_pruned(edit, says, tiny, tmp_path, out, refused):
    edit(tiny)
    path = tmp_path / "odd.onnx"
    path.write_bytes(tiny.SerializeToString())
    refused("prune", path, "-o", out / "small.onnx", *TARGET, *FAST, says=says)


# ------------------------------------------------------------------------------------------------- external data


@pytest.fixture
def external(tiny, tmp_path) -> Path:
    folder = tmp_path / "external"
    folder.mkdir()
    onnx.save_model(tiny, str(folder / "m.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return folder / "m.onnx"


def relocate(model: Path, location: str) -> None:
    proto = onnx.load(str(model), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    model.write_bytes(proto.SerializeToString())


def test_external_data_missing(external, out, refused):
    (external.parent / "weights.bin").unlink()
    for command in every_command(external, out):
        refused(*command, says=("external data are missing", "weights.bin"))


@pytest.mark.parametrize("size", [0, 100, -1])
def test_external_data_truncated(size, external, out, refused):
    weights = external.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:size])
    for command in every_command(external, out):
        refused(*command, says=("external data are truncated", "weights.bin"))


@pytest.mark.parametrize("how", ["absolute", "dots", "symlink", "folder"])
def test_external_data_outside_of_the_folder(how, external, tmp_path, out, refused):
    elsewhere = tmp_path / "elsewhere.bin"
    shutil.move(external.parent / "weights.bin", elsewhere)
    if how == "absolute":
        relocate(external, str(elsewhere))
    elif how == "dots":
        relocate(external, "../elsewhere.bin")
    elif how == "symlink":
        (external.parent / "weights.bin").symlink_to(elsewhere)
    else:
        (external.parent / "sub").symlink_to(tmp_path)
        relocate(external, "sub/elsewhere.bin")
    for command in every_command(external, out):
        refused(*command, says="external data outside the model's folder")


def test_output_onto_the_external_data(external, refused):
    before = (external.parent / "weights.bin").read_bytes()
    refused("prune", external, "-o", external.parent / "weights.bin", *TARGET, *FAST, says="would overwrite an input")
    assert (external.parent / "weights.bin").read_bytes() == before
    assert len(list(external.parent.iterdir())) == 2


# ------------------------------------------------------------------------------------------------------------ data


def prune_with(path: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("prune", path, "-o", out / "small.onnx", *TARGET, *FAST, *more)


FLOATS = np.zeros((4, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"image": FLOATS}, ("don't have every input", "missing: x", "found: image")),
        ({}, ("don't have every input", "found: nothing")),
        ({"x": FLOATS[:, 0]}, ("another shape", "[8, 8]", "[3, 8, 8]")),
        ({"x": FLOATS[..., :7]}, ("another shape", "[3, 8, 7]")),
        ({"x": FLOATS.transpose(0, 2, 3, 1)}, ("another shape", "[8, 8, 3]")),
        ({"x": FLOATS[:0]}, "no common number of samples"),
        ({"x": np.float32(1)}, "no common number of samples"),
        ({"x": FLOATS.astype(np.uint8)}, ("another dtype", "uint8", "--preprocess")),
        ({"x": FLOATS.astype(np.int64)}, ("another dtype", "int64", "--preprocess")),
        ({"x": FLOATS.astype("U3")}, "another dtype"),
        ({"x": FLOATS.astype(complex)}, "another dtype"),
        ({"x": np.where(np.arange(4)[:, None, None, None] == 2, np.nan, FLOATS)}, ("NaN or infinity", "sample 2")),
        ({"x": np.where(np.arange(4)[:, None, None, None] == 1, np.inf, FLOATS)}, ("NaN or infinity", "sample 1")),
        ({"x": np.full(FLOATS.shape, 1e300)}, ("NaN or infinity", "float32")),  # too large once it is float32
        ({"x": FLOATS, "labels": np.zeros(3, int)}, ("labels don't fit", "int64[3]", "4 samples")),
        ({"x": FLOATS, "labels": np.zeros((4, 2), int)}, "there are labels, but no output"),
        ({"x": FLOATS, "labels": np.zeros(4)}, ("there are labels, but no output", "float64")),
        ({"x": FLOATS, "labels": np.array(["a"] * 4)}, "there are labels, but no output"),
        ({"x": FLOATS, "labels": np.array([0, 1, -1, 2])}, ("a label is negative", "sample 2")),
        ({"x": FLOATS, "labels": np.array([0, 1, 2, 4])}, ("a label is out of range", "4 classes")),
    ],
    ids=name_of,
)
def test_data_that_do_not_fit(arrays, says, tiny_path, tmp_path, out, refused):
    np.savez(tmp_path / "d.npz", **arrays)
    refused(*prune_with(tiny_path, out, "--data", tmp_path / "d.npz"), says=says)


def test_data_of_two_lengths(tmp_path, out, refused):
    nodes = [
        helper.make_node("Conv", ["a", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "v"], ["d"], pads=[1] * 4),
        helper.make_node("Add", ["d", "b"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=(16, 3, 3, 3)).astype(np.float32), "w")]
    weights.append(numpy_helper.from_array(rng.normal(size=(3, 16, 3, 3)).astype(np.float32), "v"))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3, 8, 8]) for name in "aby"]
    path = tmp_path / "two.onnx"
    onnx.save_model(
        helper.make_model(
            helper.make_graph(nodes, "g", values[:2], values[2:], weights),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        ),
        str(path),
    )
    np.savez(tmp_path / "d.npz", a=FLOATS, b=FLOATS[:2])
    refused(*prune_with(path, out, "--data", tmp_path / "d.npz"), says=("no common number", "a has 4, b has 2"))
    np.save(tmp_path / "d.npy", FLOATS)
    refused(*prune_with(path, out, "--data", tmp_path / "d.npy"), says=("the model has 2", "inputs are a, b"))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
@pytest.mark.parametrize("kind", ["empty", "text", "half", "last byte", "flipped", "objects", "swapped"])
def test_damaged_arrays(kind, suffix, tiny_path, tmp_path, out, refused):
    path = tmp_path / f"d.{suffix}"
    rng = np.random.default_rng(0)
    samples = rng.normal(size=FLOATS.shape).astype(np.float32)
    if kind == "objects":
        samples = np.array([{}, {}], dtype=object)
    if suffix == "npz":
        np.savez_compressed(path, x=samples)
    else:
        np.save(path, samples)
    content = path.read_bytes()
    if kind == "swapped":  # the content of the other type
        other = tmp_path / ("e.npy" if suffix == "npz" else "e.npz")
        np.save(other, samples) if suffix == "npz" else np.savez(other, x=samples)
        content = other.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        {
            "empty": b"",
            "text": b"1,2,3\n",
            "half": content[:middle],
            "last byte": content[:-1],
            "flipped": content[:4] + bytes(255 - b for b in content[4:middle]) + content[middle:],
        }.get(kind, content)
    )
    refused(*prune_with(tiny_path, out, "--data", path), says=("the data cannot be read", path.name))


@pytest.mark.parametrize("option", ["--data", "--eval"])
def test_data_that_are_not_there_or_of_unknown_type(option, tiny_path, tmp_path, out, refused):
    refused(*prune_with(tiny_path, out, option, tmp_path / "gone.npz"), says=("no such data", "gone.npz"))
    table = tmp_path / "table.csv"
    table.write_text("1,2\n")
    refused(*prune_with(tiny_path, out, option, table), says=("data of type .csv are not known", ".npz"))


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for n in range(3):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{n}.png")
    return folder


def test_images_without_preprocessing(photos, tiny_path, out, refused):
    refused(*prune_with(tiny_path, out, "--data", photos), says=("images need a preprocessing", "imagenet"))


def test_folder_without_images(tmp_path, tiny_path, out, refused):
    empty = tmp_path / "empty"
    (empty / "cat").mkdir(parents=True)
    (empty / "cat" / "notes.txt").write_text("no image")
    refused(
        *prune_with(tiny_path, out, "--data", empty, "--preprocess", "unit"), says=("holds no images", "empty", ".png")
    )


@pytest.mark.parametrize("name", ["cat/0.png", "dog/2.png"])
@pytest.mark.parametrize("kind", ["empty", "text", "cut", "damaged", "deep"])
def test_broken_image(kind, name, photos, tiny_path, out, refused):
    path = photos / name
    content = path.read_bytes()
    if kind == "deep":
        path = path.rename(path.with_suffix(".tif"))
        name = str(path.relative_to(photos))
        Image.fromarray(np.zeros((8, 8), np.float32)).save(path)
    else:
        broken = {"empty": b"", "text": b"hello", "cut": content[:60], "damaged": content[:50] + bytes(40)}[kind]
        path.write_bytes(broken)
    refused(
        *prune_with(tiny_path, out, "--data", photos, "--preprocess", "unit"), says=("an image cannot be read", name)
    )


@pytest.mark.parametrize(("name", "says"), [("cat/0.png", "another shape"), ("dog/2.png", "different sizes")])
def test_image_of_another_size(name, says, photos, tiny_path, out, refused):
    Image.new("RGB", (9, 8)).save(photos / name)
    refused(*prune_with(tiny_path, out, "--data", photos, "--preprocess", "unit"), says=says)


def test_image_smaller_than_the_crop(photos, tmp_path, tiny_path, out, refused):
    how = tmp_path / "how.toml"
    how.write_text("[image]\ncrop = 9\n")
    refused(*prune_with(tiny_path, out, "--data", photos, "--preprocess", how), says="smaller than the crop")


# -------------------------------------------------------------------------------------------------- preprocessing


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[array\nscale = 1", "cannot be read"),
        ("[array]\nscale = 1\nscale = 2", "cannot be read"),
        ("\0", "cannot be read"),
        ("scale = 1", "unknown preprocessing table 'scale'"),
        ("[pictures]\nscale = 1", "unknown preprocessing table 'pictures'"),
        ("[array]\nsize = 1", ("unknown preprocessing field 'size'", "scale")),
        ("[array]\nscale = 'big'", ("'scale' has a wrong value", "'big'")),
        ("[array]\nscale = true", "'scale' has a wrong value"),
        ("[array]\nscale = nan", "'scale' has a wrong value"),
        ("[array]\nscale = 0", "'scale' has a wrong value"),
        ("[array]\nstd = 0", "'std' has a wrong value"),
        ("[array]\nstd = [1.0, 0.0, 1.0]", "'std' has a wrong value"),
        ("[array]\nstd = [1.0, -1.0, 1.0]", "'std' has a wrong value"),
        ("[array]\nstd = []", "'std' has a wrong value"),
        ("[array]\nstd = 'wide'", "'std' has a wrong value"),
        ("[array]\nmean = ['a']", "'mean' has a wrong value"),
        ("[array]\nmean = [nan]", "'mean' has a wrong value"),
        ("[array]\nmean = [[1.0]]", "'mean' has a wrong value"),
        ("[array]\nmean = [1.0, 2.0]", ("mean or std of the preprocessing do not fit", "2 and 1 values for 3")),
        ("[array]\npad = -1", "'pad' has a wrong value"),
        ("[array]\npad = 1.5", "'pad' has a wrong value"),
        ("[array]\nrepeat = 0", "'repeat' has a wrong value"),
        ("[image]\nresize = 0", "'resize' has a wrong value"),
        ("[image]\nresize = [8, 8]", "'resize' has a wrong value"),
        ("[image]\ncrop = 'all'", "'crop' has a wrong value"),
        ("[image]\ncolor = 'CMYK'", ("'color' has a wrong value", "RGB, BGR, L")),
        ("[image]\nlayout = 'CHWN'", ("'layout' has a wrong value", "NCHW, NHWC")),
        ("[image]\nlayout = 3", "'layout' has a wrong value"),
        ("[image]\ninterpolation = 'lanczos'", ("'interpolation' has a wrong value", "bilinear")),
        ("[array]\npad = 2", ("another shape", "[3, 12, 12] after preprocessing")),
    ],
    ids=name_of,
)
def test_broken_preprocessing(text, says, tiny_path, images, tmp_path, out, refused):
    how = tmp_path / "how.toml"
    how.write_text(text)
    np.savez(tmp_path / "d.npz", x=images)
    refused(*prune_with(tiny_path, out, "--data", tmp_path / "d.npz", "--preprocess", how), says=says)


@pytest.mark.parametrize("name", ["imagnet", "gone.toml", "."])
def test_unknown_preprocessing(name, tiny_path, images, tmp_path, out, refused):
    np.save(tmp_path / "d.npy", images)
    refused(
        *prune_with(tiny_path, out, "--data", tmp_path / "d.npy", "--preprocess", name),
        says=("no preprocessing", "unit, imagenet, tf"),
    )


# --------------------------------------------------------------------------------------------------------- outputs


@pytest.mark.parametrize("command", ["prune", "plan"])
@pytest.mark.parametrize("how", ["same", "relative", "symlink", "hard link", "folder link"])
def test_output_onto_the_model(how, command, tiny_path, tmp_path, refused, monkeypatch):
    before = tiny_path.read_bytes()
    target = tmp_path / "link.onnx"
    if how == "same":
        target = tiny_path
    elif how == "relative":
        monkeypatch.chdir(tmp_path / "out")
        target = Path("../tiny.onnx")
    elif how == "symlink":
        target.symlink_to(tiny_path)
    elif how == "hard link":
        os.link(tiny_path, target)
    else:
        (tmp_path / "alias").symlink_to(tmp_path)
        target = tmp_path / "alias" / "tiny.onnx"
    refused(command, tiny_path, "-o", target, *TARGET, says="would overwrite an input")
    assert tiny_path.read_bytes() == before
    assert {path.suffix for path in tmp_path.iterdir()} <= {".onnx", ""}


@pytest.mark.parametrize("command", ["prune", "plan"])
def test_output_that_cannot_be_written(command, tiny_path, tmp_path, out, refused, monkeypatch):
    refused(command, tiny_path, "-o", out, *TARGET, says="the output path is a folder")
    refused(command, tiny_path, "-o", out / "no" / "x", *TARGET, says=("output folder does not exist", "no"))
    refused(command, tiny_path, "-o", tiny_path / "x", *TARGET, says="output folder does not exist")
    refused(command, tiny_path, "-o", "/proc/x.onnx", *TARGET, says=("cannot be written", "/proc/x.onnx"))
    for device in ("/dev/null", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"):
        refused(command, tiny_path, "-o", device, *TARGET, says="is not a file")
    refused(command, tiny_path, "-o", out / ("x" * 300), *TARGET, says="cannot be written")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    refused(command, tiny_path, "-o", loop / "x", *TARGET, says="output")
    for nameless in ("", ".", "/"):
        refused(command, tiny_path, "-o", nameless, *TARGET, says="names no file", code=2)
    existing = out / "old.onnx"
    existing.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(command, tiny_path, "-o", existing, *TARGET, says=("cannot be written", "ermission denied"))


def test_plan_path_onto_other_files(tiny_path, tmp_path, out, refused, run):
    output = out / "small.onnx"
    for target in (output, tiny_path, out, "/proc/plan.json"):
        refused(*prune_with(tiny_path, out, "--plan-output", target), says=str(target))
    plan = tmp_path / "plan.json"
    assert run("plan", tiny_path, "-o", plan, *TARGET).exit_code == 0
    refused(*prune_with(tiny_path, out, "--plan", plan, "--plan-output", plan), says="would overwrite an input")
    refused("prune", tiny_path, "-o", plan, "--plan", plan, *FAST, says="would overwrite an input")
    assert tiny_path.exists()
    assert plan.exists()


@pytest.mark.parametrize("option", ["--data", "--eval", "--preprocess"])
def test_output_onto_the_data(option, tiny_path, images, tmp_path, refused):
    data, how = tmp_path / "d.npz", tmp_path / "how.toml"
    np.savez(data, x=images)
    how.write_text("[array]\n")
    target = how if option == "--preprocess" else data
    before = target.read_bytes()
    more = ("--data", data, "--preprocess", how) if option == "--preprocess" else (option, data)
    refused("prune", tiny_path, "-o", target, *TARGET, *FAST, *more, says="would overwrite an input")
    assert target.read_bytes() == before


def break_writing(monkeypatch: pytest.MonkeyPatch, folder: Path, error: BaseException) -> None:
    """Let no file in a folder be opened for writing bytes."""
    real = Path.open

    def fail(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb" and self.is_relative_to(folder):
            raise error
        return real(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", fail)


@pytest.mark.parametrize("broken", ["open", "write_text", "replace", "chmod"])
@pytest.mark.parametrize("existing", [False, True])
def test_full_disk_leaves_nothing_behind(broken, existing, tiny_path, out, refused, monkeypatch):
    if existing or broken == "chmod":  # of a new file nothing is changed
        (out / "small.onnx").write_bytes(b"old")
    full = OSError(28, "No space left on device")

    def fail(self: Path, *args: object, **kwargs: object) -> None:
        raise full

    if broken == "open":
        break_writing(monkeypatch, out, full)
    else:
        monkeypatch.setattr(Path, broken, fail)
    refused(*prune_with(tiny_path, out), says=("cannot write", "No space left", "do:"), shown=True)


def test_interrupt_while_writing_leaves_nothing_behind(tiny_path, out, run, monkeypatch):
    break_writing(monkeypatch, out, KeyboardInterrupt())
    result = run(*prune_with(tiny_path, out))
    assert result.exit_code == 130
    assert result.stderr == "interrupted: nothing was written\n"
    assert list(out.iterdir()) == []


def test_interrupt_in_the_middle_of_a_run(tiny_path, out):
    process = subprocess.Popen(
        [
            *COMMAND,
            "prune",
            str(tiny_path),
            "-o",
            str(out / "small.onnx"),
            *TARGET,
            "--repair",
            "none",
            "--warmup",
            "100000000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell in the background has it ignored
    )
    wait_for_onnxruntime(process)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == "interrupted: nothing was written"
    assert stdout == ""
    assert list(out.iterdir()) == []


def wait_for_onnxruntime(process: subprocess.Popen[str]) -> None:
    """Wait until the process has loaded onnxruntime and used some time since."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        if "onnxruntime_pybind" in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(1)
            return
        time.sleep(0.05)
    pytest.fail("the command did not get as far as running the model")


# --------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("command", ["prune", "plan"])
@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), ("no target is given", "--reduce flops=50%")),
        (("--reduce", "flops=0%"), "out of range"),
        (("--reduce", "flops=100%"), "out of range"),
        (("--reduce", "flops=150%"), "out of range"),
        (("--reduce", "flops=50"), ("out of range", "flops=50%")),
        (("--reduce", "flops=-5%"), "out of range"),
        (("--reduce", "params=nan"), "out of range"),
        (("--reduce", "params=inf"), "out of range"),
        (("--reduce", "flops=half"), ("is not a number", "'half'")),
        (("--reduce", "flops="), "is not a number"),
        (("--reduce", "half"), "not of the form"),
        (("--limit", "50%"), "not of the form"),
        (("--reduce", "50%", "--reduce", "flops=40%"), "names flops twice"),
        (("--reduce", "neurons=50%"), ("does not know 'neurons'", "flops, params")),
        (("--reduce", "flops=50%", "--reduce", "FLOPs=40%"), "names flops twice"),
        (("--limit", "flops=0"), "out of range"),
        (("--limit", "flops=-1M"), "out of range"),
        (("--limit", "flops=nan"), "out of range"),
        (("--limit", "flops=inf"), "out of range"),
        (("--limit", "flops=50%"), "is not a number"),
        (("--limit", "flops=3X"), "is not a number"),
        (("--limit", "watts=3"), "does not know 'watts'"),
        (("--threshold", "nan"), "out of range"),
        (("--threshold", "-0.1"), "out of range"),
        (("--threshold", "inf"), "out of range"),
        (("--threshold", "low"), ("Invalid value", "--threshold")),
        ((*TARGET, "--importance", "magic"), ("Invalid value", "--importance", "l2")),
        ((*TARGET, "--schedule", "slow"), ("Invalid value", "--schedule", "progressive")),
        ((*TARGET, "--scope", "local"), ("Invalid value", "--scope", "uniform")),
        ((*TARGET, "--ignore", "nothing-like-it*"), ("matches no layer", "conv1")),
        ((*TARGET, "--steps", "0"), "--steps 0 is out of range"),
        ((*TARGET, "--steps", "many"), "Invalid value"),
        ((*TARGET, "--round-to", "0"), "--round-to 0 is out of range"),
        ((*TARGET, "--min-channels", "0"), "--min-channels 0 is out of range"),
        ((*TARGET, "--max-ratio", "0"), "--max-ratio 0 is out of range"),
        ((*TARGET, "--max-ratio", "1.5"), "--max-ratio 1.5 is out of range"),
        ((*TARGET, "--max-ratio", "nan"), "--max-ratio nan is out of range"),
        ((*TARGET, "--seed", "-1"), "--seed -1 is out of range"),
        ((*TARGET, "--frobnicate"), "--frobnicate"),
    ],
    ids=name_of,
)
def test_option_that_makes_no_sense(args, says, command, tiny_path, out, refused):
    refused(command, tiny_path, "-o", out / "x", *args, says=says, code=2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--batch", "0"), "--batch 0 is out of range"),
        (("--threads", "-1"), "--threads -1 is out of range"),
        (("--threads", "99999999999999999999"), "is out of range"),
        (("--batch", "9999999999999999"), "is out of range"),
        (("--runs", "0"), "--runs 0 is out of range"),
        (("--runs", "1.5"), "Invalid value"),
        (("--warmup", "-1"), "--warmup -1 is out of range"),
    ],
    ids=name_of,
)
def test_measurement_that_makes_no_sense(args, says, tiny_path, out, refused):
    refused("prune", tiny_path, "-o", out / "x", *TARGET, *args, says=says, code=2)
    refused("check", tiny_path, "--baseline", tiny_path, *args, says=says, code=2)
    refused("bench", tiny_path, *args, says=says, code=2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--eval-batch", "0"), "--eval-batch 0 is out of range"),
        (("--max-drop", "1"), ("--max-drop needs data", "--data")),
        (("--max-drop", "nan"), "--max-drop nan is out of range"),
        (("--max-drop", "-1"), "--max-drop -1 is out of range"),
        (("--min-agreement", "101"), "--min-agreement 101 is out of range"),
        (("--min-speedup", "-2"), "--min-speedup -2 is out of range"),
        (("--min-speedup", "inf"), "--min-speedup inf is out of range"),
        (("--max-size", "-1"), "--max-size"),
        (("--max-size", "small"), "--max-size 'small' is not an amount"),
    ],
    ids=name_of,
)
def test_limit_that_makes_no_sense(args, says, tiny_path, refused):
    refused("check", tiny_path, "--baseline", tiny_path, "--runs", "1", *args, says=says, code=2)


@pytest.mark.parametrize("command", ["prune", "plan", "inspect", "bench", "check"])
def test_command_without_arguments(command, refused):
    refused(command, says="Missing", code=2)


def test_importance_that_finds_nothing_to_look_at(tiny_path, out, refused):
    refused(*prune_with(tiny_path, out, "--importance", "bn_scale"), says="bn_scale", code=2)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--reduce", "flops=99%"), "FLOPs can fall to"),
        (("--reduce", "params=99%"), "parameters can fall to"),
        (("--limit", "flops=1"), "FLOPs can fall to"),
        (("--reduce", "flops=60%", "--max-ratio", "0.1"), "FLOPs can fall to"),
        (("--reduce", "flops=60%", "--min-channels", "16"), "FLOPs can fall to"),
        (("--reduce", "flops=90%", "--ignore", "conv1"), "ignored by --ignore 'conv1'"),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("schedule", ["block", "progressive"])
def test_target_out_of_reach_names_the_nearest_figure(args, says, schedule, tiny_path, out, refused):
    command = ("prune", tiny_path, "-o", out / "small.onnx", *FAST, "--schedule", schedule, *args)
    refused(*command, says=("cannot be reached", says, "ask for less"))


# ----------------------------------------------------------------------------------------------------------- plans


@pytest.fixture
def plan(tiny_path, tmp_path, run) -> Path:
    path = tmp_path / "plan.json"
    assert run("plan", tiny_path, "-o", path, *TARGET).exit_code == 0
    return path


def edit_group(**fields: object) -> Callable[[dict], None]:
    return lambda content: content["groups"][0].update(fields)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c.pop("schema"), ("not a plan", "'schema'")),
        (lambda c: c.update(schema="onnxprune.plan/9"), ("another schema", "onnxprune.plan/9")),
        (lambda c: c.pop("model"), ("not a plan", "'model'")),
        (lambda c: c.update(model=3), "not a plan"),
        (lambda c: c["model"].update(sha256="0" * 64), ("another model", "000000000000")),
        (lambda c: c["model"].update(sha256=5), "another model"),
        (lambda c: c.pop("groups"), ("not a plan", "'groups'")),
        (lambda c: c.update(groups={}), "groups are not the model's"),
        (lambda c: c.update(groups=[1]), "not a plan"),
        (lambda c: c["groups"].pop(), ("groups are not the model's", "head")),
        (lambda c: c["groups"].append(c["groups"][0]), ("groups are not the model's", "twice")),
        (edit_group(name="other"), ("groups are not the model's", "conv1, other")),
        (edit_group(name=["conv1"]), "groups are not the model's"),
        (edit_group(keep=[]), ("`keep` is out of range", "group conv1")),
        (edit_group(keep=[16]), ("`keep` is out of range", "no channel 16", "from 0 to 15")),
        (edit_group(keep=[-1, 2]), ("`keep` is out of range", "no channel -1")),
        (edit_group(keep=[10**30]), "is beyond 64 bits"),
        (edit_group(keep=[10**19]), "`keep` is out of range"),
        (edit_group(keep=[1.5]), "no list of whole numbers"),
        (edit_group(keep=[True]), "no list of whole numbers"),
        (edit_group(keep=[[1], 2]), "no list of whole numbers"),
        (edit_group(keep="all"), "no list of whole numbers"),
        (edit_group(keep=None), "no list of whole numbers"),
        (lambda c: c["groups"][0].pop("keep"), "no list of whole numbers"),
        (lambda c: c.update(path=[{}]), "not a plan"),
        (lambda c: c.update(settings=[1]), "not a plan"),
    ],
    ids=name_of,
)
def test_damaged_plan(edit, says, plan, tiny_path, out, refused):
    content = json.loads(plan.read_text())
    edit(content)
    plan.write_text(json.dumps(content))
    refused("prune", tiny_path, "-o", out / "x.onnx", "--plan", plan, *FAST, says=says)


@pytest.mark.parametrize("text", ["", "keep all", "[]", "null", "[" * 100_000, "\xff"])
def test_plan_that_is_no_plan(text, plan, tiny_path, out, refused):
    plan.write_bytes(text.encode("latin-1"))
    refused("prune", tiny_path, "-o", out / "x.onnx", "--plan", plan, *FAST, says=("not a plan", "plan.json"))


def test_plan_that_is_not_there(tiny_path, tmp_path, out, refused):
    for path in (tmp_path / "gone.json", tmp_path):
        refused("prune", tiny_path, "-o", out / "x.onnx", "--plan", path, *FAST, says="the plan cannot be read")


def test_plan_for_another_model(plan, tiny, tmp_path, out, refused):
    other = tmp_path / "other.onnx"
    tiny.producer_name = "another"
    other.write_bytes(tiny.SerializeToString())
    refused("prune", other, "-o", out / "x.onnx", "--plan", plan, *FAST, says=("another model", "`onnxprune plan`"))


@pytest.mark.parametrize(
    ("group", "ignore", "reason"), [("conv1", ["--ignore", "conv1"], "ignored by --ignore"), ("head", [], "output y")]
)
def test_plan_that_deletes_what_must_stay(group, ignore, reason, plan, tiny_path, out, refused):
    content = json.loads(plan.read_text())
    next(entry for entry in content["groups"] if entry["name"] == group)["keep"] = [0, 1]
    plan.write_text(json.dumps(content))
    command = ("prune", tiny_path, "-o", out / "x.onnx", "--plan", plan, *ignore, *FAST)
    refused(*command, says=("deletes pinned channels", f"group {group}", reason))
