"""A verdict as other programs read it: JUnit XML, SARIF, annotations of GitHub, and Markdown for people."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from onnxprune.types import Check, Verdict

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"FAILED": "error", "UNDECIDED": "warning", "PASSED": "none"}

NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document may hold."""


def _value(check: Check) -> str:
    return f"{check.value:.6g}" if isinstance(check.value, float) else str(check.value)


def junit(verdict: Verdict, candidate: str, seconds: float = 0.0) -> str:
    """Return JUnit XML: a test case per check; one that is undecided counts as skipped."""
    failed = sum(check.status == "FAILED" for check in verdict.checks)
    undecided = sum(check.status == "UNDECIDED" for check in verdict.checks)
    counts = {
        "tests": str(len(verdict.checks)),
        "failures": str(failed),
        "errors": "0",
        "skipped": str(undecided),
        "time": f"{seconds:.3f}",
    }
    root = ElementTree.Element("testsuites", {k: v for k, v in counts.items() if k != "skipped"})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "onnxprune check", **counts})
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", {"name": check.name, "classname": candidate, "time": "0"})
        if check.status == "FAILED":
            ElementTree.SubElement(case, "failure", {"message": str(check), "type": "limit"}).text = check.detail
        elif check.status == "UNDECIDED":
            ElementTree.SubElement(case, "skipped", {"message": str(check)})
        ElementTree.SubElement(case, "system-out").text = str(check)
    for element in root.iter():
        element.text = element.text and NOT_XML.sub("?", element.text)
        element.attrib.update({key: NOT_XML.sub("?", value) for key, value in element.attrib.items()})
    ElementTree.indent(root)
    return str(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True), "utf-8") + "\n"


def sarif(verdict: Verdict, candidate: str, version: str) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log with a result per check that did not pass."""
    names = {check.name: "".join(c if c.isalnum() else "-" for c in check.name).strip("-") for check in verdict.checks}
    rules = [{"id": rule, "shortDescription": {"text": name}} for name, rule in names.items()]
    results = [
        {
            "ruleId": names[check.name],
            "level": LEVELS[check.status],
            "message": {"text": str(check)},
            "locations": [{"physicalLocation": {"artifactLocation": {"uri": quote(candidate.replace("\\", "/"))}}}],
        }
        for check in verdict.checks
        if check.status != "PASSED"
    ]
    driver = {"name": "onnxprune", "version": version, "rules": rules}
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def github(verdict: Verdict, candidate: str) -> list[str]:
    """Return workflow commands that GitHub shows as annotations."""

    def escaped(text: str) -> str:
        return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")

    return [
        f"::{LEVELS[check.status]} file={candidate},title=onnxprune check::{escaped(str(check))}"
        for check in verdict.checks
        if check.status != "PASSED"
    ]


def markdown(verdict: Verdict, candidate: str, baseline: str) -> str:
    """Return a summary for a pull request."""
    failed = sum(check.status == "FAILED" for check in verdict.checks)
    undecided = sum(check.status == "UNDECIDED" for check in verdict.checks)
    head = (
        f"**FAILED**: {failed} of {len(verdict.checks)} checks"
        if failed
        else f"**PASSED**: {len(verdict.checks)} checks"
    )
    lines = [
        f"### onnxprune check: `{candidate}` for `{baseline}`",
        "",
        head + (f", {undecided} undecided" if undecided else ""),
        "",
        "| | check | value | limit | |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    order = {"FAILED": 0, "UNDECIDED": 1, "PASSED": 2}
    for check in sorted(verdict.checks, key=lambda one: order[one.status]):
        cells = (check.status, check.name, _value(check), "" if check.limit is None else str(check.limit), check.detail)
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |")
    return "\n".join(lines) + "\n"
