"""A queue that is ours, and what a lock and an election have in common.

The key with the smallest create revision owns its queue. An ownership tells when it is lost, and
gives the key back once, by a deletion that is fenced by that revision. Nothing here calls user
code. How the queue is joined: :mod:`contender`.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from . import forking
from .engine import Scope
from .errors import ClosedError, EtcdError, NoSpace
from .events import Event, fields
from .latch import Latch
from .lease import Lease
from .watch import Delivery, Ended, Events, Watch
from .wire import messages as pb
from .wire.channel import Backoff
from .wire.rpc import OWN_TXN, RANGE

_log = logging.getLogger("etcd_core.ownership")

GIVE_UP_SECONDS = 1.0


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
    deadline = time.monotonic() + seconds
    was_alive = lease.alive()
    try:
        answer = engine.channel.unary(
            OWN_TXN, request, what=what, timeout=seconds, on_ambiguous=lease.taint
        )
    except BaseException as exc:
        lease.taint()
        left = max(0.0, deadline - time.monotonic())
        revoked = engine.keeper.revoke(lease, timeout=min(left, GIVE_UP_SECONDS))
        if isinstance(exc, NoSpace) and revoked:
            # 3.5 refuses every transaction without space, but not the revocation.
            return was_alive
        raise
    if not answer.succeeded:
        # Whoever took the key away may have done it by revoking the lease.
        lease.taint()
    engine.keeper.give_back(lease, ttl, timeout=GIVE_UP_SECONDS)
    return answer.succeeded and was_alive


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
        loss: What its loss is called in logs.
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
        loss: Event = Event.LOCK_LOST,
    ) -> None:
        self._epoch = epoch
        self._loss = loss
        self.scope = scope
        self.lease = lease
        self.key = key
        self.token = create_revision
        self.done = Latch()
        self.lost_reason: str | None = None
        self.released = False
        self._left = False
        self._on_lost: Callable[[str], None] | None = None
        # What we put, or may have put, after the revision that is certainly ours.
        self.values: frozenset[bytes] = frozenset({value})
        self._confirmed = create_revision
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

    def expect(self, value: bytes) -> None:
        """Count ``value`` as ours: it is about to be put."""
        self.values |= {value}

    def confirm(self, value: bytes, revision: int) -> None:
        """Note that the key held ``value``, ours, at ``revision``: all before that was ours too."""
        self._confirmed = revision
        self.values = frozenset({value})

    def when_lost(self, callback: Callable[[str], None]) -> None:
        """Call ``callback(reason)`` exactly once when it is lost, or now if it is.

        It runs in whichever thread notices, so it must not block.
        """
        with self._lock:
            reason = self.lost_reason
            if reason is None:
                self._on_lost = callback
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
        try:
            return self._leave(watch, timeout, keep_for)
        except BaseException:
            # Nobody tries again: interrupted at the wrong moment it would be renewed for ever.
            self.scope.engine.keeper.drop(self.lease)
            raise

    def _leave(self, watch: Watch | None, timeout: float | None, keep_for: float) -> bool:
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
            engine.keeper.revoke(lease, timeout=min(limit, GIVE_UP_SECONDS))
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
            self.release(GIVE_UP_SECONDS)
        except EtcdError as exc:
            _log.debug("%s: its key is left to expire: %s", self._what, exc)

    def after_fork_in_child(self) -> None:
        """Report lost in a forked child: it is the parent's."""
        self._lock = threading.Lock()
        if self.lost_reason is None and not self.released:
            self.lost_reason = "forked"
        self.done = Latch()
        self.done.set()

    def _lose(self, reason: str) -> None:
        with self._lock:
            if self.lost_reason is not None or self.released:
                return
            self.lost_reason = reason
            watch = self._guard_watch
            # Forgotten, as it keeps alive what a lease that goes on would keep alive with us.
            tell, self._on_lost = self._on_lost, None
        self.done.set()
        if watch is not None:
            watch.cancel()
        _log.warning(
            "%s: lost: %s",
            self._what,
            reason,
            extra=fields(
                self._loss,
                key=self.key.decode(errors="backslashreplace"),
                token=self.token,
                reason=reason,
            ),
        )
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
            # Ended already by a reset, its successor may be there before us.
            if not watch.over:
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
        elif self._is_foreign(event.kv):
            self._lose("overwritten")

    def _is_foreign(self, kv: pb.KeyValue) -> bool:
        # In this order: a confirmation replaces the values after it has moved the revision.
        return kv.value not in self.values and kv.mod_revision > self._confirmed

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
                if not self._pause(backoff.next()):
                    return
                continue
            self._judge(answer, epoch)
            return

    def _pause(self, seconds: float) -> bool:
        try:
            self.scope.engine.channel.pause(seconds)
        except ClosedError:
            return False
        return True

    def _judge(self, answer: pb.RangeResponse, epoch: int) -> None:
        if not answer.kvs or answer.kvs[0].create_revision != self.token:
            self._lose("deleted")
        elif answer.kvs[0].lease != self.lease.id:
            self._lose("detached")
        elif self._is_foreign(answer.kvs[0]):
            self._lose("overwritten")
        else:
            self._watch_key(answer.header.revision + 1, epoch)


class Owned:
    """What a held lock and a won election have in common. Base of both; any thread.

    Args:
        key: The name, as the caller gave it.
        ownership: The queue that is ours.
    """

    def __init__(self, key: str, ownership: Ownership) -> None:
        self._key = key
        self._ownership = ownership

    @property
    def key(self) -> str:
        """The name, as it was asked for."""
        return self._key

    @property
    def etcd_key(self) -> str:
        """The key in etcd that makes it ours."""
        return self._ownership.key.decode(errors="backslashreplace")

    @property
    def token(self) -> int:
        """The fencing token: grows with every owner of the same name.

        Send it along to an outside resource and let that refuse anything older than it has seen:
        a lease alone cannot stop a process that was paused for longer than its TTL.
        """
        return self._ownership.token

    @property
    def remaining(self) -> float:
        """Seconds it stays ours at least, even if etcd cannot be reached from now on."""
        return self._ownership.remaining

    @property
    def done(self) -> threading.Event:
        """Set when it was given up or lost."""
        return self._ownership.done

    @property
    def lost_reason(self) -> str | None:
        """Why it was lost; None if it was not.

        One of ``expired``, ``revoked``, ``deleted``, ``overwritten``, ``detached`` and ``forked``.
        """
        return self._ownership.lost_reason

    def guard(self) -> Compare:
        """Return the condition "still ours" for a transaction of ``client.raw``."""
        return self._ownership.guard()

    @property
    def _told_already(self) -> bool:
        """Whether the log has said that it is lost and that etcd is away."""
        own = self._ownership
        return own.lost_reason is not None and not own.scope.engine.channel.connected
