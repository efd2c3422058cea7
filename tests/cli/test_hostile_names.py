"""One model whose names attack every sink: terminal, Markdown, HTML, XML, SARIF, workflow commands, plots, errors."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
from markdown_it import MarkdownIt

from onnxprune.escaping import CONTROL

BAD = (
    "\x1b]0;owned\x07\x1b[2J\x9b1m\nquality PASSED\r\n::error file=x::forged\n##[error]forged ##vso[task.x]"
    " [red]m[/red] <img src=https://evil.example/x.png> ![x](https://evil.example/y.png) [c](https://evil.example)"
    " <script>alert(1)</script> &lt; | ` ]]> -- > \u202egnp.exe\u2066 @everyone #1 $$x$$ $y$ 100%\u2028 \u200b \ufffe"
)
QUICK = ("--no-latency", "--round-to", "1", "--repair", "none", "-q")
TARGET = ("--reduce", "flops=40%")


@pytest.fixture
def hostile(tiny: onnx.ModelProto, tmp_path: Path) -> Path:
    """Return a model with bad names of nodes, tensors, weights, outputs and metadata, in a file with a bad name."""
    graph = tiny.graph
    own = {"x"}
    for node in graph.node:
        node.name += BAD
        node.doc_string = BAD
        node.input[:] = [name if name in own else name + BAD for name in node.input]
        node.output[:] = [name + BAD for name in node.output]
    for tensor in (*graph.initializer, *graph.output):
        tensor.name += BAD
        tensor.doc_string = BAD
    graph.name = graph.doc_string = tiny.doc_string = tiny.producer_name = tiny.domain = BAD
    tiny.metadata_props.add(key=f"onnxprune.{BAD}", value=BAD)
    tiny.metadata_props.add(key="onnxprune.verdict", value=BAD)
    path = tmp_path / ("m\x1b[2J\n::error::forged <img src=x> [a](b) \u202e.onnx")
    path.write_bytes(tiny.SerializeToString())
    return path


def assert_plain(text: str) -> None:
    """No control character, and no line that the names forge."""
    assert CONTROL.sub("", text.replace("\n", "")) == text.replace("\n", "")
    for line in text.splitlines():
        assert not line.strip().startswith(("::", "quality PASSED", "##")), line
        assert not re.search(r"##\w*\[", line), line


class Tags(HTMLParser):
    """The elements of a page, and the addresses that it loads."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [v or "" for key, v in attributes if key in ("src", "href") or key.startswith("on")]


@pytest.mark.parametrize(
    "line",
    [
        ("inspect",),
        ("plan", "-o", "{out}/p.json", *TARGET, "-v"),
        ("prune", "-o", "{out}/s.onnx", *TARGET, "-v"),
        ("sensitivity", "--data", "{samples}", "--plot", "{out}/c.svg"),
        ("sweep", "-o", "{out}/sizes", "--targets", "flops=30%"),
        ("bench", "--runs", "2", "--warmup", "0"),
        ("bench", "{model}", "--runs", "2", "--warmup", "0"),
    ],
    ids=lambda line: line[0],
)
@pytest.mark.parametrize("how", ["text", "json"])
def test_terminal(line, how, hostile, samples, out, run):
    given = [part.format(out=out, samples=samples, model=hostile) for part in line[1:]]
    quick = (
        ()
        if line[0] == "bench"
        else QUICK[1:5]
        if line[0] == "plan"
        else ()
        if line[0] in ("inspect", "sensitivity")
        else QUICK[:5]
    )
    result = run(line[0], hostile, *given, *quick, "-q", *(("--json",) if how == "json" else ()))
    assert result.exit_code in (0, 3), result.output
    assert_plain(result.stdout)
    assert_plain(result.stderr)
    if how == "json":
        json.loads(result.stdout)
    elif line[0] != "sweep":
        assert r"conv1\x1b]0;owned" in result.stdout


def test_plots(hostile, samples, out, run):
    pytest.importorskip("matplotlib")
    assert run("sensitivity", hostile, "--data", samples, "--plot", out / "c.svg", "-q").exit_code == 0
    drawn = (out / "c.svg").read_text(encoding="utf-8")
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(drawn).iter()}
    assert not tags & {"image", "script", "a", "foreignObject"}
    assert_plain(drawn)


def test_reports(hostile, samples, out, run):
    pytest.importorskip("bokeh")
    base = ("prune", hostile, "-o", out / "s.onnx", *TARGET, *QUICK, "--data", samples, "--report")
    for name in ("r.html", "r.md", "r.json"):
        assert run(*base, out / name).exit_code in (0, 3)
    json.loads((out / "r.json").read_text())
    page = Tags((out / "r.html").read_text(encoding="utf-8"))
    assert "red" not in page.tags
    assert all(address.startswith(("data:", "#")) for address in page.loaded)
    markdown = (out / "r.md").read_text(encoding="utf-8")
    assert_harmless(markdown)


def assert_harmless(markdown: str) -> None:
    """No image, link, HTML or mention, and no line of its own."""
    assert CONTROL.sub("", markdown.replace("\n", "").replace("\u200b", "")) == markdown.replace("\n", "").replace(
        "\u200b", ""
    )
    made = Tags(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))
    assert not {"img", "a", "script", "red"} & set(made.tags)
    outside = re.sub(r"^    .*$", "", markdown, flags=re.MULTILINE)  # the command is code
    assert not re.search(r"@everyone|https?://|#1\b", outside)
    assert not re.search(r"^(quality PASSED|::|##\[)", markdown, flags=re.MULTILINE)


def test_check(hostile, out, run):
    """The candidate is worse than the baseline in several ways, so that names appear in checks."""
    changed = onnx.load(hostile)
    changed.graph.node[1].op_type = "LeakyRelu"
    changed.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 3
    candidate = hostile.with_name(f"b{hostile.name}")
    candidate.write_bytes(changed.SerializeToString())
    files = {name: out / f"c.{name}" for name in ("junit", "sarif", "markdown")}
    asked = [part for name, path in files.items() for part in (f"--{name}", path)]
    page = out / "c.html"
    result = run("check", candidate, "--baseline", hostile, "--no-latency", "-q", "--github", *asked, "--report", page)
    assert result.exit_code == 3, result.output
    commands = [line for line in result.stdout.splitlines() if line.startswith("::")]
    assert commands
    assert all(re.match(r"::(error|warning) file=[^,:]*,title=onnxprune check::[^\x1b]*$", line) for line in commands)
    assert_plain("\n".join(line for line in result.stdout.splitlines() if line not in commands))
    assert_plain("\n".join(line.removeprefix("::") for line in commands))
    for element in ElementTree.parse(files["junit"]).iter():
        for text in (element.text or "", *element.attrib.values()):
            assert CONTROL.sub("", text.replace("\n", "")) == text.replace("\n", "")
    log = json.loads(files["sarif"].read_text())
    for each in log["runs"][0]["results"]:
        assert not re.search(r"(?<!\\)\[|[\x00-\x1f]", each["message"]["text"])
    assert_harmless(files["markdown"].read_text(encoding="utf-8"))
    assert not {"img", "red"} & set(Tags(page.read_text(encoding="utf-8")).tags)


@pytest.mark.parametrize("command", ["inspect", "prune", "check", "bench"])
def test_errors(command, hostile, out, run):
    """An operator of a domain that nobody knows, a shape, an output and a pattern that are not there."""
    model = onnx.load(hostile)
    model.graph.node[0].domain, model.graph.node[0].op_type = BAD, BAD
    model.opset_import.add(domain=BAD, version=1)
    broken = out / f"{hostile.name}"
    broken.write_bytes(model.SerializeToString())
    more = ("-o", out / "s.onnx", *TARGET) if command == "prune" else ()
    for line in (
        (command, broken, *more),
        (command, f"{hostile}{BAD[:40]}", *more),
        (command, hostile, *more, "--shape", f"{BAD}=1x3"),
        (command, hostile, f"--{BAD}"),
    ):
        result = run(*line)
        assert_plain(result.stdout)
        assert_plain(result.stderr)
        assert "defect" not in result.stderr, line
