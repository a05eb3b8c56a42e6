"""How long ago a revision was written, as far as one process can know. No I/O; thread-safe.

etcd stores no times. But each read tells which revision the store had at a moment of our own clock,
and a few such moments bracket every key: it is at least as old as the first moment its revision was
there, and younger than the last moment it was not.
"""

from __future__ import annotations

import threading
import weakref
from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..wire.channel import StoreClock

_MOST_MOMENTS = 512


@dataclass(frozen=True)
class Age:
    """Bounds of an age, in seconds.

    Attributes:
        at_least: For how long the revision is known to be there.
        at_most: Since when it is known not to have been there before; None if that is not known.
    """

    at_least: float
    at_most: float | None

    @property
    def exact(self) -> bool:
        """Whether the bounds are so close that people would call it one time."""
        return self.at_most is not None and self.at_most - self.at_least <= max(
            10.0, self.at_least / 10
        )


class RevisionTimes:
    """The moments at which one store had its revisions. Bounded; the oldest get coarser."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # In the order of the revisions: for each, when it was first seen, and last asked for.
        self._revisions: list[int] = []
        self._seen: list[float] = []
        self._asked: list[float] = []

    def note(self, revision: int, *, asked: float, answered: float) -> None:
        """Remember that ``revision`` was the newest at some moment of this monotonic interval."""
        with self._lock:
            at = bisect_left(self._revisions, revision)
            if at < len(self._revisions) and self._revisions[at] == revision:
                self._seen[at] = min(self._seen[at], answered)
                self._asked[at] = max(self._asked[at], asked)
                return
            self._revisions.insert(at, revision)
            self._seen.insert(at, answered)
            self._asked.insert(at, asked)
            if len(self._revisions) > _MOST_MOMENTS:
                for column in (self._revisions, self._seen, self._asked):
                    del column[1 : _MOST_MOMENTS // 2 : 2]

    def age(self, revision: int, now: float) -> Age | None:
        """Return the age of what was written at ``revision``; None if it was never seen.

        Args:
            revision: The key's create or mod revision.
            now: The monotonic clock.
        """
        with self._lock:
            at = bisect_left(self._revisions, revision)
            # Answers of concurrent reads may be noted in any order.
            seen = min(self._seen[at:], default=None)
            asked = max(self._asked[:at], default=None)
        if seen is None:
            return None
        return Age(max(0.0, now - seen), None if asked is None else now - asked)


_known: weakref.WeakKeyDictionary[StoreClock, tuple[int, RevisionTimes]] = (
    weakref.WeakKeyDictionary()
)


def revision_times(store: StoreClock) -> RevisionTimes:
    """Return what this process knows of a store; it starts anew when the store was reset."""
    epoch, times = _known.get(store, (-1, None))
    if times is None or epoch != store.epoch:
        times = RevisionTimes()
        _known[store] = (store.epoch, times)
    return times
