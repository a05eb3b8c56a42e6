"""The lock: one queue key under a private lease.

Recipe over :mod:`ownership` and :mod:`contender`.
"""

from __future__ import annotations

import logging
import warnings
import weakref

from typing_extensions import Self

from . import signals
from .config import Timeout
from .contender import Contender, TurnTimeout
from .engine import Scope
from .errors import ClosedError, EtcdError, LeaseLost, LockTimeout
from .events import Event, fields
from .keys import lock_prefix, require_name
from .lease import normalise_ttl
from .ownership import Owned, Ownership
from .wire.channel import check_timeout

_log = logging.getLogger("etcd_core.lock")

DEFAULT_TTL = 30.0


class Lock(Owned):
    """A held lock. Safe to use from any thread; a context manager that releases on leaving.

    The lock is ours while :attr:`held`. It is lost when its lease expires (etcd unreachable for
    longer than the TTL, or this process paused), when someone revokes the lease, or deletes or
    overwrites the key; :attr:`done` is set then and the signal ``lock_lost`` sent.

    A lock object that is garbage-collected while held warns (``ResourceWarning``) and is no longer
    renewed, so the lock becomes free after its TTL. After ``fork()`` it is the parent's: the child
    sees it lost and never releases it.

    Example:
        >>> with client.lock("nightly-report", timeout=10) as lock:
        ...     for page in pages:
        ...         if not lock.held:
        ...             break
        ...         write(page, fencing_token=lock.token)
    """

    def __init__(self, key: str, ownership: Ownership) -> None:
        super().__init__(key, ownership)
        me = weakref.ref(self)
        scope = ownership.scope

        def announce(reason: str) -> None:
            lock = me()
            if lock is not None:
                scope.announce(signals.lock_lost, lock, key=key, reason=reason)

        ownership.when_lost(announce)

    @property
    def held(self) -> bool:
        """Whether the lock is certainly still ours, computed from the clock. No I/O."""
        return self._ownership.held

    def unlock(self, *, timeout: float | None = None, keep_for: float = 0.0) -> bool:
        """Release the lock. Idempotent; one request, or three with ``keep_for``.

        Args:
            timeout: Seconds; None means ``Config.timeout``.
            keep_for: Seconds, rounded up, for which the lock stays taken by nobody.

        Returns:
            Whether it was ours until now. False also from the second call on.

        Raises:
            EtcdError: etcd could not be told; the lock becomes free when its lease expires.
        """
        self._ownership.scope.let_go(self)
        return self._ownership.release(timeout, keep_for=keep_for)

    def close_with_client(self, timeout: float) -> None:
        """Release the lock because the client is closed."""
        self.unlock(timeout=timeout)

    def __enter__(self) -> Self:
        """Return the lock, which must be held.

        Raises:
            ClosedError: It was released.
            LeaseLost: It was lost.
        """
        if self._ownership.released:
            raise ClosedError(f"lock {self._key!r}: it was released; acquire a new one")
        if not self.held:
            raise LeaseLost(f"lock {self._key!r}: it was lost ({self.lost_reason})")
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release the lock; a failure to tell etcd is logged, not raised over the body's result."""
        try:
            self.unlock()
        except EtcdError as exc:
            if self._told_already:
                _log.debug("lock %r, which was lost, is left to expire: %s", self._key, exc)
                return
            _log.warning(
                "lock %r is left to expire: %s",
                self._key,
                exc,
                extra=fields(Event.RELEASE_FAILED, kind="lock", name=self._key, reason=str(exc)),
            )

    def __repr__(self) -> str:
        """Return the name and the state."""
        state = "held" if self.held else self.lost_reason or "released"
        return f"<Lock {self._key!r} {state} token={self.token}>"

    def __del__(self) -> None:
        """Warn about a lock nobody can release any more, and let it expire."""
        ownership: Ownership | None = getattr(self, "_ownership", None)
        if ownership is None or not ownership.abandon_from_finalizer():
            return
        warnings.warn(
            f"lock {self._key!r} was garbage-collected while held; it is left to expire",
            ResourceWarning,
            source=self,
            stacklevel=2,
        )


def acquire(scope: Scope, key: str, ttl: float | None, timeout: float | None) -> Lock:
    """Wait for the lock; see :meth:`Client.lock`."""
    what, queue, seconds = _checked(scope, key, ttl)
    check_timeout(what, timeout)
    with Contender(scope, queue, b"", seconds, what) as contender:
        try:
            contender.acquire(timeout)
        except TurnTimeout:
            holder = contender.holder
            raise LockTimeout(f"{what}: not acquired within {timeout} s{holder}") from None
        return _held(scope, key, what, contender)


def try_acquire(scope: Scope, key: str, ttl: float | None, timeout: Timeout) -> Lock | None:
    """Take the lock if it is free; see :meth:`Client.try_lock`."""
    what, queue, seconds = _checked(scope, key, ttl)
    check_timeout(what, timeout)
    with Contender(scope, queue, b"", seconds, what) as contender:
        if not contender.join_if_free(timeout):
            return None
        return _held(scope, key, what, contender)


def _checked(scope: Scope, key: str, ttl: float | None) -> tuple[str, bytes, int]:
    require_name("lock", "key", key)
    what = f"lock {key!r}"
    queue = lock_prefix(scope.engine.prefix, key).encode()
    return what, queue, normalise_ttl(what, ttl, DEFAULT_TTL)


def _held(scope: Scope, key: str, what: str, contender: Contender) -> Lock:
    lock = Lock(key, contender.own())
    try:
        scope.hold(lock, what, weakly=True)
    except ClosedError:
        lock.unlock(timeout=1.0)
        raise
    return lock
