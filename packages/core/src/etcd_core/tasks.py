"""Tasks that run in one process of a fleet: ``leader_only``, ``exclusive``, and what they can ask.

Owns the table of candidacies, one per client and name, each started at the first call. Imports gRPC
at the first call only. Has no thread of its own; see :mod:`taskguard` and :mod:`taskrun`.
"""

from __future__ import annotations

import functools
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypeGuard, TypeVar, cast, overload

from typing_extensions import Never

from . import brokers, forking
from .errors import (
    OUTAGE,
    ClosedError,
    ConnectionFailed,
    EtcdError,
    InvalidArgument,
    LeaseLost,
    LockTimeout,
    NotLeader,
    RequestTimeout,
)
from .taskguard import (
    ClientSource,
    D_co,
    Options,
    Otherwise,
    P,
    Refused,
    T,
    TaskGuard,
    fresh,
    use_client,
)
from .taskrun import OnLost, Pass, active_runs

if TYPE_CHECKING:
    from .candidate import Candidate
    from .client import Client
    from .election import Term
    from .engine import Engine
    from .lock import Lock

D = TypeVar("D")
F = TypeVar("F", bound=Callable[..., object])

_LEADER_TTL = 15.0
_LOCK_TTL = 30.0
_SLICE_SECONDS = 0.2


def set_default_client(provider: ClientSource | None) -> None:
    """Say which client tasks without ``client=`` use. Does no I/O; for the whole process.

    Args:
        provider: A client, or a function that gives one; it is called at every call of a task, so
            a cheap one. None takes it back.

    Raises:
        InvalidArgument: It is neither.
    """
    use_client(provider)


def with_client(decorator: F, client: ClientSource) -> F:
    """Return ``leader_only`` or ``exclusive`` with a client where a call names none.

    Example:
        >>> nightly_only = with_client(leader_only, lambda: app.client)
    """

    @functools.wraps(decorator)
    def bound(name: str, **options: object) -> object:
        return decorator(name, **{"client": client, **options})

    return cast("F", bound)


def current_term() -> Term:
    """Return the term under which the calling task runs. No I/O.

    A thread that the task starts sees it where its context was copied:
    ``contextvars.copy_context().run``, as ``asyncio.to_thread`` does. It is the innermost term
    where guarded tasks call each other.

    Raises:
        NotLeader: The caller is in no guarded task, or that task has ended, or this process was
            forked from the one it runs in.
    """
    return active_runs("current_term")[-1].term


def checkpoint() -> bool:
    """Tell a long task whether it may go on. No I/O: computed from the clock.

    Returns:
        Whether all terms the caller runs under last. False only with ``on_lost="signal"``.

    Raises:
        NotLeader: The leadership was lost (``on_lost="raise"`` or ``"cancel"``), or the caller is
            in no guarded task.
        LeaseLost: The lock of an :func:`exclusive` task was lost.

    Example:
        >>> @leader_only("nightly-report", on_lost="raise")
        ... def report():
        ...     for page in pages():
        ...         checkpoint()
        ...         write(page)
    """
    lost = [run for run in active_runs("checkpoint") if not run.lasting]
    for run in lost:
        if run.guard.on_lost != "signal":
            raise run.guard.lost_error()
    return not lost


class LeaderGuard(TaskGuard[D_co]):
    """The guard that lets the elected process run."""

    kind = "leader_only"
    default_ttl = _LEADER_TTL

    def __init__(self, name: str, default: D_co, options: Options, allow_drop: bool) -> None:
        super().__init__(name, default, options)
        self._allow_drop = allow_drop

    def lost_error(self) -> EtcdError:
        """Return what a task is told whose leadership was lost."""
        return NotLeader(f"{self.what}: the leadership was lost while the task ran")

    def _taken_error(self, details: str) -> EtcdError:
        return NotLeader(f"{self.what}: another process leads{details and f' ({details})'}")

    def _admit_at_once(self, client: Client) -> Pass | None:
        candidate = _candidacies.of(client, self.name, self._identity, self._ttl)
        admitted = self._passed(client, candidate)
        if admitted is not None:
            return admitted
        if self._otherwise == "wait" or not candidate.wait_for_answer(0):
            return None
        raise self._refusal(client, candidate)

    def _admit(self, client: Client, abandoned: threading.Event) -> Pass:
        candidate = _candidacies.of(client, self.name, self._identity, self._ttl)
        if self._otherwise == "wait":
            self._wait_to_lead(client, candidate, abandoned)
        else:
            candidate.wait_for_answer(client.config.timeout)
        admitted = self._passed(client, candidate)
        if admitted is None:
            raise self._refusal(client, candidate)
        return admitted

    def _wait_to_lead(
        self, client: Client, candidate: Candidate, abandoned: threading.Event
    ) -> None:
        deadline = math.inf if self._wait is None else time.monotonic() + self._wait
        while not candidate.is_leader_for(self._min_remaining):
            left = deadline - time.monotonic()
            if left <= 0 or client.closed or abandoned.is_set() or _is_final(candidate.error):
                return
            # In slices, since neither a cancelled coroutine nor a term that needs its next renewal
            # wakes this wait.
            if candidate.wait(min(left, _SLICE_SECONDS)):
                abandoned.wait(min(left, _SLICE_SECONDS / 4))

    def _passed(self, client: Client, candidate: Candidate) -> Pass | None:
        term = candidate.term if candidate.is_leader_for(self._min_remaining) else None
        if term is None:
            return None
        if self._at_least_for:
            candidate.keep_for(self._at_least_for)
        return Pass(term, client.scope().engine)

    def _refusal(self, client: Client, candidate: Candidate) -> Refused:
        if client.closed:
            raise ClosedError(f"{self.what}: the client is closed")
        if candidate.is_leader:
            error = NotLeader(f"{self.what}: less than {self._min_remaining} s of the lease left")
            return Refused("min_remaining", error)
        trouble = self._trouble(client, candidate)
        if trouble is not None:
            return Refused("unreachable", trouble)
        waited = f"waited {self._wait} s" if self._wait else ""
        return Refused("not_leader", self._taken_error(waited))

    def _trouble(self, client: Client, candidate: Candidate) -> EtcdError | None:
        if not candidate.wait_for_answer(0):
            return RequestTimeout(f"{self.what}: etcd did not answer in {client.config.timeout} s")
        error = candidate.error
        if _is_final(error):
            raise fresh(error)
        if isinstance(error, OUTAGE):
            return error
        if not client.connected:
            return ConnectionFailed(f"{self.what}: etcd cannot be reached")
        return None

    def _check_function(self, function: object) -> None:
        broker = brokers.broker_of(function)
        if broker is not None and self._drops:
            raise self._dropping(broker)
        super()._check_function(function)

    def _decorated(self, call: Callable[P, T]) -> Callable[P, T]:
        if self._drops:
            brokers.mark(call, str(self._dropping("celery")))
        return call

    def _check_call(self, function: object) -> None:
        # A guard below @app.task sees the function only; what it is part of shows when it runs.
        if self._drops and brokers.runs_for_celery(function):
            raise self._dropping("celery")

    def _check_skip(self) -> None:
        broker = None if self._allow_drop else brokers.calling_broker()
        if broker is not None:
            raise self._dropping(broker)

    @property
    def _drops(self) -> bool:
        return self._otherwise == "skip" and not self._allow_drop

    def _dropping(self, broker: str) -> InvalidArgument:
        return InvalidArgument(
            f"{self.what}: {broker} gives each message to one process, and one that does not lead"
            " would drop it; take exclusive(), or allow_drop=True if that is what you want"
        )


class ExclusiveGuard(TaskGuard[D_co]):
    """The guard that takes a lock for each run."""

    kind = "exclusive"
    default_ttl = _LOCK_TTL

    def lost_error(self) -> EtcdError:
        """Return what a task is told whose lock was lost."""
        return LeaseLost(f"{self.what}: the lock was lost while the task ran")

    def _taken_error(self, details: str) -> EtcdError:
        return LockTimeout(f"{self.what}: another run has the lock{details and f' ({details})'}")

    def _admit_at_once(self, client: Client) -> Pass | None:
        return None

    def _admit(self, client: Client, abandoned: threading.Event) -> Pass:
        lock = self._take(client, abandoned)
        if not self._has_time(lock, abandoned):
            lock.unlock()
            error = LeaseLost(f"{self.what}: less than {self._min_remaining} s of the lease left")
            raise Refused("min_remaining", error)
        return Pass(self._term(lock), client.scope().engine, lambda ran: self._end(lock, ran))

    def _take(self, client: Client, abandoned: threading.Event) -> Lock:
        if self._otherwise == "wait":
            return self._take_in_turn(client, abandoned)
        try:
            lock = client.try_lock(self.name, self._ttl)
        except (*OUTAGE, LeaseLost) as exc:
            raise Refused("unreachable", exc) from None
        if lock is None:
            raise Refused("locked", self._taken_error(""))
        return lock

    def _take_in_turn(self, client: Client, abandoned: threading.Event) -> Lock:
        """Wait for the lock, also through outages: who lost the place in the queue joins anew."""
        from .wire.channel import Backoff

        backoff = Backoff(base=0.1, cap=1.0)
        deadline = math.inf if self._wait is None else time.monotonic() + self._wait
        while True:
            left = None if self._wait is None else max(0.0, deadline - time.monotonic())
            try:
                return client.lock(self.name, self._ttl, left)
            except LockTimeout:
                raise Refused("locked", self._taken_error(f"waited {self._wait} s")) from None
            except (*OUTAGE, LeaseLost) as exc:
                pause = min(backoff.next(), deadline - time.monotonic())
                if pause <= 0 or abandoned.wait(pause):
                    raise Refused("unreachable", exc) from None

    def _has_time(self, lock: Lock, abandoned: threading.Event) -> bool:
        """Wait for the next renewal where a spare lease of the client has too little time left."""
        while lock.held and lock.remaining < self._min_remaining:
            if abandoned.wait(_SLICE_SECONDS / 4):
                break
        return lock.held

    def _term(self, lock: Lock) -> Term:
        from .election import Term

        # At each run: a guard made before a fork serves every child.
        default = f"{socket.gethostname()}:{os.getpid()}"
        identity = default if self._identity is None else self._identity
        return Term(self.name, identity, lock.token, lock.done, lambda: lock.remaining, lock.guard)

    def _end(self, lock: Lock, ran: float) -> None:
        lock.unlock(keep_for=max(0.0, self._at_least_for - ran))


def _is_final(error: EtcdError | None) -> TypeGuard[EtcdError]:
    """Tell whether etcd said no: the caller must see it, since no waiting will mend it."""
    return error is not None and not isinstance(error, (*OUTAGE, LeaseLost))


class _Candidacies:
    """The candidacies of this process, one per engine and name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[tuple[Engine, str], tuple[Client, Candidate]] = {}
        forking.track(self)

    def of(self, client: Client, name: str, identity: str | None, ttl: float) -> Candidate:
        """Return the candidacy, started now if there is none. No I/O in the calling thread.

        Raises:
            ClosedError: The client is closed.
        """
        key = (client.scope().engine, name)
        entry = self._entries.get(key)
        if entry is not None and not entry[0].closed:
            return entry[1]
        with self._lock:
            entry = self._entries.get(key)
            if entry is None or entry[0].closed:
                self._forget_closed()
                # The client is kept, so that its close at exit resigns even if nobody else has it.
                entry = self._entries[key] = (client, client.candidate(name, identity, ttl))
        return entry[1]

    def after_fork_in_child(self) -> None:
        """Start afresh: the candidacies are the parent's."""
        self._lock = threading.Lock()
        self._entries = {}

    def _forget_closed(self) -> None:
        for key, (client, _) in list(self._entries.items()):
            if client.closed:
                del self._entries[key]


_candidacies = _Candidacies()


@overload
def leader_only(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LEADER_TTL,
    otherwise: Literal["skip"] = "skip",
    default: None = None,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
    allow_drop: bool = False,
) -> LeaderGuard[None]: ...


@overload
def leader_only(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LEADER_TTL,
    otherwise: Literal["skip"] = "skip",
    default: D,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
    allow_drop: bool = False,
) -> LeaderGuard[D]: ...


@overload
def leader_only(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LEADER_TTL,
    otherwise: Literal["raise", "wait"],
    wait: float | None = None,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
) -> LeaderGuard[Never]: ...


def leader_only(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LEADER_TTL,
    otherwise: Otherwise = "skip",
    wait: float | None = None,
    default: object = None,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
    allow_drop: bool = False,
) -> LeaderGuard[object]:
    """Decorate a task that every process calls and only the leader of ``name`` runs.

    Decorating does no I/O. The first call in a process joins the election and waits for that one
    answer, for ``Config.timeout`` at most, so that a job that runs once runs; from then on a call
    costs no request, whether it runs or not. The process stays candidate until the client is
    closed, at exit at the latest, and then resigns. After ``fork()`` the child joins anew at its
    first call. In a coroutine no wait blocks the loop.

    Tasks of one name share one candidacy, whose TTL and identity are those of the first call. A
    call that a running task makes under the same name just runs. What it returns is a context
    manager too: ``with leader_only("name") as term:`` raises where a call would skip.

    Args:
        name: The election's name.
        client: A client, or a function that gives one; left out, what was given to
            :func:`set_default_client`, looked up at every call.
        identity: What observers see; default host name and process id.
        ttl: Seconds after which another process leads if this one dies.
        otherwise: What a call does in a process that does not lead. ``"skip"`` returns ``default``
            and sends ``task_skipped``, also while etcd cannot be reached; ``"raise"`` raises;
            ``"wait"`` waits, also for etcd to come back, then raises.
        wait: Seconds for ``"wait"``; None waits for ever.
        default: What a skipped call returns.
        min_remaining: Do not start with less than so many seconds of the lease left.
        at_least_for: Keep other processes out for so many seconds from the start of a run, even if
            this one resigns or exits before.
        on_lost: How a running task learns that the leadership was lost. ``"signal"``:
            ``current_term().lost`` is set and :func:`checkpoint` returns False; ``"raise"``:
            :func:`checkpoint` raises; ``"cancel"``: an async task is cancelled, and its caller gets
            ``NotLeader``.
        allow_drop: Allow skipping in a task that a broker such as Celery gives to one process only.

    Raises:
        InvalidArgument: An option is unusable; raised by the call where no client is known.
        NotLeader: From the call, with ``"raise"`` and ``"wait"``: another process leads.
        ClosedError: From the call: the client is closed.
        EtcdError: From the call, with ``"raise"`` and ``"wait"``: etcd cannot be reached. With
            every ``otherwise``: etcd refuses for good (``PermissionDenied``, ``Unauthenticated``,
            ``NoSpace``, ...), which a job that is skipped for ever would hide.

    Example:
        >>> @leader_only("nightly-report", client=client)
        ... def report():
        ...     term = current_term()
        ...     write_report(fencing_token=term.token)
    """
    options = Options(
        client=client,
        identity=identity,
        ttl=ttl,
        otherwise=otherwise,
        wait=wait,
        min_remaining=min_remaining,
        at_least_for=at_least_for,
        on_lost=on_lost,
    )
    return LeaderGuard(name, default, options, allow_drop)


@overload
def exclusive(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LOCK_TTL,
    otherwise: Literal["skip"] = "skip",
    default: None = None,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
) -> ExclusiveGuard[None]: ...


@overload
def exclusive(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LOCK_TTL,
    otherwise: Literal["skip"] = "skip",
    default: D,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
) -> ExclusiveGuard[D]: ...


@overload
def exclusive(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LOCK_TTL,
    otherwise: Literal["raise", "wait"],
    wait: float | None = None,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
) -> ExclusiveGuard[Never]: ...


def exclusive(
    name: str,
    *,
    client: ClientSource | None = None,
    identity: str | None = None,
    ttl: float = _LOCK_TTL,
    otherwise: Otherwise = "skip",
    wait: float | None = None,
    default: object = None,
    min_remaining: float = 0.0,
    at_least_for: float = 0.0,
    on_lost: OnLost = "signal",
) -> ExclusiveGuard[object]:
    """Decorate a task of which no two runs overlap anywhere: each takes the lock ``name``.

    Where :func:`leader_only` lets one process run until it is gone, here whoever comes first runs,
    and the next run may be anywhere: right for the tasks of a broker and for jobs from cron. A run
    costs two requests, a skipped one costs one. The lock is kept alive while the task runs, so its
    TTL bounds only what a crash costs. All else is as for :func:`leader_only`.

    Args:
        name: The lock's name.
        client: As :func:`leader_only`.
        identity: What ``current_term().identity`` is in a run; default host name and process id. A
            lock's key has no value in etcd, so that observers see the lease of its holder only.
        ttl: Seconds after which the lock is free if this process dies.
        otherwise: What a call does while the lock is taken. ``"skip"`` returns ``default`` and
            sends ``task_skipped``, also while etcd cannot be reached; ``"raise"`` raises;
            ``"wait"`` waits its turn, also through outages of etcd, then raises.
        wait: Seconds for ``"wait"``; None waits for ever.
        default: What a skipped call returns.
        min_remaining: Do not start with less than so many seconds of the lease left.
        at_least_for: Keep the lock for so many seconds from the start of the run, even if the run
            is shorter: nodes whose clocks differ a little then run a job once. Rounded up.
        on_lost: How a running task learns that the lock was lost; as :func:`leader_only`, with
            ``LeaseLost``.

    Raises:
        InvalidArgument: An option is unusable; raised by the call where no client is known.
        LockTimeout: From the call, with ``"raise"`` and ``"wait"``: the lock is taken.
        ClosedError: From the call: the client is closed.
        EtcdError: From the call, with ``"raise"`` and ``"wait"``: etcd cannot be reached. With
            every ``otherwise``: etcd refuses for good (``PermissionDenied``, ``Unauthenticated``,
            ``NoSpace``, ...), which a job that is skipped for ever would hide.

    Example:
        >>> @exclusive("import", client=client, at_least_for=30)
        ... def import_feed():
        ...     load(fencing_token=current_term().token)
    """
    options = Options(
        client=client,
        identity=identity,
        ttl=ttl,
        otherwise=otherwise,
        wait=wait,
        min_remaining=min_remaining,
        at_least_for=at_least_for,
        on_lost=on_lost,
    )
    return ExclusiveGuard(name, default, options)
