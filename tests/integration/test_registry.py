"""Registrations on a real etcd: R1 to R7 where nothing but other clients interferes."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from etcd_core import (
    AlreadyRegistered,
    Client,
    ClosedError,
    Conflict,
    ConnectionFailed,
    EtcdError,
    InvalidArgument,
)
from etcd_core.registry import Registration
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually
from registrations import Announced, announced, descriptor
from witness import keys_under, lease_ids, revision


@pytest.fixture
def counter() -> RpcCounter:
    return RpcCounter()


@pytest.fixture
def client(
    etcd_server: EtcdServer, make_client: Callable[..., Client], counter: RpcCounter
) -> Client:
    return make_client(etcd_server.endpoint, interceptors=(counter,))


@pytest.fixture
def log() -> Iterator[Announced]:
    with announced() as log:
        yield log


def stored(server: EtcdServer, prefix: str, instance: str = "b-1") -> str:
    return server.ctl("get", "--print-value-only", f"{prefix}/services/billing/{instance}").rstrip(
        "\n"
    )


def hangs_on_lease(server: EtcdServer, key: str, lease_id: int) -> bool:
    return key in server.ctl("lease", "timetolive", f"{lease_id:x}", "--keys")


def test_stores_what_go_stores(
    client: Client, etcd_server: EtcdServer, prefix: str, log: Announced
) -> None:
    info = descriptor(metadata={"zone": "a<b"})
    with client.register(info) as registration:
        assert registration.info == info
        assert registration.registered
        assert stored(etcd_server, prefix) == info.encode().decode()
        key = f"{prefix}/services/billing/b-1"
        assert keys_under(etcd_server, prefix) == [key]
        assert hangs_on_lease(etcd_server, key, registration.lease_id)
    assert keys_under(etcd_server, prefix) == []
    assert not registration.registered
    eventually(lambda: len(log.of(registration)) == 2)
    assert log.of(registration) == [("registered", False), ("deregistered", info)]


def test_one_request_in_and_one_out_once_warm(client: Client, counter: RpcCounter) -> None:
    client.register(descriptor()).deregister()
    for _ in range(3):
        counter.reset()
        registration = client.register(descriptor())
        registration.deregister()
        # The own-key watch is a message on the client's stream, not a request.
        sent = {name: n for name, n in counter.counts.items() if name != "Watch"}
        assert sent == {"Txn": 2}
    assert counter.streams.get("Watch", 0) == 0


def test_one_request_in_without_a_spare_lease_is_two(
    etcd_server: EtcdServer, make_client: Callable[..., Client], counter: RpcCounter
) -> None:
    client = make_client(etcd_server.endpoint, interceptors=(counter,), lease_pool=0)
    registration = client.register(descriptor())
    registration.deregister()
    assert counter.counts["LeaseGrant"] == 1
    assert counter.counts["Txn"] == 2
    assert counter.counts["LeaseRevoke"] == 1
    assert f"{registration.lease_id:x}" not in lease_ids(etcd_server)


def test_takeover_replaces_and_the_loser_gives_in(
    client: Client,
    etcd_server: EtcdServer,
    make_client: Callable[..., Client],
    prefix: str,
    log: Announced,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = client.register(descriptor(address="old:1"))
    second = make_client(etcd_server.endpoint).register(descriptor(address="new:1"))
    eventually(lambda: not first.registered)
    eventually(lambda: log.losses(first) == ["replaced"])
    eventually(lambda: len([r for r in caplog.records if r.name == "etcd_core.registry"]) == 1)
    with pytest.raises(Conflict):
        first.update(address="older:1")
    before = revision(etcd_server)
    first.deregister()
    assert revision(etcd_server) == before
    assert second.registered
    assert '"new:1"' in stored(etcd_server, prefix)
    assert log.losses(second) == []


def test_deregister_before_the_replacement_is_noticed_leaves_the_successor(
    client: Client, etcd_server: EtcdServer, make_client: Callable[..., Client], prefix: str
) -> None:
    first = client.register(descriptor(address="old:1"))
    # What the watch will bring is not awaited.
    second = make_client(etcd_server.endpoint).register(descriptor(address="new:1"))
    first.deregister()
    assert '"new:1"' in stored(etcd_server, prefix)
    assert second.registered


def test_raise_names_the_holder(
    client: Client, etcd_server: EtcdServer, make_client: Callable[..., Client], prefix: str
) -> None:
    holder = client.register(descriptor(address="holder:1"))
    other = make_client(etcd_server.endpoint)
    leases = lease_ids(etcd_server)
    with pytest.raises(AlreadyRegistered, match=r"'b-1'.*'holder:1'"):
        other.register(descriptor(), on_conflict="raise")
    assert '"holder:1"' in stored(etcd_server, prefix)
    assert holder.registered
    # The lease that was taken for it is one of the spares now.
    assert len(lease_ids(etcd_server) - leases) == 1
    holder.deregister()
    with other.register(descriptor(), on_conflict="raise") as registration:
        assert registration.registered


@pytest.mark.parametrize("value", ["not json", None])
def test_raise_replaces_what_nobody_holds(
    client: Client, etcd_server: EtcdServer, prefix: str, value: str | None
) -> None:
    leftover = value or descriptor(address="dead:1").encode().decode()
    etcd_server.ctl("put", f"{prefix}/services/billing/b-1", leftover)
    with client.register(descriptor(), on_conflict="raise") as registration:
        assert registration.registered
        assert '"b-1:80"' in stored(etcd_server, prefix)
    assert keys_under(etcd_server, prefix) == []


def test_of_many_that_raise_one_wins(etcd_server: EtcdServer, client: Client) -> None:
    def attempt(n: int) -> Registration | None:
        try:
            return client.register(descriptor(address=f"p:{n}"), on_conflict="raise")
        except AlreadyRegistered:
            return None

    with ThreadPoolExecutor(8) as pool:
        winners = [found for found in pool.map(attempt, range(8)) if found is not None]
    assert len(winners) == 1
    assert [info.address for info in client.discover("billing")] == [winners[0].info.address]


def test_update_keeps_the_lease_and_leaves_no_gap(
    client: Client, etcd_server: EtcdServer, prefix: str, counter: RpcCounter, log: Announced
) -> None:
    registration = client.register(descriptor(metadata={"a": "1"}))
    lease_id = registration.lease_id
    counter.reset()
    registration.update(metadata={"b": "2"})
    assert counter.counts == {"Txn": 1} or counter.counts == {"Txn": 1, "Watch": 1}
    assert registration.info == descriptor(metadata={"b": "2"})
    registration.update(address="moved:1")
    assert stored(etcd_server, prefix) == registration.info.encode().decode()
    assert registration.info == descriptor(address="moved:1", metadata={"b": "2"})
    assert registration.lease_id == lease_id
    assert registration.registered
    counter.reset()
    registration.update(address="moved:1")
    assert counter.counts.get("Txn", 0) == 0
    registration.deregister()
    assert log.losses(registration) == []


def test_update_refuses_what_cannot_be_registered(client: Client, etcd_server: EtcdServer) -> None:
    registration = client.register(descriptor())
    before = revision(etcd_server)
    with pytest.raises(InvalidArgument):
        registration.update(address="")
    assert revision(etcd_server) == before
    assert registration.info == descriptor()
    registration.deregister()
    with pytest.raises(ClosedError):
        registration.update(address="a:1")


def test_concurrent_updates_lose_nothing(client: Client) -> None:
    registration = client.register(descriptor())
    with ThreadPoolExecutor(2) as pool:
        pool.submit(registration.update, address="moved:1").result()
        pool.submit(registration.update, metadata={"a": "1"}).result()
        for n in range(20):
            one = pool.submit(registration.update, address=f"moved:{n}")
            two = pool.submit(registration.update, metadata={"n": str(n)})
            one.result()
            two.result()
            expected = descriptor(address=f"moved:{n}", metadata={"n": str(n)})
            assert client.discover("billing") == [expected]


def test_update_that_fails_is_settled_one_way_or_the_other(
    proxy: FaultProxy, make_client: Callable[..., Client]
) -> None:
    client = make_client(proxy.endpoint)
    registration = client.register(descriptor())
    proxy.refuse()
    proxy.reset()
    with pytest.raises(EtcdError) as failure:
        registration.update(address="moved:1", timeout=0.5)
    wanted = "moved:1" if failure.value.outcome_unknown else "b-1:80"
    assert registration.info.address == wanted
    proxy.refuse(False)
    eventually(lambda: registration.registered)
    expected = [registration.info]
    eventually(lambda: client.discover("billing", timeout=1.0) == expected)


def test_concurrent_deregister_waits_for_the_one_result(
    client: Client, etcd_server: EtcdServer, prefix: str
) -> None:
    registration = client.register(descriptor())
    start = threading.Barrier(8)

    def leave(_: int) -> list[str]:
        start.wait(10)
        registration.deregister()
        return keys_under(etcd_server, prefix)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(leave, range(8))) == [[]] * 8
    registration.deregister()


def test_deregister_gives_everybody_the_first_failure(
    etcd_server: EtcdServer, make_client: Callable[..., Client], proxy: FaultProxy, prefix: str
) -> None:
    client = make_client(proxy.endpoint)
    registration = client.register(descriptor(), ttl=1)
    proxy.refuse()
    proxy.reset()
    with pytest.raises(EtcdError) as first:
        registration.deregister(timeout=0.2)
    with pytest.raises(EtcdError) as second:
        registration.deregister()
    assert second.value is first.value
    proxy.refuse(False)
    # The lease is not renewed any more, so the key goes although etcd is back.
    eventually(lambda: keys_under(etcd_server, prefix) == [])


def test_nothing_brings_it_back(
    client: Client, etcd_server: EtcdServer, prefix: str, counter: RpcCounter
) -> None:
    registration = client.register(descriptor())
    for _ in range(10):
        etcd_server.ctl("del", f"{prefix}/services/billing/b-1")
        registration.deregister()
        assert keys_under(etcd_server, prefix) == []
        registration = client.register(descriptor())
    registration.deregister()
    etcd_server.ctl("put", f"{prefix}/services/billing/b-1", "x")
    # A later registration's round trips are the bound: a repair would have come before them.
    counter.reset()
    with client.register(descriptor("other")):
        pass
    assert stored(etcd_server, prefix) == "x"
    assert counter.counts["Txn"] == 2


def test_deregister_takes_out_what_somebody_detached(
    client: Client, etcd_server: EtcdServer, prefix: str
) -> None:
    for _ in range(5):
        registration = client.register(descriptor())
        etcd_server.ctl("put", f"{prefix}/services/billing/b-1", "garbage")
        registration.deregister()
        assert keys_under(etcd_server, prefix) == []


def test_deregister_leaves_what_somebody_else_put_there(
    client: Client, etcd_server: EtcdServer, prefix: str
) -> None:
    registration = client.register(descriptor())
    # Replaced in one transaction, under another lease: no moment in which ours could repair it.
    lease = etcd_server.ctl("lease", "grant", "60").split()[1]
    value = descriptor(address="other:1").encode().decode()
    etcd_server.ctl("put", f"--lease={lease}", f"{prefix}/services/billing/b-1", value)
    registration.deregister()
    assert '"other:1"' in stored(etcd_server, prefix)
    etcd_server.ctl("lease", "revoke", lease)


def test_closing_the_client_deregisters(
    etcd_server: EtcdServer, make_client: Callable[..., Client], prefix: str
) -> None:
    client = make_client(etcd_server.endpoint)
    registrations = [client.register(descriptor(f"b-{n}")) for n in range(20)]
    client.close()
    assert keys_under(etcd_server, prefix) == []
    assert not any(registration.registered for registration in registrations)
    for registration in registrations:
        registration.deregister()
    with pytest.raises(ClosedError):
        client.register(descriptor())


def test_a_registration_nobody_refers_to_stays(
    client: Client, etcd_server: EtcdServer, prefix: str
) -> None:
    client.register(descriptor(), ttl=1)
    etcd_server.ctl("del", f"{prefix}/services/billing/b-1")
    eventually(lambda: client.discover("billing") == [descriptor()])


def test_refuses_before_any_request(client: Client, counter: RpcCounter) -> None:
    with pytest.raises(InvalidArgument):
        client.register(descriptor(address=""))
    with pytest.raises(InvalidArgument):
        client.register(descriptor(), ttl=-1)
    with pytest.raises(InvalidArgument):
        client.register(descriptor(), on_conflict="ask")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        client.register({"name": "billing"})  # type: ignore[arg-type]
    assert counter.total == 0


def test_unreachable_etcd_is_reported(make_client: Callable[..., Client]) -> None:
    client = make_client("127.0.0.1:1")
    with pytest.raises(ConnectionFailed):
        client.register(descriptor(), timeout=0.3)


def test_a_spare_lease_that_died_is_replaced(
    client: Client, etcd_server: EtcdServer, log: Announced
) -> None:
    registration = client.register(descriptor())
    registration.deregister()
    etcd_server.ctl("lease", "revoke", f"{registration.lease_id:x}")
    with client.register(descriptor()) as fresh:
        assert fresh.registered
        assert fresh.lease_id != registration.lease_id
    assert log.losses(fresh) == []


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_no_registration(
    client: Client, etcd_server: EtcdServer, prefix: str
) -> None:
    registration = client.register(descriptor())
    child = os.fork()
    if child == 0:
        status = 1
        try:
            registration.deregister()
            with registration:
                assert not registration.registered
            try:
                registration.update(address="child:1")
            except ClosedError:
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert registration.registered
    assert '"b-1:80"' in stored(etcd_server, prefix)
    registration.update(address="parent:1")
    assert '"parent:1"' in stored(etcd_server, prefix)


def test_many_registrations_have_no_thread_each(client: Client, etcd_server: EtcdServer) -> None:
    with ThreadPoolExecutor(4) as pool:
        registrations = list(
            pool.map(lambda n: client.register(descriptor(f"b-{n:04}")), range(200))
        )
    etcd_server.ctl("del", "--prefix", f"{client.prefix}/services/")
    eventually(lambda: all(r._stored.value is not None for r in registrations), timeout=30)
    eventually(lambda: all(r.registered for r in registrations), timeout=30)
    eventually(lambda: len(client.discover("billing")) == 200, timeout=30)
    ours = [t for t in threading.enumerate() if t.name.startswith("etcd-")]
    assert len(ours) < 20


def test_one_warning_and_one_recovery_line(
    client: Client, etcd_server: EtcdServer, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "etcd_core.registry")
    registration = client.register(descriptor())
    etcd_server.ctl("del", f"{prefix}/services/billing/b-1")

    def events() -> list[tuple[str, str]]:
        records = [r for r in caplog.records if r.name == "etcd_core.registry"]
        return [(r.levelname, vars(r)["etcd_event"]) for r in records]

    eventually(lambda: len(events()) >= 2)
    assert registration.registered
    # Of one level: who sees the loss sees that it is over.
    assert events() == [("WARNING", "registration.lost"), ("WARNING", "registration.restored")]
