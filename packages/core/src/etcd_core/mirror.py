"""A range of the store held in memory: snapshot at R, watch from R+1, diff on resync.

Configuration, discovery and observers stand on it. The view is replaced, never changed, by the
watch thread or (after compaction or a reset) by the mirror's own strand; subscribers are called on
strands of their own.
"""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from . import forking
from .config import UNSET, Timeout
from .dispatch import Strand
from .engine import Engine
from .errors import ClosedError, ClusterReset, Compacted, EtcdError
from .events import Event, fields
from .watch import Created, Delivery, Ended, Events, Progress, Watch
from .wire import messages as pb
from .wire.channel import Backoff, Channel
from .wire.rpc import RANGE

_log = logging.getLogger("etcd_core.mirror")

PAGE_SIZE = 20_000
_MAX_RESTARTS = 10


@dataclass(frozen=True)
class Entry:
    """One key as it was at a revision."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int

    @classmethod
    def of(cls, kv: pb.KeyValue) -> Entry:
        """Copy what is needed out of a wire message."""
        return cls(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


@dataclass(frozen=True)
class View:
    """All keys of a range at one revision. Immutable."""

    revision: int
    entries: Mapping[bytes, Entry]


class Cause(str, enum.Enum):
    """Why a view replaced the one before it."""

    INITIAL = "initial"
    CHANGE = "change"
    RESYNC = "resync"
    RESET = "reset"


@dataclass(frozen=True)
class Change:
    """A step from one view to the next.

    Attributes:
        cause: Why.
        before: The view before; empty at first.
        after: The view now.
        put: Entries that are new or changed, in key order of the batch.
        deleted: Entries that are gone, as they were before.
    """

    cause: Cause
    before: View
    after: View
    put: tuple[Entry, ...]
    deleted: tuple[Entry, ...]


_NOTHING = View(0, MappingProxyType({}))


def read_range(
    channel: Channel,
    key: bytes,
    range_end: bytes,
    *,
    what: str,
    timeout: Timeout = UNSET,
    page_size: int = PAGE_SIZE,
) -> View:
    """Read a whole range at one revision, in pages.

    All pages are read at the first one's revision; if that is compacted meanwhile, it starts over,
    so that pages of two revisions are never mixed.

    Raises:
        EtcdError: It could not be read.
        Compacted: It was overtaken by compaction again and again.
    """
    for _ in range(_MAX_RESTARTS):
        try:
            return _read_pages(channel, key, range_end, what, timeout, page_size)
        except Compacted as exc:
            overtaken = exc
    raise overtaken


def _read_pages(
    channel: Channel, key: bytes, range_end: bytes, what: str, timeout: Timeout, page_size: int
) -> View:
    entries: dict[bytes, Entry] = {}
    revision = 0
    while True:
        request = pb.RangeRequest(key=key, range_end=range_end, limit=page_size, revision=revision)
        answer = channel.unary(RANGE, request, what=what, timeout=timeout)
        revision = revision or answer.header.revision
        entries.update((kv.key, Entry.of(kv)) for kv in answer.kvs)
        if not answer.more:
            return View(revision, MappingProxyType(entries))
        key = answer.kvs[-1].key + b"\0"


class Mirror:
    """Keeps a :class:`View` of a range current, for ever, until closed.

    Args:
        engine: The client's engine.
        key: Start of the range.
        range_end: Exclusive end; empty for a single key.
        what: The operation and key, for errors and logs.
    """

    def __init__(self, engine: Engine, key: bytes, range_end: bytes, what: str) -> None:
        self._engine = engine
        self._key = key
        self._range_end = range_end
        self._what = what
        self._lock = threading.Lock()
        self._view = _NOTHING
        self._watch: Watch | None = None
        # Counts the watches that ended; written where their end is delivered.
        self._generation = 0
        self._blind_since: float | None = time.monotonic()
        self._closed = False
        self._forked = False
        forking.track(self)
        self._own = engine.dispatcher.strand(f"{what} (resync)")
        self._subscribers: list[tuple[Strand, Callable[[Change], object]]] = []

    @property
    def view(self) -> View:
        """The newest view; empty at revision 0 before :meth:`start`."""
        return self._view

    @property
    def stale(self) -> bool:
        """Whether changes may be missing right now: no live watch, or etcd cannot be reached."""
        return self.stale_for is not None

    @property
    def stale_for(self) -> float | None:
        """Seconds since it is :attr:`stale`; None while it is not."""
        away, watch = self._engine.channel.away_for, self._watch
        since = (self._blind_since, watch.down_since if watch is not None else None)
        now = time.monotonic()
        spells = [away, *(now - start if start is not None else None for start in since)]
        return max((spell for spell in spells if spell is not None), default=None)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def start(
        self, *, timeout: Timeout = UNSET, since: View | None = None, epoch: int | None = None
    ) -> View:
        """Read the first view and start the watch. Blocks; call it once.

        Args:
            timeout: Seconds for the read.
            since: Start from this view instead of reading one: changes after its revision follow.
            epoch: The store's epoch when ``since`` was read; left out where it is read here.

        Raises:
            EtcdError: The first read failed; nothing was started.
        """
        epoch = self._engine.channel.store.epoch if epoch is None else epoch
        view = since if since is not None else self._read(timeout)
        with self._lock:
            self._view = view
        self._watch_from(view.revision + 1, epoch)
        return view

    def subscribe(
        self, callback: Callable[[Change], object], name: str, *, initial: bool = True
    ) -> Strand:
        """Call ``callback`` for the current view (cause ``initial``) and then for every change.

        Returns:
            The strand the callbacks run on; closing it ends the subscription.
        """
        strand = self._engine.dispatcher.strand(name)
        with self._lock:
            self._subscribers.append((strand, callback))
            if initial:
                view = self._view
                change = Change(Cause.INITIAL, _NOTHING, view, tuple(view.entries.values()), ())
                strand.post(lambda: callback(change))
        return strand

    def unsubscribe(self, strand: Strand) -> None:
        """Forget a subscriber; its strand is the caller's to close."""
        with self._lock:
            self._subscribers = [entry for entry in self._subscribers if entry[0] is not strand]

    def close(self) -> None:
        """Stop the watch. Idempotent; subscribers' strands are theirs to close."""
        if self._forked:
            return
        with self._lock:
            self._closed = True
            self._go_blind()
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        self._own.close(0.0)

    def after_fork_in_child(self) -> None:
        """Be closed in the child: the watch and the strands are the parent's."""
        self._lock = threading.Lock()
        self._closed = self._forked = True
        self._go_blind()
        self._watch = None

    def _read(self, timeout: Timeout) -> View:
        return read_range(
            self._engine.channel, self._key, self._range_end, what=self._what, timeout=timeout
        )

    def _go_blind(self) -> None:
        self._blind_since = self._blind_since or time.monotonic()

    def _watch_from(self, revision: int, epoch: int) -> None:
        generation = self._generation
        watch = self._engine.hub.watch(
            self._key,
            lambda delivery: self._on_delivery(delivery, generation),
            range_end=self._range_end,
            start_revision=revision,
            epoch=epoch,
        )
        with self._lock:
            if not self._closed:
                # Ended already by a reset, its successor may be there before us.
                if not watch.over:
                    self._watch = watch
                return
        watch.cancel()

    # -- the watch thread ----------------------------------------------------------------------

    def _on_delivery(self, delivery: Delivery, generation: int) -> None:
        if generation != self._generation:
            # Held up on its way past the end of its watch: an event of another store perhaps.
            return
        if isinstance(delivery, Events):
            self._apply(delivery)
        elif isinstance(delivery, Created):
            if not self._closed:
                self._blind_since = None
        elif isinstance(delivery, Progress):
            self._advance(delivery.revision)
        elif isinstance(delivery, Ended):
            self._on_ended(delivery.error)

    def _apply(self, delivery: Events) -> None:
        before = self._view
        entries = dict(before.entries)
        put: dict[bytes, Entry] = {}
        deleted: dict[bytes, Entry] = {}
        for event in delivery.events:
            entry = Entry.of(event.kv)
            put.pop(entry.key, None)
            if event.type == pb.Event.PUT:
                entries[entry.key] = put[entry.key] = entry
            elif entries.pop(entry.key, None) is not None and entry.key in before.entries:
                deleted[entry.key] = before.entries[entry.key]
        gone = tuple(old for key, old in deleted.items() if key not in put)
        after = View(delivery.revision, MappingProxyType(entries))
        self._publish(Change(Cause.CHANGE, before, after, tuple(put.values()), gone))

    def _advance(self, revision: int) -> None:
        with self._lock:
            if revision > self._view.revision:
                self._view = View(revision, self._view.entries)

    def _on_ended(self, error: EtcdError) -> None:
        self._generation += 1
        self._go_blind()
        if self._closed or isinstance(error, ClosedError):
            return
        _log.info(
            "%s: reading it anew: %s",
            self._what,
            error,
            extra=fields(Event.WATCH_RESYNC, watch=self._what, reason=str(error)),
        )
        cause = Cause.RESET if isinstance(error, ClusterReset) else Cause.RESYNC
        self._own.post(lambda: self._resync(cause))

    # -- the mirror's own strand ---------------------------------------------------------------

    def _resync(self, cause: Cause) -> None:
        backoff = Backoff(base=0.05, cap=5.0)
        warned = False
        while not self._closed:
            epoch = self._engine.channel.store.epoch
            try:
                view = self._read(UNSET)
                self._publish(self._diff(cause, view))
                self._watch_from(view.revision + 1, epoch)
                return
            except ClosedError:
                return
            except EtcdError as exc:
                if not warned and not exc.retryable:
                    warned = True
                    _log.warning(
                        "%s: cannot be read, trying again: %s",
                        self._what,
                        exc,
                        extra=fields(Event.WATCH_FAILING, watch=self._what, reason=str(exc)),
                    )
            try:
                self._engine.channel.pause(backoff.next())
            except ClosedError:
                return

    def _diff(self, cause: Cause, after: View) -> Change:
        before = self._view
        put = tuple(
            entry for key, entry in after.entries.items() if before.entries.get(key) != entry
        )
        gone = tuple(old for key, old in before.entries.items() if key not in after.entries)
        return Change(cause, before, after, put, gone)

    def _publish(self, change: Change) -> None:
        with self._lock:
            # A late event must not undo what a resync has read meanwhile.
            late = change.cause is Cause.CHANGE and self._view is not change.before
            if self._closed or late:
                return
            self._view = change.after
            quiet = change.cause is not Cause.RESET and not change.put and not change.deleted
            if not quiet:
                self._post(change, self._subscribers)

    @staticmethod
    def _post(
        change: Change, subscribers: Iterable[tuple[Strand, Callable[[Change], object]]]
    ) -> None:
        for strand, callback in subscribers:
            strand.post(lambda callback=callback: callback(change))  # type: ignore[misc]
