"""Mutations of bytes, text, trees of values and arrays. Each takes what it changes and a random generator, and makes one change."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from typing import Any

import numpy as np

Rng = random.Random
HUGE = (0, 1, -1, 2, 7, 255, 65536, 2**31 - 1, -(2**31), 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -0.0, 0.5, -1.5, 1e-300, 1e38, 1e308, -1e308, math.nan, math.inf, -math.inf)
TEXTS = (
    "", " ", "x", "y", "0", "-1", "nan", "None", "../up", "/etc/passwd", "a/b", "a\\b", "\x1b[31mred\x1b[0m", "\x00", "\r\n::error::x",
    "<img src=x onerror=1>", "é" * 3, "\u202e", "=1+1", "a" * 5000, "%s%n", "*", "[", "{0}", "conv1",
)  # fmt: skip


def odd(rng: Rng) -> Any:
    """Return a value that nobody expects."""
    choice = rng.randrange(8)
    if choice == 0:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": {}}))
    if choice < 3:
        return rng.choice((*HUGE, 2**63, 2**64, -(2**64), 10**30, 10**400))
    if choice < 5:
        return rng.choice(FLOATS)
    if choice < 7:
        return rng.choice(TEXTS)
    deep: Any = rng.choice((0, "x"))
    for _ in range(rng.choice((3, 30, 200))):
        deep = [deep] if rng.random() < 0.5 else {"k": deep}
    return deep


# --------------------------------------------------------------------------------------------------------------- bytes


def mutate_bytes(data: bytes, rng: Rng) -> bytes:
    """Change bytes: flip, overwrite, cut, copy, insert, repeat."""
    content = bytearray(data)
    size = len(content)
    if not size:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
    at = rng.randrange(size)
    span = min(size - at, rng.choice((1, 2, 4, 8, 16, 64, 256)))
    choice = rng.randrange(10)
    if choice < 3:
        content[at] ^= 1 << rng.randrange(8)
    elif choice == 3:
        content[at : at + span] = bytes(rng.randrange(256) for _ in range(span))
    elif choice == 4:
        content[at : at + span] = rng.choice((b"\x00", b"\xff", b"\x7f", b"\x80")) * span
    elif choice == 5:
        del content[at:]
    elif choice == 6:
        del content[at : at + span]
    elif choice == 7:
        content[at:at] = content[at : at + span] * rng.choice((1, 2, 50))
    elif choice == 8:
        content[at:at] = rng.choice(
            (b"\x00" * 4, b"\xff" * 9, b"\x80" * 10 + b"\x01", b"PK\x03\x04", b"\n", b'"', b"{" * 3000)
        )
    else:
        other = rng.randrange(size)
        content[at : at + span] = content[other : other + span]
    return bytes(content)


NUMBER = re.compile(rb"-?\d+(\.\d+)?")


def mutate_text(data: bytes, rng: Rng) -> bytes:
    """Change a file of text: its numbers, lines and separators; now and then its bytes."""
    choice = rng.randrange(8)
    if choice < 3:
        found = list(NUMBER.finditer(data))
        if found:
            number = rng.choice(found)
            new = str(rng.choice((*HUGE, *FLOATS, 2**64, "1" + "0" * 5000, "1e999", "0x10", "1_0", "", "٣"))).encode()
            return data[: number.start()] + new + data[number.end() :]
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    if choice == 3:
        del lines[at]
    elif choice == 4:
        lines.insert(at, rng.choice(lines))
    elif choice == 5:
        lines[at] = lines[at].replace(
            rng.choice((b",", b" ", b'"', b"=", b"<", b">", b"\t")), rng.choice((b"", b",", b";", b'"', b"\x00")), 1
        )
    elif choice == 6:
        lines[at] = rng.choice(TEXTS).encode() + lines[at]
    else:
        return mutate_bytes(data, rng)
    return b"\n".join(lines)


# --------------------------------------------------------------------------------------------------------------- trees


def mutate_tree(tree: Any, rng: Rng) -> Any:
    """Change one value of a tree of mappings and lists: replace, remove, repeat, rename, move."""
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    if not isinstance(tree, dict | list) or not tree:
        return odd(rng)
    walk(tree)
    node, key = rng.choice(places)
    choice = rng.randrange(8)
    if choice < 4:
        node[key] = odd(rng)
    elif choice == 4:
        del node[key]
    elif choice == 5:
        other, there = rng.choice(places)
        node[key] = copy.deepcopy(other[there])
    elif isinstance(node, list):
        node.insert(key, copy.deepcopy(node[key]) if choice == 6 else odd(rng))
    else:
        node[rng.choice(TEXTS)] = node.pop(key) if choice == 6 else odd(rng)
    return tree


def to_json(tree: Any) -> bytes:
    """Return a tree as JSON; one that is too deep for the encoder as brackets."""
    try:
        return json.dumps(tree, indent=1).encode("utf-8", "surrogatepass")
    except RecursionError:
        return b"[" * 100_000


def to_toml(tree: dict[str, Any]) -> bytes:
    """Return a tree as TOML, each table in line."""

    def value(entry: Any) -> str:
        if isinstance(entry, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {value(part)}" for key, part in entry.items()) + "}"
        if isinstance(entry, list):
            return "[" + ", ".join(map(value, entry)) + "]"
        if isinstance(entry, float):
            return repr(entry)
        return json.dumps(entry)

    try:
        return "".join(f"{json.dumps(key)} = {value(part)}\n" for key, part in tree.items()).encode(
            "utf-8", "surrogatepass"
        )
    except (RecursionError, AttributeError):
        return b"a = " + b"[" * 100_000


# -------------------------------------------------------------------------------------------------------------- arrays

DTYPES = (
    "float32",
    "float64",
    "float16",
    "int8",
    "uint8",
    "int64",
    "uint64",
    "bool",
    "complex64",
    "S3",
    "U4",
    "datetime64[s]",
    "O",
    "V5",
)


def mutate_array(array: np.ndarray[Any, Any], rng: Rng) -> np.ndarray[Any, Any]:
    """Change the dtype, the shape or some values of an array."""
    with np.errstate(all="ignore"):
        return _mutated_array(array, rng)


def _mutated_array(array: np.ndarray[Any, Any], rng: Rng) -> np.ndarray[Any, Any]:
    choice = rng.randrange(7)
    try:
        if choice == 0:
            return array.astype(rng.choice(DTYPES))
        if choice == 1:
            return array.reshape(rng.choice(((-1,), (1, -1), (-1, 1), (*array.shape, 1), (1, *array.shape))))
        if choice == 2:
            return array[rng.choice((slice(0), slice(1), slice(None, None, 2), slice(-1)))]
        if choice == 3:
            return np.repeat(array, 2, axis=rng.randrange(max(1, array.ndim)))
        if choice == 4:
            return np.asarray(odd(rng))
        if choice == 5:
            return np.zeros(rng.choice(((), (0,), (1,), (0, 3), (2, 0, 2))), rng.choice(DTYPES))
        changed = array.copy()
        changed.reshape(-1)[rng.randrange(max(1, changed.size))] = rng.choice((*FLOATS, *HUGE))
        return changed
    except (ValueError, TypeError, OverflowError, IndexError, RecursionError):
        return np.full((2, 2), rng.choice(FLOATS))
