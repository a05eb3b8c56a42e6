"""What a configuration refuses before any I/O, and what its repr hides."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path

import pytest

from etcd_core.config import UNSET, Config, Endpoint, Tls
from etcd_core.errors import EtcdError, InvalidArgument, InvalidConfig

PEM = b"-----BEGIN CERTIFICATE-----\nsecretbytes\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("text", "target", "scheme"),
    [
        ("localhost", "localhost:2379", None),
        ("localhost:1", "localhost:1", None),
        (" host:1 ", "host:1", None),
        ("10.0.0.5", "10.0.0.5:2379", None),
        ("::1", "[::1]:2379", None),
        ("[::1]", "[::1]:2379", None),
        ("[::1]:99", "[::1]:99", None),
        ("http://h", "h:2379", "http"),
        ("HTTPS://h:65535/", "h:65535", "https"),
        ("https://[fe80::1]:8", "[fe80::1]:8", "https"),
    ],
)
def test_endpoint(text: str, target: str, scheme: str | None) -> None:
    endpoint = Endpoint.parse(text)
    assert endpoint.target == str(endpoint) == target
    assert endpoint.scheme == scheme


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        None,
        5,
        b"host:1",
        "host:",
        "host:0",
        "host:65536",
        "host:port",
        "host:-1",
        "h ost:1",
        "host:1\n2",
        "http://",
        "http://h/path",
        "http://h?q",
        "http://h#f",
        "ftp://h",
        "unix:///run/etcd.sock",
        "a:b:c",
        "[::1",
        "[zz]:1",
        "h1:1,h2:1:2",
    ],
)
def test_endpoint_refused(text: object) -> None:
    with pytest.raises(InvalidConfig):
        Endpoint.parse(text)


def test_an_endpoint_with_credentials_does_not_print_them() -> None:
    with pytest.raises(InvalidConfig) as refusal:
        Config(["http://root:hunter2@h:1"])
    assert "hunter2" not in str(refusal.value)
    assert "username=" in str(refusal.value)


def test_defaults() -> None:
    config = Config(["h"])
    assert config.endpoints == ("h",)
    assert (config.prefix, config.timeout, config.dial_timeout) == ("/go-core", 5.0, 5.0)
    assert (config.tls, config.effective_tls, config.auto_sync_interval) == (None, None, 0)
    assert Config(["h"], prefix="").prefix == "/go-core"
    assert Config(["h"], prefix="/").prefix == "/"
    assert repr(UNSET) == "<default>"


def test_it_is_frozen_and_equal_by_value() -> None:
    config = Config(["h:1"], prefix="/a")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.prefix = "/b"  # type: ignore[misc]
    assert config == Config(("h:1",), prefix="/a")
    assert len({config, Config(["h:1"], prefix="/a"), Config(["h:1"], prefix="/b")}) == 2


def test_endpoints_lose_duplicates_and_keep_their_order() -> None:
    assert Config(["b:1", "a:1", "b:1"]).endpoints == ("b:1", "a:1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("endpoints", []),
        ("endpoints", "h:1"),
        ("endpoints", b"h:1"),
        ("endpoints", None),
        ("endpoints", [""]),
        ("endpoints", [None]),
        ("endpoints", {"h:1"}),
        ("endpoints", ["https://a", "http://b"]),
        ("endpoints", ["https://a", "b"]),
        ("username", "u"),
        ("password", "p"),
        ("username", ""),
        ("timeout", 0),
        ("timeout", -1),
        ("timeout", math.inf),
        ("timeout", math.nan),
        ("timeout", "5"),
        ("timeout", True),
        ("timeout", None),
        ("dial_timeout", 0),
        ("auto_sync_interval", -1),
        ("auto_sync_interval", None),
        ("prefix", None),
        ("prefix", "a\0b"),
        ("lease_pool", -1),
        ("lease_pool", 1.5),
        ("tls", True),
        ("tls", "ca.pem"),
    ],
)
def test_config_refused(name: str, value: object) -> None:
    fields: dict[str, object] = {"endpoints": ["h:1"], name: value}
    with pytest.raises(InvalidConfig):
        Config(**fields)  # type: ignore[arg-type]


def test_a_refusal_is_a_value_error() -> None:
    assert issubclass(InvalidConfig, (EtcdError, InvalidArgument))
    with pytest.raises(ValueError):
        Config([])


def test_https_implies_tls() -> None:
    assert Config(["https://h"]).effective_tls == Tls()
    own = Tls(server_name="x")
    assert Config(["https://h"], tls=own).effective_tls is own
    assert Config(["h"], tls=own).effective_tls is own
    with pytest.raises(InvalidConfig, match="http://"):
        Config(["http://h"], tls=Tls())


def test_repr_masks_the_password() -> None:
    config = Config(["h:1"], username="app", password="hunter2", tls=Tls(ca=PEM))
    assert "hunter2" not in repr(config)
    assert "***" in repr(config)
    assert "secretbytes" not in repr(config)
    assert "timeout" not in repr(config), "what is the default is not shown"


def test_tls_repr_masks_key_and_pem() -> None:
    tls = Tls(ca="ca.pem", cert=PEM, key="key.pem")
    assert repr(tls) == "Tls(ca='ca.pem', cert=<PEM>, key=***, server_name=None)"
    assert "secretbytes" not in repr(Tls(cert=PEM, key=PEM))


@pytest.mark.parametrize("fields", [{"cert": "c"}, {"key": "k"}, {"server_name": ""}])
def test_tls_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig):
        Tls(**fields)


def test_tls_reads_paths_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(PEM)
    assert Tls(ca=path).read("ca") == PEM
    assert Tls(ca=os.fspath(path)).read("ca") == PEM
    assert Tls(ca=PEM).read("ca") == PEM
    assert Tls().read("ca") is None


def test_tls_says_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"cannot read ca .*nowhere\.pem"):
        Tls(ca=tmp_path / "nowhere.pem").read("ca")
    with pytest.raises(InvalidConfig, match="key holds no PEM block") as refusal:
        Tls(cert=PEM, key=b"hunter2").read("key")
    assert "hunter2" not in str(refusal.value)
