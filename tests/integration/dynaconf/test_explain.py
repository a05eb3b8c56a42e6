"""Where a setting comes from, and what it hides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from etcd_core import Client, InvalidArgument

MakeSettings = Callable[..., Dynaconf]


def test_explain(
    etcd_client: Client,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("DYNACONF_SERVER__timeout", "9")
    source = etcd_client.config_source("app")
    revision = source.save({"server": {"port": 8080, "timeout": 8}, "db": {"PASSWORD": "hunter2"}})
    settings = make_settings(
        "[server]\nhost = 'h'\nport = 1\ntimeout = 7\n",
        kw="kw",
        validators=[Validator("made", default=5)],
    )
    assert settings.SERVER.timeout == 9

    def layers(key: str) -> list[str]:
        found = dynaconf_etcd.explain(settings, key)
        assert found.exists
        assert found.provider is not None
        return [each.layer for each in (found.provider, *found.overrides)]

    port = dynaconf_etcd.explain(settings, "server.port")
    assert port.value == 8080
    assert port.provider is not None
    assert port.provider.source == f"{etcd_client.prefix}/config/app/server.port"
    assert port.provider.revision == revision
    assert [each.layer for each in port.overrides] == ["file"]
    assert port.overrides[0].source == str(tmp_path / "settings.toml")
    assert layers("server.timeout") == ["env", "etcd", "file"]
    timeout = dynaconf_etcd.explain(settings, "SERVER.TIMEOUT").provider
    assert timeout is not None
    assert timeout.source == "DYNACONF_SERVER__timeout"
    assert layers("server.host") == ["file"]
    assert layers("kw") == ["default"]
    assert layers("made") == ["validator"]
    password = dynaconf_etcd.explain(settings, "db.password")
    assert (password.value, layers("db.password")) == ("********", ["etcd"])
    assert "hunter2" not in repr(dynaconf_etcd.explain(settings, "db"))
    settings.KW = "mine"
    assert layers("kw")[0] == "program"
    nothing = dynaconf_etcd.explain(settings, "nothing.here")
    assert (nothing.exists, nothing.provider) == (False, None)


def test_items_of_lists(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.config_source("app").save({"hosts": ["a", {"name": "b"}]})
    settings = make_settings('hosts = ["file"]\n', etcd={"watch": False})
    first = dynaconf_etcd.explain(settings, "hosts.0")
    assert first.provider is not None
    assert (first.value, first.provider.layer, first.provider.value) == ("a", "etcd", "a")
    assert [each.value for each in first.overrides] == ["file"]
    assert dynaconf_etcd.explain(settings, "hosts.1.name").value == "b"


@pytest.mark.parametrize("key", ["hosts.5", "hosts.x", "hosts.-1", "hosts.0.x", "hosts.1.name.x"])
def test_what_is_missing_is_missing(
    etcd_client: Client, make_settings: MakeSettings, key: str
) -> None:
    etcd_client.config_source("app").save({"hosts": ["a", {"name": "b"}]})
    nothing = dynaconf_etcd.explain(make_settings(etcd={"watch": False}), key)
    assert (nothing.exists, nothing.value, nothing.provider) == (False, None, None)


@pytest.mark.parametrize("key", [5, None, b"hosts", ""])
def test_what_is_no_path_is_refused(make_settings: MakeSettings, key: object) -> None:
    settings = make_settings(etcd={"watch": False})
    with pytest.raises(InvalidArgument):
        dynaconf_etcd.explain(settings, key)  # type: ignore[arg-type]
