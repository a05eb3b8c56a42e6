"""F41: every way in which TLS cannot work is told at once, by a connection error with the cause.

"Within 1 s" of the list is asserted as 5 s, for loaded machines; the timeout of the calls is longer
than that, so that an error which only comes with the timeout fails the test.
"""

from __future__ import annotations

import gc
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest

from checkers import WatchLog
from etcd_core import Client, Config, Tls, connect
from etcd_core.errors import ConnectionFailed
from etcd_core.testing import EtcdServer, RpcCounter, TestCA, TlsFiles

PATIENT = 20.0
AT_ONCE = 5.0
# One attempt, and perhaps one more where the first only met a closed connection.
FEW = 30


@dataclass(frozen=True)
class Site:
    authority: TestCA
    other: TestCA
    plain: EtcdServer
    tls: EtcdServer
    mutual: EtcdServer
    expired: EtcdServer
    elsewhere: EtcdServer
    files: TlsFiles


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    authority = TestCA(tmp_path_factory.mktemp("ca"))
    other = TestCA(tmp_path_factory.mktemp("other"))
    mutual = authority.files(mutual=True)
    with (
        EtcdServer() as plain,
        EtcdServer(tls=authority.files()) as tls,
        EtcdServer(tls=mutual) as mtls,
        EtcdServer(tls=authority.files(expired=True)) as expired,
        EtcdServer(tls=authority.files(hosts=["etcd.internal"])) as elsewhere,
    ):
        yield Site(authority, other, plain, tls, mtls, expired, elsewhere, mutual)


def refusal(server: EtcdServer, tls: Tls | None, scheme: str = "") -> str:
    """Return the text of the error of a first call, which must come soon and cheaply."""
    counter = RpcCounter()
    endpoint = f"{scheme}127.0.0.1:{server.client_port}"
    config = Config([endpoint], tls=tls, timeout=PATIENT, dial_timeout=PATIENT)
    started = time.monotonic()
    with (
        Client(config, interceptors=[counter]) as client,
        pytest.raises(ConnectionFailed) as failure,
    ):
        client.leader("nobody")
    assert time.monotonic() - started < AT_ONCE, failure.value
    assert counter.total <= FEW, "a retry storm"
    started = time.monotonic()
    with pytest.raises(ConnectionFailed):
        connect(config)
    assert time.monotonic() - started < AT_ONCE
    return str(failure.value)


def test_f41_wrong_ca(site: Site) -> None:
    text = refusal(site.tls, Tls(ca=site.other.ca))
    assert "TLS handshake failed" in text
    assert "CERTIFICATE_VERIFY_FAILED" in text


def test_f41_the_systems_cas_do_not_know_it(site: Site) -> None:
    assert "CERTIFICATE_VERIFY_FAILED" in refusal(site.tls, None, "https://")


def test_f41_expired_certificate(site: Site) -> None:
    text = refusal(site.expired, Tls(ca=site.authority.ca))
    assert "TLS handshake failed" in text
    assert "expired" in text or "CERTIFICATE_VERIFY_FAILED" in text


def test_f41_host_mismatch(site: Site) -> None:
    text = refusal(site.elsewhere, Tls(ca=site.authority.ca))
    assert "TLS handshake failed" in text
    assert "Hostname Verification Check failed" in text


def test_f41_wrong_server_name(site: Site) -> None:
    text = refusal(site.tls, Tls(ca=site.authority.ca, server_name="etcd.internal"))
    assert "Hostname Verification Check failed" in text


def test_f41_missing_client_certificate(site: Site) -> None:
    text = refusal(site.mutual, Tls(ca=site.files.ca))
    assert "TLS" in text


def test_f41_client_certificate_of_another_ca(site: Site) -> None:
    wrong = site.other.issue("client")
    text = refusal(site.mutual, Tls(ca=site.files.ca, cert=wrong.cert, key=wrong.key))
    assert "TLS" in text


def test_f41_expired_client_certificate(site: Site) -> None:
    old = site.authority.issue("client", expired=True)
    text = refusal(site.mutual, Tls(ca=site.files.ca, cert=old.cert, key=old.key))
    assert "TLS" in text


def test_f41_plaintext_to_a_tls_server(site: Site) -> None:
    text = refusal(site.tls, None)
    assert "TLS" in text


def test_f41_a_server_that_only_resets_is_no_tls_server() -> None:
    """It hangs up as one that wants TLS does; the look for the cause must leave no socket open."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def reset() -> None:
            listening.settimeout(0.1)
            while not stop.is_set():
                with suppress(TimeoutError):
                    # Closed with no time to linger: the peer gets a reset.
                    connection = listening.accept()[0]
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    connection.close()

        thread = threading.Thread(target=reset)
        thread.start()
        try:
            port = listening.getsockname()[1]
            with (
                Client(endpoints=[f"127.0.0.1:{port}"], timeout=1.0) as client,
                pytest.raises(ConnectionFailed) as failure,
            ):
                client.leader("nobody")
        finally:
            stop.set()
            thread.join(10)
    assert "TLS" not in str(failure.value)
    gc.collect()


def test_f41_tls_to_a_plaintext_server(site: Site) -> None:
    text = refusal(site.plain, Tls(ca=site.authority.ca))
    assert "TLS handshake failed" in text


def test_f41_one_good_endpoint_is_enough(site: Site) -> None:
    """A broken member costs a failover, and is no error while another one works."""
    endpoints = [f"127.0.0.1:{port}" for port in (site.expired.client_port, site.tls.client_port)]
    with connect(endpoints=endpoints, tls=Tls(ca=site.authority.ca)) as client:
        for _ in range(3):
            assert client.leader("nobody") is None
            links = client.scope().engine.channel.endpoints
            links.rotate(links.pick())


@pytest.mark.parametrize("kind", ["server", "client"])
def test_f41_a_watch_waits_without_a_storm(site: Site, kind: str) -> None:
    counter = RpcCounter()
    server, ca = (site.tls, site.other.ca) if kind == "server" else (site.mutual, site.files.ca)
    config = Config([f"127.0.0.1:{server.client_port}"], tls=Tls(ca=ca))
    with Client(config, interceptors=[counter]) as client:
        log = WatchLog()
        client.scope().engine.hub.watch(b"a", log)
        time.sleep(1.5)
        assert log.error is None
        assert counter.streams["Watch"] < 40
