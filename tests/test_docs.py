"""What the documentation says is what the code does."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from test_imports import LAYERS

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
