"""A verdict in the formats of CI systems: JUnit XML, SARIF, and annotations of GitHub."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from onnxprune import escaping
from onnxprune.escaping import visible, workflow_property, workflow_value
from onnxprune.types import Verdict

SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"FAILED": "error", "UNDECIDED": "warning", "INFO": "note"}
SKIPPED = ("UNDECIDED", "INFO")
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that are not allowed in XML."""


def junit(verdict: Verdict, candidate: str) -> str:
    """Return JUnit XML with a test case per check; undecided checks and values without a limit count as skipped."""
    statuses = Counter(check.status for check in verdict.checks)
    counts = {"tests": str(len(verdict.checks)), "failures": str(statuses["FAILED"]), "errors": "0", "time": "0.000"}
    root = ElementTree.Element("testsuites", counts)
    named = {"name": "onnxprune check", "skipped": str(sum(statuses[status] for status in SKIPPED)), **counts}
    suite = ElementTree.SubElement(root, "testsuite", named)
    for check in verdict.checks:
        case = ElementTree.SubElement(suite, "testcase", {"name": check.name, "classname": candidate, "time": "0"})
        if check.status == "FAILED":
            ElementTree.SubElement(case, "failure", {"message": str(check), "type": "limit"}).text = check.detail
        elif check.status in SKIPPED:
            ElementTree.SubElement(case, "skipped", {"message": str(check)})
        ElementTree.SubElement(case, "system-out").text = str(check)
    for element in root.iter():
        element.text = element.text and NOT_XML.sub("?", visible(element.text))
        element.attrib.update({key: NOT_XML.sub("?", visible(value)) for key, value in element.attrib.items()})
    ElementTree.indent(root)
    return str(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True), "utf-8") + "\n"


def sarif(verdict: Verdict, candidate: str, version: str) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log with a result per check that did not pass."""
    names = {check.name: "".join(c if c.isalnum() else "-" for c in check.name).strip("-") for check in verdict.checks}
    place = {"physicalLocation": {"artifactLocation": {"uri": quote(candidate.replace("\\", "/"))}}}
    results = [
        {
            "ruleId": names[c.name],
            "level": LEVELS[c.status],
            "message": {"text": escaping.sarif(str(c))},
            "locations": [place],
        }
        for c in verdict.checks
        if c.status in LEVELS
    ]
    rules = [{"id": rule, "shortDescription": {"text": visible(name)}} for name, rule in names.items()]
    driver = {"name": "onnxprune", "version": version, "rules": rules}
    return {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}


def github(verdict: Verdict, candidate: str) -> list[str]:
    """Return workflow commands, which GitHub shows as annotations."""
    file = workflow_property(candidate)
    return [
        f"::{LEVELS[check.status]} file={file},title=onnxprune check::{workflow_value(str(check))}"
        for check in verdict.checks
        if check.status in ("FAILED", "UNDECIDED")
    ]
