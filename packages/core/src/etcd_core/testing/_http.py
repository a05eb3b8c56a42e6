"""The HTTP side of an etcd server: health, and the JSON gateway for what the fixtures need.

Quicker than starting etcdctl and needs no gRPC. A connection per call, in the calling thread.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from .tls import TlsFiles


@dataclass(frozen=True)
class Status:
    """What one member says about itself."""

    member_id: int
    leader: int
    term: int


class HttpApi:
    """Calls to one server on 127.0.0.1. Every failure is an OSError or a ValueError."""

    def __init__(self, port: int, tls: TlsFiles | None) -> None:
        self._port = port
        self._tls = _context(tls) if tls else None

    def healthy(self, timeout: float) -> bool:
        """Whether a linearizable read succeeds; an alarm such as NOSPACE is no failure."""
        body = self._request("GET", "/health", None, timeout)
        if b"ALARM" in body:
            body = self._request("GET", "/health?exclude=NOSPACE&exclude=CORRUPT", None, timeout)
        return _text(_object(body), "health") == "true"

    def status(self, timeout: float) -> Status:
        """Ask the member itself; answers without a leader and without credentials too."""
        answer = self._post("/v3/maintenance/status", {}, timeout)
        member_id = int(_text(_child(answer, "header"), "member_id"))
        # The gateway leaves zero fields out: no leader, no field.
        leader, term = answer.get("leader", "0"), answer.get("raftTerm", "0")
        return Status(member_id, int(str(leader)), int(str(term)))

    def delete_range(self, key: bytes, range_end: bytes, timeout: float) -> None:
        """Delete every key in the half-open range; without authentication only."""
        body = {"key": _b64(key), "range_end": _b64(range_end)}
        self._post("/v3/kv/deleterange", body, timeout)

    def _post(self, path: str, body: Mapping[str, str], timeout: float) -> dict[str, object]:
        return _object(self._request("POST", path, json.dumps(body), timeout))

    def _request(self, method: str, path: str, body: str | None, timeout: float) -> bytes:
        connection = self._connection(timeout)
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            payload = answer.read()
        except http.client.HTTPException as exc:
            raise ConnectionError(f"{method} {path}: {type(exc).__name__}") from exc
        finally:
            connection.close()
        # An unhealthy server says so with status 503 and a body worth reading.
        if answer.status != 200 and not path.startswith("/health"):
            raise ConnectionError(f"{method} {path}: HTTP status {answer.status}")
        return payload

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        return http.client.HTTPSConnection(
            "127.0.0.1", self._port, timeout=timeout, context=self._tls
        )


def _context(tls: TlsFiles) -> ssl.SSLContext:
    # Readiness is about the server, not about its certificate: tests start servers with
    # expired and misnamed ones on purpose.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(Path(tls.client.cert), Path(tls.client.key))
    return context


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _object(raw: bytes) -> dict[str, object]:
    value: object = json.loads(raw)
    if not isinstance(value, dict):
        raise ValueError("the answer is not a JSON object")
    return cast("dict[str, object]", value)


def _child(parent: Mapping[str, object], name: str) -> dict[str, object]:
    value = parent.get(name)
    if not isinstance(value, dict):
        raise ValueError(f"the answer has no object {name!r}")
    return cast("dict[str, object]", value)


def _text(parent: Mapping[str, object], name: str) -> str:
    value = parent.get(name)
    if not isinstance(value, str):
        raise ValueError(f"the answer has no text {name!r}")
    return value
