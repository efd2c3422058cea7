"""Names of classes beside label files."""

from __future__ import annotations

from pathlib import Path

from onnxprune.data.labels.values import read_file
from onnxprune.reading import read_text

LISTED = "classes.txt"
"""File of one name per line."""
DESCRIBED = ("data.yaml", "data.yml", "dataset.yaml")
ABOVE = 2
"""Folders above the label files in which `DESCRIBED` is looked for, as in data/labels/train."""


def names_near(folder: Path) -> tuple[str, ...]:
    """Return names of classes: of `classes.txt` in a folder, or of `data.yaml` there or above; empty where there are none.

    `data.yaml` is read only if PyYAML is installed.

    Raises:
        DataError: the file cannot be read.
    """
    listed = folder / LISTED
    if listed.is_file():
        lines = read_file(listed, lambda: read_text(listed), "text").splitlines()
        return tuple(line.strip() for line in lines if line.strip())
    places = [folder.resolve(), *folder.resolve().parents[:ABOVE]]
    described = next((place / name for place in places for name in DESCRIBED if (place / name).is_file()), None)
    return () if described is None else read_file(described, lambda: _of_yaml(described), "YAML")


def _of_yaml(path: Path) -> tuple[str, ...]:
    try:
        import yaml
    except ImportError:
        return ()
    content = yaml.safe_load(read_text(path))
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        names = [names[number] for number in range(len(names))]
    if any(isinstance(name, list | dict) for name in names or ()):
        raise ValueError("a name of a class is no text")  # nor is it shown: aliases can make it long without end
    return tuple(map(str, names or ()))
