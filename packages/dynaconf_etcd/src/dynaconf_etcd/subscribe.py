"""Subscriptions to one setting. Callbacks run on a strand of the dispatcher, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from etcd_core import InvalidArgument, Subscription, forking
from etcd_core.dispatch import Strand
from etcd_core.events import Event, fields

from .feed import Feed
from .state import live_of
from .steps import Step, same
from .values import MISSING, value_at

_log = logging.getLogger("etcd_core.dynaconf")


@dataclass(frozen=True)
class SettingChange:
    """One setting that changed.

    Attributes:
        key: As it was subscribed to.
        old: The value before; None if there was none.
        new: The value now; None if there is none any more.
        revision: The store's revision.
    """

    key: str
    old: object
    new: object
    revision: int

    def __repr__(self) -> str:
        """Return the key and the revision; the values may be secrets."""
        return f"<SettingChange {self.key!r} revision={self.revision}>"


Callback = Callable[[SettingChange], object]


class _KeySubscription(Subscription):
    """Survives a fork and a new connection: its strand is made where the change is seen."""

    def __init__(self, key: str, callback: Callback, forget: Callable[[object], object]) -> None:
        self._key = key
        self._callback = callback
        self._forget = forget
        self._ended = False
        self._feed_strand: Strand | None = None
        forking.track(self)

    def after_fork_in_child(self) -> None:
        """Forget the strand: its threads are the parent's."""
        if self._feed_strand is not None:
            forking.keep_for_ever(self._feed_strand)
            self._feed_strand = None

    @property
    def cancelled(self) -> bool:
        """Whether it has ended."""
        return self._ended

    def cancel(self, timeout: float = 5.0) -> None:
        """End it. Idempotent; afterwards no callback runs, unless this was called from one."""
        self._ended = True
        self._forget(self)
        strand = self._feed_strand
        if strand is not None and not strand.close(timeout):
            _log.warning(
                "%s: its handler still runs after %.1f s",
                strand.name,
                timeout,
                extra=fields(Event.CALLBACK_RUNNING, handler=strand.name, seconds=timeout),
            )

    def receive(self, step: Step, feed: Feed) -> None:
        """Have the callback called if the setting changed. On the feed's strand."""
        strand = self._feed_strand
        if strand is None or not strand.post(lambda: self._tell(step)):
            strand = feed.strand(f"on_change {self._key!r}")
            if strand is None:
                self._tell(step)
                return
            self._feed_strand = strand
            strand.post(lambda: self._tell(step))

    def _tell(self, step: Step) -> None:
        old, new = value_at(step.before, self._key), value_at(step.after, self._key)
        if self._ended or same(old, new):
            return
        change = SettingChange(
            self._key,
            None if old is MISSING else old,
            None if new is MISSING else new,
            step.revision,
        )
        try:
            self._callback(change)
        except Exception:  # the user's code
            _log.exception(
                "the callback for the setting %r failed",
                self._key,
                extra=fields(Event.CALLBACK_FAILED, handler=f"on_change {self._key!r}"),
            )


def on_change(settings: object, key: str) -> Callable[[Callback], Subscription]:
    """Have a function called with a :class:`SettingChange` whenever a setting changes.

    Only by changes from etcd, the fall back to a file after a deletion included; not at first. The
    function runs on a dispatcher thread, in order and never beside itself; what it raises is
    logged. Works before a fork too: then it is called in the child. Loads the settings if that was
    not done yet.

    Args:
        settings: What the program holds.
        key: A name, or a dotted path, with numbers for the items of lists; a table changes when
            anything in it does.

    Returns:
        A decorator, which returns the subscription; cancel it to end it.

    Raises:
        InvalidArgument: The settings do not load from etcd, or ``key`` is no str.

    Example:
        >>> @on_change(settings, "server.port")
        ... def rebind(change):
        ...     listen(change.new)
    """
    if not isinstance(key, str):
        raise InvalidArgument(f"on_change: the key must be a str, not {type(key).__name__}")
    live = live_of(settings, "on_change")

    def subscribe(callback: Callback) -> Subscription:
        receivers = live.subscriptions

        def forget(subscription: object) -> None:
            receivers[:] = [each for each in receivers if each is not subscription]

        subscription = _KeySubscription(key, callback, forget)
        live.subscribe(subscription)
        return subscription

    return subscribe
