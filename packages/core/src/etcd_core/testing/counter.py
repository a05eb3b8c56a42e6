"""Counts the requests that a client sends: an interceptor for a gRPC channel.

Called on whatever thread makes a call, and on gRPC's own threads for the messages of a stream.
Imports grpc, so it is not imported with the package.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

import grpc

Request = TypeVar("Request")
Response = TypeVar("Response")

if TYPE_CHECKING:
    _UnaryUnary = grpc.UnaryUnaryClientInterceptor[object, object]
    _UnaryStream = grpc.UnaryStreamClientInterceptor[object, object]
    _StreamStream = grpc.StreamStreamClientInterceptor[object, object]
else:
    # The classes are generic in their type stubs only.
    _UnaryUnary = grpc.UnaryUnaryClientInterceptor
    _UnaryStream = grpc.UnaryStreamClientInterceptor
    _StreamStream = grpc.StreamStreamClientInterceptor


class RpcCounter(_UnaryUnary, _UnaryStream, _StreamStream):
    """Counts requests by the short name of their method, such as ``Txn``.

    A call counts when it is made, whatever its end. On a two-way stream (``Watch``,
    ``LeaseKeepAlive``) each message that is sent counts, and opening the stream does not: see
    :attr:`streams`. Thread-safe. Hand it to a client (``Client(config, interceptors=[counter])``)
    or to ``grpc.intercept_channel``.

    Example:
        >>> with counter.expect(Txn=1, DeleteRange=1):
        ...     client.lock("jobs").unlock()
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._streams: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Requests sent since the start or the last :meth:`reset`, by method."""
        with self._lock:
            return dict(self._counts)

    @property
    def streams(self) -> dict[str, int]:
        """Two-way streams opened since the start or the last :meth:`reset`, by method."""
        with self._lock:
            return dict(self._streams)

    @property
    def total(self) -> int:
        """The sum of :attr:`counts`."""
        return sum(self.counts.values())

    def reset(self) -> None:
        """Count from zero again."""
        with self._lock:
            self._counts.clear()
            self._streams.clear()

    @contextmanager
    def expect(self, **requests: int) -> Iterator[None]:
        """Check what is sent while the block runs: these requests, and no others.

        Raises:
            AssertionError: Other numbers were sent; names each difference. Not raised when the
                block itself raises.
        """
        before = Counter(self.counts)
        yield
        sent = Counter(self.counts)
        sent.subtract(before)
        names = sorted({*requests, *sent})
        wrong = [
            f"{name}: expected {requests.get(name, 0)}, sent {sent[name]}"
            for name in names
            if requests.get(name, 0) != sent[name]
        ]
        if wrong:
            raise AssertionError("requests differ: " + "; ".join(wrong))

    def intercept_unary_unary(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Request], Response],
        client_call_details: grpc.ClientCallDetails,
        request: Request,
    ) -> Response:
        """Count one call."""
        self._count(self._counts, client_call_details)
        return continuation(client_call_details, request)

    def intercept_unary_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Request], Response],
        client_call_details: grpc.ClientCallDetails,
        request: Request,
    ) -> Response:
        """Count one call."""
        self._count(self._counts, client_call_details)
        return continuation(client_call_details, request)

    def intercept_stream_stream(
        self,
        continuation: Callable[[grpc.ClientCallDetails, Iterator[Request]], Response],
        client_call_details: grpc.ClientCallDetails,
        request_iterator: Iterator[Request],
    ) -> Response:
        """Count the messages as they are taken from ``request_iterator``."""
        self._count(self._streams, client_call_details)
        sent = _Counted(
            iter(request_iterator), lambda: self._count(self._counts, client_call_details)
        )
        return continuation(client_call_details, sent)

    def _count(self, counts: Counter[str], details: grpc.ClientCallDetails) -> None:
        name = details.method.rpartition("/")[2]
        with self._lock:
            counts[name] += 1


class _Counted(Generic[Request]):
    """An iterator that reports each item as it is taken."""

    def __init__(self, items: Iterator[Request], count: Callable[[], None]) -> None:
        self._items = items
        self._count = count

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        item = next(self._items)
        self._count()
        return item
