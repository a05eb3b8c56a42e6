"""The Flask extension in one process: several applications, signals, services, tasks."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from flask import Flask

from etcd_core import Client, Descriptor, InvalidConfig
from etcd_core.hosting import ServiceHost
from etcd_core.testing import EtcdServer, eventually
from flask_etcd import Etcd, signals


@pytest.fixture
def make_app(etcd_server: EtcdServer) -> Iterator[object]:
    apps: list[Flask] = []

    def make(etcd: Etcd, **options: object) -> Flask:
        app = Flask(f"app{len(apps)}")
        app.config.update(
            ETCD_ENDPOINTS=[etcd_server.endpoint],
            ETCD_PREFIX=f"/flask/{uuid.uuid4().hex}",
            **options,
        )
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
