"""The adapters' options: parsed, validated, secrets masked."""

from __future__ import annotations

import socket

import pytest

from etcd_core import InvalidConfig, Tls
from etcd_core.hosting import HostOptions
from etcd_core.hosting.listeners import Listener, advertised, is_loopback

ENDPOINTS = {"ENDPOINTS": ["127.0.0.1:2379"]}


def test_defaults() -> None:
    options = HostOptions.parse(ENDPOINTS)
    assert options.config.endpoints == ("127.0.0.1:2379",)
    assert options.config.prefix == "/go-core"
    assert (options.service_name, options.register, options.drain, options.ttl) == (
        None, "auto", 0.0, 15.0,
    )  # fmt: skip


def test_strings_as_from_the_environment() -> None:
    options = HostOptions.parse(
        {
            "ENDPOINTS": "a:1, b:2",
            "TIMEOUT": "2.5",
            "SERVICE_NAME": "billing",
            "SERVICE_TTL": "30",
            "REGISTER": "false",
            "DRAIN": "3",
        }
    )
    assert options.config.endpoints == ("a:1", "b:2")
    assert options.config.timeout == 2.5
    assert (options.ttl, options.register, options.drain) == (30.0, False, 3.0)


@pytest.mark.parametrize(
    ("tls", "expected"),
    [
        (True, Tls()),
        (False, None),
        ({"CA": "ca.pem"}, Tls(ca="ca.pem")),
        (Tls(server_name="etcd"), Tls(server_name="etcd")),
    ],
)
def test_tls(tls: object, expected: Tls | None) -> None:
    assert HostOptions.parse({**ENDPOINTS, "TLS": tls}).config.tls == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ENDPOINTS", []),
        ("ENDPOINTS", None),
        ("ENDPOINTS", ["ftp://x"]),
        ("SERVICE_NAME", "a/b"),
        ("SERVICE_NAME", 3),
        ("SERVICE_ID", "a/b"),
        ("SERVICE_ADDRESS", "nohost"),
        ("SERVICE_ADDRESS", "host:99999"),
        ("SERVICE_METADATA", {"zone": 1}),
        ("SERVICE_METADATA", ["zone"]),
        ("SERVICE_TTL", -1),
        ("SERVICE_TTL", "soon"),
        ("TIMEOUT", 0),
        ("DRAIN", True),
        ("REGISTER", "perhaps"),
        ("TLS", "yes"),
        ("TLS", {"certificate": "x"}),
        ("USERNAME", "only"),
        ("NONSENSE", 1),
        ("READY", "ready"),
        ("READY", "shop.health.ready()"),
        ("READY", True),
        ("READY_INTERVAL", 0),
        ("READY_INTERVAL", "often"),
    ],
)
def test_refused(name: str, value: object) -> None:
    with pytest.raises(InvalidConfig):
        HostOptions.parse({**ENDPOINTS, name: value}, label="ETCD_")


@pytest.mark.parametrize("ready", ["shop.health.ready", "shop.health:ready", len, None])
def test_ready(ready: object) -> None:
    options = HostOptions.parse({**ENDPOINTS, "READY": ready, "READY_INTERVAL": "0.5"})
    assert (options.ready, options.ready_interval) == (ready, 0.5)
    assert HostOptions.parse(ENDPOINTS).ready_interval == 5.0


def test_the_password_is_masked() -> None:
    options = HostOptions.parse({**ENDPOINTS, "USERNAME": "app", "PASSWORD": "hunter2"})
    assert "hunter2" not in repr(options)
    with pytest.raises(InvalidConfig) as raised:
        HostOptions.parse({**ENDPOINTS, "USERNAME": "app", "PASSWORD": ["hunter2"]})
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("more", "address", "expected"),
    [
        ({}, "10.0.0.5:80", "10.0.0.5:80"),
        ({}, "127.0.0.1:80", f"{socket.gethostname()}-127.0.0.1:80"),
        ({"SERVICE_ADDRESS": "shop:80"}, "shop:80", f"{socket.gethostname()}-shop:80"),
        ({"SERVICE_ID": "one"}, "127.0.0.1:80", "one"),
    ],
)
def test_instance_id(more: dict[str, object], address: str, expected: str) -> None:
    assert HostOptions.parse({**ENDPOINTS, **more}).instance_id(address) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("10.0.0.5", "10.0.0.5:80"),
        ("::ffff:10.0.0.5", "10.0.0.5:80"),
        ("fd00::1", "[fd00::1]:80"),
        # The way to this etcd is the loopback interface.
        ("0.0.0.0", "127.0.0.1:80"),
        ("::", "127.0.0.1:80"),
        # As a request tells it.
        ("localhost", "127.0.0.1:80"),
        ("waitress.invalid", "127.0.0.1:80"),
    ],
)
def test_advertised(host: str, expected: str) -> None:
    endpoints = HostOptions.parse(ENDPOINTS).config.parsed_endpoints
    assert advertised(Listener(host, 80), endpoints) == expected


@pytest.mark.parametrize("address", ["127.0.0.1:80", "localhost:80", "[::1]:80", "127.5.5.5:1"])
def test_loopback(address: str) -> None:
    assert is_loopback(address)
    assert not is_loopback("10.0.0.5:80")
    assert not is_loopback("shop.example:80")
