"""F32: etcd's storage quota is used up (the NOSPACE alarm).

etcd 3.5.1 then refuses every transaction, also one that only deletes or only reads (3.4 lets those
pass), but not a plain delete, read, renewal or revocation: what is held must stay held, and every
release must still free what it held.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc
import pytest

from checkers import Hygiene
from etcd_core import Client, Descriptor, NoSpace
from etcd_core.testing import EtcdServer, RpcCounter, eventually
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import PUT
from witness import keys_under, lease_ids, revision

MakeClient = Callable[..., Client]
_QUOTA = 4 * 1024 * 1024


@pytest.fixture
def small() -> Iterator[EtcdServer]:
    with EtcdServer(flags=[f"--quota-backend-bytes={_QUOTA}"]) as server:
        yield server


def put(client: Client, key: str, value: bytes = b"v") -> None:
    request = pb.PutRequest(key=key.encode(), value=value)
    client.scope().engine.channel.unary(PUT, request, what=f"put {key!r}")


def fill(client: Client) -> None:
    """Use the quota up; etcd raises the alarm by itself."""
    for number in range(200):
        try:
            put(client, f"{client.prefix}/fill/{number}", bytes(256 * 1024))
        except NoSpace:
            return
    raise AssertionError("the quota was never used up")


def make_room(server: EtcdServer, client: Client) -> None:
    """Do what an operator does: delete, compact, defragment, disarm."""
    client.raw.delete_prefix(f"{client.prefix}/fill/")
    server.ctl("compact", str(revision(server)))
    server.ctl("defrag", timeout=30)
    server.ctl("alarm", "disarm")


@pytest.mark.slow
def test_f32_the_quota_is_used_up(small: EtcdServer, make_client: MakeClient, prefix: str) -> None:
    counter = RpcCounter()
    # No spare leases, so that none left in the pool is taken for one that was forgotten.
    client = make_client(small.endpoint, interceptors=(counter,), lease_pool=0)
    filler = make_client(small.endpoint)
    with Hygiene(small, prefix=f"{prefix}/locks/"):
        source = client.config_source("app")
        source.save({"a": 1})
        lock = client.lock("held", ttl=2)
        election = client.campaign("held", "me", ttl=2)
        registration = client.register(Descriptor(name="full", id="f-1", address="h:1"), ttl=2)
        view = client.services("full")
        fill(filler)

        refused: dict[str, Callable[[], object]] = {
            "save": lambda: source.save({"a": 2}),
            "lock": lambda: client.lock("new", timeout=1),
            "try_lock": lambda: client.try_lock("new"),
            "campaign": lambda: client.campaign("new", "me", timeout=1),
            "register": lambda: client.register(Descriptor(name="full", id="f-2", address="h:2")),
            "put": lambda: put(client, f"{prefix}/more"),
        }
        for name, call in refused.items():
            counter.reset()
            began = time.monotonic()
            with pytest.raises(NoSpace):
                call()
            assert time.monotonic() - began < 4, name
            writes = sum(n for rpc, n in counter.counts.items() if rpc in ("Txn", "Put"))
            assert writes <= 2, f"{name}: a retry storm: {counter.counts}"
        with pytest.raises(grpc.RpcError) as raised:
            client.raw.put(f"{prefix}/more", "v")
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert keys_under(small, f"{prefix}/locks/new") == []
        assert keys_under(small, f"{prefix}/elections/new") == []

        # Reads, renewals and plain deletes need no space; longer than every TTL.
        deadline = time.monotonic() + 3.5
        while time.monotonic() < deadline:
            assert lock.held
            assert election.is_leader
            assert registration.registered
            time.sleep(0.2)
        assert dict(source.load()) == {"a": 1}
        assert [info.id for info in client.discover("full")] == ["f-1"]
        assert [info.id for info in view.instances] == ["f-1"]
        assert client.raw.delete(f"{prefix}/fill/0")

        # 3.5.1 refuses the fenced delete; the lease is revoked instead.
        assert lock.unlock()
        election.resign()
        registration.deregister()
        assert keys_under(small, f"{prefix}/locks/") == []
        assert keys_under(small, f"{prefix}/elections/") == []
        assert keys_under(small, f"{prefix}/services/") == []
        eventually(lambda: view.instances == (), 10, message="the view is empty")
        assert lease_ids(small) == set()

        make_room(small, filler)
        source.save({"a": 3})
        client.lock("new", timeout=5).unlock()
        client.register(Descriptor(name="full", id="f-3", address="h:3")).deregister()
        client.close()
        filler.close()
