"""The members we talk to: one gRPC channel each, and which of them is next.

We pick ourselves instead of handing gRPC a list: a learner must be parked, a hung member avoided,
and a call retried on another member than the one that just failed it. Sticky on purpose: one
member's channel serves a process until it fails.
"""

from __future__ import annotations

import operator
import random
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import grpc

from ..config import Endpoint, Tls
from . import messages as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

# Not the class's own method: a login is not a message, since a message would show its password.
_serialize = operator.methodcaller("SerializeToString")

Metadata = tuple[tuple[str, str], ...]
AnyMethod = pb.Method[Any, Any]

_PARKED_SECONDS = 5.0

# Measured (semantics 9.4). Without ping_timeout a hung member is found after a minute, without
# max_pings 0 an idle watch stops pinging; the server answers pings under 5 s with GOAWAY; and
# gRPC's own limit of 4 MiB on answers would break a large range for ever.
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", 2 * 1024 * 1024),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # The time a connection may take to be set up, not a delay: TLS over a slow link needs it.
    ("grpc.min_reconnect_backoff_ms", 3_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


class Link:
    """One endpoint and its gRPC channel, connected at first use."""

    def __init__(self, endpoint: Endpoint, channel: grpc.Channel, *, seed: bool) -> None:
        self.endpoint = endpoint
        self.seed = seed
        self.parked_until = 0.0
        self.failing: str | None = None
        self.broken_at: float | None = None
        self.has_answered = False
        self._channel = channel
        self._calls: dict[str, Any] = {}

    def unary(
        self, method: AnyMethod, request: object, timeout: float | None, metadata: Metadata
    ) -> object:
        """Send one unary call and wait.

        Raises:
            grpc.RpcError: As gRPC raises it.
        """
        call = self._calls.get(method.path)
        if call is None:
            call = self._calls[method.path] = self._channel.unary_unary(
                method.path,
                request_serializer=_serialize,
                response_deserializer=method.response.FromString,
            )
        answer = call(request, timeout=timeout, metadata=metadata)
        self.has_answered = True
        return answer

    def stream(
        self, method: AnyMethod, requests: Iterator[object], timeout: float | None, meta: Metadata
    ) -> grpc.CallIterator[Any]:
        """Open a bidirectional call.

        Raises:
            grpc.RpcError: As gRPC raises it, on iteration.
        """
        multi = self._channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return multi(requests, timeout=timeout, metadata=meta)

    def server_stream(
        self, method: AnyMethod, request: object, timeout: float | None, metadata: Metadata
    ) -> grpc.CallIterator[Any]:
        """Open a call with one request and many answers."""
        multi = self._channel.unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )
        return multi(request, timeout=timeout, metadata=metadata)

    def speaks_tls(self, timeout: float) -> bool:
        """Say hello once, without gRPC: a server that speaks TLS hangs up on plain requests.

        Not with ``ssl.wrap_socket``: CPython leaks the socket where the peer has already reset it.
        One that has answered without TLS is not asked: an outage would be spent in greetings.
        """
        if self.has_answered:
            return False
        import ssl

        # Nothing is verified, so no certificates are loaded, which would take most of the time.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        hello = ssl.MemoryBIO()
        shake = context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname=self.endpoint.host)
        with suppress(ssl.SSLWantReadError):
            shake.do_handshake()
        try:
            address = (self.endpoint.host, self.endpoint.port)
            with socket.create_connection(address, timeout) as sock:
                sock.sendall(hello.read())
                # The type of the first record: an alert, be it a refusal, or a handshake.
                return sock.recv(1) in (b"\x15", b"\x16")
        except OSError:
            return False

    def close(self) -> None:
        """Close the channel; calls in flight end with CANCELLED."""
        self._channel.close()

    def __repr__(self) -> str:
        """Return the address."""
        return f"<Link {self.endpoint}>"


class Endpoints:
    """The links of one client and the picker over them. Safe to use from any thread."""

    def __init__(
        self,
        seeds: Sequence[Endpoint],
        tls: Tls | None,
        interceptors: Sequence[object] = (),
    ) -> None:
        self._lock = threading.Lock()
        self._interceptors = tuple(interceptors)
        self._connect = _connector(tls)
        self._links = [self._open(endpoint, seed=True) for endpoint in seeds]
        # Start anywhere: a fleet must not sit on the first member of its list.
        self._at = random.randrange(len(self._links))
        self._closed = False

    def __len__(self) -> int:
        """Return the number of links."""
        return len(self._links)

    @property
    def addresses(self) -> tuple[str, ...]:
        """All addresses, for logs."""
        return tuple(str(link.endpoint) for link in self._links)

    def pick(self) -> Link:
        """Return the link to use next: the current one unless it is parked."""
        with self._lock:
            now = time.monotonic()
            count = len(self._links)
            for step in range(count):
                link = self._links[(self._at + step) % count]
                if link.parked_until <= now:
                    self._at = (self._at + step) % count
                    return link
            return self._links[self._at]

    def rotate(self, away_from: Link) -> None:
        """Make another link current, unless somebody already has."""
        with self._lock:
            if self._links[self._at] is away_from:
                self._at = (self._at + 1) % len(self._links)

    def park(self, link: Link) -> None:
        """Leave a learner alone for a while."""
        link.parked_until = time.monotonic() + _PARKED_SECONDS

    def all_failing(self) -> bool:
        """Tell whether every link has failed since it last answered."""
        return all(link.failing is not None for link in self._links)

    def replace(self, members: Iterable[Endpoint]) -> None:
        """Take the cluster's own list; links that are no member stay as the last resort.

        Never shrinks below the seed list: an empty or unreachable list must not lock us out.
        """
        wanted = list(dict.fromkeys(members))
        if not wanted:
            return
        with self._lock:
            if self._closed:
                return
            current = self._links[self._at]
            known = {link.endpoint.target: link for link in self._links}
            links = [
                known.pop(e.target) if e.target in known else self._open(e, seed=False)
                for e in wanted
            ]
            links += [link for link in known.values() if link.seed or link is current]
            gone = [link for link in known.values() if not link.seed and link is not current]
            self._links = links
            self._at = links.index(current)
        for link in gone:
            link.close()

    def close(self) -> None:
        """Close every channel, and open no other from now on."""
        with self._lock:
            self._closed = True
            links = self._links
        for link in links:
            link.close()

    def _open(self, endpoint: Endpoint, *, seed: bool) -> Link:
        channel = self._connect(endpoint.target)
        if self._interceptors:
            channel = grpc.intercept_channel(channel, *self._interceptors)  # type: ignore[arg-type]
        return Link(endpoint, channel, seed=seed)


def _connector(tls: Tls | None) -> Callable[[str], grpc.Channel]:
    options: list[tuple[str, Any]] = list(_OPTIONS)
    if tls is None:
        return lambda target: grpc.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(
        root_certificates=tls.read("ca"),
        private_key=tls.read("key"),
        certificate_chain=tls.read("cert"),
    )
    if tls.server_name is not None:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return lambda target: grpc.secure_channel(target, credentials, options=options)
