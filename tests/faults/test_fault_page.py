"""docs/reliability.md says what the tests show: no row that matters is without one, and the page is what its script would write."""

from __future__ import annotations

from types import ModuleType

import pytest

from helpers.project import script_module


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_module("benchmarks/reliability.py")


def test_every_row_that_matters_has_a_test_that_carries_its_id(script: ModuleType) -> None:
    tests = script.tests_by_row()
    assert [row.id for row in script.ROWS if row.level in ("P0", "P1") and not tests.get(row.id)] == []


def test_every_id_in_the_name_of_a_test_is_a_row(script: ModuleType) -> None:
    assert set(script.tests_by_row()) - {row.id for row in script.ROWS} == set()


def test_cases_tries_and_losses_are_counted_by_row(script: ModuleType) -> None:
    from xml.etree import ElementTree

    def case(name: str, *properties: tuple[str, int], inside: str = "") -> ElementTree.Element:
        listed = "".join(f'<property name="{key}" value="{value}"/>' for key, value in properties)
        return ElementTree.fromstring(f'<testcase name="{name}"><properties>{listed}</properties>{inside}</testcase>')

    rows = script.count_cases(
        [
            case("test_C3_a", ("tried", 30), ("again", 2), ("again", 4)),
            case("test_C3_b[x]", inside="<failure/>"),
            case("test_C1_a", ("again", 0), ("again", 0)),
            case("test_C3_c", inside="<skipped/>"),
            case("test_other"),
        ],
        "2026-01-02",
    )
    assert rows == {
        "C3": {"date": "2026-01-02", "cases": 2, "tried": 31, "failed": 1, "again": 4},
        "C1": {"date": "2026-01-02", "cases": 1, "tried": 2, "failed": 0, "again": 0},
    }


def test_the_page_is_what_its_script_writes(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.page(), "run: python benchmarks/reliability.py"


def test_no_row_failed_when_the_results_were_kept(script: ModuleType) -> None:
    if script.RESULTS.is_file():
        import json

        assert {name: row for name, row in json.loads(script.RESULTS.read_text())["rows"].items() if row["failed"]} == {}
