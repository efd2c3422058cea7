"""Names of a model and paths as a sink can show them: nothing in them is executed, styled, linked, or taken for a line of its own.

One function for each sink. JSON needs none, and a page escapes what Jinja inserts.
"""

from __future__ import annotations

import re

CONTROL = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
"""Characters that control a terminal, end a line, are not seen, or turn the direction of what follows; single surrogates."""
NAMED = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
COMMANDS = re.compile(r"^(\s*):(?=:)|(#)(?=#\w*\[)", re.MULTILINE)
"""What the log of a CI system takes for a command: `::error` at the start of a line, `##[error]` or `##vso[` anywhere."""
MARKDOWN = str.maketrans({"&": "&amp;", **{sign: f"\\{sign}" for sign in "<>|`*_[]\\~$"}})
LINKS = re.compile(r"(?i)(https?|ftp)(?=://)|(www)(?=\.)|([@#])(?=\w)")
"""What becomes a link by itself: an address, a mention of a person, the number of an issue."""


def visible(text: str, keep: str = "") -> str:
    r"""Return a text for a line of a terminal: characters that control it are written as escapes, except those in `keep`.

    >>> visible("conv\x1bc\nquality PASSED")
    'conv\\x1bc\\nquality PASSED'
    """

    def written(found: re.Match[str]) -> str:
        sign = found[0]
        code = ord(sign)
        escape = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        return sign if sign in keep else NAMED.get(sign, escape)

    return CONTROL.sub(written, text)


def log(text: str) -> str:
    r"""Return lines of a log of which none is a command to the CI system that keeps it.

    >>> log("::error::no\nlayer ##[error]")
    '\\::error::no\nlayer #\\#[error]'
    """
    return COMMANDS.sub(lambda found: rf"{found[1]}\:" if found[2] is None else "#\\", text)


def markdown(text: str) -> str:
    r"""Return a text on one line of Markdown: no formatting, no link, no mention, no HTML.

    >>> markdown("<img src=//e> [a](b)\n| @me")
    '\\<img src=//e\\> \\[a\\](b) \\| @\u200bme'
    """
    plain = visible(" ".join(text.split())).translate(MARKDOWN)
    return LINKS.sub(lambda found: f"{found[0]}\N{ZERO WIDTH SPACE}", plain)


def workflow_value(text: str) -> str:
    r"""Return the message of a workflow command of GitHub.

    >>> workflow_value("100 %\n::error::forged")
    '100 %25\\n::error::forged'
    """
    return log(visible(text)).replace("%", "%25")


def workflow_property(text: str) -> str:
    """Return a property of a workflow command of GitHub, such as the file.

    >>> workflow_property("a,title=b:c.onnx")
    'a%2Ctitle=b%3Ac.onnx'
    """
    return workflow_value(text).replace(":", "%3A").replace(",", "%2C")


def sarif(text: str) -> str:
    r"""Return a text of a SARIF message, in which brackets make links.

    >>> sarif("[here](https://e)")
    '\\[here\\](https://e)'
    """
    return re.sub(r"([\[\]\\])", r"\\\1", visible(text))
