"""Each fault under each feature: the rows of docs/failures.md, one test for each of its cells.

What a probe asserts is in tests/support/probes.py; a fault's own tests go deeper.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import probes
from checkers import Witness
from etcd_core import Client, NoSpace
from etcd_core.keys import prefix_range_end
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import PUT
from probes import FEATURES, Hosted, Place, Probe, WallClock
from witness import revision

each_feature = pytest.mark.parametrize("feature", FEATURES)
Begin = Callable[..., Probe]
_PASSWORD = "of-every-feature"


@pytest.fixture(autouse=True)
def _no_dynaconf_options(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.endswith("_FOR_DYNACONF") or name.startswith("DYNACONF_"):
            monkeypatch.delenv(name)


@pytest.fixture
def begin(prefix: str, proxy: FaultProxy) -> Iterator[Begin]:
    """Begin to use a feature, which works; it ends with the test, and before the proxy does."""
    begun: list[Probe] = []

    def start(feature: str, endpoint: str, direct: str, **options: object) -> Probe:
        probe = FEATURES[feature](Place(endpoint, direct, prefix, **options))  # type: ignore[arg-type]
        begun.append(probe)
        probe.begin()
        probe.works()
        return probe

    yield start
    for probe in begun:
        probe.close()


@each_feature
def test_unreachable(
    feature: str, begin: Begin, etcd_server: EtcdServer, proxy: FaultProxy
) -> None:
    probe = begin(feature, proxy.endpoint, etcd_server.endpoint)
    proxy.refuse()
    proxy.reset()
    probe.unreachable()
    proxy.heal()
    probe.recovers()


@pytest.mark.slow
@each_feature
def test_slow(feature: str, begin: Begin, etcd_server: EtcdServer, proxy: FaultProxy) -> None:
    probe = begin(feature, proxy.endpoint, etcd_server.endpoint, ttl=3)
    proxy.delay(0.15)
    began = time.monotonic()
    probe.works()
    probe.lasts(lambda: not probe.losses)
    probe.works()
    assert time.monotonic() - began > 4


@each_feature
def test_f32_no_space(feature: str, begin: Begin) -> None:
    with EtcdServer(flags=[f"--quota-backend-bytes={4 << 20}"]) as server:
        probe = begin(feature, server.endpoint, server.endpoint)
        _use_up_the_quota(probe.others)
        probe.no_space()
        _make_room(server, probe.others)
        probe.recovers()
        probe.close()


def _use_up_the_quota(client: Client) -> None:
    channel = client.scope().engine.channel
    for number in range(200):
        key = f"{client.prefix}/fill/{number}".encode()
        try:
            channel.unary(PUT, pb.PutRequest(key=key, value=bytes(256 << 10)), what="fill")
        except NoSpace:
            return
    raise AssertionError("the quota was never used up")


def _make_room(server: EtcdServer, client: Client) -> None:
    client.raw.delete_prefix(f"{client.prefix}/fill/")
    server.ctl("compact", str(revision(server)))
    server.ctl("defrag", timeout=30)
    server.ctl("alarm", "disarm")


@each_feature
def test_f06_reset(feature: str, begin: Begin) -> None:
    with EtcdServer() as server:
        probe = begin(feature, server.endpoint, server.endpoint)
        for number in range(20):
            probe.others.raw.put(f"{probe.place.prefix}/filler", str(number))
        server.restart(wipe=True)
        probe.after_reset()
        probe.close()


@each_feature
def test_f05_paused(feature: str, begin: Begin, etcd_server: EtcdServer, prefix: str) -> None:
    endpoint = etcd_server.endpoint
    if FEATURES[feature] is Hosted:
        hosted = begin(feature, endpoint, endpoint)
        assert isinstance(hosted, Hosted)
        hosted.stop()
        eventually(lambda: hosted.addresses() == [], probes.PATIENCE, message="expired")
        hosted.go_on()
        hosted.recovers()
        return
    with _program(feature, endpoint, prefix) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        with Client(endpoints=[endpoint], prefix=prefix) as others:
            os.kill(process.pid, signal.SIGSTOP)
            # The passing of time is the fact under test; whatever has a lease is gone by then.
            time.sleep(1.6)
            FEATURES[feature].meanwhile(others)
            eventually(lambda: not _expiring(etcd_server, prefix), probes.PATIENCE)
            process.stdin.write("go on\n")
            process.stdin.flush()
            os.kill(process.pid, signal.SIGCONT)
            out, err = process.communicate(timeout=50)
    assert out == "fine\n", err


def _expiring(server: EtcdServer, prefix: str) -> list[bytes]:
    """Return the keys on leases of a second: those of the process that is stopped."""
    start = prefix.encode()
    request = pb.RangeRequest(key=start, range_end=prefix_range_end(start))
    with Witness(server.endpoint) as witness:
        found = [kv for kv in witness.call("KV/Range", request).kvs if kv.lease]
        asked = [pb.LeaseTimeToLiveRequest(ID=kv.lease) for kv in found]
        lives = [witness.call("Lease/LeaseTimeToLive", each).grantedTTL for each in asked]
    return [kv.key for kv, seconds in zip(found, lives, strict=True) if 0 < seconds < 10]


@contextmanager
def _program(feature: str, endpoint: str, prefix: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(probes.__file__)), feature, endpoint, prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


@each_feature
def test_f43_clock(feature: str, begin: Begin, etcd_server: EtcdServer) -> None:
    probe = begin(feature, etcd_server.endpoint, etcd_server.endpoint)
    clock = WallClock()
    try:
        for hours in (1, -1):
            clock.jump(hours * 3600)
            if isinstance(probe, Hosted):
                probe.jump(hours * 3600)
            probe.works()
    finally:
        clock.restore()


@pytest.fixture(scope="module")
def brief() -> Iterator[EtcdServer]:
    """Login tokens live for a second."""
    with EtcdServer(auth=_PASSWORD, flags=["--auth-token-ttl=1"]) as server:
        yield server


@pytest.mark.slow
@each_feature
def test_f36_token(feature: str, begin: Begin, brief: EtcdServer) -> None:
    probe = begin(feature, brief.endpoint, brief.endpoint, ttl=20, password=_PASSWORD)
    before = probe.counter.counts.get("Authenticate", 0)
    # The passing of time is the fact under test: an unused token of 1 s is swept every 0.5 s.
    time.sleep(3.2)
    probe.works()
    assert not probe.losses
    assert probe.counter.counts.get("Authenticate", 0) - before <= 2
