"""The report in a real browser: it works by mouse and keyboard, can be read without eyes and without colours, and prints."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from onnxprune.evaluation.gate import Judgement
from onnxprune.report import bokeh_plots, saving
from onnxprune.report.document import Member, Sweep
from onnxprune.types import Check, Verdict

SWEEP = Sweep(
    "model.onnx",
    "flops",
    (
        Member("flops-50", 0.5, 0.5, 0.4, 2000, 0.1, 0.01, 2.0, 1.5, (1.4, 1.6), verdict="PASSED", pareto=True),
        Member("flops-60", 0.6, 0.6, 0.4, 1000, 0.3, 0.02, 2.5, 1.2, (1.1, 1.3), verdict="PASSED"),
        Member("flops-90", 0.9, note="it cannot be reached"),
    ),
    4000,
    3.0,
    "10 samples",
)
JUDGEMENT = Judgement(
    "a.onnx",
    "b.onnx",
    Verdict((Check("fits", True, None, True), Check("drop", 2.0, 1.0, False, "a <detail>", kind="quality"))),
)

NEEDS_A_NAME = {
    "button", "link", "searchbox", "checkbox", "listbox", "option", "image", "img", "region", "table", "figure", "navigation",
    "columnheader", "heading",
}  # fmt: skip
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if ((numbers(colour)[3] ?? 1) > 0) return colour;
    }
  };
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const said = [...one.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.textContent.trim()).join("");
    if (!said || !one.checkVisibility() || one.tagName === "SCRIPT") continue;
    const style = getComputedStyle(one);
    const [a, b] = [light(style.color), light(behind(one))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < (large ? 3 : 4.5)) found.push(`${one.tagName} ${said.slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
FOCUSED = """() => {
  let one = document.activeElement;
  while (one.shadowRoot?.activeElement) one = one.shadowRoot.activeElement;
  const style = getComputedStyle(one);
  const box = one.getBoundingClientRect();
  return {
    what: `${one.tagName} ${one.id} ${one.className} ${one.textContent.trim().slice(0, 20)}`,
    seen: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1 && box.width > 0,
    last: one.classList.contains("download"),
  };
}"""


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
    assert opened.locator(".plot").count() == 7
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


@pytest.mark.parametrize("name", ["channels", "flops", "latency", "per-class"])
def test_pointer_tells_of_what_lies_under_it(opened, name):
    plot = opened.locator(f"#{name}")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    tooltip = opened.locator(".bk-tooltip-content")
    for share in (0.3, 0.47, 0.5, 0.53):  # on either bar, and between them
        opened.mouse.move(box["x"] + share * box["width"], box["y"] + 150)
        opened.mouse.move(box["x"] + share * box["width"] + 1, box["y"] + 151)
        tooltip.filter(has_text="before:").wait_for(state="visible", timeout=5000)
        assert {"class:" if name == "per-class" else "layer:", "after:"} <= set(tooltip.inner_text().split())
        opened.mouse.move(1, 1)
        tooltip.wait_for(state="hidden", timeout=5000)


def test_pictures_are_shown(opened):
    images = opened.locator(".gallery img")
    assert images.count() == 24
    assert opened.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    assert images.first.get_attribute("alt").startswith("Sample 0 of class class 0, was class 0 (60 % sure), is ")
    assert "✗ now wrong" in opened.locator(".gallery li").first.inner_text()


# ---------------------------------------------------------------------------------------------------------- groups


def chosen(opened) -> str:
    row = opened.locator("#navigator-list [aria-selected=true]")
    assert row.count() == 1
    assert opened.locator("#navigator-list").get_attribute("aria-activedescendant") == row.get_attribute("id")
    return row.get_attribute("id")


def test_groups_are_gone_through_by_keyboard(opened):
    groups = opened.get_by_role("listbox", name="Groups, in the order of the graph")
    groups.focus()
    opened.keyboard.press("Home")
    assert chosen(opened) == "group-1"
    opened.keyboard.press("ArrowDown")
    opened.keyboard.press("ArrowRight")
    assert chosen(opened) == "group-3"  # what the second one feeds
    opened.keyboard.press("ArrowLeft")
    assert chosen(opened) == "group-2"
    opened.keyboard.press("End")
    assert chosen(opened) == "group-20"
    told = opened.get_by_role("region", name="The group that is chosen")
    assert "Group 20 of 20. Channels: 64 → 64" in told.inner_text()
    assert "8 pinned: it is the model's <output>" in told.inner_text()
    assert told.get_by_role("heading", name="Writers (3)").count() == 1
    rows = opened.locator("#navigator-list li")
    assert (
        rows.nth(18).inner_text().splitlines()[0].endswith("◆ before and behind it")
        or "before" in rows.nth(18).inner_text()
    )


def test_neighbours_are_links(opened):
    opened.locator("#group-5").click()
    told = opened.get_by_role("region", name="The group that is chosen")
    assert told.locator("h4").all_inner_texts()[-2:] == ["Computed from groups (1)", "Groups computed from it (2)"]
    told.get_by_role("button", name="/backbone/stage0/block5/conv/Conv").press("Enter")
    assert chosen(opened) == "group-6"
    assert opened.evaluate("document.activeElement.id") == "navigator-list"
    lines = opened.locator("#navigator-lines path.chosen").all()
    assert any(line.get_attribute("d") for line in lines)


def test_groups_are_found_by_any_of_their_layers(opened):
    field = opened.get_by_label("Find a group or layer")
    count = opened.locator("#navigator output")
    field.fill("stage1/block2/conv/conv/THIRD")
    assert count.inner_text() == "1 of 20 groups"
    assert opened.locator("#navigator-list li:visible").count() == 1
    field.fill("")
    opened.get_by_label("only those that were cut").check()
    assert count.inner_text() == "7 of 20 groups"
    opened.get_by_label("only those that were cut").uncheck()
    assert count.inner_text() == "20 groups"


# ------------------------------------------------------------------------------------------------------ everybody


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out(browser, page_path, theme):
    tab = browser.new_page(color_scheme=theme)
    tab.goto(page_path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    assert tab.evaluate("document.documentElement.dataset.theme") == theme
    assert tab.evaluate(CONTRAST) == []
    tab.close()


@pytest.mark.parametrize("background", ["#ffffff", "#14181d"])
def test_lines_and_bars_stand_out(background):
    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    for colour in (*bokeh_plots.COLORS, bokeh_plots.BEFORE, bokeh_plots.AFTER, bokeh_plots.MUTED):
        dark, bright = sorted((light(colour), light(background)))
        assert (bright + 0.05) / (dark + 0.05) >= 3, colour


def test_everything_that_is_used_has_a_name(opened):
    tree = opened.context.new_cdp_session(opened).send("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        node
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in NEEDS_A_NAME
        and not node.get("name", {}).get("value", "").strip()
    ]
    assert [(node["role"]["value"], node["nodeId"]) for node in nameless] == []
    roles = {node["role"]["value"] for node in tree if not node["ignored"]}
    assert roles >= NEEDS_A_NAME - {"img"}
    assert roles >= {"main", "status", "option"}  # counts of a search are read out


def test_keyboard_reaches_everything_and_is_seen(browser, page_path):
    tab = browser.new_page()
    tab.goto(page_path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    assert tab.locator("[tabindex]:not([tabindex='0'], [tabindex='-1'])").count() == 0  # so they come in their order
    stops = []
    for _ in range(400):
        tab.keyboard.press("Tab")
        stop = tab.evaluate(FOCUSED)
        stops.append(stop["what"])
        assert stop["seen"], stop["what"]
        if stop["last"]:
            break
    text = "\n".join(stops)
    for reached in (
        "Skip to the report",
        "BUTTON theme",
        "layers-search",
        "navigator-list",
        "navigator-description",
        "SUMMARY",
        "bk-OnOffButton",
    ):
        assert reached in text
    tab.close()


def test_skip_link_leads_to_the_report(browser, page_path):
    tab = browser.new_page()
    tab.goto(page_path.as_uri())
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.close()


def test_tables_sort_by_space_too(opened):
    heading = opened.locator("#classes-table th").nth(3)
    heading.locator("button").press("Space")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert opened.locator("#classes-table tbody tr td").first.inner_text() == "class 9"


def test_telephone_needs_no_scrolling_to_the_side(browser, page_path):
    tab = browser.new_page(viewport={"width": 360, "height": 740})
    tab.goto(page_path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.close()


def test_print_is_light_and_whole(browser, page_path):
    tab = browser.new_page(color_scheme="dark")
    tab.goto(page_path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    tab.emulate_media(media="print", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert (
        0.3 < float(tab.evaluate("getComputedStyle(document.querySelector('#flops')).zoom")) < 0.8
    )  # the page is as wide as a screen
    assert tab.locator("#layers-table tbody tr:visible").count() == 20
    assert tab.evaluate(
        "[...document.querySelectorAll('.scroll')].every((one) => one.scrollHeight <= one.clientHeight + 2)"
    )
    assert tab.locator("#navigator").is_hidden()
    assert tab.locator("td details:not([open])").count() == 0
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("td details[open]").count() == 0
    assert tab.pdf(format="A4")[:5] == b"%PDF-"
    tab.close()


# ------------------------------------------------------------------------------------------------------ other pages


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("found", [SWEEP, JUDGEMENT], ids=["sweep", "check"])
def test_other_pages_work_as_well(browser, found, theme, tmp_path):
    pytest.importorskip("bokeh")
    path = tmp_path / "page.html"
    saving.save(path, found, "onnxprune")
    tab = browser.new_page(color_scheme=theme, viewport={"width": 390, "height": 800})
    trouble: list[str] = []
    tab.on("console", lambda message: message.type in ("error", "warning") and trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    assert tab.evaluate(CONTRAST) == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.locator("th button").first.press("Enter")
    assert tab.locator("th").first.get_attribute("aria-sort") == "ascending"
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    assert trouble == []
    tab.close()


def test_pointer_tells_of_the_models_of_a_sweep(browser, tmp_path):
    pytest.importorskip("bokeh")
    path = tmp_path / "page.html"
    saving.save(path, SWEEP, "onnxprune")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    tab.wait_for_selector("html[data-ready=yes]")
    place = """([x, y]) => {
      const view = [...Bokeh.index].find((one) => one.frame);
      const box = view.el.getBoundingClientRect();
      return [box.left + view.frame.x_scale.compute(x), box.top + view.frame.y_scale.compute(y)];
    }"""
    for model, point in (("flops-50", [2.0, 0.1]), ("flops-60", [2.5, 0.3]), ("the original", [3.0, 0.0])):
        tab.mouse.move(*tab.evaluate(place, point))
        tab.locator(".bk-tooltip-content").filter(has_text=model).wait_for(state="visible", timeout=5000)
    tab.close()
