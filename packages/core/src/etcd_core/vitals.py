"""What this process knows of its own etcd parts: read without I/O, from any thread, never polled.

Owns a list of weak references to the parts that can tell of themselves (a client's engine, a
registration, a followed configuration, ...); nothing is kept alive by it and nothing is computed
before somebody asks. In a forked child the parent's parts are gone from it.

Durations are float seconds on a clock that nobody sets; :attr:`Vitals.at` is the Unix time to
subtract them from.
"""

from __future__ import annotations

import itertools
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from . import forking

__all__ = [
    "ClientVitals",
    "ConfigurationVitals",
    "ElectionVitals",
    "LeaseVitals",
    "RegistrationVitals",
    "Vitals",
    "WatchVitals",
    "configurations",
    "read",
]


@dataclass(frozen=True)
class LeaseVitals:
    """The leases that one client keeps alive, spare ones of its pool included.

    Attributes:
        count: How many.
        margin: Seconds until the first of them must be taken for dead if no renewal is answered
            from now on; at rest between two thirds of the TTL and all of it. None without leases.
    """

    count: int
    margin: float | None


@dataclass(frozen=True)
class WatchVitals:
    """The watches of one client; they share one stream.

    Attributes:
        count: How many.
        down: How many of them etcd does not serve at this moment: they are being resumed.
        lag: How many revisions the store had, at the newest answer to any request of this client,
            beyond the newest one that the watch stream told of. An upper bound on what is missing:
            a revision that touches no watched key counts until etcd's next progress notification
            (10 minutes by default), so a client that writes keys it does not watch has a lag at
            rest. 0: the stream told of everything that this client knows has happened.
        silence: Seconds since the stream last told anything, be it a progress notification: on a
            store at rest it grows to etcd's notification interval and starts anew. None before the
            stream told anything.
    """

    count: int
    down: int
    lag: int
    silence: float | None


@dataclass(frozen=True)
class ClientVitals:
    """One client of this process; those that share an engine (``shared_client``) are one.

    Attributes:
        prefix: Its key prefix.
        endpoints: The endpoints of its configuration.
        connected: Whether etcd answered at the last try; None before the first one.
        seconds: For how long that has been so; None before the first try.
        leases: What it keeps alive.
        watches: What it watches.
    """

    prefix: str
    endpoints: tuple[str, ...]
    connected: bool | None
    seconds: float | None
    leases: LeaseVitals
    watches: WatchVitals


@dataclass(frozen=True)
class RegistrationVitals:
    """One registration that this process has not ended.

    Attributes:
        name: The service.
        id: The instance.
        address: Where it is reached.
        registered: Whether the key is in place as far as this process knows, and its lease alive.
            False while it is being repaired, and for good where another process took the id.
        margin: Seconds until the lease must be taken for dead if no renewal is answered any more;
            0 when it is.
    """

    name: str
    id: str
    address: str
    registered: bool
    margin: float


@dataclass(frozen=True)
class ConfigurationVitals:
    """One configuration that this process follows; several followers of one are merged.

    Attributes:
        kind: ``"source"`` for ``ConfigSource.watch``, ``"dynaconf"`` for Dynaconf settings.
        name: The configuration's name.
        prefix: The client's key prefix.
        endpoints: The endpoints of the client's configuration.
        revision: The store's revision that the followers were shown last; the lowest one if they
            differ. At least what ``save()`` returned once all of them have it.
        live: Whether all of them are watched; False for settings that are only read.
        stale: Seconds since it may be behind etcd: no watch is served, etcd cannot be reached, or
            (then since the values were read from etcd) they come from a snapshot file. None while
            it is current as far as this process can know.
        followers: How many callbacks or settings objects are shown it.
        from_file: Whether one of them shows the values of a last-known-good file.
        rejected: The newest revision, where that was refused and an older one is shown; else None.
    """

    kind: Literal["source", "dynaconf"]
    name: str
    prefix: str
    endpoints: tuple[str, ...]
    revision: int
    live: bool
    stale: float | None
    followers: int
    from_file: bool = False
    rejected: int | None = None


@dataclass(frozen=True)
class ElectionVitals:
    """One election in which this process stands.

    Attributes:
        key: The election's name.
        prefix: The client's key prefix.
        identity: What observers see of this process when it leads.
        leading: Whether it certainly leads, computed from the clock.
        token: The fencing token of its leadership; None while it does not lead.
        remaining: Seconds the leadership lasts at least, even without etcd; 0 while it does not
            lead.
    """

    key: str
    prefix: str
    identity: str
    leading: bool
    token: int | None
    remaining: float


@dataclass(frozen=True)
class Vitals:
    """Everything, at one moment. Immutable.

    Attributes:
        at: Unix time of the reading.
        pid: The process.
        clients: The open clients that were used at least once.
        registrations: What it registered.
        configurations: What it follows.
        elections: Where it stands for leadership.
    """

    at: float
    pid: int
    clients: tuple[ClientVitals, ...]
    registrations: tuple[RegistrationVitals, ...]
    configurations: tuple[ConfigurationVitals, ...]
    elections: tuple[ElectionVitals, ...]

    @property
    def leaderships(self) -> tuple[ElectionVitals, ...]:
        """The elections that this process leads."""
        return tuple(each for each in self.elections if each.leading)


Part = ClientVitals | RegistrationVitals | ConfigurationVitals | ElectionVitals
PartT = TypeVar("PartT", bound=Part)


class Source(Protocol):
    """Something that can tell of itself. Internal."""

    def tell_vitals(self) -> Part | None:
        """Return how it is now, None if it is over; must not block, do I/O or take long."""


# Keyed by identity. Adding, and the removal of what died, are single steps of the interpreter, so
# neither the garbage collector nor a fork can meet a lock here.
_own: weakref.WeakValueDictionary[int, Source] = weakref.WeakValueDictionary()
_inherited: weakref.WeakValueDictionary[int, Source] = weakref.WeakValueDictionary()


def track(source: Source, *, inherited: bool = False) -> None:
    """Have ``source`` asked while it lives. Internal; any thread, does not block.

    Args:
        source: What to ask.
        inherited: In a forked child too: it means something there.
    """
    (_inherited if inherited else _own)[id(source)] = source


def read() -> Vitals:
    """Return the vitals of this process. No I/O; does not block; thread-safe and fork-safe.

    Takes some microseconds per client, registration, configuration and election.

    Example:
        >>> for client in read().clients:
        ...     print(client.prefix, client.connected, client.leases.margin)
    """
    parts = list(_parts())
    return Vitals(
        at=time.time(),
        pid=os.getpid(),
        clients=tuple(sorted(_of(parts, ClientVitals), key=lambda each: each.prefix)),
        registrations=tuple(
            sorted(_of(parts, RegistrationVitals), key=lambda each: (each.name, each.id))
        ),
        configurations=_merged(_of(parts, ConfigurationVitals)),
        elections=_one_each(_of(parts, ElectionVitals)),
    )


def configurations() -> Sequence[ConfigurationVitals]:
    """Return the configurations that this process follows, by name. As :func:`read`."""
    return _merged(_of(_parts(), ConfigurationVitals))


def _parts() -> Iterator[Part]:
    for reference in (*_own.valuerefs(), *_inherited.valuerefs()):
        source = reference()
        part = source.tell_vitals() if source is not None else None
        if part is not None:
            yield part


def _of(parts: Sequence[Part] | Iterator[Part], kind: type[PartT]) -> tuple[PartT, ...]:
    return tuple(part for part in parts if isinstance(part, kind))


def _merged(found: Sequence[ConfigurationVitals]) -> tuple[ConfigurationVitals, ...]:
    def what(each: ConfigurationVitals) -> tuple[str, str, str, tuple[str, ...]]:
        return each.name, each.prefix, each.kind, each.endpoints

    groups = itertools.groupby(sorted(found, key=what), key=what)
    return tuple(_merge(list(group)) for _, group in groups)


def _merge(group: Sequence[ConfigurationVitals]) -> ConfigurationVitals:
    """Tell of the worst follower: the one that shows the oldest values."""
    return replace(
        group[0],
        revision=min(each.revision for each in group),
        live=all(each.live for each in group),
        stale=max((each.stale for each in group if each.stale is not None), default=None),
        followers=sum(each.followers for each in group),
        from_file=any(each.from_file for each in group),
        rejected=max((each.rejected for each in group if each.rejected is not None), default=None),
    )


def _one_each(found: Sequence[ElectionVitals]) -> tuple[ElectionVitals, ...]:
    """Return one per election: a background candidate and the term it won are one."""
    best: dict[tuple[str, str], ElectionVitals] = {}
    for each in sorted(found, key=lambda each: each.leading):
        best[each.prefix, each.key] = each
    return tuple(best[name] for name in sorted(best))


class _ModuleState:
    """Forgets the parent's parts in a forked child, without touching them."""

    def after_fork_in_child(self) -> None:
        global _own, _inherited
        _own = weakref.WeakValueDictionary()
        # Made anew: an iteration of a thread that the child lacks may have been under way.
        _inherited = weakref.WeakValueDictionary(dict(_inherited.items()))


_module_state = _ModuleState()
forking.track(_module_state)
