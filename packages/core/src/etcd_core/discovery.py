"""Discovery: who is there now (:func:`discover`), and who comes and goes.

:class:`ServiceView` and :func:`watch_service` stand on a mirror each and follow it on a dispatcher
strand; only what changed is decoded. Rules: semantics section 7, D1 to D9.
"""

from __future__ import annotations

import enum
import functools
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from typing_extensions import Self

from . import forking, signals
from .config import UNSET, Timeout
from .dispatch import Strand, Subscription
from .engine import Scope
from .errors import DecodeError, NoInstances
from .events import Event, fields
from .keys import prefix_range_end, require_segment, services_prefix
from .mirror import Cause, Change, Entry, Mirror, View
from .registry import Descriptor
from .wire import messages as pb
from .wire.rpc import RANGE, SERIALIZABLE_RANGE

_log = logging.getLogger("etcd_core.discovery")


class ServiceEventType(enum.IntEnum):
    """What happened to an instance; ``str()`` gives ``"added"``, ``"modified"``, ``"removed"``."""

    ADDED = 1
    MODIFIED = 2
    REMOVED = 3

    def __str__(self) -> str:
        """Return the name in lower case."""
        return self.name.lower()

    def __format__(self, spec: str) -> str:
        """Format as ``str()`` does; from Python 3.11 on an IntEnum would format as a number."""
        return format(str(self), spec)


@dataclass(frozen=True)
class ServiceEvent:
    """A change of one instance.

    Attributes:
        type: What happened.
        info: The instance; the last one known if it was removed.
    """

    type: ServiceEventType
    info: Descriptor


ServiceHandler: TypeAlias = Callable[[ServiceEvent], object]


def discover(
    scope: Scope, name: str, *, serializable: bool = False, timeout: Timeout = UNSET
) -> list[Descriptor]:
    """Return the instances of a service now, by id; see :meth:`Client.discover`. Blocks.

    Raises:
        InvalidArgument: ``name`` cannot be a service's.
        EtcdError: etcd could not be reached or refused.
    """
    prefix = _prefix(scope, "discover", name)
    rpc = SERIALIZABLE_RANGE if serializable else RANGE
    request = pb.RangeRequest(
        key=prefix, range_end=prefix_range_end(prefix), serializable=serializable
    )
    answer = scope.engine.channel.unary(rpc, request, what=f"discover {name!r}", timeout=timeout)
    found = (_decode(prefix, Entry.of(kv)) for kv in answer.kvs)
    return [info for info in found if info is not None]


class ServiceView:
    """The instances of one service, kept current in memory. Thread-safe; reading does no I/O.

    Made by :meth:`Client.services`, which owns it. After ``fork()`` a child's copy stays as it was,
    and stale. A context manager: leaving it closes the view. Sends ``signals.service_changed``.

    Example:
        >>> view = client.services("billing")
        >>> view.pick().address
        '10.0.0.5:8080'
    """

    def __init__(self, scope: Scope, name: str) -> None:
        prefix = _prefix(scope, "services", name)
        self._scope = scope
        self._name = name
        self._mirror = _mirror(scope, prefix, f"services {name!r}")
        self._strand: Strand | None = None
        # Guards the roster and the two fields made from it.
        self._lock = threading.Lock()
        self._roster = _Roster(prefix)
        self._revision = 0
        self._instances: tuple[Descriptor, ...] | None = ()
        self._closed = False
        self._forked = False
        forking.track(self)

    @classmethod
    def open(cls, scope: Scope, name: str, *, timeout: Timeout = UNSET) -> ServiceView:
        """Read the instances and follow them from there. Blocks for that one read.

        Raises:
            InvalidArgument: ``name`` cannot be a service's.
            EtcdError: etcd could not be reached or refused; nothing was started.
        """
        view = cls(scope, name)
        scope.hold(view, f"services {name!r}")
        try:
            view._strand = view._mirror.subscribe(
                view._on_change, f"services {name!r}", initial=False
            )
            view._begin(view._mirror.start(timeout=timeout))
        except BaseException:
            view.close()
            raise
        return view

    @property
    def name(self) -> str:
        """The service."""
        return self._name

    @property
    def instances(self) -> tuple[Descriptor, ...]:
        """The instances, sorted by id. The tuple is never changed, only replaced."""
        instances = self._instances
        return self._rebuilt() if instances is None else instances

    @property
    def revision(self) -> int:
        """The store's revision of the last change seen."""
        return self._revision

    @property
    def stale(self) -> bool:
        """Whether changes may be missing right now: closed, or etcd cannot be reached."""
        return self._closed or self._forked or self._mirror.stale

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def pick(self) -> Descriptor:
        """Return one instance at random.

        Raises:
            NoInstances: None is known.
        """
        instances = self.instances
        if not instances:
            raise NoInstances(f"service {self._name!r} has no known instance")
        return random.choice(instances)

    def close(self) -> None:
        """Follow the service no longer; what was seen last can still be read. Idempotent."""
        if self._closed or self._forked:
            return
        self._closed = True
        self._mirror.close()
        if self._strand is not None:
            self._strand.close(0.0)
        self._scope.let_go(self)

    def close_with_client(self, timeout: float) -> None:
        """End because the client is closed."""
        self.close()

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.instances)

    def __iter__(self) -> Iterator[Descriptor]:
        """Iterate over the instances of this moment."""
        return iter(self.instances)

    def __bool__(self) -> bool:
        """Return True: a view without instances is still a view."""
        return True

    def __enter__(self) -> Self:
        """Return the view."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the view."""
        self.close()

    def __repr__(self) -> str:
        """Return the service and the number of instances."""
        state = "closed " if self._closed else "stale " if self.stale else ""
        return f"<{state}ServiceView {self._name!r} instances={len(self)}>"

    def after_fork_in_child(self) -> None:
        """Stay as it is: the parent's threads that kept it current are not here."""
        self._lock = threading.Lock()
        self._forked = True

    def _begin(self, view: View) -> None:
        with self._lock:
            self._begin_locked(view)

    def _begin_locked(self, view: View) -> None:
        # By open() or by the first change, whichever comes first: a change carries what was before.
        if self._revision == 0:
            self._roster.apply(_as_initial(view))
            self._revision = view.revision
            self._instances = None

    def _on_change(self, change: Change) -> None:
        with self._lock:
            self._begin_locked(change.before)
            events = self._roster.apply(change)
            self._revision = change.after.revision
            if events:
                self._instances = None
        if events:
            self._scope.announce(signals.service_changed, self, name=self._name, events=events)

    def _rebuilt(self) -> tuple[Descriptor, ...]:
        with self._lock:
            if self._instances is None:
                self._instances = self._roster.instances()
            return self._instances


def watch_service(
    scope: Scope, name: str, handler: ServiceHandler, *, timeout: Timeout = UNSET
) -> Subscription:
    """Call ``handler`` for each present instance, then for every change. Blocks for the first read.

    See :meth:`Client.watch_service`.

    Raises:
        InvalidArgument: ``name`` cannot be a service's.
        EtcdError: The first read failed; nothing was started.
    """
    prefix = _prefix(scope, "watch_service", name)
    what = f"watch_service {name!r}"
    scope.check_open(what)
    mirror = _mirror(scope, prefix, what)
    feed = _Feed(prefix, handler, what)

    def stop() -> None:
        feed.over = True
        mirror.close()
        scope.let_go(subscription)

    try:
        mirror.start(timeout=timeout)
    except BaseException:
        mirror.close()
        raise
    subscription = Subscription(mirror.subscribe(feed.on_change, what), stop)
    try:
        scope.hold(subscription, what)
    except BaseException:
        subscription.cancel()
        raise
    return subscription


class _Feed:
    """Tells one handler what changed. Runs on its subscription's strand."""

    def __init__(self, prefix: bytes, handler: ServiceHandler, what: str) -> None:
        self._roster = _Roster(prefix)
        self._handler = handler
        self._what = what
        self.over = False

    def on_change(self, change: Change) -> None:
        """Call the handler for each event of ``change``."""
        for event in self._roster.apply(change):
            if self.over:
                return
            try:
                self._handler(event)
            except Exception:  # the user's code; the events after this one are still due
                _log.exception(
                    "%s: its handler failed",
                    self._what,
                    extra=fields(Event.CALLBACK_FAILED, handler=self._what),
                )


class _Roster:
    """The instances under one prefix: turns a mirror's changes into events. Not thread-safe."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._known: dict[bytes, Descriptor] = {}
        self._sorted = True

    def apply(self, change: Change) -> tuple[ServiceEvent, ...]:
        """Take in a change; return what it means, nothing for a value that stayed the same.

        An update that cannot be decoded keeps the last good descriptor.
        """
        removed = (self._remove(entry) for entry in change.deleted)
        put = (self._put(entry) for entry in change.put)
        return tuple(event for event in (*removed, *put) if event is not None)

    def instances(self) -> tuple[Descriptor, ...]:
        """Return all, in the order of their keys, which end with their ids."""
        if not self._sorted:
            # Nearly sorted already, which the sort makes use of.
            self._known = dict(sorted(self._known.items()))
            self._sorted = True
        return tuple(self._known.values())

    def _put(self, entry: Entry) -> ServiceEvent | None:
        info = _decode(self._prefix, entry)
        before = self._known.get(entry.key)
        if info is None or info == before:
            return None
        self._known[entry.key] = info
        if before is not None:
            return ServiceEvent(ServiceEventType.MODIFIED, info)
        self._sorted = False
        return ServiceEvent(ServiceEventType.ADDED, info)

    def _remove(self, entry: Entry) -> ServiceEvent | None:
        before = self._known.pop(entry.key, None)
        return None if before is None else ServiceEvent(ServiceEventType.REMOVED, before)


def _prefix(scope: Scope, operation: str, name: str) -> bytes:
    require_segment(operation, "service name", name)
    return services_prefix(scope.engine.prefix, name).encode()


def _mirror(scope: Scope, prefix: bytes, what: str) -> Mirror:
    return Mirror(scope.engine, prefix, prefix_range_end(prefix), what)


def _as_initial(view: View) -> Change:
    return Change(Cause.INITIAL, View(0, {}), view, tuple(view.entries.values()), ())


def _decode(prefix: bytes, entry: Entry) -> Descriptor | None:
    """Return the instance, or None for a malformed value and for keys that are no instance's."""
    instance = entry.key[len(prefix) :]
    if not instance or b"/" in instance:
        return None
    try:
        return Descriptor.decode(entry.value, entry.key.decode(errors="backslashreplace"))
    except DecodeError as exc:
        _report(exc.key, entry.mod_revision, str(exc))
        return None


@functools.lru_cache(maxsize=1024)
def _report(key: str, mod_revision: int, problem: str) -> None:
    """Log a malformed value, once: the cache swallows repetitions by key and revision."""
    _log.warning(
        "instance ignored: %s",
        problem,
        extra=fields(Event.INSTANCE_IGNORED, key=key, revision=mod_revision, reason=problem),
    )
