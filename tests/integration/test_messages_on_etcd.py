"""Every RPC of the table on a real etcd, through plain gRPC; then the plain etcd3 client."""

from __future__ import annotations

import io
import queue
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from etcd_core.testing import EtcdServer
from etcd_core.wire import etcd3_import
from etcd_core.wire import messages as m
from etcd_core.wire.etcdrpc import STUBS

TIMEOUT = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    # Not the shared server: alarms, authentication and compaction are the whole store's.
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="module")
def channel(server: EtcdServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.endpoint.removeprefix("http://")) as channel:
        yield channel


@pytest.fixture
def key() -> bytes:
    return f"/messages/{uuid.uuid4().hex}".encode()


def stub(service: str, channel: grpc.Channel) -> Any:
    return STUBS[f"{service}Stub"](channel)


@contextmanager
def stream(method: Any, *first: object) -> Iterator[tuple[Callable[[object], None], Any]]:
    """Open a stream; gives what sends a request, and the answers."""
    requests: queue.SimpleQueue[object] = queue.SimpleQueue()
    for request in first:
        requests.put(request)
    call = method(iter(requests.get, None), TIMEOUT)
    try:
        yield requests.put, call
    finally:
        call.cancel()
        # Lets go the thread of gRPC that waits for the next request.
        requests.put(None)


def test_kv(channel: grpc.Channel, key: bytes) -> None:
    kv = stub("KV", channel)
    first = kv.Put(m.PutRequest(key=key, value=b"1"), TIMEOUT)
    second = kv.Put(m.PutRequest(key=key, value=b"2", prev_kv=True), TIMEOUT)
    assert second.prev_kv.value == b"1"
    assert second.prev_kv.mod_revision == first.header.revision
    kv.Put(m.PutRequest(key=key, ignore_value=True), TIMEOUT)

    found = kv.Range(m.RangeRequest(key=key), TIMEOUT)
    assert (found.count, found.more) == (1, False)
    assert (found.kvs[0].value, found.kvs[0].version) == (b"2", 3)
    old = kv.Range(m.RangeRequest(key=key, revision=first.header.revision), TIMEOUT)
    assert old.kvs[0].value == b"1"

    deleted = kv.DeleteRange(m.DeleteRangeRequest(key=key, prev_kv=True), TIMEOUT)
    assert (deleted.deleted, deleted.prev_kvs[0].value) == (1, b"2")


def test_range_options(channel: grpc.Channel, key: bytes) -> None:
    kv = stub("KV", channel)
    revisions = [
        kv.Put(m.PutRequest(key=key + suffix, value=value), TIMEOUT).header.revision
        for suffix, value in ((b"a", b"3"), (b"b", b"2"), (b"c", b"1"))
    ]

    def suffixes(**options: Any) -> list[bytes]:
        request = m.RangeRequest(key=key, range_end=key + b"z", **options)
        return [kv.key[len(key) :] for kv in kv_range(request).kvs]

    def kv_range(request: m.RangeRequest) -> m.RangeResponse:
        response: m.RangeResponse = kv.Range(request, TIMEOUT)
        return response

    assert suffixes() == [b"a", b"b", b"c"]
    assert suffixes(sort_order=m.RangeRequest.DESCEND) == [b"c", b"b", b"a"]
    by_value = {"sort_order": m.RangeRequest.ASCEND, "sort_target": m.RangeRequest.VALUE}
    assert suffixes(**by_value, limit=2) == [b"c", b"b"]
    assert suffixes(min_create_revision=revisions[1]) == [b"b", b"c"]
    assert suffixes(max_create_revision=revisions[1]) == [b"a", b"b"]
    assert suffixes(min_mod_revision=revisions[2]) == [b"c"]
    assert suffixes(max_mod_revision=revisions[0], serializable=True) == [b"a"]
    counted = kv_range(m.RangeRequest(key=key, range_end=key + b"z", count_only=True))
    assert (counted.count, len(counted.kvs)) == (3, 0)
    bare = kv_range(m.RangeRequest(key=key + b"a", keys_only=True)).kvs[0]
    assert (bare.value, bare.create_revision) == (b"", revisions[0])


def test_nested_transaction(channel: grpc.Channel, key: bytes) -> None:
    kv = stub("KV", channel)
    empty = m.Compare(key=key, range_end=key + b"z", target=m.Compare.CREATE, create_revision=0)
    put = m.RequestOp(request_put=m.PutRequest(key=key, value=b"x"))
    read = m.RequestOp(request_range=m.RangeRequest(key=key))
    remove = m.RequestOp(request_delete_range=m.DeleteRangeRequest(key=key))
    inner = m.RequestOp(request_txn=m.TxnRequest(success=[put, read]))
    request = m.TxnRequest(compare=[empty], success=[inner], failure=[remove])

    done = kv.Txn(request, TIMEOUT)
    assert done.succeeded
    nested = done.responses[0].response_txn
    assert [op.WhichOneof("response") for op in nested.responses] == [
        "response_put",
        "response_range",
    ]
    assert nested.responses[1].response_range.kvs[0].mod_revision == done.header.revision

    again = kv.Txn(request, TIMEOUT)
    assert not again.succeeded
    assert again.responses[0].response_delete_range.deleted == 1


COMPARES = [
    (m.Compare(target=m.Compare.VERSION, version=1), True),
    (m.Compare(target=m.Compare.VALUE, value=b"a", result=m.Compare.GREATER), True),
    (m.Compare(target=m.Compare.VALUE, value=b"a", result=m.Compare.LESS), False),
    (m.Compare(target=m.Compare.MOD, mod_revision=0, result=m.Compare.NOT_EQUAL), True),
    (m.Compare(target=m.Compare.CREATE, create_revision=0), False),
    (m.Compare(target=m.Compare.LEASE, lease=0), True),
]


@pytest.mark.parametrize(("compare", "holds"), COMPARES)
def test_compare(channel: grpc.Channel, key: bytes, compare: m.Compare, holds: bool) -> None:
    kv = stub("KV", channel)
    kv.Put(m.PutRequest(key=key, value=b"b"), TIMEOUT)
    asked = m.Compare(key=key)
    asked.MergeFrom(compare)
    assert kv.Txn(m.TxnRequest(compare=[asked]), TIMEOUT).succeeded is holds


def test_compact(channel: grpc.Channel, key: bytes) -> None:
    kv = stub("KV", channel)
    old = kv.Put(m.PutRequest(key=key), TIMEOUT).header.revision
    new = kv.Put(m.PutRequest(key=key), TIMEOUT).header.revision
    kv.Compact(m.CompactionRequest(revision=new, physical=True), TIMEOUT)
    with pytest.raises(grpc.RpcError, match="required revision has been compacted"):
        kv.Range(m.RangeRequest(key=key, revision=old), TIMEOUT)

    create = m.WatchCreateRequest(key=key, watch_id=1, start_revision=old)
    request = m.WatchRequest(create_request=create)
    with stream(stub("Watch", channel).Watch, request) as (_, answers):
        assert next(answers).created
        refused = next(answers)
    assert (refused.canceled, refused.compact_revision) == (True, new)


def test_watch(channel: grpc.Channel, key: bytes) -> None:
    kv = stub("KV", channel)
    start = kv.Put(m.PutRequest(key=key, value=b"1"), TIMEOUT).header.revision
    kv.Put(m.PutRequest(key=key, value=b"2"), TIMEOUT)
    kv.DeleteRange(m.DeleteRangeRequest(key=key), TIMEOUT)
    watches = [
        m.WatchCreateRequest(
            key=key, watch_id=1, start_revision=start, prev_kv=True, fragment=True
        ),
        m.WatchCreateRequest(
            key=key, watch_id=2, start_revision=start, filters=[m.WatchCreateRequest.NOPUT]
        ),
    ]
    creates = [m.WatchRequest(create_request=create) for create in watches]
    events: dict[int, list[tuple[int, bytes, bytes]]] = {1: [], 2: []}
    created = set()
    with stream(stub("Watch", channel).Watch, *creates) as (send, answers):
        while len(events[1]) < 3 or len(events[2]) < 1:
            answer = next(answers)
            if answer.created:
                created.add(answer.watch_id)
            events[answer.watch_id] += [
                (event.type, event.kv.value, event.prev_kv.value) for event in answer.events
            ]
        send(m.WatchRequest(progress_request=m.WatchProgressRequest()))
        progress = next(answers)
        send(m.WatchRequest(cancel_request=m.WatchCancelRequest(watch_id=1)))
        canceled = next(answers)

    assert created == {1, 2}
    assert events[1] == [
        (m.Event.PUT, b"1", b""),
        (m.Event.PUT, b"2", b"1"),
        (m.Event.DELETE, b"", b"2"),
    ]
    assert events[2] == [(m.Event.DELETE, b"", b"")]
    assert not progress.events
    assert progress.header.revision >= start + 2
    assert (canceled.watch_id, canceled.canceled) == (1, True)


def test_lease(channel: grpc.Channel, key: bytes) -> None:
    lease = stub("Lease", channel)
    granted = lease.LeaseGrant(m.LeaseGrantRequest(TTL=60), TIMEOUT)
    assert (granted.TTL, granted.error) == (60, "")
    stub("KV", channel).Put(m.PutRequest(key=key, lease=granted.ID), TIMEOUT)

    with stream(lease.LeaseKeepAlive, m.LeaseKeepAliveRequest(ID=granted.ID)) as (_, answers):
        kept = next(answers)
    assert (kept.ID, kept.TTL) == (granted.ID, 60)

    left = lease.LeaseTimeToLive(m.LeaseTimeToLiveRequest(ID=granted.ID, keys=True), TIMEOUT)
    assert (left.grantedTTL, list(left.keys)) == (60, [key])
    assert 0 < left.TTL <= 60
    every = lease.LeaseLeases(m.LeaseLeasesRequest(), TIMEOUT).leases
    assert granted.ID in [status.ID for status in every]

    lease.LeaseRevoke(m.LeaseRevokeRequest(ID=granted.ID), TIMEOUT)
    assert lease.LeaseTimeToLive(m.LeaseTimeToLiveRequest(ID=granted.ID), TIMEOUT).TTL == -1


def test_cluster(channel: grpc.Channel, server: EtcdServer) -> None:
    cluster = stub("Cluster", channel)
    listed = cluster.MemberList(m.MemberListRequest(linearizable=True), TIMEOUT)
    assert [member.name for member in listed.members] == [server.name]
    assert list(listed.members[0].clientURLs) == [server.endpoint]

    learner = cluster.MemberAdd(
        m.MemberAddRequest(peerURLs=["http://127.0.0.1:1"], isLearner=True), TIMEOUT
    )
    assert learner.member.isLearner
    assert len(learner.members) == 2
    # A learner that has not caught up, for it never started.
    with pytest.raises(grpc.RpcError, match="can only promote a learner"):
        cluster.MemberPromote(m.MemberPromoteRequest(ID=learner.member.ID), TIMEOUT)
    updated = cluster.MemberUpdate(
        m.MemberUpdateRequest(ID=learner.member.ID, peerURLs=["http://127.0.0.1:2"]), TIMEOUT
    )
    urls = {member.ID: list(member.peerURLs) for member in updated.members}
    assert urls[learner.member.ID] == ["http://127.0.0.1:2"]
    removed = cluster.MemberRemove(m.MemberRemoveRequest(ID=learner.member.ID), TIMEOUT)
    assert len(removed.members) == 1


def test_maintenance(channel: grpc.Channel, server: EtcdServer) -> None:
    maintenance = stub("Maintenance", channel)
    status = maintenance.Status(m.StatusRequest(), TIMEOUT)
    assert status.version == server.version
    assert status.leader == status.header.member_id
    assert status.dbSize >= status.dbSizeInUse > 0
    assert status.raftIndex >= status.raftAppliedIndex > 0
    assert (status.isLearner, list(status.errors)) == (False, [])

    maintenance.Defragment(m.DefragmentRequest(), TIMEOUT)
    assert maintenance.Hash(m.HashRequest(), TIMEOUT).hash > 0
    assert maintenance.HashKV(m.HashKVRequest(), TIMEOUT).hash > 0
    with pytest.raises(grpc.RpcError, match="bad leader transferee"):
        maintenance.MoveLeader(m.MoveLeaderRequest(targetID=1), TIMEOUT)


def test_alarm(channel: grpc.Channel) -> None:
    maintenance = stub("Maintenance", channel)

    def alarm(action: int, kind: int = m.NONE) -> list[int]:
        request = m.AlarmRequest(action=action, alarm=kind, memberID=member)
        return [alarm.alarm for alarm in maintenance.Alarm(request, TIMEOUT).alarms]

    member = maintenance.Status(m.StatusRequest(), TIMEOUT).header.member_id
    assert alarm(m.AlarmRequest.ACTIVATE, m.NOSPACE) == [m.NOSPACE]
    assert alarm(m.AlarmRequest.GET) == [m.NOSPACE]
    assert alarm(m.AlarmRequest.DEACTIVATE, m.NOSPACE) == [m.NOSPACE]
    assert alarm(m.AlarmRequest.GET) == []


def test_snapshot(channel: grpc.Channel) -> None:
    pieces = list(stub("Maintenance", channel).Snapshot(m.SnapshotRequest(), TIMEOUT))
    # The last piece is the SHA-256 of those before it.
    assert pieces[-1].remaining_bytes == 0
    sizes = [len(piece.blob) for piece in pieces]
    assert (sizes[-1], sum(sizes[:-1]) % 4096) == (32, 0)


def test_auth(channel: grpc.Channel, key: bytes) -> None:
    auth = stub("Auth", channel)
    kv = stub("KV", channel)
    permission = m.Permission(permType=m.Permission.READWRITE, key=key, range_end=key + b"z")
    auth.RoleAdd(m.AuthRoleAddRequest(name="root"), TIMEOUT)
    auth.RoleAdd(m.AuthRoleAddRequest(name="part"), TIMEOUT)
    auth.RoleGrantPermission(
        m.AuthRoleGrantPermissionRequest(name="part", perm=permission), TIMEOUT
    )
    assert list(auth.RoleGet(m.AuthRoleGetRequest(role="part"), TIMEOUT).perm) == [permission]
    for name in ("root", "ann"):
        auth.UserAdd(m.AuthUserAddRequest(name=name, password="first"), TIMEOUT)
    auth.UserAdd(
        m.AuthUserAddRequest(name="cert", options=m.UserAddOptions(no_password=True)), TIMEOUT
    )
    auth.UserGrantRole(m.AuthUserGrantRoleRequest(user="root", role="root"), TIMEOUT)
    auth.UserGrantRole(m.AuthUserGrantRoleRequest(user="ann", role="part"), TIMEOUT)
    auth.UserChangePassword(m.AuthUserChangePasswordRequest(name="ann", password="second"), TIMEOUT)
    assert list(auth.UserGet(m.AuthUserGetRequest(name="ann"), TIMEOUT).roles) == ["part"]
    assert list(auth.UserList(m.AuthUserListRequest(), TIMEOUT).users) == ["ann", "cert", "root"]
    assert list(auth.RoleList(m.AuthRoleListRequest(), TIMEOUT).roles) == ["part", "root"]
    assert not auth.AuthStatus(m.AuthStatusRequest(), TIMEOUT).enabled

    def login(name: str, password: str) -> tuple[tuple[str, str], ...]:
        request = m.AuthenticateRequest(name=name, password=password)
        return (("token", auth.Authenticate(request, TIMEOUT).token),)

    auth.AuthEnable(m.AuthEnableRequest(), TIMEOUT)
    root = login("root", "first")
    try:
        assert auth.AuthStatus(m.AuthStatusRequest(), TIMEOUT, metadata=root).enabled
        with pytest.raises(grpc.RpcError, match="authentication failed"):
            login("ann", "first")
        ann = login("ann", "second")
        kv.Put(m.PutRequest(key=key), TIMEOUT, metadata=ann)
        with pytest.raises(grpc.RpcError, match="permission denied"):
            kv.Put(m.PutRequest(key=b"/elsewhere"), TIMEOUT, metadata=ann)
    finally:
        auth.AuthDisable(m.AuthDisableRequest(), TIMEOUT, metadata=root)

    revoke = m.AuthRoleRevokePermissionRequest(role="part", key=key, range_end=key + b"z")
    auth.RoleRevokePermission(revoke, TIMEOUT)
    assert not auth.RoleGet(m.AuthRoleGetRequest(role="part"), TIMEOUT).perm
    auth.UserRevokeRole(m.AuthUserRevokeRoleRequest(name="ann", role="part"), TIMEOUT)
    auth.UserDelete(m.AuthUserDeleteRequest(name="ann"), TIMEOUT)
    auth.RoleDelete(m.AuthRoleDeleteRequest(role="part"), TIMEOUT)
    assert "ann" not in auth.UserList(m.AuthUserListRequest(), TIMEOUT).users


@pytest.fixture
def etcd3_client(server: EtcdServer) -> Iterator[Any]:
    etcd3_import.install()
    import etcd3

    with etcd3.client("127.0.0.1", server.client_port, timeout=TIMEOUT) as client:
        yield client


def test_plain_etcd3_reads_and_writes(etcd3_client: Any, key: bytes) -> None:
    put = etcd3_client.put(key, "1")
    value, metadata = etcd3_client.get(key)
    assert (value, metadata.mod_revision) == (b"1", put.header.revision)
    assert etcd3_client.put_if_not_exists(key, "2") is False
    assert etcd3_client.replace(key, "1", "3") is True
    etcd3_client.put(key + b"/a", "4")
    prefix = etcd3_client.get_prefix(key, sort_order="descend", sort_target="mod")
    assert [value for value, _ in prefix] == [b"4", b"3"]
    assert [value for value, _ in etcd3_client.get_range(key, key + b"/")] == [b"3"]
    assert b"4" in [value for value, _ in etcd3_client.get_all()]
    assert etcd3_client.delete(key, prev_kv=True, return_response=True).prev_kvs[0].value == b"3"
    assert etcd3_client.delete_prefix(key).deleted == 1


def test_plain_etcd3_transaction(etcd3_client: Any, key: bytes) -> None:
    transactions = etcd3_client.transactions
    inner = transactions.txn([], [transactions.get(key)], [])
    done, answers = etcd3_client.transaction(
        compare=[transactions.version(key) == 0, transactions.mod(key) < 1],
        success=[transactions.put(key, "1"), transactions.get(key), inner],
        failure=[transactions.delete(key)],
    )
    assert done
    assert answers[1][0][0] == b"1"
    assert answers[2].response_txn.responses[0].response_range.kvs[0].value == b"1"


def test_plain_etcd3_lease_and_lock(etcd3_client: Any, key: bytes) -> None:
    lease = etcd3_client.lease(60)
    etcd3_client.put(key, "1", lease=lease)
    assert (lease.granted_ttl, list(lease.keys)) == (60, [key])
    assert lease.refresh()[0].TTL == 60
    lease.revoke()
    assert etcd3_client.get(key) == (None, None)
    with etcd3_client.lock(key.decode(), ttl=60) as lock:
        assert lock.is_acquired()
    assert not lock.is_acquired()


def test_plain_etcd3_cluster_and_maintenance(etcd3_client: Any, server: EtcdServer) -> None:
    status = etcd3_client.status()
    assert status.version == server.version
    assert status.leader.name == server.name
    # Another URL than above: a member's id is a hash of its URLs and the second, and the id of a
    # removed member is refused.
    member = etcd3_client.add_member(["http://127.0.0.1:3"])
    # The second voter never starts, so it must not stay: alone the first has no majority.
    server.restart(wipe=True)
    assert member.peer_urls == ["http://127.0.0.1:3"]
    assert [member.name for member in etcd3_client.members] == [server.name]
    assert [alarm.alarm_type for alarm in etcd3_client.create_alarm()] == [m.NOSPACE]
    assert [alarm.alarm_type for alarm in etcd3_client.list_alarms()] == [m.NOSPACE]
    assert len(etcd3_client.disarm_alarm()) == 1
    etcd3_client.defragment()
    assert etcd3_client.hash() > 0
    etcd3_client.put("/compacted", "1")
    etcd3_client.compact(etcd3_client.put("/compacted", "2").header.revision)
    file = io.BytesIO()
    etcd3_client.snapshot(file)
    assert len(file.getvalue()) % 4096 == 32
