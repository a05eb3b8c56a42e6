"""Service registration: puts a :class:`Descriptor` into etcd and sees to it that it stays there.

A registration is a key under a lease of its own. The watch and the keep-alive thread only report to
it; repairs run on a few dispatcher strands per engine. Rules: semantics section 7, R1 to R7.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from typing_extensions import Self

from . import forking, signals
from .config import UNSET, Timeout
from .descriptor import Descriptor
from .dispatch import Strand
from .engine import Engine, Scope
from .errors import (
    AlreadyRegistered,
    ClosedError,
    Conflict,
    DecodeError,
    EtcdError,
    InvalidArgument,
    LeaseLost,
    OutcomeUnknown,
    RequestTimeout,
)
from .events import Event, fields
from .keys import service_key
from .lease import Lease, normalise_ttl
from .vitals import RegistrationVitals, track
from .watch import Created, Delivery, Ended, Events, Watch
from .wire import messages as pb
from .wire.channel import Backoff
from .wire.rpc import OWN_TXN, RANGE, TXN

_log = logging.getLogger("etcd_core.registry")

__all__ = ["Descriptor", "OnConflict", "Registration", "register"]

OnConflict: TypeAlias = Literal["takeover", "raise"]

DEFAULT_TTL = 15.0

_MAX_STEPS = 8
_REPAIR_SECONDS = 3.0
_TIDY_SECONDS = 1.0
_CALM_SECONDS = 30.0
_LANES = 4


@dataclass(frozen=True)
class _Stored:
    """What the key held at a revision; a missing key has no value and mod revision 0."""

    revision: int
    value: bytes | None = None
    lease: int = 0
    mod: int = 0
    create: int = 0

    @classmethod
    def of(cls, revision: int, kv: pb.KeyValue | None) -> _Stored:
        if kv is None:
            return cls(revision)
        return cls(revision, kv.value, kv.lease, kv.mod_revision, kv.create_revision)


class Registration:
    """A service instance in the registry, kept there until :meth:`deregister`. Thread-safe.

    ::

        register -> in place <-> lost, being repaired (key deleted, overwritten or without its
                       |   |     lease; lease lost; etcd restarted empty)
                       |   `---> replaced: another live process holds the id. Final.
                       `-------> deregistered. Final.

    After ``fork()`` it stays the parent's: in the child it is not registered, and ending it there
    does nothing. A context manager: leaving it deregisters.
    """

    def __init__(
        self, scope: Scope, info: Descriptor, ttl: int, key: str, lease: Lease, what: str
    ) -> None:
        self._scope = scope
        self._engine = scope.engine
        self._ttl = ttl
        self._key = key.encode()
        self._what = what
        self._lane = _lane(scope.engine)
        # Guards the fields below; held for moments only, never during a request or a callback.
        self._lock = threading.Lock()
        self._info = info
        self._value = info.encode()
        self._lease = lease
        self._former: list[Lease] = []
        self._stored = _Stored(0)
        self._create = 0
        self._blind = False
        self._unsettled = False
        self._sending = False
        self._lost = False
        self._complained = False
        self._over: Literal["replaced", "deregistered", "failed", "forked"] | None = None
        self._watch: Watch | None = None
        # Counts the watches that ended; written where their end is delivered.
        self._generation = 0
        self._backoff = Backoff(base=0.05, cap=10.0)
        self._last_alarm = -math.inf
        self._alarm = 0
        self._alarm_set = False
        # Whose turn it is to write the key: a repair's or an update's.
        self._turn = threading.Lock()
        self._finished = threading.Event()
        self._failure: EtcdError | None = None
        forking.track(self)

    # -- what users see ------------------------------------------------------------------------

    @property
    def info(self) -> Descriptor:
        """What is registered, with the updates made so far."""
        return self._info

    @property
    def lease_id(self) -> int:
        """The lease that the key hangs on now; a repair may change it."""
        return self._lease.id

    @property
    def registered(self) -> bool:
        """Whether the key is in place as far as this process knows, and its lease alive. No I/O."""
        return self._over is None and not self._lost and self._verdict() in (None, "outdated")

    def update(
        self,
        address: str | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: Timeout = UNSET,
    ) -> None:
        """Change the address or the metadata, under the same lease and without a gap. Blocks.

        While the registration is being repaired, this sets what the repair writes and returns. It
        never overwrites a process that has taken over the id.

        Args:
            address: The new address; None keeps it.
            metadata: The new metadata, all of it; None keeps it.
            timeout: Seconds for the request.

        Raises:
            InvalidArgument: The new value is unusable; nothing changed.
            ClosedError: It was deregistered, or belongs to the parent process.
            Conflict: Another live process holds the id.
            OutcomeUnknown: No answer; the new value is written as soon as etcd answers again.
            EtcdError: etcd could not be reached or refused; the old value stays.
        """
        deadline = self._engine.channel.deadline(timeout)
        self._changed(address, metadata).validate()
        self._check_usable()
        if self._lost:
            self._want(self._changed(address, metadata))
            self._wake(at_once=True)
            return
        if not self._turn.acquire(timeout=_lock_seconds(deadline)):
            raise RequestTimeout(f"{self._what}: update: another update took too long")
        try:
            self._update(address, metadata, deadline)
        finally:
            self._turn.release()
            # Failed with an unknown outcome, or a repair was turned away meanwhile.
            if self._blind or self._verdict() is not None:
                self._wake()

    def deregister(self, timeout: Timeout = UNSET) -> None:
        """Take the instance out of the registry. Blocks; idempotent.

        When it returns, the key is gone; a successor's is never touched, and nothing brings ours
        back. Callers beside or after the first one wait for its result and get the same.

        Args:
            timeout: Seconds for the request.

        Raises:
            EtcdError: etcd could not be told. The lease is not renewed any more, so the instance
                goes when it expires.
        """
        self._end(timeout, closing=False)

    def close_with_client(self, timeout: float) -> None:
        """Deregister because the client is closed."""
        self._end(timeout, closing=True)

    def __enter__(self) -> Self:
        """Return the registration."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Deregister; a failure to tell etcd is logged, not raised over the body's result."""
        try:
            self.deregister()
        except EtcdError as exc:
            _log.warning(
                "%s: left to expire: %s",
                self._what,
                exc,
                extra=fields(
                    Event.RELEASE_FAILED,
                    kind="registration",
                    name=self._key.decode(),
                    reason=str(exc),
                ),
            )

    def __repr__(self) -> str:
        """Return the key and whether it is in place."""
        state = self._over or ("registered" if self.registered else "being repaired")
        return f"<Registration {self._key.decode()!r} {state}>"

    def after_fork_in_child(self) -> None:
        """Become nobody's: the key and the lease are the parent's."""
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._finished = threading.Event()
        self._failure = None
        self._over = "forked"

    # -- entering ------------------------------------------------------------------------------

    def enter(self, on_conflict: OnConflict, deadline: float) -> None:
        """Put the key in place for the first time and begin to look after it. Internal."""
        epoch = self._engine.channel.store.epoch
        self._claim(on_conflict, deadline)
        self._scope.hold(self, self._what)
        # From the revision after our key's, so it misses nothing, and a registration that is soon
        # over costs no watch.
        revision = self._stored.revision + 1
        self._engine.keeper.call_when_settled(lambda: self._begin_to_follow(revision, epoch))
        self._tell_when_lost(self._lease)
        track(self)
        self._scope.announce(signals.service_registered, self, info=self._info, repaired=False)

    def tell_vitals(self) -> RegistrationVitals | None:
        """Tell how it is; None where it has ended, unless another process ended it."""
        if self._over not in (None, "replaced"):
            return None
        info, lease = self._info, self._lease
        return RegistrationVitals(
            info.name, info.id, info.address, self.registered, max(0.0, lease.remaining)
        )

    def abandon(self, *, untouched: bool) -> None:
        """Leave nothing behind: entering failed. Internal; takes about a second at most.

        Args:
            untouched: Our key was certainly not put, so the lease may serve another.
        """
        with self._lock:
            self._over = "failed"
            lease, former = self._lease, [*self._former]
        self._scope.let_go(self)
        self._unfollow()
        for old in (*former, lease):
            # Whatever is still on its way to etcd, or there already, goes with its lease.
            if not untouched:
                old.taint()
            self._engine.keeper.give_back(old, self._ttl, timeout=_TIDY_SECONDS)

    def _claim(self, on_conflict: OnConflict, deadline: float) -> None:
        guard = None if on_conflict == "takeover" else 0
        for _ in range(_MAX_STEPS):
            self._write(guard, deadline)
            if self._is_ours():
                self._tidy()
                return
            if guard is not None:
                self._refuse_if_held()
                guard = self._stored.mod
        raise Conflict(f"{self._what}: its key or its lease changes all the time")

    def _refuse_if_held(self) -> None:
        """Raise if a live process holds the id; a leftover without a lease is nobody's."""
        stored = self._stored
        holder = self._decoded(stored)
        if holder is not None and stored.lease:
            raise AlreadyRegistered(
                f"{self._what}: the id {self._info.id!r} is held by {holder.address!r}"
                f" under lease {stored.lease:x}"
            )

    # -- the watch thread and the keep-alive thread: report, never block -----------------------

    def _on_delivery(self, delivery: Delivery, generation: int) -> None:
        if generation != self._generation:
            # Held up on its way past the end of its watch: an event of another store perhaps,
            # whose revisions would make every later one look old.
            return
        if isinstance(delivery, Events):
            event = delivery.events[-1]
            kv = event.kv if event.type == pb.Event.PUT else None
            self._learn(_Stored.of(event.kv.mod_revision, kv))
            if self._verdict() is not None:
                self._wake()
        elif isinstance(delivery, Created):
            if self._lost:
                self._wake(at_once=True)
        elif isinstance(delivery, Ended) and not isinstance(delivery.error, ClosedError):
            self._generation += 1
            self._blind = True
            self._wake()

    def _on_lease_lost(self, lease: Lease, reason: str) -> None:
        if lease is self._lease:
            self._note_loss(f"lease {reason}")
            self._wake()

    def _tell_when_lost(self, lease: Lease) -> None:
        lease.when_lost(lambda reason: self._on_lease_lost(lease, reason))

    def _wake(self, *, at_once: bool = False) -> None:
        """Have the lane look after the key soon: later and later while that does not last."""
        with self._lock:
            if self._over is not None or (self._alarm_set and not at_once):
                return
            self._alarm_set = True
            self._alarm += 1
            alarm = self._alarm
            now = time.monotonic()
            if now - self._last_alarm > _CALM_SECONDS:
                self._backoff.reset()
            self._last_alarm = now
            delay = 0.0 if at_once else self._backoff.next()
        self._engine.keeper.call_later(delay, lambda: self._ring(alarm))

    def _ring(self, alarm: int) -> None:
        with self._lock:
            if alarm != self._alarm or self._over is not None:
                return
            self._alarm_set = False
        self._lane.post(self._look_after)

    # -- the lane ------------------------------------------------------------------------------

    def _look_after(self) -> None:
        """Make etcd hold what we want; on failure come back later, for ever."""
        if not self._turn.acquire(blocking=False):
            return  # an update is under way, and looks again when it is done
        try:
            self._settle(time.monotonic() + _REPAIR_SECONDS)
        except ClosedError:
            return
        except EtcdError as exc:
            self._complain(exc)
            self._wake()
        except Exception:
            _log.exception(
                "%s: looking after it failed; trying again",
                self._what,
                extra=fields(Event.INTERNAL_ERROR, part="registration"),
            )
            self._wake()
        finally:
            self._turn.release()

    def _complain(self, exc: EtcdError) -> None:
        if exc.retryable or exc.outcome_unknown or self._complained:
            _log.debug("%s: trying again: %s", self._what, exc)
            return
        self._complained = True
        _log.warning(
            "%s: cannot be repaired yet, trying again: %s",
            self._what,
            exc,
            extra=self._fields(Event.REGISTRATION_FAILING, str(exc)),
        )

    def _fields(self, event: Event, reason: str | None) -> dict[str, object]:
        info = self._info
        return fields(event, service=info.name, id=info.id, reason=reason)

    # -- whoever has the turn ------------------------------------------------------------------

    def _settle(self, deadline: float) -> None:
        for _ in range(_MAX_STEPS):
            self._check_open()
            if self._blind:
                self._read(deadline)
            verdict = self._verdict()
            if verdict is None:
                self._settled()
                return
            if verdict == "replaced":
                self._replaced()
                return
            if verdict != "outdated":
                self._note_loss(verdict)
            self._write(self._stored.mod, deadline)
        raise Conflict(f"{self._what}: its key or its lease changes all the time")

    def _verdict(self) -> str | None:
        """Return what is wrong with the key as far as known; None if nothing is."""
        stored, lease = self._stored, self._lease
        ours = {lease.id, *(old.id for old in self._former)}
        if stored.lease and stored.lease not in ours and self._decoded(stored) is not None:
            return "replaced"
        if not lease.alive():
            return f"lease {lease.lost_reason}"
        if stored.value is None:
            return "deleted"
        if stored.lease == 0:
            return "detached from its lease"
        if stored.lease != lease.id:
            return "overwritten"
        if stored.value == self._value:
            return None
        return "outdated" if self._unsettled else "overwritten"

    def _is_ours(self) -> bool:
        return self._stored.lease == self._lease.id and self._stored.value == self._value

    def _decoded(self, stored: _Stored) -> Descriptor | None:
        try:
            return None if stored.value is None else Descriptor.decode(stored.value, "")
        except DecodeError:
            return None

    def _learn(self, stored: _Stored) -> None:
        """Take in what the key holds, unless something newer is known."""
        with self._lock:
            if stored.revision >= self._stored.revision:
                self._stored = stored

    def _read(self, deadline: float) -> None:
        """Read the key and watch it from there: the watch has ended."""
        channel = self._engine.channel
        epoch = channel.store.epoch
        answer = channel.unary(
            RANGE, pb.RangeRequest(key=self._key), what=self._what, timeout=_seconds(deadline)
        )
        with self._lock:
            # Not _learn: after a reset of the store, revisions begin anew.
            self._stored = _Stored.of(answer.header.revision, answer.kvs[0] if answer.kvs else None)
            self._blind = False
        self._follow(answer.header.revision + 1, epoch)

    def _begin_to_follow(self, revision: int, epoch: int) -> None:
        if self._over is None and not self._blind and self._watch is None:
            try:
                self._follow(revision, epoch)
            except ClosedError:
                return

    def _follow(self, revision: int, epoch: int) -> None:
        generation = self._generation
        watch = self._engine.hub.watch(
            self._key,
            lambda delivery: self._on_delivery(delivery, generation),
            start_revision=revision,
            epoch=epoch,
        )
        with self._lock:
            self._watch = watch
        if self._over is not None:
            watch.cancel()

    def _unfollow(self) -> None:
        with self._lock:
            watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    def _write(self, guard: int | None, deadline: float) -> None:
        """Put the key if its mod revision is ``guard`` (None: whatever it is), else read it."""
        lease = self._living_lease(deadline)
        put = pb.PutRequest(key=self._key, value=self._value, lease=lease.id, prev_kv=True)
        request = pb.TxnRequest(
            compare=[] if guard is None else [_compare_mod(self._key, guard)],
            success=[pb.RequestOp(request_put=put)],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=self._key))],
        )
        try:
            answer = self._send(lease, request, deadline)
        except LeaseLost:
            # etcd forgot the lease before we did: the next step takes another.
            lease.lose("revoked")
            return
        self._take_in(answer, put)

    def _take_in(self, answer: pb.TxnResponse, put: pb.PutRequest) -> None:
        revision = answer.header.revision
        if not answer.succeeded:
            kvs = answer.responses[0].response_range.kvs
            self._learn(_Stored.of(revision, kvs[0] if kvs else None))
            return
        # A put over a present key keeps its create revision.
        create = answer.responses[0].response_put.prev_kv.create_revision or revision
        self._create = create
        self._learn(_Stored(revision, put.value, put.lease, revision, create))

    def _living_lease(self, deadline: float) -> Lease:
        if self._lease.alive():
            return self._lease
        keeper = self._engine.keeper
        fresh = keeper.take(self._ttl, what=self._what, timeout=_seconds(deadline))
        with self._lock:
            adopted = self._over is None
            if adopted:
                # The key may hang on the old one still, where only we think it dead.
                self._former.append(self._lease)
                self._lease = fresh
        if not adopted:
            keeper.give_back(fresh, self._ttl, timeout=_TIDY_SECONDS)
            self._check_open()
        self._tell_when_lost(fresh)
        return fresh

    def _send(self, lease: Lease, request: pb.TxnRequest, deadline: float) -> pb.TxnResponse:
        with self._lock:
            self._check_open()
            self._sending = True
        try:
            return self._engine.channel.unary(
                # An update's caller is told when its outcome is unknown; an entry that fails is
                # undone with its lease, and a repair goes on.
                TXN if self._unsettled else OWN_TXN,
                request,
                what=self._what,
                timeout=_seconds(deadline),
                idempotent=True,
                on_ambiguous=lease.taint,
            )
        except EtcdError:
            raise
        except BaseException:
            # Interrupted: it may still be executed.
            lease.taint()
            raise
        finally:
            self._sending = False

    def _settled(self) -> None:
        with self._lock:
            repaired, self._lost = self._lost, False
            self._unsettled = self._complained = False
            info = self._info
        self._tidy()
        if repaired:
            _log.warning(
                "%s: registered again",
                self._what,
                extra=self._fields(Event.REGISTRATION_RESTORED, None),
            )
            self._scope.announce(signals.service_registered, self, info=info, repaired=True)

    def _tidy(self) -> None:
        """Revoke the leases the key hung on before; only now, so that watchers see no removal."""
        with self._lock:
            former, self._former = self._former, []
        for lease in former:
            if lease.lost_reason == "revoked":
                self._engine.keeper.drop(lease)
            else:
                self._engine.keeper.revoke(lease, timeout=_TIDY_SECONDS)

    def _note_loss(self, reason: str) -> None:
        with self._lock:
            if self._lost or self._over is not None:
                return
            self._lost = True
            info = self._info
        _log.warning(
            "%s: lost (%s); registering again",
            self._what,
            reason,
            extra=self._fields(Event.REGISTRATION_LOST, reason),
        )
        self._scope.announce(signals.registration_lost, self, info=info, reason=reason)

    def _replaced(self) -> None:
        with self._lock:
            if self._over is not None:
                return
            self._over = "replaced"
            lease, info = self._lease, self._info
        _log.warning(
            "%s: another live process has taken the id; not repaired",
            self._what,
            extra=self._fields(Event.REGISTRATION_REPLACED, "replaced"),
        )
        self._scope.announce(signals.registration_lost, self, info=info, reason="replaced")
        self._scope.let_go(self)
        self._unfollow()
        # The successor's key hangs on another lease, so ending ours cannot take it away.
        self._tidy()
        self._engine.keeper.give_back(lease, self._ttl, timeout=_TIDY_SECONDS)

    # -- updating ------------------------------------------------------------------------------

    def _changed(self, address: str | None, metadata: Mapping[str, str] | None) -> Descriptor:
        info = self._info
        return replace(
            info,
            address=info.address if address is None else address,
            metadata=info.metadata if metadata is None else metadata,
        )

    def _want(self, info: Descriptor, *, unsettled: bool = True) -> tuple[Descriptor, bool]:
        """Set what the key is to hold; return what it was, and whether that was unsettled."""
        with self._lock:
            before = self._info, self._unsettled
            self._info = info
            self._value = info.encode()
            self._unsettled = unsettled
        return before

    def _update(
        self, address: str | None, metadata: Mapping[str, str] | None, deadline: float
    ) -> None:
        before, unsettled = self._want(self._changed(address, metadata))
        try:
            self._settle(deadline)
        except EtcdError as exc:
            self._check_usable()
            if self._lost:
                return  # the repair goes on and writes it
            if not exc.outcome_unknown:
                self._want(before, unsettled=unsettled)
            raise
        self._check_usable()

    def _check_usable(self) -> None:
        if self._over == "replaced":
            raise Conflict(f"{self._what}: another live process holds the id")
        self._check_open()

    def _check_open(self) -> None:
        if self._over is not None:
            raise ClosedError(f"{self._what}: the registration has ended ({self._over})")

    # -- leaving -------------------------------------------------------------------------------

    def _end(self, timeout: Timeout, *, closing: bool) -> None:
        with self._lock:
            mine = self._over is None
            if mine:
                self._over = "deregistered"
        if mine:
            self._finish(self._engine.channel.deadline(timeout), closing)
        elif self._over == "deregistered":
            deadline = self._engine.channel.deadline(timeout)
            if not self._finished.wait(_seconds(deadline)):
                raise RequestTimeout(f"{self._what}: deregister: still under way")
        if self._failure is not None:
            raise self._failure

    def _finish(self, deadline: float, closing: bool) -> None:
        try:
            self._leave(deadline, closing)
        except EtcdError as exc:
            self._failure = exc
        except BaseException:
            self._failure = OutcomeUnknown(f"{self._what}: deregister was interrupted")
            raise
        else:
            self._scope.announce(signals.service_deregistered, self, info=self._info)
        finally:
            if self._failure is not None:
                self._drop_leases()
            self._finished.set()

    def _leave(self, deadline: float, closing: bool) -> None:
        self._scope.let_go(self)
        self._unfollow()
        with self._lock:
            lease, former = self._lease, [*self._former]
            doubtful = lease.tainted or self._sending
            in_place = self._is_ours() and not doubtful
        lease.forget_callbacks()
        # A write that is under way, or went unanswered, must not come after our delete.
        for old in [*former, lease] if doubtful or closing else former:
            self._revoke(old, deadline)
        # A client that closes has no use for the lease, and the key went with it: one request.
        if not (closing and in_place):
            self._delete(lease, deadline)
        if not (doubtful or closing):
            self._engine.keeper.give_back(lease, self._ttl, timeout=_seconds(deadline))

    def _drop_leases(self) -> None:
        """Renew nothing of ours any more: nobody tries again to take it out."""
        for lease in (*self._former, self._lease):
            self._engine.keeper.drop(lease)

    def _revoke(self, lease: Lease, deadline: float) -> None:
        if not self._engine.keeper.revoke(lease, timeout=_seconds(deadline)):
            raise OutcomeUnknown(
                f"{self._what}: deregister: etcd could not be told; the instance goes when its"
                f" lease expires, within {lease.ttl} s"
            )

    def _delete(self, lease: Lease, deadline: float) -> None:
        """Delete the key if it hangs on our lease, or on none since somebody overwrote ours."""
        delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=self._key))
        overwritten = pb.TxnRequest(
            compare=[_compare_lease(self._key, 0), _compare_create(self._key, self._create)],
            success=[delete],
        )
        request = pb.TxnRequest(
            compare=[_compare_lease(self._key, lease.id)],
            success=[delete],
            failure=[pb.RequestOp(request_txn=overwritten)],
        )
        try:
            self._engine.channel.unary(
                OWN_TXN,
                request,
                what=f"deregister {self._key.decode()!r}",
                timeout=_seconds(deadline),
                on_ambiguous=lease.taint,
            )
        except EtcdError:
            # Some releases refuse even a deleting transaction without space, but no revocation.
            hangs_on_lease = self._stored.lease == lease.id
            left = deadline - time.monotonic()
            if left <= 0 or not hangs_on_lease:
                raise
            if not self._engine.keeper.revoke(lease, timeout=min(left, _TIDY_SECONDS)):
                raise


def register(
    scope: Scope,
    descriptor: Descriptor,
    ttl: float | None = None,
    *,
    on_conflict: OnConflict = "takeover",
    timeout: Timeout = UNSET,
) -> Registration:
    """Register ``descriptor`` and keep it registered; see :meth:`Client.register`. Blocks."""
    if not isinstance(descriptor, Descriptor):
        raise InvalidArgument(f"register: a Descriptor is needed, not {type(descriptor).__name__}")
    descriptor.validate()
    if on_conflict not in ("takeover", "raise"):
        raise InvalidArgument(
            f"register: on_conflict must be 'takeover' or 'raise', not {on_conflict!r}"
        )
    seconds = normalise_ttl("register", ttl, DEFAULT_TTL)
    engine = scope.engine
    key = service_key(engine.prefix, descriptor.name, descriptor.id)
    what = f"register {key!r}"
    scope.check_open(what)
    deadline = engine.channel.deadline(timeout)
    try:
        lease = engine.keeper.take(seconds, what=what, timeout=_seconds(deadline))
    except OutcomeUnknown as exc:
        # At worst a lease without a key, which expires.
        raise RequestTimeout(f"{what}: no lease was granted in time") from exc
    registration = Registration(scope, descriptor, seconds, key, lease, what)
    try:
        registration.enter(on_conflict, deadline)
    except BaseException as exc:
        registration.abandon(untouched=isinstance(exc, AlreadyRegistered))
        raise
    return registration


_lanes: weakref.WeakKeyDictionary[Engine, Iterator[Strand]] = weakref.WeakKeyDictionary()


def _lane(engine: Engine) -> Strand:
    """Return one of the engine's strands for repairs.

    A few for all registrations: when etcd comes back after an outage they all have work at once,
    and a strand each would be a thread each.
    """
    lanes = _lanes.get(engine)
    if lanes is None:
        strands = [engine.dispatcher.strand(f"registry repair {n}") for n in range(_LANES)]
        lanes = _lanes.setdefault(engine, itertools.cycle(strands))
    return next(lanes)


def _seconds(deadline: float) -> float | None:
    """Return the seconds left until ``deadline``; None for ever."""
    return None if math.isinf(deadline) else max(0.0, deadline - time.monotonic())


def _lock_seconds(deadline: float) -> float:
    left = _seconds(deadline)
    return -1 if left is None else min(left, threading.TIMEOUT_MAX)


def _compare_mod(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(
        key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision
    )


def _compare_create(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(
        key=key, target=pb.Compare.CREATE, result=pb.Compare.EQUAL, create_revision=revision
    )


def _compare_lease(key: bytes, lease_id: int) -> pb.Compare:
    return pb.Compare(key=key, target=pb.Compare.LEASE, result=pb.Compare.EQUAL, lease=lease_id)
