"""``etcd://service/path`` for httpx: a transport to mount on a client.

Runs in the caller's thread. Needs the extra ``httpx``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import httpx  # type: ignore[import-not-found,import-untyped,unused-ignore]

from ..resolver import Resolver, base_url, is_idempotent

if TYPE_CHECKING:
    from ..client import Client
    from ..descriptor import Descriptor


class EtcdTransport(httpx.BaseTransport):  # type: ignore[misc,unused-ignore]
    """Sends ``etcd://billing/path`` to an instance of ``billing``. Thread-safe.

    httpx lower-cases the host of a URL, so a service's name must be lower-case to be found. When an
    idempotent request cannot connect, or its connection breaks, the next instance is tried, at most
    ``attempts`` of them; others fail with the error.

    Args:
        client: Where the service is looked up. Its views stay open until it is closed.
        attempts: Instances to try.
        transport: What sends the requests; default a plain ``httpx.HTTPTransport``.

    Example:
        >>> with httpx.Client(mounts={"etcd://": EtcdTransport(client)}) as http:
        ...     http.get("etcd://billing/invoices/7")
    """

    def __init__(
        self, client: Client, *, attempts: int = 3, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._client = client
        self._attempts = attempts
        self._transport = transport or httpx.HTTPTransport()
        self._resolvers: dict[str, Resolver] = {}
        self._resolvers_lock = threading.Lock()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request to an instance.

        Raises:
            NoInstances: The service has none.
            httpx.TransportError: The instances tried could not be reached.
        """
        resolver = self._resolver(request.url.host)
        attempts = self._attempts if is_idempotent(request.method) else 1
        tried: set[str] = set()
        while True:
            instance = resolver.pick(exclude=tried)
            tried.add(instance.id)
            try:
                answer = self._transport.handle_request(_directed(request, instance))
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.RemoteProtocolError):
                resolver.failed(instance)
                if len(tried) >= min(attempts, len(resolver)):
                    raise
                continue
            resolver.succeeded(instance)
            return answer

    def close(self) -> None:
        """Close the connections; the views belong to the etcd client."""
        self._transport.close()

    def _resolver(self, service: str) -> Resolver:
        with self._resolvers_lock:
            known = self._resolvers.get(service)
        if known is not None:
            return known
        # The first snapshot takes a round trip, so not under the lock.
        fresh = Resolver(self._client.services(service))
        with self._resolvers_lock:
            return self._resolvers.setdefault(service, fresh)


def _directed(request: httpx.Request, instance: Descriptor) -> httpx.Request:
    target = httpx.URL(base_url(instance))
    url = request.url.copy_with(scheme=target.scheme, host=target.host, port=target.port)
    headers = request.headers.copy()
    headers["host"] = url.netloc.decode("ascii")
    return httpx.Request(
        request.method,
        url,
        headers=headers,
        stream=request.stream,
        extensions=request.extensions,
    )
