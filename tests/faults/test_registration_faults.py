"""Registration and discovery under the faults of semantics section 10."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from checkers import BRIEF_TOKENS, let_the_token_expire
from etcd_core import Client, Descriptor, ServiceEvent
from etcd_core.registry import Registration
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from registrations import Announced, announced, descriptor
from witness import keys_under


@pytest.fixture
def client(etcd_server: EtcdServer, make_client: Callable[..., Client]) -> Client:
    return make_client(etcd_server.endpoint)


@pytest.fixture
def log() -> Iterator[Announced]:
    with announced() as log:
        yield log


@pytest.fixture
def key(prefix: str) -> str:
    return f"{prefix}/services/billing/b-1"


def wait_repaired(log: Announced, registration: Registration, times: int) -> None:
    eventually(lambda: log.repairs(registration) == times, timeout=30)
    eventually(lambda: registration.registered, timeout=30)


def wait_stored(server: EtcdServer, key: str, info: Descriptor, lease_id: int) -> None:
    """Wait until ``key`` holds ``info`` and goes with the lease."""

    def in_place() -> bool:
        value = server.ctl("get", "--print-value-only", key).rstrip("\n")
        attached = server.ctl("lease", "timetolive", f"{lease_id:x}", "--keys")
        return value == info.encode().decode() and key in attached

    eventually(in_place, timeout=30)


def other_lease(server: EtcdServer) -> str:
    return server.ctl("lease", "grant", "60").split()[1]


def test_f26_deleted_by_a_third_party(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced
) -> None:
    registration = client.register(descriptor())
    lease_id = registration.lease_id
    etcd_server.ctl("del", key)
    wait_repaired(log, registration, 1)
    wait_stored(etcd_server, key, descriptor(), lease_id)
    assert log.losses(registration) == ["deleted"]
    assert registration.lease_id == lease_id


@pytest.mark.parametrize("value", ["garbage", "{}", ""])
def test_f26_overwritten_without_a_lease(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced, value: str
) -> None:
    registration = client.register(descriptor())
    etcd_server.ctl("put", key, value)
    wait_repaired(log, registration, 1)
    wait_stored(etcd_server, key, descriptor(), registration.lease_id)
    assert len(log.losses(registration)) == 1


def test_f26_detached_from_its_lease(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced
) -> None:
    registration = client.register(descriptor())
    etcd_server.ctl("put", key, descriptor().encode().decode())
    wait_repaired(log, registration, 1)
    wait_stored(etcd_server, key, descriptor(), registration.lease_id)
    registration.deregister()
    assert etcd_server.ctl("get", key) == ""


def test_f26_overwritten_under_our_own_lease(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced
) -> None:
    registration = client.register(descriptor())
    changed = descriptor(address="not-ours:1").encode().decode()
    etcd_server.ctl("put", "--ignore-lease", key, changed)
    wait_repaired(log, registration, 1)
    wait_stored(etcd_server, key, descriptor(), registration.lease_id)
    assert log.losses(registration) == ["overwritten"]


def test_f26_garbage_under_another_lease_is_repaired(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced
) -> None:
    registration = client.register(descriptor())
    lease = other_lease(etcd_server)
    etcd_server.ctl("put", f"--lease={lease}", key, "garbage")
    wait_repaired(log, registration, 1)
    etcd_server.ctl("lease", "revoke", lease)
    wait_stored(etcd_server, key, descriptor(), registration.lease_id)


def test_f26_a_successor_is_left_in_peace(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced
) -> None:
    registration = client.register(descriptor())
    lease = other_lease(etcd_server)
    successor = descriptor(address="successor:1")
    etcd_server.ctl("put", f"--lease={lease}", key, successor.encode().decode())
    eventually(lambda: log.losses(registration) == ["replaced"])
    assert not registration.registered
    # Final, also when the successor goes.
    etcd_server.ctl("lease", "revoke", lease)
    with client.register(descriptor("other")):
        assert etcd_server.ctl("get", key) == ""
    registration.deregister()
    assert log.of(registration) == [("registered", False), ("lost", "replaced")]


def test_f26_again_and_again_with_one_watcher(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced
) -> None:
    events: list[tuple[str, str]] = []

    def handler(event: ServiceEvent) -> None:
        events.append((str(event.type), event.info.address))

    registration = client.register(descriptor())
    with client.watch_service("billing", handler):
        eventually(lambda: events == [("added", "b-1:80")])
        for times in range(1, 4):
            etcd_server.ctl("put", key, "garbage")
            wait_repaired(log, registration, times)
        etcd_server.ctl("del", key)
        eventually(lambda: len(events) == 3, timeout=30)
    assert events == [("added", "b-1:80"), ("removed", "b-1:80"), ("added", "b-1:80")]


def test_f26_update_during_a_repair_is_what_the_repair_writes(
    proxy: FaultProxy,
    make_client: Callable[..., Client],
    etcd_server: EtcdServer,
    key: str,
    log: Announced,
) -> None:
    registration = make_client(proxy.endpoint).register(descriptor(), ttl=1)
    proxy.refuse()
    proxy.reset()
    eventually(lambda: log.losses(registration) == ["lease expired"], timeout=20)
    registration.update(address="moved:1")
    assert registration.info.address == "moved:1"
    proxy.heal()
    wait_repaired(log, registration, 1)
    wait_stored(etcd_server, key, descriptor(address="moved:1"), registration.lease_id)


def test_f23_lease_revoked_by_a_third_party(
    client: Client, etcd_server: EtcdServer, key: str, log: Announced
) -> None:
    registration = client.register(descriptor())
    lease_id = registration.lease_id
    etcd_server.ctl("lease", "revoke", f"{lease_id:x}")
    wait_repaired(log, registration, 1)
    assert registration.lease_id != lease_id
    wait_stored(etcd_server, key, descriptor(), registration.lease_id)
    assert len(log.losses(registration)) == 1
    registration.deregister()
    assert etcd_server.ctl("get", key) == ""


def test_f23_revoked_and_deregistered_at_once(
    client: Client, etcd_server: EtcdServer, key: str
) -> None:
    for _ in range(5):
        registration = client.register(descriptor())
        etcd_server.ctl("lease", "revoke", f"{registration.lease_id:x}")
        registration.deregister()
        assert etcd_server.ctl("get", key) == ""
    # Nothing that was under way comes after it.
    with client.register(descriptor("other")):
        assert etcd_server.ctl("get", key) == ""


@pytest.mark.slow
def test_f4_etcd_paused_for_longer_than_the_ttl(
    own_server: EtcdServer, make_client: Callable[..., Client], key: str, log: Announced
) -> None:
    client = make_client(own_server.endpoint)
    events: list[str] = []
    registration = client.register(descriptor(), ttl=1)
    with client.watch_service("billing", lambda event: events.append(str(event.type))):
        eventually(lambda: events == ["added"])
        own_server.pause()
        eventually(lambda: not registration.registered, timeout=20)
        own_server.resume()
        wait_repaired(log, registration, 1)
    wait_stored(own_server, key, descriptor(), registration.lease_id)
    assert log.losses(registration) == ["lease expired"]


def test_f6_restarted_empty(
    own_server: EtcdServer, make_client: Callable[..., Client], prefix: str, log: Announced
) -> None:
    client = make_client(own_server.endpoint)
    events: list[tuple[str, str]] = []

    def handler(event: ServiceEvent) -> None:
        events.append((str(event.type), event.info.id))

    registrations = [client.register(descriptor(f"b-{n}")) for n in range(5)]
    foreign = f"{prefix}/services/billing/gone"
    own_server.ctl("put", foreign, descriptor("gone").encode().decode())
    for n in range(20):
        own_server.ctl("put", f"filler/{n}", "")
    view = client.services("billing")
    with client.watch_service("billing", handler):
        eventually(lambda: len(events) == 6)
        own_server.restart(wipe=True)
        for n, registration in enumerate(registrations):
            wait_repaired(log, registration, 1)
            key = f"{prefix}/services/billing/b-{n}"
            wait_stored(own_server, key, descriptor(f"b-{n}"), registration.lease_id)
        expected = tuple(descriptor(f"b-{n}") for n in range(5))
        eventually(lambda: view.instances == expected, timeout=30)
        eventually(lambda: ("removed", "gone") in events, timeout=30)
    client.close()
    assert keys_under(own_server, prefix) == []


def test_f2_restarted_with_its_data(
    own_server: EtcdServer, make_client: Callable[..., Client], key: str, log: Announced
) -> None:
    client = make_client(own_server.endpoint)
    events: list[str] = []
    registration = client.register(descriptor(), ttl=20)
    lease_id = registration.lease_id
    with client.watch_service("billing", lambda event: events.append(str(event.type))):
        eventually(lambda: events == ["added"])
        own_server.restart()
        # Works again, watch and all: a change made now arrives.
        registration.update(address="moved:1", timeout=20)
        eventually(lambda: events == ["added", "modified"], timeout=20)
    wait_stored(own_server, key, descriptor(address="moved:1"), lease_id)
    own_server.ctl("del", key)
    wait_repaired(log, registration, 1)
    assert log.losses(registration) == ["deleted"]


def test_f29_compaction_while_disconnected(
    proxy: FaultProxy,
    make_client: Callable[..., Client],
    etcd_server: EtcdServer,
    key: str,
    log: Announced,
) -> None:
    client = make_client(proxy.endpoint)
    registration = client.register(descriptor(), ttl=60)
    view = client.services("billing")
    proxy.refuse()
    proxy.reset()
    etcd_server.ctl("put", key, "garbage")
    etcd_server.ctl("del", key)
    answer = etcd_server.ctl("put", "filler", "", "-w", "fields")
    revision = next(line.split()[-1] for line in answer.splitlines() if "Revision" in line)
    etcd_server.ctl("compact", revision)
    proxy.heal()
    wait_repaired(log, registration, 1)
    wait_stored(etcd_server, key, descriptor(), registration.lease_id)
    eventually(lambda: view.instances == (descriptor(),), timeout=20)


def test_f20_an_entry_given_up_leaves_nothing(
    proxy: FaultProxy, make_client: Callable[..., Client], etcd_server: EtcdServer, prefix: str
) -> None:
    late, direct = make_client(proxy.endpoint), make_client(etcd_server.endpoint)
    for n in range(6):
        if n % 2 == 0:
            # A spare lease, so that the put itself is what is held.
            late.register(descriptor("warm"), ttl=2, timeout=20).deregister()
        proxy.hold()
        with pytest.raises(TimeoutError):
            late.register(descriptor(f"b-{n}"), ttl=2, timeout=0.2)
        # The held bytes, a put and its revocation, reach etcd now, after we gave up. With them
        # comes that the calls were cancelled: where that spares only the put, the TTL is its end.
        proxy.heal()
        eventually(lambda: keys_under(etcd_server, prefix) == [], timeout=20)
        direct.discover("billing")
        assert keys_under(etcd_server, prefix) == []


def test_f20_a_late_update_does_not_undo_a_newer_one(
    proxy: FaultProxy, make_client: Callable[..., Client], etcd_server: EtcdServer, key: str
) -> None:
    registration = make_client(proxy.endpoint).register(descriptor(), ttl=60)
    for n in range(5):
        proxy.hold()
        with pytest.raises(Exception, match="no answer"):
            registration.update(address=f"early:{n}", timeout=0.2)
        proxy.heal()
        registration.update(address=f"later:{n}", timeout=20)
        wait_stored(etcd_server, key, registration.info, registration.lease_id)
        assert registration.info.address == f"later:{n}"


@pytest.mark.slow
def test_f36_expired_token(make_client: Callable[..., Client], key: str, log: Announced) -> None:
    with EtcdServer(auth="pa55word", flags=list(BRIEF_TOKENS)) as server:
        client = make_client(server.endpoint, username="root", password="pa55word")
        registration = client.register(descriptor(), ttl=30)
        let_the_token_expire(server, client)
        registration.update(address="moved:1")
        server.ctl("del", key)
        wait_repaired(log, registration, 1)
        wait_stored(server, key, descriptor(address="moved:1"), registration.lease_id)
        registration.deregister()
        assert server.ctl("get", key) == ""
        client.close()
