"""The queue of keys that locks and elections join.

Every acquisition has a private lease and puts one key, ``<queue><lease id in hex>``; the key with
the smallest create revision owns the queue, and each of the others waits for the deletion of the
key before its own. Algorithm: etcd's concurrency recipe, with the changes of semantics 5 and 6
(predecessor in the joining transaction, own key verified after waiting, fenced release, nested
names told apart). Nothing here calls user code.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from .config import UNSET, Timeout
from .engine import Scope
from .errors import (
    ClosedError,
    ConnectionFailed,
    EtcdError,
    LeaseLost,
    OutcomeUnknown,
    RequestTimeout,
)
from .events import Event
from .keys import is_queue_key, prefix_range_end, queue_key
from .lease import Lease
from .ownership import GIVE_UP_SECONDS, Compare, Ownership, leave_queue
from .watch import Created, Delivery, Ended, Events, Sink, Watch
from .wire import messages as pb
from .wire.channel import Backoff
from .wire.rpc import OWN_TXN, RANGE

_log = logging.getLogger("etcd_core.contender")

_LAST_LOOK_SECONDS = 0.5
# What joining may take even if the caller has no time to wait: it needs a request, and the first
# one a connection.
_LEAST_JOIN_SECONDS = 0.5
_LEAVE_SECONDS = 0.5

T = TypeVar("T")


def queue_range(queue: bytes) -> pb.RangeRequest:
    """Return a read of the oldest key of a queue, which is its owner unless names are nested."""
    return pb.RangeRequest(
        key=queue,
        range_end=prefix_range_end(queue),
        limit=1,
        sort_order=pb.RangeRequest.ASCEND,
        sort_target=pb.RangeRequest.CREATE,
    )


def full_queue(
    scope: Scope,
    queue: bytes,
    what: str,
    *,
    keys_only: bool = True,
    timeout: Timeout = UNSET,
) -> list[pb.KeyValue]:
    """Return the queue's own keys, oldest first, without those of queues nested under it."""
    request = pb.RangeRequest(
        key=queue,
        range_end=prefix_range_end(queue),
        sort_order=pb.RangeRequest.ASCEND,
        sort_target=pb.RangeRequest.CREATE,
        keys_only=keys_only,
    )
    answer = scope.engine.channel.unary(RANGE, request, what=what, timeout=timeout)
    return [kv for kv in answer.kvs if is_queue_key(queue, kv.key)]


class TurnTimeout(Exception):
    """The queue did not reach us in time. Internal; recipes raise their own error."""


class Contender:
    """One acquisition: joins a queue, waits for its turn, and becomes an :class:`Ownership`.

    Used by one thread; :meth:`abort` from any. Leaving its ``with`` block before :meth:`own` leaves
    the queue, whatever the reason, so that neither an error nor Ctrl-C leaves a key behind.

    Args:
        scope: The client's scope.
        queue: The queue's prefix with its trailing slash.
        value: What our key holds.
        ttl: Seconds to ask for.
        what: The operation and its key, for errors.
        loss: What the loss of what is acquired is called in logs.
    """

    def __init__(
        self,
        scope: Scope,
        queue: bytes,
        value: bytes,
        ttl: int,
        what: str,
        *,
        loss: Event = Event.LOCK_LOST,
    ) -> None:
        self._loss = loss
        self._scope = scope
        self._engine = scope.engine
        self._queue = queue
        self._value = value
        self._ttl = ttl
        self._what = what
        self._wake = threading.Event()
        self._aborted = False
        self._lease: Lease | None = None
        self._key = b""
        self._create_revision = 0
        self._revision = 0
        self._predecessor: bytes | None = None
        self._owned = False
        # A join was sent and it is not settled whether our key is there (Ctrl-C can come anywhere).
        self._unsettled = False
        self._join_by = math.inf
        self._epoch = 0
        self._watches: list[Watch] = []
        self._ahead: Watch | None = None
        self._followed: bytes | None = None

    def __enter__(self) -> Contender:
        """Return the contender."""
        self._scope.hold(self, self._what)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave the queue unless it is owned."""
        lease = None if self._owned else self._lease
        departure = None
        try:
            self._scope.let_go(self)
            self._stop_watching()
            if lease is not None:
                departure = self._depart(lease)
        except BaseException:
            # Interrupted while leaving: at least nobody renews what is left behind.
            if lease is not None:
                lease.taint()
                self._engine.keeper.drop(lease)
            raise
        if departure is not None and self._create_revision:
            departure.wait(_LEAVE_SECONDS)

    def _depart(self, lease: Lease) -> _Departure | None:
        if self._unsettled:
            lease.taint()
        if self._create_revision or lease.tainted:
            departure = _Departure(self._scope, lease, self._key, self._create_revision, self._ttl)
            departure.begin()
            return departure
        # Nothing was put, so with room in the pool this costs no request.
        self._engine.keeper.give_back(lease, self._ttl, timeout=GIVE_UP_SECONDS)
        return None

    def abort(self) -> None:
        """Make the waiting thread raise :class:`ClosedError`."""
        self._aborted = True
        self._wake.set()

    def close_with_client(self, timeout: float) -> None:
        """Wake the waiting thread: the client is closed."""
        self.abort()

    @property
    def first(self) -> bool:
        """Whether the queue is ours."""
        return self._predecessor is None and self._create_revision > 0

    @property
    def holder(self) -> str:
        """Who stands before us, for an error: ``" (behind lease 694d...)"``."""
        if self._predecessor is None:
            return ""
        return f" (behind lease {self._predecessor[len(self._queue) :].decode()})"

    def acquire(self, timeout: float | None) -> None:
        """Join and wait for our turn, both within ``timeout`` seconds.

        Raises:
            TurnTimeout: It took longer.
            EtcdError: As :meth:`join` and :meth:`wait`.
        """
        began = time.monotonic()
        self.join(timeout)
        self.wait(None if timeout is None else max(0.0, began + timeout - time.monotonic()))

    def join(self, within: float | None = None) -> None:
        """Put our key. One request when a spare lease is at hand.

        Args:
            within: Seconds it may take, where they are less than ``Config.timeout``; half a second
                at least.

        Raises:
            ConnectionFailed: Not joined in time.
            EtcdError: etcd refused.
        """
        most = self._engine.config.timeout
        seconds = most if within is None else min(most, max(within, _LEAST_JOIN_SECONDS))
        self._with_lease(self._send_join, seconds)

    def _send_join(self) -> None:
        answer = self._transact(
            # The second newest key, read in the same revision, is the one to wait for.
            success=[self._put_op(), pb.RequestOp(request_range=self._newest(2))],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=self._key))],
            condition=Compare(self._key, 0).build_message(),
        )
        self._revision = answer.header.revision
        if answer.succeeded:
            self._create_revision = answer.header.revision
            self._unsettled = False
            self._settle(list(answer.responses[1].response_range.kvs[1:]), self._join_seconds())
        else:
            self._create_revision = answer.responses[0].response_range.kvs[0].create_revision
            self._unsettled = False
            self._look(self._join_seconds())

    def join_if_free(self, timeout: Timeout = UNSET) -> bool:
        """Put our key only if the queue is empty; one request, which writes nothing otherwise.

        Returns:
            Whether the queue is ours now.
        """
        return self._with_lease(self._send_join_if_free, timeout)

    def _send_join_if_free(self) -> bool:
        queue_is_empty = Compare(self._queue, 0).build_message()
        queue_is_empty.range_end = prefix_range_end(self._queue)
        answer = self._transact(
            success=[self._put_op()],
            failure=[pb.RequestOp(request_range=queue_range(self._queue))],
            condition=queue_is_empty,
        )
        self._revision = answer.header.revision
        if answer.succeeded:
            self._create_revision = answer.header.revision
            self._unsettled = False
            return True
        oldest = answer.responses[0].response_range.kvs[0]
        if oldest.key == self._key:
            # A retry met the key of its first attempt.
            self._create_revision = oldest.create_revision
            self._unsettled = False
            return True
        self._unsettled = False
        return not is_queue_key(self._queue, oldest.key) and self._join_beside_nested()

    def wait(self, timeout: float | None) -> None:
        """Wait until the queue is ours, and prove it.

        Raises:
            TurnTimeout: It took longer than ``timeout`` seconds.
            LeaseLost: Our lease or our key is gone.
            ClosedError: :meth:`abort` was called, or the client was closed.
        """
        if self.first:
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        # What may have been done to our own key already is told, though up to 100 ms late.
        self._watch(self._key, self._revision + 1, self._heed)
        backoff = Backoff(base=0.05, cap=1.0)
        least = _LAST_LOOK_SECONDS
        while not self.first:
            self._follow()
            self._sleep(deadline)
            try:
                self._look(self._look_seconds(deadline, least))
                backoff.reset()
                least = _LAST_LOOK_SECONDS
            except (ConnectionFailed, RequestTimeout):
                # The outage may outlast neither our lease, which is checked above, nor our time.
                left = math.inf if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TurnTimeout from None
                self._engine.channel.pause(min(backoff.next(), left))
                self._wake.set()
                # Nobody told us of a change: no reason to look beyond our time.
                least = 0.0

    def _look_seconds(self, deadline: float | None, least: float) -> float:
        """Return how long a look may take: ``least`` even when the time is just over."""
        seconds = self._engine.config.timeout
        if self._lease is not None:
            seconds = min(seconds, max(self._lease.remaining, least))
        if deadline is None:
            return seconds
        return min(seconds, max(deadline - time.monotonic(), least))

    def own(self) -> Ownership:
        """Return what we own; call it once :attr:`first` is true."""
        lease = self._lease
        if lease is None or not self.first:
            raise LeaseLost(f"{self._what}: not acquired")
        if not lease.alive():
            raise LeaseLost(f"{self._what}: acquired, but the lease has ended since")
        ownership = Ownership(
            self._scope,
            lease,
            self._key,
            self._create_revision,
            self._ttl,
            self._value,
            self._what,
            epoch=self._epoch,
            loss=self._loss,
        )
        self._owned = True
        return ownership

    # -- requests ------------------------------------------------------------------------------

    def _transact(
        self, success: list[pb.RequestOp], failure: list[pb.RequestOp], condition: pb.Compare
    ) -> pb.TxnResponse:
        """Send the joining transaction; a retry of it meets its own key and says so."""
        lease = self._lease
        if lease is None:
            raise LeaseLost(f"{self._what}: no lease")
        request = pb.TxnRequest(compare=[condition], success=success, failure=failure)
        self._unsettled = True
        self._epoch = self._engine.channel.store.epoch
        try:
            return self._engine.channel.unary(
                OWN_TXN,
                request,
                what=self._what,
                timeout=self._join_seconds(),
                on_ambiguous=lease.taint,
            )
        except RequestTimeout as exc:
            raise ConnectionFailed(f"{exc}; the place in the queue is given up") from exc
        except BaseException:
            lease.taint()
            raise

    def _with_lease(self, send: Callable[[], T], timeout: Timeout) -> T:
        keeper = self._engine.keeper
        self._join_by = self._engine.channel.deadline(timeout)
        self._use(keeper.take)
        try:
            return send()
        except LeaseLost:
            # A spare lease can be revoked behind our back; a fresh one settles it.
            if self._lease is not None:
                keeper.drop(self._lease)
            self._unsettled = False
            self._use(keeper.grant)
            return send()

    def _join_seconds(self) -> float | None:
        """Return what is left of the time for joining."""
        if math.isinf(self._join_by):
            return None
        return max(0.0, self._join_by - time.monotonic())

    def _use(self, source: Callable[..., Lease]) -> None:
        try:
            self._lease = source(self._ttl, what=self._what, timeout=self._join_seconds())
        except (RequestTimeout, OutcomeUnknown) as exc:
            raise ConnectionFailed(str(exc)) from exc
        self._key = queue_key(self._queue, self._lease.id)
        self._lease.when_lost(lambda reason: self._wake.set())

    def _put_op(self) -> pb.RequestOp:
        lease = self._lease.id if self._lease is not None else 0
        return pb.RequestOp(
            request_put=pb.PutRequest(key=self._key, value=self._value, lease=lease)
        )

    def _newest(self, limit: int, *, up_to: int = 0) -> pb.RangeRequest:
        return pb.RangeRequest(
            key=self._queue,
            range_end=prefix_range_end(self._queue),
            limit=limit,
            sort_order=pb.RangeRequest.DESCEND,
            sort_target=pb.RangeRequest.CREATE,
            max_create_revision=up_to,
            keys_only=True,
        )

    def _look(self, timeout: float | None) -> None:
        """Read our key and the one before it at one revision: the proof, or whom to wait for.

        One range for both, and no transaction: etcd up to 3.5.4 panics where a read-only one is
        cancelled while it is served, be it by a deadline or by a connection that breaks.
        """
        request = self._newest(2, up_to=self._create_revision)
        epoch = self._engine.channel.store.epoch
        answer = self._engine.channel.unary(RANGE, request, what=self._what, timeout=timeout)
        self._epoch = epoch
        self._revision = answer.header.revision
        own, before = list(answer.kvs[:1]), list(answer.kvs[1:])
        self._check_own_key(own)
        self._settle(before, timeout)

    def _check_own_key(self, found: list[pb.KeyValue]) -> None:
        lease_id = self._lease.id if self._lease is not None else 0
        if not found or found[0].key != self._key:
            raise LeaseLost(f"{self._what}: our place in the queue was deleted")
        if found[0].lease != lease_id:
            raise LeaseLost(f"{self._what}: our place in the queue was overwritten")

    def _settle(self, before: list[pb.KeyValue], timeout: Timeout) -> None:
        """Take the newest key before ours as the predecessor, if it is of this queue at all."""
        if before and not is_queue_key(self._queue, before[0].key):
            # A key of a nested name stands in the way of what a limited read can tell.
            queue = full_queue(self._scope, self._queue, self._what, timeout=timeout)
            before = [kv for kv in reversed(queue) if kv.create_revision < self._create_revision]
        self._predecessor = before[0].key if before else None

    def _join_beside_nested(self) -> bool:
        """The oldest key is of a nested name: read the whole queue, then join and look again.

        "Is the queue empty?" cannot be asked in one condition here, so this join writes and is
        taken back if another was first.
        """
        seconds = self._join_seconds()
        if full_queue(self._scope, self._queue, self._what, timeout=seconds):
            return False
        self._send_join()
        return self.first

    # -- waiting -------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Watch the key before ours, unless that is done already.

        From now on, and not from where it was read: etcd serves a watch that begins in the past,
        be it by one revision, from a loop that runs every 100 ms, and where many contend there is
        always one. What happened before the watch began is for a look to tell.
        """
        if self._predecessor is None:
            return
        if self._ahead is not None:
            if self._followed == self._predecessor and not self._ahead.over:
                return
            self._ahead.cancel()
        self._followed = self._predecessor
        seen = self._revision

        def heed(delivery: Delivery) -> None:
            if isinstance(delivery, Created) and delivery.revision != seen:
                self._wake.set()
            self._heed(delivery)

        self._ahead = self._watch(self._followed, 0, heed)

    def _heed(self, delivery: Delivery) -> None:
        if isinstance(delivery, Ended) and isinstance(delivery.error, ClosedError):
            self._aborted = True
        if isinstance(delivery, (Events, Ended)):
            self._wake.set()

    def _watch(self, key: bytes, start_revision: int, sink: Sink) -> Watch:
        watch = self._engine.hub.watch(key, sink, start_revision=start_revision, epoch=self._epoch)
        self._watches.append(watch)
        return watch

    def _stop_watching(self) -> None:
        for watch in self._watches:
            watch.cancel()

    def _sleep(self, deadline: float | None) -> None:
        lease = self._lease
        while lease is not None:
            if self._aborted:
                raise ClosedError(f"{self._what}: the client is closed")
            if not lease.alive():
                raise LeaseLost(f"{self._what}: the lease was lost while waiting")
            left = lease.remaining
            if deadline is not None:
                left = min(left, deadline - time.monotonic())
            if self._wake.wait(max(left, 0.0)):
                self._wake.clear()
                if self._aborted or not lease.alive():
                    continue
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise TurnTimeout


class _Departure:
    """The end of an acquisition that failed: leaves no key, beside the thread that wanted it.

    Runs on a strand of the engine, one after the other, each until its lease has run out at the
    latest. Held by the client, so that a process that ends at once does not end before it.
    """

    def __init__(
        self, scope: Scope, lease: Lease, key: bytes, create_revision: int, ttl: int
    ) -> None:
        self._scope = scope
        self._engine = scope.engine
        self._lease = lease
        self._key = key
        self._create_revision = create_revision
        self._ttl = ttl
        self._done = threading.Event()

    def begin(self) -> None:
        """Leave the queue, now or soon."""
        with suppress(ClosedError):
            self._scope.hold(self, "leave the queue")
        if not self._engine.departures.post(self._run):
            # The client is closed, which revokes our lease.
            self._done.set()

    def wait(self, seconds: float) -> None:
        """Wait for the end, a moment only, and not at all while etcd is known to be away."""
        if self._engine.channel.connected:
            self._done.wait(seconds)

    def close_with_client(self, timeout: float) -> None:
        """Wait for the end, at most ``timeout`` seconds."""
        self.wait(timeout)

    def _run(self) -> None:
        try:
            self._leave()
        finally:
            self._scope.let_go(self)
            self._done.set()

    def _leave(self) -> None:
        lease, left = self._lease, self._lease.remaining
        if not lease.alive() and not self._engine.channel.connected:
            return
        if self._create_revision and self._delete():
            return
        # A late copy of the request that joined may put the key until the lease is gone.
        if left > 0 and not self._engine.keeper.revoke(lease, timeout=left):
            _log.debug("the place %r in a queue is left to expire", self._key)

    def _delete(self) -> bool:
        try:
            leave_queue(
                self._scope,
                self._lease,
                self._key,
                self._create_revision,
                self._ttl,
                GIVE_UP_SECONDS,
            )
        except EtcdError as exc:
            _log.debug("%s", exc)
            return False
        return True
