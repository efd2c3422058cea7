"""What the documentation says is what the code does."""

from __future__ import annotations

import doctest
import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from package_layers import LAYERS
from PIL import Image

from onnxprune.cli import main
from onnxprune.graph.operators import RULES

ROOT = Path(__file__).resolve().parent.parent


def tool(name: str) -> Any:
    """Return a script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_operators_page_is_printed_from_the_rule_table() -> None:
    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert page == tool("operators").page(), "run python tools/operators.py"


@pytest.mark.parametrize("name", ["README.md", "docs/training.md", "docs/gate.md"])
def test_tables_of_options_are_written_from_their_fields(name: str) -> None:
    module = tool("options")
    assert (ROOT / name).read_text(encoding="utf-8") == module.page(name), "run python tools/options.py"
    assert module.page(name).count("| `--") > 10


def test_ops_command_lists_every_rule() -> None:
    listed = CliRunner().invoke(main, ["ops"]).stdout
    assert all(re.search(rf"^{name}\s", listed, re.MULTILINE) for name in RULES)
    assert set(json.loads(CliRunner().invoke(main, ["ops", "--json"]).stdout)) == set(RULES)


def test_readme_has_two_set_up_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^```sh setup$", readme, re.MULTILINE)) == 2


def test_options_in_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = {name: {flag for p in command.params for flag in p.opts} for name, command in main.commands.items()}  # type: ignore[attr-defined]
    for line in re.findall(r"^onnxprune (.*)$", readme, re.MULTILINE):
        name, *words = line.split("#")[0].split()
        assert {word for word in words if word.startswith("-")} <= commands[name], line
    options = {
        flag for row in re.findall(r"^\| (`--.*?) \|", readme, re.MULTILINE) for flag in re.findall(r"--[a-z-]+", row)
    }
    assert options
    assert options <= commands["prune"]


def test_architecture_lists_every_package_and_module_in_the_order_of_imports() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \| (.*) \|$", page, re.MULTILINE)
    order = [names[0] for names in LAYERS if (ROOT / "onnxprune" / names[0]).is_dir()]
    assert [name for name, _ in rows] == order
    for name, row in rows:
        folder = ROOT / "onnxprune" / name
        there = {
            f"{path.stem}{'/' if path.is_dir() else ''}" for path in folder.iterdir() if path.suffix in ("", ".py")
        }
        there -= {"__init__", "__pycache__/", "templates/"}
        assert set(re.findall(r"`([\w/]+)`", row)) & (there | {f"{path}/" for path in there}) == there, name


# ---------------------------------------------------------------------------------------------------------------- executed

NOT_RUN = {
    "--granularity": "forms of layers are timed; tests/surgery/test_edits.py and tests/pipeline/test_contest.py",
    "latency": "the machine is measured for a minute; tests/allocation/test_latency_model.py and test_targets.py",
    "prune model.onnx -o small.onnx --data data.npz --max-drop": "many sizes are tried; tests/allocation/test_knapsack.py",
    "prune detector.onnx": "many sizes are tried; tests/pipeline/test_tasks_of_runs.py",
    "sweep": "many sizes are made; tests/pipeline/test_sweep.py",
}
"""Commands of the documentation that are not executed here, by what they contain: why, and what executes them."""
SMALLER = {
    "images/ --preprocess imagenet": "data.npz",
    "--finetune 3min": "--finetune 2steps",
    "--for 2epochs": "--for 2steps",
    "--max-drop 0.5 --min-speedup 1.3": "--max-drop 100 --min-speedup 0.001",
}
"""What takes long, hangs on the machine, or needs files that are not there, and what stands in for it."""
PAGES = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))


def commands_of(page: str) -> list[str]:
    return re.findall(r"^ *(onnxprune .*)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)


def blocks_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def needs_what_is_missing(text: str) -> bool:
    extras = {"finetune": "torch", "--report": "bokeh", "--plot": "matplotlib"}
    return any(word in text and importlib.util.find_spec(module) is None for word, module in extras.items())


def write_scenes(folder: Path) -> None:
    """Write the reference detector, and some of its scenes as pictures with labels in COCO's form."""
    shutil.copy(ROOT / "models" / "detector.onnx", folder)
    (folder / "letterbox.toml").write_text(
        '[image]\nletterbox = 64\ncolor = "L"\nscale = 0.00392156862745098\n', encoding="utf-8"
    )
    (folder / "images").mkdir()
    with np.load(ROOT / "models" / "scenes_boxes.npz") as content:
        pictures, boxes = content["images"][:40], content["labels"][:40].astype(float)
    objects = []
    for number, (picture, rows) in enumerate(zip(pictures, boxes, strict=True)):
        Image.fromarray(picture[0]).save(folder / "images" / f"{number:03d}.png")
        objects += [
            {"id": len(objects) + n, "image_id": number, "category_id": int(kind), "iscrowd": 0,
             "bbox": [x, y, right - x, low - y], "area": (right - x) * (low - y)}
            for n, (x, y, right, low, kind) in enumerate(rows[rows[:, 4] >= 0], 1)
        ]  # fmt: skip
    named = [{"id": n, "file_name": f"{n:03d}.png", "width": 64, "height": 64} for n in range(len(pictures))]
    classes = [{"id": n, "name": f"class {n}"} for n in range(5)]
    content = {"images": named, "annotations": objects, "categories": classes}
    (folder / "coco.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def folder(tiny_path: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder, with the files that the documentation names: a small classifier, and samples for it."""
    for name in ("model.onnx", "candidate.onnx", "small.onnx"):
        shutil.copy(tiny_path, tmp_path / name)
    with np.load(samples) as content:
        x = content["x"]
    write_scenes(tmp_path)
    for name in ("data.npz", "test.npz", "eval.npz"):
        np.savez(tmp_path / name, x=x, labels=np.arange(len(x)) % 4)
    monkeypatch.chdir(tmp_path)
    # The model takes 0.04 ms, and other tests run beside this one: no difference of timings is that of the models.
    monkeypatch.setattr("onnxprune.evaluation.never_slower.RESOLUTION", 1.0)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)])
def test_commands_of_the_documentation_run(page: str, folder: Path) -> None:
    for command in commands_of(page):
        if any(part in command for part in NOT_RUN) or needs_what_is_missing(command):
            continue
        for part, smaller in SMALLER.items():
            command = command.replace(part, smaller)
        done = CliRunner().invoke(main, shlex.split(command, comments=True)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}"


def test_what_is_not_run_or_stood_in_for_is_there() -> None:
    text = "\n".join(command for page in PAGES for command in commands_of(page))
    assert [part for part in (*NOT_RUN, *SMALLER) if part not in text] == []


@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page)])
def test_python_of_the_documentation_runs(page: str, folder: Path) -> None:
    for block in blocks_of(page):
        exec(compile(block, page, "exec"), {})
    assert (folder / "small.onnx").read_bytes() != (folder / "model.onnx").read_bytes()


def modules_with_examples() -> list[str]:
    found = [path for path in (ROOT / "onnxprune").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    return sorted(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in found)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings(name: str, folder: Path) -> None:
    """As `pytest --doctest-modules onnxprune`, in a folder with the files that the examples name."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}")
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.attempted
    assert not found.failed
