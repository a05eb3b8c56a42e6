"""Each fault under each feature: the rows of docs/failures.md, one test for each of its cells.

A fault is made once, under all features at the same time, and each test judges one of them. What a
probe asserts is in tests/support/probes.py; a fault's own tests go deeper.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import probes
from checkers import BRIEF_TOKENS, Witness, library_threads
from etcd_core import Client, NoSpace
from etcd_core.keys import prefix_range_end
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import PUT
from probes import FEATURES, Hosted, Probe, Together, WallClock
from witness import revision

# The first test of a fault bears all of it.
pytestmark = pytest.mark.timeout(240)

each_feature = pytest.mark.parametrize("feature", FEATURES)
_PASSWORD = "of-every-feature"

Failures = dict[str, str]


@pytest.fixture(scope="module", autouse=True)
def _surroundings() -> Iterator[None]:
    """No Dynaconf options, and servers that can be interrupted, which the main thread decides."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.endswith("_FOR_DYNACONF") or name.startswith("DYNACONF_"):
                patch.delenv(name)
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        yield


Fault = Callable[[list[str], EtcdServer], Failures]
Judge = Callable[[Fault, str], None]


@pytest.fixture
def judge(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    etcd_server: EtcdServer,
) -> Judge:
    """Fail as the feature did under the fault, which is made once for all of a test's features."""
    name = request.function.__name__
    base = tmp_path_factory.getbasetemp()
    # The tests of one fault may be spread over several processes.
    place = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    features = [
        item.callspec.params["feature"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is request.function
    ]

    def judge(fault: Fault, feature: str) -> None:
        found = place / f"{name}.json"
        with (place / f"{name}.lock").open("w") as alone:
            fcntl.flock(alone, fcntl.LOCK_EX)
            if not found.exists():
                found.write_text(json.dumps(fault(features, etcd_server)))
        failures: Failures = json.loads(found.read_text())
        assert feature not in failures, failures[feature]

    return judge


@contextmanager
def in_use(
    features: list[str], endpoint: str, direct: str, **options: object
) -> Iterator[Together]:
    """Begin to use features, and see that they work; they end before what is around them does."""
    before = library_threads()
    # One after the other, first the one that starts a server: a machine that stalls under all of
    # them at once would cost those with a short lease what they hold.
    ordered = sorted(features, key=lambda feature: FEATURES[feature] is not Hosted)
    with Together(ordered, endpoint, direct, new_prefix(), **options) as together:
        together.in_turn(_begins_and_works)
        yield together
    eventually(lambda: not library_threads() - before, message="the library's threads end (J8)")


def _begins_and_works(probe: Probe) -> None:
    probe.begin()
    probe.works()


def new_prefix() -> str:
    return f"/test/{uuid.uuid4().hex}"


def unreachable(features: list[str], server: EtcdServer) -> Failures:
    with (
        FaultProxy(server.endpoint) as proxy,
        in_use(features, proxy.endpoint, server.endpoint) as used,
    ):
        proxy.refuse()
        proxy.reset()
        used.each(lambda probe: probe.unreachable())
        proxy.heal()
        used.each(lambda probe: probe.recovers())
    return used.failures


@each_feature
def test_unreachable(feature: str, judge: Judge) -> None:
    judge(unreachable, feature)


def slow(features: list[str], server: EtcdServer) -> Failures:
    with (
        FaultProxy(server.endpoint) as proxy,
        in_use(features, proxy.endpoint, server.endpoint, ttl=3) as used,
    ):
        proxy.delay(0.15)
        used.each(_works_for_longer_than_the_ttl)
    return used.failures


def _works_for_longer_than_the_ttl(probe: Probe) -> None:
    began = time.monotonic()
    probe.works()
    probe.lasts(lambda: not probe.losses)
    probe.works()
    assert time.monotonic() - began > 4


@pytest.mark.slow
@each_feature
def test_slow(feature: str, judge: Judge) -> None:
    judge(slow, feature)


def no_space(features: list[str], _: EtcdServer) -> Failures:
    with (
        EtcdServer(flags=[f"--quota-backend-bytes={4 << 20}"]) as server,
        in_use(features, server.endpoint, server.endpoint, ttl=3) as used,
        Client(endpoints=[server.endpoint], prefix=new_prefix()) as others,
    ):
        _use_up_the_quota(others)
        used.each(lambda probe: probe.no_space())
        _make_room(server, others)
        used.each(lambda probe: probe.recovers())
    return used.failures


@each_feature
def test_f32_no_space(feature: str, judge: Judge) -> None:
    judge(no_space, feature)


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


def reset(features: list[str], _: EtcdServer) -> Failures:
    with EtcdServer() as server:
        _write_500(server)
        with in_use(features, server.endpoint, server.endpoint) as used:
            server.restart(wipe=True)
            used.each(lambda probe: probe.after_reset())
    return used.failures


def _write_500(server: EtcdServer) -> None:
    """Write first what nobody catches up with before the last one looks: so the reset shows."""
    with Witness(server.endpoint) as witness:
        for number in range(500):
            witness.put("/filler", str(number))


@each_feature
def test_f06_reset(feature: str, judge: Judge) -> None:
    judge(reset, feature)


def paused(features: list[str], server: EtcdServer) -> Failures:
    """A process that uses all features is stopped, and a server that is registered."""
    endpoint, prefix = server.endpoint, new_prefix()
    hosting = [feature for feature in features if FEATURES[feature] is Hosted]
    others = [feature for feature in features if feature not in hosting]
    with (
        _program(others, endpoint, prefix) as process,
        in_use(hosting, endpoint, endpoint) as hosted,
        ExitStack() as meanwhile,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        os.kill(process.pid, signal.SIGSTOP)
        hosted.each(Hosted.stop)  # type: ignore[arg-type]
        # The passing of time is the fact under test; whatever has a lease is gone by then.
        time.sleep(2.6)
        for feature in others:
            client = Client(endpoints=[endpoint], prefix=f"{prefix}/{feature}")
            FEATURES[feature].meanwhile(meanwhile.enter_context(client))
        eventually(lambda: not _expiring(server, prefix), probes.PATIENCE)
        process.stdin.write("go on\n")
        process.stdin.flush()
        os.kill(process.pid, signal.SIGCONT)
        hosted.each(_goes_on)  # type: ignore[arg-type]
        out, err = process.communicate(timeout=90)
    said = json.loads(out) if process.returncode == 0 else dict.fromkeys(others, f"{out}\n{err}")
    return hosted.failures | said


def _goes_on(hosted: Hosted) -> None:
    eventually(lambda: hosted.addresses() == [], probes.PATIENCE, message="expired")
    hosted.go_on()
    hosted.recovers()


@each_feature
def test_f05_paused(feature: str, judge: Judge) -> None:
    judge(paused, feature)


def _expiring(server: EtcdServer, prefix: str) -> list[bytes]:
    """Return the keys on short leases: those of the process that is stopped."""
    start = prefix.encode()
    request = pb.RangeRequest(key=start, range_end=prefix_range_end(start))
    with Witness(server.endpoint) as witness:
        found = [kv for kv in witness.call("KV/Range", request).kvs if kv.lease]
        asked = [pb.LeaseTimeToLiveRequest(ID=kv.lease) for kv in found]
        lives = [witness.call("Lease/LeaseTimeToLive", each).grantedTTL for each in asked]
    return [kv.key for kv, seconds in zip(found, lives, strict=True) if 0 < seconds < 10]


@contextmanager
def _program(features: list[str], endpoint: str, prefix: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, str(Path(probes.__file__)), endpoint, prefix, *features],
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


def clock(features: list[str], server: EtcdServer) -> Failures:
    endpoint = server.endpoint
    clock = WallClock()
    # The wall clock is to end no lease, so none may end by itself.
    with in_use(features, endpoint, endpoint, ttl=20) as used:
        try:
            for hours in (1, -1):
                clock.jump(hours * 3600)
                used.each(lambda probe, hours=hours: _works_at_another_time(probe, hours))
        finally:
            clock.restore()
    return used.failures


def _works_at_another_time(probe: Probe, hours: int) -> None:
    if isinstance(probe, Hosted):
        probe.jump(hours * 3600)
    probe.works()


@each_feature
def test_f43_clock(feature: str, judge: Judge) -> None:
    judge(clock, feature)


def token(features: list[str], _: EtcdServer) -> Failures:
    """Login tokens live for a second."""
    with (
        EtcdServer(auth=_PASSWORD, flags=list(BRIEF_TOKENS)) as server,
        in_use(features, server.endpoint, server.endpoint, ttl=20, password=_PASSWORD) as used,
    ):
        before = {probe: probe.counter.counts.get("Authenticate", 0) for probe in used}
        # The passing of time is the fact under test: an unused token of 1 s is swept every 0.5 s.
        time.sleep(3.2)
        used.each(lambda probe: _logs_in_anew(probe, before[probe]))
    return used.failures


def _logs_in_anew(probe: Probe, before: int) -> None:
    probe.works()
    assert not probe.losses
    assert probe.counter.counts.get("Authenticate", 0) - before <= 2


@pytest.mark.slow
@each_feature
def test_f36_token(feature: str, judge: Judge) -> None:
    judge(token, feature)
