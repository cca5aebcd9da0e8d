"""Every case of this folder, on the real server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.case_checks import differences

if TYPE_CHECKING:
    from tests.conformance.conftest import CaseRuns

FOLDER = Path(__file__).parent
CASES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.yaml"))


@pytest.mark.parametrize("case_name", CASES)
async def test_case(case_name: str, case_runs: CaseRuns):
    case, observed, faults = await case_runs[case_name]
    assert faults + differences(case.expect, observed) == [], case.title
