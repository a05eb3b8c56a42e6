"""The options that the framework adapters share, parsed and validated before any I/O. No state."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from ..config import Config, Tls
from ..errors import InvalidArgument, InvalidConfig
from ..keys import DEFAULT_PREFIX, require_segment
from .listeners import is_loopback

CONFIG_OPTIONS: Final = {
    "ENDPOINTS": "endpoints",
    "PREFIX": "prefix",
    "USERNAME": "username",
    "PASSWORD": "password",
    "TLS": "tls",
    "DIAL_TIMEOUT": "dial_timeout",
    "TIMEOUT": "timeout",
    "AUTO_SYNC_INTERVAL": "auto_sync_interval",
}
SERVICE_OPTIONS: Final = (
    "SERVICE_NAME",
    "SERVICE_ADDRESS",
    "SERVICE_ID",
    "SERVICE_METADATA",
    "SERVICE_TTL",
    "REGISTER",
    "DRAIN",
    "READY",
    "READY_INTERVAL",
)
OPTIONS: Final = frozenset({*CONFIG_OPTIONS, *SERVICE_OPTIONS})
_DOTTED_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")


@dataclass(frozen=True)
class HostOptions:
    """What a :class:`ServiceHost` is told. Frozen; the password is masked in its repr.

    Attributes:
        config: How to reach etcd.
        service_name: What to register as; None: nothing is registered.
        service_address: Advertised ``host:port``; None: found from the listening socket.
        service_id: The instance's id; None: made from the advertised address.
        metadata: The instance's metadata.
        ttl: Seconds until etcd drops the entry of a server that died.
        register: ``"auto"``: when this process serves; True: that too where a test suite
            runs, and without a listening socket where the address is given; False: never.
        drain: Seconds between "draining" and deregistration at shutdown.
        ready: Returns whether this process may be called, or the dotted path of such a function;
            None: it always may, unless it was taken out by hand.
        ready_interval: Seconds from one answer of ``ready`` to the next question, and after which a
            question that is still open counts as a no.
        label: What precedes an option's name where the user set it, for messages.
    """

    config: Config
    service_name: str | None = None
    service_address: str | None = None
    service_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    ttl: float = 15.0
    register: Literal["auto"] | bool = "auto"
    drain: float = 0.0
    ready: Callable[[], object] | str | None = None
    ready_interval: float = 5.0
    label: str = ""

    @classmethod
    def parse(cls, given: Mapping[str, object], label: str = "") -> HostOptions:
        """Read the options in ``given``; unknown ones are refused.

        Args:
            given: Option name to value. Strings are taken where a list or a number is meant, so
                that values may come from the environment.
            label: What precedes an option's name in errors, such as ``"ETCD_"``.

        Raises:
            InvalidConfig: An option is unknown or its value unusable.
        """
        unknown = sorted(set(given) - OPTIONS)
        if unknown:
            raise InvalidConfig(f"{label}{unknown[0]} is not an option")
        return cls(
            config=_config(given, label),
            service_name=_segment(given, "SERVICE_NAME", label),
            service_address=_address(given, label),
            service_id=_segment(given, "SERVICE_ID", label),
            metadata=_metadata(given, label),
            ttl=_seconds(given, "SERVICE_TTL", label, 15.0) or 15.0,
            register=_register(given, label),
            drain=_seconds(given, "DRAIN", label, 0.0),
            ready=_ready(given, label),
            ready_interval=_ready_interval(given, label),
            label=label,
        )

    def instance_id(self, address: str) -> str:
        """Return the id to register ``address`` with.

        Several machines may advertise the same loopback address, or stand behind one name that was
        set by hand; the machine's name keeps their entries apart.
        """
        if self.service_id is not None:
            return self.service_id
        if self.service_address is not None or is_loopback(address):
            return f"{socket.gethostname()}-{address}".replace("/", "-")
        return address


def _config(given: Mapping[str, object], label: str) -> Config:
    fields = {CONFIG_OPTIONS[name]: given[name] for name in CONFIG_OPTIONS if name in given}
    endpoints = _strings(fields.pop("endpoints", None), f"{label}ENDPOINTS")
    tls = _tls(fields.pop("tls", None), f"{label}TLS")
    numbers = {
        name: _seconds(given, name, label, 0.0)
        for name in ("DIAL_TIMEOUT", "TIMEOUT", "AUTO_SYNC_INTERVAL")
        if name in given
    }
    return Config(
        endpoints,
        username=_text(given, "USERNAME", label),
        password=_text(given, "PASSWORD", label),
        prefix=_text(given, "PREFIX", label) or DEFAULT_PREFIX,
        tls=tls,
        dial_timeout=numbers.get("DIAL_TIMEOUT", 5.0),
        timeout=numbers.get("TIMEOUT", 5.0),
        auto_sync_interval=numbers.get("AUTO_SYNC_INTERVAL", 0.0),
    )


def _strings(value: object, option: str) -> Sequence[str]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)) or not value:
        raise InvalidConfig(f'{option} must be a list of addresses such as ["127.0.0.1:2379"]')
    return tuple(value)


def _tls(value: object, option: str) -> Tls | None:
    if value is None or value is False:
        return None
    if value is True:
        return Tls()
    if isinstance(value, Tls):
        return value
    if not isinstance(value, Mapping):
        raise InvalidConfig(f"{option} must be True or a mapping with ca, cert, key, server_name")
    parts = {str(name).lower(): part for name, part in value.items()}
    unknown = sorted(set(parts) - {"ca", "cert", "key", "server_name"})
    if unknown:
        raise InvalidConfig(f"{option}: {unknown[0]} is not one of ca, cert, key, server_name")
    return Tls(**parts)


def _text(given: Mapping[str, object], name: str, label: str) -> str | None:
    value = given.get(name)
    if value is None or isinstance(value, str):
        return value
    raise InvalidConfig(f"{label}{name} must be a string, not {type(value).__name__}")


def _segment(given: Mapping[str, object], name: str, label: str) -> str | None:
    value = _text(given, name, label)
    if not value:
        return None
    try:
        return require_segment(label or "options", name, value)
    except InvalidArgument as exc:
        raise InvalidConfig(f"{label}{name}: {value!r} must not hold '/' or NUL") from exc


def _address(given: Mapping[str, object], label: str) -> str | None:
    value = _text(given, "SERVICE_ADDRESS", label)
    if not value:
        return None
    host, colon, port = value.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise InvalidConfig(f"{label}SERVICE_ADDRESS: {value!r} is not host:port")
    return value


def _metadata(given: Mapping[str, object], label: str) -> Mapping[str, str]:
    value = given.get("SERVICE_METADATA") or {}
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        raise InvalidConfig(f"{label}SERVICE_METADATA must be a mapping of strings to strings")
    return dict(value)


def _seconds(given: Mapping[str, object], name: str, label: str, default: float) -> float:
    value = given.get(name)
    if value is None:
        return default
    try:
        seconds = float(value) if isinstance(value, (str, int, float)) else math.nan
    except ValueError:
        seconds = math.nan
    if isinstance(value, bool) or not math.isfinite(seconds) or seconds < 0:
        raise InvalidConfig(f"{label}{name} must be a number of seconds >= 0, not {value!r}")
    return seconds


def _ready(given: Mapping[str, object], label: str) -> Callable[[], object] | str | None:
    value = given.get("READY")
    if value is None or callable(value):
        return value
    if isinstance(value, str) and _DOTTED_PATH.fullmatch(value):
        return value
    raise InvalidConfig(
        f'{label}READY must be a function or its dotted path such as "shop.health.ready",'
        f" not {value!r}"
    )


def _ready_interval(given: Mapping[str, object], label: str) -> float:
    seconds = _seconds(given, "READY_INTERVAL", label, 5.0)
    if seconds <= 0:
        raise InvalidConfig(f"{label}READY_INTERVAL must be more than 0 seconds")
    return seconds


def _register(given: Mapping[str, object], label: str) -> Literal["auto"] | bool:
    value = given.get("REGISTER", "auto")
    text = str(value).lower()
    if text == "auto":
        return "auto"
    if text in ("true", "1", "yes", "on"):
        return True
    if text in ("false", "0", "no", "off"):
        return False
    raise InvalidConfig(f'{label}REGISTER must be "auto", True or False, not {value!r}')
