"""Reports as files: one page that needs nothing else, Markdown and JSON."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from reports import EVIL, PLAN, made_report

import onnxprune
from onnxprune.errors import OptionError
from onnxprune.metrics import table
from onnxprune.metrics.outputs import compare_outputs
from onnxprune.report import markdown, matplotlib_plots, plots, saving, tables
from onnxprune.report.document import Member, Sweep

SECTIONS = {
    "verdict", "figures", "shape", "sensitivity", "training", "classes", "changed", "groups", "pins", "layers", "repair", "notes", "run",
    "downloads",
}  # fmt: skip
QUICK = ("--no-latency", "--reduce", "flops=40%", "--round-to", "1")


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(page_path: Path) -> Page:
    return Page(page_path.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------ page


def test_page_needs_nothing_from_elsewhere(page):
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "default-src 'none'" in str(page.all("meta"))
    assert not page.all("link")


def test_page_has_every_section(page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert set(ids) >= SECTIONS
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in page.all("a")} >= {f"#{name}" for name in SECTIONS - {"verdict"}}
    assert len(page.all("h1")) == 1
    labelled = {
        one
        for _, attributes in page.tags
        for key in ("aria-labelledby", "aria-describedby", "aria-controls", "for")
        for one in (attributes.get(key) or "").split()
    }
    assert labelled <= set(ids)


def test_page_can_be_used_without_eyes(page):
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("a")[0]["class"] == "skip"
    assert len(page.all("caption")) == len(page.all("table"))
    fields = {field["id"] for field in page.all("input") if field["type"] == "search"}
    assert {label["for"] for label in page.all("label") if "for" in label} == fields
    assert all(image["alt"] for image in page.all("img"))
    assert all(heading["scope"] == "col" for heading in page.all("th"))
    assert {"✓ PASSED", "✗ FAILED", "? UNDECIDED"} <= {word.strip() for word in page.words}


def test_names_are_text_and_nothing_else(page, page_path):
    text = page_path.read_text(encoding="utf-8")
    assert len(page.all("script")) == 2 + sum(one.get("type") == "application/json" for one in page.all("script"))
    assert "alert(1)</script>" not in text
    assert EVIL in page.words
    assert "a <b>note</b>" in page.words
    assert "onnxprune prune 'a <model>.onnx'" in page.words


def test_downloads_are_the_report_and_the_plan(page):
    found = {
        link["download"]: json.loads(base64.b64decode(link["href"].partition(",")[2]))
        for link in page.all("a")
        if "download" in link
    }
    assert set(found) == {"model.report.json", "model.plan.json"}
    assert found["model.plan.json"] == PLAN
    assert found["model.report.json"]["schema"] == "onnxprune.report/1"
    assert found["model.report.json"]["repair"][0]["penalty"] is None  # infinite


def test_page_of_many_layers_stays_small(tmp_path):
    pytest.importorskip("bokeh")
    path = tmp_path / "big.html"
    saving.save(path, made_report(500), "onnxprune", PLAN)
    assert path.stat().st_size < 5e6


def test_sections_without_content_are_not_there(tmp_path):
    pytest.importorskip("bokeh")
    path = tmp_path / "report.html"
    bare = replace(
        made_report(2), layers=(), curves=(), training=None, repair=(), pinned=(), notes=(), fidelity={}, details=None
    )
    saving.save(path, bare, "onnxprune")
    ids = {attributes.get("id") for _, attributes in Page(path.read_text(encoding="utf-8")).tags}
    assert not ids & {"shape", "sensitivity", "training", "repair", "classes", "changed", "groups"}
    assert ids >= {"verdict", "pins", "layers", "notes"}


def test_layers_of_another_form_have_a_section(tmp_path):
    pytest.importorskip("bokeh")
    path = tmp_path / "report.html"
    entry = {"layer": EVIL, "what": "split in two", "why": {"error": 0.1, "milliseconds": (2.0, 1.0)}}
    saving.save(path, replace(made_report(2), blocks=((entry,),)), "onnxprune")
    found = Page(path.read_text(encoding="utf-8"))
    assert "blocks" in {attributes.get("id") for _, attributes in found.tags}
    assert "#blocks" in {link["href"] for link in found.all("a")}
    assert "split in two" in found.words


def test_short_names_are_never_alike():
    names = ["/a/stage1/block/conv/Conv", "/a/stage2/block/conv/Conv"]
    assert plots.short(names) == ["stage1", "stage2"]
    long = [f"/{n}/{'x' * 30}/end{n % 2}" for n in range(9)]
    assert len(set(plots.short(long))) == 9
    assert plots.short(["same", "same", "one$$two$$"]) == ["same", "same (2)", "one$ $two$ $"]


# ------------------------------------------------------------------------------------------------- other formats


def test_markdown_has_verdict_figures_layers_and_notes(tmp_path):
    path = tmp_path / "report.md"
    saving.save(path, made_report(3), "onnxprune prune model.onnx")
    text = path.read_text(encoding="utf-8")
    assert "**FAILED: quality UNDECIDED (lost 0.5, limit 0.4), integrity PASSED, costs FAILED, 1 undecided**" in text
    assert "| FLOPs | 2 M | 1 M | -50.0 % |" in text
    assert "| 2 | /backbone/stage0/block1/conv/Conv | Conv | 64 |" in text
    assert "\\</script\\>" in text
    assert "    onnxprune prune model.onnx" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")}
    assert widths == {5, 7, 9, 14}
    assert "| 1 | /backbone/stage0/block1/conv/Conv | /backbone/stage0/block1/conv/Conv, " in text.replace(
        "| 2 |", "| 1 |"
    )
    assert "## Classes" in text
    assert "Samples whose prediction changed (24 of 30)" in text


def test_json_is_the_report(tmp_path):
    path = tmp_path / "report.json"
    report = made_report(3)
    saving.save(path, report, "")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == "onnxprune.report/1"
    assert [layer["name"] for layer in content["layers"]] == [layer.name for layer in report.layers]


def test_names_of_curves_in_a_file_are_no_formulas(tmp_path):
    pytest.importorskip("matplotlib")
    matplotlib_plots.draw(plots.curve_plots(made_report(12).curves), tmp_path / "curves.svg")
    assert (tmp_path / "curves.svg").stat().st_size > 10_000


@pytest.mark.parametrize("ending", saving.ENDINGS)
def test_sweep_can_be_reported(ending, tmp_path):
    pytest.importorskip("bokeh")
    members = (
        Member("flops-50", 0.5, 0.5, 0.4, 2000, drop=0.1, speedup=1.5, speedup_interval=(1.4, 1.6), verdict="PASSED", pareto=True),
        Member("flops-60", 0.6, 0.6, 0.4, 1000, drop=0.3, verdict="PASSED"),
        Member("flops-90", 0.9, note="it cannot be reached"),
    )  # fmt: skip
    path = tmp_path / f"sweep{ending}"
    saving.save(path, Sweep("model.onnx", "flops", members, 4000, None, "10 samples"), "onnxprune sweep")
    text = path.read_text(encoding="utf-8")
    assert all(member.name in text for member in members)
    assert "it cannot be reached" in text


@pytest.mark.parametrize("ending", saving.ENDINGS)
def test_check_can_be_reported(ending, tiny_path, samples, out, run):
    pytest.importorskip("bokeh")
    path = out / f"check{ending}"
    done = run(
        "check", tiny_path, "--baseline", tiny_path, "--data", samples, "--max-drop", "0.5", "--no-latency", "-q",
        "--report", path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    text = path.read_text(encoding="utf-8")
    assert "agreement drop (points)" in text
    if ending == ".json":
        schema = json.loads((Path(saving.__file__).parent / "check.schema.json").read_text())
        jsonschema.validate(json.loads(text), schema)
    if ending == ".html":
        found = Page(text)
        assert "PASSED: quality PASSED (" in text
        assert {row["id"] for row in found.all("table")} == {"checks-table", "made-table"}
        assert path.stat().st_size < 100_000  # Bokeh is left out
        link = next(one for one in found.all("a") if "download" in one)
        assert link["download"] == "tiny.check.json"


def test_report_of_a_check_is_refused_before_any_work(tiny_path, out, refused):
    common = ("check", tiny_path, "--baseline", tiny_path, "--no-latency", "-q")
    refused(*common, "--report", out / "check.pdf", says=".html, .md, .json", code=2)
    refused(*common, "--markdown", out / "a.md", "--report", out / "a.md", says="overwrite another result")


# ---------------------------------------------------------------------------------------------------- command line


def test_prune_writes_a_report(tiny_path, samples, out, run, monkeypatch):
    pytest.importorskip("bokeh")
    monkeypatch.setattr("sys.argv", ["/usr/bin/onnxprune", "prune", "a model.onnx"])
    page = out / "report.html"
    done = run("prune", tiny_path, "-o", out / "small.onnx", "--data", samples, *QUICK, "--report", page)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == f"written: {page}"
    found = Page(page.read_text(encoding="utf-8"))
    assert "onnxprune prune 'a model.onnx'" in found.words
    links = {link["download"]: link["href"] for link in found.all("a") if "download" in link}
    plan = json.loads(base64.b64decode(links["tiny.plan.json"].partition(",")[2]))
    assert plan == json.loads((out / "small.plan.json").read_text())


@pytest.mark.parametrize(
    ("name", "says", "code"),
    [
        ("report.pdf", ".html, .md, .json", 2),
        ("report", ".html, .md, .json", 2),
        ("gone/report.md", "does not exist", 1),
        ("small.plan.json", "overwrite another result", 1),
    ],
)
def test_report_that_cannot_be_is_refused_before_any_work(name, says, code, tiny_path, out, refused):
    refused("prune", tiny_path, "-o", out / "small.onnx", *QUICK, "--report", out / name, says=says, code=code)


def test_missing_package_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(OptionError) as caught:
        saving.check_format(Path("report.html"))
    assert caught.value.hint == "pip install 'onnxprune[report]'"
    saving.check_format(Path("report.md"))


def test_report_of_a_call_shows_the_call(tiny_path, samples, out):
    path = out / "report.md"
    onnxprune.prune(
        tiny_path,
        data=str(samples),
        reduce={"flops": 0.4},
        round_to=1,
        measure=onnxprune.BenchmarkConfig(latency=False),
        report_output=path,
    )
    text = path.read_text(encoding="utf-8")
    assert f"    onnxprune.prune(model='{tiny_path}', data='{samples}', measure=BenchmarkConfig(" in text
    assert "reduce={'flops': 0.4}, round_to=1)" in text


def test_a_metric_is_one_row_of_the_table(monkeypatch):
    row = table.Metric(
        "mae", "", "mean absolute error", kind="fidelity", measure=lambda p: p.mean(lambda a, b: abs(a - b).mean())
    )
    monkeypatch.setitem(table.METRICS, "mae", row)
    found = compare_outputs([np.zeros((2, 3))], [np.full((2, 3), 0.25)])
    assert found["mae"] == 0.25
    report = replace(made_report(3), fidelity=found)
    assert report.to_dict()["fidelity"]["mae"] == 0.25
    assert ["mean absolute error", "0", "0.25", ""] in tables.figures(report).texts()
    assert "mean absolute error" in markdown.report_text(report, "onnxprune")
