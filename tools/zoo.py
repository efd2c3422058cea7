"""A zoo of exported networks for the coverage table: what it holds, how each is exported, and how it is kept small.

Exports are cached without their weights: each large float initializer loses its data and carries `random MEAN STD` (with
`positive` after it where no value is negative) in its documentation. `fill` puts seeded random numbers of the same mean and
deviation back, so a cache of hundreds of networks takes a few dozen megabytes. Tensors without deviation stay what they were, so the
equal zero biases that exporters alias in untrained networks are still equal.

Everything that needs torch is imported where it is used, so that the process that measures stays small.
"""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import io
import json
import re
import sys
import time
import warnings
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 0
MIN_STRIPPED = 64
"""Elements from which on a float initializer loses its data."""
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
LEGACY_OPSET, DYNAMO_OPSET = 17, 18
OLD_OPSET = 13
NEWEST = 0
"""As an opset: the newest one that the dynamo exporter writes and onnxruntime loads."""


def words(text: str) -> tuple[str, ...]:
    """Return the words of a text."""
    return tuple(text.split())


GAINS = (1.0, 0.9, 0.8, 0.7, 0.6)
"""Tried in turn on the weights of a network until it is tame."""
TAME = 1e4
"""Output of a network on noise, above which rounding would drown what is measured."""

TOO_LARGE = ("vit_h_14", "regnet_y_128gf")
"""More than 2 GB of weights, or near it: a protobuf message ends there."""
LARGE = words(
    "convnext_base convnext_large densenet161 densenet169 densenet201 efficientnet_b4 efficientnet_b5 efficientnet_b6 efficientnet_b7 "
    "efficientnet_v2_l efficientnet_v2_m regnet_x_16gf regnet_x_32gf regnet_x_8gf regnet_y_16gf regnet_y_32gf regnet_y_8gf resnet152 "
    "resnext101_* swin_b swin_s swin_v2_b swin_v2_s vgg13* vgg16* vgg19* vit_b_* vit_l_* wide_resnet101_2 *_resnet101 dm_nfnet_f0 "
    "inception_resnet_v2 dpn* s3d zfnet512 alexnet bvlc_alexnet vgg11* convnext_small wide_resnet50_2 resnet101 inception_v4"
)
"""Run last."""
SEGMENTATION = words(
    "deeplabv3_mobilenet_v3_large deeplabv3_resnet50 deeplabv3_resnet101 fcn_resnet50 fcn_resnet101 "
    "lraspp_mobilenet_v3_large"
)
VIDEO = words("r3d_18 mc3_18 r2plus1d_18 s3d")
TIMM = words(
    "ghostnet_100 repvgg_a0 repvgg_a0+reparam hrnet_w18_small dla34 res2net50_26w_4s cspresnet50 cspdarknet53 ese_vovnet19b_dw mixnet_s "
    "rexnet_100 fbnetc_100 mobilevit_s mobilevitv2_050 convnextv2_atto efficientvit_b0 fastvit_t8 fastvit_t8+reparam edgenext_xx_small "
    "mobileone_s0 mobileone_s0+reparam eca_nfnet_l0 nf_regnet_b0 seresnet50 legacy_seresnet18 selecsls42b tresnet_m skresnet18 resnest14d "
    "tinynet_e lcnet_050 hardcorenas_a efficientnet_lite0 tf_efficientnetv2_b0 xception41 inception_v4 inception_resnet_v2 pit_ti_224 "
    "levit_128s poolformer_s12 regnetz_c16 gcresnet33ts coatnet_0_rw_224 darknet53 vgg11_bn visformer_tiny crossvit_tiny_240 "
    "mobilenetv4_conv_small repghostnet_050 starnet_s1 spnasnet_100 hgnetv2_b0 ghostnetv2_100 inception_next_atto repvit_m0_9 "
    "densenetblur121d ecaresnet26t cs3darknet_s efficientformer_l1 convmixer_768_32 focalnet_tiny_srf pvt_v2_b0 resnetv2_50 "
    "botnet26t_256 tiny_vit_5m_224 res2next50 vovnet39a mambaout_femto rdnet_tiny dm_nfnet_f0 dpn48b"
)
REPRESENTATIVE = words(
    "torchvision/resnet18 torchvision/mobilenet_v2 torchvision/mobilenet_v3_small torchvision/densenet121 torchvision/efficientnet_b0 "
    "torchvision/shufflenet_v2_x1_0 torchvision/googlenet torchvision/convnext_tiny torchvision/regnet_y_400mf torchvision/vgg11_bn "
    "torchvision/vit_b_32 segmentation/lraspp_mobilenet_v3_large timm/ghostnet_100 timm/res2net50_26w_4s timm/mobilevit_s"
)
"""Exported with the oldest and the newest opset, too."""


@dataclass(frozen=True)
class Entry:
    """One network, exported one way.

    Attributes:
        family: where it comes from: torchvision, segmentation, video, timm, light, real, graphs.
        model: its name there.
        exporter: `legacy` or `dynamo` for torch's two exporters; `file` for one that exists as a file.
        opset: to export with; 0 means whatever the file has, or the newest.
        source: the file or folder that it comes from, where it has one.
    """

    family: str
    model: str
    exporter: str
    opset: int = 0
    source: str = ""

    @property
    def id(self) -> str:
        """A name that is unique in the zoo."""
        suffix = "" if self.exporter == "file" else f"@{self.exporter}{self.opset or '-newest'}"
        return f"{self.family}/{self.model}{suffix}"

    @property
    def large(self) -> bool:
        """Whether it takes long."""
        return any(fnmatch.fnmatch(self.model, pattern) for pattern in LARGE)


def entries(models: Path | None = None, graphs: Path | None = None) -> list[Entry]:
    """Return the zoo in the order in which it is run: small ones first, extra opsets and large ones last.

    Args:
        models: a folder with .onnx files and unpacked packages.
        graphs: a folder with `*.onnx.z` graphs without weights.
    """
    found: list[Entry] = []
    if models is not None:
        for file in sorted(models.rglob("*.onnx")):
            found.append(Entry("real", f"{file.parent.name}-{file.stem}", "file", source=str(file)))
        if list(models.rglob("efficientnet-lite0-*.pth")) and list(models.rglob("efficientnet_lite_pytorch/model.py")):
            found += _both("real", "efficientnet_lite0", str(models))
    for file in sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("light_*.onnx")):
        found.append(Entry("light", file.stem.removeprefix("light_"), "file", source=str(file)))
    if graphs is not None:
        for file in sorted(graphs.glob("*.onnx.z")):
            found.append(Entry("graphs", file.name.removesuffix(".onnx.z"), "file", source=str(file)))
    if importlib.util.find_spec("torchvision"):
        import torchvision

        names = torchvision.models.list_models(module=torchvision.models)
        found += [e for name in names if name not in TOO_LARGE for e in _both("torchvision", name)]
        found += [e for name in SEGMENTATION for e in _both("segmentation", name)]
        found += [e for name in VIDEO for e in _both("video", name)]
    if importlib.util.find_spec("timm"):
        found += [e for name in TIMM for e in _both("timm", name)]
    known = {f"{e.family}/{e.model}" for e in found}
    for name in REPRESENTATIVE:
        if name in known:
            family, model = name.split("/")
            found += [Entry(family, model, "legacy", OLD_OPSET), Entry(family, model, "dynamo", NEWEST)]

    def late(entry: Entry) -> int:
        extra = entry.exporter != "file" and entry.opset in (OLD_OPSET, NEWEST)
        return 4 if entry.large else 3 if entry.family == "graphs" else 2 if extra else int(entry.exporter == "dynamo")

    return sorted(found, key=late)


def _both(family: str, model: str, source: str = "") -> list[Entry]:
    return [
        Entry(family, model, "legacy", LEGACY_OPSET, source),
        Entry(family, model, "dynamo", DYNAMO_OPSET, source),
    ]


# ------------------------------------------------------------------------------------------------------------ cached exports


def cached(entry: Entry, cache: Path) -> Path:
    """Return where the export of an entry lies."""
    return cache / "exports" / f"{entry.id}.onnx.z"


def prepare(entry: Entry, cache: Path) -> None:
    """Export an entry into the cache; the caller sees to the time and memory that may be spent.

    Writes `<id>.onnx.z` and, beside it, `<id>.json` with what there is to say: {"note": …, "seconds": …}.
    """
    target = cached(entry, cache)
    target.parent.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    proto, note = _export(entry)
    if entry.family != "real":  # trained weights stay
        strip(proto)
    partial = target.with_name(target.name + ".part")
    partial.write_bytes(zlib.compress(proto.SerializeToString(), 6))
    info = {"note": note, "seconds": round(time.perf_counter() - begin, 2)}
    target.with_suffix(".json").write_text(json.dumps(info), encoding="utf-8")
    partial.replace(target)


def materialise(entry: Entry, cache: Path, target: Path) -> None:
    """Write an entry as a complete .onnx file: from the cache, or from its own source.

    Args:
        entry: what to write; one that torch exports has to be in the cache.
        cache: the cache.
        target: the file to write.
    """
    if entry.family == "light":
        target.write_bytes(fill_light(onnx.load(entry.source)).SerializeToString())
        return
    if entry.exporter == "file" and entry.source.endswith(".onnx"):
        target.symlink_to(Path(entry.source).resolve())
        return
    packed = Path(entry.source) if entry.exporter == "file" else cached(entry, cache)
    content = zlib.decompress(packed.read_bytes())
    for gain in GAINS:
        proto = onnx.ModelProto.FromString(content)
        fill(proto, gain)
        target.write_bytes(proto.SerializeToString())
        if gain == GAINS[-1] or _is_tame(target):
            return


def strip(proto: onnx.ModelProto) -> None:
    """Take the data out of large float initializers."""
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor) if tensor.data_type in FLOATS else None
        if values is None or values.size < MIN_STRIPPED or not np.isfinite(values).all():
            continue
        first = float(values.flat[0])
        equal = bool((values == first).all())
        mean, std = (
            (first, 0.0) if equal else (float(values.mean(dtype=np.float64)), float(values.std(dtype=np.float64)))
        )
        positive = not equal and mean > 0 and float(values.min()) >= 0
        empty = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        empty.doc_string = f"random {mean!r} {std!r}{' positive' if positive else ''}"
        tensor.CopyFrom(empty)


def _is_tame(file: Path) -> bool:
    """Tell whether a model answers noise with numbers of a usual size; one that explodes amplifies every rounding."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(SEED)
    feeds = {
        value.name: rng.standard_normal([d if isinstance(d, int) else 1 for d in value.shape]).astype(np.float32)
        for value in session.get_inputs()
    }
    return all(bool(np.abs(output).max() < TAME) for output in session.run(None, feeds))


def fill(proto: onnx.ModelProto, gain: float = 1.0, seed: int = SEED) -> None:
    """Put seeded random numbers into initializers that lost their data.

    Normal numbers, or lognormal ones where all were positive (variances): both of the mean and deviation that is noted,
    times `gain` where they are the weights of a layer.
    """
    rng = np.random.default_rng(seed)
    for tensor in proto.graph.initializer:
        if not tensor.doc_string.startswith("random "):
            continue
        _, mean_text, std_text, *flags = tensor.doc_string.split()
        mean, std, shape = float(mean_text), float(std_text), tuple(tensor.dims)
        if std == 0:
            values = np.full(shape, mean, dtype=np.float32)
        elif flags or ("var" in tensor.name and mean > 0):
            spread = np.log1p((std / mean) ** 2)
            values = np.exp(rng.normal(np.log(mean) - spread / 2, np.sqrt(spread), shape)).astype(np.float32)
        else:
            values = rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32(std)
            values += np.float32(mean)
            values *= np.float32(gain if len(shape) > 1 else 1)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        tensor.CopyFrom(numpy_helper.from_array(values.astype(dtype, copy=False), tensor.name))


def fill_light(proto: onnx.ModelProto, seed: int = SEED) -> onnx.ModelProto:
    """Replace the constant weights of a graph from onnx's `light` folder by seeded random ones.

    Their weights are ConstantOfShape nodes: every filter ties, the output is flat, and a broken pruner goes unnoticed.
    """
    rng = np.random.default_rng(seed)
    shapes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    uses: dict[str, tuple[str, int]] = {}
    for node in proto.graph.node:
        for index, name in enumerate(node.input):
            uses.setdefault(name, (node.op_type, index))
    nodes, weights = [], []
    for node in proto.graph.node:
        if node.op_type != "ConstantOfShape" or node.input[0] not in shapes or node.output[0] not in uses:
            nodes.append(node)
            continue
        shape = tuple(int(d) for d in shapes[node.input[0]])
        operator, index = uses[node.output[0]]
        noise = rng.standard_normal(shape)
        if len(shape) > 1:
            values = noise * np.sqrt(2 / max(1, int(np.prod(shape[1:]))))
        elif operator == "BatchNormalization" and index == 4:
            values = 0.5 + np.abs(noise)
        elif operator == "Mul" or (operator == "BatchNormalization" and index == 1):
            values = 0.5 + 0.1 * noise  # more would make deep residual networks explode
        else:
            values = 0.1 * noise
        weights.append(numpy_helper.from_array(values.astype(np.float32), node.output[0]))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(weights)
    for weight in weights:  # IR 3 lists every initializer among the inputs
        proto.graph.input.append(helper.make_tensor_value_info(weight.name, TensorProto.FLOAT, list(weight.dims)))
    return proto


# ------------------------------------------------------------------------------------------------------------------- torch


def build(entry: Entry) -> tuple[Any, tuple[int, ...]]:
    """Return (module in evaluation mode, shape of one input) of an entry, seeded, with random normalisation statistics."""
    import torch

    torch.manual_seed(SEED)
    shape: tuple[int, ...] = (3, 224, 224)
    if entry.family == "real":
        model = _efficientnet_lite0(Path(entry.source))
        return model.eval(), shape
    name, *variants = entry.model.split("+")
    if entry.family == "timm":
        import timm

        model = timm.create_model(name, pretrained=False)
        shape = tuple(model.pretrained_cfg.get("input_size", shape))
    else:
        import torchvision

        extra: dict[str, Any] = {"weights": None}
        if name in ("googlenet", "inception_v3"):
            extra["init_weights"] = False
            shape = (3, 299, 299) if name == "inception_v3" else shape
        if entry.family == "segmentation":
            extra["weights_backbone"] = None
        if entry.family == "video":
            shape = (3, 16, 64, 64)
        model = torchvision.models.get_model(name, **extra)
    model.eval()
    wake(model)
    randomise(model, shape)
    if "reparam" in variants:
        from timm.utils.model import reparameterize_model

        model = reparameterize_model(model)
    return model.eval(), shape


def _efficientnet_lite0(folder: Path) -> Any:
    weights = next(folder.rglob("efficientnet-lite0-*.pth"))
    package = next(folder.rglob("efficientnet_lite_pytorch/model.py")).parent.parent
    sys.path.insert(0, str(package))
    package_module = importlib.import_module("efficientnet_lite_pytorch")
    return package_module.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights))


def wake(model: Any) -> None:
    """Give a size to scales that start at or near zero (LayerScale, the gains of NF-Nets), or blocks would do nothing."""
    import torch
    from torch import nn

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            first = float(parameter.reshape(-1)[0])
            still = abs(first) <= 1e-2 and bool((parameter == first).all())
            if still and not (first == 0 and re.search("bias|beta|token|pos", name)):
                nn.init.uniform_(parameter, 0.2, 0.6)


def randomise(model: Any, shape: tuple[int, ...]) -> None:
    """Give every BatchNormalization statistics near those of its own input, none of them trivial.

    One batch of noise sets them, so that deep networks neither explode nor fade; then each number is moved at random.
    """
    import torch
    from torch import nn

    norms: list[Any] = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None
    ]
    if not norms:
        return
    for norm in norms:
        norm.momentum, saved = 1.0, norm.momentum
        norm.saved_momentum = saved
        norm.train()
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.6, 1.4)
            nn.init.normal_(norm.bias, 0.0, 0.2)
    with torch.no_grad():
        model(torch.randn(2, *shape))
        for norm in norms:
            norm.eval()
            norm.momentum = norm.saved_momentum
            norm.running_var.clamp_(min=1e-3)
            norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
            norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.4)


def _export(entry: Entry) -> tuple[onnx.ModelProto, str]:
    """Export with a dynamic batch; with a fixed one, and a note that says why, where that fails."""
    warnings.filterwarnings("ignore")
    model, shape = build(entry)
    if entry.exporter == "legacy":
        return _legacy(model, shape, entry.opset)
    if entry.opset:
        return _dynamo(model, shape, entry.opset)
    import onnxruntime

    for opset in range(onnx.defs.onnx_opset_version(), DYNAMO_OPSET, -1):
        try:
            proto, note = _dynamo(model, shape, opset)
            onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:
            continue
        return proto, note
    raise RuntimeError("no opset above 18 works")


def _legacy(model: Any, shape: tuple[int, ...], opset: int) -> tuple[onnx.ModelProto, str]:
    import torch

    torch.backends.mha.set_fastpath_enabled(False)  # its operator cannot be exported

    def once(batch: int, axes: dict[str, dict[int, str]] | None) -> onnx.ModelProto:
        buffer = io.BytesIO()
        with torch.no_grad():
            exporter: Any = torch.onnx.export
            exporter(
                model, (torch.randn(batch, *shape),), buffer, dynamo=False, opset_version=opset,
                input_names=["input"], dynamic_axes=axes,
            )  # fmt: skip
        proto: onnx.ModelProto = onnx.ModelProto.FromString(buffer.getvalue())
        return proto

    try:
        return _runs_on_any_batch(once(2, {"input": {0: "batch"}}), shape), ""
    except Exception as error:
        return once(1, None), f"fixed batch: {_line(error)}"


def _dynamo(model: Any, shape: tuple[int, ...], opset: int) -> tuple[onnx.ModelProto, str]:
    import torch

    def once(batch: int, shapes: Any) -> onnx.ModelProto:
        exporter: Any = torch.onnx.export
        program = exporter(
            model, (torch.randn(batch, *shape),), dynamo=True, opset_version=opset, verbose=False,
            input_names=["input"], dynamic_shapes=shapes,
        )  # fmt: skip
        proto: onnx.ModelProto = program.model_proto
        return proto

    try:
        return _runs_on_any_batch(once(2, ({0: torch.export.Dim("batch")},)), shape), ""
    except Exception as error:
        return once(1, None), f"fixed batch: {_line(error)}"


def _runs_on_any_batch(proto: onnx.ModelProto, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return the model, after a run on another batch: exporters may bake the size of the example into a Reshape."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, {proto.graph.input[0].name: np.zeros((3, *shape), dtype=np.float32)})
    return proto


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def select(found: Iterable[Entry], patterns: Iterable[str]) -> list[Entry]:
    """Return the entries whose id, or id without its family, matches one of the globs; all when there are none."""
    globs = list(patterns)
    return [
        e for e in found
        if not globs or any(fnmatch.fnmatch(e.id, g) or fnmatch.fnmatch(e.id.split("/", 1)[1], g) for g in globs)
    ]  # fmt: skip
