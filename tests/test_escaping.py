"""One function for each sink, on all that could do harm there."""

from __future__ import annotations

import unicodedata

import pytest

from onnxprune.errors import DataWarning, OnnxPruneError
from onnxprune.escaping import CONTROL, log, markdown, sarif, visible, workflow_property, workflow_value

HARMLESS = {"\u200c", "\u200d"}
"""Joiners, which some scripts need; they reorder nothing."""


def test_every_control_character_is_made_visible():
    """Of the basic plane and the tags: control, format, surrogate and separator characters."""
    odd = [
        sign
        for sign in map(chr, (*range(0x10000), *range(0xE0000, 0xE0080)))
        if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(sign) in BIDI
    ]
    shown = visible("".join(odd))
    assert shown.isascii()
    assert len(odd) > 2100
    assert visible(shown) == shown
    assert not CONTROL.search(shown)


BIDI = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@pytest.mark.parametrize(
    "name", ["/model/Conv_0", "Größe 3×3 µs → ✓", "层.1", "نص", "aten::conv2d", "a#b", "x" + "\u200d" + "y"]
)
def test_ordinary_names_stay(name):
    assert visible(name) == log(name) == name


@pytest.mark.parametrize(
    "line", ["::error::x", "  ::stop-commands::y", "a ##[error]b", "##vso[task.setvariable]c", "a\n::add-mask::d"]
)
def test_no_line_of_a_log_is_a_command(line):
    shown = log(line)
    assert shown != line
    assert not any(each.strip().startswith("::") for each in shown.splitlines())
    assert "##[" not in shown
    assert "##vso[" not in shown
    assert log(shown) == shown


def test_other_sinks():
    assert markdown("a\n# b") == "a # b"
    assert markdown("&lt;b&gt; `x`") == r"&amp;lt;b&amp;gt; \`x\`"
    assert markdown("www.e.org https://e.org") == "www\u200b.e.org https\u200b://e.org"
    assert workflow_value("a%0A::error::b") == "a%250A::error::b"
    assert workflow_property("a:b,c\n") == r"a%3Ab%2Cc\n"
    assert sarif("[a](1)\n") == r"\[a\](1)\\n"


def test_messages_are_visible_wherever_python_prints_them():
    assert str(OnnxPruneError("a\x1b[2J", where="b\nc", hint="d")) == "a\\x1b[2J\n  where: b\\nc\n  do:    d"
    assert str(DataWarning("a\nwarning: forged")) == r"a\nwarning: forged"
