"""Hand-made network topologies: the prunable channels of each, and the oracle."""

from __future__ import annotations

import pytest
from cases import Case, check
from topologies import NETS, OTHER_UNITS


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, id=c.name, marks=[pytest.mark.xfail(strict=True, reason=c.defect)] if c.defect else [])
        for c in (*NETS, *OTHER_UNITS)
    ],
)
def test_topology(case: Case) -> None:
    check(case)
