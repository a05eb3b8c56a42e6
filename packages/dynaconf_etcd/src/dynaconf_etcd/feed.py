"""One configuration in etcd as one process sees it: read once, then followed by one watch.

Every settings object with equal options shares a feed. Reads run in the thread that loads the
settings, on a channel that is closed before the read returns, because that thread may belong to
a process that forks (an arbiter, a reloader). Revisions are decoded and handed on by the strand
``etcd-dispatch``, newest only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Protocol

from etcd_core import (
    Client,
    ClosedError,
    ConfigNotFound,
    EtcdError,
    forking,
    shared_client,
)
from etcd_core.dispatch import Strand
from etcd_core.events import Event, fields
from etcd_core.mirror import Cause, Change, Mirror, View, read_range
from etcd_core.snapshot import LeafDecoder
from etcd_core.vitals import ConfigurationVitals, track

from . import snapshot_file
from .layers import Place, Refused, Revision
from .options import Options

_log = logging.getLogger("etcd_core.dynaconf")

_TRUST_VIEW_SECONDS = 5.0
_RETRY_SECONDS = (0.1, 5.0)
_FILE_SECONDS = 1.0
_LOOK_SECONDS = 0.2


_Records = list[Callable[[], None]]
_later: ContextVar[_Records | None] = ContextVar("dynaconf_etcd_later", default=None)


def _say(record: Callable[[], None]) -> None:
    """Log, at once or at the end of what goes on."""
    later = _later.get()
    if later is None:
        record()
    else:
        later.append(record)


@contextmanager
def _saying_later() -> Iterator[None]:
    """Log at the end only: a handler may read settings, or wait for a thread that does.

    So there must be something to read by then, and no lock be held.
    """
    records: _Records = []
    token = _later.set(records)
    try:
        yield
    finally:
        _later.reset(token)
        for record in records:
            record()


class Follower(Protocol):
    """Something that takes each new revision: a live settings object."""

    def offer(self, revision: Revision) -> bool:
        """Take the revision, or refuse it and tell; False asks to be offered it again soon."""

    def refuse(self, number: int, reasons: tuple[str, ...]) -> None:
        """Learn that a newer revision is unusable for everybody; told again, do nothing."""

    @property
    def shown(self) -> Revision | None:
        """The revision that readers see; None if there are none."""

    @property
    def refused(self) -> int | None:
        """The newest revision, where that was refused."""

    @property
    def retry_at(self) -> float | None:
        """When to offer it again, by the monotonic clock; None if that would be of no use."""


@dataclass
class _Running:
    """What follows etcd in this process."""

    client: Client
    strand: Strand
    mirror: Mirror
    announcements: Strand
    disk: Strand
    retries: Strand


class Feed:
    """Reads and follows the layers of one name.

    Safe to use from any thread; a forked child keeps what was read and starts no watch by itself.

    Args:
        options: What to follow.

    Attributes:
        newest: The newest revision that decodes.
        refusal: Number and faults of a newer one that does not, if there is one.
        layers: The layers that anybody here loads; a fault in another one is no fault.
        held: Why an emptied store is not believed, if that is so.
    """

    def __init__(self, options: Options) -> None:
        self.options = options
        self.place = Place(options.config.prefix, options.name)
        self.decoder = LeafDecoder()
        self.newest: Revision | None = None
        self.layers: frozenset[str] = frozenset()
        self.held: str | None = None
        self.refusal: tuple[int, tuple[str, ...]] | None = None
        self._read_at = 0.0
        self._stale_start = False
        self._missed: str | None = None
        self._doubtful_since: float | None = None
        self._lock = threading.RLock()
        self._followers: list[Callable[[], Follower | None]] = []
        self._running: _Running | None = None
        self._reset_seen = False
        forking.track(self)
        # What was read before a fork is followed in the child too, once it is started there.
        track(self, inherited=True)

    @property
    def source(self) -> str:
        """The name of this source in Dynaconf's history; the same for every revision."""
        return f"etcd://{self.options.name}"

    @property
    def watching(self) -> bool:
        """Whether this process follows etcd."""
        return self._running is not None

    @property
    def connected(self) -> bool:
        """Whether what is known is current: the watch is up, or nothing has been missed yet."""
        running = self._running
        if running is None:
            return not self._stale_start
        return not self._stale_start and not running.mirror.stale

    # -- reading -------------------------------------------------------------------------------

    def first(self) -> Revision:
        """Return the newest usable revision, reading it if need be. May block.

        Where etcd is away, or holds nothing usable, the last-known-good file is used if there is
        one. A missing etcd is never taken for an empty configuration.

        Raises:
            EtcdError: etcd cannot be reached, and the options require it.
            ConfigNotFound: It holds nothing, and the file is of another cluster.
            Refused: What is stored is unusable.
        """
        with self._lock:
            known = self.newest
            idle = self._running is None and not self._alive()
        if known is not None and not idle and self.options.watch:
            return known
        with _saying_later():
            revision = self._read_first()
            with self._lock:
                if self._running is None or self.newest is None:
                    self.newest = revision
                return self.newest

    def _read_first(self) -> Revision:
        saved = self.saved()
        self.refusal = None
        try:
            fresh = self.read()
        except EtcdError as exc:
            return self._without_etcd(exc, saved)
        except Refused as exc:
            if saved is None:
                raise
            self.refusal = (exc.revision, exc.reasons)
            return self._from_file(saved, f"what etcd holds is refused: {exc}")
        if fresh.is_empty:
            return self._empty_first(fresh, saved)
        return fresh

    def _without_etcd(self, error: EtcdError, saved: Revision | None) -> Revision:
        if not error.retryable:
            raise error
        self._missed = "etcd could not be read at start"
        if saved is not None:
            return self._from_file(saved, str(error))
        if self.options.required:
            raise error
        _say(
            lambda: _log.warning(
                "dynaconf: going on without etcd: %s",
                error,
                extra=fields(Event.CONFIG_UNAVAILABLE, name=self.options.name, reason=str(error)),
            )
        )
        self._stale_start = True
        self._doubtful_since = time.monotonic()
        return self.nothing()

    def _empty_first(self, fresh: Revision, saved: Revision | None) -> Revision:
        looked_at, endpoints = self.place.described, tuple(self.options.config.endpoints)
        _say(
            lambda: _log.warning(
                "dynaconf: etcd holds no settings %r: no key begins with %s at %s",
                self.options.name,
                looked_at,
                ", ".join(endpoints),
                extra=fields(
                    Event.CONFIG_EMPTY,
                    name=self.options.name,
                    prefix=looked_at,
                    endpoints=endpoints,
                ),
            )
        )
        if self.options.allow_empty or saved is None or saved.is_empty:
            return fresh
        if saved.cluster_id != fresh.cluster_id:
            raise ConfigNotFound(
                f"settings {self.options.name!r}: etcd holds none, and the snapshot is of another"
                f" cluster; remove the file, or set allow_empty"
            )
        if fresh.number >= saved.number:
            return fresh  # deleted by somebody: the store is the one that the file knows
        self.held = (
            f"the store was reset and holds no {self.options.name!r} any more;"
            f" the values of revision {saved.number} are kept"
        )
        return self._from_file(saved, self.held)

    def _from_file(self, saved: Revision, why: str) -> Revision:
        seconds = time.time() - saved.at
        _say(
            lambda: _log.warning(
                "dynaconf: the settings %r are those of revision %d, %.0f s old: %s",
                self.options.name,
                saved.number,
                seconds,
                why,
                extra=fields(
                    Event.CONFIG_FROM_FILE,
                    name=self.options.name,
                    revision=saved.number,
                    seconds=seconds,
                    reason=why,
                ),
            )
        )
        self._stale_start = True
        self._doubtful_since = time.monotonic()
        return saved

    def saved(self) -> Revision | None:
        """Return the revision in the last-known-good file, if one is configured and usable."""
        if self.options.snapshot is None:
            return None
        try:
            path = self.options.snapshot
            return snapshot_file.load(path, self.place, self.decoder, read=self.layers)
        except snapshot_file.Damaged as exc:
            reason = str(exc)
            _say(
                lambda: _log.warning(
                    "dynaconf: %s; it is not used",
                    reason,
                    extra=fields(Event.CONFIG_FILE_DAMAGED, name=self.options.name, reason=reason),
                )
            )
            return None

    def keep(self, revision: Revision) -> None:
        """Write the last-known-good file, if one is configured. Blocks for the disk."""
        path = self.options.snapshot
        if path is None or revision.cause in (snapshot_file.CAUSE, "absent"):
            return
        if revision.is_empty and not self.options.allow_empty and revision.cause != "change":
            return
        try:
            snapshot_file.save(path, revision)
        except OSError as exc:
            _log.warning(
                "dynaconf: the snapshot cannot be written: %s",
                exc,
                extra=fields(Event.CONFIG_FILE_UNWRITABLE, name=self.options.name, reason=str(exc)),
            )

    def read_again(self) -> Revision:
        """Return what etcd holds now, for settings that do not follow it; or what to keep instead.

        Raises:
            EtcdError: etcd could not be read.
            Refused: What is stored is unusable.
        """
        fresh = self.read()
        known = self.newest
        if known is not None and self._is_of_another_store(fresh.view, fresh.cluster_id):
            fresh = replace(fresh, cause=Cause.RESET.value)
        if self._is_wiped(fresh) and known is not None:
            return known
        self._believe(fresh)
        return fresh

    def fall_back(self, saved: Revision, why: str) -> None:
        """Start from the file although etcd answered."""
        self.newest = saved
        self._from_file(saved, why)

    def nothing(self) -> Revision:
        """Return what to go on with where nothing is known."""
        return Revision.decode(self.place, View(0, {}), self.decoder, cause="absent")

    def read(self) -> Revision:
        """Read all layers once, on a channel of its own. Blocks up to ``dial_timeout``.

        Raises:
            EtcdError: They could not be read.
            Refused: What is stored is unusable.
        """
        config = self.options.config
        with Client(config) as client:
            channel = client.scope().engine.channel
            view = read_range(
                channel,
                self.place.key,
                self.place.range_end,
                what=f"load settings {self.options.name!r}",
                timeout=config.dial_timeout,
            )
            cluster_id = channel.store.mark()[3]
        self._read_at = time.monotonic()
        return Revision.decode(
            self.place, view, self.decoder, cluster_id=cluster_id, read=self.layers
        )

    # -- following -----------------------------------------------------------------------------

    def follow(self, follower: Callable[[], Follower | None]) -> None:
        """Hand every later revision to a follower, given as a weak reference."""
        with self._lock:
            self._followers.append(follower)
            running = self._running
        if running is not None:
            running.strand.post(self._hand_on)

    def unfollow(self, follower: Follower) -> None:
        """Forget a follower; the last one stops the watch."""
        with self._lock:
            self._followers = [ref for ref in self._followers if ref() not in (None, follower)]
        self._stop_if_unused()

    def start(self) -> None:
        """Start the watch in this process. Idempotent; does not block and does no I/O."""
        with self._lock:
            if self._running is not None or not self._alive():
                return
            client = shared_client(self.options.config)
            engine = client.scope().engine
            what = f"watch settings {self.options.name!r}"
            mirror = Mirror(engine, self.place.key, self.place.range_end, what)
            strand = mirror.subscribe(self._on_change, what, initial=False)
            announcements = engine.dispatcher.strand(f"{what} (signals)")
            disk = engine.dispatcher.strand(f"{what} (file)")
            retries = engine.dispatcher.strand(f"{what} (retries)")
            self._running = _Running(client, strand, mirror, announcements, disk, retries)
            known = self.newest
            fresh = time.monotonic() - self._read_at < _TRUST_VIEW_SECONDS
            if known is not None and fresh and not self._stale_start:
                store = engine.channel.store
                store.know(known.number, store.epoch)
                mirror.start(since=known.view)
                strand.post(self._hand_on)
            else:
                # A view from before a fork, or from a file, may be of a store that is no more.
                strand.post(lambda: self._catch_up(mirror))

    def _stop_if_unused(self) -> None:
        """End the watch where nobody follows any more; what was read stays. Bounded."""
        with self._lock:
            # In one step: whoever follows from now on starts another one.
            if self._alive():
                return
            running, self._running = self._running, None
        if running is not None:
            running.mirror.close()
            running.strand.close(2.0)
            self._await_file(running)
            running.announcements.close(2.0)
            running.disk.close(2.0)
            running.retries.close(2.0)
            running.client.close()

    @staticmethod
    def _await_file(running: _Running) -> None:
        """Let the file be written that waits for it: the next start may need it."""
        written = threading.Event()
        if running.disk.post(written.set):
            written.wait(_FILE_SECONDS)

    def announce(self, action: Callable[[], object]) -> None:
        """Run ``action`` on the strand for signals; at once where nothing follows etcd."""
        running = self._running
        if running is None:
            action()
        else:
            running.announcements.post(action)

    def write_soon(self, action: Callable[[], object]) -> None:
        """Run ``action``, which writes the file, where no receiver of the program's holds it up."""
        running = self._running
        if running is None:
            action()
        else:
            running.disk.post(action)

    def strand(self, name: str) -> Strand | None:
        """Return a strand for a subscriber, or None where nothing follows etcd."""
        running = self._running
        if running is None:
            return None
        return running.client.scope().engine.dispatcher.strand(name)

    def after_fork_in_child(self) -> None:
        """Keep the data; the watch is the parent's."""
        self._lock = threading.RLock()
        if self._running is not None:
            forking.keep_for_ever(self._running)
            self._running = None

    def tell_vitals(self) -> ConfigurationVitals | None:
        """Tell what the settings objects show; None where there are none."""
        followers = [each for each in (ref() for ref in tuple(self._followers)) if each is not None]
        shown = [(each.shown, each.refused) for each in followers]
        revisions = [revision for revision, _ in shown if revision is not None]
        if not revisions:
            return None
        saved = [each for each in revisions if each.cause == snapshot_file.CAUSE]
        return ConfigurationVitals(
            kind="dynaconf",
            name=self.options.name,
            prefix=self.options.config.prefix,
            endpoints=tuple(self.options.config.endpoints),
            revision=min(each.number for each in revisions),
            live=self.watching,
            stale=self._stale_for(saved),
            followers=len(revisions),
            from_file=bool(saved),
            rejected=max((number for _, number in shown if number is not None), default=None),
        )

    def _stale_for(self, saved: list[Revision]) -> float | None:
        running, doubtful = self._running, self._doubtful_since
        # By the calendar: a file may be older than the machine's other clocks.
        spells = [max(0.0, time.time() - each.at) for each in saved]
        if doubtful is not None:
            spells.append(time.monotonic() - doubtful)
        missing = running.mirror.stale_for if running is not None else None
        if missing is not None:
            spells.append(missing)
        return max(spells, default=None)

    def _alive(self) -> list[Follower]:
        found = [(ref, ref()) for ref in self._followers]
        self._followers = [ref for ref, follower in found if follower is not None]
        return [follower for _, follower in found if follower is not None]

    # -- the strand ----------------------------------------------------------------------------

    def _catch_up(self, mirror: Mirror) -> None:
        """Read until it works, then watch from there."""
        from etcd_core.wire.channel import Backoff

        backoff = Backoff(*_RETRY_SECONDS)
        while not mirror.closed:
            try:
                view = mirror.start()
            except ClosedError:
                return
            except EtcdError as exc:
                _log.debug("dynaconf: %s", exc)
                if not self._pause(backoff.next()):
                    return
                continue
            reset = self._is_of_another_store(view, self._cluster_id())
            self._take(view, Cause.RESET if reset else Cause.RESYNC)
            return

    def _is_of_another_store(self, view: View, cluster: int) -> bool:
        """Tell whether what we know was read from a store that this one does not continue."""
        known = self.newest
        if known is None:
            return False
        foreign = cluster != 0 and known.cluster_id not in (0, cluster)
        return foreign or view.revision < known.number

    def _cluster_id(self) -> int:
        running = self._running
        if running is None:
            return 0
        return running.client.scope().engine.channel.store.mark()[3]

    def _pause(self, seconds: float) -> bool:
        running = self._running
        if running is None:
            return False
        try:
            running.client.scope().engine.channel.pause(seconds)
        except ClosedError:
            return False
        return True

    def _on_change(self, change: Change) -> None:
        self._reset_seen |= change.cause is Cause.RESET
        running = self._running
        if running is None or change.after.entries is not running.mirror.view.entries:
            return  # a newer one waits: each is the whole state
        self._take(change.after, Cause.RESET if self._reset_seen else change.cause)

    def _take(self, view: View, cause: Cause) -> None:
        known = self.newest
        cluster = self._cluster_id() or (known.cluster_id if known else 0)
        try:
            revision = Revision.decode(
                self.place,
                view,
                self.decoder,
                cluster_id=cluster,
                cause=cause.value,
                read=self.layers,
            )
        except Refused as exc:
            self.refusal = (exc.revision, exc.reasons)
            self._hand_on()
            return
        if not self._is_wiped(revision):
            self._reset_seen = False
            self._believe(revision)
        self._hand_on()

    def _believe(self, revision: Revision) -> None:
        self._tell_of_return(revision)
        self.refusal = None
        self._stale_start = False
        self.held = self._missed = self._doubtful_since = None
        self.newest = revision

    def _tell_of_return(self, revision: Revision) -> None:
        """Log the end of what was logged at its beginning, at the same level."""
        lacked = self.held or self._missed
        if lacked is not None:
            _log.warning(
                "dynaconf: etcd provides the settings %r again, at revision %d; before: %s",
                self.options.name,
                revision.number,
                lacked,
                extra=fields(
                    Event.CONFIG_RESTORED,
                    name=self.options.name,
                    revision=revision.number,
                    reason=lacked,
                ),
            )

    def _is_wiped(self, revision: Revision) -> bool:
        """Tell whether the configuration vanished with its store, not by somebody's wish."""
        known = self.newest
        if self.options.allow_empty or revision.cause != Cause.RESET.value:
            return False
        if not revision.is_empty or known is None or known.is_empty:
            return False
        self.held = (
            f"the store was reset and holds no {self.options.name!r} any more;"
            f" the values of revision {known.number} are kept"
        )
        self._doubtful_since = self._doubtful_since or time.monotonic()
        _log.warning(
            "dynaconf: %s",
            self.held,
            extra=fields(
                Event.CONFIG_HELD,
                name=self.options.name,
                revision=known.number,
                reason=self.held,
            ),
        )
        return True

    def _hand_on(self) -> None:
        revision = self.newest
        if revision is None:
            return
        with self._lock:
            followers = self._alive()
        waiting = [follower for follower in followers if not self._offer(follower, revision)]
        running = self._running
        if waiting and running is not None and not running.strand.backlog:
            # Made by a thread that is still loading; there is no event for its end.
            if self._pause(0.02):
                running.strand.post(self._hand_on)
        elif not followers and running is not None:
            running.strand.post(self._stop_if_unused)
        if running is not None and not running.retries.backlog and self._next_retry() is not None:
            running.retries.post(lambda: self._await_retry(running))

    def _next_retry(self) -> float | None:
        with self._lock:
            times = [follower.retry_at for follower in self._alive()]
        return min((at for at in times if at is not None), default=None)

    def _await_retry(self, running: _Running) -> None:
        """Hand on again when somebody's time has come. On a strand of its own: it sleeps there."""
        while running is self._running and (at := self._next_retry()) is not None:
            seconds = at - time.monotonic()
            if seconds <= 0:
                running.strand.post(self._hand_on)
                return
            # A newer refusal may have to be tried earlier, and the watch may end meanwhile.
            if not self._pause(min(seconds, _LOOK_SECONDS)):
                return

    def _offer(self, follower: Follower, revision: Revision) -> bool:
        taken = follower.offer(revision)
        if taken and self.refusal is not None:
            follower.refuse(*self.refusal)
        return taken


_feeds: dict[Options, Feed] = {}
_feeds_lock = threading.Lock()


def feed_for(options: Options) -> Feed:
    """Return this process's feed for these options."""
    with _feeds_lock:
        feed = _feeds.get(options)
        if feed is None:
            feed = _feeds[options] = Feed(options)
        return feed


class _ModuleState:
    def after_fork_in_child(self) -> None:
        global _feeds_lock
        _feeds_lock = threading.Lock()


_module_state = _ModuleState()
forking.track(_module_state)
