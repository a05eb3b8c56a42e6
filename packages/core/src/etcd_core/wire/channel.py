"""The channel: every request of a client goes through here. Any thread may call it.

Owns failover, the retry rules, deadlines, the login token, and the watch over the store's revision
(a store that goes back in time was reset). Algorithms and figures: semantics sections 9.1 to 9.6.
"""

from __future__ import annotations

import logging
import math
import queue
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, cast

import grpc

from .. import telemetry
from ..config import UNSET, Config, Endpoint, Timeout, Unset
from ..errors import (
    ClosedError,
    ConnectionFailed,
    EtcdError,
    InvalidArgument,
    InvalidConfig,
    OutcomeUnknown,
    RequestTimeout,
    Unauthenticated,
)
from ..events import Event, fields
from . import messages as pb
from .classify import (
    Kind,
    classify,
    final_error,
    is_auth_disabled,
    is_broken,
    is_hung_up,
    is_learner,
    is_overload,
    is_tls_failure,
    unanswered_error,
)
from .credentials import Login, Token
from .endpoints import Endpoints, Link, Metadata
from .rpc import AUTHENTICATE, MEMBER_LIST, Req, Resp, Rpc

_log = logging.getLogger("etcd_core.channel")

_ATTEMPT_SECONDS = 2.0
_PATIENT_SECONDS = 1.0
_BACKOFF_BASE = 0.025
_BACKOFF_CAP = 1.0
_OVERLOAD_PAUSE = 0.05
_BROKEN_SECONDS = 1.0
_SYNC_END_SECONDS = 1.0
# One more attempt in less than this would not be answered, and so turn a certain failure of a write
# into an unknown outcome.
_LEAST_SECONDS = 0.2
_PROBE_SECONDS = 0.5
_HAS_LEADER = ("hasleader", "true")


def check_timeout(what: str, timeout: Timeout) -> None:
    """Refuse what is no timeout, before any I/O.

    Raises:
        InvalidArgument: It is neither None nor a number of seconds from 0 on.
    """
    if timeout is None or isinstance(timeout, Unset):
        return
    if not _is_number(timeout) or timeout < 0:
        raise InvalidArgument(
            f"{what}: timeout must be None or a number of seconds >= 0, not {timeout!r}"
        )


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not math.isnan(value)


class Backoff:
    """Full-jitter exponential delays: up to ``base``, twice that, ... up to ``cap`` seconds."""

    def __init__(self, base: float = _BACKOFF_BASE, cap: float = _BACKOFF_CAP) -> None:
        self._base = base
        self._cap = cap
        self._tries = 0

    def next(self) -> float:
        """Return the next delay in seconds."""
        ceiling = min(self._cap, self._base * 2 ** min(self._tries, 30))
        self._tries += 1
        return random.uniform(0.0, ceiling)

    def reset(self) -> None:
        """Start over after a success."""
        self._tries = 0


class CallFailed(Exception):
    """A call that will not be tried again. Internal; becomes a typed error or a raw gRPC error.

    Attributes:
        kind: Class of the last failure.
        code: Name of its status code.
        details: Its text.
        error: gRPC's error, if gRPC made it.
        sent: An attempt may have reached etcd and been executed.
        timed_out: The caller's time was used up while an attempt waited for its answer.
    """

    def __init__(
        self, kind: Kind, code: str, details: str, error: grpc.RpcError | None, *, sent: bool
    ) -> None:
        super().__init__(details)
        self.kind = kind
        self.code = code
        self.details = details
        self.error = error
        self.sent = sent
        self.timed_out = False


def _no_time_left(*, sent: bool) -> CallFailed:
    # Nothing is sent for it: a client that closes lets go of hundreds of things in no time.
    failure = CallFailed(Kind.NOT_EXECUTED, "DEADLINE_EXCEEDED", "no time left", None, sent=sent)
    failure.timed_out = True
    return failure


@dataclass(frozen=True)
class ResetNotice:
    """The store went back in time between two linearizable answers."""

    before: int
    after: int


class Duplex(Generic[Req, Resp]):
    """One bidirectional call: ``send`` from any thread, iterate in one.

    gRPC reads requests in a thread of its own that blocks on our queue, so every way out of the
    call ends that queue too, else the thread would stay for ever.
    """

    def __init__(self, channel: Channel, link: Link, rpc: Rpc[Req, Resp], generation: int) -> None:
        self.link = link
        self.token_generation = generation
        self._channel = channel
        self._queue: queue.SimpleQueue[Req | None] = queue.SimpleQueue()
        self._call = link.stream(
            rpc.method, self._requests(), None, channel.metadata(rpc.needs_leader)
        )

    def send(self, request: Req) -> None:
        """Queue one message."""
        self._queue.put(request)

    def __iter__(self) -> Iterator[Resp]:
        """Yield the answers.

        Raises:
            CallFailed: The stream ended with an error.
        """
        try:
            for answer in self._call:
                self._channel.answered(self.link)
                yield answer
        except grpc.RpcError as exc:
            code, details = status_of(exc)
            raise CallFailed(classify(code, details), code, details, exc, sent=True) from exc
        finally:
            self._queue.put(None)

    def cancel(self) -> None:
        """End the call; the iteration ends with :class:`CallFailed`. Safe from any thread."""
        self._queue.put(None)
        self._call.cancel()  # type: ignore[no-untyped-call]

    def _requests(self) -> Iterator[Req]:
        while (request := self._queue.get()) is not None:
            yield request


class Channel:
    """Requests to one cluster. Construction connects nothing and starts no thread but auto-sync's.

    Args:
        config: The client's configuration.
        interceptors: gRPC client interceptors for every call (tests count requests with one).
        on_reset: Called once per reset of the store, in the thread that noticed it.
        on_state: Called with (connected, reason) when etcd becomes unreachable or reachable.
    """

    def __init__(
        self,
        config: Config,
        interceptors: Sequence[object] = (),
        *,
        on_reset: Callable[[ResetNotice], None] = lambda notice: None,
        on_state: Callable[[bool, str], None] = lambda connected, reason: None,
    ) -> None:
        _prepare_gevent()
        self._config = config
        self._tls = config.effective_tls is not None
        self.endpoints = Endpoints(config.parsed_endpoints, config.effective_tls, interceptors)
        self._auth = _Auth(self, config)
        self.store = StoreClock(on_reset)
        self._on_state = on_state
        self.on_suspect: Callable[[Link], None] = lambda link: None
        self._closing = threading.Event()
        self._state_lock = threading.Lock()
        self._down_since: float | None = None
        # Since when etcd can be reached or not; None before the first answer or failure.
        self._since: float | None = None
        self._sync = _AutoSync(self, config) if config.auto_sync_interval else None

    # -- calls ---------------------------------------------------------------------------------

    def unary(
        self,
        rpc: Rpc[Req, Resp],
        request: Req,
        *,
        what: str,
        timeout: Timeout = UNSET,
        idempotent: bool | None = None,
        on_ambiguous: Callable[[], None] | None = None,
    ) -> Resp:
        """Send one request, retrying as its rule allows, and return the answer.

        Args:
            rpc: What to call.
            request: Its message.
            what: The operation and its key, for errors: ``"lock 'jobs'"``.
            timeout: Seconds for all attempts together.
            idempotent: Overrides the RPC's own rule for this request.
            on_ambiguous: Called for every attempt that may be executed later, even if another one
                then succeeds.

        Raises:
            EtcdError: The typed failure. ``OutcomeUnknown`` only for writes.
        """
        again = rpc.idempotent if idempotent is None else idempotent
        try:
            return self.call(
                rpc, request, timeout=timeout, idempotent=again, on_ambiguous=on_ambiguous
            )
        except CallFailed as exc:
            # gRPC's text is in ours; its tracebacks would make pages of every outage.
            raise _typed(exc, what, write=rpc.write, user=self._config.username) from None
        except ClosedError:
            raise ClosedError(f"{what}: the client is closed", outcome_unknown=rpc.write) from None

    def call(
        self,
        rpc: Rpc[Req, Resp],
        request: Req,
        *,
        timeout: Timeout = UNSET,
        idempotent: bool,
        on_ambiguous: Callable[[], None] | None = None,
    ) -> Resp:
        """As :meth:`unary`, but raise the failure as gRPC told it.

        Raises:
            CallFailed: It failed for good.
            ClosedError: The channel is closed.
        """
        deadline = self.deadline(timeout)
        if not telemetry.heard():
            return self._call(rpc, request, deadline, idempotent, on_ambiguous, None)
        with telemetry.OpenCall(rpc.name) as told:
            try:
                return self._call(rpc, request, deadline, idempotent, on_ambiguous, told)
            except CallFailed as exc:
                told.failed(_typed(exc, "", write=rpc.write))
                raise

    def _call(
        self,
        rpc: Rpc[Req, Resp],
        request: Req,
        deadline: float,
        idempotent: bool,
        on_ambiguous: Callable[[], None] | None,
        told: telemetry.OpenCall | None,
    ) -> Resp:
        backoff = Backoff()
        tried: set[Link] = set()
        sent = False
        refreshed = False
        patience = _ATTEMPT_SECONDS
        while True:
            if rpc is not AUTHENTICATE:
                # With all of the caller's time: within one attempt's share a first log-in would
                # not get past a member that hangs.
                self._auth.ensure(deadline)
            link = self.endpoints.pick()
            generation = self._auth.generation
            left = deadline - time.monotonic()
            if left <= 0:
                raise _no_time_left(sent=sent)
            try:
                return self._attempt(
                    link, rpc, request, min(left, patience if idempotent else left)
                )
            except CallFailed as exc:
                failure = exc
            sent = failure.sent = sent or failure.kind is Kind.AMBIGUOUS
            if failure.kind is Kind.AMBIGUOUS and on_ambiguous is not None:
                on_ambiguous()
            if failure.kind is Kind.TOKEN and not refreshed and rpc is not AUTHENTICATE:
                refreshed = True
                self._auth.refresh(generation, deadline)
                if told is not None:
                    told.retried(failure.kind.name.lower())
                continue
            if failure.kind in (Kind.FINAL, Kind.TOKEN):
                raise failure
            self._leave(link, failure, patient=left > _PATIENT_SECONDS)
            if failure.kind is Kind.AMBIGUOUS and not idempotent:
                raise failure
            if failure.code == "DEADLINE_EXCEEDED":
                # A large answer over a slow link must get through in the end.
                patience *= 2
            tried.add(link)
            self._explain(link, failure, deadline)
            all_tried = len(tried) >= len(self.endpoints)
            if all_tried and is_tls_failure(failure.details):
                raise failure
            self._pause_before_retry(failure, backoff if all_tried else None, deadline)
            if told is not None:
                told.retried(failure.kind.name.lower())

    def open(self, rpc: Rpc[Req, Resp], link: Link | None = None) -> Duplex[Req, Resp]:
        """Open a bidirectional stream on the current link, or the one given.

        Raises:
            ClosedError: The channel is closed.
        """
        self._auth.ensure(self.deadline(UNSET))
        while True:
            self.check_open()
            generation = self._auth.generation
            try:
                return Duplex(self, link or self.endpoints.pick(), rpc, generation)
            except ValueError as exc:
                if not says_closed(exc):
                    raise
                # Closed with us, or dropped from the list since it was picked: another one then.
                link = None

    def deadline(self, timeout: Timeout) -> float:
        """Return the point on the monotonic clock at which ``timeout`` ends.

        Raises:
            InvalidArgument: It is no number of seconds.
        """
        seconds = self._config.timeout if isinstance(timeout, Unset) else timeout
        if seconds is None:
            return math.inf
        # A negative one is what is left of a time that is over.
        if not _is_number(seconds):
            raise InvalidArgument(f"timeout must be None or a number of seconds, not {seconds!r}")
        return time.monotonic() + seconds

    def metadata(self, needs_leader: bool) -> Metadata:
        """Return the metadata of a call."""
        token = self._auth.token
        leader = (_HAS_LEADER,) if needs_leader else ()
        return (*leader, ("token", token)) if token else leader

    # -- state ---------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether some endpoint answered since all of them failed."""
        return self._down_since is None

    @property
    def away_for(self) -> float | None:
        """Seconds since etcd cannot be reached; None while it can."""
        since = self._down_since
        return None if since is None else time.monotonic() - since

    @property
    def steady_for(self) -> float | None:
        """Seconds since :attr:`connected` is what it is; None before the first try."""
        since = self._since
        return None if since is None else time.monotonic() - since

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closing.is_set()

    def refresh_token(self, seen_generation: int) -> None:
        """Log in again unless another thread has since ``seen_generation``."""
        self._auth.refresh(seen_generation, self.deadline(UNSET))

    @property
    def user(self) -> str | None:
        """Who logs in, if anybody."""
        return self._config.username

    @property
    def logs_in(self) -> bool:
        """Whether the client has a user name."""
        return self._config.username is not None

    @property
    def token_generation(self) -> int:
        """Counts the log-ins."""
        return self._auth.generation

    def answered(self, link: Link) -> None:
        """Note that ``link`` works; the first success after an outage logs the recovery."""
        if link.failing is None and link.broken_at is None and self._is_known_good():
            return
        with self._state_lock:
            link.failing = link.broken_at = None
            since, self._down_since = self._down_since, None
            if self._since is None or since is not None:
                self._since = time.monotonic()
        if since is not None:
            self._tell_restored(link, time.monotonic() - since)

    def _tell_restored(self, link: Link, seconds: float) -> None:
        _log.warning(
            "etcd is reachable again at %s after %.1f s",
            link.endpoint,
            seconds,
            extra=fields(
                Event.CONNECTION_RESTORED,
                prefix=self._config.prefix,
                endpoint=str(link.endpoint),
                seconds=seconds,
            ),
        )
        self._on_state(True, "")

    def _is_known_good(self) -> bool:
        return self._down_since is None and self._since is not None

    def failed(self, link: Link, reason: str) -> None:
        """Note that ``link`` failed; when all have, that is an outage: one warning.

        A connection that breaks is none yet: only if it cannot be made again, or keeps breaking.
        """
        now = time.monotonic()
        with self._state_lock:
            if link.broken_at is None:
                link.broken_at = now
            if is_broken(reason) and now - link.broken_at < _BROKEN_SECONDS:
                return
            link.failing = reason
            begins = (
                self._down_since is None
                and self.endpoints.all_failing()
                and not self._closing.is_set()
            )
            if begins:
                self._down_since = self._since = now
        if begins:
            self._tell_lost(reason)

    def _tell_lost(self, reason: str) -> None:
        addresses = self.endpoints.addresses
        _log.warning(
            "etcd cannot be reached at %s: %s",
            ", ".join(addresses),
            reason,
            extra=fields(
                Event.CONNECTION_LOST,
                prefix=self._config.prefix,
                endpoints=addresses,
                reason=reason,
            ),
        )
        self._on_state(False, reason)

    def suspect(self, link: Link) -> None:
        """Prefer another endpoint: ``link`` accepts requests and answers none."""
        if len(self.endpoints) > 1:
            self.endpoints.rotate(link)
            self.on_suspect(link)

    def check_open(self) -> None:
        """Raise :class:`ClosedError` once :meth:`close` was called."""
        if self._closing.is_set():
            raise ClosedError("the client is closed")

    def pause(self, seconds: float) -> None:
        """Sleep; :meth:`close` ends it.

        Raises:
            ClosedError: The channel was closed meanwhile.
        """
        if self._closing.wait(seconds) if seconds > 0 else self._closing.is_set():
            raise ClosedError("the client is closed")

    def close(self) -> None:
        """End every call in flight with :class:`ClosedError`. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._sync is not None:
            self._sync.stop()
        self.endpoints.close()
        if self._sync is not None:
            self._sync.join(_SYNC_END_SECONDS)

    # -- one attempt ---------------------------------------------------------------------------

    def _attempt(self, link: Link, rpc: Rpc[Req, Resp], request: Req, seconds: float) -> Resp:
        self.check_open()
        mark = self.store.mark()
        timeout = None if math.isinf(seconds) else max(seconds, 0.001)
        try:
            answer = link.unary(rpc.method, request, timeout, self.metadata(rpc.needs_leader))
        except grpc.RpcError as exc:
            raise self._failure(link, exc) from exc
        except ValueError as exc:
            if not says_closed(exc):
                raise
            self.check_open()
            # Dropped from the endpoint list after it was picked: nothing was sent.
            details = f"{link.endpoint} has left the cluster"
            raise CallFailed(Kind.NOT_EXECUTED, "UNAVAILABLE", details, None, sent=False) from exc
        self.answered(link)
        if rpc.ordered:
            self.store.observe(mark, cast("_Answer", answer).header)
        return cast(Resp, answer)

    def _failure(self, link: Link, exc: grpc.RpcError) -> CallFailed:
        code, details = status_of(exc)
        if self._closing.is_set():
            raise ClosedError("the client is closed") from exc
        kind = classify(code, details)
        if kind in (Kind.FINAL, Kind.TOKEN):
            self.answered(link)
        return CallFailed(kind, code, details, exc, sent=False)

    def _pause_before_retry(
        self, failure: CallFailed, backoff: Backoff | None, deadline: float
    ) -> None:
        """Wait as long as ``backoff`` says, not at all without one.

        Raises:
            CallFailed: The time left is too short for another attempt.
        """
        delay, least = (0.0, 0.0) if backoff is None else (backoff.next(), _LEAST_SECONDS)
        if is_overload(failure.details):
            delay = max(delay, _OVERLOAD_PAUSE)
        left = deadline - time.monotonic()
        if left <= least:
            # By the last attempt: a request that was lost before a refused connection did not
            # run out of time.
            failure.timed_out = failure.kind is Kind.AMBIGUOUS
            raise failure
        # A long pause must not use up the time in which the next attempt could succeed.
        self.pause(min(delay, left - least))

    def _explain(self, link: Link, failure: CallFailed, deadline: float) -> None:
        """Name the cause where gRPC cannot: plain requests to a server that wants TLS."""
        if self._tls or not is_hung_up(failure.details):
            return
        left = deadline - time.monotonic()
        if left > 0 and link.speaks_tls(min(left, _PROBE_SECONDS)):
            failure.details = (
                f"{link.endpoint} speaks TLS: give tls= or an https:// endpoint; {failure.details}"
            )

    def _leave(self, link: Link, failure: CallFailed, *, patient: bool) -> None:
        if is_learner(failure.details):
            self.endpoints.park(link)
        elif is_overload(failure.details):
            _log.debug("%s is overloaded", link.endpoint)
        elif patient or failure.code != "DEADLINE_EXCEEDED":
            # A caller with a few milliseconds to spare says nothing about the member's health.
            self.failed(link, failure.details)
        self.endpoints.rotate(link)


class _Answer:
    """What :class:`StoreClock` needs of an answer; for the type checker only."""

    header: pb.ResponseHeader


class _Auth:
    """The login token. One Authenticate for any number of threads that need one."""

    def __init__(self, channel: Channel, config: Config) -> None:
        self._channel = channel
        self._config = config
        self._lock = threading.Lock()
        self.token: str | None = None
        self.generation = 0

    def ensure(self, deadline: float) -> None:
        """Log in if that has not been done yet."""
        if self._config.username is not None and self.generation == 0:
            self.refresh(0, deadline)

    def refresh(self, seen_generation: int, deadline: float) -> None:
        """Log in, unless somebody has since ``seen_generation`` was read.

        Raises:
            Unauthenticated: The user name or password is wrong. Not tried again: each try costs the
                server a bcrypt.
        """
        if self._config.username is None:
            return
        left = deadline - time.monotonic()
        if not self._lock.acquire(timeout=min(max(left, 0.0), threading.TIMEOUT_MAX)):
            raise RequestTimeout("log in: another thread's login took too long")
        try:
            if self.generation == seen_generation:
                self.token = self._authenticate(deadline - time.monotonic())
                self.generation += 1
        finally:
            self._lock.release()

    def _authenticate(self, seconds: float) -> str | None:
        request = Login(self._config)
        # A stale token must not travel with the request that replaces it.
        self.token = None
        try:
            timeout = None if math.isinf(seconds) else max(seconds, 0.001)
            answer = self._channel.call(AUTHENTICATE, request, timeout=timeout, idempotent=True)
        except CallFailed as exc:
            if is_auth_disabled(exc.details):
                return None
            raise self._refusal(exc) from exc.error
        return Token(answer.token)

    def _refusal(self, exc: CallFailed) -> EtcdError:
        what = f"log in as {self._config.username!r}"
        error = _typed(exc, what, write=False)
        refused = exc.kind in (Kind.FINAL, Kind.TOKEN)
        if refused and not isinstance(error, Unauthenticated):
            return Unauthenticated(str(error))
        return error


class StoreClock:
    """Watches that linearizable answers never go back: revision, raft term, cluster id.

    etcd restarted with an empty data directory keeps its cluster and member ids, so only the
    numbers tell (semantics fact 5). A call compares with what was known when it was *sent*: answers
    of concurrent calls may arrive in any order.
    """

    def __init__(self, on_reset: Callable[[ResetNotice], None]) -> None:
        self._lock = threading.Lock()
        self._on_reset = on_reset
        self._epoch = 0
        self.revision = 0
        self._term = 0
        self._cluster = 0

    @property
    def epoch(self) -> int:
        """Counts the resets."""
        return self._epoch

    @property
    def term(self) -> int:
        """The newest raft term seen."""
        return self._term

    def know(self, revision: int, epoch: int) -> None:
        """Take in a revision that a watch told of: it is committed, so no read may be older.

        What was told before a reset (in an older ``epoch``) says nothing about the store of now.
        """
        with self._lock:
            if epoch == self._epoch:
                self.revision = max(self.revision, revision)

    def mark(self) -> tuple[int, int, int, int]:
        """Return what is known now; hand it to :meth:`observe` with the answer."""
        return self._epoch, self.revision, self._term, self._cluster

    def observe(self, mark: tuple[int, int, int, int], header: pb.ResponseHeader) -> None:
        """Take an answer into account; tell about a reset once."""
        epoch, revision, term, cluster = mark
        backwards = (
            header.revision < revision
            or header.raft_term < term
            or (cluster != 0 and header.cluster_id != cluster)
        )
        with self._lock:
            if epoch != self._epoch:
                return
            if not backwards:
                self.revision = max(self.revision, header.revision)
                self._term = max(self._term, header.raft_term)
                self._cluster = header.cluster_id
                return
            notice = ResetNotice(before=self.revision, after=header.revision)
            self._epoch += 1
            self.revision = header.revision
            self._term = header.raft_term
            self._cluster = header.cluster_id
        _log.warning(
            "etcd was reset: revision %d became %d",
            notice.before,
            notice.after,
            extra=fields(Event.STORE_RESET, before=notice.before, after=notice.after),
        )
        self._on_reset(notice)


class _AutoSync:
    """Refreshes the endpoint list from the cluster, in a thread ``etcd-endpoint-sync``."""

    def __init__(self, channel: Channel, config: Config) -> None:
        self._channel = channel
        self._interval = config.auto_sync_interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etcd-endpoint-sync", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; it may finish a request first."""
        self._stop.set()

    def join(self, timeout: float) -> None:
        """Wait for the thread's end."""
        if self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._refresh()
            except ClosedError:
                return
            except (ConnectionFailed, RequestTimeout, OutcomeUnknown) as exc:
                _log.debug("endpoint list not refreshed: %s", exc)
            except Exception:
                _log.exception(
                    "endpoint list not refreshed",
                    extra=fields(Event.INTERNAL_ERROR, part="endpoint sync"),
                )

    def _refresh(self) -> None:
        answer = self._channel.unary(MEMBER_LIST, pb.MemberListRequest(), what="list members")
        urls = [
            url
            for member in answer.members
            if member.name and not member.isLearner
            for url in member.clientURLs
        ]
        self._channel.endpoints.replace(_parse_all(urls))


def _typed(exc: CallFailed, what: str, *, write: bool, user: str | None = None) -> EtcdError:
    """Return the public error for a failure."""
    if exc.kind in (Kind.FINAL, Kind.TOKEN):
        return final_error(what, exc.code, exc.details, user)
    return unanswered_error(what, exc.details, sent=exc.sent, timed_out=exc.timed_out, write=write)


def _parse_all(urls: list[str]) -> list[Endpoint]:
    parsed = []
    for url in urls:
        try:
            parsed.append(Endpoint.parse(url))
        except InvalidConfig as exc:
            _log.debug("member address ignored: %s", exc)
    return parsed


def status_of(exc: grpc.RpcError) -> tuple[str, str]:
    """Return the status code's name and the text of a gRPC error."""
    call = cast(grpc.Call, exc)
    try:
        code, details = call.code(), call.details()
    except AttributeError:
        return "UNKNOWN", str(exc)
    return code.name if code is not None else "UNKNOWN", details or ""


def says_closed(exc: ValueError) -> bool:
    """Tell whether gRPC's channel was closed under a call; gRPC has two texts for it."""
    text = str(exc).lower()
    return "channel" in text and "closed" in text


def _prepare_gevent() -> None:
    """Let gRPC run under a patched gevent; without this its first call freezes the worker."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("threading"):
        from grpc.experimental import gevent as grpc_gevent  # type: ignore[attr-defined]

        grpc_gevent.init_gevent()
