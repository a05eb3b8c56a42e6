"""How options are read from a settings object."""

from __future__ import annotations

from pathlib import Path

import pytest
from dynaconf import Dynaconf

from dynaconf_etcd import internals, options
from etcd_core import Config, InvalidConfig, Tls


def _read(**arguments: object) -> options.Options:
    return options.read(internals.unwrap(Dynaconf(**arguments)))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ETCD_FOR_DYNACONF", *map(options.option_name, options.OPTION_NAMES)):
        monkeypatch.delenv(name, raising=False)


def test_a_table() -> None:
    table = {"endpoints": ["a:1", "b:2"], "name": "shop", "timeout": 1, "snapshot": "x"}
    for given in ({"etcd": dict(table)}, {"ETCD_FOR_DYNACONF": dict(table)}):
        read = _read(**given)
        assert read.config == Config(["a:1", "b:2"], timeout=1)
        assert read.name == "shop"
        assert read.snapshot is not None
        assert read.snapshot.startswith("/")
        assert (read.watch, read.required, read.evaluate) == (True, True, False)


def test_the_environment_counts_before_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_ENDPOINTS_FOR_DYNACONF", "a:1, b:2")
    monkeypatch.setenv("ETCD_PASSWORD_FOR_DYNACONF", "12345")
    monkeypatch.setenv("ETCD_USERNAME_FOR_DYNACONF", "me")
    monkeypatch.setenv("ETCD_WATCH_FOR_DYNACONF", "false")
    monkeypatch.setenv("ETCD_TLS_FOR_DYNACONF", '{server_name = "x"}')
    read = _read(etcd={"endpoints": ["c:3"], "name": "shop"})
    assert read.config.endpoints == ("a:1", "b:2")
    assert (read.config.username, read.config.password) == ("me", "12345")
    assert read.config.tls == Tls(server_name="x")
    assert (read.name, read.watch) == ("shop", False)
    assert "12345" not in repr(read)


def test_a_table_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ETCD_FOR_DYNACONF", '{endpoints = ["a:1"], name = "shop"}')
    assert _read().name == "shop"


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({}, "no endpoints"),
        ({"endpoints": ["a"], "nmae": "x"}, "nmae"),
        ({"endpoints": ["a"], "watch": 1}, "watch"),
        ({"endpoints": ["a"], "snapshot": 1}, "snapshot"),
        ({"endpoints": ["a"], "tls": "yes"}, "tls"),
        ({"endpoints": ["a"], "name": "/"}, "name"),
    ],
)
def test_unusable_options(table: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _read(etcd=table)


def test_no_table_at_all() -> None:
    with pytest.raises(InvalidConfig, match="ETCD_FOR_DYNACONF"):
        _read()
    with pytest.raises(InvalidConfig, match="table"):
        _read(etcd="a:1")


def test_options_are_dynaconfs_business() -> None:
    settings = Dynaconf(etcd={"endpoints": ["a:1"], "username": "u", "password": "hunter2"}, foo=1)
    options.read(internals.unwrap(settings))
    assert settings.as_dict() == {"FOO": 1}
    assert "hunter2" not in repr(settings.get("ETCD"))
    assert options.read(internals.unwrap(settings.from_env("x"))).config.password == "hunter2"


def test_a_setting_of_the_programs_with_the_short_name_stays_its_own() -> None:
    own = {"ENDPOINTS": ["z:9"], "SERVICE_NAME": "billing"}
    table = {"endpoints": ["a:1"], "name": "shop"}
    for given in (
        {"ETCD": own, "ETCD_FOR_DYNACONF": table},
        {"ETCD": own, "etcd": table},
        {"etcd": table, "ETCD": own},
    ):
        settings = Dynaconf(**given)
        read = options.read(internals.unwrap(settings))
        assert (read.name, read.config.endpoints) == ("shop", ("a:1",))
        assert own == settings.ETCD
        assert settings.as_dict() == {"ETCD": own}
        assert settings.from_env("x").get("ETCD_FOR_DYNACONF") == table


def test_the_long_name_counts_before_the_short_one() -> None:
    given = {"endpoints": ["a:1"], "name": "long"}
    settings = Dynaconf(ETCD_FOR_DYNACONF=given, etcd={"endpoints": ["b:2"], "name": "short"})
    assert options.read(internals.unwrap(settings)).name == "long"
    assert settings.as_dict() == {}


def test_only_a_setting_of_the_programs(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="setting ETCD, which is not read"):
        _read(ETCD={"ENDPOINTS": ["a:1"], "SERVICE_NAME": "billing"})
    (tmp_path / "settings.toml").write_text("[etcd]\nendpoints = ['a:1']\n")
    with pytest.raises(InvalidConfig, match="setting ETCD, which is not read"):
        _read(settings_files=["settings.toml"], root_path=str(tmp_path))


def test_a_file_counts_before_the_argument(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        "[ETCD_FOR_DYNACONF]\nendpoints = ['a:1']\nname = 'file'\n[etcd]\nown = 1\n"
    )
    settings = Dynaconf(
        settings_files=["settings.toml"], root_path=str(tmp_path), etcd={"endpoints": ["b:2"]}
    )
    assert options.read(internals.unwrap(settings)).name == "file"
    assert settings.ETCD == {"own": 1}


def test_every_listed_name_can_be_read() -> None:
    inside = internals.unwrap(Dynaconf(etcd={"endpoints": ["a:1"]}))
    options.read(inside)
    listed = [name for name in dir(inside) if "etcd" in name.lower()]
    assert "ETCD_FOR_DYNACONF" in listed
    assert [name for name in listed if not hasattr(inside, name)] == []
