"""How long takeovers took: judged against the promise, and shown at the end of the run.

A takeover lasts from the end of the process that led until another one's first run. The times
travel in the reports, so they come through from the processes of pytest-xdist too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

CRASH = "crash"
CLEAN_EXIT = "clean exit"
STOP = "SIGSTOP"
HOLD = "network hold"
CLEAN_EXIT_SECONDS = 1.0
# On top of the TTL, for whoever ends without resigning.
LEASE_END_SECONDS = 1.5

_PROPERTY = "takeover"
# A single takeover may be late because the machine is, but never by more than this.
_SLACK = 5.0
# The best of so many is judged; more rounds are made only while none kept the promise.
_ROUNDS = 2
_MOST_ROUNDS = 4


def promised(how: str, ttl: float) -> float:
    """Return the seconds within which another process goes on."""
    return CLEAN_EXIT_SECONDS if how == CLEAN_EXIT else ttl + LEASE_END_SECONDS


class Takeovers:
    """The takeovers of one test.

    The promise is about this library, a single time is about the machine too. So every takeover is
    bounded generously as it is noted, and the best of several has to keep the promise itself.
    """

    def __init__(self, item: pytest.Item, what: str, ttl: float) -> None:
        self._item = item
        self._what = what
        self._ttl = ttl
        self._times: dict[str, list[float]] = {}

    def longest(self, how: str) -> float:
        """Return what a single takeover may take."""
        return promised(how, self._ttl) + _SLACK

    def note(self, how: str, seconds: float) -> None:
        """Note one takeover."""
        self._times.setdefault(how, []).append(seconds)
        row = (self._what, how, promised(how, self._ttl), seconds)
        self._item.user_properties.append((_PROPERTY, row))
        assert seconds <= self.longest(how), (how, seconds)

    def count(self, how: str) -> int:
        """Return how many were noted."""
        return len(self._times.get(how, ()))

    def rounds(self) -> Iterator[int]:
        """Count rounds, each of which notes its takeovers; in the end the best are judged."""
        for number in range(_MOST_ROUNDS):
            if number >= _ROUNDS and not self._late():
                break
            yield number
        assert not self._late(), self._times

    def _late(self) -> list[str]:
        """Return the kinds of which no takeover kept the promise."""
        return [how for how, times in self._times.items() if min(times) > promised(how, self._ttl)]


def show_takeovers(
    terminalreporter: pytest.TerminalReporter, reports: Iterable[pytest.TestReport]
) -> None:
    """Print the times, one line for each kind of takeover."""
    times: dict[tuple[str, str, float], list[float]] = {}
    for report in reports:
        # Only at the end of its teardown has a report of a test all of them.
        for name, value in report.user_properties if report.when == "teardown" else ():
            if name == _PROPERTY and isinstance(value, (tuple, list)):
                what, how, promise, seconds = value
                times.setdefault((what, how, promise), []).append(seconds)
    if not times:
        return
    terminalreporter.section("takeovers: from the end of one until another's first run")
    for (what, how, promise), seconds in sorted(times.items()):
        each = ", ".join(f"{one:.2f}" for one in sorted(seconds))
        terminalreporter.write_line(f"{what:<16}  {how:<12}  promised {promise:.1f} s  took {each}")
