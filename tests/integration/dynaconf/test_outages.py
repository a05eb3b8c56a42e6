"""etcd away, reset or emptied: at start and while running, with and without the snapshot file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd.loader import load  # noqa: F401  (the loader is what is under test)
from etcd_core import Client, Config, ConfigNotFound, ConnectionFailed, DecodeError, InvalidConfig
from etcd_core.testing import EtcdServer, FaultProxy, eventually

MakeSettings = Callable[..., Dynaconf]


@pytest.fixture
def snapshot(tmp_path: Path) -> str:
    return str(tmp_path / "last-known-good")


@pytest.fixture
def on_own(own_server: EtcdServer, make_settings: MakeSettings) -> Iterator[MakeSettings]:
    """Settings on a server that may be stopped and wiped."""

    def make(file: str = "", etcd: dict[str, object] | None = None, **options: object) -> Dynaconf:
        table = {"endpoints": [own_server.endpoint], "prefix": "/own", "dial_timeout": 0.5}
        return make_settings(file, {**table, **(etcd or {})}, **options)

    return make


def _write(own: EtcdServer, **values: object) -> int:
    with Client(Config([own.endpoint], prefix="/own")) as client:
        return client.config_source("app").update(values)


def _saved(path: str, revision: int) -> None:
    def written() -> bool:
        return f'"revision":{revision},' in Path(path).read_text()

    eventually(written)


def _told(caplog: pytest.LogCaptureFixture, event: str) -> list[tuple[int, object]]:
    return [
        (record.levelno, record.__dict__["etcd_reason"])
        for record in caplog.records
        if record.__dict__.get("etcd_event") == event
    ]


def test_nothing_under_the_name_tells_where_it_looked(
    etcd_server: EtcdServer,
    etcd_client: Client,
    make_settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = make_settings("a = 'file'", etcd={"name": "misspelt"})
    assert settings.A == "file"
    (told,) = [each for each in caplog.messages if "holds no settings" in each]
    assert f"{etcd_client.prefix}/config/misspelt/" in told
    assert etcd_server.endpoint in told


def test_a_misspelt_folder_of_the_snapshot(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(etcd={"snapshot": str(tmp_path / "misspelt" / "snapshot")})
    with pytest.raises(InvalidConfig, match="misspelt"):
        settings.get("a")
    assert not (tmp_path / "misspelt").exists()


def test_an_error_within_dial_timeout(make_settings: MakeSettings, proxy: FaultProxy) -> None:
    proxy.hold()
    settings = make_settings(etcd={"endpoints": [proxy.endpoint], "dial_timeout": 0.5})
    began = time.monotonic()
    with pytest.raises(OSError, match="app"):
        settings.get("a")
    assert time.monotonic() - began < 5


def test_an_outage_is_survived_and_caught_up(
    etcd_client: Client, make_settings: MakeSettings, proxy: FaultProxy
) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": 1})
    settings = make_settings(etcd={"endpoints": [proxy.endpoint]})
    assert settings.A == 1
    eventually(lambda: not dynaconf_etcd.status(settings).stale)
    proxy.refuse()
    proxy.reset()
    source.update({"a": 2})
    assert settings.A == 1
    settings.reload()
    assert settings.A == 1
    eventually(lambda: dynaconf_etcd.status(settings).stale)
    proxy.heal()
    eventually(lambda: settings.A == 2, timeout=30)
    eventually(lambda: not dynaconf_etcd.status(settings).stale)


def test_not_required(
    own_server: EtcdServer, on_own: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    _write(own_server, a="etcd")
    own_server.kill()
    settings = on_own("a = 'file'", etcd={"required": False})
    assert settings.A == "file"
    assert dynaconf_etcd.status(settings).stale
    assert "without etcd" in caplog.text
    own_server.restart()
    eventually(lambda: settings.A == "etcd", timeout=30)
    eventually(lambda: not dynaconf_etcd.status(settings).stale)
    assert _told(caplog, "config.restored") == [
        (logging.WARNING, "etcd could not be read at start")
    ]
    _write(own_server, a="again")
    eventually(lambda: settings.A == "again")
    assert len(_told(caplog, "config.restored")) == 1


def test_the_snapshot_stands_in_and_is_replaced(
    own_server: EtcdServer, on_own: MakeSettings, snapshot: str
) -> None:
    first = _write(own_server, a=1, server={"port": 1})
    settings = on_own(etcd={"snapshot": snapshot})
    assert settings.A == 1
    _saved(snapshot, first)
    second = _write(own_server, a=2)
    eventually(lambda: settings.A == 2)
    _saved(snapshot, second)
    dynaconf_etcd.close(settings)
    own_server.kill()

    settings = on_own(etcd={"snapshot": snapshot})
    assert (settings.A, settings.SERVER.port) == (2, 1)
    status = dynaconf_etcd.status(settings)
    assert (status.revision, status.stale, status.from_snapshot) == (second, True, True)
    assert 0 < status.age < 600
    own_server.restart()
    eventually(lambda: not dynaconf_etcd.status(settings).stale, timeout=30)
    third = _write(own_server, a=3)
    eventually(lambda: settings.A == 3)
    _saved(snapshot, third)


def test_a_damaged_snapshot_is_no_stand_in(
    own_server: EtcdServer, on_own: MakeSettings, snapshot: str, caplog: pytest.LogCaptureFixture
) -> None:
    revision = _write(own_server, a=1)
    settings = on_own(etcd={"snapshot": snapshot})
    assert settings.A == 1
    _saved(snapshot, revision)
    dynaconf_etcd.close(settings)
    Path(snapshot).write_text(Path(snapshot).read_text()[:-10])
    own_server.kill()
    with pytest.raises(ConnectionFailed):
        on_own(etcd={"snapshot": snapshot}).get("a")
    assert "it is not used" in caplog.text
    own_server.restart()
    settings = on_own(etcd={"snapshot": snapshot})
    assert settings.A == 1
    _saved(snapshot, revision)


def test_a_refused_revision_does_not_stop_a_restart(
    own_server: EtcdServer, on_own: MakeSettings, snapshot: str
) -> None:
    good = _write(own_server, port=80)
    validators = [Validator("port", lt=1000)]
    settings = on_own(etcd={"snapshot": snapshot}, validators=validators)
    assert settings.PORT == 80
    _saved(snapshot, good)
    bad = _write(own_server, port=99999)
    eventually(lambda: dynaconf_etcd.status(settings).rejected)
    dynaconf_etcd.close(settings)

    settings = on_own(etcd={"snapshot": snapshot}, validators=validators)
    assert settings.PORT == 80
    rejected = dynaconf_etcd.status(settings).rejected
    assert rejected is not None
    assert rejected.revision == bad
    _write(own_server, port=81)
    eventually(lambda: settings.PORT == 81)
    assert dynaconf_etcd.status(settings).rejected is None

    with Client(Config([own_server.endpoint], prefix="/own")) as client:
        client.raw.put("/own/config/app/port", "[broken")
        eventually(lambda: dynaconf_etcd.status(settings).rejected)
        dynaconf_etcd.close(settings)
        settings = on_own(etcd={"snapshot": snapshot}, validators=validators)
        assert settings.PORT == 81
    with pytest.raises(DecodeError):
        on_own().get("port")


@pytest.mark.parametrize("bad", ["99999", "[broken"])
def test_a_refusal_at_start_is_signalled_once_they_are_loaded(
    own_server: EtcdServer, on_own: MakeSettings, snapshot: str, bad: str
) -> None:
    good = _write(own_server, port=80)
    validators = [Validator("port", lt=1000)]
    settings = on_own(etcd={"snapshot": snapshot}, validators=validators)
    assert settings.PORT == 80
    _saved(snapshot, good)
    dynaconf_etcd.close(settings)
    with Client(Config([own_server.endpoint], prefix="/own")) as client:
        client.raw.put("/own/config/app/port", bad)

    settings = on_own(etcd={"snapshot": snapshot}, validators=validators)
    told: list[tuple[object, object]] = []

    def rejected(sender: object, *, revision: int, **_: object) -> None:
        # As a program does that logs with its settings: were they still loading, without end.
        told.append((settings.PORT, revision))
        assert sender is settings

    with dynaconf_etcd.config_rejected.connected_to(rejected):
        assert settings.PORT == 80
        eventually(lambda: told)
        later = _write(own_server, other=1)
        eventually(lambda: len(told) > 1)
    assert told == [(80, good + 1), (80, later)]


def test_a_wiped_store_keeps_the_values_until_keys_come_back(
    own_server: EtcdServer, on_own: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(5):
        _write(own_server, a=n)
    settings = on_own("b = 'file'")
    assert (settings.A, settings.B) == (4, "file")
    own_server.restart(wipe=True)
    held = eventually(lambda: dynaconf_etcd.status(settings).held, timeout=30)
    assert "reset" in held
    assert settings.A == 4
    assert dynaconf_etcd.status(settings).stale
    _write(own_server, a="new")
    eventually(lambda: settings.A == "new", timeout=30)
    assert dynaconf_etcd.status(settings).held is None
    assert (
        _told(caplog, "config.held")
        == _told(caplog, "config.restored")
        == [(logging.WARNING, held)]
    )


def test_a_wiped_store_empties_on_request(own_server: EtcdServer, on_own: MakeSettings) -> None:
    for n in range(5):
        _write(own_server, a=n)
    settings = on_own(etcd={"allow_empty": True})
    assert settings.A == 4
    own_server.restart(wipe=True)
    eventually(lambda: "A" not in settings, timeout=30)


def test_a_deliberate_deletion_of_everything_applies(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": 1, "b": 2})
    settings = make_settings("a = 'file'")
    assert settings.A == 1
    source.save({}, allow_empty=True)
    eventually(lambda: settings.A == "file")
    assert "B" not in settings


def test_starting_on_a_wiped_store_uses_the_snapshot(
    own_server: EtcdServer, on_own: MakeSettings, snapshot: str
) -> None:
    for n in range(5):
        revision = _write(own_server, a=n)
    settings = on_own(etcd={"snapshot": snapshot})
    assert settings.A == 4
    _saved(snapshot, revision)
    dynaconf_etcd.close(settings)
    own_server.restart(wipe=True)

    settings = on_own(etcd={"snapshot": snapshot})
    assert settings.A == 4
    assert dynaconf_etcd.status(settings).held
    _write(own_server, a="new")
    eventually(lambda: settings.A == "new", timeout=30)
    status = dynaconf_etcd.status(settings)
    assert (status.held, status.from_snapshot) == (None, False)


def test_a_snapshot_of_another_cluster_is_refused(
    own_server: EtcdServer, on_own: MakeSettings, snapshot: str
) -> None:
    revision = _write(own_server, a=1)
    settings = on_own(etcd={"snapshot": snapshot})
    assert settings.A == 1
    _saved(snapshot, revision)
    dynaconf_etcd.close(settings)
    with EtcdServer() as other:
        there = {"endpoints": [other.endpoint], "snapshot": snapshot}
        with pytest.raises(ConfigNotFound, match="another"):
            on_own(etcd=there).get("a")
        _write(other, a="other")
        settings = on_own(etcd=there)
        assert settings.A == "other"
        dynaconf_etcd.close(settings)
