"""Every case of this folder, on the real server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.case_checks import differences
from tests.conformance.case_runner import run_case
from tests.conformance.cases import load

if TYPE_CHECKING:
    from temporalio.client import Client

    from engine.bootstrap import Stores
    from tests.workflows.runs import EngineFactory

FOLDER = Path(__file__).parent
CASES = sorted(str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("*/*.yaml"))


@pytest.mark.parametrize("name", CASES)
async def test_case(name: str, engine_factory: EngineFactory, stores: Stores, client: Client):
    case = load(FOLDER / f"{name}.yaml")
    observed, faults = await run_case(case, engine_factory, stores, client)
    assert faults + differences(case.expect, observed) == [], case.title
