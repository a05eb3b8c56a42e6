"""`client.raw` on a real etcd: everything of etcd3, and what it does better than etcd3 alone."""

from __future__ import annotations

import inspect
import io
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import etcd3
import grpc
import pytest
from etcd3 import etcdrpc
from etcd3.exceptions import (
    ConnectionFailedError,
    ConnectionTimeoutError,
    PreconditionFailedError,
    RevisionCompactedError,
    WatchTimedOut,
)
from etcd3.watch import WatchResponse

from etcd_core import (
    Client,
    ClosedError,
    ClusterReset,
    Config,
    LockTimeout,
    PermissionDenied,
    shared_client,
)
from etcd_core.ownership import Compare
from etcd_core.testing import EtcdCluster, EtcdServer, FaultProxy, RpcCounter, eventually
from etcd_core.wire.raw import RawClient

PASSWORD = "raw-secret"
BOUND = 20.0


@pytest.fixture
def raw(etcd_client: Client) -> RawClient:
    return etcd_client.raw


@pytest.fixture
def key(etcd_client: Client) -> str:
    return f"{etcd_client.prefix}/raw/key"


@pytest.fixture(scope="module")
def module_server() -> Iterator[EtcdServer]:
    # For tests that stop, wipe or compact it; each leaves it running.
    with EtcdServer(flags=["--experimental-watch-progress-notify-interval=200ms"]) as server:
        yield server


@pytest.fixture
def own(module_server: EtcdServer) -> Iterator[RawClient]:
    with Client(endpoints=[module_server.endpoint]) as client:
        yield client.raw


@pytest.fixture(scope="module")
def auth_server() -> Iterator[EtcdServer]:
    with EtcdServer(auth=PASSWORD, flags=["--auth-token-ttl=1"]) as server:
        server.ctl("user", "add", f"guest:{PASSWORD}")
        server.ctl("role", "add", "guest")
        server.ctl("role", "grant-permission", "guest", "readwrite", "/guest/", "/guest0")
        server.ctl("user", "grant-role", "guest", "guest")
        yield server


def take(responses: queue.Queue[Any]) -> Any:
    return responses.get(timeout=BOUND)


def values(responses: queue.Queue[Any], count: int) -> list[bytes]:
    found: list[bytes] = []
    while len(found) < count:
        found += [event.value for event in take(responses).events]
    return found


def handled(server: EtcdServer, method: str) -> float:
    """Return how many calls of a method the server has answered."""
    with urllib.request.urlopen(f"{server.endpoint}/metrics", timeout=BOUND) as page:
        lines = page.read().decode().splitlines()
    name = f'grpc_server_handled_total{{grpc_code="OK",grpc_method="{method}"'
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# -- keys and values -------------------------------------------------------------------------------


def test_is_an_etcd3_client_and_makes_no_call(key: str) -> None:
    before = threading.active_count()
    with Client(endpoints=["127.0.0.1:1"], timeout=3.0) as client:
        assert isinstance(client.raw, etcd3.Etcd3Client)
        assert client.raw is client.raw
        assert client.raw.timeout == 3.0
        assert client.raw.uses_secure_channel is False
        assert threading.active_count() == before


def test_put_get_delete(raw: RawClient, key: str) -> None:
    assert raw.get(key) == (None, None)
    first = raw.put(key, "1").header.revision
    assert raw.put(key, b"2", prev_kv=True).prev_kv.value == b"1"
    value, meta = raw.get(key)
    assert value == b"2"
    assert meta is not None
    assert (meta.key, meta.version, meta.create_revision) == (key.encode(), 2, first)
    assert raw.get(key, revision=first)[0] == b"1"
    assert raw.get(key, serializable=True)[0] == b"2"
    assert raw.get(key, min_mod_revision=meta.mod_revision + 1) == (None, None)
    assert raw.put_if_not_exists(key, "3") is False
    assert raw.replace(key, "2", "3") is True
    assert raw.replace(key, "2", "4") is False
    deleted = raw.delete(key, prev_kv=True, return_response=True)
    assert deleted.prev_kvs[0].value == b"3"
    assert raw.delete(key) is False
    assert raw.put_if_not_exists(key, "3") is True


def test_ranges(raw: RawClient, key: str) -> None:
    revisions = [raw.put(f"{key}/{name}", name).header.revision for name in "bac"]
    assert [value for value, _ in raw.get_prefix(f"{key}/")] == [b"a", b"b", b"c"]
    assert [m.key[-1:] for _, m in raw.get_prefix(f"{key}/", sort_order="descend")] == [
        b"c",
        b"b",
        b"a",
    ]
    created = raw.get_prefix(f"{key}/", sort_order="ascend", sort_target="create")
    assert [value for value, _ in created] == [b"b", b"a", b"c"]
    assert [value for value, _ in raw.get_range(f"{key}/a", f"{key}/c")] == [b"a", b"b"]
    assert [value for value, _ in raw.get_prefix(f"{key}/", keys_only=True)] == [b"", b"", b""]
    everything = [meta.key for _, meta in raw.get_all(sort_order="ascend")]
    assert f"{key}/a".encode() in everything
    assert raw.get_all_response(keys_only=True).count >= 3

    # What etcd3 alone drops.
    page = raw.get_prefix_response(f"{key}/", limit=2)
    assert (len(page.kvs), page.more, page.count) == (2, True, 3)
    counted = raw.get_range_response(f"{key}/", f"{key}0", count_only=True)
    assert (len(counted.kvs), counted.count) == (0, 3)
    old = raw.get_prefix(f"{key}/", revision=revisions[0])
    assert [value for value, _ in old] == [b"b"]
    newer = raw.get_prefix(f"{key}/", min_mod_revision=revisions[1])
    assert [value for value, _ in newer] == [b"a", b"c"]
    older = raw.get_prefix(f"{key}/", max_create_revision=revisions[1])
    assert [value for value, _ in older] == [b"a", b"b"]
    with pytest.raises(ValueError, match="sort_order"):
        raw.get_prefix(f"{key}/", sort_order="down")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        raw.get_prefix(f"{key}/", range_end="x")  # type: ignore[call-arg]

    assert raw.delete_prefix(f"{key}/").deleted == 3


def test_prefixes_end_where_they_should(own: RawClient) -> None:
    own.delete_prefix("")
    for name in (b"a\xff", b"a\xffz", b"b", b"\xff\xff", b"\xff\xffz"):
        own.put(name, name)
    assert [value for value, _ in own.get_prefix(b"a\xff")] == [b"a\xff", b"a\xffz"]
    assert [value for value, _ in own.get_prefix(b"\xff\xff")] == [b"\xff\xff", b"\xff\xffz"]
    assert own.get_prefix_response("").count == 5
    events, cancel = own.watch_prefix(b"\xff")
    assert own.delete_prefix(b"a\xff").deleted == 2
    assert own.delete_prefix(b"\xff\xff").deleted == 2
    assert [next(events).key, next(events).key] == [b"\xff\xff", b"\xff\xffz"]
    cancel()
    assert own.delete_prefix(b"").deleted == 1


def test_transactions(raw: RawClient, key: str) -> None:
    kv = raw.transactions
    done, answers = raw.transaction(
        compare=[kv.version(key) == 0],
        success=[kv.put(key, "1"), kv.get(key)],
        failure=[kv.delete(key)],
    )
    assert done
    assert isinstance(answers[1], list)
    value, meta = answers[1][0]
    assert (value, meta.version) == (b"1", 1)

    inner = kv.txn([kv.value(key) == "1"], [kv.put(key, "2"), kv.put(f"{key}/n", "n")], None)
    done, answers = raw.transaction([kv.version(key) > 0], [inner, kv.get(key)])
    assert done
    assert not isinstance(answers[0], list)
    assert answers[0].response_txn.succeeded
    assert raw.get(f"{key}/n")[0] == b"n"

    assert raw.transaction([kv.version(key) == 0], [kv.delete(key)]) == (False, [])
    assert raw.transaction([kv.version(key) > 0], None, None) == (True, [])
    assert raw.transaction(None, [kv.get(f"{key}/none")]) == (True, [[]])


def test_transaction_takes_a_guard(raw: RawClient, key: str) -> None:
    created = raw.put(key, "mine").header.revision
    guard = Compare(key=key.encode(), create_revision=created)
    assert raw.transaction([guard], [raw.transactions.put(f"{key}/out", "1")])[0] is True
    raw.delete(key)
    assert raw.transaction([guard], [raw.transactions.put(f"{key}/out", "2")])[0] is False
    assert raw.get(f"{key}/out")[0] == b"1"


# -- leases and locks ------------------------------------------------------------------------------


def test_leases(raw: RawClient, key: str) -> None:
    lease = raw.lease(30)
    raw.put(key, "leased", lease=lease)
    assert lease.granted_ttl == 30
    assert 0 < lease.remaining_ttl <= 30
    assert list(lease.keys) == [key.encode()]
    assert [answer.TTL for answer in lease.refresh()] == [30]
    assert lease.id == raw.get_lease_info(lease.id).ID
    lease.revoke()
    assert raw.get(key) == (None, None)
    assert [answer.TTL for answer in raw.refresh_lease(lease.id)] == [0]
    with pytest.raises(grpc.RpcError) as refused:
        raw.put(key, "late", lease=lease.id)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    chosen = raw.lease(30, lease_id=0x1234567 + os.getpid())
    with pytest.raises(PreconditionFailedError):
        raw.lease(30, lease_id=chosen.id)
    raw.revoke_lease(chosen.id)


def test_lock(raw: RawClient) -> None:
    name = f"raw-{time.monotonic_ns()}"
    with raw.lock(name, ttl=30) as held:
        assert held.is_acquired()
        assert held.refresh()[0].TTL == 30
        other = raw.lock(name, ttl=30)
        assert other.acquire(timeout=0) is False
        assert other.lease is None
        assert other.acquire(timeout=0.2) is False
        taken: queue.Queue[bool] = queue.Queue()
        waiter = in_thread(lambda: taken.put(other.acquire(timeout=BOUND)))
        hub = raw._scope().engine.hub
        eventually(lambda: hub.count == 1)
    assert take(taken) is True
    waiter.join(BOUND)
    assert other.is_acquired()
    assert not held.is_acquired()
    assert other.release() is True


def _leases(raw: RawClient) -> set[int]:
    return {each.ID for each in raw.leasestub.LeaseLeases(etcdrpc.LeaseLeasesRequest()).leases}


def test_with_lock_never_enters_without_it(raw: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etcd_core.wire.raw._ENTER_SECONDS", 0.2)
    name = f"raw-{time.monotonic_ns()}"
    before = _leases(raw)
    with raw.lock(name) as held:
        with pytest.raises(LockTimeout, match=name), raw.lock(name):
            pytest.fail("entered without the lock")
        assert held.is_acquired()
        assert held.lease is not None
        # Leases of other tests may end meanwhile; the one who did not enter left none.
        assert _leases(raw) - before == {held.lease.id}
    held.lease.revoke()


# -- cluster and maintenance -----------------------------------------------------------------------


def test_members_and_maintenance(own: RawClient, module_server: EtcdServer) -> None:
    (member,) = own.members
    assert member.client_urls[0] == module_server.endpoint
    own.update_member(member.id, list(member.peer_urls))
    status = own.status()
    assert status.version == module_server.version
    assert status.leader is not None
    assert status.leader.id == member.id
    assert own.hash() != 0
    assert list(own.list_alarms()) == []
    assert [alarm.member_id for alarm in own.create_alarm(member.id)] == [member.id]
    assert [alarm.alarm_type for alarm in member.active_alarms] == [etcdrpc.NOSPACE]
    with pytest.raises(grpc.RpcError) as full:
        own.put("full", "1")
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    own.disarm_alarm(member.id)
    assert list(own.list_alarms()) == []
    file = io.BytesIO()
    own.snapshot(file)
    assert len(file.getvalue()) > 10_000
    own.defragment()
    revision = own.put("compact", "1").header.revision
    own.compact(revision, physical=True)
    with pytest.raises(grpc.RpcError) as compacted:
        own.get("compact", revision=revision - 1)
    assert compacted.value.code() is grpc.StatusCode.OUT_OF_RANGE


def test_adding_and_removing_a_member() -> None:
    with EtcdCluster(3) as cluster:
        with Client(endpoints=cluster.endpoints) as client:
            leader = client.raw.status().leader
        assert leader is not None
        with Client(endpoints=[leader.client_urls[0]]) as client:
            # Through the leader: a member that is removed stops before it answers.
            remove_and_add(client.raw, leader.id)


def remove_and_add(raw: RawClient, leader_id: int) -> None:
    gone = next(member for member in raw.members if member.id != leader_id)
    gone.remove()
    eventually(lambda: gone.id not in {member.id for member in raw.members})
    added = raw.add_member(["http://127.0.0.1:1"])
    assert list(added.peer_urls) == ["http://127.0.0.1:1"]
    eventually(lambda: added.id in {member.id for member in raw.members})
    raw.remove_member(added.id)
    with pytest.raises(grpc.RpcError):
        raw.remove_member(added.id)


# -- watches ---------------------------------------------------------------------------------------


def test_watch(raw: RawClient, key: str) -> None:
    events, cancel = raw.watch(key, prev_kv=True)
    raw.put(key, "1")
    raw.put(key, "2")
    raw.delete(key)
    first, second, third = next(events), next(events), next(events)
    assert (first.value, second.value, second.prev_value) == (b"1", b"2", b"1")
    assert type(third).__name__ == "DeleteEvent"
    cancel()
    cancel()
    assert list(events) == []
    again, cancel_again = raw.watch_prefix(key, start_revision=first.mod_revision)
    assert [next(again).value, next(again).value] == [b"1", b"2"]
    cancel_again()
    responses, cancel_responses = raw.watch_prefix_response(key)
    revision = raw.put(f"{key}/sub", "3").header.revision
    response = next(responses)
    assert (response.header.revision, response.events[0].value) == (revision, b"3")
    cancel_responses()


def test_watch_of_a_range_with_filters(raw: RawClient, key: str) -> None:
    seen: queue.Queue[Any] = queue.Queue()
    watch_id = raw.add_watch_callback(
        f"{key}/a",
        seen.put,
        range_end=f"{key}/c",
        filters=[etcdrpc.WatchCreateRequest.NOPUT],
    )
    for name in "abc":
        raw.put(f"{key}/{name}", name)
        raw.delete(f"{key}/{name}")
    assert [take(seen).events[0].key[-1:] for _ in "ab"] == [b"a", b"b"]
    raw.cancel_watch(watch_id)
    raw.cancel_watch(watch_id)
    raw.cancel_watch(10_000)
    assert seen.empty()


def test_watch_once(raw: RawClient, key: str) -> None:
    start = raw.put(key, "1").header.revision
    assert raw.watch_once(key, BOUND, start_revision=start).value == b"1"
    assert raw.watch_prefix_once(key, BOUND, start_revision=start).value == b"1"
    response = raw.watch_prefix_once_response(key, BOUND, start_revision=start)
    assert response.events[0].value == b"1"
    with pytest.raises(WatchTimedOut):
        raw.watch_once(key, 0.1)
    eventually(lambda: raw._scope().engine.hub.count == 0)


def test_callbacks_run_in_order_and_off_the_hub(
    raw: RawClient, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: queue.Queue[Any] = queue.Queue()

    def callback(response: WatchResponse | Exception) -> None:
        assert isinstance(response, WatchResponse)
        seen.put((threading.current_thread().name, response.events[0].value))
        if response.events[0].value == b"0":
            raise ValueError("from the callback")

    watch_id = raw.add_watch_prefix_callback(key, callback)
    with caplog.at_level(logging.CRITICAL, "etcd_core.dispatch"):
        for number in range(50):
            raw.put(f"{key}/{number}", str(number))
        found = [take(seen) for _ in range(50)]
    assert [value for _, value in found] == [b"%d" % number for number in range(50)]
    assert all(name.startswith("etcd-dispatch") for name, _ in found)
    raw.cancel_watch(watch_id)


def test_callback_cancels_itself_and_adds_another(raw: RawClient, key: str) -> None:
    seen: queue.Queue[Any] = queue.Queue()
    ids: queue.Queue[int] = queue.Queue()

    def callback(response: WatchResponse | Exception) -> None:
        raw.cancel_watch(ids.get())
        ids.put(raw.add_watch_callback(f"{key}/next", seen.put))
        seen.put(response)

    ids.put(raw.add_watch_callback(key, callback))
    raw.put(key, "1")
    assert values(seen, 1) == [b"1"]
    raw.put(key, "2")
    raw.put(f"{key}/next", "3")
    assert values(seen, 1) == [b"3"]
    raw.cancel_watch(ids.get())
    assert seen.empty()


def test_no_callback_after_cancel(raw: RawClient, key: str) -> None:
    running, go_on = threading.Event(), threading.Event()
    calls: list[object] = []

    def callback(response: WatchResponse | Exception) -> None:
        calls.append(response)
        running.set()
        go_on.wait(BOUND)
        calls.append("end")

    watch_id = raw.add_watch_callback(key, callback)
    raw.put(key, "1")
    raw.put(key, "2")
    assert running.wait(BOUND)
    canceller = in_thread(lambda: raw.cancel_watch(watch_id))
    canceller.join(0.1)
    assert canceller.is_alive()
    go_on.set()
    canceller.join(BOUND)
    raw.put(key, "3")
    raw.watch_once(key, BOUND, start_revision=raw.put(key, "4").header.revision)
    assert len(calls) == 2


def test_progress_only_if_asked(own: RawClient) -> None:
    asked: queue.Queue[Any] = queue.Queue()
    unasked: queue.Queue[Any] = queue.Queue()
    ids = [
        own.add_watch_callback("progress", asked.put, progress_notify=True),
        own.add_watch_callback("progress", unasked.put),
    ]
    first = take(asked)
    assert (first.events, first.header.revision > 0) == ([], True)
    assert unasked.empty()
    for watch_id in ids:
        own.cancel_watch(watch_id)


def test_compaction_ends_a_watch(own: RawClient) -> None:
    own.put("gone", "1")
    revision = own.put("gone", "2").header.revision
    own.compact(revision)
    events, _ = own.watch("gone", start_revision=1)
    with pytest.raises(RevisionCompactedError) as compacted:
        next(events)
    assert compacted.value.compacted_revision == revision
    assert list(events) == []
    with pytest.raises(RevisionCompactedError):
        own.watch_once("gone", BOUND, start_revision=1)
    alive, cancel = own.watch("gone", start_revision=revision)
    assert next(alive).value == b"2"
    cancel()


def test_watch_across_a_restart(own: RawClient, module_server: EtcdServer) -> None:
    start = own.put("across/0", "0").header.revision
    seen: queue.Queue[Any] = queue.Queue()
    events, cancel = own.watch_prefix("across/")

    def read() -> None:
        for event in events:
            seen.put(event)

    reader = in_thread(read)
    for number in range(1, 21):
        own.put(f"across/{number}", str(number))
    module_server.kill()
    module_server.start()
    for number in range(21, 41):
        own.put(f"across/{number}", str(number))
    found = [take(seen) for _ in range(40)]
    history, cancel_history = own.watch_prefix("across/", start_revision=start + 1)
    told = [next(history) for _ in range(40)]
    assert [(e.mod_revision, e.value) for e in found] == [(e.mod_revision, e.value) for e in told]
    cancel()
    reader.join(BOUND)
    assert not reader.is_alive()
    assert seen.empty()
    cancel_history()


def test_reset_ends_a_watch() -> None:
    with EtcdServer() as server, Client(endpoints=[server.endpoint]) as client:
        for number in range(5):
            client.raw.put("reset", str(number))
        events, _ = client.raw.watch("reset")
        server.restart(wipe=True)
        with pytest.raises(ClusterReset):
            next(events)


def test_close_ends_watches(etcd_server: EtcdServer) -> None:
    seen: queue.Queue[Any] = queue.Queue()
    ended: queue.Queue[Any] = queue.Queue()

    def read(events: Iterator[object]) -> None:
        try:
            next(events)
        except Exception as exc:
            ended.put(exc)

    client = Client(endpoints=[etcd_server.endpoint])
    raw = client.raw
    events, cancel = raw.watch("close")
    raw.add_watch_callback("close", seen.put)
    in_thread(lambda: read(events))
    client.close()
    assert isinstance(take(seen), ClosedError)
    assert isinstance(take(ended), ClosedError)
    cancel()
    for call in (lambda: raw.get("a"), lambda: raw.watch("a"), lambda: raw.lease(5)):
        with pytest.raises(ClosedError):
            call()


def test_closing_one_of_two_shared_clients(etcd_server: EtcdServer, key: str) -> None:
    config = Config([etcd_server.endpoint])
    seen: queue.Queue[Any] = queue.Queue()
    closed: queue.Queue[Any] = queue.Queue()
    with shared_client(config) as one:
        with shared_client(config) as two:
            one.raw.add_watch_callback(key, seen.put)
            two.raw.add_watch_callback(key, closed.put)
        assert isinstance(take(closed), ClosedError)
        one.raw.put(key, "1")
        assert values(seen, 1) == [b"1"]
        with one.raw as raw:
            assert raw.get(key)[0] == b"1"
        one.raw.close()
        assert one.raw.get(key)[0] == b"1"
        one.raw.delete(key)


# -- outages ---------------------------------------------------------------------------------------


def test_failover(etcd_server: EtcdServer, key: str) -> None:
    with FaultProxy(etcd_server.endpoint) as a, FaultProxy(etcd_server.endpoint) as b:
        endpoints = ["127.0.0.1:1", a.endpoint, b.endpoint]
        with Client(endpoints=endpoints) as client:
            raw = client.raw
            seen: queue.Queue[Any] = queue.Queue()
            raw.put(key, "1")
            raw.add_watch_callback(key, seen.put)
            lease = raw.lease(60)
            for number, (down, up) in enumerate([(a, b), (b, a), (a, b)]):
                up.heal()
                down.refuse()
                down.reset()
                assert raw.get(key)[0] is not None
                assert lease.refresh()[0].TTL == 60
                file = io.BytesIO()
                raw.snapshot(file)
                raw.put(key, str(number))
                assert values(seen, 1) == [b"%d" % number]
            lease.revoke()


def test_reads_are_repeated_and_writes_are_not(
    raw: RawClient, etcd_server: EtcdServer, key: str
) -> None:
    counter = RpcCounter()
    with FaultProxy(etcd_server.endpoint) as proxy:
        config = Config([proxy.endpoint], timeout=BOUND)
        with Client(config, interceptors=[counter]) as client:
            far = client.raw
            kv = far.transactions
            lease = far.lease(60)

            def lose_answer(call: Callable[[], object], arrived: Callable[[], object]) -> object:
                far.get(key)
                counter.reset()
                outcome: queue.Queue[object] = queue.Queue()

                def run() -> None:
                    try:
                        outcome.put(call())
                    except Exception as exc:
                        outcome.put(exc)

                proxy.drop("to_client")
                in_thread(run)
                eventually(arrived)
                proxy.reset()
                proxy.heal()
                return outcome.get(timeout=BOUND)

            lost = lose_answer(lambda: far.put(key, "1"), lambda: raw.get(key)[0] == b"1")
            assert isinstance(lost, ConnectionFailedError)
            assert counter.counts["Put"] == 1
            lost = lose_answer(
                lambda: far.transaction([], [kv.put(key, "2")]), lambda: raw.get(key)[0] == b"2"
            )
            assert isinstance(lost, ConnectionFailedError)
            assert counter.counts["Txn"] == 1

            # The call of lose_answer's own is one of those that are handled.
            before = handled(etcd_server, "Range") + 1
            found = lose_answer(
                lambda: far.get(key)[0], lambda: handled(etcd_server, "Range") > before
            )
            assert found == b"2"
            assert counter.counts["Range"] == 2
            before = handled(etcd_server, "Txn")
            read = lose_answer(
                lambda: far.transaction([], [kv.get(key)])[0],
                lambda: handled(etcd_server, "Txn") > before,
            )
            assert read is True
            assert counter.counts["Txn"] == 2

            # The repeated revocation finds no lease, which is what was wanted.
            revoked = lose_answer(lease.revoke, lambda: raw.get_lease_info(lease.id).TTL == -1)
            assert revoked is None


def test_errors_and_timeouts(module_server: EtcdServer) -> None:
    with Client(endpoints=["127.0.0.1:1"], timeout=0.2) as nowhere:
        raw = nowhere.raw
        for call in (
            lambda: raw.get("a"),
            lambda: raw.get_prefix("a"),
            lambda: raw.put("a", "1"),
            lambda: raw.delete_prefix("a"),
            lambda: raw.lease(5),
            lambda: list(raw.refresh_lease(1)),
            lambda: raw.snapshot(io.BytesIO()),
        ):
            with pytest.raises(ConnectionFailedError):
                call()
        with pytest.raises(WatchTimedOut):
            raw.watch("a")
        with pytest.raises(grpc.RpcError):
            list(raw.members)

    with Client(endpoints=[module_server.endpoint]) as client:
        raw = client.raw
        raw.put("slow", "1")
        raw.timeout = 0.2
        module_server.pause()
        try:
            for call in (
                lambda: raw.get("slow"),
                lambda: raw.put("slow", "2"),
                lambda: list(raw.refresh_lease(1)),
            ):
                with pytest.raises(ConnectionTimeoutError):
                    call()
            with pytest.raises(WatchTimedOut):
                raw.watch("slow")
            assert raw.watcher.timeout == 0.2
            assert client.scope().engine.hub.count == 0
            raw.timeout = BOUND
            found: queue.Queue[object] = queue.Queue()
            in_thread(lambda: found.put(raw.get("slow")[0]))
        finally:
            module_server.resume()
        assert take(found) in (b"1", b"2")


def test_stubs_are_usable_directly(raw: RawClient, key: str) -> None:
    raw.kvstub.Put(etcdrpc.PutRequest(key=key.encode(), value=b"1"))
    found = raw.kvstub.Range(etcdrpc.RangeRequest(key=key.encode()), timeout=None)
    assert found.kvs[0].value == b"1"
    create = etcdrpc.WatchCreateRequest(key=key.encode(), start_revision=found.header.revision)
    requests: queue.Queue[etcdrpc.WatchRequest | None] = queue.Queue()
    requests.put(etcdrpc.WatchRequest(create_request=create))
    stream = etcdrpc.WatchStub(raw.channel).Watch(iter(requests.get, None), None)
    answers = iter(stream)
    assert next(answers).created
    stream.cancel()  # type: ignore[no-untyped-call]
    with pytest.raises(grpc.RpcError):
        next(answers)
    requests.put(None)
    raw.channel.close()
    assert raw.get(key)[0] == b"1"


# -- authentication --------------------------------------------------------------------------------


def test_permission_is_refused(auth_server: EtcdServer) -> None:
    config = Config([auth_server.endpoint], username="guest", password=PASSWORD)
    with Client(config) as client:
        raw = client.raw
        raw.put("/guest/a", "1")
        assert raw.get("/guest/a")[0] == b"1"
        with pytest.raises(grpc.RpcError) as refused:
            raw.get("/secret")
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        events, cancel = raw.watch_prefix("/guest/")
        with pytest.raises(PermissionDenied):
            raw.watch("/secret")
        # The refused watch took no other with it.
        raw.put("/guest/a", "2")
        assert next(events).value == b"2"
        cancel()


def test_wrong_password(auth_server: EtcdServer) -> None:
    config = Config([auth_server.endpoint], username="guest", password="wrong")
    with Client(config) as client, pytest.raises(grpc.RpcError) as refused:
        client.raw.get("/guest/a")
    assert "authentication failed" in (refused.value.details() or "")
    assert "wrong" not in str(refused.value)


@pytest.mark.slow
def test_expired_token_is_refreshed(auth_server: EtcdServer) -> None:
    counter, other_counter = RpcCounter(), RpcCounter()
    config = Config([auth_server.endpoint], username="root", password=PASSWORD)
    with (
        Client(config, interceptors=[counter]) as client,
        Client(config, interceptors=[other_counter]) as other,
    ):
        raw = client.raw
        events, cancel = raw.watch_prefix("/guest/")
        raw.put("/guest/token", "1")
        other.raw.get("/guest/token")
        assert counter.counts["Authenticate"] == other_counter.counts["Authenticate"] == 1
        # The only way to let it expire: every use of a token makes it live longer.
        time.sleep(2.5)
        raw.put("/guest/token", "2")
        assert counter.counts["Authenticate"] == 2
        _, cancel_other = other.raw.watch_prefix("/guest/")
        cancel_other()
        assert other_counter.counts["Authenticate"] == 2
        raw.put("/guest/token", "3")
        assert [next(events).value for _ in "123"] == [b"1", b"2", b"3"]
        cancel()


def test_revoked_token_is_refreshed_once(auth_server: EtcdServer) -> None:
    counter = RpcCounter()
    config = Config([auth_server.endpoint], username="guest", password=PASSWORD)
    with Client(config, interceptors=[counter]) as client:
        raw = client.raw
        raw.put("/guest/token", "1")
        # Changing a password, even to itself, ends the user's tokens.
        auth_server.ctl("user", "passwd", "guest", "--interactive=false", input=PASSWORD)
        threads = [in_thread(lambda: raw.put("/guest/token", "2")) for _ in range(8)]
        for thread in threads:
            thread.join(BOUND)
        assert raw.get("/guest/token")[0] == b"2"
        assert counter.counts["Authenticate"] == 2


# -- processes -------------------------------------------------------------------------------------

FORK = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from etcd_core import Client, ClosedError

client = Client(endpoints=[sys.argv[1]], prefix="/fork")
raw = client.raw
raw.put("/fork/a", "1")
events, cancel = raw.watch_prefix("/fork/")
pid = os.fork()
if pid == 0:
    status = 1
    try:
        assert raw.get("/fork/a")[0] == b"1"
        try:
            next(events)
        except ClosedError:
            pass
        else:
            raise AssertionError("the parent's watch")
        mine, cancel_mine = raw.watch_prefix("/fork/child/")
        cancel()
        raw.put("/fork/child/b", "2")
        assert next(mine).value == b"2"
        cancel_mine()
        assert raw.lease(5).refresh()[0].TTL == 5
        client.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("etcd-")]
        status = 0
    finally:
        sys.stderr.flush()
        if status:
            import traceback
            traceback.print_exc()
        os._exit(status)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert next(events).value == b"2"
raw.put("/fork/a", "3")
assert next(events).value == b"3"
raw.delete_prefix("/fork/")
client.close()
"""

FOREIGN = """
import sys
import etcd3
assert etcd3.etcdrpc.__spec__.origin != "etcd_core"
from etcd_core import Client

with Client(endpoints=[sys.argv[1]]) as client:
    raw = client.raw
    kv = raw.transactions
    events, cancel = raw.watch_prefix("/foreign/")
    raw.put("/foreign/a", "1")
    assert raw.get("/foreign/a")[0] == b"1"
    assert raw.transaction([kv.value("/foreign/a") == "1"], [kv.get("/foreign/a")])[0]
    request = etcd3.etcdrpc.RangeRequest(key=b"a")
    assert type(raw.kvstub.Range(request)) is etcd3.etcdrpc.RangeResponse
    assert raw.lease(5).refresh()[0].TTL == 5
    assert next(events).value == b"1"
    raw.delete_prefix("/foreign/")
    cancel()
"""


def run(code: str, server: EtcdServer, **environment: str) -> None:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, server.endpoint]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_fork(etcd_server: EtcdServer) -> None:
    run(FORK, etcd_server)


def test_etcd3_loaded_with_its_own_messages(etcd_server: EtcdServer) -> None:
    # Without its C extension protobuf still takes the code of an old protoc.
    run(FOREIGN, etcd_server, PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION="python")


# -- all of etcd3 ----------------------------------------------------------------------------------


def test_a_whole_response(raw: RawClient, key: str) -> None:
    revision = raw.put(key, "1").header.revision
    response = raw.get_response(key)
    assert [(kv.value, kv.mod_revision) for kv in response.kvs] == [(b"1", revision)]
    assert raw.get_response(f"{key}/none", serializable=True).count == 0


def test_whole_responses_of_a_watch(raw: RawClient, key: str) -> None:
    responses, cancel = raw.watch_response(key)
    revision = raw.put(key, "1").header.revision
    response = next(responses)
    assert (response.header.revision, response.events[0].value) == (revision, b"1")
    cancel()
    assert list(responses) == []
    once = raw.watch_once_response(key, BOUND, start_revision=revision)
    assert [event.value for event in once.events] == [b"1"]


def test_every_method_is_used_by_a_test() -> None:
    tests = Path(__file__).read_text()
    methods = {
        name
        for name, _ in inspect.getmembers(etcd3.Etcd3Client, callable)
        if not name.startswith("_")
    }
    assert len(methods) > 40
    assert {name for name in methods if not re.search(rf"\.{name}\b", tests)} == set()
