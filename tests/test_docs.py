"""What the documentation says is what the code does."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

from click.testing import CliRunner

from onnxprune.cli import main
from onnxprune.graph.operators import RULES

ROOT = Path(__file__).resolve().parent.parent


def test_operators_page_is_printed_from_the_rule_table() -> None:
    spec = importlib.util.spec_from_file_location("operators", ROOT / "tools" / "operators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "operators.md").read_text(encoding="utf-8") == module.page(), (
        "run python tools/operators.py"
    )


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
    dials = {
        flag for row in re.findall(r"^\| (`--.*?) \|", readme, re.MULTILINE) for flag in re.findall(r"--[a-z-]+", row)
    }
    assert dials
    assert dials <= commands["prune"]
