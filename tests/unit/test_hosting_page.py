"""docs/hosting.md names only tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

_REPOSITORY = Path(__file__).parents[2]
_PAGE = (_REPOSITORY / "docs" / "hosting.md").read_text(encoding="utf-8")
_TESTS = _REPOSITORY / "tests" / "integration" / "hosting"
_NAMED = re.compile(r"`(\w+\.py)::(\w+)`")


def test_every_test_that_is_named_exists() -> None:
    named = set(_NAMED.findall(_PAGE))
    assert len(named) > 25
    missing = [f"{file}::{test}" for file, test in sorted(named) if not _defines(file, test)]
    assert missing == []


def _defines(file: str, test: str) -> bool:
    source = (_TESTS / file).read_text(encoding="utf-8")
    return bool(re.search(rf"^def {test}\(", source, re.MULTILINE))


def test_every_row_that_can_be_shown_names_a_test() -> None:
    can_work = _PAGE.partition("## What cannot work")[0]
    rows = [line for line in can_work.splitlines() if line.startswith("| ")]
    bare = [row for row in rows if not _NAMED.search(row) and "shown by" not in row]
    assert bare == []


def test_every_server_of_the_matrix_is_on_the_page() -> None:
    source = (_TESTS / "test_servers.py").read_text(encoding="utf-8")
    servers = set(re.findall(r"-m (gunicorn|uvicorn|hypercorn|waitress|daphne|granian)", source))
    assert len(servers) == 6
    assert [name for name in servers if f"| {name}" not in _PAGE] == []
