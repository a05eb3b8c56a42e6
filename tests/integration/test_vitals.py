"""What a process knows of its etcd parts, on a real etcd that comes and goes."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import uuid
import weakref
from collections.abc import Callable

import pytest

from etcd_core import Client, Config, Descriptor, shared_client, vitals
from etcd_core.sharing import SharedRegistration
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from etcd_core.vitals import (
    ClientVitals,
    ConfigurationVitals,
    ElectionVitals,
    RegistrationVitals,
)

MakeClient = Callable[..., Client]


def client_of(prefix: str) -> ClientVitals:
    (found,) = [each for each in vitals.read().clients if each.prefix == prefix]
    return found


def config_of(prefix: str) -> ConfigurationVitals:
    (found,) = [each for each in vitals.configurations() if each.prefix == prefix]
    return found


def registration_of(address: str) -> RegistrationVitals:
    (found,) = [each for each in vitals.read().registrations if each.address == address]
    return found


def elections_of(prefix: str) -> list[ElectionVitals]:
    return [each for each in vitals.read().elections if each.prefix == prefix]


def test_a_client_shows_from_its_first_use_to_its_close(
    etcd_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    client = make_client(etcd_server.endpoint)
    assert all(each.prefix != prefix for each in vitals.read().clients)
    client.leader("x")
    shown = client_of(prefix)
    assert shown.endpoints == (etcd_server.endpoint,)
    assert shown.connected is True
    assert shown.seconds is not None
    assert 0 <= shown.seconds < 60
    assert (shown.leases.count, shown.leases.margin) == (0, None)
    assert (shown.watches.count, shown.watches.lag, shown.watches.silence) == (0, 0, None)
    client.close()
    assert all(each.prefix != prefix for each in vitals.read().clients)


def test_before_the_first_answer_nothing_is_known(
    make_client: MakeClient, proxy: FaultProxy, prefix: str
) -> None:
    client = make_client(proxy.endpoint)
    client.scope()
    assert client_of(prefix).connected is None
    assert client_of(prefix).seconds is None


def test_clients_that_share_an_engine_are_one(etcd_server: EtcdServer, prefix: str) -> None:
    config = Config([etcd_server.endpoint], prefix=prefix)
    with shared_client(config) as one, shared_client(config) as other:
        one.leader("x")
        other.leader("x")
        assert client_of(prefix).connected is True


def test_an_outage(own_server: EtcdServer, make_client: MakeClient, prefix: str) -> None:
    client = make_client(own_server.endpoint)
    client.config_source("app").save({"a": 1})
    with client.config_source("app").watch(lambda snapshot: None):
        eventually(lambda: config_of(prefix).stale is None)
        assert client_of(prefix).watches.down == 0
        own_server.kill()
        eventually(lambda: client_of(prefix).connected is False, 30)
        eventually(lambda: (config_of(prefix).stale or 0) > 0.2, 30)
        assert client_of(prefix).watches.down == 1
        away = client_of(prefix).seconds
        assert away is not None
        eventually(lambda: (client_of(prefix).seconds or 0) > away)
        own_server.start()
        eventually(lambda: client_of(prefix).connected is True, 30)
        eventually(lambda: config_of(prefix).stale is None, 30)
        assert client_of(prefix).watches.down == 0
        assert (client_of(prefix).seconds or 0) < 30


def test_a_margin_falls_while_etcd_does_not_answer(
    own_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    client = make_client(own_server.endpoint)
    address = f"{uuid.uuid4().hex}:1"
    with client.register(Descriptor(name="web", id="1", address=address), ttl=6) as registration:
        shown = registration_of(address)
        assert (shown.name, shown.id, shown.registered) == ("web", "1", True)
        assert 3.3 < shown.margin <= 6
        assert client_of(prefix).leases.count == 1
        own_server.pause()
        eventually(lambda: registration_of(address).margin < 3.3, 30)
        margin = client_of(prefix).leases.margin
        assert margin is not None
        assert margin < 3.4
        own_server.resume()
        eventually(lambda: registration_of(address).margin > 3.6, 30)
        own_server.ctl("lease", "revoke", f"{registration.lease_id:x}")
        # It is repaired at once, so the loss itself may go unseen.
        eventually(lambda: registration_of(address).registered, 30)
    assert all(each.address != address for each in vitals.read().registrations)


def test_a_registration_that_another_process_took_stays_in_sight(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    address = f"{uuid.uuid4().hex}:1"
    one, other = make_client(etcd_server.endpoint), make_client(etcd_server.endpoint)
    mine = one.register(Descriptor(name="web", id="1", address=address))
    other.register(Descriptor(name="web", id="1", address="other:1"))
    eventually(lambda: not registration_of(address).registered)
    assert registration_of("other:1").registered
    del mine


def test_a_shared_registration(etcd_server: EtcdServer, make_client: MakeClient) -> None:
    address = f"{uuid.uuid4().hex}:1"
    client = make_client(etcd_server.endpoint)
    share = SharedRegistration(client.scope(), Descriptor(name="web", id="1", address=address), 10)
    share.start()
    eventually(lambda: registration_of(address).registered)
    assert 5 < registration_of(address).margin <= 10
    share.leave()
    assert all(each.address != address for each in vitals.read().registrations)


def test_watches_lag_behind_what_they_are_not_told_of(
    etcd_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    client = make_client(etcd_server.endpoint)
    source = client.config_source("app")
    with source.watch(lambda snapshot: None):
        eventually(lambda: client_of(prefix).watches.down == 0)
        first = client_of(prefix).watches
        assert (first.count, first.lag) == (1, 0)
        assert first.silence is not None
        # Revisions that touch no watched key count, since nothing tells that they do not matter.
        for number in range(3):
            client.config_source("other").save({"a": number})
        assert client_of(prefix).watches.lag >= 3
        source.save({"a": 1})
        eventually(lambda: client_of(prefix).watches.lag == 0)


def test_a_configuration(etcd_server: EtcdServer, make_client: MakeClient, prefix: str) -> None:
    client = make_client(etcd_server.endpoint)
    source = client.config_source("app")
    source.save({"a": 1})
    called = threading.Event()
    go_on = threading.Event()

    def slow(snapshot: object) -> None:
        called.set()
        go_on.wait(30)

    with source.watch(lambda snapshot: None), source.watch(slow):
        assert called.wait(10)
        revision = source.save({"a": 2})
        # The follower that is behind is the one that counts.
        assert config_of(prefix).revision < revision
        go_on.set()
        eventually(lambda: config_of(prefix).revision == revision)
        shown = config_of(prefix)
        assert (shown.kind, shown.name, shown.followers) == ("source", "app", 2)
        assert shown.live
        assert not shown.from_file
        assert shown.rejected is None
    assert all(each.prefix != prefix for each in vitals.configurations())


def test_leaderships(etcd_server: EtcdServer, make_client: MakeClient, prefix: str) -> None:
    one, other = make_client(etcd_server.endpoint), make_client(etcd_server.endpoint)
    first = one.campaign("scheduler", "one")
    (shown,) = elections_of(prefix)
    assert (shown.key, shown.identity, shown.leading) == ("scheduler", "one", True)
    assert shown.token == first.token
    assert 0 < shown.remaining <= 15
    with other.candidate("scheduler", "two") as second:
        # One process, one entry per election: that of whoever leads.
        assert [each.identity for each in elections_of(prefix)] == ["one"]
        first.resign()
        assert second.wait(30)
        eventually(lambda: [each.leading for each in elections_of(prefix)] == [True])
        assert [each.identity for each in vitals.read().leaderships if each.prefix == prefix] == [
            "two"
        ]
    assert elections_of(prefix) == []


def test_a_leadership_that_is_lost(
    etcd_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    client = make_client(etcd_server.endpoint)
    election = client.campaign("scheduler", "me")
    # Its loss is noticed by the watch on its key, which begins when it has lasted a moment.
    eventually(lambda: client_of(prefix).watches.count == 1)
    etcd_server.ctl("del", election.etcd_key)
    eventually(lambda: [each.leading for each in elections_of(prefix)] == [False])
    (shown,) = elections_of(prefix)
    assert (shown.token, shown.remaining) == (None, 0.0)
    assert [each for each in vitals.read().leaderships if each.prefix == prefix] == []
    election.resign()


def test_waiting_for_a_leadership_is_standing(
    etcd_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    with make_client(etcd_server.endpoint).campaign("scheduler", "leader"):
        code = f"""
import threading
from etcd_core import Client, vitals
from etcd_core.testing import eventually
client = Client(endpoints=[{etcd_server.endpoint!r}], prefix={prefix!r})
threading.Thread(target=client.campaign, args=("scheduler", "waiting"), daemon=True).start()
eventually(lambda: vitals.read().elections)
print([(each.identity, each.leading) for each in vitals.read().elections])
"""
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
        )
    assert done.stdout.strip() == "[('waiting', False)]"


def test_nothing_is_kept_alive(etcd_server: EtcdServer, prefix: str) -> None:
    client = Client(endpoints=[etcd_server.endpoint], prefix=prefix)
    engine = weakref.ref(client.scope().engine)
    client.leader("x")
    assert client_of(prefix).connected
    client.close()
    del client
    gc.collect()
    assert engine() is None


@pytest.mark.parametrize("loads", [False, True])
def test_a_forked_child_sees_nothing_of_its_parents(
    etcd_server: EtcdServer, prefix: str, loads: bool
) -> None:
    code = f"""
import os
from etcd_core import Client, Descriptor, vitals
client = Client(endpoints=[{etcd_server.endpoint!r}], prefix={prefix!r})
client.register(Descriptor(name="web", id="1", address="h:1"))
client.campaign("scheduler", "me")
client.config_source("app").watch(lambda snapshot: None)
pid = os.fork()
if pid == 0:
    now = vitals.read()
    print(now.pid == os.getpid(), now.clients, now.registrations, now.configurations,
          now.elections, flush=True)
    if {loads}:
        client.leader("x")
        print([each.connected for each in vitals.read().clients], flush=True)
    os._exit(0)
os.waitpid(pid, 0)
now = vitals.read()
print(len(now.clients), len(now.registrations), len(now.configurations), len(now.elections))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=50
    )
    child, *own, parent = done.stdout.splitlines()
    assert child == "True () () () ()"
    assert own == (["[True]"] if loads else [])
    assert parent == "1 1 1 1"


def test_reading_while_everything_changes(
    etcd_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        while not stop.is_set():
            try:
                vitals.read()
            except BaseException as exc:
                failures.append(exc)
                return

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        client = make_client(etcd_server.endpoint)
        for number in range(20):
            instance = Descriptor(name="web", id=str(number), address="h:1")
            with client.register(instance), client.lock("a"), client.campaign("b", "me"):
                pass
    finally:
        stop.set()
        for reader in readers:
            reader.join(30)
    assert failures == []


def test_importing_it_is_cheap() -> None:
    code = (
        "import sys, etcd_core.vitals, etcd_core.telemetry, etcd_core.events;"
        "print(*{'grpc', 'google.protobuf', 'yaml', 'etcd3', 'prometheus_client', 'opentelemetry'}"
        " & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []
