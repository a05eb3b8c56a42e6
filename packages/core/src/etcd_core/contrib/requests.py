"""``etcd://service/path`` for requests: a transport adapter to mount on a session.

Runs in the caller's thread. Needs the extra ``requests``.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import requests  # type: ignore[import-not-found,import-untyped,unused-ignore]
from requests.adapters import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
    HTTPAdapter,
)

from ..resolver import Resolver, base_url, is_idempotent

if TYPE_CHECKING:
    from ..client import Client
    from ..descriptor import Descriptor


class EtcdAdapter(HTTPAdapter):  # type: ignore[misc,unused-ignore]
    """Sends ``etcd://billing/path`` to an instance of ``billing``. Thread-safe.

    When an idempotent request meets a connection error the next instance is tried, at most
    ``attempts`` of them; others fail with the error.

    Args:
        client: Where the service is looked up. Its views stay open until it is closed.
        attempts: Instances to try.
        options: As :class:`requests.adapters.HTTPAdapter`.

    Example:
        >>> session = requests.Session()
        >>> session.mount("etcd://", EtcdAdapter(client))
        >>> session.get("etcd://billing/invoices/7")
    """

    def __init__(self, client: Client, *, attempts: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self._client = client
        self._attempts = attempts
        self._resolvers: dict[str, Resolver] = {}
        self._resolvers_lock = threading.Lock()

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Send the request to an instance.

        Raises:
            NoInstances: The service has none.
            requests.ConnectionError: The instances tried could not be reached.
        """
        parts = urlsplit(request.url or "")
        # Not parts.hostname: that is lower-cased, and a service's name is not.
        resolver = self._resolver(parts.netloc.rpartition("@")[2].partition(":")[0])
        attempts = self._attempts if is_idempotent(request.method or "") else 1
        tried: set[str] = set()
        while True:
            instance = resolver.pick(exclude=tried)
            tried.add(instance.id)
            try:
                answer = super().send(_directed(request, instance), *args, **kwargs)
            except requests.ConnectionError:
                resolver.failed(instance)
                if len(tried) >= min(attempts, len(resolver)):
                    raise
                continue
            resolver.succeeded(instance)
            return answer

    def _resolver(self, service: str) -> Resolver:
        with self._resolvers_lock:
            known = self._resolvers.get(service)
        if known is not None:
            return known
        # The first snapshot takes a round trip, so not under the lock.
        fresh = Resolver(self._client.services(service))
        with self._resolvers_lock:
            return self._resolvers.setdefault(service, fresh)


def _directed(request: requests.PreparedRequest, instance: Descriptor) -> requests.PreparedRequest:
    parts = urlsplit(request.url or "")
    target = urlsplit(base_url(instance))
    directed = request.copy()
    directed.url = urlunsplit((target.scheme, target.netloc, parts.path or "/", parts.query, ""))
    return directed
