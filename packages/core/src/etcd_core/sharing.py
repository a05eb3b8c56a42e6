"""One registry entry for an address, kept by all the processes of a machine that serve it.

The processes put the same key under the same lease, whose id follows from the key and the machine,
and all of them keep it alive; the last one to leave revokes it. So workers may come, go and be
killed without a gap. Who is the last one is decided by a lock file (:mod:`.presence`).

The thread ``etcd-share`` owns all state; the watch and the keep-alive thread only post to its
inbox. The last writer wins: a value on the shared lease is never written back, so that a rolling
restart with new metadata does not become a war.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from typing_extensions import Self

from . import forking, signals
from .config import UNSET, Timeout
from .descriptor import Descriptor
from .engine import Engine, Scope
from .errors import (
    ClosedError,
    Conflict,
    DecodeError,
    EtcdError,
    LeaseLost,
    PermissionDenied,
    RequestTimeout,
)
from .events import Event, fields
from .keys import prefix_range_end, service_key, services_prefix
from .lease import Lease, normalise_ttl
from .mirror import read_range
from .presence import Presence, machine_id
from .vitals import RegistrationVitals, track
from .watch import Delivery, Ended, Events, Watch
from .wire import messages as pb
from .wire.channel import Backoff
from .wire.rpc import LEASE_REVOKE, OWN_TXN

_log = logging.getLogger("etcd_core.registry")

DEFAULT_TTL = 15.0
DRAINING = "draining"
_REVOKE_SECONDS = 1.5
_LEAVE_RESERVE = 0.5
_ENTER_PAUSE = 0.02
_DENIED_PAUSE = 5.0
_MAX_STEPS = 8


class _Answer:
    """What a caller in another thread waits for."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: EtcdError | None = None

    def give(self, error: EtcdError | None = None) -> None:
        if not self._done.is_set():
            self._error = error
            self._done.set()

    def wait(self, what: str, seconds: float | None) -> None:
        if not self._done.wait(seconds):
            raise RequestTimeout(f"{what}: no answer in time")
        if self._error is not None:
            raise self._error


class SharedRegistration:
    """This process's part in one registry entry. Safe to use from any thread.

    After ``fork()`` it stays the parent's: in the child it is not registered and does nothing.

    Args:
        scope: The client's engine and holdings.
        descriptor: What to register; processes with an equal name and id share the entry.
        ttl: Seconds after which etcd removes the entry if all the processes die; default 15.
        server_started: When the server that this process is a part of began, in seconds since the
            boot. What was drained later than that stays so: a recycled worker is no new server.
    """

    def __init__(
        self,
        scope: Scope,
        descriptor: Descriptor,
        ttl: float | None = None,
        server_started: float | None = None,
    ) -> None:
        descriptor.validate()
        self._scope = scope
        self._engine = scope.engine
        self._ttl = normalise_ttl("register", ttl, DEFAULT_TTL)
        key = service_key(scope.engine.prefix, descriptor.name, descriptor.id)
        self._key = key.encode()
        self._what = f"register {key!r}"
        self._info = descriptor
        self._lease_id = _lease_id(key)
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="etcd-share", daemon=True)
        self._asking: set[_Answer] = set()
        self._ended = threading.Event()
        self._hurry = threading.Event()
        self._over = ""
        self._in_place = False
        # Below: owned by the thread.
        self._presence = _presence(scope, key)
        self._server_started = server_started
        self._lease: Lease | None = None
        self._watch: Watch | None = None
        self._insist = True
        self._seen = 0
        self._mod = 0
        self._retry_at: float | None = 0.0
        self._lost = False
        self._complained = False
        self._trouble = ""
        self._registered_once = False
        self._backoff = Backoff(base=0.05, cap=10.0)
        forking.track(self)

    # -- any thread ----------------------------------------------------------------------------

    @property
    def info(self) -> Descriptor:
        """What is registered, with the updates made so far, here or by another process."""
        return self._info

    @property
    def lease_id(self) -> int:
        """The lease that the processes share."""
        return self._lease_id

    @property
    def registered(self) -> bool:
        """Whether the entry is in place as far as this process knows. No I/O."""
        lease = self._lease
        return not self._over and self._in_place and lease is not None and lease.alive()

    @property
    def trouble(self) -> str:
        """Why the last try to put the entry in place failed; empty if it did not. No secrets."""
        return self._trouble

    @property
    def lease_remaining(self) -> float:
        """Seconds the entry lives on if no renewal is answered any more."""
        lease = self._lease
        return max(0.0, lease.remaining) if lease is not None and not self._over else 0.0

    def start(self) -> None:
        """Begin to register, in the background and for as long as it takes.

        Raises:
            ClosedError: The client is closed.
        """
        self._scope.hold(self, self._what)
        self._thread.start()
        track(self)

    def tell_vitals(self) -> RegistrationVitals | None:
        """Tell how it is; None where this process left, unless another machine took the id."""
        if self._over not in ("", "replaced"):
            return None
        info = self._info
        return RegistrationVitals(
            info.name, info.id, info.address, self.registered, self.lease_remaining
        )

    def update(
        self,
        address: str | None = None,
        metadata: Mapping[str, str] | None = None,
        timeout: Timeout = UNSET,
    ) -> None:
        """Change the entry for all the processes that share it. Blocks.

        While the entry is being repaired this sets what the repair writes.

        Args:
            address: The new address; None keeps it.
            metadata: The new metadata, all of it; None keeps it.
            timeout: Seconds to wait for etcd.

        Raises:
            InvalidArgument: The new value is unusable; nothing changed.
            ClosedError: This process has left the share.
            Conflict: Another machine has taken the id.
            EtcdError: etcd could not be reached or refused; it is tried again until it holds.
        """
        self._check_usable()
        info = replace(
            self._info,
            address=self._info.address if address is None else address,
            metadata=self._info.metadata if metadata is None else metadata,
        )
        info.validate()
        answer = _Answer()
        self._asking.add(answer)
        self._inbox.put(lambda: self._change(info, answer))
        if self._ended.is_set():
            # The thread may have ended before it saw the question.
            self._refuse_askers()
        self._await(answer, timeout)

    def deregister(self, timeout: Timeout = UNSET) -> None:
        """Leave the share; the entry goes if this was the last process. Blocks; idempotent.

        Raises:
            RequestTimeout: It took longer than ``timeout``; it goes on in the background.
        """
        self.leave(timeout=timeout)

    def __enter__(self) -> Self:
        """Return the share."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leave it; what takes longer goes on in the background, and is logged, not raised."""
        try:
            self.deregister()
        except EtcdError as exc:
            _log.debug("%s", exc)

    def leave(self, *, keep_entry: bool = False, timeout: Timeout = UNSET) -> None:
        """As :meth:`deregister`; with ``keep_entry`` a last one leaves the entry to its TTL.

        That is for a worker whose successor is about to start.
        """
        seconds = self._seconds(timeout)
        patience = None if seconds is None else max(_REVOKE_SECONDS, seconds - _LEAVE_RESERVE)
        self._inbox.put(lambda: self._leave(keep_entry, 0.0, patience))
        if not self.wait_left(seconds):
            raise RequestTimeout(f"deregister {self._key.decode()!r}: still under way")

    def begin_leaving(self, *, keep_entry: bool = False, drain: float = 0.0) -> None:
        """Leave in the background. Idempotent, does not block. Before the start: start to leave.

        Args:
            keep_entry: As :meth:`leave`.
            drain: Seconds to go on for; the last process marks the entry as draining meanwhile, and
                the others are kept for it, since callers still come.
        """
        self._inbox.put(lambda: self._leave(keep_entry, drain, _REVOKE_SECONDS))

    def hurry(self) -> None:
        """Cut a drain short."""
        self._hurry.set()

    def wait_left(self, seconds: float | None) -> bool:
        """Wait until this process has left; tell whether it has."""
        return self._ended.wait(seconds)

    def close_with_client(self, timeout: float) -> None:
        """Leave because the client is closed."""
        self.leave(timeout=timeout)

    def __repr__(self) -> str:
        """Return the key and whether it is in place."""
        state = self._over or ("registered" if self.registered else "being registered")
        return f"<SharedRegistration {self._key.decode()!r} {state}>"

    def after_fork_in_child(self) -> None:
        """Become nobody's: the share is the parent's."""
        self._over = "forked"
        self._ended = threading.Event()
        self._ended.set()

    def _seconds(self, timeout: Timeout) -> float | None:
        deadline = self._engine.channel.deadline(timeout)
        left = deadline - time.monotonic()
        return left if left < threading.TIMEOUT_MAX else None

    def _await(self, answer: _Answer, timeout: Timeout) -> None:
        try:
            answer.wait(self._what, self._seconds(timeout))
        finally:
            self._asking.discard(answer)

    def _refuse_askers(self) -> None:
        for answer in tuple(self._asking):
            answer.give(ClosedError(f"{self._what}: the registration has ended ({self._over})"))

    def _check_usable(self) -> None:
        if self._over == "replaced":
            raise Conflict(f"{self._what}: another live process holds the id")
        if self._over:
            raise ClosedError(f"{self._what}: the registration has ended ({self._over})")

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._over:
                self._step()
        finally:
            self._scope.let_go(self)
            self._ended.set()
            self._refuse_askers()

    def _step(self) -> None:
        try:
            self._next_action()()
        except ClosedError:
            self._leave(keep_entry=True, drain=0.0, patience=_REVOKE_SECONDS)
        except Exception:
            _log.exception(
                "%s: looking after it failed; trying again",
                self._what,
                extra=fields(Event.INTERNAL_ERROR, part="registration"),
            )
            self._retry_later()

    def _next_action(self) -> Callable[[], object]:
        wait = None if self._retry_at is None else max(0.0, self._retry_at - time.monotonic())
        try:
            return self._inbox.get(timeout=wait)
        except queue.Empty:
            return self._settle

    def _retry_later(self) -> None:
        self._retry_at = time.monotonic() + self._backoff.next()

    def _settle(self) -> EtcdError | None:
        """Make etcd hold the entry; on failure come back later, for ever. Returns the failure."""
        try:
            if not self._presence.enter():
                self._retry_at = time.monotonic() + _ENTER_PAUSE
                return None
            if self._presence.drained_since(self._server_started):
                self._info = _as_draining(self._info)
            settled = self._place()
        except ClosedError:
            raise
        except LeaseLost as exc:
            # It expired just now: the next round takes a fresh one.
            self._drop_lease()
            self._retry_later()
            return exc
        except (EtcdError, OSError) as exc:
            self._complain(exc)
            self._retry_later()
            return exc if isinstance(exc, EtcdError) else None
        self._retry_at = None
        self._trouble = ""
        if not settled:
            self._retry_later()
        return None

    def _complain(self, exc: Exception) -> None:
        self._trouble = str(exc)
        if self._complained:
            _log.debug("%s: trying again: %s", self._what, exc)
            return
        self._complained = True
        _log.warning(
            "%s: not in place, trying again: %s",
            self._what,
            exc,
            extra=self._fields(Event.REGISTRATION_FAILING, str(exc)),
        )

    def _fields(self, event: Event, reason: str | None) -> dict[str, object]:
        info = self._info
        return fields(event, service=info.name, id=info.id, reason=reason)

    def _place(self) -> bool:
        """Write the key where need be; return False if what is there must be written over."""
        for _ in range(_MAX_STEPS):
            epoch = self._engine.channel.store.epoch
            lease = self._living_lease()
            answer = self._engine.channel.unary(
                OWN_TXN, self._request(lease), what=self._what, idempotent=True
            )
            if self._take_in(answer):
                if self._watch is None and not self._over:
                    self._follow(answer.header.revision + 1, epoch)
                return True
        return False

    def _request(self, lease: Lease) -> pb.TxnRequest:
        """Return the write: over what we saw last where we insist, else only if nothing is there.

        Fenced by the revision, since the lease is no fence: a server that starts again has the
        same one, and a copy of this request that was held up on its way must not undo its value.
        """
        unchanged = _compare_mod(self._key, self._mod if self._insist else 0)
        put = pb.PutRequest(key=self._key, value=self._info.encode(), lease=lease.id)
        look = pb.RequestOp(request_range=pb.RangeRequest(key=self._key))
        return pb.TxnRequest(
            compare=[unchanged], success=[pb.RequestOp(request_put=put)], failure=[look]
        )

    def _take_in(self, answer: pb.TxnResponse) -> bool:
        self._seen = answer.header.revision
        if answer.succeeded:
            self._mod = answer.header.revision
            if not self._insist:
                self._note_loss("missing")
            self._written()
            return True
        kvs = answer.responses[0].response_range.kvs
        self._mod = kvs[0].mod_revision if kvs else 0
        if kvs and (self._is_as_wanted(kvs[0]) if self._insist else self._judge(kvs[0])):
            return True
        self._insist = True
        return False

    def _is_as_wanted(self, kv: pb.KeyValue) -> bool:
        if kv.lease != self._lease_id or kv.value != self._info.encode():
            return False
        self._written()
        return True

    def _judge(self, kv: pb.KeyValue) -> bool:
        """Take in what the key holds; return False if it must be written again."""
        try:
            info = Descriptor.decode(kv.value, self._key.decode())
        except DecodeError:
            return False
        if kv.lease == self._lease_id:
            self._info = info
            self._written()
            return True
        if kv.lease:
            self._replaced()
            return True
        return False

    def _written(self) -> None:
        self._insist = False
        self._in_place = True
        self._complained = False
        self._backoff.reset()
        repaired, self._lost = self._lost, False
        if repaired:
            _log.warning(
                "%s: registered again",
                self._what,
                extra=self._fields(Event.REGISTRATION_RESTORED, None),
            )
        elif not self._registered_once:
            _log.info("%s: in place", self._what, extra=self._fields(Event.REGISTRATION_MADE, None))
        if repaired or not self._registered_once:
            self._registered_once = True
            self._scope.announce(
                signals.service_registered, self, info=self._info, repaired=repaired
            )

    def _living_lease(self) -> Lease:
        lease = self._lease
        if lease is not None and lease.alive():
            return lease
        self._drop_lease()
        lease = self._engine.keeper.adopt(self._lease_id, self._ttl, what=self._what)
        self._lease = lease
        lease.when_lost(lambda reason: self._inbox.put(lambda: self._on_lease_lost(lease, reason)))
        return lease

    def _drop_lease(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.forget_callbacks()
            self._engine.keeper.drop(lease)

    def _follow(self, revision: int, epoch: int) -> None:
        def post(delivery: Delivery) -> None:
            self._inbox.put(lambda: self._on_delivery(watch, delivery))

        watch = self._engine.hub.watch(self._key, post, start_revision=revision, epoch=epoch)
        self._watch = watch

    def _unfollow(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()

    def _on_lease_lost(self, lease: Lease, reason: str) -> None:
        if lease is self._lease:
            self._note_loss(f"lease {reason}")
            self._settle()

    def _on_delivery(self, watch: Watch, delivery: Delivery) -> None:
        if watch is not self._watch:
            return
        if isinstance(delivery, Events):
            # Only the newest state counts, and only what we do not know yet.
            event = delivery.events[-1]
            if event.kv.mod_revision <= self._seen:
                return
            self._seen = event.kv.mod_revision
            self._mod = 0 if event.type == pb.Event.DELETE else event.kv.mod_revision
            if event.type == pb.Event.DELETE:
                self._note_loss("deleted")
                self._settle()
            elif not self._judge(event.kv):
                self._note_loss("overwritten")
                self._insist = True
                self._settle()
        elif isinstance(delivery, Ended) and not isinstance(delivery.error, ClosedError):
            # Compacted or reset: the next round reads the key and watches from there.
            self._watch = None
            self._retry_later()
            if isinstance(delivery.error, PermissionDenied):
                # Until somebody changes the rights there is nothing to hurry for.
                self._retry_at = time.monotonic() + _DENIED_PAUSE

    def _note_loss(self, reason: str) -> None:
        self._in_place = False
        if self._lost or self._over:
            return
        self._lost = True
        _log.warning(
            "%s: lost (%s); registering again",
            self._what,
            reason,
            extra=self._fields(Event.REGISTRATION_LOST, reason),
        )
        self._scope.announce(signals.registration_lost, self, info=self._info, reason=reason)

    def _replaced(self) -> None:
        _log.warning(
            "%s: another live process has taken the id; not repaired",
            self._what,
            extra=self._fields(Event.REGISTRATION_REPLACED, "replaced"),
        )
        self._over = "replaced"
        self._scope.announce(signals.registration_lost, self, info=self._info, reason="replaced")
        self._let_go(keep_entry=False, drain=0.0, patience=_REVOKE_SECONDS)

    def _change(self, info: Descriptor, answer: _Answer) -> None:
        self._info = info
        self._insist = True
        if info.metadata.get("status") != DRAINING:
            self._presence.unmark_drained()
        if self._lost:
            answer.give()
            self._settle()
            return
        answer.give(self._settle())

    def _leave(self, keep_entry: bool, drain: float, patience: float | None) -> None:
        if not self._over:
            self._over = "left"
            self._let_go(keep_entry=keep_entry, drain=drain, patience=patience)

    def _let_go(self, *, keep_entry: bool, drain: float, patience: float | None) -> None:
        self._in_place = False
        self._unfollow()
        lease, self._lease = self._lease, None
        if lease is not None:
            lease.forget_callbacks()
        self._try_to_enter()
        # Newcomers wait at the lock file while the last one leaves, so nobody adopts the lease.
        with self._presence.leave() as last:
            ends = last and not keep_entry
            if drain:
                self._drain(drain, announce=ends)
            if lease is not None:
                self._engine.keeper.drop(lease)
            if ends:
                self._revoke(patience)
            if last:
                self._presence.remove()

    def _try_to_enter(self) -> None:
        """Take part if we do not yet: a recycled predecessor may have left the entry to us."""
        with suppress(OSError):
            self._presence.enter()

    def _revoke(self, patience: float | None) -> None:
        request = pb.LeaseRevokeRequest(ID=self._lease_id)
        try:
            self._engine.channel.unary(
                LEASE_REVOKE, request, what=f"de{self._what}", timeout=patience
            )
        except LeaseLost:
            pass
        except EtcdError as exc:
            _log.debug("%s: the entry is left to expire: %s", self._what, exc)
            return
        if self._over == "left":
            self._scope.announce(signals.service_deregistered, self, info=self._info)

    def _drain(self, seconds: float, *, announce: bool) -> None:
        if announce:
            try:
                write_draining(self._engine, self._key, self._info, self._lease_id, self._mod)
            except EtcdError as exc:
                _log.warning(
                    "%s: could not be marked as draining: %s",
                    self._what,
                    exc,
                    extra=self._fields(Event.REGISTRATION_FAILING, str(exc)),
                )
        self._hurry.wait(seconds)


def write_draining(engine: Engine, key: bytes, info: Descriptor, lease_id: int, mod: int) -> bool:
    """Mark an entry as draining if nobody changed it after ``mod``; tell whether that was so.

    Blocks. The revision is the fence: the entry of a server that was started meanwhile hangs on the
    same lease.
    """
    put = pb.PutRequest(key=key, value=_as_draining(info).encode(), lease=lease_id)
    request = pb.TxnRequest(
        compare=[
            _compare_mod(key, mod),
            pb.Compare(key=key, target=pb.Compare.LEASE, result=pb.Compare.EQUAL, lease=lease_id),
        ],
        success=[pb.RequestOp(request_put=put)],
    )
    what = f"drain {key.decode()!r}"
    return engine.channel.unary(OWN_TXN, request, what=what, timeout=_REVOKE_SECONDS).succeeded


def drain_here(scope: Scope, name: str) -> list[Descriptor]:
    """Mark the entries that processes of this machine and user share as draining. Blocks.

    For a hook that runs before the server is told to stop. A worker that the server starts from now
    on keeps the mark; another server does not.

    Returns:
        The entries marked.

    Raises:
        EtcdError: etcd could not be reached or refused.
    """
    start = services_prefix(scope.engine.prefix, name).encode()
    found = read_range(scope.engine.channel, start, prefix_range_end(start), what=f"drain {name!r}")
    marked = []
    for entry in found.entries.values():
        lease_id = _lease_id(entry.key.decode())
        if entry.lease != lease_id:
            continue
        info = Descriptor.decode(entry.value, entry.key.decode())
        # First: a worker that starts in between must not write its own value over it.
        _presence(scope, entry.key.decode()).mark_drained()
        if write_draining(scope.engine, entry.key, info, lease_id, entry.mod_revision):
            marked.append(info)
    return marked


def _compare_mod(key: bytes, revision: int) -> pb.Compare:
    return pb.Compare(
        key=key, target=pb.Compare.MOD, result=pb.Compare.EQUAL, mod_revision=revision
    )


def _as_draining(info: Descriptor) -> Descriptor:
    return replace(info, metadata={**info.metadata, "status": DRAINING})


def _presence(scope: Scope, key: str) -> Presence:
    return Presence(f"{','.join(sorted(scope.engine.config.endpoints))} {key}")


def _lease_id(key: str) -> int:
    """Return the lease that all processes of this machine use for ``key``.

    Its TTL is not part of it: a changed TTL must not make two leases of one entry fight.
    """
    digest = hashlib.sha256(f"{key}\0{machine_id()}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1 or 1
