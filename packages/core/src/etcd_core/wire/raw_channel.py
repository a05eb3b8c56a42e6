"""What etcd3's stubs call in place of a `grpc.Channel`: every RPC goes through our own channel.

So it has failover, retries, and token refresh. Failures stay gRPC's own errors, which etcd3 turns
into its exceptions. It holds no gRPC object and so outlives a fork. Any thread may use it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol, TypeAlias

import grpc
from google.protobuf.message import Message

from ..config import UNSET, Timeout, Unset
from ..errors import ClosedError, ConnectionFailed, EtcdError, InvalidArgument
from . import messages as pb
from .channel import Backoff, CallFailed, Channel, says_closed, status_of
from .classify import Kind, classify
from .endpoints import Link, Metadata
from .rpc import Rpc, raw_rpc

if TYPE_CHECKING:
    from ..engine import Scope

Serializer: TypeAlias = Callable[[Message], bytes]
Deserializer: TypeAlias = Callable[[bytes], Message]
# In quotes: only the type stubs of gRPC have the name.
_Answers: TypeAlias = "grpc.CallIterator[Message]"
_Begin: TypeAlias = "Callable[[Link, float | None, Metadata], _Answers]"

# Not ordered: the user may have asked for serializable reads, which a lagging member answers.
_READ_TXN: Rpc[object, object] = Rpc("KV/Txn", idempotent=True)


class Patience:
    """The timeout of a raw client: ``Config.timeout`` until the user sets another."""

    def __init__(self, scope: Callable[[], Scope]) -> None:
        self._scope = scope
        self._chosen: Timeout = UNSET

    @property
    def seconds(self) -> float | None:
        """Seconds for one call; None waits for ever."""
        if isinstance(self._chosen, Unset):
            return self._scope().engine.config.timeout
        return self._chosen

    @seconds.setter
    def seconds(self, value: float | None) -> None:
        self._chosen = value


class UnaryCall(Protocol):
    """A bound RPC with one answer. ``metadata``, ``credentials`` and the like are ignored."""

    def __call__(
        self, request: Message, timeout: Timeout = UNSET, *ignored: object, **also: object
    ) -> Message:
        """Send ``request`` and wait for the answer."""


class StreamCall(Protocol):
    """A bound RPC with a stream of answers. ``metadata`` and the like are ignored."""

    def __call__(
        self, request: object, timeout: Timeout = UNSET, *ignored: object, **also: object
    ) -> RoutedStream:
        """Prepare the call; iterating over it sends it."""


class _Bound:
    """One RPC as a stub binds it, and the messages that it speaks.

    They are ours, unless etcd3 was imported before us and could load its own generated code: then
    they are of other classes with the same wire format.
    """

    def __init__(
        self, path: str, serialize: Serializer | None, deserialize: Deserializer | None
    ) -> None:
        self._rpc = raw_rpc(path)
        try:
            self.method = self._rpc.method
        except KeyError:
            raise InvalidArgument(f"raw: etcd has no RPC {path!r}") from None
        self._serialize = serialize
        ours = deserialize is None or deserialize == self.method.response.FromString
        self._deserialize = None if ours else deserialize

    def request(self, message: Message) -> Message:
        """Return ``message`` as one of ours."""
        if isinstance(message, self.method.request) or self._serialize is None:
            return message
        ours: Message = self.method.request.FromString(self._serialize(message))
        return ours

    def answer(self, message: Message) -> Message:
        """Return our ``message`` as the caller's stub expects it."""
        if self._deserialize is None:
            return message
        return self._deserialize(message.SerializeToString())

    def rule(self, request: Message | None = None) -> Rpc[object, object]:
        """Return how this call may be retried."""
        if isinstance(request, pb.TxnRequest) and _only_reads(request):
            return _READ_TXN
        return self._rpc


def _only_reads(txn: pb.TxnRequest) -> bool:
    return all(
        op.HasField("request_range") or (op.HasField("request_txn") and _only_reads(op.request_txn))
        for op in (*txn.success, *txn.failure)
    )


class RoutedChannel:
    """The part of a ``grpc.Channel`` that stubs use, over the channel of a client.

    Args:
        scope: Gives this process's scope.
        patience: The timeout of calls that come without one.
    """

    def __init__(self, scope: Callable[[], Scope], patience: Patience) -> None:
        self._scope = scope
        self._patience = patience

    def unary_unary(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        **ignored: object,
    ) -> UnaryCall:
        """Return a callable that sends one request and returns its answer."""
        bound = _Bound(method, request_serializer, response_deserializer)

        def call(
            request: Message, timeout: Timeout = UNSET, *ignored: object, **also: object
        ) -> Message:
            return self._unary(bound, request, timeout)

        return call

    def unary_stream(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        **ignored: object,
    ) -> StreamCall:
        """Return a callable that sends one request and returns a stream of answers."""
        bound = _Bound(method, request_serializer, response_deserializer)

        def call(
            request: object, timeout: Timeout = UNSET, *ignored: object, **also: object
        ) -> RoutedStream:
            message = bound.request(_message(request))

            def begin(link: Link, seconds: float | None, metadata: Metadata) -> _Answers:
                return link.server_stream(bound.method, message, seconds, metadata)

            return self._stream(bound, begin, timeout, repeatable=True)

        return call

    def stream_stream(
        self,
        method: str,
        request_serializer: Serializer | None = None,
        response_deserializer: Deserializer | None = None,
        **ignored: object,
    ) -> StreamCall:
        """Return a callable that sends a stream of requests and returns one of answers.

        Requests from a sequence can be sent again after a failure; those from an iterator cannot.
        """
        bound = _Bound(method, request_serializer, response_deserializer)

        def call(
            request: object, timeout: Timeout = UNSET, *ignored: object, **also: object
        ) -> RoutedStream:
            requests = _requests(request)

            def begin(link: Link, seconds: float | None, metadata: Metadata) -> _Answers:
                return link.stream(bound.method, map(bound.request, requests), seconds, metadata)

            again = not isinstance(requests, Iterator)
            return self._stream(bound, begin, timeout, repeatable=again)

        return call

    def close(self) -> None:
        """Do nothing: the channel is the client's."""

    def _unary(self, bound: _Bound, request: Message, timeout: Timeout) -> Message:
        message = bound.request(request)
        rule = bound.rule(message)
        channel = self._scope().engine.channel
        try:
            answer = channel.call(
                rule, message, timeout=self._seconds(timeout), idempotent=rule.idempotent
            )
        except (CallFailed, EtcdError) as exc:
            if _is_revoked_already(rule, exc):
                return bound.answer(pb.LeaseRevokeResponse())
            failure = _as_grpc_told(exc)
        else:
            return bound.answer(_message(answer))
        raise failure

    def _stream(
        self, bound: _Bound, begin: _Begin, timeout: Timeout, *, repeatable: bool
    ) -> RoutedStream:
        channel = self._scope().engine.channel
        seconds = self._seconds(timeout)
        return RoutedStream(channel, bound, begin, seconds, repeatable=repeatable)

    def _seconds(self, timeout: Timeout) -> float | None:
        return self._patience.seconds if isinstance(timeout, Unset) else timeout


class RoutedStream:
    """A call with a stream of answers. Iterate in one thread; :meth:`cancel` from any.

    Until its first answer it is opened again on another endpoint where that can help: etcd's
    streaming RPCs change nothing that opening them twice would change twice.

    Raises:
        grpc.RpcError: As gRPC raises it, on iteration.
        ClosedError: The client was closed, on iteration.
    """

    def __init__(
        self,
        channel: Channel,
        bound: _Bound,
        begin: _Begin,
        timeout: float | None,
        *,
        repeatable: bool,
    ) -> None:
        self._channel = channel
        self._bound = bound
        self._begin = begin
        self._deadline = channel.deadline(timeout)
        self._repeatable = repeatable
        self._refreshed = False
        self._cancelled = False
        self._call: _Answers | None = None
        self._answers = self._run()

    def __iter__(self) -> Iterator[Message]:
        """Return itself."""
        return self

    def __next__(self) -> Message:
        """Return the next answer."""
        return next(self._answers)

    def cancel(self) -> None:
        """End the call; the iteration then fails with CANCELLED."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()  # type: ignore[no-untyped-call]

    def _run(self) -> Iterator[Message]:
        channel = self._channel
        backoff = Backoff()
        while True:
            generation, link = self._log_in(), channel.endpoints.pick()
            call = self._call = self._open(link)
            if self._cancelled:
                call.cancel()  # type: ignore[no-untyped-call]
            started = False
            try:
                for answer in call:
                    started = True
                    channel.answered(link)
                    yield self._bound.answer(answer)
                return
            except grpc.RpcError as exc:
                failure = exc
            finally:
                call.cancel()  # type: ignore[no-untyped-call]
            if not self._mend(failure, link, generation, started):
                raise failure
            delay = backoff.next()
            if time.monotonic() + delay >= self._deadline:
                raise failure
            channel.pause(delay)

    def _log_in(self) -> int:
        channel = self._channel
        channel.check_open()
        if channel.logs_in and channel.token_generation == 0:
            self._refresh_token(0)
        return channel.token_generation

    def _open(self, link: Link) -> _Answers:
        left = self._deadline - time.monotonic()
        seconds = None if math.isinf(left) else max(left, 0.001)
        metadata = self._channel.metadata(self._bound.rule().needs_leader)
        try:
            return self._begin(link, seconds, metadata)
        except ValueError as exc:
            if not says_closed(exc):
                raise
            self._channel.check_open()
            # Dropped from the endpoint list after it was picked: nothing was sent.
            return self._open(self._channel.endpoints.pick())

    def _mend(self, failure: grpc.RpcError, link: Link, generation: int, started: bool) -> bool:
        """Do what a new attempt needs; return whether one is allowed."""
        self._channel.check_open()
        code, details = status_of(failure)
        kind = classify(code, details)
        if self._cancelled or kind is Kind.FINAL:
            return False
        if kind is Kind.TOKEN:
            first, self._refreshed = not self._refreshed, True
            if first:
                self._refresh_token(generation)
            return first and self._repeatable and not started
        if code == "UNAVAILABLE":
            self._channel.failed(link, details)
        self._channel.endpoints.rotate(link)
        return self._repeatable and not started

    def _refresh_token(self, generation: int) -> None:
        try:
            self._channel.refresh_token(generation)
        except EtcdError as exc:
            failure = _as_grpc_told(exc)
        else:
            return
        raise failure


def _as_grpc_told(exc: CallFailed | EtcdError) -> Exception:
    """Return gRPC's error behind ``exc``; one that gRPC had no part in stays ours."""
    if isinstance(exc, CallFailed):
        return exc.error or ConnectionFailed(exc.details)
    cause = exc.__cause__
    if isinstance(cause, grpc.RpcError) and not isinstance(exc, ClosedError):
        return cause
    return exc


def _is_revoked_already(rule: Rpc[object, object], exc: CallFailed | EtcdError) -> bool:
    """Tell whether a repeated revocation met the work of its own first attempt."""
    return (
        isinstance(exc, CallFailed)
        and rule.name == "Lease/LeaseRevoke"
        and exc.sent
        and exc.code == "NOT_FOUND"
    )


def _message(value: object) -> Message:
    if not isinstance(value, Message):
        raise InvalidArgument(f"raw: not a message: {type(value).__name__}")
    return value


def _requests(value: object) -> Iterable[Message]:
    if not isinstance(value, Iterable):
        raise InvalidArgument(f"raw: not a stream of messages: {type(value).__name__}")
    return value
