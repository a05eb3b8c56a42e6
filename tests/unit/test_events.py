"""Every record from INFO up is named, and docs/observability.md lists the names."""

from __future__ import annotations

import ast
import functools
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from etcd_core.contrib.measures import MEASURES
from etcd_core.events import Event, fields

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "observability.md"
LEVELS = ("info", "warning", "error", "exception", "critical")
ROW = re.compile(r"^\| `([a-z_.]+)` \| (\w+) \| .+ \| (.*) \|$", re.MULTILINE)


@dataclass(frozen=True)
class LogCall:
    """One call that logs."""

    where: str
    level: str
    extra: ast.expr | None


def log_calls() -> Iterator[LogCall]:
    for path in sorted(ROOT.glob("packages/*/src/*_*/**/*.py")):
        if "testing" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = node.func.value
            if isinstance(of, ast.Name) and of.id in ("_log", "log", "logger", "_logger"):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                extra = {each.arg: each.value for each in node.keywords}.get("extra")
                yield LogCall(where, node.func.attr, extra)


@functools.cache
def named_calls() -> list[LogCall]:
    return [call for call in log_calls() if call.level in LEVELS]


def called(call: LogCall) -> str:
    """Return the function that makes the extra."""
    func = call.extra.func if isinstance(call.extra, ast.Call) else None
    return func.id if isinstance(func, ast.Name) else getattr(func, "attr", "")


def events_in(call: LogCall) -> set[Event]:
    assert isinstance(call.extra, ast.Call)
    return {
        Event[node.attr]
        for node in ast.walk(call.extra.args[0])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if node.value.id == "Event"
    }


def test_every_record_from_info_up_is_named() -> None:
    calls = named_calls()
    assert len(calls) > 50
    assert [call.where for call in calls if called(call) not in ("fields", "_fields")] == []
    # A level that is computed could not be checked here.
    assert [call.where for call in log_calls() if call.level == "log"] == []


def test_the_fields_are_those_of_the_page() -> None:
    documented = {name: told for name, _, told in ROW.findall(PAGE.read_text())}
    used: dict[str, set[str]] = defaultdict(set)
    for call in named_calls():
        assert isinstance(call.extra, ast.Call)
        for event in events_in(call):
            keywords = {str(each.arg) for each in call.extra.keywords}
            # A registration's are the same for all of its events.
            used[event.value] |= keywords or {"service", "id", "reason"}
    # The loss of a lock and of a leadership is logged by what they share.
    used["lock.lost"] = used["leadership.lost"] = {"key", "token", "reason"}
    assert {name: set(re.findall(r"`(\w+)`", told)) for name, told in documented.items()} == used


def test_every_event_is_on_the_page_once() -> None:
    listed = Counter(name for name, _, _ in ROW.findall(PAGE.read_text()))
    assert listed == Counter(event.value for event in Event)
    assert list(listed) == sorted(listed)


def test_the_levels_are_those_of_the_page() -> None:
    documented = {name: level for name, level, _ in ROW.findall(PAGE.read_text())}
    for call in named_calls():
        level = "error" if call.level == "exception" else call.level
        for event in events_in(call):
            assert documented[event.value] == level, call.where


def test_fields_are_attributes_of_the_record(caplog: pytest.LogCaptureFixture) -> None:
    extra = fields(Event.CONNECTION_LOST, endpoints=("a:1", "b:2"), reason="refused")
    with caplog.at_level(logging.INFO, "etcd_core.channel"):
        logging.getLogger("etcd_core.channel").warning("gone", extra=extra)
    (record,) = caplog.records
    assert record.etcd_event == "connection.lost"  # type: ignore[attr-defined]
    assert type(record.etcd_event) is str  # type: ignore[attr-defined]
    assert record.etcd_endpoints == ("a:1", "b:2")  # type: ignore[attr-defined]


def test_every_metric_is_on_the_page() -> None:
    page = PAGE.read_text()
    for measure in MEASURES:
        labels = ", ".join(f"`{label}`" for label in measure.labels)
        assert f"| `{measure.metric}` | `{measure.instrument}` | {labels} |" in page
