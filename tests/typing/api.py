"""The public API as users write it. Never run: mypy --strict checks it, see test_api.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import timedelta

from django.http import HttpRequest, HttpResponse
from dynaconf import Dynaconf
from flask import Flask
from typing_extensions import assert_type

import django_etcd
import dynaconf_etcd
import etcd_core
from etcd_core import (
    UNSET,
    Candidate,
    Client,
    Compare,
    Config,
    ConfigNotFound,
    ConfigSnapshot,
    ConfigSource,
    Descriptor,
    Election,
    EtcdError,
    LeaderWatch,
    Lock,
    LockTimeout,
    NoInstances,
    Registration,
    ServiceEvent,
    ServiceEventType,
    ServiceView,
    Subscription,
    Term,
    Timeout,
    Tls,
    checkpoint,
    current_term,
    exclusive,
    leader_only,
    set_default_client,
    shared_client,
    signals,
)
from etcd_core.hosting import HostOptions, ServiceHost, when_running
from etcd_core.testing import EtcdCluster, EtcdServer, FaultProxy, eventually, fake_leader
from flask_etcd import Etcd


def clients() -> None:
    config = Config(
        ["https://127.0.0.1:2379"],
        username="app",
        password="secret",
        dial_timeout=2.5,
        timeout=1,
        tls=Tls(ca="ca.pem", cert=b"...", key="key.pem", server_name="etcd"),
        prefix="/shop",
        auto_sync_interval=30,
        lease_pool=0,
    )
    with Client(config) as client, shared_client(config) as shared:
        assert_type(client, Client)
        assert_type(shared.prefix, str)
        assert_type(client.closed, bool)
    with etcd_core.connect(endpoints=["127.0.0.1"]) as connected:
        value, metadata = connected.raw.get("key")
        if value is not None and metadata is not None:
            assert_type(value, bytes)


def configuration(client: Client) -> None:
    source = client.config_source("shop")
    assert_type(source, ConfigSource)
    created = source.bootstrap({"server": {"port": 80}})
    assert_type(created, bool)
    try:
        snapshot = source.load(timeout=None)
    except ConfigNotFound:
        return
    assert_type(snapshot, ConfigSnapshot)
    revision = source.save({**snapshot, "server.port": 8080}, expect=snapshot, allow_empty=True)
    assert_type(revision, int)
    assert_type(source.update({"debug": True}, delete=["old"], timeout=2.0), int)
    for path in snapshot:
        assert_type(path, str)
    names: frozenset[str] = snapshot.diff(snapshot).changed
    nested: Mapping[str, object] = snapshot.nested()
    print(names, nested, snapshot.revision, snapshot.cause, snapshot.exists, snapshot.errors)

    def on_change(new: ConfigSnapshot) -> None:
        print(new.revision)

    with source.watch(on_change, since=snapshot) as subscription:
        assert_type(subscription, Subscription)
        subscription()


def services(client: Client) -> None:
    me = Descriptor(name="shop", id="shop-1", address="10.0.0.5:80", metadata={"zone": "a"})
    me.validate()
    with client.register(me, ttl=15.0, on_conflict="raise") as registration:
        assert_type(registration, Registration)
        assert_type(registration.info, Descriptor)
        assert_type(registration.registered, bool)
        registration.update(address="10.0.0.6:80", metadata={})
    registration.deregister()
    assert_type(client.discover("shop"), list[Descriptor])
    view = client.services("shop")
    assert_type(view, ServiceView)
    try:
        print(view.pick().address, view.stale, len(view.instances))
    except NoInstances:
        view.close()

    def on_event(event: ServiceEvent) -> None:
        if event.type is ServiceEventType.REMOVED:
            print(event.info.id, str(event.type))

    client.watch_service("shop", on_event).cancel()


def locks(client: Client) -> None:
    with client.lock("report", ttl=30, timeout=10) as lock:
        assert_type(lock, Lock)
        assert_type(lock.token, int)
        assert_type(lock.held, bool)
        assert_type(lock.done, threading.Event)
        assert_type(lock.lost_reason, str | None)
        assert_type(lock.guard(), Compare)
        transactions = client.raw.transactions
        client.raw.transaction(
            compare=[lock.guard()], success=[transactions.put("report", "done")], failure=[]
        )
    tried = client.try_lock("report", timeout=UNSET)
    if tried is not None:
        assert_type(tried.unlock(), bool)


def elections(client: Client) -> None:
    with client.campaign("scheduler", "node-1", timeout=5) as election:
        assert_type(election, Election)
        assert_type(election.leader(), str | None)
        assert_type(election.is_leader, bool)
        election.proclaim("node-1 v2")
    election.resign()
    assert_type(client.leader("scheduler"), str | None)
    with client.observe("scheduler") as watch:
        assert_type(watch, LeaderWatch)
        assert_type(watch.next(timeout=1.0), str | None)
        for leader in watch:
            assert_type(leader, str | None)
    with client.candidate("scheduler") as candidate:
        assert_type(candidate, Candidate)
        if candidate.wait(1.0) and candidate.is_leader_for(2.0):
            assert_type(candidate.term, Term | None)


def tasks(client: Client) -> None:
    @leader_only("nightly", client=client)
    def skipped(day: str) -> int:
        return current_term().token + len(day)

    assert_type(skipped("monday"), int | None)

    @leader_only("nightly", client=lambda: client, default="no", min_remaining=3)
    def with_default() -> int:
        return 1

    assert_type(with_default(), int | str)

    @leader_only("nightly", otherwise="wait", wait=3.0)
    def raising() -> int:
        return 1

    assert_type(raising(), int)

    @exclusive("import", otherwise="raise", at_least_for=30)
    async def importing() -> bytes:
        return b"" if checkpoint() else b"stopped"

    async def run() -> None:
        assert_type(await importing(), bytes)

    print(run)
    set_default_client(client)
    with leader_only("nightly", client=client) as term:
        assert_type(term, Term)
    with fake_leader("nightly", token=7):
        skipped("sunday")


def errors_and_signals(call: Callable[[], object], timeout: Timeout) -> None:
    try:
        call()
    except LockTimeout as exc:
        assert_type(exc.retryable, bool)
        as_plain_python: TimeoutError = exc
        print(as_plain_python)
    except EtcdError as exc:
        assert_type(exc.outcome_unknown, bool)

    def on_lost(sender: object, *, key: str, reason: str, **more: object) -> None:
        print(sender, key, reason, more)

    signals.lock_lost.connect(on_lost)


def flask_app() -> Flask:
    app = Flask(__name__)
    etcd = Etcd(app)

    @app.cli.command("nightly")
    @etcd.leader_only("nightly")
    def nightly() -> None:
        print(etcd.client.prefix, etcd.services("shop").pick(), etcd.registration)

    return app


def django_view(request: HttpRequest) -> HttpResponse:
    registration = django_etcd.registration()
    ready = registration is not None and registration.registered
    return HttpResponse(f"{django_etcd.client().prefix} {ready}")


def settings() -> None:
    live = Dynaconf(loaders_for_dynaconf=["dynaconf_etcd.loader"])
    assert_type(dynaconf_etcd.status(live), dynaconf_etcd.Status)

    @dynaconf_etcd.on_change(live, "server.port")
    def changed(change: dynaconf_etcd.SettingChange) -> None:
        print(change.key, change.old, change.new)

    print(dynaconf_etcd.explain(live, "server.port"))
    dynaconf_etcd.write(live, {"server": {"port": 1}})
    dynaconf_etcd.delete(live, ["server.port"])
    dynaconf_etcd.close(live)


def hosting(options: Mapping[str, object]) -> None:
    host = ServiceHost(HostOptions.parse(options, label="ETCD_"))
    host.arm()
    when_running(lambda: None)


def testing() -> None:
    with EtcdServer(tls="mtls") as server, FaultProxy(server.endpoint) as proxy:
        client = Client(endpoints=[proxy.endpoint])
        assert_type(eventually(lambda: client.leader("x"), timeout=3), str | None)
    with EtcdCluster(3) as cluster:
        print(cluster)


def wrong(client: Client) -> None:
    """Each line is an error; an ignore that is not needed would be one too."""
    client.lock("report", timeout="10")  # type: ignore[arg-type]
    client.lock("report", ttl=timedelta(seconds=3))  # type: ignore[arg-type]
    client.register("shop")  # type: ignore[arg-type]
    Descriptor("shop", "shop-1", "10.0.0.5:80")  # type: ignore[call-arg]
    leader_only("nightly", otherwise="wait", default=3)  # type: ignore[call-overload]
    Config(["127.0.0.1"], pasword="x")  # type: ignore[call-arg]
