"""The client itself: lazy, shared, closed; at exit."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from etcd_core import (
    Client,
    ClosedError,
    Config,
    ConnectionFailed,
    Descriptor,
    InvalidArgument,
    InvalidConfig,
    connect,
    shared_client,
)
from etcd_core import client as client_module
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually
from witness import keys_under, lease_ids

MakeClient = Callable[..., Client]


def test_constructing_does_nothing(make_client: MakeClient) -> None:
    before = set(threading.enumerate())
    client = make_client("127.0.0.1:1")
    source = client.config_source("app")
    assert source.name == "app"
    assert client.raw is not None
    assert client.connected
    assert set(threading.enumerate()) == before
    client.close()
    assert client.closed


def test_either_config_or_endpoints() -> None:
    with pytest.raises(InvalidArgument, match="either"):
        Client()
    with pytest.raises(InvalidArgument, match="either"):
        Client(Config(["a"]), endpoints=["a"])
    with pytest.raises(InvalidConfig):
        Client(endpoints=[])


def test_connect(etcd_server: EtcdServer, prefix: str) -> None:
    with connect(endpoints=[etcd_server.endpoint], prefix=prefix) as client:
        assert client.connected
    with pytest.raises(ClosedError):
        client.leader("x")


def test_connect_fails_within_the_dial_timeout() -> None:
    before = time.monotonic()
    with pytest.raises(ConnectionFailed, match=r"connect to 127\.0\.0\.1:1"):
        connect(endpoints=["127.0.0.1:1"], dial_timeout=0.5)
    assert time.monotonic() - before < 3.0


def test_repr_and_errors_show_no_password() -> None:
    config = Config(["127.0.0.1:1"], username="app", password="hunter2", timeout=0.2)
    with Client(config) as client:
        assert "hunter2" not in f"{config!r} {client!r} {client.config!r}"
        with pytest.raises(ConnectionFailed) as caught:
            client.leader("x")
        assert "hunter2" not in str(caught.value)


def test_shared_clients_use_one_engine(etcd_server: EtcdServer, prefix: str) -> None:
    config = Config([etcd_server.endpoint], prefix=prefix)
    one, two = shared_client(config), shared_client(Config([etcd_server.endpoint], prefix=prefix))
    other = shared_client(Config([etcd_server.endpoint], prefix=prefix + "x"))
    assert one.scope().engine is two.scope().engine
    assert one.scope().engine is not other.scope().engine
    mine, theirs = one.lock("mine"), two.lock("theirs")
    one.close()
    one.close()
    assert not mine.held
    assert theirs.held
    assert keys_under(etcd_server, prefix + "/") == [theirs.etcd_key]
    two.close()
    assert keys_under(etcd_server, prefix + "/") == []
    again = shared_client(config)
    assert again.leader("x") is None
    again.close()
    other.close()


def test_everything_is_gone_after_close(
    etcd_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    leases = lease_ids(etcd_server)
    before = set(threading.enumerate())
    client = make_client(etcd_server.endpoint)
    held = [client.lock("b"), client.campaign("c", "me"), client.candidate("d")]
    held.append(client.register(Descriptor(name="web", id="1", address="h:1")))
    held.append(client.services("web"))
    held.append(client.observe("c"))
    held.append(client.watch_service("web", lambda event: None))
    held.append(client.config_source("app").watch(lambda snapshot: None))
    client.close()
    assert keys_under(etcd_server, prefix) == []
    assert lease_ids(etcd_server) <= leases
    eventually(lambda: set(threading.enumerate()) <= before)


def test_close_sends_nothing_when_its_time_is_over(etcd_server: EtcdServer, prefix: str) -> None:
    counter = RpcCounter()
    with FaultProxy(etcd_server.endpoint) as proxy:
        config = Config(endpoints=[proxy.endpoint], prefix=prefix)
        client = Client(config, interceptors=[counter])
        for n in range(50):
            client.register(Descriptor(name="web", id=str(n), address=f"h:{n + 1}"))
        proxy.hold()
        client.close()
    # The first one takes all the time there is.
    assert counter.counts["LeaseRevoke"] == 1


@pytest.mark.parametrize("ending", ["", "sys.exit(3)", "raise SystemExit"])
def test_process_that_just_ends_leaves_nothing(
    etcd_server: EtcdServer, prefix: str, ending: str
) -> None:
    code = f"""
import sys
from etcd_core import Client, Descriptor
client = Client(endpoints=[{etcd_server.endpoint!r}], prefix={prefix!r})
lock = client.lock("a")
election = client.campaign("b", "me")
candidate = client.candidate("c")
registration = client.register(Descriptor(name="web", id="1", address="h:1"))
{ending}
"""
    before = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.stderr == ""
    assert time.monotonic() - before < 15
    assert keys_under(etcd_server, prefix) == []


def test_what_a_forgotten_client_holds_ends_at_exit(etcd_server: EtcdServer, prefix: str) -> None:
    code = f"""
from etcd_core import Client
election = Client(endpoints=[{etcd_server.endpoint!r}], prefix={prefix!r}).campaign("b", "me")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=50)
    assert keys_under(etcd_server, prefix) == []


def test_outage_is_one_warning_and_one_recovery_line(
    own_server: EtcdServer, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    client = make_client(own_server.endpoint, timeout=0.3)
    lock = client.lock("a", ttl=60)
    view = client.services("web")
    with caplog.at_level(logging.INFO, "etcd_core"):
        own_server.stop()
        for _ in range(4):
            with pytest.raises(ConnectionFailed):
                client.leader("x")
        assert not client.connected
        assert view.stale
        own_server.start()
        eventually(lambda: client.connected and not view.stale, timeout=20)
    lines = [r for r in caplog.records if r.name.startswith("etcd_core") and r.levelno >= 30]
    assert len(lines) == 2, [r.getMessage() for r in lines]
    assert "cannot be reached" in lines[0].getMessage()
    assert "reachable again" in lines[1].getMessage()
    assert lock.unlock() is True


def test_warm_requests_of_the_recipes(etcd_server: EtcdServer, make_client: MakeClient) -> None:
    """Section 7 of the issue: what each operation costs once warm, background included."""
    counter = RpcCounter()
    client = make_client(etcd_server.endpoint, interceptors=(counter,))
    me = Descriptor(name="web", id="1", address="h:1")
    client.register(me).deregister()
    client.lock("a").unlock()
    source = client.config_source("app")
    snapshot_revision = source.save({"a": 1})
    assert snapshot_revision > 0
    with counter.expect(Txn=2):
        client.lock("a").unlock()
    with client.lock("b"):
        assert client.try_lock("b") is None
        with counter.expect(Txn=1):
            assert client.try_lock("b") is None
    with counter.expect(Range=1):
        client.discover("web")
    with counter.expect(Range=1):
        snapshot = source.load()
    with counter.expect(Txn=1):
        source.save({"a": 2}, expect=snapshot)
    with counter.expect(Range=1, Txn=1):
        source.save({"a": 3})
    with counter.expect(Range=1):
        source.save({"a": 3})


def test_the_end_of_a_process_is_bounded_for_all_it_holds(
    etcd_server: EtcdServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients, and etcd that does not answer: the bound is that of one."""
    monkeypatch.setattr(client_module, "_open_clients", set())
    with FaultProxy(etcd_server.endpoint) as proxy:
        clients = [Client(endpoints=[proxy.endpoint], prefix=prefix) for _ in range(2)]
        held = []
        for number, client in enumerate(clients):
            client.register(Descriptor(name="web", id=str(number), address="h:1"))
            held.append(client.lock(str(number)))
            client.campaign(str(number), "me")
        proxy.hold()
        began = time.monotonic()
        client_module._close_all()
        took = time.monotonic() - began
    assert all(client.closed for client in clients)
    assert not any(lock.held for lock in held)
    # What one after the other took: two seconds for each, and one for each release.
    assert took < 3.5
