"""docs/failures.md promises nothing that no test shows."""

from __future__ import annotations

import re
from pathlib import Path

_TESTS = Path(__file__).parents[1]
_PAGE = _TESTS.parent / "docs" / "failures.md"
_NAMED = re.compile(r"`([\w/]+\.py)::(\w+)`")
_FAULTS = ("unreachable", "slow", "NOSPACE", "reset", "paused", "clock", "token", "fork")


def test_every_test_that_is_named_exists() -> None:
    named = _NAMED.findall(_PAGE.read_text(encoding="utf-8"))
    assert len(named) > 60
    missing = [f"{file}::{test}" for file, test in named if not _defines(_TESTS / file, test)]
    assert missing == []


def _defines(file: Path, test: str) -> bool:
    return file.exists() and bool(
        re.search(rf"^\s*(async )?def {test}\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    )


def test_every_row_names_a_test() -> None:
    rows = [line for line in _PAGE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    bare = [row for row in rows if not _NAMED.search(row) and not row.startswith("| when |")]
    assert bare == []


def test_every_feature_has_every_row() -> None:
    sections = _PAGE.read_text(encoding="utf-8").split("\n## ")[1:-1]
    assert len(sections) == 8
    for section in sections:
        for fault in (
            "unreachable",
            "slow",
            "NOSPACE",
            "reset",
            "paused",
            "clock",
            "token",
            "fork",
        ):
            assert f"\n| {fault}" in section, (section[:30], fault)
