"""docs/failures.md promises nothing that no test shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from probes import FEATURES

_TESTS = Path(__file__).parents[1]
_PAGE = _TESTS.parent / "docs" / "failures.md"
_NAMED = re.compile(r"`([\w/]+\.py)::(\w+)(?:\[(\w+)\])?`")
_FAULTS = ("unreachable", "slow", "NOSPACE", "reset", "paused", "clock", "token", "fork")
_TABLES = {
    "Configuration": "configuration",
    "Registration": "registration",
    "Discovery": "discovery",
    "Resolver": "resolver",
    "Locks": "lock",
    "Elections": "election",
    "Tasks: `leader_only`": "leader_only",
    "Tasks: `exclusive`": "exclusive",
    "`client.raw`": "raw",
    "Dynaconf": "dynaconf",
    "Django and Flask": "hosting",
}


def _page() -> str:
    return _PAGE.read_text(encoding="utf-8")


def _tables() -> dict[str, list[str]]:
    """Return the rows below each heading that has a table."""
    sections = [section.partition("\n") for section in _page().split("\n## ")[1:]]
    rows = {
        title: [line for line in body.splitlines() if line.startswith("| ")][1:]
        for title, _, body in sections
    }
    return {title: lines for title, lines in rows.items() if lines}


def test_every_test_that_is_named_exists() -> None:
    named = _NAMED.findall(_page())
    assert len(named) > 120
    missing = [one for one in named if not _defines(_TESTS / one[0], one[1])]
    assert missing == []
    assert {feature for _, _, feature in named if feature} == set(FEATURES)


def _defines(file: Path, test: str) -> bool:
    return file.exists() and bool(
        re.search(rf"^\s*(async )?def {test}\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    )


def test_every_feature_has_a_table() -> None:
    assert list(_tables()) == list(_TABLES)
    assert set(_TABLES.values()) == set(FEATURES)


@pytest.mark.parametrize("title", _TABLES)
def test_every_row_names_the_test_of_its_fault_and_feature(title: str) -> None:
    rows = _tables()[title]
    assert [row for row in rows if not _NAMED.search(row)] == []
    for fault in _FAULTS:
        (row, *_) = [row for row in rows if row.startswith(f"| {fault} |")]
        if fault != "fork":
            # Its own test, not one of a mechanism that several features share.
            assert f"[{_TABLES[title]}]`" in row, row


def test_every_fault_of_the_list_has_its_test() -> None:
    names = [
        name
        for file in (_TESTS / "faults").glob("test_*.py")
        for name in re.findall(r"^\s*def test_((?:f\d+_)+)", file.read_text("utf-8"), re.MULTILINE)
    ]
    numbers = {int(number) for name in names for number in re.findall(r"\d+", name)}
    assert numbers == set(range(1, 55))
