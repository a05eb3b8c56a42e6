"""What a client is told: :class:`Config` and :class:`Tls`. Frozen, and validated before any I/O.

No flags and no environment look-ups here; adapters read those. Secrets are masked in every repr.
"""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from .errors import InvalidConfig
from .keys import DEFAULT_PREFIX

DEFAULT_PORT: Final = 2379

Pem = str | bytes | os.PathLike[str]


class Unset:
    """The type of :data:`UNSET`: "take the client's default", where ``None`` means "for ever"."""

    def __repr__(self) -> str:
        """Return the word a signature shows."""
        return "<default>"


UNSET: Final = Unset()

Timeout = float | None | Unset
"""Seconds; ``None`` waits for ever; left out means ``Config.timeout``."""


@dataclass(frozen=True)
class Tls:
    """How to secure the connection. ``Tls()`` verifies the server against the system's CAs.

    Args:
        ca: The CA certificates to trust: a path, or PEM bytes. None: the system's.
        cert: The client's certificate chain for mTLS: a path, or PEM bytes.
        key: The private key of ``cert``: a path, or PEM bytes.
        server_name: The name to verify in the server's certificate instead of the endpoint's host.

    Raises:
        InvalidConfig: Only one of ``cert`` and ``key`` is given.

    Example:
        >>> Tls(ca="/etc/etcd/ca.pem", cert="client.pem", key="client-key.pem")
        Tls(ca='/etc/etcd/ca.pem', cert='client.pem', key=***, server_name=None)
    """

    ca: Pem | None = None
    cert: Pem | None = None
    key: Pem | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidConfig("Tls: cert and key go together; only one of them is given")
        if self.server_name is not None and not self.server_name:
            raise InvalidConfig("Tls: server_name must not be empty")

    def __repr__(self) -> str:
        """Return the settings with the key, and any PEM bytes, masked."""
        shown = {
            "ca": _shown(self.ca),
            "cert": _shown(self.cert),
            "key": None if self.key is None else "***",
            "server_name": repr(self.server_name),
        }
        return f"Tls({', '.join(f'{name}={value}' for name, value in shown.items())})"

    def read(self, name: Literal["ca", "cert", "key"]) -> bytes | None:
        """Return the PEM bytes of one part, reading its file if it is a path.

        Raises:
            InvalidConfig: The file cannot be read or holds no PEM block.
        """
        source: Pem | None = getattr(self, name)
        if source is None:
            return None
        if isinstance(source, bytes):
            pem = source
        else:
            try:
                with open(source, "rb") as file:
                    pem = file.read()
            except OSError as exc:
                reason = exc.strerror or exc
                raise InvalidConfig(f"Tls: cannot read {name} {source!s}: {reason}") from exc
        if b"-----BEGIN" not in pem:
            raise InvalidConfig(f"Tls: {name} holds no PEM block")
        return pem


def _shown(source: Pem | None) -> str | None:
    if source is None:
        return None
    return "<PEM>" if isinstance(source, bytes) else repr(str(source))


@dataclass(frozen=True)
class Endpoint:
    """One address of an etcd member, parsed from a host name, ``host:port`` or URL."""

    host: str
    port: int
    scheme: Literal["http", "https"] | None = None

    @classmethod
    def parse(cls, text: object) -> Endpoint:
        """Parse ``host``, ``host:port``, ``[v6]:port``, a bare IPv6 address, or an http(s) URL.

        Raises:
            InvalidConfig: It is none of these, or it carries a path, a query or credentials.
        """
        if not isinstance(text, str) or not text.strip():
            raise InvalidConfig(f"endpoint {text!r} must be a non-empty string")
        text = text.strip()
        if "@" in text:
            # The text itself would print the password.
            raise InvalidConfig("an endpoint carries credentials; use username= and password=")
        if any(ord(ch) <= 32 or ord(ch) == 127 for ch in text):
            raise InvalidConfig(f"endpoint {text!r} holds white space or a control character")
        if _is_ipv6(text):
            return cls(text, DEFAULT_PORT)
        scheme, rest = _split_scheme(text)
        try:
            parts = urlsplit(f"//{rest}")
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise InvalidConfig(f"endpoint {text!r}: {exc}") from exc
        if not host or parts.path not in ("", "/") or parts.query or parts.fragment:
            raise InvalidConfig(f"endpoint {text!r} is not host, host:port or http(s)://host:port")
        if port == 0 or rest.rstrip("/").endswith(":"):
            raise InvalidConfig(f"endpoint {text!r}: the port must be between 1 and 65535")
        if ("[" in rest or ":" in host) and not _is_ipv6(host):
            raise InvalidConfig(f"endpoint {text!r}: {host!r} is not an IPv6 address")
        return cls(host, port or DEFAULT_PORT, scheme)

    @property
    def target(self) -> str:
        """The address as gRPC takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def __str__(self) -> str:
        """Return ``host:port``."""
        return self.target


def _split_scheme(text: str) -> tuple[Literal["http", "https"] | None, str]:
    scheme, mark, rest = text.partition("://")
    if not mark:
        return None, text
    lowered = scheme.lower()
    if lowered == "http":
        return "http", rest
    if lowered == "https":
        return "https", rest
    raise InvalidConfig(f"endpoint {text!r}: the scheme must be http or https")


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False


@dataclass(frozen=True)
class Config:
    """Everything a :class:`~etcd_core.Client` needs. Equal configs may share one client.

    Args:
        endpoints: Members of one cluster: ``"host:port"``, or URLs of one scheme. Port 2379 is the
            default.
        username: Log in as this user; needs ``password``.
        password: Never shown in a repr, a log or an error.
        dial_timeout: Seconds :func:`~etcd_core.connect` waits for the first connection.
        timeout: Seconds a call may take where it is not given its own ``timeout``.
        tls: Secure the connection. ``https://`` endpoints imply ``Tls()``.
        prefix: All keys of the client live under it. Empty means the default; ``"/"`` is the root.
        auto_sync_interval: Seconds between refreshes of the endpoint list; 0 turns them off.
        lease_pool: How many spare leases of one TTL are kept for the next lock; 0 keeps none.

    Raises:
        InvalidConfig: A value is unusable. Nothing has been sent.

    Example:
        >>> Config(["127.0.0.1:2379"], prefix="/shop", username="app", password="secret")
        Config(endpoints=('127.0.0.1:2379',), username='app', password=***, prefix='/shop')
    """

    endpoints: Sequence[str]
    username: str | None = None
    password: str | None = field(default=None)
    dial_timeout: float = 5.0
    timeout: float = 5.0
    tls: Tls | None = None
    prefix: str = DEFAULT_PREFIX
    auto_sync_interval: float = 0
    lease_pool: int = 2

    def __post_init__(self) -> None:
        self._normalise_endpoints()
        self._check_auth()
        for name in ("dial_timeout", "timeout"):
            _require_seconds(name, getattr(self, name), minimum=0.001)
        _require_seconds("auto_sync_interval", self.auto_sync_interval, minimum=0)
        self._normalise_prefix()
        if not isinstance(self.lease_pool, int) or self.lease_pool < 0:
            raise InvalidConfig(f"lease_pool must be an int >= 0, not {self.lease_pool!r}")

    @property
    def parsed_endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints, parsed."""
        return tuple(Endpoint.parse(text) for text in self.endpoints)

    @property
    def effective_tls(self) -> Tls | None:
        """``tls``, or ``Tls()`` where the endpoints are ``https://``."""
        implied = any(endpoint.scheme == "https" for endpoint in self.parsed_endpoints)
        return self.tls or (Tls() if implied else None)

    def __repr__(self) -> str:
        """Return the settings that differ from the defaults, the password masked."""
        shown = [f"endpoints={self.endpoints!r}"]
        for name, entry in type(self).__dataclass_fields__.items():
            value = getattr(self, name)
            if name != "endpoints" and value != entry.default:
                shown.append(f"{name}={'***' if name == 'password' else repr(value)}")
        return f"Config({', '.join(shown)})"

    def _normalise_endpoints(self) -> None:
        given: object = self.endpoints
        if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
            raise InvalidConfig(f"endpoints must be a list of strings, not {type(given).__name__}")
        if not given:
            raise InvalidConfig("endpoints must not be empty")
        object.__setattr__(self, "endpoints", tuple(dict.fromkeys(given)))
        schemes = {endpoint.scheme for endpoint in self.parsed_endpoints}
        if "https" in schemes and len(schemes) > 1:
            raise InvalidConfig("endpoints mix https:// with other schemes")
        if self.tls is not None and not isinstance(self.tls, Tls):
            raise InvalidConfig(f"tls must be a Tls, not {type(self.tls).__name__}")
        if self.tls is not None and "http" in schemes:
            raise InvalidConfig("tls is given but an endpoint says http://")

    def _check_auth(self) -> None:
        if (self.username is None) != (self.password is None):
            raise InvalidConfig("username and password go together; only one of them is given")
        for name in ("username", "password"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise InvalidConfig(f"{name} must be a non-empty string")

    def _normalise_prefix(self) -> None:
        if not isinstance(self.prefix, str):
            raise InvalidConfig(f"prefix must be a str, not {type(self.prefix).__name__}")
        if "\0" in self.prefix:
            raise InvalidConfig("prefix holds a NUL character")
        object.__setattr__(self, "prefix", self.prefix or DEFAULT_PREFIX)


def _require_seconds(name: str, value: object, *, minimum: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidConfig(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not math.isfinite(value) or value < minimum:
        raise InvalidConfig(f"{name} must be finite and at least {minimum} s, not {value!r}")
