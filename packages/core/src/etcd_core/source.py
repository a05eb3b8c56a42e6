"""Configuration stored as one key per leaf: read, written whole or in part, and watched.

Owns no thread: reads and writes run in the caller's, watch callbacks on a strand of the dispatcher.
A write is one guarded transaction of any size up to etcd's limit, so nobody ever sees half of it.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from . import signals
from .config import UNSET, Timeout
from .dispatch import Subscription
from .engine import Scope
from .errors import ConfigNotFound, Conflict, EtcdError, InvalidArgument
from .events import Event, fields
from .guarded import Claim, Plan, Wanted, Writer, make_plan
from .keys import config_prefix, prefix_range_end, require_name
from .leaves import Value, decode_leaf, encode_leaf, flatten, leaf_path
from .mirror import Cause, Change, Mirror, View, read_range
from .snapshot import (
    ConfigDiff,
    ConfigSnapshot,
    LeafDecoder,
    Origin,
    canonical,
    is_own,
    is_table,
    tables_of,
)
from .vitals import ConfigurationVitals, track
from .wire.channel import StoreClock

__all__ = ["ConfigDiff", "ConfigSnapshot", "ConfigSource"]

_log = logging.getLogger("etcd_core.source")

_MAX_TRIES: Final = 20
_NEVER_QUIET: Final = frozenset({Cause.INITIAL, Cause.RESET})


class ConfigSource:
    """One named configuration in etcd. Made by ``client.config_source(name)``, without I/O.

    Safe to use from any thread and after ``fork()``. Every leaf is a key
    ``P/config/<name>/<dotted.lower.path>`` with the YAML of its value, as Go services have it. Keys
    below a further slash belong to another configuration and are left alone.

    Args:
        scope: Gives this process's engine and the client's holdings.
        prefix: The client's key prefix.
        name: The configuration's name.

    Raises:
        InvalidArgument: ``name`` cannot be a part of a key.

    Example:
        >>> source = client.config_source("app")
        >>> source.save({"server": {"host": "localhost", "port": 8080}})
        2
        >>> snapshot = source.load()
        >>> source.update({"server.port": 9090}, expect=snapshot)
        3
    """

    def __init__(self, scope: Callable[[], Scope], prefix: str, name: str) -> None:
        self._name = require_name("config source", "name", name)
        self._scope = scope
        self._prefix = config_prefix(prefix, name).encode()
        self._decoder = LeafDecoder()

    @property
    def name(self) -> str:
        """The configuration's name."""
        return self._name

    def __repr__(self) -> str:
        """Return the name."""
        return f"<ConfigSource {self._name!r}>"

    def load(self, *, timeout: Timeout = UNSET) -> ConfigSnapshot:
        """Read the configuration at one revision. Blocks; one request.

        Args:
            timeout: Seconds for the read.

        Raises:
            ConfigNotFound: Nothing is stored under the name.
            EtcdError: It could not be read; that is never taken for an empty configuration.
        """
        what = self._what("load")
        scope = self._scope()
        scope.check_open(what)
        channel = scope.engine.channel
        epoch = channel.store.epoch
        end = prefix_range_end(self._prefix)
        view = read_range(channel, self._prefix, end, what=what, timeout=timeout)
        snapshot = self._snapshot(view, Cause.INITIAL, channel.store, epoch)
        if not snapshot.exists:
            raise ConfigNotFound(f"{what}: nothing is stored under this name")
        return snapshot

    def save(
        self,
        values: Mapping[str, object],
        expect: ConfigSnapshot | None = None,
        allow_empty: bool = False,
        *,
        timeout: Timeout = UNSET,
    ) -> int:
        """Make the stored configuration exactly ``values``, in one revision. Blocks.

        Only the leaves that differ are written, and keys that are not in ``values`` are deleted; a
        leaf that did not decode goes too. With ``expect`` it takes one request, else two; where
        nothing differs, one that writes nothing.

        Without ``expect`` the last writer wins, whole: two saves at once never mix. With it, every
        edit and addition since that snapshot is a conflict, and every deletion as long as the
        configuration has at most 127 leaves and the change fewer than 128. Beyond that at least 64
        keys, those to be written first, are watched for deletion; another one that somebody deleted
        is logged as a warning.

        Args:
            values: Nested tables, or dotted paths, or both (see :func:`etcd_core.leaves.flatten`).
            expect: Write only if the configuration is still as in this snapshot.
            allow_empty: Let an empty ``values`` delete the configuration.
            timeout: Seconds for all requests.

        Returns:
            The store's revision from which on the configuration is ``values``.

        Raises:
            InvalidArgument: ``values`` cannot be stored, or is empty without ``allow_empty``.
            Conflict: It changed since ``expect``; nothing was written.
            RequestTooLarge: The change exceeds etcd's 1.5 MiB; nothing was written.
            OutcomeUnknown: etcd gave no answer, and the store does not tell whether it was applied.
            EtcdError: etcd could not be reached or refused.
        """
        what = self._what("save")
        leaves = self._encoded(what, values)
        if not leaves and not allow_empty:
            raise InvalidArgument(
                f"{what}: no values; allow_empty=True deletes the stored configuration"
            )

        def whole(base: ConfigSnapshot) -> Claim:
            wanted: Wanted = dict.fromkeys(base._table.stored)
            wanted.update(self._kept_or_new(base, leaves))
            return Claim(wanted, whole=True)

        return self._write(what, whole, expect, timeout)

    def update(
        self,
        values: Mapping[str, object],
        delete: Iterable[str] = (),
        expect: ConfigSnapshot | None = None,
        *,
        timeout: Timeout = UNSET,
    ) -> int:
        """Write and delete some leaves, in one revision; the others stay. Blocks.

        Requests, revisions and conflicts are as for :meth:`save`, except that only changes to the
        paths named here are conflicts (above 127 paths every edit and addition is one).

        Args:
            values: The leaves to write, as for :meth:`save`. A table is spread into its leaves;
                those of its siblings that are not named stay.
            delete: Paths to delete, each with everything below it; a path that is not stored is
                passed over. Where one is also in ``values``, or above what is, the values are
                written: so a whole table is replaced.
            expect: Write only if these paths are still as in this snapshot.
            timeout: Seconds for all requests.

        Returns:
            The store's revision from which on these leaves are as given.

        Raises:
            InvalidArgument: ``values`` cannot be stored, or not beside what is stored already (a
                value above other leaves); a path is unusable.
            Conflict: One of the paths changed since ``expect``; nothing was written.
            RequestTooLarge: The change exceeds etcd's 1.5 MiB; nothing was written.
            OutcomeUnknown: etcd gave no answer, and the store does not tell whether it was applied.
            EtcdError: etcd could not be reached or refused.
        """
        what = self._what("update")
        leaves = self._encoded(what, values)
        doomed = self._doomed(what, delete)
        ranges = [self._range_below(path) for path in doomed]

        def part(base: ConfigSnapshot) -> Claim:
            wanted: Wanted = {self._key(path): None for path in doomed}
            for leaf in base._table.stored.values():
                if leaf.path in leaves or _is_under(leaf.path, doomed):
                    wanted[leaf.key] = None
            wanted.update(self._kept_or_new(base, leaves))
            self._check_layout(what, base, wanted, leaves)
            return Claim(wanted, whole=False, ranges=ranges)

        return self._write(what, part, expect, timeout)

    def bootstrap(self, defaults: Mapping[str, object], *, timeout: Timeout = UNSET) -> bool:
        """Store ``defaults`` if nothing is stored yet. Blocks; one request, or two to write.

        Of any number of processes that do this at once, one writes.

        Args:
            defaults: As the values of :meth:`save`.
            timeout: Seconds for all requests.

        Returns:
            Whether they were written; False means that there is a configuration.

        Raises:
            InvalidArgument: ``defaults`` cannot be stored, or is empty.
            RequestTooLarge: It exceeds etcd's 1.5 MiB; nothing was written.
            OutcomeUnknown: etcd gave no answer, and the store does not tell whether it was applied.
            EtcdError: etcd could not be reached or refused.
        """
        what = self._what("bootstrap")
        leaves = self._encoded(what, defaults)
        if not leaves:
            raise InvalidArgument(f"{what}: no defaults")
        written = False

        def first(base: ConfigSnapshot) -> Claim:
            nonlocal written
            written = not base.exists
            wanted: Wanted = {self._key(path): raw for path, raw in leaves.items()}
            return Claim(wanted if written else {}, whole=True)

        self._write(what, first, None, timeout)
        return written

    def watch(
        self,
        on_change: Callable[[ConfigSnapshot], object],
        since: ConfigSnapshot | None = None,
        *,
        timeout: Timeout = UNSET,
    ) -> Subscription:
        """Call ``on_change(snapshot)`` with the state now, then with every change, for ever.

        Blocks for the first read only. The callback runs on a dispatcher thread, in order, never
        beside itself. One save is one call. No configuration, at the start or after its deletion,
        is a snapshot whose ``exists`` is False; an error of the connection never looks like that.
        After a compaction or a reset of the store the difference comes as one call (``cause`` is
        ``"resync"`` or ``"reset"``). Every change is also sent as the signal ``config_changed``,
        after the call.

        Args:
            on_change: The callback. What it raises is logged.
            since: Skip the first call; the first one is for the first change after this snapshot.
            timeout: Seconds for the first read.

        Returns:
            The subscription. It ends with the client at the latest.

        Raises:
            InvalidArgument: ``since`` is of another configuration.
            EtcdError: The first read failed; nothing is watched.
        """
        what = self._what("watch")
        self._check_kin(what, "since", since)
        scope = self._scope()
        scope.check_open(what)
        store = scope.engine.channel.store
        mirror = Mirror(scope.engine, self._prefix, prefix_range_end(self._prefix), what)

        def snapshot(view: View, cause: Cause) -> ConfigSnapshot:
            return self._snapshot(view, cause, store, store.epoch)

        watcher = _Watcher(self, scope, mirror, snapshot, on_change, since)
        epoch = store.epoch
        if since is not None and since._origin == Origin(weakref.ref(store), epoch):
            # Subscribed first: nothing may be missed between the start and the subscription.
            strand = mirror.subscribe(watcher, what, initial=False)
            mirror.start(since=since._view, epoch=epoch)
        else:
            mirror.start(timeout=timeout)
            strand = mirror.subscribe(watcher, what)

        def stop() -> None:
            mirror.close()
            scope.let_go(subscription)

        subscription = Subscription(strand, stop)
        try:
            scope.hold(subscription, what)
        except EtcdError:
            subscription.cancel()
            raise
        track(watcher)
        return subscription

    # -- internal ------------------------------------------------------------------------------

    def _write(
        self,
        what: str,
        choose: Callable[[ConfigSnapshot], Claim],
        expect: ConfigSnapshot | None,
        timeout: Timeout,
    ) -> int:
        self._check_kin(what, "expect", expect)
        scope = self._scope()
        scope.check_open(what)
        store = scope.engine.channel.store
        user = scope.engine.config.username
        writer = Writer(scope.engine.channel, self._prefix, what, timeout, user)
        if expect is not None:
            return self._write_over(writer, what, choose(expect), expect, store)
        conflict = Conflict(f"{what}: others keep changing it")
        for _ in range(_MAX_TRIES):
            epoch = store.epoch
            base = self._snapshot(writer.read(), Cause.INITIAL, store, epoch)
            plan = make_plan(base._view, choose(base), self._prefix)
            if not plan.writes:
                return base.revision
            try:
                outcome = writer.commit(plan)
            except Conflict as exc:
                conflict = exc
                writer.pause(exc)
                continue
            if not outcome.incomplete:
                return outcome.revision
            # Somebody deleted a key that was to stay: what is missing is written once more.
        raise conflict

    def _write_over(
        self,
        writer: Writer,
        what: str,
        claim: Claim,
        expect: ConfigSnapshot,
        store: StoreClock,
    ) -> int:
        if expect._origin.store() is store and expect._origin.epoch != store.epoch:
            # Revisions from before a reset prove nothing.
            raise Conflict(f"{what}: the store was reset after revision {expect.revision}")
        plan = make_plan(expect._view, claim, self._prefix)
        if not plan.writes:
            return writer.verify(plan)
        outcome = writer.commit(plan)
        if outcome.incomplete:
            self._report_vanished(writer, what, plan, outcome.revision)
        return outcome.revision

    def _report_vanished(self, writer: Writer, what: str, plan: Plan, revision: int) -> None:
        try:
            gone = writer.vanished(plan, revision)
        except EtcdError as exc:
            _log.warning(
                "%s: keys had been deleted since the snapshot (%s)",
                what,
                exc,
                extra=fields(Event.CONFIG_VANISHED, name=self._name, keys=(), count=None),
            )
            return
        if gone:
            some = tuple(key.decode(errors="backslashreplace") for key in gone[:10])
            _log.warning(
                "%s: %d keys had been deleted since the snapshot: %s%s",
                what,
                len(gone),
                ", ".join(some),
                ", ..." if len(gone) > 10 else "",
                extra=fields(Event.CONFIG_VANISHED, name=self._name, keys=some, count=len(gone)),
            )

    def _what(self, verb: str) -> str:
        return f"{verb} config {self._name!r}"

    def _key(self, path: str) -> bytes:
        return self._prefix + path.encode()

    def _range_below(self, path: str) -> tuple[bytes, bytes]:
        start = self._key(f"{path}.")
        return start, prefix_range_end(start)

    def _snapshot(self, view: View, cause: Cause, store: StoreClock, epoch: int) -> ConfigSnapshot:
        origin = Origin(weakref.ref(store), epoch)
        return ConfigSnapshot(self._name, self._prefix, view, cause, self._decoder, origin)

    def _check_kin(self, what: str, argument: str, snapshot: object) -> None:
        if snapshot is None:
            return
        if not isinstance(snapshot, ConfigSnapshot):
            raise InvalidArgument(f"{what}: {argument} must be a ConfigSnapshot")
        if snapshot._prefix != self._prefix:
            raise InvalidArgument(f"{what}: {argument} is a snapshot of {snapshot.name!r}")

    @staticmethod
    def _encoded(what: str, values: object) -> dict[str, bytes]:
        if not isinstance(values, Mapping):
            raise InvalidArgument(f"{what}: a mapping is needed, not a {type(values).__name__}")
        return {path: encode_leaf(value, path) for path, value in flatten(values).items()}

    @staticmethod
    def _doomed(what: str, delete: object) -> frozenset[str]:
        if isinstance(delete, (str, bytes)) or not isinstance(delete, Iterable):
            raise InvalidArgument(f"{what}: delete must be a list of paths")
        return frozenset(leaf_path(path) for path in delete)

    def _kept_or_new(self, base: ConfigSnapshot, leaves: Mapping[str, bytes]) -> Wanted:
        """Return the bytes to store, those in the store already where they mean the same."""
        stored = base._table.stored
        wanted: Wanted = {}
        for path, raw in leaves.items():
            key = self._key(path)
            leaf = stored.get(key)
            respelled = leaf is not None and leaf.raw != raw and canonical(leaf) == raw
            wanted[key] = leaf.raw if leaf is not None and respelled else raw
        return wanted

    def _check_layout(
        self, what: str, base: ConfigSnapshot, wanted: Wanted, leaves: Mapping[str, bytes]
    ) -> None:
        """Refuse a value above other leaves, if the write would bring it about."""
        values: dict[str, Value] = {
            leaf.path: leaf.value
            for leaf in base._table.found.values()
            if wanted.get(leaf.key, leaf.raw) is not None
        }
        values.update((path, decode_leaf(raw, path)) for path, raw in leaves.items())
        for path in tables_of(values):
            if path not in values or is_table(values[path]):
                continue
            if path in leaves or any(other.startswith(f"{path}.") for other in leaves):
                raise InvalidArgument(
                    f"{what}: {path!r} holds a value, so no leaf can lie below it; delete one"
                )


def _is_under(path: str, doomed: frozenset[str]) -> bool:
    while path:
        if path in doomed:
            return True
        path = path.rpartition(".")[0]
    return False


class _Watcher:
    """Turns a mirror's changes into calls. Runs on the subscription's strand."""

    def __init__(
        self,
        source: ConfigSource,
        scope: Scope,
        mirror: Mirror,
        snapshot: Callable[[View, Cause], ConfigSnapshot],
        on_change: Callable[[ConfigSnapshot], object],
        last: ConfigSnapshot | None,
    ) -> None:
        self._source = source
        self._scope = scope
        self._mirror = mirror
        self._snapshot = snapshot
        self._on_change = on_change
        self._last = last

    def __call__(self, change: Change) -> None:
        """Take one step of the mirror."""
        old, new = self._last, self._step(change)
        if new is None:
            return
        self._last = new
        try:
            self._on_change(new)
        finally:
            if old is not None:
                self._tell(old, new)

    def tell_vitals(self) -> ConfigurationVitals | None:
        """Tell what was handed to the callback last."""
        if self._mirror.closed:
            return None
        config, last = self._scope.engine.config, self._last
        return ConfigurationVitals(
            kind="source",
            name=self._source.name,
            prefix=config.prefix,
            endpoints=tuple(config.endpoints),
            revision=0 if last is None else last.revision,
            live=True,
            stale=self._mirror.stale_for,
            followers=1,
        )

    def _step(self, change: Change) -> ConfigSnapshot | None:
        """Return the snapshot to hand on; None if there is nothing to tell."""
        if change.cause is Cause.INITIAL and self._last is not None:
            return self._caught_up(change.after, self._last)
        if change.cause in _NEVER_QUIET or self._concerns_us(change):
            return self._snapshot(change.after, change.cause)
        return None

    def _caught_up(self, view: View, old: ConfigSnapshot) -> ConfigSnapshot | None:
        """Return the first snapshot after one of another connection; None if nothing differs."""
        if view.revision < old.revision:
            return self._snapshot(view, Cause.RESET)
        new = self._snapshot(view, Cause.RESYNC)
        same = new._table.errors.keys() == old._table.errors.keys() and not new.diff(old)
        return None if same else new

    def _concerns_us(self, change: Change) -> bool:
        """Tell whether a leaf of ours got other bytes or vanished."""
        prefix, before = self._source._prefix, change.before.entries
        return any(
            is_own(entry.key, prefix)
            and (entry.key not in before or before[entry.key].value != entry.value)
            for entry in change.put
        ) or any(is_own(entry.key, prefix) for entry in change.deleted)

    def _tell(self, old: ConfigSnapshot, new: ConfigSnapshot) -> None:
        if not self._scope.announcer.is_heard(signals.config_changed):
            return
        diff = new.diff(old)
        if not diff:
            return
        self._scope.announcer.send(
            signals.config_changed,
            self._source,
            changed=diff.changed,
            added=diff.added,
            removed=diff.removed,
            old=old,
            new=new,
            revision=new.revision,
        )
