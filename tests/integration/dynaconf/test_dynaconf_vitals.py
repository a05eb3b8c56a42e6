"""What the vitals tell of live settings: whole, refused, behind, and from the file."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from etcd_core import Client, Config, vitals
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from etcd_core.vitals import ConfigurationVitals

MakeSettings = Callable[..., Dynaconf]


def config_of(prefix: str) -> ConfigurationVitals:
    (found,) = [each for each in vitals.configurations() if each.prefix == prefix]
    return found


def test_settings_are_a_configuration(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    first = source.save({"a": 1})
    settings, other = make_settings(), make_settings()
    assert settings.A == other.A == 1
    eventually(lambda: config_of(etcd_client.prefix).stale is None)
    shown = config_of(etcd_client.prefix)
    assert (shown.kind, shown.name, shown.followers) == ("dynaconf", "app", 2)
    assert shown.revision >= first
    assert shown.live
    revision = source.save({"a": 2})
    eventually(lambda: config_of(etcd_client.prefix).revision == revision)
    assert settings.A == 2
    dynaconf_etcd.close(settings)
    assert config_of(etcd_client.prefix).followers == 1


def test_a_refused_revision(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    good = source.save({"port": 1})
    settings = make_settings(validators=[Validator("port", lt=100)])
    assert settings.PORT == 1
    refused = source.save({"port": 1000})
    eventually(lambda: config_of(etcd_client.prefix).rejected == refused)
    assert good <= config_of(etcd_client.prefix).revision < refused
    mended = source.save({"port": 2})
    eventually(lambda: config_of(etcd_client.prefix).revision == mended)
    assert config_of(etcd_client.prefix).rejected is None


def test_an_outage(etcd_client: Client, make_settings: MakeSettings, proxy: FaultProxy) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": 1})
    settings = make_settings(etcd={"endpoints": [proxy.endpoint]})
    assert settings.A == 1
    eventually(lambda: config_of(etcd_client.prefix).stale is None)
    proxy.refuse()
    proxy.reset()
    eventually(lambda: (config_of(etcd_client.prefix).stale or 0) > 0, 30)
    revision = source.save({"a": 2})
    proxy.refuse(False)
    eventually(lambda: config_of(etcd_client.prefix).revision == revision, 30)
    eventually(lambda: config_of(etcd_client.prefix).stale is None, 30)


def test_settings_from_the_file_are_as_old_as_the_file(
    own_server: EtcdServer, make_settings: MakeSettings, tmp_path: Path
) -> None:
    path = tmp_path / "last-known-good"
    table = {
        "endpoints": [own_server.endpoint],
        "prefix": "/own",
        "dial_timeout": 0.5,
        "snapshot": str(path),
    }
    with Client(Config([own_server.endpoint], prefix="/own")) as client:
        revision = client.config_source("app").save({"a": 1})
    before = make_settings(etcd=table)
    assert before.A == 1
    eventually(path.exists)
    eventually(lambda: f'"revision":{revision},' in path.read_text())
    dynaconf_etcd.close(before)
    own_server.stop()
    settings = make_settings(etcd={**table, "timeout": 4})
    assert settings.A == 1
    shown = config_of("/own")
    assert shown.from_file
    assert shown.revision == revision
    stale = shown.stale
    assert stale is not None
    assert stale > 0
    eventually(lambda: (config_of("/own").stale or 0) > stale)
    own_server.start()
    eventually(lambda: not config_of("/own").from_file, 30)
    eventually(lambda: config_of("/own").stale is None, 30)


def test_settings_that_are_only_read(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.config_source("app").save({"a": 1})
    settings = make_settings(etcd={"watch": False})
    assert settings.A == 1
    assert not config_of(etcd_client.prefix).live
    assert config_of(etcd_client.prefix).stale is None


@pytest.mark.parametrize("value", ["hunter2-secret"])
def test_records_of_a_refusal_name_no_value(
    etcd_client: Client,
    make_settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
    value: str,
) -> None:
    source = etcd_client.config_source("app")
    source.save({"password": "x"})
    settings = make_settings(validators=[Validator("password", len_max=5)])
    assert settings.PASSWORD == "x"
    refused = source.save({"password": value})
    eventually(lambda: config_of(etcd_client.prefix).rejected == refused)

    def records() -> list[logging.LogRecord]:
        return [r for r in caplog.records if getattr(r, "etcd_event", "") == "config.rejected"]

    # It is told a moment after it can be asked for.
    eventually(records)
    (record,) = records()
    told = vars(record)
    assert (told["etcd_name"], told["etcd_revision"]) == ("app", refused)
    assert told["etcd_kept"] < refused
    assert told["etcd_reasons"]
    assert value not in str({name: told[name] for name in told if name.startswith("etcd_")})
