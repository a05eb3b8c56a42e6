"""The Flask extension in one process: several applications, signals, services, tasks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from flask import Flask

from etcd_core import Client, Config, Descriptor, InvalidConfig
from etcd_core import signals as core
from etcd_core.hosting import ServiceHost
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from flask_etcd import Etcd, signals


@pytest.fixture
def make_app(etcd_server: EtcdServer) -> Iterator[object]:
    apps: list[Flask] = []

    def make(etcd: Etcd, **options: object) -> Flask:
        app = Flask(f"app{len(apps)}")
        defaults = {
            "ETCD_ENDPOINTS": [etcd_server.endpoint],
            "ETCD_PREFIX": f"/flask/{uuid.uuid4().hex}",
        }
        app.config.update({**defaults, **options})
        etcd.init_app(app)
        apps.append(app)
        return app

    yield make
    for app in apps:
        host = app.extensions["etcd"]
        assert isinstance(host, ServiceHost)
        host.close()


def test_each_application_has_its_own_client(make_app) -> None:
    etcd = Etcd()
    one, two = make_app(etcd), make_app(etcd)
    with one.app_context():
        first = etcd.client
        assert first is etcd.client
    with two.app_context():
        assert etcd.client is not first
        assert etcd.client.prefix == two.config["ETCD_PREFIX"]
    with pytest.raises(RuntimeError, match="application context"):
        _ = etcd.client


def test_outside_a_context_it_means_its_only_application(make_app) -> None:
    etcd = Etcd()
    with pytest.raises(RuntimeError, match="init_app"):
        _ = etcd.client
    app = make_app(etcd)
    assert etcd.client.prefix == app.config["ETCD_PREFIX"]
    assert etcd.registration is None


def test_state_is_in_the_extensions(make_app) -> None:
    etcd = Etcd()
    app = make_app(etcd)
    assert set(app.extensions) == {"etcd"}
    assert not hasattr(etcd, "app")


def test_unknown_options_are_refused(etcd_server: EtcdServer) -> None:
    app = Flask("app")
    app.config.update(ETCD_ENDPOINTS=[etcd_server.endpoint], ETCD_SERVICE_NAM="x")
    with pytest.raises(InvalidConfig, match="ETCD_SERVICE_NAM"):
        Etcd(app)


def test_services_and_tasks(make_app) -> None:
    etcd = Etcd()
    app = make_app(etcd)
    ran: list[int] = []

    @etcd.leader_only("nightly")
    def nightly() -> int:
        ran.append(1)
        return 7

    with app.app_context():
        etcd.client.register(Descriptor(name="pay", id="a", address="10.0.0.1:80"))
        assert etcd.services("pay").pick().address == "10.0.0.1:80"
        assert nightly() == 7
    assert ran == [1]


def test_registration_signals_have_the_application_as_sender(make_app) -> None:
    etcd = Etcd()
    seen: list[tuple[str, object, str]] = []

    def note(name: str):
        def receive(app: object, *, registration: object, info: Descriptor, **_: object) -> None:
            assert registration is not None
            seen.append((name, app, info.address))

        return receive

    app = make_app(etcd, ETCD_SERVICE_NAME="shop")
    other = make_app(etcd)
    receivers = [note("registered"), note("deregistered"), note("other")]
    signals.service_registered.connect(receivers[0], sender=app)
    signals.service_deregistered.connect(receivers[1], sender=app)
    signals.service_registered.connect(receivers[2], sender=other)
    host = app.extensions["etcd"]
    host.register("shop.example:80")
    eventually(lambda: [each[0] for each in seen] == ["registered"], message="registered")
    with Client(app.extensions["etcd"].options.config) as client:
        (found,) = client.discover("shop")
        assert found.address == "shop.example:80"
        assert host.deregister(timeout=10)
        assert client.discover("shop") == []
    eventually(lambda: [each[0] for each in seen] == ["registered", "deregistered"])
    assert {each[1] for each in seen} == {app}
    host.register("shop.example:81")
    eventually(lambda: seen[-1] == ("registered", app, "shop.example:81"), message="again")


def test_the_same_service_in_two_applications_is_one_registration(
    make_app,
) -> None:
    etcd = Etcd()
    one = make_app(etcd, ETCD_SERVICE_NAME="shop")
    config = {name: value for name, value in one.config.items() if name.startswith("ETCD_")}
    two = Flask("two")
    two.config.update(config)
    etcd.init_app(two)
    for app in (one, two):
        app.extensions["etcd"].register("shop.example:80")
    with one.app_context():
        first = eventually(lambda: etcd.registration)
    with two.app_context():
        assert etcd.registration is first
    two.extensions["etcd"].close()


class Heard:
    """What the signals of :mod:`flask_etcd.signals` told, by application."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object, dict[str, object]]] = []
        self._receivers: list[object] = []
        for name in signals.__all__:
            self._connect(name)

    def _connect(self, name: str) -> None:
        def receive(app: object, **payload: object) -> None:
            self.told.append((name, app, payload))

        self._receivers.append(receive)
        getattr(signals, name).connect(receive)

    def of(self, app: Flask) -> list[str]:
        return [name for name, sender, _ in self.told if sender is app]

    def payload(self, name: str) -> dict[str, object]:
        return next(payload for told, _, payload in self.told if told == name)


def test_all_signals_have_the_application_as_sender(make_app) -> None:
    etcd = Etcd()
    app, other = make_app(etcd), make_app(etcd)
    heard = Heard()

    @etcd.leader_only("nightly")
    def nightly() -> int:
        return 1

    with app.app_context():
        client = etcd.client
        assert nightly() == 1
        view = etcd.services("pay")
        source = client.config_source("app")
        source.save({"a": 1})
        subscription = source.watch(lambda snapshot: None)
        registration = client.register(Descriptor(name="pay", id="a", address="10.0.0.1:80"))
        # Entered and left within one answer of etcd, it would be no change.
        eventually(lambda: "service_changed" in heard.of(app), message="entered")
        lock = client.lock("nightly")
        client.raw.delete(lock.etcd_key)
        source.save({"a": 2})
        registration.deregister()
    with other.app_context(), etcd.client.campaign("nightly", "me"):
        assert nightly() is None
    expected = {
        "leadership_acquired", "service_registered", "service_changed", "lock_lost",
        "config_changed", "service_deregistered",
    }  # fmt: skip
    eventually(lambda: expected <= set(heard.of(app)), message=str(heard.told))
    eventually(lambda: "leadership_lost" in heard.of(other), message=str(heard.told))
    subscription.cancel()
    assert set(heard.of(other)) == {"leadership_acquired", "leadership_lost", "task_skipped"}
    assert heard.payload("service_registered")["registration"] is registration
    assert heard.payload("service_changed")["view"] is view
    assert heard.payload("lock_lost")["lock"] is lock
    assert heard.payload("config_changed")["source"] is source
    assert heard.payload("task_skipped")["task"].endswith("nightly")
    assert heard.payload("task_skipped")["reason"] == "not_leader"


def test_signals_of_another_client_are_not_the_applications(make_app) -> None:
    etcd = Etcd()
    app = make_app(etcd)
    heard = Heard()
    # Under the same prefix, even.
    config = Config(app.config["ETCD_ENDPOINTS"], prefix=app.config["ETCD_PREFIX"])
    with Client(config) as stranger, stranger.campaign("theirs", "me"):
        pass
    with app.app_context(), etcd.client.campaign("mine", "me"):
        pass
    eventually(lambda: len(heard.of(app)) == 2, message=str(heard.told))
    assert heard.payload("leadership_acquired")["key"] == "mine"


def test_applications_that_share_a_client_share_its_connection_only(
    make_app, etcd_server: EtcdServer
) -> None:
    etcd = Etcd()
    heard = Heard()
    with FaultProxy(etcd_server.endpoint) as proxy:
        options = {
            "ETCD_ENDPOINTS": [proxy.endpoint],
            "ETCD_PREFIX": f"/flask/{uuid.uuid4().hex}",
            "ETCD_TIMEOUT": 1,
        }
        one, two = make_app(etcd, **options), make_app(etcd, **options)
        for app in (one, two):
            with app.app_context():
                etcd.client.discover("pay")
        with one.app_context():
            etcd.client.register(Descriptor(name="pay", id="a", address="10.0.0.1:80"))
        proxy.refuse()
        proxy.reset()
        both = ["connection_state_changed"]
        eventually(lambda: heard.of(two)[:1] == both, 30, message=str(heard.told))
        proxy.refuse(False)
        eventually(lambda: heard.of(two)[:2] == both * 2, 30, message=str(heard.told))
        eventually(lambda: heard.of(one).count(both[0]) >= 2, message=str(heard.told))
        assert set(heard.of(two)) == set(both)
        assert "service_registered" in heard.of(one)
        for app in (one, two):
            app.extensions["etcd"].close()


def test_one_registration_of_two_applications_is_told_to_both(make_app) -> None:
    etcd = Etcd()
    heard = Heard()
    options = {"ETCD_SERVICE_NAME": "shop", "ETCD_PREFIX": f"/flask/{uuid.uuid4().hex}"}
    one, two = make_app(etcd, **options), make_app(etcd, **options)
    for app in (one, two):
        app.extensions["etcd"].register("shop.example:80")
    eventually(lambda: heard.of(one) == heard.of(two) == ["service_registered"])
    one.extensions["etcd"].ready(False)
    told = ["service_registered", "service_deregistered"]
    eventually(lambda: heard.of(one) == heard.of(two) == told)


def test_not_ready_before_it_serves(make_app) -> None:
    etcd = Etcd()
    app = make_app(etcd, ETCD_SERVICE_NAME="shop")
    host = app.extensions["etcd"]
    host.ready(False)
    host.register("shop.example:80")
    eventually(lambda: host.serving)
    assert host.registration is None
    host.ready(True)
    eventually(lambda: host.registration is not None and host.registration.registered)


def test_dynaconf_settings_of_an_application(make_app) -> None:
    etcd = Etcd()
    app, other = make_app(etcd), make_app(etcd)
    app.dynaconf, other.dynaconf = object(), object()
    heard = Heard()
    core.send(core.config_changed, app.dynaconf, revision=7)
    core.send(core.config_rejected, app.dynaconf, revision=8, reasons=("no",))
    core.send(core.config_changed, object(), revision=9)
    assert heard.told == [
        ("config_changed", app, {"source": app.dynaconf, "revision": 7}),
        ("config_rejected", app, {"source": app.dynaconf, "revision": 8, "reasons": ("no",)}),
    ]
