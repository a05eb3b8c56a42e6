"""The queue of keys that locks and elections share.

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
from dataclasses import dataclass
from typing import TypeVar

from . import forking
from .config import UNSET, Timeout
from .engine import Scope
from .errors import (
    ClosedError,
    ConnectionFailed,
    EtcdError,
    LeaseLost,
    NoSpace,
    OutcomeUnknown,
    RequestTimeout,
)
from .keys import is_queue_key, prefix_range_end, queue_key
from .lease import Lease
from .watch import Delivery, Ended, Events, Watch
from .wire import messages as pb
from .wire.channel import Backoff
from .wire.rpc import OWN_TXN, RANGE, READ_TXN

_log = logging.getLogger("etcd_core.ownership")

_GIVE_UP_SECONDS = 1.0
_LAST_LOOK_SECONDS = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Compare:
    """A condition "this key is still the one we own", for a transaction of ``client.raw``.

    It is what ``etcd3`` takes in the ``compare`` list of a transaction: while the condition holds
    nobody else can own the lock or the leadership.

    Example:
        >>> client.raw.transaction(
        ...     compare=[lock.guard()],
        ...     success=[client.raw.transactions.put("/shop/report", "done")],
        ...     failure=[],
        ... )
    """

    key: bytes
    create_revision: int

    def build_message(self) -> pb.Compare:
        """Return the wire message; etcd3 calls this."""
        return pb.Compare(
            result=pb.Compare.EQUAL,
            target=pb.Compare.CREATE,
            key=self.key,
            create_revision=self.create_revision,
        )


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
    scope: Scope, queue: bytes, what: str, *, keys_only: bool = True
) -> list[pb.KeyValue]:
    """Return the queue's own keys, oldest first, without those of queues nested under it."""
    request = pb.RangeRequest(
        key=queue,
        range_end=prefix_range_end(queue),
        sort_order=pb.RangeRequest.ASCEND,
        sort_target=pb.RangeRequest.CREATE,
        keys_only=keys_only,
    )
    answer = scope.engine.channel.unary(RANGE, request, what=what)
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
        timeout: Seconds for joining; left out means ``Config.timeout``.
    """

    def __init__(
        self,
        scope: Scope,
        queue: bytes,
        value: bytes,
        ttl: int,
        what: str,
        *,
        timeout: Timeout = UNSET,
    ) -> None:
        self._timeout = timeout
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
        self._epoch = 0
        self._watches: list[Watch] = []

    def __enter__(self) -> Contender:
        """Return the contender."""
        self._scope.hold(self, self._what)
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave the queue unless it is owned."""
        self._scope.let_go(self)
        self._stop_watching()
        if not self._owned and self._lease is not None:
            if self._unsettled:
                self._lease.taint()
            _give_up(self._scope, self._lease, self._key, self._create_revision, self._ttl)

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

    def join(self) -> None:
        """Put our key. One request when a spare lease is at hand.

        Raises:
            ConnectionFailed: Not joined within ``Config.timeout``.
            EtcdError: etcd refused.
        """
        self._with_lease(self._send_join)

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
            self._settle(list(answer.responses[1].response_range.kvs[1:]))
        else:
            self._create_revision = answer.responses[0].response_range.kvs[0].create_revision
            self._unsettled = False
            self._look()

    def join_if_free(self) -> bool:
        """Put our key only if the queue is empty; one request, which writes nothing otherwise.

        Returns:
            Whether the queue is ours now.
        """
        return self._with_lease(self._send_join_if_free)

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
        self._watch(self._key)
        backoff = Backoff(base=0.05, cap=1.0)
        while not self.first:
            predecessor = self._predecessor
            watch = None if predecessor is None else self._watch(predecessor)
            self._sleep(deadline)
            if watch is not None:
                watch.cancel()
            try:
                self._look(self._look_seconds(deadline))
                backoff.reset()
            except (ConnectionFailed, RequestTimeout):
                # The outage may outlast neither our lease, which is checked above, nor our time.
                left = math.inf if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    raise TurnTimeout from None
                self._engine.channel.pause(min(backoff.next(), left))
                self._wake.set()

    def _look_seconds(self, deadline: float | None) -> float:
        """Return how long a look may take: a last one is made even when the time is just over."""
        seconds = self._engine.config.timeout
        if self._lease is not None:
            seconds = min(seconds, max(self._lease.remaining, _LAST_LOOK_SECONDS))
        if deadline is None:
            return seconds
        return min(seconds, max(deadline - time.monotonic(), _LAST_LOOK_SECONDS))

    def own(self) -> Ownership:
        """Return what we own; call it once :attr:`first` is true."""
        lease = self._lease
        if lease is None or not self.first:
            raise LeaseLost(f"{self._what}: not acquired")
        ownership = Ownership(
            self._scope,
            lease,
            self._key,
            self._create_revision,
            self._ttl,
            self._value,
            self._what,
            epoch=self._epoch,
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
                timeout=self._timeout,
                on_ambiguous=lease.taint,
            )
        except RequestTimeout as exc:
            raise ConnectionFailed(f"{exc}; the place in the queue is given up") from exc
        except BaseException:
            lease.taint()
            raise

    def _with_lease(self, send: Callable[[], T]) -> T:
        keeper = self._engine.keeper
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

    def _use(self, source: Callable[..., Lease]) -> None:
        try:
            self._lease = source(self._ttl, what=self._what, timeout=self._timeout)
        except (RequestTimeout, OutcomeUnknown) as exc:
            raise ConnectionFailed(str(exc)) from exc
        self._key = queue_key(self._queue, self._lease.id)
        self._lease.when_lost(lambda reason: self._wake.set())

    def _put_op(self) -> pb.RequestOp:
        lease = self._lease.id if self._lease is not None else 0
        return pb.RequestOp(
            request_put=pb.PutRequest(key=self._key, value=self._value, lease=lease)
        )

    def _newest(self, limit: int, *, before: int = 0) -> pb.RangeRequest:
        return pb.RangeRequest(
            key=self._queue,
            range_end=prefix_range_end(self._queue),
            limit=limit,
            sort_order=pb.RangeRequest.DESCEND,
            sort_target=pb.RangeRequest.CREATE,
            max_create_revision=before - 1 if before else 0,
            keys_only=True,
        )

    def _look(self, timeout: Timeout = UNSET) -> None:
        """Read our key and the one before it at one revision: the proof, or whom to wait for."""
        request = pb.TxnRequest(
            success=[
                pb.RequestOp(request_range=self._newest(1, before=self._create_revision)),
                pb.RequestOp(request_range=pb.RangeRequest(key=self._key)),
            ]
        )
        epoch = self._engine.channel.store.epoch
        answer = self._engine.channel.unary(READ_TXN, request, what=self._what, timeout=timeout)
        self._epoch = epoch
        self._revision = answer.header.revision
        self._check_own_key(list(answer.responses[1].response_range.kvs))
        self._settle(list(answer.responses[0].response_range.kvs))

    def _check_own_key(self, found: list[pb.KeyValue]) -> None:
        lease_id = self._lease.id if self._lease is not None else 0
        if not found or found[0].create_revision != self._create_revision:
            raise LeaseLost(f"{self._what}: our place in the queue was deleted")
        if found[0].lease != lease_id:
            raise LeaseLost(f"{self._what}: our place in the queue was overwritten")

    def _settle(self, before: list[pb.KeyValue]) -> None:
        """Take the newest key before ours as the predecessor, if it is of this queue at all."""
        if before and not is_queue_key(self._queue, before[0].key):
            # A key of a nested name stands in the way of what a limited read can tell.
            queue = full_queue(self._scope, self._queue, self._what)
            before = [kv for kv in reversed(queue) if kv.create_revision < self._create_revision]
        self._predecessor = before[0].key if before else None

    def _join_beside_nested(self) -> bool:
        """The oldest key is of a nested name: read the whole queue, then join and look again.

        "Is the queue empty?" cannot be asked in one condition here, so this join writes and is
        taken back if another was first.
        """
        if full_queue(self._scope, self._queue, self._what):
            return False
        self._send_join()
        return self.first

    # -- waiting -------------------------------------------------------------------------------

    def _watch(self, key: bytes) -> Watch:
        def wake(delivery: Delivery) -> None:
            if isinstance(delivery, Ended) and isinstance(delivery.error, ClosedError):
                self._aborted = True
            if isinstance(delivery, (Events, Ended)):
                self._wake.set()

        watch = self._engine.hub.watch(
            key, wake, start_revision=self._revision + 1, epoch=self._epoch
        )
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


def leave_queue(
    scope: Scope, lease: Lease, key: bytes, create_revision: int, ttl: int, timeout: float | None
) -> bool:
    """Delete our key, only ours, and give the lease back; return whether the key was still ours.

    One request: the deletion is fenced by the create revision, so it is safe to repeat and can
    never delete another acquisition's key. Where it cannot be confirmed the lease is revoked, and
    where that fails too the key goes with the lease.

    Raises:
        EtcdError: Neither was confirmed.
    """
    engine = scope.engine
    lease.forget_callbacks()
    request = pb.TxnRequest(
        compare=[Compare(key, create_revision).build_message()],
        success=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))],
    )
    what = f"release {key.decode(errors='backslashreplace')!r}"
    seconds = engine.config.timeout if timeout is None else timeout
    was_alive = lease.alive()
    try:
        answer = engine.channel.unary(
            OWN_TXN, request, what=what, timeout=seconds, on_ambiguous=lease.taint
        )
    except BaseException as exc:
        lease.taint()
        revoked = engine.keeper.revoke(lease, timeout=min(seconds, _GIVE_UP_SECONDS))
        if isinstance(exc, NoSpace) and revoked:
            # 3.5 refuses every transaction without space, but not the revocation.
            return was_alive
        raise
    if not answer.succeeded:
        # Whoever took the key away may have done it by revoking the lease.
        lease.taint()
    engine.keeper.give_back(lease, ttl, timeout=_GIVE_UP_SECONDS)
    return answer.succeeded and was_alive


def _give_up(scope: Scope, lease: Lease, key: bytes, create_revision: int, ttl: int) -> None:
    """Leave no key of an acquisition that failed. Errors are not the caller's concern any more."""
    try:
        seconds = min(_GIVE_UP_SECONDS, scope.engine.config.timeout)
        if create_revision == 0:
            scope.engine.keeper.give_back(lease, ttl, timeout=seconds)
        else:
            leave_queue(scope, lease, key, create_revision, ttl, seconds)
    except EtcdError as exc:
        _log.debug("a place in the queue is left to expire: %s", exc)


class Ownership:
    """A queue that is ours: tells when it is lost, and gives it back once.

    Loss is told by the lease (its deadline, a revocation) and by a watch on our key (deleted,
    overwritten or detached by someone else). The watch starts when the ownership has lasted a
    quarter of a second, at the revision after our key's, so it misses nothing and short ownerships
    cost no request for it.

    Args:
        scope: The client's scope.
        lease: Our private lease.
        key: Our key.
        create_revision: Its create revision: the fencing token.
        ttl: The TTL asked for.
        value: What the key holds.
        what: The operation and key, for errors.
        epoch: The store's epoch before our key was put: a reset since then must not be missed.
    """

    def __init__(
        self,
        scope: Scope,
        lease: Lease,
        key: bytes,
        create_revision: int,
        ttl: int,
        value: bytes,
        what: str,
        *,
        epoch: int,
    ) -> None:
        self._epoch = epoch
        self.scope = scope
        self.lease = lease
        self.key = key
        self.token = create_revision
        self.done = threading.Event()
        self.lost_reason: str | None = None
        self.released = False
        self._left = False
        self._on_lost: Callable[[str], None] | None = None
        self.values = {value}
        self._ttl = ttl
        self._what = what
        self._lock = threading.Lock()
        self._guard_watch: Watch | None = None
        forking.track(self)
        lease.when_lost(self._lose)
        scope.engine.keeper.call_when_settled(self._start_guard)

    @property
    def held(self) -> bool:
        """Whether it is certainly still ours, computed from the clock. No I/O, no lock."""
        return self.lost_reason is None and not self.released and self.lease.alive()

    @property
    def remaining(self) -> float:
        """Seconds until it may be somebody else's, if no renewal is answered any more."""
        return self.lease.remaining if self.held else 0.0

    def guard(self) -> Compare:
        """Return the condition "still ours"."""
        return Compare(self.key, self.token)

    def when_lost(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(reason)`` exactly once when it is lost, or now if it is.

        It runs in whichever thread notices, so it must not block.
        """
        with self._lock:
            self._on_lost = callback
            reason = self.lost_reason
        if reason is not None:
            callback(reason)

    def release(self, timeout: float | None = None, *, keep_for: float = 0.0) -> bool:
        """Give it back; return whether it was ours until now. The second call does nothing.

        With ``keep_for`` the key is not deleted but handed to a lease of so many seconds, which
        nobody renews: others stay out until then.

        Raises:
            EtcdError: etcd could not be told; it is free when the lease expires.
        """
        self.begin_release()
        with self._lock:
            if self._left:
                return False
            self._left = True
            watch = self._guard_watch
        if self.lost_reason == "forked":
            # The watch and its locks are the parent's.
            return False
        if watch is not None:
            watch.cancel()
        lost = self.lost_reason is not None
        if keep_for > 0 and not lost:
            return self._hand_over(keep_for, timeout)
        kept = leave_queue(self.scope, self.lease, self.key, self.token, self._ttl, timeout)
        return kept and not lost

    def _hand_over(self, seconds: float, timeout: float | None) -> bool:
        """Put the key under a lease of its own; its create revision, and so its place, stays."""
        engine, own = self.scope.engine, self.lease
        limit = engine.config.timeout if timeout is None else timeout
        own.forget_callbacks()
        was_alive = own.alive()
        try:
            rest = engine.keeper.grant(math.ceil(seconds), what=self._what, timeout=limit)
            engine.keeper.drop(rest)
            put = pb.PutRequest(key=self.key, ignore_value=True, lease=rest.id)
            request = pb.TxnRequest(
                compare=[self.guard().build_message()],
                success=[pb.RequestOp(request_put=put)],
            )
            answer = engine.channel.unary(OWN_TXN, request, what=self._what, timeout=limit)
        except BaseException:
            # Not revoked: the key, if it is still there, keeps others out until our lease ends.
            engine.keeper.drop(own)
            raise
        # Our lease never returns to the pool: whoever took it would find its key there, as its own.
        for lease in (own,) if answer.succeeded else (own, rest):
            engine.keeper.revoke(lease, timeout=min(limit, _GIVE_UP_SECONDS))
        return answer.succeeded and was_alive

    def begin_release(self) -> bool:
        """Count as given up from now on; return whether this call was the first to say so."""
        with self._lock:
            if self.released:
                return False
            self.released = True
        self.done.set()
        return True

    def abandon_from_finalizer(self) -> bool:
        """Let it go because nobody refers to it any more; return whether it was still ours.

        The garbage collector may run this in the middle of anything, with any lock held, so all it
        does is to post a note.
        """
        if self.released or self.lost_reason == "forked":
            return False
        held = self.lost_reason is None
        self.released = True
        self.scope.engine.keeper.call_from_finalizer(self._abandon)
        return held

    def _abandon(self) -> None:
        self.done.set()
        if self.lost_reason is not None:
            # What a third party made of our key may outlive the lease: it must be deleted.
            self.scope.engine.dispatcher.strand(self._what).post(self._leave_lost)
            return
        self.lease.forget_callbacks()
        self.scope.engine.keeper.drop(self.lease)
        with self._lock:
            watch = self._guard_watch
        if watch is not None:
            watch.cancel()

    def _leave_lost(self) -> None:
        try:
            self.release(_GIVE_UP_SECONDS)
        except EtcdError as exc:
            _log.debug("%s: its key is left to expire: %s", self._what, exc)

    def after_fork_in_child(self) -> None:
        """Report lost in a forked child: it is the parent's."""
        self._lock = threading.Lock()
        if self.lost_reason is None and not self.released:
            self.lost_reason = "forked"
        self.done = threading.Event()
        self.done.set()

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self.lost_reason is not None or self.released:
                return
            self.lost_reason = reason
            watch = self._guard_watch
            tell = self._on_lost
        self.done.set()
        if watch is not None:
            watch.cancel()
        _log.warning("%s: lost: %s", self._what, reason)
        if tell is not None:
            tell(reason)

    def _start_guard(self) -> None:
        if not self.done.is_set():
            self._watch_key(self.token + 1, self._epoch)

    def _watch_key(self, revision: int, epoch: int) -> None:
        try:
            watch = self.scope.engine.hub.watch(
                self.key, self._on_delivery, start_revision=revision, epoch=epoch
            )
        except ClosedError:
            return
        with self._lock:
            self._guard_watch = watch
        if self.done.is_set():
            watch.cancel()

    def _on_delivery(self, delivery: Delivery) -> None:
        if isinstance(delivery, Events):
            for event in delivery.events:
                self._on_event(event)
        elif isinstance(delivery, Ended) and not isinstance(delivery.error, ClosedError):
            self._on_guard_ended()

    def _on_event(self, event: pb.Event) -> None:
        if event.type == pb.Event.DELETE:
            self._lose("deleted")
        elif event.kv.lease != self.lease.id:
            self._lose("detached")
        elif event.kv.value not in self.values:
            self._lose("overwritten")

    def _on_guard_ended(self) -> None:
        # Compacted under an interrupted watch, or the store was reset: the key itself tells. Off
        # the watch thread, since it takes a request.
        self.scope.engine.dispatcher.strand(self._what).post(self._look_at_key)

    def _look_at_key(self) -> None:
        backoff = Backoff(base=0.1, cap=2.0)
        channel = self.scope.engine.channel
        while self.held:
            epoch = channel.store.epoch
            try:
                answer = channel.unary(RANGE, pb.RangeRequest(key=self.key), what=self._what)
            except ClosedError:
                return
            except EtcdError:
                channel.pause(backoff.next())
                continue
            self._judge(answer, epoch)
            return

    def _judge(self, answer: pb.RangeResponse, epoch: int) -> None:
        if not answer.kvs or answer.kvs[0].create_revision != self.token:
            self._lose("deleted")
        elif answer.kvs[0].lease != self.lease.id:
            self._lose("detached")
        else:
            self._watch_key(answer.header.revision + 1, epoch)
