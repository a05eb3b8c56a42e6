"""A counter in etcd that only the holder of a term can raise, and what etcd says of its history.

Each count is one transaction: if the term's guard holds and the counter is as it was read, the
counter is raised and the count is recorded. So the store tells who ran when, and a count that is
refused although its term lasts has met another process that ran too.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass

from etcd_core import Client, Term


@dataclass(frozen=True)
class Count:
    """One count.

    Attributes:
        number: The counter's value from then on.
        token: The fencing token of the term.
        pid: The process.
        at: When it was about to count, on the machine's monotonic clock.
        what: What its caller said of it.
        revision: The store's.
    """

    number: int
    token: int
    pid: int
    at: float
    what: str
    revision: int

    @classmethod
    def read(cls, value: bytes, revision: int) -> Count:
        """Read what was stored at ``revision``."""
        number, token, pid, at, what = json.loads(value)
        return cls(number, token, pid, at, what, revision)


class FencedCounter:
    """The counter ``P/counted`` of a client's prefix. Used by those who count and by the judge."""

    def __init__(self, client: Client) -> None:
        self._raw = client.raw
        self._root = f"{client.prefix}/counted/"
        self._last = f"{self._root}last"
        self._counts = f"{self._root}counts/"
        self._refused = f"{self._root}refused/"

    def count(self, term: Term, what: str = "") -> bool:
        """Raise the counter by one under ``term``; return whether the store let it."""
        raw, at = self._raw, time.monotonic()
        value, meta = raw.get(self._last)
        number = (json.loads(value)[0] if value else 0) + 1
        unchanged = raw.transactions.mod(self._last) == (meta.mod_revision if meta else 0)
        record = json.dumps([number, term.token, os.getpid(), at, what])
        done, _ = raw.transaction(
            compare=[term.guard(), unchanged],
            success=[
                raw.transactions.put(self._last, record),
                raw.transactions.put(f"{self._counts}{number:09}", record),
            ],
            failure=[],
        )
        if not done:
            lasted = term.remaining() > 0
            raw.put(f"{self._refused}{os.getpid()}-{at}", json.dumps([lasted, what]))
        return bool(done)

    def last(self) -> Count | None:
        """Return the last count. One small request."""
        value, meta = self._raw.get(self._last)
        return Count.read(value, meta.mod_revision) if value and meta else None

    def counts(self) -> list[Count]:
        """Return all counts, by number."""
        return self._read()[0]

    def first_after(self, token: int) -> Count:
        """Return the first count under a later token, of which there is one."""
        return next(count for count in self.counts() if count.token > token)

    def judge(self) -> list[Count]:
        """Assert that at most one ran at any moment and tokens never went back; return the counts.

        Each number was counted once, each token was one process's, and none was refused while its
        term lasted.
        """
        counts, refused, last = self._read()
        assert not [what for lasted, what in refused if lasted], refused
        assert [count.number for count in counts] == list(range(1, last + 1))
        for name in ("revision", "token"):
            values = [getattr(count, name) for count in counts]
            assert values == sorted(values), (name, values)
        owners = {(count.token, count.pid) for count in counts}
        assert len(owners) == len({token for token, _ in owners}), owners
        return counts

    def refused(self) -> list[str]:
        """Return what was said of each count that the store refused."""
        return [what for _, what in self._read()[1]]

    def _read(self) -> tuple[list[Count], list[tuple[bool, str]], int]:
        """Return the counts, the refusals and the counter, all as of one revision."""
        counts: list[Count] = []
        refused: list[tuple[bool, str]] = []
        last = 0
        for value, meta in self._raw.get_prefix(self._root):
            key = meta.key.decode()
            if key.startswith(self._refused):
                refused.append(tuple(json.loads(value)))
            elif key.startswith(self._counts):
                counts.append(Count.read(value, meta.create_revision))
            else:
                last = Count.read(value, meta.mod_revision).number
        return counts, refused, last
