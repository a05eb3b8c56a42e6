"""What a user may ask about live settings, and how to end them. Callable from any thread."""

from __future__ import annotations

import time
from dataclasses import dataclass

from etcd_core import InvalidArgument

from . import internals, live
from .internals import Settings
from .live import Live, Rejection


@dataclass(frozen=True)
class Status:
    """How a settings object stands to etcd.

    Attributes:
        name: The configuration's name.
        revision: The revision of the store that the settings show.
        watching: Whether this process follows etcd.
        stale: Whether the settings may be behind etcd right now, or come from the snapshot file.
        age: Seconds since the shown revision was read.
        from_snapshot: Whether the settings come from the last-known-good file.
        held: Why a vanished configuration is not taken over, or None.
        rejected: The newest revision, if it was refused, with the reasons.
    """

    name: str
    revision: int
    watching: bool
    stale: bool
    age: float
    from_snapshot: bool
    held: str | None
    rejected: Rejection | None


def live_of(settings: object, what: str) -> Live:
    """Return what is known about a settings object, loading it if that was not done yet.

    Raises:
        InvalidArgument: It does not load from etcd.
    """
    found = live.find_by_lazy(settings)
    if found is None:
        try:
            found = live.find(internals.unwrap(settings))
        except TypeError as exc:
            raise InvalidArgument(f"{what}: {exc}") from None
    if found is None:
        raise InvalidArgument(
            f"{what}: these settings do not load from etcd; is 'dynaconf_etcd.loader' in"
            f" LOADERS_FOR_DYNACONF?"
        )
    return found


def status(settings: object) -> Status:
    """Return how ``settings`` stand to etcd. No I/O, except to load them at first.

    Raises:
        InvalidArgument: They do not load from etcd.
    """
    found = live_of(settings, "status")
    shown = found.accepted
    from_snapshot = shown.cause == "snapshot"
    return Status(
        name=found.feed.options.name,
        revision=shown.number,
        watching=found.feed.watching,
        stale=from_snapshot or found.feed.held is not None or not found.feed.connected,
        age=max(0.0, time.time() - shown.at),
        from_snapshot=from_snapshot,
        held=found.feed.held,
        rejected=found.rejected,
    )


def snapshot(settings: object) -> Settings:
    """Return the settings as they are now, in an object that later changes do not touch.

    Two reads from the live settings may straddle a change; two reads from this one do not. Its
    ``from_env()``, ``using_env()`` and ``reload()`` stay at its revision, and reach nobody else.
    No I/O.

    Raises:
        InvalidArgument: They do not load from etcd.

    Example:
        >>> now = snapshot(settings)
        >>> connect(now.DB.host, now.DB.port)
    """
    found = live_of(settings, "snapshot")
    inside = found.settings
    if inside is None:
        raise InvalidArgument("snapshot: the settings object is gone")
    return found.frozen(inside)


def close(settings: object) -> None:
    """Stop following etcd; the settings keep their last values. Idempotent, bounded.

    Threads and connections end with the last settings object that shares them. At exit this happens
    by itself.

    Raises:
        InvalidArgument: They do not load from etcd.
    """
    found = live_of(settings, "close")
    for each in {found, *live.all_of(settings)}:
        each.feed.unfollow(each)
