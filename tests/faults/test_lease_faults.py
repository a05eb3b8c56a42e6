"""Faults under leases and the keep-alive stream: F1, F2, F19, F22, F43, F44; J4."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcd_core import Client
from etcd_core.lease import Lease, boottime, margin
from etcd_core.testing import EtcdCluster, EtcdServer, FaultProxy, RpcCounter, eventually
from witness import lease_ids

MakeClient = Callable[..., Client]


def keeper_of(client: Client):  # type: ignore[no-untyped-def]
    return client.scope().engine.keeper


def grant(client: Client, ttl: int) -> Lease:
    return keeper_of(client).grant(ttl, what="test")  # type: ignore[no-any-return]


def server_ttl(server: EtcdServer, lease: Lease) -> int:
    answer = json.loads(server.ctl("lease", "timetolive", f"{lease.id:x}", "-w", "json"))
    return int(answer["ttl"])


def test_one_stream_renews_all_leases(etcd_server: EtcdServer, make_client: MakeClient) -> None:
    counter = RpcCounter()
    client = make_client(etcd_server.endpoint, interceptors=(counter,))
    leases = [grant(client, 1) for _ in range(20)]
    begun = [lease.deadline for lease in leases]
    eventually(lambda: all(x.deadline > d for x, d in zip(leases, begun, strict=True)))
    eventually(lambda: counter.streams.get("LeaseKeepAlive", 0) >= 1)
    assert counter.streams["LeaseKeepAlive"] == 1
    # Longer than the TTL: they live on.
    until = boottime() + 1.5
    while boottime() < until:
        assert all(lease.alive() for lease in leases)
        time.sleep(0.02)


def test_f01_restart_with_data_keeps_the_lease(
    own_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(own_server.endpoint)
    lease = grant(client, 12)
    deadline = lease.deadline
    # The first renewal is due after a third of the TTL.
    eventually(lambda: server_ttl(own_server, lease) < 11)
    own_server.kill()
    own_server.start()
    eventually(lambda: server_ttl(own_server, lease) > 0)
    assert server_ttl(own_server, lease) >= 11, "armed anew"
    assert lease.alive()
    with client.lock("a", timeout=10):
        pass
    # The renewals resume on a new stream by themselves.
    eventually(lambda: lease.deadline > deadline, timeout=20)


def test_f02_short_restart_loses_nothing(own_server: EtcdServer, make_client: MakeClient) -> None:
    client, other = make_client(own_server.endpoint), make_client(own_server.endpoint)
    lock = client.lock("a", ttl=20)
    got: list[bool] = []

    def wait() -> None:
        with other.lock("a", timeout=30) as mine:
            got.append(mine.held)

    waiter = threading.Thread(target=wait)
    waiter.start()
    key = f"{client.prefix}/locks/a/"
    eventually(lambda: own_server.ctl("get", "--prefix", key, "--keys-only").count(key) == 2)
    own_server.stop()
    own_server.start()
    assert lock.held
    assert not lock.done.is_set()
    assert not got
    assert lock.unlock() is True
    waiter.join(20)
    assert got == [True]


@pytest.mark.slow
def test_f19_slow_link_is_no_loss(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    proxy.delay(0.3)
    client = make_client(proxy.endpoint)
    # With 2 s a busy machine's own stalls already cost the half second that is to spare.
    lease = grant(client, 3)
    seen = set()
    # Longer than the TTL, and several renewals.
    until = boottime() + 4.0
    while boottime() < until or (len(seen) < 4 and boottime() < until + 10):
        assert lease.alive(), "a false loss"
        seen.add(lease.deadline)
        time.sleep(0.02)
    assert len(seen) >= 4


@pytest.mark.slow
def test_f19_local_deadline_is_before_the_servers_expiry(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    """J4: whatever the delay, our loss comes before the deletion that lets another in."""
    witness = make_client(etcd_server.endpoint)

    def lose_a_lock(delay: float) -> tuple[float, float]:
        """Return when it was lost, and when it was deleted."""
        with FaultProxy(etcd_server.endpoint) as proxy:
            proxy.delay(delay)
            client = make_client(proxy.endpoint)
            # Two requests pass the link before it is held; the lease must outlast them.
            lock = client.lock(f"after-{delay}", ttl=3)
            gone: list[float] = []
            watch_id = witness.raw.add_watch_callback(
                lock.etcd_key, lambda response: gone.append(time.monotonic())
            )
            proxy.hold()
            assert lock.done.wait(10)
            lost_at = time.monotonic()
            proxy.heal()
            eventually(lambda: gone, timeout=20)
            witness.raw.cancel_watch(watch_id)
            client.close()
            return lost_at, gone[0]

    delays = (0.0, 0.1, 0.25)
    with ThreadPoolExecutor(len(delays)) as pool:
        for lost_at, deleted_at in pool.map(lose_a_lock, delays):
            assert lost_at <= deleted_at


@pytest.mark.slow
def test_f22_dropped_answers_are_a_local_loss(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    client = make_client(proxy.endpoint)
    lease = grant(client, 1)
    proxy.drop("to_client")
    lost = threading.Event()
    lease.when_lost(lambda reason: lost.set())
    assert lost.wait(10)
    assert lease.lost_reason == "expired"
    proxy.heal()
    assert keeper_of(client).revoke(lease, timeout=10)
    assert f"{lease.id:x}" not in lease_ids(etcd_server)


def test_f23_revoked_by_a_third_party_is_lost_within_a_third_of_the_ttl(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(etcd_server.endpoint)
    lease = grant(client, 3)
    lost = threading.Event()
    lease.when_lost(lambda reason: lost.set())
    etcd_server.ctl("lease", "revoke", f"{lease.id:x}")
    assert lost.wait(10)
    assert lease.lost_reason == "revoked"
    assert not lease.alive()


def test_f43_the_wall_clock_is_of_no_consequence(
    etcd_server: EtcdServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(etcd_server.endpoint)
    lock = client.lock("a", ttl=2)
    real = time.time

    def jumped(by: float) -> float:
        # gRPC turns timeouts into wall-clock deadlines, so a real jump moves both; only we are lied
        # to here.
        ours = "etcd_core" in sys._getframe(2).f_code.co_filename
        return real() + by if ours else real()

    for jump in (3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: jumped(jump))
        assert lock.held
        assert client.try_lock("a") is None
        with client.lock("b", timeout=5) as other:
            assert other.held
    assert lock.unlock() is True


@pytest.mark.parametrize("fault", ["raises", "blocks"])
def test_f44_a_handler_disturbs_no_other_watch(
    etcd_server: EtcdServer, make_client: MakeClient, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(etcd_server.endpoint)
    source = client.config_source("app")
    source.save({"a": 0})
    lock = client.lock("held", ttl=1)
    release, entered = threading.Event(), threading.Event()
    seen: list[object] = []
    raw: list[object] = []

    def bad(snapshot: object) -> None:
        entered.set()
        if fault == "raises":
            raise RuntimeError("of the handler")
        release.wait(20)

    try:
        source.watch(bad)
        source.watch(lambda snapshot: seen.append(snapshot["a"]))
        client.raw.add_watch_callback(f"{client.prefix}/config/app/a", raw.append)
        assert entered.wait(10)
        until = boottime() + 1.5
        number = 0
        while boottime() < until:
            number += 1
            source.save({"a": number})
            eventually(lambda number=number: seen[-1:] == [number])
            assert lock.held
        eventually(lambda: len(raw) >= number)
        assert number > 3
    finally:
        release.set()
    client.close()
    assert ("of the handler" in caplog.text) == (fault == "raises")


def test_f44_a_blocking_receiver_delays_no_renewal(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    from etcd_core import signals

    client = make_client(etcd_server.endpoint)
    release = threading.Event()
    entered = threading.Event()

    def block(lock: object, **_: object) -> None:
        entered.set()
        release.wait(20)

    try:
        with signals.lock_lost.connected_to(block):
            victim, keeper_lock = client.lock("victim"), client.lock("other", ttl=1)
            etcd_server.ctl("del", victim.etcd_key)
            assert entered.wait(10)
            until = boottime() + 1.5
            while boottime() < until:
                assert keeper_lock.held
                time.sleep(0.02)
            assert keeper_lock.unlock() is True
    finally:
        release.set()


class TestLease:
    """The lease object by itself."""

    def test_lost_is_final_and_told_once(self) -> None:
        lease = Lease(1, 10, boottime())
        told: list[str] = []
        lease.when_lost(told.append)
        lease.lose("revoked")
        lease.lose("expired")
        lease.renewed(boottime(), 10)
        assert not lease.alive()
        assert lease.remaining == 0.0
        assert told == ["revoked"]
        lease.when_lost(told.append)
        assert told == ["revoked", "revoked"]

    def test_late_answer_does_not_revive(self) -> None:
        lease = Lease(1, 2, boottime() - 5)
        told: list[str] = []
        lease.when_lost(told.append)
        lease.renewed(boottime(), 2)
        assert not lease.alive()
        assert told == ["expired"]

    @pytest.mark.parametrize("ttl", [1, 2, 15, 30, 600])
    def test_deadline_counts_from_the_sending(self, ttl: int) -> None:
        sent_at = boottime()
        lease = Lease(1, ttl, sent_at)
        assert lease.deadline == pytest.approx(sent_at + ttl - margin(ttl))
        lease.renewed(sent_at + 0.01, ttl)
        assert lease.deadline == pytest.approx(sent_at + 0.01 + ttl - margin(ttl))


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(3) as cluster:
        yield cluster


@pytest.mark.slow
def test_f03_a_hung_member_costs_no_lease(cluster: EtcdCluster, make_client: MakeClient) -> None:
    client = make_client(*cluster.endpoints, timeout=10.0)
    lease = grant(client, 5)
    lock = client.lock("a", ttl=5)
    used = client.scope().engine.channel.endpoints.pick().endpoint.port
    member = next(m for m in cluster.members if m.client_port == used)
    member.pause()
    try:
        until = boottime() + 6.0
        before = time.monotonic()
        assert client.leader("x") is None
        assert time.monotonic() - before < 9.0
        while boottime() < until:
            assert lease.alive()
            assert lock.held
            time.sleep(0.05)
        assert lock.unlock() is True
    finally:
        member.resume()
    cluster.wait_healthy()


def test_grant_survives_a_lost_answer(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    client = make_client(proxy.endpoint, etcd_server.endpoint, timeout=10.0)
    endpoints = client.scope().engine.channel.endpoints
    while (link := endpoints.pick()).endpoint.port != proxy.port:
        endpoints.rotate(link)
    before = lease_ids(etcd_server)
    assert client.leader("warm") is None
    proxy.drop("to_client")
    lease = grant(client, 30)
    assert lease_ids(etcd_server) - before == {f"{lease.id:x}"}
    assert lease.alive()


def test_spare_lease_revoked_behind_our_back(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(etcd_server.endpoint)
    before = lease_ids(etcd_server)
    client.lock("a").unlock()
    for lease in lease_ids(etcd_server) - before:
        etcd_server.ctl("lease", "revoke", lease)
    with client.lock("a", timeout=5) as lock:
        assert lock.held
