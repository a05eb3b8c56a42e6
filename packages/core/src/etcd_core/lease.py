"""Leases, and the one keep-alive stream that renews all leases of a client.

The thread ``etcd-keepalive`` owns all renewal state; readers and callers talk to it through its
inbox, so that state needs no lock. It calls no user code. A lease's own deadline is computed from
the clock by whoever asks, so a stalled thread can never make a dead lease look alive.

Algorithm: semantics section 3. A lease is taken for dead at *send time of the last answered
renewal + granted TTL - margin*, which is never later than the server's own expiry.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import os
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from . import forking
from .config import UNSET, Timeout
from .errors import ClosedError, EtcdError, InvalidArgument, LeaseLost
from .events import Event, fields
from .vitals import LeaseVitals
from .wire import messages as pb
from .wire.channel import Backoff, CallFailed, Channel, Duplex
from .wire.classify import Kind, lease_exists
from .wire.rpc import LEASE_GRANT, LEASE_KEEP_ALIVE, LEASE_REVOKE

_log = logging.getLogger("etcd_core.lease")

_MAX_TTL = 9_000_000_000
_GRANULARITY = 0.05
_MIN_PATIENCE = 0.5
SETTLE_SECONDS = 0.25

# Durations must go on while the machine is suspended; time.monotonic() stops there on Linux, and
# CLOCK_MONOTONIC_RAW is what does not stop on macOS.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC_RAW", None))


def boottime() -> float:
    """Return seconds on a clock that nobody sets and that runs through system suspend."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)


def normalise_ttl(operation: str, ttl: float | None, default: float) -> int:
    """Return the TTL to ask etcd for, in whole seconds.

    Zero or None is the default; a value under one second becomes one; fractions are rounded up.

    Raises:
        InvalidArgument: ``ttl`` is negative, not a number, or beyond etcd's limit.
    """
    if ttl is None or ttl == 0:
        ttl = default
    if isinstance(ttl, bool) or not isinstance(ttl, (int, float)) or not math.isfinite(ttl):
        raise InvalidArgument(f"{operation}: ttl must be a number of seconds, not {ttl!r}")
    if ttl < 0 or ttl > _MAX_TTL:
        raise InvalidArgument(f"{operation}: ttl must be between 0 and {_MAX_TTL} s, not {ttl!r}")
    return max(1, math.ceil(ttl))


class Lease:
    """One lease, as this process sees it. Safe to use from any thread.

    Lost is final: once :meth:`alive` has returned False it never returns True again, and
    :attr:`lost_reason` says why.
    """

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_deadline",
        "_lock",
        "id",
        "lost_reason",
        "tainted",
        "ttl",
    )

    def __init__(self, lease_id: int, ttl: int, sent_at: float) -> None:
        self.id = lease_id
        self.ttl = ttl
        self.lost_reason: str | None = None
        # Some request on this lease got no answer: it may still be applied, so the lease must
        # never serve another acquisition (semantics fact 1).
        self.tainted = False
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[str], None]] = []
        self._deadline = sent_at + ttl - margin(ttl)
        forking.track(self)

    @property
    def remaining(self) -> float:
        """Seconds until this process must take the lease for dead; 0 or less when it is."""
        return 0.0 if self.lost_reason is not None else self._deadline - boottime()

    def alive(self) -> bool:
        """Tell whether the lease is certainly still ours, computed from the clock."""
        if self.lost_reason is not None:
            return False
        if boottime() < self._deadline:
            return True
        self.lose("expired")
        return False

    def taint(self) -> None:
        """Note a request on this lease that may still be executed."""
        self.tainted = True

    def when_lost(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(reason)`` once when the lease is lost; at once if it is.

        It runs in whichever thread notices, so it must not block.
        """
        with self._lock:
            if self.lost_reason is None:
                self._callbacks.append(callback)
                return
        callback(self.lost_reason)

    def lose(self, reason: str) -> None:
        """Take the lease for dead. The first reason stays."""
        with self._lock:
            if self.lost_reason is not None:
                return
            if reason == "expired" and boottime() < self._deadline:
                return
            self.lost_reason = reason
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(reason)

    def renewed(self, sent_at: float, ttl: int) -> None:
        """Take an answered renewal into account, unless the deadline passed before it came."""
        with self._lock:
            if self.lost_reason is None and boottime() < self._deadline:
                deadline = sent_at + ttl - margin(ttl)
                # An adopted lease may turn out to have a shorter TTL than we asked for.
                shorter = ttl < self.ttl
                self._deadline = deadline if shorter else max(self._deadline, deadline)
                self.ttl = ttl
                return
        self.lose("expired")

    @property
    def deadline(self) -> float:
        """When the lease must be taken for dead, on :func:`boottime`'s clock."""
        return self._deadline

    def forget_callbacks(self) -> None:
        """Drop the callbacks: the holder is done with the lease."""
        with self._lock:
            self._callbacks = []

    def after_fork_in_child(self) -> None:
        """Report lost in a forked child: the lease is the parent's."""
        self._lock = threading.Lock()
        self._callbacks = []
        if self.lost_reason is None:
            self.lost_reason = "forked"

    def __repr__(self) -> str:
        """Return the id in hex, as it stands in keys."""
        return f"<Lease {self.id:x} ttl={self.ttl}>"


def margin(ttl: int) -> float:
    """Return by how many seconds we give up before the server may."""
    return max(0.1, 0.05 * ttl)


@dataclass
class _Renewal:
    """When a lease is renewed next. Owned by the keep-alive thread."""

    lease: Lease
    due: float


@dataclass
class _Line:
    """One keep-alive stream and what it has not answered. Owned by the keep-alive thread."""

    stream: Duplex[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]
    stamps: dict[int, deque[float]] = field(default_factory=dict)
    answered: bool = False

    def oldest(self) -> float:
        """Return when the oldest unanswered renewal was sent; infinity if there is none."""
        # In the order of sending, since take() moves a lease with more to come to the end.
        return next((stamps[0] for stamps in self.stamps.values()), math.inf)

    def sent(self, lease_id: int, at: float) -> None:
        """Note a renewal."""
        self.stamps.setdefault(lease_id, deque()).append(at)

    def take(self, lease_id: int) -> float | None:
        """Return the send time of the renewal that was just answered: they come in order."""
        stamps = self.stamps.get(lease_id)
        if not stamps:
            return None
        at = stamps.popleft()
        del self.stamps[lease_id]
        if stamps:
            self.stamps[lease_id] = stamps
        return at


class _Add(NamedTuple):
    lease: Lease
    renew_now: bool = False


class _Drop(NamedTuple):
    lease_id: int


class _Later(NamedTuple):
    at: float
    action: Callable[[], None]


class _Answer(NamedTuple):
    line: _Line
    lease_id: int
    ttl: int


class _Ended(NamedTuple):
    line: _Line
    reason: str


class _Stop(NamedTuple):
    pass


_Item = _Add | _Drop | _Later | _Answer | _Ended | _Stop


class LeaseKeeper:
    """Grants, renews, pools and revokes the leases of one client. Safe to use from any thread.

    Args:
        channel: Where requests go.
        pool_size: Spare leases kept per TTL; 0 keeps none.
    """

    def __init__(self, channel: Channel, pool_size: int) -> None:
        self._channel = channel
        self._pool_size = pool_size
        self._pool: dict[int, list[Lease]] = {}
        self._granted: dict[int, Lease] = {}
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._settling: deque[tuple[float, Callable[[], None]]] = deque()
        self._settle_armed = False
        self._closed = False
        # Below: owned by the keep-alive thread.
        self._renewals: dict[int, _Renewal] = {}
        self._scan_at = math.inf
        self._shortest = 60
        self._line: _Line | None = None
        self._draining: _Line | None = None
        self._backoff = Backoff(base=0.05, cap=0.5)
        self._reopen_at = 0.0
        self._round_trip = 0.0
        self._slow_tries = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._counter = itertools.count()

    # -- any thread ----------------------------------------------------------------------------

    def grant(self, ttl: int, *, what: str, timeout: Timeout = UNSET) -> Lease:
        """Grant a new lease and keep it alive.

        The id is ours, so that a retry of a grant whose answer was lost meets the first one's lease
        instead of leaking it.

        Raises:
            EtcdError: It could not be granted.
        """
        deadline = self._channel.deadline(timeout)
        while True:
            left = None if math.isinf(deadline) else max(deadline - time.monotonic(), 0.0)
            lease = self._grant_once(ttl, what, left)
            if lease.alive() or time.monotonic() >= deadline:
                return lease
            # It took a failover longer than the lease lasts; the answer came too late to be safe.
            self.revoke(lease, timeout=left)

    def _grant_once(self, ttl: int, what: str, timeout: float | None) -> Lease:
        lease_id = int.from_bytes(os.urandom(8), "big") >> 2 | 1
        sent_at = boottime()
        request = pb.LeaseGrantRequest(TTL=ttl, ID=lease_id)
        try:
            answer = self._channel.unary(LEASE_GRANT, request, what=what, timeout=timeout)
            granted = answer.TTL
        except EtcdError as exc:
            if not lease_exists(exc):
                raise
            granted = ttl
        lease = Lease(lease_id, granted, sent_at)
        self._keep(lease)
        return lease

    def adopt(self, lease_id: int, ttl: int, *, what: str, timeout: Timeout = UNSET) -> Lease:
        """Grant the lease ``lease_id``, or join in keeping it alive if it exists.

        For a lease that several processes keep alive together. Its TTL is the one that the first of
        them asked for.

        Raises:
            EtcdError: It could not be granted.
        """
        sent_at = boottime()
        request = pb.LeaseGrantRequest(TTL=ttl, ID=lease_id)
        try:
            ttl = self._channel.unary(LEASE_GRANT, request, what=what, timeout=timeout).TTL
        except EtcdError as exc:
            if not lease_exists(exc):
                raise
        lease = Lease(lease_id, ttl, sent_at)
        # Not among the granted: others live on it too, so closing this client must not revoke it.
        # It may have little of its time left, and another TTL than ours.
        self._inbox.put(_Add(lease, renew_now=True))
        self._start()
        return lease

    def take(self, ttl: int, *, what: str, timeout: Timeout = UNSET) -> Lease:
        """Return a spare lease of the pool, or grant one."""
        with self._lock:
            spares = self._pool.get(ttl, [])
            while spares:
                lease = spares.pop()
                if lease.remaining > lease.ttl / 2:
                    return lease
                # Its renewals are late; whoever takes it would start with half its time gone.
                self._granted.pop(lease.id, None)
                self._inbox.put(_Drop(lease.id))
        return self.grant(ttl, what=what, timeout=timeout)

    def give_back(self, lease: Lease, ttl: int, *, timeout: Timeout = UNSET) -> None:
        """Return a lease that carries no key any more: pooled if it is clean, else revoked.

        Args:
            lease: The lease.
            ttl: The TTL it was asked for.
            timeout: Seconds the revocation may take.
        """
        lease.forget_callbacks()
        with self._lock:
            spares = self._pool.setdefault(ttl, [])
            clean = not lease.tainted and not self._closed and lease.alive()
            if clean and len(spares) < self._pool_size:
                spares.append(lease)
                return
        self.revoke(lease, timeout=timeout)

    def revoke(self, lease: Lease, *, timeout: Timeout = UNSET) -> bool:
        """Revoke a lease and with it its keys; return False if etcd could not be told.

        Then it is no longer renewed, and its keys go when it expires.
        """
        self.drop(lease)
        lease.forget_callbacks()
        lease.lose("revoked")
        try:
            request = pb.LeaseRevokeRequest(ID=lease.id)
            self._channel.unary(
                LEASE_REVOKE, request, what=f"revoke lease {lease.id:x}", timeout=timeout
            )
        except LeaseLost:
            return True
        except EtcdError as exc:
            _log.debug("lease %x is left to expire: %s", lease.id, exc)
            return False
        return True

    def drop(self, lease: Lease) -> None:
        """Stop renewing a lease without revoking it."""
        with self._lock:
            self._granted.pop(lease.id, None)
        self._inbox.put(_Drop(lease.id))

    def call_later(self, delay: float, action: Callable[[], None]) -> None:
        """Run ``action`` in the keep-alive thread after ``delay`` seconds; it must not block."""
        self._inbox.put(_Later(boottime() + delay, action))
        self._start()

    def call_from_finalizer(self, action: Callable[[], None]) -> None:
        """As :meth:`call_later` without delay, for ``__del__``: takes no lock whatsoever.

        The thread runs, since whoever was finalised held a lease.
        """
        self._inbox.put(_Later(0.0, action))

    def call_when_settled(self, action: Callable[[], None]) -> None:
        """Run ``action`` in the keep-alive thread in about a quarter of a second.

        One timer serves all callers, so that a busy lock does not wake the thread at every cycle.
        """
        with self._lock:
            self._settling.append((boottime() + SETTLE_SECONDS, action))
            if self._settle_armed:
                return
            # First the timer: an interruption in between leaves one too many, not none for ever.
            self._inbox.put(_Later(boottime() + SETTLE_SECONDS, self._run_settled))
            self._settle_armed = True
        self._start()

    def vitals(self) -> LeaseVitals:
        """Tell how many leases there are and how long the first of them lasts."""
        # A copy is one step of the interpreter, so the thread may go on meanwhile.
        leases = [renewal.lease for renewal in self._renewals.copy().values()]
        left = [lease.remaining for lease in leases if lease.lost_reason is None]
        return LeaseVitals(len(left), max(0.0, min(left)) if left else None)

    def close(self, timeout: float) -> None:
        """Revoke every lease, spare or in use, and end the thread.

        Takes about ``timeout`` seconds at most; what cannot be revoked expires.
        """
        deadline = time.monotonic() + timeout
        with self._lock:
            self._closed = True
            leases = list(self._granted.values())
            self._pool.clear()
            thread = self._thread
        reachable = True
        for lease in leases:
            left = deadline - time.monotonic()
            if reachable and left > 0:
                reachable = self.revoke(lease, timeout=left)
            else:
                lease.lose("closed")
        self._inbox.put(_Stop())
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.1, deadline - time.monotonic()))

    def _keep(self, lease: Lease) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError("lease: the client is closed", outcome_unknown=True)
            self._granted[lease.id] = lease
        self._inbox.put(_Add(lease))
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._closed:
                return
            thread = threading.Thread(target=self._run, name="etcd-keepalive", daemon=True)
            # Kept only once it runs: a start that fails must be tried again.
            thread.start()
            self._thread = thread

    # -- the keep-alive thread -----------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._step():
                pass
        finally:
            lines = self._line, self._draining
            # So that their readers know that the end is our own wish.
            self._line = self._draining = None
            for line in lines:
                if line is not None:
                    line.stream.cancel()

    def _step(self) -> bool:
        try:
            if not self._receive(self._sleep_seconds()):
                return False
            self._tick(boottime())
        except ClosedError:
            return False
        except Exception:
            # Leases still die on time by their own deadlines; a bug here must not end renewals.
            _log.exception(
                "the keep-alive thread failed and goes on",
                extra=fields(Event.INTERNAL_ERROR, part="keep-alive"),
            )
            time.sleep(_GRANULARITY)
        return True

    def _sleep_seconds(self) -> float | None:
        at = min(self._scan_at, self._timers[0][0] if self._timers else math.inf)
        return None if math.isinf(at) else max(at - boottime(), 0.0)

    def _receive(self, seconds: float | None) -> bool:
        try:
            item = self._inbox.get(timeout=seconds)
        except queue.Empty:
            return True
        while True:
            if isinstance(item, _Stop):
                return False
            self._handle(item)
            try:
                item = self._inbox.get_nowait()
            except queue.Empty:
                return True

    def _handle(self, item: _Item) -> None:
        if isinstance(item, _Answer):
            self._on_answer(item)
        elif isinstance(item, _Add):
            renewal = _Renewal(item.lease, self._first_due(item))
            self._renewals[item.lease.id] = renewal
            self._scan_at = min(self._scan_at, renewal.due)
        elif isinstance(item, _Drop):
            self._renewals.pop(item.lease_id, None)
        elif isinstance(item, _Later):
            heapq.heappush(self._timers, (item.at, next(self._counter), item.action))
        elif isinstance(item, _Ended):
            self._on_ended(item)

    def _on_answer(self, answer: _Answer) -> None:
        sent_at = answer.line.take(answer.lease_id)
        if sent_at is None:
            return
        answer.line.answered = True
        self._round_trip = boottime() - sent_at
        self._slow_tries = 0
        self._backoff.reset()
        if self._draining is not None and self._line is not None and self._line.answered:
            self._draining.stream.cancel()
            self._draining = None
        renewal = self._renewals.get(answer.lease_id)
        if renewal is None:
            return
        if answer.ttl <= 0:
            # etcd's way to say that it does not know the lease (any more).
            self._renewals.pop(answer.lease_id)
            renewal.lease.lose("revoked")
            return
        renewal.lease.renewed(sent_at, answer.ttl)
        renewal.due = min(renewal.due, boottime() + self._period(renewal.lease))
        self._scan_at = min(self._scan_at, renewal.due)

    def _on_ended(self, ended: _Ended) -> None:
        if ended.line is self._draining:
            self._draining = None
            return
        if ended.line is not self._line:
            return
        self._line = None
        now = boottime()
        self._reopen_at = now + min(self._backoff.next() + 0.01, self._shortest / 6)
        self._scan_at = min(self._scan_at, self._reopen_at)
        for lease_id in ended.line.stamps:
            if lease_id in self._renewals:
                self._renewals[lease_id].due = now

    def _tick(self, now: float) -> None:
        self._run_timers(now)
        if now >= self._scan_at:
            self._scan(now)

    def _scan(self, now: float) -> None:
        """Bury what is dead, renew what is due, and find out when to do so next.

        One pass over all leases, at most every 50 ms however many there are.
        """
        self._bury(now)
        self._shortest = min((r.lease.ttl for r in self._renewals.values()), default=60)
        if self._renewals and self._line and now - self._line.oldest() >= self._patience():
            self._try_another_line()
        due = [r for r in self._renewals.values() if r.due <= now + _GRANULARITY]
        if due and self._have_line(now):
            for renewal in due:
                self._renew(renewal)
        self._scan_at = max(self._next_event(), now + _GRANULARITY)

    def _next_event(self) -> float:
        if not self._renewals:
            return math.inf
        not_before = self._reopen_at if self._line is None else 0.0
        slow = self._line.oldest() + self._patience() if self._line else math.inf
        events = (min(max(r.due, not_before), r.lease.deadline) for r in self._renewals.values())
        return min(slow, min(events))

    def _run_settled(self) -> None:
        ready = []
        with self._lock:
            now = boottime()
            while self._settling and self._settling[0][0] <= now:
                ready.append(self._settling.popleft()[1])
            self._settle_armed = bool(self._settling)
            wait = self._settling[0][0] - now if self._settling else 0.0
        for action in ready:
            self._run_action(action)
        if wait:
            self.call_later(wait, self._run_settled)

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            self._run_action(heapq.heappop(self._timers)[2])

    @staticmethod
    def _run_action(action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            _log.exception(
                "a delayed action failed", extra=fields(Event.INTERNAL_ERROR, part="keep-alive")
            )

    def _bury(self, now: float) -> None:
        for renewal in [r for r in self._renewals.values() if r.lease.deadline <= now]:
            if not renewal.lease.alive():
                del self._renewals[renewal.lease.id]

    def _have_line(self, now: float) -> bool:
        if self._line is None and now >= self._reopen_at:
            self._line = self._open_line()
        return self._line is not None

    def _open_line(self) -> _Line:
        line = _Line(self._channel.open(LEASE_KEEP_ALIVE))
        reader = threading.Thread(
            target=self._read, args=(line,), name="etcd-keepalive-recv", daemon=True
        )
        try:
            reader.start()
        except RuntimeError:
            line.stream.cancel()
            self._reopen_at = boottime() + self._backoff.next() + 0.01
            raise
        return line

    def _try_another_line(self) -> None:
        """Renew through the next endpoint as well; the slow stream may still answer."""
        slow = self._line
        if slow is None:
            return
        self._slow_tries += 1
        self._channel.suspect(slow.stream.link)
        if self._draining is not None:
            self._draining.stream.cancel()
        self._draining = slow
        self._line = self._open_line()
        for lease_id in slow.stamps:
            if lease_id in self._renewals:
                self._renewals[lease_id].due = 0.0

    def _renew(self, renewal: _Renewal) -> None:
        line = self._line
        if line is None:
            return
        now = boottime()
        line.sent(renewal.lease.id, now)
        line.stream.send(pb.LeaseKeepAliveRequest(ID=renewal.lease.id))
        renewal.due = now + self._period(renewal.lease)

    def _first_due(self, item: _Add) -> float:
        if item.renew_now:
            return boottime()
        # From the sending of the grant: its answer may have used up half the time already.
        sent_at = item.lease.deadline - (item.lease.ttl - margin(item.lease.ttl))
        return sent_at + self._period(item.lease)

    @staticmethod
    def _period(lease: Lease) -> float:
        return lease.ttl / 3 * random.uniform(0.9, 1.1)

    def _patience(self) -> float:
        """Return how long an answer may take before another endpoint is tried as well.

        Three times what the last answer took: a slow line alone is no reason to leave it.
        """
        least = max(_MIN_PATIENCE, self._shortest / 6, 3 * self._round_trip)
        rounds = self._slow_tries // max(1, len(self._channel.endpoints))
        return least * float(2 ** min(rounds, 4))

    # -- the reading thread of one stream ------------------------------------------------------

    def _read(self, line: _Line) -> None:
        reason = "the stream ended"
        try:
            for answer in line.stream:
                self._inbox.put(_Answer(line, answer.ID, answer.TTL))
        except CallFailed as exc:
            reason = exc.details
            self._after_failure(line, exc)
        except Exception as exc:
            reason = str(exc)
            _log.exception(
                "reading keep-alive answers failed",
                extra=fields(Event.INTERNAL_ERROR, part="keep-alive"),
            )
        finally:
            self._inbox.put(_Ended(line, reason))

    def _after_failure(self, line: _Line, failure: CallFailed) -> None:
        stream = line.stream
        if failure.code == "CANCELLED" and self._is_ours(line):
            return
        if failure.kind in (Kind.TOKEN, Kind.FINAL) and self._channel.logs_in:
            try:
                self._channel.refresh_token(stream.token_generation)
            except EtcdError as exc:
                _log.debug("keep-alive: no new token: %s", exc)
            return
        self._channel.failed(stream.link, failure.details)
        self._channel.endpoints.rotate(stream.link)

    def _is_ours(self, line: _Line) -> bool:
        return line is not self._line
