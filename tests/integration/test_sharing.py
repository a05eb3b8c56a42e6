"""One entry, several processes: here each part has a client, so an engine, of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from etcd_core import Client, ClosedError, Conflict, Descriptor, InvalidArgument, signals
from etcd_core.presence import Presence, started_at
from etcd_core.sharing import SharedRegistration, drain_here, write_draining
from etcd_core.testing import EtcdServer, FaultProxy, eventually

Join = Callable[..., SharedRegistration]

ME = Descriptor(name="shop", id="shop-1", address="10.0.0.1:80", metadata={"version": "1"})


@pytest.fixture
def join(etcd_client: Client) -> Iterator[Join]:
    clients: list[Client] = []

    def enter(
        info: Descriptor = ME, ttl: float = 60, server_started: float | None = None
    ) -> SharedRegistration:
        client = Client(etcd_client.config)
        clients.append(client)
        share = SharedRegistration(client.scope(), info, ttl, server_started)
        share.start()
        eventually(lambda: share.registered, message="registered")
        return share

    yield enter
    for client in clients:
        client.close()


def key_of(client: Client) -> str:
    return f"{client.prefix}/services/shop/shop-1"


def test_the_last_one_takes_the_entry_out(etcd_client: Client, join: Join) -> None:
    events: list[str] = []
    etcd_client.watch_service("shop", lambda event: events.append(str(event.type)))
    shares = [join() for _ in range(3)]
    assert len({share.lease_id for share in shares}) == 1
    for share in shares[:2]:
        share.deregister()
        share.deregister()
        assert not share.registered
        assert etcd_client.discover("shop") == [ME]
    shares[2].deregister()
    assert etcd_client.discover("shop") == []
    eventually(lambda: events == ["added", "removed"], message="one of each")


def test_a_newcomer_while_the_last_one_leaves_comes_after_it(
    etcd_client: Client, join: Join
) -> None:
    for _ in range(5):
        first = join()
        first.begin_leaving()
        second = join()
        assert first.wait_left(10)
        eventually(lambda second=second: second.registered, message="in place")
        eventually(lambda: etcd_client.discover("shop") == [ME], message="there")
        second.deregister()


def test_a_recycled_last_one_leaves_the_entry_to_its_successor(
    etcd_client: Client, join: Join
) -> None:
    events: list[str] = []
    etcd_client.watch_service("shop", lambda event: events.append(str(event.type)))
    join().leave(keep_entry=True)
    assert etcd_client.discover("shop") == [ME]
    last = join()
    last.deregister()
    with suppress(AssertionError):
        eventually(lambda: "removed" in events)
    assert events == ["added", "removed"], (last, etcd_client.discover("shop"))


@pytest.mark.slow
def test_leaving_has_the_time_that_it_is_given(
    etcd_server: EtcdServer, etcd_client: Client
) -> None:
    with FaultProxy(etcd_server.endpoint) as proxy:
        config = replace(etcd_client.config, endpoints=[proxy.endpoint])
        with Client(config) as client:
            share = SharedRegistration(client.scope(), ME, 60)
            share.start()
            eventually(lambda: share.registered)
            # There and back it is more than a server that stops would wait.
            proxy.delay(1.0)
            share.deregister(timeout=20)
            proxy.delay(0.0)
    assert etcd_client.discover("shop") == []


def test_one_that_leaves_before_it_entered_takes_a_kept_entry_out(
    etcd_client: Client, join: Join
) -> None:
    join().leave(keep_entry=True)
    with Client(etcd_client.config) as client:
        share = SharedRegistration(client.scope(), ME, 60)
        share.begin_leaving()
        share.start()
        assert share.wait_left(10)
    assert etcd_client.discover("shop") == []


@pytest.mark.parametrize(
    "disturb",
    [
        pytest.param(["del"], id="deleted"),
        pytest.param(["put", "garbage"], id="overwritten"),
        pytest.param(["put", ME.encode().decode()], id="detached"),
        pytest.param(["lease", "revoke"], id="lease-revoked"),
    ],
)
def test_repairs_what_others_break(
    etcd_server: EtcdServer, etcd_client: Client, join: Join, disturb: list[str]
) -> None:
    told: list[tuple[str, object]] = []
    shares = [join(), join()]

    def lost(share: object, **_: object) -> None:
        told.append(("lost", share))

    def registered(share: object, *, repaired: bool, **_: object) -> None:
        # That of the beginning may be told only now.
        if repaired:
            told.append(("repaired", share))

    signals.registration_lost.connect(lost)
    signals.service_registered.connect(registered)
    if disturb[0] == "lease":
        etcd_server.ctl(*disturb, f"{shares[0].lease_id:x}")
    else:
        etcd_server.ctl(disturb[0], key_of(etcd_client), *disturb[1:])

    def whole() -> bool:
        value, meta = etcd_client.raw.get(key_of(etcd_client))
        in_place = value == ME.encode() and meta.lease_id == shares[0].lease_id
        return in_place and all(share.registered for share in shares)

    eventually(whole, message="repaired")

    def balanced() -> bool:
        # One may see only the other's repair, when both events come together; nobody is told twice.
        names = [[name for name, share in told if share is each] for each in shares]
        return any(names) and all(each in ([], ["lost", "repaired"]) for each in names)

    with suppress(AssertionError):
        eventually(balanced)
    assert balanced(), (told, shares)
    shares[0].deregister()
    shares[1].deregister()
    assert etcd_client.discover("shop") == []


def test_another_live_lease_is_not_fought(etcd_client: Client, join: Join) -> None:
    share = join()
    other = Descriptor(name="shop", id="shop-1", address="10.0.0.2:80")
    with etcd_client.register(other) as successor:
        eventually(lambda: "replaced" in repr(share), message="gave up")
        with pytest.raises(Conflict):
            share.update(metadata={})
        share.deregister()
        assert successor.registered
        assert etcd_client.discover("shop") == [other]


def test_update_is_for_all_and_stays_after_a_repair(
    etcd_server: EtcdServer, etcd_client: Client, join: Join
) -> None:
    one, two = join(), join()
    one.update(metadata={"version": "2"})
    eventually(lambda: two.info.metadata == {"version": "2"}, message="seen by the other")
    etcd_server.ctl("del", key_of(etcd_client))
    eventually(
        lambda: (
            [dict(each.metadata) for each in etcd_client.discover("shop")] == [{"version": "2"}]
        ),
        message="repaired with the newer value",
    )
    with pytest.raises(InvalidArgument):
        one.update(address="")
    one.deregister()
    with pytest.raises(ClosedError):
        one.update(metadata={})


def test_the_last_writer_wins_and_nobody_writes_back(etcd_client: Client, join: Join) -> None:
    old = join()
    newer = Descriptor(name="shop", id="shop-1", address="10.0.0.1:80", metadata={"version": "2"})
    events: list[str] = []
    etcd_client.watch_service("shop", lambda event: events.append(str(event.type)))
    join(newer)
    eventually(lambda: old.info == newer, message="taken in")
    assert etcd_client.discover("shop") == [newer]
    eventually(lambda: events == ["added", "modified"], message="written once")


@pytest.mark.slow
def test_an_existing_lease_keeps_its_ttl_and_is_renewed_in_time(
    etcd_server: EtcdServer, etcd_client: Client, join: Join
) -> None:
    first = join(ttl=2)
    second = join(ttl=60)
    # The first one dies without a word.
    first._engine.keeper.drop(first._lease)  # type: ignore[arg-type]
    events: list[str] = []
    etcd_client.watch_service("shop", lambda event: events.append(str(event.type)))
    assert etcd_client.raw.get_lease_info(first.lease_id).grantedTTL == 2
    eventually(lambda: second.lease_remaining <= 2, message="the TTL that was granted")
    # Longer than the lease lasts without a renewal, and than etcd takes to see its end.
    time.sleep(3.5)
    assert second.registered
    assert events == ["added"]


def test_drain_here_marks_only_this_machines_entries(etcd_client: Client, join: Join) -> None:
    share = join()
    foreign = Descriptor(name="shop", id="shop-2", address="10.0.0.9:80")
    etcd_client.register(foreign)
    (marked,) = drain_here(etcd_client.scope(), "shop")
    assert marked.id == "shop-1"
    eventually(lambda: share.info.metadata.get("status") == "draining", message="seen")
    found = {each.id: dict(each.metadata) for each in etcd_client.discover("shop")}
    assert found == {"shop-1": {"version": "1", "status": "draining"}, "shop-2": {}}


def test_a_drain_is_kept_by_later_workers_of_the_server_only(
    etcd_client: Client, join: Join
) -> None:
    def metadata() -> dict[str, str]:
        return dict(etcd_client.discover("shop")[0].metadata)

    drained = {"version": "1", "status": "draining"}
    before = started_at(os.getpid())
    first = join(server_started=before)
    drain_here(etcd_client.scope(), "shop")
    assert metadata() == drained
    second = join(server_started=before)
    assert metadata() == drained
    second.update(metadata={"version": "2"})
    assert metadata() == {"version": "2"}
    join(server_started=before)
    assert metadata() == {"version": "1"}
    drain_here(etcd_client.scope(), "shop")
    join(server_started=time.clock_gettime(time.CLOCK_BOOTTIME))
    assert metadata() == {"version": "1"}
    assert first.registered


def test_presence_ends_with_the_process(tmp_path: object) -> None:
    mine = Presence(f"test {os.getpid()} {id(tmp_path)}")
    assert mine.enter()
    assert mine.enter()
    ready, wait = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        theirs = Presence(f"test {os.getppid()} {id(tmp_path)}")
        os.write(ready[1], b"1" if theirs.enter() else b"0")
        os.read(wait[0], 1)
        os._exit(0)
    assert os.read(ready[0], 1) == b"1"
    with mine.leave() as last:
        assert not last
    assert mine.enter()
    os.write(wait[1], b"1")
    os.waitpid(pid, 0)
    with mine.leave() as last:
        assert last
        other = Presence(f"test {os.getpid()} {id(tmp_path)}")
        assert not other.enter()
        mine.remove()
    assert other.enter()
    with other.leave() as last:
        assert last
        other.remove()
    for descriptor in (*ready, *wait):
        os.close(descriptor)


def test_after_fork_the_share_stays_the_parents(etcd_client: Client, join: Join) -> None:
    share = join()
    pid = os.fork()
    if pid == 0:
        ok = not share.registered
        share.deregister()
        os._exit(0 if ok else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert share.registered
    assert etcd_client.discover("shop") == [ME]
    share.deregister()
    assert etcd_client.discover("shop") == []


def test_a_late_draining_mark_does_not_undo_a_successors_entry(
    etcd_client: Client, join: Join
) -> None:
    """A successor on this machine has the same lease, so the lease is no fence."""
    first = join()
    entry = etcd_client.raw.get(key_of(etcd_client))[1]
    assert entry is not None
    first.deregister()
    second = join(Descriptor(name="shop", id="shop-1", address="10.0.0.1:80", metadata={"v": "2"}))
    marked = write_draining(
        etcd_client.scope().engine,
        key_of(etcd_client).encode(),
        ME,
        second.lease_id,
        entry.mod_revision,
    )
    assert not marked
    assert etcd_client.discover("shop") == [second.info]


def test_an_update_beside_the_end_is_answered(etcd_server: EtcdServer, prefix: str) -> None:
    for _ in range(10):
        with Client(endpoints=[etcd_server.endpoint], prefix=prefix) as client:
            share = SharedRegistration(client.scope(), ME)
            share.start()
            eventually(lambda share=share: share.registered, message="registered")
            share.begin_leaving()
            with suppress(ClosedError):
                share.update(metadata={"version": "2"}, timeout=20)
            assert share.wait_left(10)
            with pytest.raises(ClosedError):
                share.update(metadata={"version": "3"})
