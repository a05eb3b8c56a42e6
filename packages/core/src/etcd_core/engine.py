"""What one process has of one client: channel, lease keeper, watch hub and dispatcher.

Made at first use, never inherited: a forked child drops its parent's engine untouched and makes its
own. Recipes are given a :class:`Scope` (an engine, and the list of what one client holds on it) and
own none of the engine's threads.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from blinker import Signal

from . import forking, signals
from .config import Config
from .dispatch import Dispatcher
from .errors import ClosedError, EtcdError
from .events import Event, fields
from .lease import LeaseKeeper
from .vitals import ClientVitals, track
from .watch import WatchHub
from .wire.channel import Channel, ResetNotice

_log = logging.getLogger("etcd_core.client")

Relay = Callable[[Signal, object, Mapping[str, object]], object]
"""Takes a signal that concerns one client, its sender and its keywords."""


class Holding(Protocol):
    """Something a client holds until it is closed: a lock, a registration, a waiting call."""

    def close_with_client(self, timeout: float) -> None:
        """Let go within ``timeout`` seconds; the client is being closed. Must be idempotent."""


class Engine:
    """The running parts of a client in this process. Starts threads only when they are needed.

    Args:
        config: The client's configuration.
        interceptors: gRPC client interceptors for every call.
    """

    def __init__(self, config: Config, interceptors: Sequence[object] = ()) -> None:
        self.config = config
        self.dispatcher = Dispatcher()
        self._announcements = self.dispatcher.strand("signals")
        self.departures = self.dispatcher.strand("leaving queues")
        self._scopes: weakref.WeakSet[Scope] = weakref.WeakSet()
        self._scopes_lock = threading.Lock()
        self.channel = Channel(
            config, interceptors, on_reset=self._on_reset, on_state=self._on_state
        )
        self.keeper = LeaseKeeper(self.channel, config.lease_pool)
        self.hub = WatchHub(self.channel)
        track(self)

    @property
    def prefix(self) -> str:
        """The client's key prefix."""
        return self.config.prefix

    def join(self, scope: Scope) -> None:
        """Have ``scope`` told what concerns the whole engine."""
        with self._scopes_lock:
            self._scopes.add(scope)

    def post(self, announcement: Callable[[], object]) -> None:
        """Have signals sent from the dispatcher, in order; never blocks."""
        self._announcements.post(announcement)

    def tell_vitals(self) -> ClientVitals | None:
        """Tell how the connection, the leases and the watches are; None once closed."""
        if self.channel.closed:
            return None
        steady = self.channel.steady_for
        return ClientVitals(
            prefix=self.prefix,
            endpoints=tuple(self.config.endpoints),
            connected=None if steady is None else self.channel.connected,
            seconds=steady,
            leases=self.keeper.vitals(),
            watches=self.hub.vitals(),
        )

    def close(self, timeout: float) -> None:
        """End everything within about ``timeout`` seconds: waiters first, then what is held.

        Revoking all leases takes every key we hold with it: locks, candidacies, registrations.
        """
        deadline = time.monotonic() + timeout
        self.hub.close(timeout / 4)
        self.keeper.close(max(0.1, deadline - time.monotonic()))
        self.channel.close()
        self._flush_announcements(min(0.5, max(0.1, deadline - time.monotonic())))
        self.dispatcher.stop(max(0.1, deadline - time.monotonic()))

    def _flush_announcements(self, timeout: float) -> None:
        done = threading.Event()
        if self._announcements.post(done.set):
            done.wait(timeout)

    def _announce(self, signal: Signal, **payload: object) -> None:
        """Send what concerns every client of this engine; never blocks."""

        def send() -> None:
            signals.send(signal, None, **payload)
            with self._scopes_lock:
                scopes = [scope for scope in self._scopes if not scope.closed]
            for scope in scopes:
                scope.announcer.pass_on(signal, None, payload)

        self.post(send)

    def _on_reset(self, notice: ResetNotice) -> None:
        self._announce(
            signals.cluster_reset,
            prefix=self.prefix,
            before=notice.before,
            after=notice.after,
        )
        self.hub.reset(self.channel.store.epoch)

    def _on_state(self, connected: bool, reason: str) -> None:
        self._announce(
            signals.connection_state_changed,
            prefix=self.prefix,
            endpoints=self.channel.endpoints.addresses,
            connected=connected,
            reason=reason,
        )


class Announcer:
    """Sends the signals about one client: to the signals' receivers, and to who follows the client.

    What concerns a client is its connection and what was made by it: registrations, locks,
    elections, views, configurations and guarded tasks. Safe to use from any thread.
    """

    def __init__(self) -> None:
        self._followers: list[Relay] = []

    def follow(self, relay: Relay) -> None:
        """Have ``relay`` called for every signal about this client, where it is sent."""
        self._followers.append(relay)

    def is_heard(self, signal: Signal) -> bool:
        """Tell whether anybody may listen to ``signal``, so that making it up is worth it."""
        return bool(signal.receivers) or bool(self._followers)

    def send(self, signal: Signal, sender: object, **payload: object) -> None:
        """Send ``signal`` in the calling thread."""
        signals.send(signal, sender, **payload)
        self.pass_on(signal, sender, payload)

    def pass_on(self, signal: Signal, sender: object, payload: Mapping[str, object]) -> None:
        """Tell the followers only."""
        for relay in tuple(self._followers):
            try:
                relay(signal, sender, payload)
            except Exception:
                _log.exception(
                    "passing %r on failed",
                    signal,
                    extra=fields(Event.INTERNAL_ERROR, part="signals"),
                )


class Scope:
    """An engine and what one client holds on it. Safe to use from any thread.

    Several clients may share an engine (``shared_client``); closing one lets go of its own holdings
    only.

    Args:
        engine: What the client stands on in this process.
        announcer: Sends the signals about this client.
    """

    def __init__(self, engine: Engine, announcer: Announcer) -> None:
        self.engine = engine
        self.announcer = announcer
        self._lock = threading.Lock()
        self._held: dict[int, Holding] = {}
        self._held_weakly: weakref.WeakValueDictionary[int, Holding] = weakref.WeakValueDictionary()
        self._closed = False
        engine.join(self)
        forking.track(self)

    def announce(self, signal: Signal, sender: object, **payload: object) -> None:
        """Send ``signal`` about something of this client, from the dispatcher; never blocks."""
        self.engine.post(lambda: self.announcer.send(signal, sender, **payload))

    def after_fork_in_child(self) -> None:
        """Replace the lock another thread may have held; what is held is the parent's."""
        self._lock = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether the client is closed or being closed."""
        return self._closed

    def check_open(self, what: str) -> None:
        """Raise :class:`ClosedError` if the client is closed."""
        if self._closed:
            raise ClosedError(f"{what}: the client is closed")

    def hold(self, holding: Holding, what: str, *, weakly: bool = False) -> None:
        """Remember ``holding`` until :meth:`let_go` or the close.

        Args:
            holding: What to let go of at close.
            what: For the error.
            weakly: Do not keep it alive: a lock that the program lost must be noticed.

        Raises:
            ClosedError: The client is closed; the caller must let go itself.
        """
        with self._lock:
            self.check_open(what)
            (self._held_weakly if weakly else self._held)[id(holding)] = holding

    def loosen(self, holding: Holding) -> None:
        """Keep ``holding`` alive no longer, and let go of it at the close if it is still there."""
        with self._lock:
            if self._held.pop(id(holding), None) is not None:
                self._held_weakly[id(holding)] = holding

    def let_go(self, holding: Holding) -> None:
        """Forget ``holding``; idempotent."""
        with self._lock:
            self._held.pop(id(holding), None)
            self._held_weakly.pop(id(holding), None)

    def close(self, timeout: float) -> None:
        """Let go of everything, newest first, within about ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            holdings = [*self._held.values(), *self._held_weakly.values()]
            self._held.clear()
        for holding in reversed(holdings):
            try:
                holding.close_with_client(max(0.0, deadline - time.monotonic()))
            except EtcdError as exc:
                _log.debug("closing: %s", exc)
            except Exception:
                _log.exception(
                    "closing %r failed", holding, extra=fields(Event.INTERNAL_ERROR, part="close")
                )
