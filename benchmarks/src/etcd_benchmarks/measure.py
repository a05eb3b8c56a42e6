"""Rows of the table, and how their figures are taken: alternating rounds, medians, counts.

Runs in the caller's thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from etcd_core.testing import RpcCounter

Batch = Callable[[], Sequence[float]]


@dataclass
class Row:
    """One line of the table. Times are seconds for one operation.

    Attributes:
        name: The operation.
        floor_name: What the floor is.
        bar: The promise, in words.
        floor: Median time of the floor.
        ours: Median time of the operation.
        ratio: Median of the rounds' ratios.
        requests: What was sent for one operation.
        passed: Whether the bar is reached; None where there is none.
        notes: More figures.
        unit: ``"s"``, or what the figures are instead.
    """

    name: str
    floor_name: str = ""
    bar: str = ""
    floor: float | None = None
    ours: float | None = None
    ratio: float | None = None
    requests: str = ""
    passed: bool | None = None
    notes: list[str] = field(default_factory=list)
    unit: str = "s"

    def check(self, reached: bool) -> None:
        """Count one more condition of the bar."""
        self.passed = reached and self.passed is not False

    def as_json(self) -> dict[str, object]:
        """Return the row as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Effort:
    """How much to run."""

    rounds: int
    iterations: int

    @classmethod
    def choose(cls, quick: bool) -> Effort:
        """Return the effort of a quick or a whole run."""
        return cls(5, 60) if quick else cls(9, 200)


def timed(operation: Callable[[], object], times: int) -> list[float]:
    """Return how long each of ``times`` calls took, in seconds."""
    taken = []
    for _ in range(times):
        begins = time.perf_counter()
        operation()
        taken.append(time.perf_counter() - begins)
    return taken


def compare(row: Row, floor: Batch, ours: Batch, rounds: int, limit: float | None = None) -> Row:
    """Fill in ``row`` from alternating rounds; with ``limit`` the ratio is part of the bar."""
    floor(), ours()  # warm
    taken = []
    for index in range(rounds):
        # Who goes first alternates too, so that a slow drift of the machine favours nobody.
        if index % 2:
            own, base = statistics.median(ours()), statistics.median(floor())
        else:
            base, own = statistics.median(floor()), statistics.median(ours())
        taken.append((base, own))
    return _filled(row, taken, limit)


def compare_calls(
    row: Row,
    floor: Callable[[], object],
    ours: Callable[[], object],
    effort: Effort,
    limit: float | None = None,
) -> Row:
    """As :func:`compare`, alternating call by call: what else the machine does hits both alike."""
    floor(), ours()  # warm
    rounds = [_alternating(floor, ours, effort.iterations) for _ in range(effort.rounds)]
    return _filled(row, rounds, limit)


def _alternating(
    floor: Callable[[], object], ours: Callable[[], object], times: int
) -> tuple[float, float]:
    pairs = [(timed(floor, 1)[0], timed(ours, 1)[0]) for _ in range(times)]
    return statistics.median(p[0] for p in pairs), statistics.median(p[1] for p in pairs)


def _filled(row: Row, rounds: Sequence[tuple[float, float]], limit: float | None) -> Row:
    ratios = [own / base for base, own in rounds]
    row.floor = statistics.median(base for base, _ in rounds)
    row.ours = statistics.median(own for _, own in rounds)
    row.ratio = statistics.median(ratios)
    row.notes.append(f"ratios {min(ratios):.2f} to {max(ratios):.2f} over {len(rounds)} rounds")
    if limit is not None:
        row.check(row.ratio <= limit)
    return row


def per_operation(
    counter: RpcCounter, operation: Callable[[], object], times: int
) -> Mapping[str, float]:
    """Return the requests per operation, averaged over ``times``, background included."""
    counter.reset()
    for _ in range(times):
        operation()
    return {name: count / times for name, count in sorted(counter.counts.items())}


def show_requests(requests: Mapping[str, float]) -> str:
    """Return ``Txn 2`` and the like."""
    return " + ".join(f"{name} {count:g}" for name, count in requests.items()) or "none"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which ``share`` (0 to 1) of ``values`` lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(value: float | None, unit: str) -> str:
    """Return a figure for people."""
    if value is None or unit == "s":
        return seconds(value)
    return f"{value:.3g} {unit}".rstrip()


def seconds(value: float | None) -> str:
    """Return a duration for people."""
    if value is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns" if value else "0"
