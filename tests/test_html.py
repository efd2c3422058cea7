"""Reports as files: one page that needs nothing else, Markdown and JSON."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import OptionError
from onnxprune.report import interactive, saving
from onnxprune.report.document import Figures, Layer, Member, Report, Sweep
from onnxprune.types import Check, Curve, Repaired, Verdict

SECTIONS = {
    "verdict", "figures", "shape", "sensitivity", "training", "pins", "layers", "repair", "notes", "run", "downloads",
}  # fmt: skip
EVIL = "</script><script>alert(1)</script>$$x$$"
PLAN = {"schema": "onnxprune.plan/1", "groups": []}
QUICK = ("--no-latency", "--reduce", "flops=40%", "--round-to", "1")


def made_report(layers: int) -> Report:
    """Return a report with everything that may be in one, and a layer whose name is evil."""
    rng = np.random.default_rng(0)
    names = [EVIL, *(f"/backbone/stage{n // 9}/block{n % 9}/conv/Conv" for n in range(1, layers))]
    some = tuple(Layer(name, "Conv", 64, int(rng.integers(1, 64)), 10**6, 10**5, 1000, 500) for name in names)
    curves = [Curve(name, np.arange(64), np.array([0, 8, 32]), np.array([0.0, 0.01, rng.random()])) for name in names]
    looks = [
        {"step": step, "seconds": 0.1, "loss": None, "divergence": 1 / (step + 1), "agreement": 90.0, "top1": None}
        for step in (0, 10)
    ]
    checks = (
        Check("fits", True, None, True),
        Check("latency", 2.0, 1.0, False, "a <detail>"),
        Check("lost", 0.5, 0.4, True, "too few samples", undecided=True),
    )
    return Report(
        model="folder/model.onnx",
        sha256="0" * 64,
        output="small.onnx",
        settings={"reduce": {"flops": 0.5}, "seed": 7},
        before=Figures(2e6, 1e6, 1000, 4000, 90.0),
        after=Figures(1e6, 5e5, 500, 2000, 89.0),
        fidelity={"agreement": 98.5},
        data="data.npz",
        samples=10,
        latency=None,
        layers=some,
        prunable_share=0.9,
        pinned=(("it is the model's <output>", EVIL, 10),),
        proof=None,
        verdict=Verdict(checks),
        notes=("a <b>note</b>",),
        repair=tuple(Repaired(name, 100, 9, 1.0, 0.5, float("inf")) for name in names[1:]),
        curves=tuple(curves),
        training={"steps": 10, "samples": 320, "seconds": 1.0, "best_step": 10, "looks": looks, "gated": None},
        versions={"onnxprune": "0.1.0"},
    )


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
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("bokeh")
    path = tmp_path_factory.mktemp("page") / "report.html"
    saving.save(path, made_report(20), "onnxprune prune 'a <model>.onnx'", PLAN)
    return path


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
        attributes[key] for _, attributes in page.tags for key in ("aria-labelledby", "for") if key in attributes
    }
    assert labelled <= set(ids)


def test_page_can_be_used_without_eyes(page):
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("a")[0]["class"] == "skip"
    assert len(page.all("caption")) == len(page.all("table"))
    assert {label["for"] for label in page.all("label")} == {field["id"] for field in page.all("input")}
    assert all(heading["scope"] == "col" for heading in page.all("th"))
    assert {"PASSED", "FAILED", "UNDECIDED"} <= {word.strip() for word in page.words}


def test_names_are_text_and_nothing_else(page, page_path):
    text = page_path.read_text(encoding="utf-8")
    assert len(page.all("script")) == 2 + sum(one.get("class") == "plot-data" for one in page.all("script"))
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
    bare = replace(made_report(2), layers=(), curves=(), training=None, repair=(), pinned=(), notes=(), fidelity={})
    saving.save(path, bare, "onnxprune")
    ids = {attributes.get("id") for _, attributes in Page(path.read_text(encoding="utf-8")).tags}
    assert not ids & {"shape", "sensitivity", "training", "repair"}
    assert ids >= {"verdict", "pins", "layers", "notes"}


def test_short_names_are_never_alike():
    names = ["/a/stage1/block/conv/Conv", "/a/stage2/block/conv/Conv"]
    assert interactive.short(names) == ["stage1", "stage2"]
    long = [f"/{n}/{'x' * 30}/end{n % 2}" for n in range(9)]
    assert len(set(interactive.short(long))) == 9
    assert interactive.short(["same", "same", "one$$two$$"]) == ["same", "same (2)", "one$ $two$ $"]


# ------------------------------------------------------------------------------------------------- other formats


def test_markdown_has_verdict_figures_layers_and_notes(tmp_path):
    path = tmp_path / "report.md"
    saving.save(path, made_report(3), "onnxprune prune model.onnx")
    text = path.read_text(encoding="utf-8")
    assert "**FAILED: 1 of 3 checks, 1 undecided**" in text
    assert "| FLOPs | 2 M | 1 M | -50.0 % |" in text
    assert "| 2 | /backbone/stage0/block1/conv/Conv | Conv | 64 |" in text
    assert "\\</script\\>" in text
    assert "    onnxprune prune model.onnx" in text
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in text.splitlines() if line.startswith("| ")}
    assert widths == {5, 11}


def test_json_is_the_report(tmp_path):
    path = tmp_path / "report.json"
    report = made_report(3)
    saving.save(path, report, "")
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["schema"] == "onnxprune.report/1"
    assert [layer["name"] for layer in content["layers"]] == [layer.name for layer in report.layers]


@pytest.mark.parametrize("ending", saving.ENDINGS)
def test_sweep_can_be_reported(ending, tmp_path):
    pytest.importorskip("bokeh")
    members = (
        Member("flops-50", 0.5, 0.5, 0.4, 2000, drop=0.1, speedup=1.5, speedup_interval=(1.4, 1.6), verdict=True, pareto=True),
        Member("flops-60", 0.6, 0.6, 0.4, 1000, drop=0.3, verdict=True),
        Member("flops-90", 0.9, note="it cannot be reached"),
    )  # fmt: skip
    path = tmp_path / f"sweep{ending}"
    saving.save(path, Sweep("model.onnx", "flops", members, 4000, None, "10 samples"), "onnxprune sweep")
    text = path.read_text(encoding="utf-8")
    assert all(member.name in text for member in members)
    assert "it cannot be reached" in text


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
        measure=onnxprune.Measure(latency=False),
        report_output=path,
    )
    text = path.read_text(encoding="utf-8")
    assert f"    onnxprune.prune(model='{tiny_path}', data='{samples}', measure=Measure(" in text
    assert "reduce={'flops': 0.4}, round_to=1)" in text


# --------------------------------------------------------------------------------------------------------- browser


@pytest.fixture(scope="module")
def browser():
    required = os.environ.get("ONNXPRUNE_BROWSER") == "required"
    playwright = None if required else pytest.importorskip("playwright.sync_api")
    if playwright is None:
        from playwright import sync_api as playwright
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None and required:
        pytest.fail("there is no chromium, and ONNXPRUNE_BROWSER says that one is required")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def opened(browser, page_path):
    """Return the page in a browser that prefers light, and what its console and the network were told."""
    tab = browser.new_page(color_scheme="light")
    trouble: list[str] = []
    tab.on("console", lambda message: message.type in ("error", "warning") and trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.on(
        "request", lambda request: request.url.startswith(("file:", "data:", "blob:")) or trouble.append(request.url)
    )
    tab.goto(page_path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    yield tab
    assert trouble == []
    tab.close()


def test_plots_are_drawn(opened):
    assert opened.locator(".plot").count() == 5
    assert all(plot.locator("canvas").count() for plot in opened.locator(".plot").all())


def test_tables_sort_by_what_their_numbers_are(opened):
    table, heading = opened.locator("#layers-table"), opened.locator("#layers-table th").nth(4)

    def column() -> list[int]:
        return [int(text) for text in table.locator("tbody tr td:nth-child(5)").all_inner_texts()]

    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())
    heading.locator("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)


def test_search_leaves_the_rows_that_match(opened):
    opened.get_by_label("Search layers").fill("STAGE1/")
    shown = opened.locator("#layers-table tbody tr:visible").all_inner_texts()
    assert len(shown) == 9
    assert all("stage1/" in row for row in shown)
    assert opened.locator("output[for=layers-search]").inner_text() == "9 of 20 rows"
    opened.get_by_label("Search layers").fill("")
    assert opened.locator("#layers-table tbody tr:visible").count() == 20


def test_theme_follows_the_button(opened):
    def colour() -> str:
        return opened.evaluate("getComputedStyle(document.body).backgroundColor")

    light, button = colour(), opened.get_by_role("button", name="Dark", exact=True)
    assert button.get_attribute("aria-pressed") == "false"
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert colour() != light
    button.click()
    assert colour() == light


def test_download_is_the_report(opened, tmp_path):
    with opened.expect_download() as coming:
        opened.locator("a.download").first.click()
    assert coming.value.suggested_filename == "model.report.json"
    coming.value.save_as(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["schema"] == "onnxprune.report/1"
