"""What the hosting tests saw, one row for each server process, as a table at the end of the run.

The rows travel in the reports, so they come through from the processes of pytest-xdist too.
"""

from __future__ import annotations

import re
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from serving import Registry, ServerProcess

_PROPERTY = "hosting"
_HEADER = ("server", "case", "entry", "gap", "gone after the exit", "code", "test")
_NOISE = re.compile(r"(^|(?<= ))(-m|-b|--bind|--port|-p|--listen) |\S+/\S+|\S*\b\d{4,5}\b")
_WIDEST = 52
_FOLDER = "integration/hosting/"

Row = tuple[str, ...]


def record(item: pytest.Item, registry: Registry, servers: Sequence[ServerProcess]) -> None:
    """Put the rows of one test into its report; what became of the entry is in the first one."""
    for index, server in enumerate(servers):
        seen = _entry(registry, server) if index == 0 else ("", "", "")
        code = server.process.poll()
        row = (_label(server), _case(item), *seen, "killed" if code is None else str(code))
        item.user_properties.append((_PROPERTY, row))


def _entry(registry: Registry, server: ServerProcess) -> tuple[str, str, str]:
    kinds = registry.kinds()
    if "added" not in kinds:
        return "never", "-", "-"
    times = list(zip(kinds, registry.times, strict=False))
    gaps = [
        after[1] - before[1]
        for before, after in pairwise(times)
        if (before[0], after[0]) == ("removed", "added")
    ]
    gap = f"{max(gaps):.1f} s" if gaps else "none"
    return f"{kinds.count('added')} x", gap, _gone(kinds, times[-1][1], server.ended_at)


def _gone(kinds: Sequence[str], last: float, ended: float | None) -> str:
    if kinds[-1] != "removed":
        return "by its TTL"
    if ended is None:
        return "-"
    return "at the exit" if last <= ended + 0.5 else f"{last - ended:.1f} s"


def _label(server: ServerProcess) -> str:
    program, *words = server.command
    label = " ".join(_NOISE.sub("", " ".join([Path(program).name, *words])).split())
    return label if len(label) <= _WIDEST else label[: _WIDEST - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _case(item: pytest.Item) -> str:
    return _readable(item.name)


def _readable(name: str) -> str:
    name, _, variant = name.removeprefix("test_").partition("[")
    name = name.replace("_", " ")
    # A variant with a blank in it is a command, which the row has already.
    return name if not variant or " " in variant else f"{name} ({variant.rstrip(']')})"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    failed = {report.nodeid for report in terminalreporter.stats.get("failed", ())}
    rows = sorted(
        (*value, "FAILED" if report.nodeid in failed else "passed")
        for reports in terminalreporter.stats.values()
        for report in reports
        # Only at the end of its teardown has a report of a test the rows.
        if getattr(report, "when", "") == "teardown"
        for name, value in report.user_properties
        if name == _PROPERTY
    )
    if not rows:
        return
    terminalreporter.section("servers and what the registry showed of them")
    for line in _aligned([_HEADER, *rows]):
        terminalreporter.write_line(line)
    for line in _not_run(terminalreporter.stats.get("skipped", ())):
        terminalreporter.write_line(line)


def _not_run(skipped: Iterable[pytest.TestReport]) -> Iterable[str]:
    """Say what has no row, since its test was skipped."""
    cases: dict[str, list[str]] = defaultdict(list)
    for report in skipped:
        if _FOLDER in report.nodeid and isinstance(report.longrepr, tuple):
            reason = report.longrepr[2].removeprefix("Skipped: ")
            cases[reason].append(_readable(report.nodeid.rpartition("::")[2]))
    for reason, names in sorted(cases.items()):
        yield ""
        yield f"{len(names)} not run: {reason}"
        yield from textwrap.wrap("; ".join(sorted(names)), 100)


def _aligned(rows: Sequence[Row]) -> Iterable[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
