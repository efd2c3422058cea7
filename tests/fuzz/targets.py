"""What is fuzzed: per class of files, how a case is made of a corpus and mutations, and what reads it.

A case follows from the name of its class, a seed and its number alone. It is done, or refused with a message; anything else is a fault.
"""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import onnx
from children import command
from commands import loads, network, samples
from corpus import COCO, PICTURES, POLICY, PREPROCESSING, PROFILE, TABLES, TIMES_TABLE, TRT, VOC, YOLO
from made_files import CACHED, CACHED_LAYERS, CACHED_MULTIPLE, MADE, RESUMED, SWEEP, TIMED, TUNE
from model_mutators import mutate_external, mutate_model
from mutators import mutate_array, mutate_bytes, mutate_text, mutate_tree, to_json, to_toml

from onnxprune.allocation import channel_multiple
from onnxprune.data.dataset import load_data
from onnxprune.data.input_spec import InputSpec
from onnxprune.data.preprocess import load_preprocess
from onnxprune.graph.file_checks import check_nodes

Files = dict[str, bytes]
Rng = random.Random
ATTEMPTS = 6
"""Mutations that are tried for one that leaves a model which onnxruntime loads."""
STEPS = (1, 1, 1, 1, 2, 2, 3, 6)
"""Numbers of mutations of a case."""
NAMES = ("x", "labels", "boxes", "odd")


@dataclass(frozen=True)
class Case:
    """A case: its class, the seed and number that it follows from, and those of its mutations that are applied; None: all."""

    kind: str
    seed: int
    number: int
    steps: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"{self.kind} --seed {self.seed} --only {self.number}"


class Maker:
    """Random choices of a case: the base, the mutations, and how it is read; each is the same whatever the others are."""

    def __init__(self, case: Case) -> None:
        self.rng = random.Random(f"{case.seed} {case.kind} {case.number}")
        self.reading = random.Random(f"{case.seed} {case.kind} {case.number} reading")
        count = self.rng.choice(STEPS)
        seeds = [self.rng.getrandbits(32) for _ in range(count)]
        self.steps = seeds if case.steps is None else [seeds[step] for step in case.steps]

    def mutated(self, value: Any, *mutations: Callable[[Any, Rng], Any]) -> Any:
        """Return a value after all mutations; each is chosen of those given."""
        for step in self.steps:
            rng = random.Random(step)
            value = rng.choice(mutations)(value, rng)
        return value


def count_of(case: Case) -> int:
    """Return the number of mutations of a case."""
    return len(Maker(replace(case, steps=None)).steps)


# -------------------------------------------------------------------------------------------------------------- models


def _model_bytes(maker: Maker) -> Files:
    model = corpus.model(maker.rng.randrange(len(corpus.sources())))
    return {"m.onnx": maker.mutated(model.SerializeToString(), mutate_bytes)}


def _model(maker: Maker) -> Files:
    model = corpus.model(maker.rng.randrange(len(corpus.sources())))
    return {"m.onnx": maker.mutated(model, mutate_model).SerializeToString()}


def _loadable(maker: Maker) -> Files:
    """Return a model of which each mutation leaves one that onnxruntime loads, where one of a few attempts does."""
    model = corpus.model(maker.rng.randrange(len(corpus.sources())))

    def change(found: onnx.ModelProto, rng: Rng) -> onnx.ModelProto:
        for _ in range(ATTEMPTS):
            changed = mutate_model(found, rng)
            try:
                check_nodes(changed, Path("m.onnx"))
                loads(changed.SerializeToString())
            except Exception:
                continue
            return changed
        return found

    return {"m.onnx": maker.mutated(model, change).SerializeToString()}


def _external_model(maker: Maker) -> Files:
    model, data = corpus.external()

    def place(changed: onnx.ModelProto, rng: Rng) -> onnx.ModelProto:
        copied = onnx.ModelProto.FromString(changed.SerializeToString())
        mutate_external(copied, copied.graph, rng)
        return copied

    return {"m.onnx": maker.mutated(model, place, place, mutate_model).SerializeToString(), "w.data": data}


def _inspect(_: Maker) -> int:
    return command("inspect", "m.onnx", "--quiet")


def _prune(maker: Maker) -> int:
    how = maker.reading.choice((("--repair", "none"), ("--samples", 16), ("--repair", "none", "--granularity", "all")))
    fixed = ("--no-latency", "--round-to", 1, "--quiet", "--reduce", "flops=20%")
    code = command("prune", "m.onnx", "-o", "o.onnx", *fixed, *how)
    if Path("o.onnx").exists():
        loads(Path("o.onnx"))
    elif code == 0:
        raise AssertionError("exit 0 without a result")
    return code


def _check(_: Maker) -> int:
    Path("b.onnx").write_bytes(network().SerializeToString())
    return command("check", "m.onnx", "--baseline", "b.onnx", "--no-latency", "--max-drop", 5, "--quiet", *_with_data())


def _with_data() -> tuple[str, ...]:
    np.savez("d.npz", **samples())  # type: ignore[arg-type]
    return ("--data", "d.npz")


# ---------------------------------------------------------------------------------------------------------------- data


def _npz(maker: Maker) -> Files:
    arrays: dict[str, Any] = {name: value[:12] for name, value in samples().items()}
    if maker.rng.random() < 0.4:
        return {"d.npz": maker.mutated(corpus.saved(arrays, packed=maker.rng.random() < 0.5), mutate_bytes)}
    if maker.rng.random() < 0.3:
        stream = io.BytesIO()
        np.save(stream, maker.mutated(arrays["x"], mutate_array))
        return {
            "d.npy": maker.mutated(stream.getvalue(), mutate_bytes) if maker.rng.random() < 0.5 else stream.getvalue()
        }

    def change(named: dict[str, Any], rng: Rng) -> dict[str, Any]:
        name = rng.choice((*named, *NAMES))
        return {**named, name: mutate_array(named.get(name, named[next(iter(named))]), rng)}

    return {"d.npz": corpus.saved(maker.mutated(arrays, change))}


def _read_npz(maker: Maker) -> int:
    data = next(Path().glob("d.np*"))
    Path("m.onnx").write_bytes(network().SerializeToString())
    task = maker.reading.choice(
        ((), (), ("--task", maker.reading.choice(("regress", "embed", "multilabel", "detect", "classify"))))
    )
    if maker.reading.random() < 0.15:
        return command(
            "check", "m.onnx", "--baseline", "m.onnx", "--data", data, "--no-latency", "--max-drop", 5, *task, "--quiet"
        )
    options = ("--reduce", "flops=20%", "--round-to", 1, "--samples", 8)
    return command("plan", "m.onnx", "-o", "p.json", "--data", data, *options, *task, "--quiet")


SPEC = (InputSpec("x", np.dtype(np.float32), (None, 3, 8, 8)),)


def _pictures(maker: Maker) -> Files:
    kinds = (("png", "RGB"), ("png", "P"), ("png", "RGBA"), ("png", "I;16"), ("png", "1"), ("jpg", "RGB"), ("jpg", "CMYK"), ("bmp", "RGB"), ("tif", "RGB"), ("webp", "RGB"), ("ppm", "RGB"))  # fmt: skip
    suffix, mode = maker.rng.choice(kinds)
    if mode == "I;16":
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(np.arange(120, dtype=np.uint16).reshape(10, 12) * 500).save(stream, "PNG")
        plain = stream.getvalue()
    else:
        plain = corpus.picture(suffix, mode=mode)
    return {f"i/a.{suffix}": maker.mutated(plain, mutate_bytes), "i/z.png": corpus.picture("png")}


def _read_pictures(maker: Maker) -> str:
    options = maker.reading.choice(PREPROCESSING)
    Path("p.toml").write_bytes(to_toml(options))
    data = load_data("i", SPEC, "p.toml")
    return str([value.shape for value in data.rows(0, len(data)).values()])


def _preprocessing(maker: Maker) -> Files:
    tree = maker.rng.choice(PREPROCESSING)
    if maker.rng.random() < 0.3:
        return {"p.toml": maker.mutated(to_toml(tree), mutate_text)}
    return {"p.toml": to_toml(maker.mutated(tree, mutate_tree))}


def _read_preprocessing(_: Maker) -> str:
    how = load_preprocess("p.toml")
    Path("i").mkdir(exist_ok=True)
    Path("i/a.png").write_bytes(corpus.picture("png"))
    data = load_data("i", SPEC, how)
    return str([value.shape for value in data.rows(0, 1).values()])


def _policy(maker: Maker) -> Files:
    if maker.rng.random() < 0.3:
        return {"p.toml": maker.mutated(to_toml(POLICY), mutate_text)}
    return {"p.toml": to_toml(maker.mutated(POLICY, mutate_tree))}


def _read_policy(maker: Maker) -> int:
    if maker.reading.random() < 0.9:
        return command("check", "gone.onnx", "--policy", "p.toml")  # the policy is read first
    Path("m.onnx").write_bytes(network().SerializeToString())
    return command(
        "check", "m.onnx", "--baseline", "m.onnx", "--no-latency", "--policy", "p.toml", "--quiet", *_with_data()
    )


# -------------------------------------------------------------------------------------------------------------- labels


def _coco(maker: Maker) -> Files:
    if maker.rng.random() < 0.3:
        return {"l.json": maker.mutated(to_json(COCO), mutate_text)}
    return {"l.json": to_json(maker.mutated(COCO, mutate_tree))}


def _yolo(maker: Maker) -> Files:
    texts = {f"l/{Path(name).stem}.txt": text.encode() for name, text in zip(PICTURES, YOLO, strict=True)}
    name = maker.rng.choice(list(texts))
    listed = {"l/classes.txt": b"cat\ndog\n"} if maker.rng.random() < 0.3 else {}
    return {**texts, name: maker.mutated(texts[name], mutate_text), **listed}


def _voc(maker: Maker) -> Files:
    texts = {f"l/{Path(name).stem}.xml": VOC.encode() for name in PICTURES}
    return {**texts, "l/b.xml": maker.mutated(VOC.encode(), mutate_text)}


def _table(maker: Maker) -> Files:
    text = maker.rng.choice(TABLES)
    suffix = maker.rng.choice((".csv", ".csv", ".tsv", ".txt"))
    text = text if suffix == ".csv" else text.replace(",", "\t")
    return {f"l{suffix}": maker.mutated(text.encode(), mutate_text)}


def _masks(maker: Maker) -> Files:
    modes = ("L", "P", "1")
    files = {
        f"l/{Path(name).stem}.png": corpus.picture("png", mode=maker.rng.choice(modes), seed=n)
        for n, name in enumerate(PICTURES)
    }
    return {**files, "l/b.png": maker.mutated(files["l/b.png"], mutate_bytes)}


def _read_labels(maker: Maker) -> str:
    Path("i").mkdir(exist_ok=True)
    for name in PICTURES:
        Path("i", name).write_bytes(corpus.picture(name.rpartition(".")[2]))
    labels = next(path for path in Path().iterdir() if path.name == "l" or path.name.startswith("l."))
    how = load_preprocess(_toml(maker.reading.choice(PREPROCESSING)))
    task = maker.reading.choice(
        (None, None, None, "detect", "segment", "keypoints", "classify", "regress", "multilabel", "ctc")
    )
    data = load_data("i", SPEC, how, labels, task)
    return str(None if data.labels is None else data.labels.shape)


def _toml(tree: dict[str, Any]) -> str:
    Path("how.toml").write_bytes(to_toml(tree))
    return "how.toml"


# -------------------------------------------------------------------------------------------- plans, states and tables


def _json_of(maker: Maker, *names: str) -> bytes:
    content = MADE[maker.rng.choice(names)]
    if maker.rng.random() < 0.3:
        return bytes(maker.mutated(content, mutate_text))
    return to_json(maker.mutated(json.loads(content), mutate_tree))


def _plan(maker: Maker) -> Files:
    return {"p.json": _json_of(maker, "plan.json", "edits.json"), "m.onnx": MADE["m.onnx"]}


def _read_plan(_: Maker) -> int:
    code = command("prune", "m.onnx", "-o", "o.onnx", "--plan", "p.json", "--no-latency", "--repair", "none", "--quiet")
    if Path("o.onnx").exists():
        loads(Path("o.onnx"))
    return code


def _latency(maker: Maker) -> Files:
    return {"t.json": _json_of(maker, "table.json"), "m.onnx": MADE["m.onnx"]}


def _read_latency(maker: Maker) -> int:
    if maker.reading.random() < 0.5:
        return command("bench", "m.onnx", "--profile-on", "t.json", "--quiet")
    options = ("--latency-table", "t.json", "--reduce", "latency=10%", "--round-to", 1, "--quiet")
    return command("plan", "m.onnx", "-o", "p.json", *options)


def _profile(maker: Maker) -> Files:
    choice = maker.rng.randrange(3)
    if choice == 2:
        return {"t.csv": maker.mutated(TIMES_TABLE.encode(), mutate_text)}
    tree = (PROFILE, TRT)[choice]
    if maker.rng.random() < 0.3:
        return {"t.json": maker.mutated(to_json(tree), mutate_text)}
    return {"t.json": to_json(maker.mutated(tree, mutate_tree))}


def _read_profile(_: Maker) -> int:
    Path("m.onnx").write_bytes(network().SerializeToString())
    return command("bench", "m.onnx", "--profile-on", next(Path().glob("t.*")), "--quiet")


def _cache(maker: Maker) -> Files:
    names = sorted(path.name for path in (MADE.folder or Path()).glob("cache/*.json"))
    files = {f"cache/{name}": MADE[f"cache/{name}"] for name in names}
    name = f"cache/{maker.rng.choice(names)}"
    return {**files, name: _json_of(maker, name), "m.onnx": MADE["m.onnx"], "d.npz": MADE["d.npz"]}


def _read_cache(maker: Maker) -> int:
    channel_multiple.machine_multiple.cache_clear()
    return command(*maker.reading.choice((CACHED, CACHED_MULTIPLE, CACHED_LAYERS)))


def _timings(maker: Maker) -> Files:
    return {"times.json": _json_of(maker, "times.json"), "m.onnx": MADE["m.onnx"]}


def _read_timings(_: Maker) -> int:
    return command(*TIMED)


def _results(maker: Maker) -> Files:
    """Return the state of a pruning that broke off, with one file changed."""
    names = sorted(path.name for path in (MADE.folder or Path()).glob("r.onnx.state/*"))
    files = {f"r.onnx.state/{name}": MADE[f"r.onnx.state/{name}"] for name in names}
    name = maker.rng.choice(list(files))
    changed = _json_of(maker, name) if name.endswith(".json") else maker.mutated(files[name], mutate_bytes)
    return {**files, name: changed, "m.onnx": MADE["m.onnx"], "d.npz": MADE["d.npz"]}


def _read_results(_: Maker) -> int:
    code = command(*RESUMED)
    if Path("r.onnx").exists():
        loads(Path("r.onnx"))
    return code


def _state(maker: Maker) -> Files:
    files = {name: MADE[name] for name in ("m.onnx", "o.onnx", "d.npz")}
    if maker.rng.random() < 0.5:
        return {**files, "state": maker.mutated(MADE["state"], mutate_bytes)}
    import torch

    state = torch.load(io.BytesIO(MADE["state"]), weights_only=True)

    def change(tree: Any, rng: Rng) -> Any:
        key = rng.choice(
            [name for name in tree if name not in ("version", "key")] if rng.random() < 0.9 else list(tree)
        )
        part = tree[key]
        if isinstance(part, dict | list) and part and rng.random() < 0.8:
            return {**tree, key: mutate_tree(part, rng)}
        return (
            {name: value for name, value in tree.items() if name != key}
            if rng.random() < 0.4
            else {**tree, key: mutate_tree(None, rng)}
        )

    stream = io.BytesIO()
    try:
        torch.save(maker.mutated(state, change), stream)
    except Exception:  # too deep, or too large a number
        return {**files, "state": b"odd"}
    return {**files, "state": stream.getvalue()}


def _read_state(_: Maker) -> int:
    return command(*TUNE, "--checkpoint", "state")


def _members(maker: Maker) -> Files:
    files = {name: MADE[name] for name in ("m.onnx", "d.npz")}
    names = sorted(path.name for path in (MADE.folder or Path()).glob("sizes/*"))
    files |= {f"sizes/{name}": MADE[f"sizes/{name}"] for name in names}
    files["sizes/sweep.json"] = _json_of(maker, "sizes/sweep.json")
    return files


def _read_members(_: Maker) -> int:
    return command("sweep", "m.onnx", "-o", "sizes", "--data", "d.npz", *SWEEP)


@dataclass(frozen=True)
class Target:
    """A class of files: its share of all cases, how its files are made, and what reads them in the current folder."""

    share: int
    make: Callable[[Maker], Files]
    read: Callable[[Maker], Any]


TARGETS: dict[str, Target] = {
    "ONNX bytes": Target(12, _model_bytes, _inspect),
    "ONNX structure": Target(12, _model, _inspect),
    "ONNX that loads": Target(15, _loadable, _inspect),
    "ONNX that loads, pruned": Target(6, _loadable, _prune),
    "ONNX, checked": Target(
        1, lambda maker: {"m.onnx": maker.mutated(network(), mutate_model).SerializeToString()}, _check
    ),
    "external data": Target(5, _external_model, _inspect),
    "arrays": Target(8, _npz, _read_npz),
    "images": Target(8, _pictures, _read_pictures),
    "preprocessing (TOML)": Target(5, _preprocessing, _read_preprocessing),
    "policies (TOML)": Target(4, _policy, _read_policy),
    "COCO": Target(5, _coco, _read_labels),
    "YOLO": Target(2, _yolo, _read_labels),
    "VOC": Target(2, _voc, _read_labels),
    "label tables": Target(2, _table, _read_labels),
    "masks": Target(2, _masks, _read_labels),
    "plans (JSON)": Target(4, _plan, _read_plan),
    "latency tables": Target(4, _latency, _read_latency),
    "profiles": Target(2, _profile, _read_profile),
    "caches": Target(1, _cache, _read_cache),
    "timing tables": Target(2, _timings, _read_timings),
    "resume states": Target(2, _results, _read_results),
    "checkpoints": Target(2, _state, _read_state),
    "sweep states": Target(1, _members, _read_members),
}


def files_of(case: Case) -> Files:
    """Return the files of a case."""
    return TARGETS[case.kind].make(Maker(case))


def read(case: Case, files: Files | None = None) -> Any:
    """Write the files of a case into the current folder, and read them there."""
    here = Path()
    for path in list(here.iterdir()):
        if path.name == "tmp":
            for inner in path.iterdir():
                shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    for name, content in (files_of(case) if files is None else files).items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)
    maker = Maker(case)
    return TARGETS[case.kind].read(maker)


SLOW = ("checkpoints", "sweep states", "resume states", "caches")
"""Classes whose files take seconds to make."""


def cases(seed: int, count: int, kinds: Sequence[str] = tuple(TARGETS)) -> list[Case]:
    """Return so many cases, by the shares of their classes; at least one of each."""
    total = sum(TARGETS[kind].share for kind in kinds)
    counts = {kind: max(1, round(count * TARGETS[kind].share / total)) for kind in kinds}
    return [Case(kind, seed, number) for kind, many in counts.items() for number in range(many)]
