"""The client: the library's verbs over one engine per process. Owns ``close()`` and ``fork()``.

A client is a cheap handle. The engine behind it is made at first use, once per process, so a client
may be made before ``fork()``; equal configs share one engine through :func:`shared_client`.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import Self

from . import forking
from .config import UNSET, Config, Timeout, Tls, Unset
from .engine import Announcer, Engine, Scope
from .errors import ClosedError, InvalidArgument, PermissionDenied
from .keys import DEFAULT_PREFIX, prefix_range_end

if TYPE_CHECKING:
    from .candidate import Candidate
    from .discovery import ServiceHandler, ServiceView
    from .dispatch import Subscription
    from .election import Election
    from .lock import Lock
    from .observe import LeaderWatch
    from .registry import Descriptor, OnConflict, Registration
    from .source import ConfigSource
    from .wire.raw import RawClient

_log = logging.getLogger("etcd_core.client")

CLOSE_SECONDS = 2.0
_AWAY_SECONDS = 0.5


class _Slot:
    """The engine of one config in this process, and how many clients use it."""

    def __init__(self, config: Config, interceptors: Sequence[object] = ()) -> None:
        self.config = config
        self._interceptors = interceptors
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._users = 0
        forking.track(self)

    def engine(self) -> Engine:
        """Return the engine, made at first use."""
        with self._lock:
            if self._engine is None:
                self._engine = Engine(self.config, self._interceptors)
            return self._engine

    def join(self) -> None:
        """Count one more client."""
        with self._lock:
            self._users += 1

    def leave(self, timeout: float) -> None:
        """Count one client less; the last one closes the engine."""
        with self._lock:
            self._users -= 1
            engine = self._engine
            if self._users > 0 or engine is None:
                return
            self._engine = None
        engine.close(timeout)

    def after_fork_in_child(self) -> None:
        """Forget the parent's engine without touching what it holds."""
        self._lock = threading.Lock()
        if self._engine is not None:
            forking.keep_for_ever(self._engine)
            self._engine = None


_shared: dict[Config, _Slot] = {}
_shared_lock = threading.Lock()
# Strongly: a client whose variable is gone may still hold leases that must end at exit.
_open_clients: set[Client] = set()


class Client:
    """A client of one etcd cluster. Making one does no I/O and starts no thread.

    Safe to use from any thread. After ``fork()`` the child starts afresh at first use: what the
    parent holds stays the parent's. A context manager: leaving it closes the client.

    Args:
        config: The configuration; or give its fields as keywords.
        endpoints: As :class:`Config`.
        username: As :class:`Config`.
        password: As :class:`Config`.
        dial_timeout: As :class:`Config`.
        timeout: As :class:`Config`.
        tls: As :class:`Config`.
        prefix: As :class:`Config`.
        auto_sync_interval: As :class:`Config`.
        lease_pool: As :class:`Config`.
        interceptors: gRPC client interceptors for every call, for tests and tracing.

    Raises:
        InvalidConfig: The configuration is unusable.

    Example:
        >>> with Client(endpoints=["127.0.0.1:2379"], prefix="/shop") as client:
        ...     with client.lock("nightly-report", timeout=10):
        ...         ...
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        endpoints: Sequence[str] | None = None,
        username: str | None = None,
        password: str | None = None,
        dial_timeout: float = 5.0,
        timeout: float = 5.0,
        tls: Tls | None = None,
        prefix: str = DEFAULT_PREFIX,
        auto_sync_interval: float = 0,
        lease_pool: int = 2,
        interceptors: Sequence[object] = (),
    ) -> None:
        if (config is None) == (endpoints is None):
            raise InvalidArgument("Client: give either a Config or endpoints=[...]")
        if config is None:
            config = Config(
                endpoints or (),
                username=username,
                password=password,
                dial_timeout=dial_timeout,
                timeout=timeout,
                tls=tls,
                prefix=prefix,
                auto_sync_interval=auto_sync_interval,
                lease_pool=lease_pool,
            )
        self._bind(_Slot(config, interceptors))

    def _bind(self, slot: _Slot) -> None:
        self._slot = slot
        self._lock = threading.Lock()
        self._scope: Scope | None = None
        self._announcer = Announcer()
        self._raw: RawClient | None = None
        self._views: dict[str, ServiceView] = {}
        self._closed = False
        slot.join()
        forking.track(self)

    @classmethod
    def _sharing(cls, slot: _Slot) -> Client:
        client = cls.__new__(cls)
        client._bind(slot)
        return client

    # -- the client itself ---------------------------------------------------------------------

    @property
    def config(self) -> Config:
        """The configuration; its repr shows no secret."""
        return self._slot.config

    @property
    def prefix(self) -> str:
        """The prefix that all keys of this client live under, as configured."""
        return self.config.prefix

    @property
    def raw(self) -> RawClient:
        """An ``etcd3.Etcd3Client`` on this client's channel: everything else etcd can do.

        It has the channel's failover and token refresh, and its watches are resumed; its own
        ``close()`` does nothing, since the channel is this client's.
        """
        with self._lock:
            if self._raw is None:
                from .wire.raw import RawClient

                self._raw = RawClient(self.scope)
            return self._raw

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    @property
    def connected(self) -> bool:
        """Whether etcd answered at the last try; True before the first. No I/O."""
        scope = self._scope
        return scope is None or scope.engine.channel.connected

    def close(self) -> None:
        """Deregister and release what this client holds, then end its threads. Idempotent.

        Takes about two seconds at most, and half a second while etcd is known to be away; what it
        could not be told by then expires with its lease. Calls that wait on this client return at
        once with :class:`ClosedError`.
        """
        self._close(time.monotonic() + CLOSE_SECONDS)

    def _close(self, deadline: float) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            scope, self._scope = self._scope, None
        _open_clients.discard(self)
        try:
            if scope is not None:
                if not scope.engine.channel.connected:
                    deadline = min(deadline, time.monotonic() + _AWAY_SECONDS)
                scope.close(max(0.0, deadline - time.monotonic()))
        finally:
            # Interrupted, too: no second close() would do it, and leases would be renewed for ever.
            self._slot.leave(max(0.2, deadline - time.monotonic()))

    def __enter__(self) -> Self:
        """Return the client."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the client."""
        self.close()

    def __repr__(self) -> str:
        """Return the endpoints and the prefix."""
        state = "closed " if self._closed else ""
        return f"<{state}Client {','.join(self.config.endpoints)} prefix={self.prefix!r}>"

    def scope(self) -> Scope:
        """Return this process's engine with this client's holdings. Internal."""
        with self._lock:
            if self._closed:
                raise ClosedError("the client is closed")
            if self._scope is None:
                self._scope = Scope(self._slot.engine(), self._announcer)
                _open_clients.add(self)
            return self._scope

    @property
    def announcer(self) -> Announcer:
        """What sends the signals about this client, and tells those who follow it. Internal."""
        return self._announcer

    def after_fork_in_child(self) -> None:
        """Start afresh: what the parent holds is not ours."""
        self._lock = threading.Lock()
        self._views = {}
        self._raw = None
        if self._scope is not None:
            forking.keep_for_ever(self._scope)
            self._scope = None

    # -- configuration -------------------------------------------------------------------------

    def config_source(self, name: str = "config") -> ConfigSource:
        """Return the configuration stored under ``name``. No I/O.

        Raises:
            InvalidArgument: ``name`` cannot be a part of a key.
        """
        from .source import ConfigSource

        return ConfigSource(self.scope, self.prefix, name)

    # -- services ------------------------------------------------------------------------------

    def register(
        self,
        descriptor: Descriptor,
        ttl: float | None = None,
        *,
        on_conflict: OnConflict = "takeover",
        timeout: Timeout = UNSET,
    ) -> Registration:
        """Register a service instance and keep it registered until it is deregistered.

        Blocks until the key is in etcd. From then on the registration repairs itself, for ever.

        Args:
            descriptor: What to register.
            ttl: Seconds after which etcd removes the instance if this process dies; default 15.
            on_conflict: ``"raise"`` refuses an id that another live process holds; ``"takeover"``
                replaces it, as the Go package does.
            timeout: Seconds for the first registration.

        Raises:
            InvalidArgument: The descriptor or the TTL is unusable.
            AlreadyRegistered: With ``on_conflict="raise"``.
            EtcdError: etcd could not be reached or refused.

        Example:
            >>> me = Descriptor(name="billing", id="billing-1", address="10.0.0.5:8080")
            >>> with client.register(me):
            ...     serve()
        """
        from .registry import register

        return register(self.scope(), descriptor, ttl, on_conflict=on_conflict, timeout=timeout)

    def discover(
        self, name: str, *, serializable: bool = False, timeout: Timeout = UNSET
    ) -> list[Descriptor]:
        """Return the instances of a service now. One request.

        Args:
            name: The service.
            serializable: Read from whichever member answers, possibly stale; works without quorum.
            timeout: Seconds for the request.
        """
        from .discovery import discover

        return discover(self.scope(), name, serializable=serializable, timeout=timeout)

    def services(self, name: str, *, timeout: Timeout = UNSET) -> ServiceView:
        """Return the live view of a service: one per name, owned by this client.

        The first call waits for the first snapshot; reading the view costs no round trip. While
        etcd is known to be away, that wait takes half a second at most unless ``timeout`` says
        otherwise: every request of a web server that needs a view would hang on it.
        """
        from .discovery import ServiceView

        scope = self.scope()
        with self._lock:
            view = self._views.get(name)
        if view is None or view.closed:
            if isinstance(timeout, Unset) and not scope.engine.channel.connected:
                timeout = min(self.config.timeout, _AWAY_SECONDS)
            fresh = ServiceView.open(scope, name, timeout=timeout)
            with self._lock:
                view = self._views.get(name)
                if view is None or view.closed:
                    view = self._views[name] = fresh
            if view is not fresh:
                fresh.close()
        return view

    def watch_service(
        self, name: str, handler: ServiceHandler, *, timeout: Timeout = UNSET
    ) -> Subscription:
        """Call ``handler(event)`` for every present instance (as ADDED) and every later change.

        The handler runs on a dispatcher thread, in order, never beside itself.
        """
        from .discovery import watch_service

        return watch_service(self.scope(), name, handler, timeout=timeout)

    # -- locks and elections -------------------------------------------------------------------

    def lock(self, key: str, ttl: float | None = None, timeout: float | None = None) -> Lock:
        """Wait for the lock and return it, held.

        Waiters are served in the order they came, across processes and languages. Joining the queue
        takes ``Config.timeout`` at most and counts as waiting; since it needs a request, half a
        second is left for it even where ``timeout`` is less, so that 0 takes a free lock.

        A lease lock cannot stop a process that was paused for longer than its TTL: protect an
        outside resource with :attr:`Lock.token`.

        Args:
            key: The lock's name.
            ttl: Seconds after which etcd frees the lock if this process dies; default 30.
            timeout: Seconds to wait; None waits for the holder for ever.

        Raises:
            InvalidArgument: ``key``, ``ttl`` or ``timeout`` is unusable.
            ConnectionFailed: etcd could not be reached to join the queue.
            LockTimeout: Somebody else had it all the time; our place in the queue is given up, in
                the background where etcd does not answer.
            LeaseLost: The lease died while waiting.
            EtcdError: etcd could not be reached or refused.

        Example:
            >>> with client.lock("nightly-report", timeout=10) as lock:
            ...     write_report(fencing_token=lock.token)
        """
        from .lock import acquire

        return acquire(self.scope(), key, ttl, timeout)

    def try_lock(
        self, key: str, ttl: float | None = None, *, timeout: Timeout = UNSET
    ) -> Lock | None:
        """Return the lock if it is free, else None: one request, which writes nothing then."""
        from .lock import try_acquire

        return try_acquire(self.scope(), key, ttl, timeout)

    def campaign(
        self, key: str, identity: str, ttl: float | None = None, timeout: float | None = None
    ) -> Election:
        """Wait until this process leads and return the election, won.

        Args:
            key: The election's name.
            identity: What observers see while this process leads.
            ttl: Seconds after which etcd ends the leadership if this process dies; default 15.
            timeout: Seconds to wait, as :meth:`lock`; None waits for the leader for ever.

        Raises:
            InvalidArgument: An argument is unusable.
            ConnectionFailed: etcd could not be reached to join the election.
            CampaignTimeout: Somebody else led all the time.
            LeaseLost: The lease died while waiting.
            EtcdError: etcd could not be reached or refused.
        """
        from .election import campaign

        return campaign(self.scope(), key, identity, ttl, timeout)

    def candidate(
        self, key: str, identity: str | None = None, ttl: float | None = None
    ) -> Candidate:
        """Campaign in the background, again after every loss, until closed. Does not block.

        Args:
            key: The election's name.
            identity: What observers see; default host name and process id.
            ttl: As :meth:`campaign`.
        """
        from .candidate import Candidate

        return Candidate(self.scope(), key, identity, ttl)

    def leader(self, key: str, *, timeout: Timeout = UNSET) -> str | None:
        """Return the identity of the leader now, or None. One request, no candidacy needed."""
        from .observe import leader

        return leader(self.scope(), key, timeout=timeout)

    def observe(self, key: str, *, timeout: Timeout = UNSET) -> LeaderWatch:
        """Follow who leads: the leader now, then every change; None while nobody does."""
        from .observe import LeaderWatch

        return LeaderWatch.open(self.scope(), key, timeout=timeout)


def connect(
    config: Config | None = None,
    *,
    endpoints: Sequence[str] | None = None,
    username: str | None = None,
    password: str | None = None,
    dial_timeout: float = 5.0,
    timeout: float = 5.0,
    tls: Tls | None = None,
    prefix: str = DEFAULT_PREFIX,
    auto_sync_interval: float = 0,
    lease_pool: int = 2,
) -> Client:
    """Return a :class:`Client` that has reached etcd and logged in, within ``dial_timeout``.

    Raises:
        InvalidConfig: The configuration is unusable.
        ConnectionFailed: etcd cannot be reached, or TLS failed.
        Unauthenticated: The user name or password is wrong.
    """
    if config is not None:
        client = Client(config)
    else:
        client = Client(
            endpoints=endpoints,
            username=username,
            password=password,
            dial_timeout=dial_timeout,
            timeout=timeout,
            tls=tls,
            prefix=prefix,
            auto_sync_interval=auto_sync_interval,
            lease_pool=lease_pool,
        )
    try:
        _check_connection(client)
    except BaseException:
        client.close()
        raise
    return client


def _check_connection(client: Client) -> None:
    from .wire import messages as pb
    from .wire.rpc import RANGE

    prefix = client.prefix.rstrip("/").encode() + b"/"
    request = pb.RangeRequest(
        key=prefix, range_end=prefix_range_end(prefix), limit=1, keys_only=True
    )
    what = f"connect to {', '.join(client.config.endpoints)}"
    try:
        client.scope().engine.channel.unary(
            RANGE, request, what=what, timeout=client.config.dial_timeout
        )
    except PermissionDenied:
        # It answered and knows the user; what that user may read is another matter.
        return


def shared_client(config: Config) -> Client:
    """Return a client on this process's one engine for ``config``: no I/O, no thread.

    Equal configs share one channel, one keep-alive stream and one watch stream. Each caller closes
    its own client; the last one ends the engine.
    """
    with _shared_lock:
        slot = _shared.get(config)
        if slot is None:
            slot = _shared[config] = _Slot(config)
    return Client._sharing(slot)


class _ModuleState:
    """Resets this module's lock in a forked child: another thread may have held it."""

    def after_fork_in_child(self) -> None:
        global _shared_lock
        _shared_lock = threading.Lock()


_module_state = _ModuleState()
forking.track(_module_state)


_exit_by: float | None = None


def close_at_exit_by(deadline: float) -> None:
    """Bound the close at exit by a moment: the service host has waited for this etcd already."""
    global _exit_by
    _exit_by = deadline


@atexit.register
def _close_all() -> None:
    """Close what is still open when the process exits, all clients within one client's time."""
    deadline = time.monotonic() + CLOSE_SECONDS
    if _exit_by is not None:
        deadline = min(deadline, _exit_by)
    for client in list(_open_clients):
        client._close(deadline)
