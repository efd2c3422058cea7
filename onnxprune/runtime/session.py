"""Open sessions of onnxruntime and run batches in them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnxprune.errors import ModelError, OnnxPruneError, first_line
from onnxprune.runtime.limits import may_repeat, watched
from onnxprune.runtime.providers import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    OPENVINO_PROVIDER,
    Provider,
    package_of,
    parse_provider,
    short_name,
)
from onnxprune.runtime.weight_files import place_of

Feeds = dict[str, np.ndarray[Any, Any]]

ort.set_default_logger_severity(4)
ORT_VERSION: str = ort.__version__
NO_FALLBACK = "session.disable_cpu_ep_fallback"
REFUSED = "fallback to CPU EP has been explicitly disabled"
"""Part of onnxruntime's message where a provider leaves nodes to the CPU."""


@dataclass(frozen=True)
class SessionConfig:
    """How onnxruntime executes a model.

    Attributes:
        provider: execution provider, as `onnxprune.runtime.providers.parse_provider` takes it; its options may follow the name.
        options: keys and values of the options of the provider.
        fallback: whether nodes that the provider does not take run on the CPU; off, they are an error.
        threads: threads within an operator; 0: onnxruntime's (OpenVINO's) default.
        optimize: whether onnxruntime may rewrite the graph; off, models are compared operator by operator.
        spinning: whether threads spin between runs; off, the processors are free for numpy between runs.
    """

    provider: str = CPU_PROVIDER
    options: tuple[tuple[str, str], ...] = ()
    fallback: bool = False
    threads: int = 0
    optimize: bool = True
    spinning: bool = True

    def __post_init__(self) -> None:
        found = parse_provider(self.provider)
        given = (
            *found.options,
            *((str(key), str(value)) for key, value in self.options),
        )  # lists, where read from JSON
        object.__setattr__(self, "provider", found.name)
        object.__setattr__(self, "options", tuple(given))

    @property
    def label(self) -> str:
        """The provider and its options in one text."""
        return str(Provider(self.provider, self.options))


DEFAULT = SessionConfig()
UNOPTIMIZED = SessionConfig(optimize=False)
ALTERNATING = SessionConfig(spinning=False)
"""Config of runs that alternate with numpy."""


def open_session(
    model: onnx.ModelProto | bytes | str,
    config: SessionConfig = DEFAULT,
    *,
    where: str = "the model",
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    folder: str = "",
    profile: str | None = None,
) -> ort.InferenceSession:
    """Open an onnxruntime session.

    Args:
        model: a proto, its bytes, or a path.
        config: how the model is executed.
        where: name of the model in errors.
        weights: values of initializers that the proto stores externally; onnxruntime copies them, but maps those that lie in files.
        folder: of the external data of a proto.
        profile: prefix of the file that onnxruntime's profiler writes; None: the profiler is off.

    Raises:
        ModelError: onnxruntime cannot load the model, lacks the provider, or would run nodes on the CPU without leave to.
    """
    options, kept = ort.SessionOptions(), weights
    options.log_severity_level = 4
    options.intra_op_num_threads = config.threads
    if not config.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights and isinstance(model, onnx.ModelProto):
        model, weights, folder = _located(model, weights)
    if folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if config.optimize else levels.ORT_DISABLE_ALL
    shared = {name: ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(x)) for name, x in (weights or {}).items()}
    if shared:
        options.add_external_initializers(list(shared), list(shared.values()))
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else model
    # external data lie beside a link to the file, as in a cache of a model hub, or beside the file itself
    sources = dict.fromkeys((source, os.path.realpath(source))) if isinstance(source, str) else (source,)
    _require(config, where)
    if config.provider != CPU_PROVIDER and not config.fallback:
        options.add_session_config_entry(NO_FALLBACK, "1")
    opened = None
    for source in sources:
        try:
            opened = ort.InferenceSession(source, options, providers=_providers(config), enable_fallback=0)
            break
        except Exception as error:
            failure = error
    if opened is None:
        if REFUSED in str(failure):
            raise _not_taken(source, options, config, where) from failure
        raise ModelError(
            "onnxruntime cannot load the model",
            where=where,
            why=first_line(failure),
            hint="check that the file runs in onnxruntime before pruning it"
            if config.provider == CPU_PROVIDER
            else f"check that {short_name(config.label)} runs the file in onnxruntime, and the options of the provider",
        ) from failure
    if config.provider not in opened.get_providers():
        raise _not_set_up(config, where)
    opened.onnxprune_where, opened.onnxprune_repeats = where, may_repeat(source)
    opened.onnxprune_weights = shared, kept  # as long as the session
    return opened


def _located(
    proto: onnx.ModelProto, weights: Mapping[str, np.ndarray[Any, Any]]
) -> tuple[onnx.ModelProto, dict[str, np.ndarray[Any, Any]], str]:
    """Return a model that names the files in which weights lie, the weights that lie in none, and the folder of all files."""
    found = {name: place for name, values in weights.items() if (place := place_of(values))}
    folder = next((Path(path).anchor for path, _ in found.values()), "")
    places = {name: place for name, place in found.items() if Path(place[0]).anchor == folder}
    if not places:
        return proto, dict(weights), ""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    for tensor in result.graph.initializer:
        if tensor.name in places:
            path, offset = places[tensor.name]
            del tensor.external_data[:]
            entries = {"location": Path(path).relative_to(folder).as_posix(), "offset": offset}
            for key, value in {**entries, "length": weights[tensor.name].nbytes}.items():
                tensor.external_data.add(key=key, value=str(value))
    return result, {name: values for name, values in weights.items() if name not in places}, folder


def _require(config: SessionConfig, where: str) -> None:
    """Refuse a provider that this onnxruntime lacks."""
    available = ort.get_available_providers()
    if config.provider not in available:
        package = package_of(config.provider)
        raise ModelError(
            f"onnxruntime has no {config.provider} here",
            where=where,
            why=f"it has {', '.join(available)}",
            hint=f"install {package} in place of the onnxruntime that is here, or name another provider"
            if package
            else "install the onnxruntime of that provider, or name another one",
        )


def _providers(config: SessionConfig) -> list[tuple[str, dict[str, str]]]:
    """Return the providers of a session, with their options; nodes that TensorRT leaves go to CUDA before the CPU."""
    options = dict(config.options)
    if config.provider == OPENVINO_PROVIDER and config.threads:
        options["num_of_threads"] = str(config.threads)  # OpenVINO has threads of its own
    behind = [CUDA_PROVIDER] if config.fallback and "Tensorrt" in config.provider else []
    behind = [name for name in behind if name in ort.get_available_providers()]
    return [(config.provider, options), *((name, {}) for name in behind)]


def _not_set_up(config: SessionConfig, where: str) -> ModelError:
    return ModelError(
        f"{short_name(config.label)} is in this onnxruntime, but cannot be set up on this machine",
        where=where,
        why="onnxruntime would run the whole model on the CPU",
        hint="check the device, its driver and libraries, and the options of the provider",
    )


def _not_taken(source: bytes | str, options: ort.SessionOptions, config: SessionConfig, where: str) -> ModelError:
    """Return the error for nodes that a provider leaves to the CPU; it names their operators where onnxruntime tells."""
    left: list[str] = []
    options.add_session_config_entry(NO_FALLBACK, "0")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        opened = ort.InferenceSession(source, options, providers=_providers(config), enable_fallback=0)
        if config.provider not in opened.get_providers():
            return _not_set_up(config, where)
        for part in opened.get_provider_graph_assignment_info():
            left += [node.op_type for node in part.get_nodes()] if part.ep_name == CPU_PROVIDER else []
    except Exception:  # an onnxruntime that does not tell
        left = []
    names = f": {', '.join(sorted(set(left)))}" if left else ""
    return ModelError(
        f"{short_name(config.label)} does not run all of the model",
        where=where,
        why=f"it leaves {len(left) or 'some'} node{'' if len(left) == 1 else 's'} to the CPU{names}",
        hint="--allow-fallback (fallback=True) runs these nodes on the CPU; or name another provider",
    )


def watch(proto: onnx.ModelProto, names: Iterable[str]) -> None:
    """Make tensors of a model outputs as well, in place."""
    present = {value.name for value in proto.graph.output}
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)


def run_batch(
    opened: ort.InferenceSession, feeds: Feeds, *, where: str = "", names: list[str] | None = None
) -> list[Any]:
    """Run one batch and return the outputs in order; `where` names the model in errors, by default as the session does.

    Raises:
        ModelError: onnxruntime fails on these inputs.
        RunLimitError: the run takes more time or memory than it may; see `onnxprune.runtime.limits`.
    """
    where = where or opened.onnxprune_where
    given = {name: _array(value) for name, value in feeds.items()}
    try:
        if not opened.onnxprune_repeats:
            return list(opened.run(names, given))
        with watched(where) as options:
            return list(opened.run(names, given, options))
    except OnnxPruneError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{name} {value.dtype}{list(value.shape)}" for name, value in feeds.items())
        raise ModelError(
            "onnxruntime cannot run the model",
            where=where,
            why=f"on {shapes}: {first_line(error)}",
            hint="check the shapes and dtypes of the inputs",
        ) from error


def _array(value: Any) -> Any:
    """Return a number as an array without axes: the arithmetic of numpy turns such an array into a number."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def fed_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must feed: those without a default, an initializer of the same name."""
    defaults = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in defaults]


def random_feeds(proto: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], seed: int) -> Feeds:
    """Return seeded inputs of the given shapes: standard normal numbers, bytes, or 0 and 1 for other integers."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for value in fed_inputs(proto):
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        shape = shapes[value.name]
        floating = np.issubdtype(dtype, np.floating) or str(dtype) == "bfloat16"
        top = 256 if dtype == np.uint8 and len(shape) > 1 else 2
        drawn = rng.standard_normal(shape) if floating else rng.integers(0, top, shape)
        feeds[value.name] = np.asarray(drawn).astype(dtype)  # a draw of shape () is no array
    return feeds
