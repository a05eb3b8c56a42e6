"""Who leads an election, for those who do not stand in it. Stands on :mod:`mirror`."""

from __future__ import annotations

import queue

from typing_extensions import Self

from . import forking
from .config import UNSET, Timeout
from .contender import full_queue, queue_range
from .dispatch import Strand
from .engine import Scope
from .errors import ClosedError, RequestTimeout
from .keys import election_prefix, is_queue_key, prefix_range_end, require_name
from .mirror import Change, Entry, Mirror
from .wire.rpc import RANGE


def leader(scope: Scope, key: str, *, timeout: Timeout = UNSET) -> str | None:
    """Return who leads; see :meth:`Client.leader`."""
    require_name("leader", "key", key)
    what = f"leader of election {key!r}"
    prefix = election_prefix(scope.engine.prefix, key).encode()
    answer = scope.engine.channel.unary(RANGE, queue_range(prefix), what=what, timeout=timeout)
    found = list(answer.kvs)
    if found and not is_queue_key(prefix, found[0].key):
        found = full_queue(scope, prefix, what, keys_only=False)
    return found[0].value.decode(errors="replace") if found else None


class LeaderWatch:
    """Follows who leads an election: an iterator of identities, None while nobody leads.

    It yields the leader at the start, then every change: another leader, or another identity
    proclaimed by the same one. Changes that came while etcd could not be reached may be merged, but
    the last value is always the final one. One thread may read; :meth:`close` is for any.

    Example:
        >>> with client.observe("scheduler") as leaders:
        ...     for leader in leaders:
        ...         print(leader or "nobody")
    """

    def __init__(self, scope: Scope, key: str) -> None:
        require_name("observe", "key", key)
        self._scope = scope
        self._key = key
        self._what = f"observe election {key!r}"
        self._prefix = election_prefix(scope.engine.prefix, key).encode()
        self._mirror = Mirror(
            scope.engine, self._prefix, prefix_range_end(self._prefix), self._what
        )
        self._queue: queue.SimpleQueue[tuple[str | None] | None] = queue.SimpleQueue()
        self._last: Entry | None = None
        self._first = True
        self._closed = False
        self._strand: Strand | None = None
        forking.track(self)

    def after_fork_in_child(self) -> None:
        """Be closed in the child: the watch is the parent's."""
        self._closed = True
        self._queue = queue.SimpleQueue()
        self._queue.put(None)

    @classmethod
    def open(cls, scope: Scope, key: str, *, timeout: Timeout = UNSET) -> LeaderWatch:
        """Read who leads and start watching; see :meth:`Client.observe`."""
        watch = cls(scope, key)
        watch._mirror.start(timeout=timeout)
        watch._strand = watch._mirror.subscribe(watch._on_change, watch._what)
        try:
            scope.hold(watch, watch._what)
        except ClosedError:
            watch.close()
            raise
        return watch

    def next(self, timeout: float | None = None) -> str | None:
        """Wait for the next value.

        Raises:
            RequestTimeout: None came within ``timeout`` seconds.
            ClosedError: The watch or the client is closed.
        """
        try:
            item = self._queue.get(timeout=timeout)
        except queue.Empty:
            raise RequestTimeout(f"{self._what}: no change within {timeout} s") from None
        if item is None:
            self._queue.put(None)
            raise ClosedError(f"{self._what}: the watch is closed")
        return item[0]

    def __iter__(self) -> Self:
        """Return the watch: it is its own iterator."""
        return self

    def __next__(self) -> str | None:
        """Wait for the next value; end when the watch is closed."""
        try:
            return self.next()
        except ClosedError:
            raise StopIteration from None

    def close(self) -> None:
        """End the watch and every :meth:`next` that waits. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._scope.let_go(self)
        self._mirror.close()
        if self._strand is not None:
            self._strand.close(1.0)
        self._queue.put(None)

    def close_with_client(self, timeout: float) -> None:
        """End the watch because the client is closed."""
        self.close()

    def __enter__(self) -> Self:
        """Return the watch."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the watch."""
        self.close()

    def _on_change(self, change: Change) -> None:
        own = [e for e in change.after.entries.values() if is_queue_key(self._prefix, e.key)]
        first = min(own, key=lambda entry: entry.create_revision, default=None)
        if self._first or not _same_leader(first, self._last):
            self._first = False
            self._last = first
            self._queue.put((None if first is None else first.value.decode(errors="replace"),))


def _same_leader(one: Entry | None, other: Entry | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.key, one.create_revision, one.value) == (
        other.key,
        other.create_revision,
        other.value,
    )
