"""The loader on a real etcd: what is loaded, in which order, and that it stays current."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd import feed
from etcd_core import Client, ConnectionFailed, DecodeError, EtcdError, InvalidConfig
from etcd_core.testing import EtcdServer, RpcCounter, eventually

MakeSettings = Callable[..., Dynaconf]
LOADERS = ["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"]
FILE = """
foo = "file"
only_file = 1
[server]
host = "filehost"
Port = 1
timeout = 30
list = [1, 2]
[server.tls]
cert = "filecert"
ca = "fileca"
"""


def test_etcd_only(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.config_source("app").save(
        {"debug": True, "server": {"host": "h", "port": 8080}, "tags": ["a", "b"], "none": None}
    )
    settings = make_settings()
    assert settings.DEBUG is True
    assert settings.server.port == settings["SERVER"]["port"] == settings("server.port") == 8080
    assert settings.TAGS == ["a", "b"]
    assert settings.get("none", "default") is None
    assert settings.as_dict() == {
        "DEBUG": True,
        "SERVER": {"host": "h", "port": 8080},
        "TAGS": ["a", "b"],
        "NONE": None,
    }


def test_etcd_lies_over_files_by_leaf(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.config_source("app").save(
        {"server": {"port": 8080, "list": [9], "tls": {"cert": "etcd"}}}
    )
    settings = make_settings(FILE)
    assert settings.as_dict() == {
        "FOO": "file",
        "ONLY_FILE": 1,
        "SERVER": {
            "host": "filehost",
            "Port": 8080,
            "timeout": 30,
            "list": [9],
            "tls": {"cert": "etcd", "ca": "fileca"},
        },
    }


@pytest.mark.parametrize(("loaders", "winner"), [(LOADERS, "environment"), (LOADERS[::-1], "etcd")])
def test_the_order_of_loaders_is_the_precedence(
    etcd_client: Client,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
    loaders: list[str],
    winner: str,
) -> None:
    etcd_client.config_source("app").save({"foo": "etcd", "server": {"host": "etcd"}})
    monkeypatch.setenv("DYNACONF_FOO", "environment")
    monkeypatch.setenv("DYNACONF_SERVER__host", "environment")
    settings = make_settings(FILE, loaders=loaders)
    assert (settings.FOO, settings.SERVER.host) == (winner, winner)
    etcd_client.config_source("app").update({"live": 1})
    eventually(lambda: settings.get("live"))
    assert (settings.FOO, settings.SERVER.host) == (winner, winner)


def test_changes_arrive_and_deleted_keys_fall_back_to_the_file(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"server": {"port": 8080, "tls": {"cert": "etcd"}}, "gone": 1})
    settings = make_settings(FILE)
    assert settings.SERVER.port == 8080
    held_get, held_table = settings.get, settings.SERVER
    source.update({"server.port": 9090, "new": [1]}, delete=["gone", "server.tls.cert"])
    eventually(lambda: settings.SERVER.port == 9090)
    assert settings.SERVER.tls.cert == "filecert"
    assert settings.NEW == [1]
    assert "GONE" not in settings
    assert settings.get("gone", "default") == "default"
    assert held_get("server.port") == 9090
    assert held_table.port == 8080


def test_layers_of_environments(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.config_source("app").save({"a": "main", "b": "main", "c": "main"})
    etcd_client.config_source("app.production").save({"b": "production", "c": "production"})
    etcd_client.config_source("app.global").save({"c": "global"})
    etcd_client.config_source("app-worker").save({"a": "another"})
    etcd_client.config_source("app2").save({"a": "another"})
    settings = make_settings(environments=True, env="production")
    assert (settings.A, settings.B, settings.C) == ("main", "production", "global")
    development = settings.from_env("development")
    assert (development.A, development.B, development.C) == ("main", "main", "global")
    with settings.using_env("development"):
        assert settings.B == "main"
    assert settings.B == "production"
    etcd_client.config_source("app.production").update({"b": "changed"})
    eventually(lambda: settings.B == "changed")
    assert settings.from_env("production").B == "changed"


def test_options_come_from_the_environment(
    etcd_server: EtcdServer,
    etcd_client: Client,
    make_settings: MakeSettings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    etcd_client.config_source("other").save({"a": 1})
    monkeypatch.setenv("ETCD_ENDPOINTS_FOR_DYNACONF", f'["{etcd_server.endpoint}"]')
    monkeypatch.setenv("ETCD_NAME_FOR_DYNACONF", "other")
    settings = make_settings(etcd={"endpoints": ["127.0.0.1:1"]})
    assert settings.A == 1


def test_options_stay_out_of_the_settings(etcd_client: Client, make_settings: MakeSettings) -> None:
    etcd_client.config_source("app").save({"a": 1})
    settings = make_settings()
    assert settings.as_dict() == {"A": 1}
    assert settings.from_env("other").A == 1


@pytest.mark.parametrize(
    "table",
    [
        {"endpoints": []},
        {"endpoint": ["127.0.0.1:2379"]},
        {"watch": "sometimes"},
        {"tls": {"no_such": 1}},
        {"username": "only"},
    ],
)
def test_unusable_options_are_refused(
    make_settings: MakeSettings, table: dict[str, object]
) -> None:
    settings = make_settings(etcd=table)
    with pytest.raises(InvalidConfig):
        settings.get("a")
    assert not settings.configured


def test_an_unreachable_etcd_is_an_error_at_start(make_settings: MakeSettings) -> None:
    settings = make_settings(FILE, etcd={"endpoints": ["127.0.0.1:1"], "dial_timeout": 0.3})
    with pytest.raises((ConnectionFailed, EtcdError), match="app"):
        settings.get("foo")


def test_an_unreadable_leaf_is_an_error_at_start(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/secret", "[hunter2")
    with pytest.raises(DecodeError, match="secret") as caught:
        make_settings(FILE).get("foo")
    assert "hunter2" not in str(caught.value)


def test_a_bad_update_is_refused_as_a_whole(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"server.port": 8080, "a": 1})
    settings = make_settings(FILE, validators=[Validator("server.port", lte=65535)])
    assert settings.A == 1
    bad = source.update({"server.port": 99999, "a": 2})
    rejected = eventually(lambda: dynaconf_etcd.status(settings).rejected)
    assert rejected.revision == bad
    assert "server.port" in rejected.reasons[0]
    assert "99999" not in rejected.reasons[0]
    settings.reload()
    assert (settings.SERVER.port, settings.A) == (8080, 1)
    source.update({"server.port": 8081})
    eventually(lambda: settings.SERVER.port == 8081)
    assert settings.A == 2
    assert dynaconf_etcd.status(settings).rejected is None


def test_strings_from_etcd_are_not_evaluated(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    values = {
        "home": "@format {env[HOME]}",
        "file": "@read_file /etc/hostname",
        "number": "@int abc",
        "server": {"cert": "@del", "list": ["@none", "@jinja {{ this }}"]},
    }
    etcd_client.config_source("app").save(values)
    settings = make_settings(FILE)
    assert values["home"] == settings.HOME
    assert values["file"] == settings.FILE
    assert values["number"] == settings.NUMBER
    assert settings.SERVER.cert == "@del"
    assert settings.SERVER.list == ["@none", "@jinja {{ this }}"]


def test_status_and_snapshot(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    first = source.save({"a": 1, "b": 1})
    settings = make_settings()
    held = dynaconf_etcd.snapshot(settings)
    assert dynaconf_etcd.status(settings).revision == first
    second = source.update({"a": 2, "b": 2})
    eventually(lambda: settings.A == 2)
    assert (held.A, held.B) == (1, 1)
    status = dynaconf_etcd.status(settings)
    assert (status.name, status.revision, status.watching) == ("app", second, True)
    eventually(lambda: not dynaconf_etcd.status(settings).stale)


def test_nothing_runs_without_watch(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": 1})
    before = set(threading.enumerate())
    settings = make_settings(etcd={"watch": False})
    assert settings.A == 1
    etcd_threads = [t.name for t in set(threading.enumerate()) - before if "etcd" in t.name]
    assert not etcd_threads
    source.update({"a": 2})
    assert settings.A == 1
    settings.reload()
    assert settings.A == 2


def test_first_readers_at_once_end_with_one_live_object(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": 1})
    settings = make_settings()
    start = threading.Barrier(8)

    def read() -> None:
        start.wait()
        try:
            value = settings.A
        except KeyError as exc:
            # Dynaconf reloads a module of its own at the first read, without etcd too, and a
            # module is gone for a moment while it is reloaded.
            if exc.args != ("dynaconf.default_settings",):
                raise
            value = settings.A
        assert value == 1

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.update({"a": 2})
    eventually(lambda: settings.A == 2)


def test_one_read_for_all_layers(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd_client.config_source("app").save({"a": "main"})
    etcd_client.config_source("app.production").save({"b": "production"})
    etcd_client.config_source("app.global").save({"c": "global"})
    counter = RpcCounter()
    monkeypatch.setattr(feed, "Client", partial(Client, interceptors=(counter,)))
    settings = make_settings(environments=True, env="production", etcd={"watch": False})
    assert (settings.A, settings.B, settings.C) == ("main", "production", "global")
    assert counter.counts == {"Range": 1}
    assert sum(counter.streams.values()) == 0


def test_the_command_line_of_dynaconf_shows_etcd(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save({"server": {"port": 8080}})
    (tmp_path / "shop.py").write_text(
        f"""
from dynaconf import Dynaconf
settings = Dynaconf(
    loaders=["dynaconf_etcd.loader"],
    ETCD_FOR_DYNACONF={{
        "endpoints": [{etcd_server.endpoint!r}], "prefix": {etcd_client.prefix!r}, "name": "app"
    }},
)
"""
    )
    outputs = []
    for command in (["list"], ["get", "server.port"], ["inspect", "-k", "server", "-f", "json"]):
        done = subprocess.run(
            [sys.executable, "-m", "dynaconf", "-i", "shop.settings", *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert "SERVER" in outputs[0]
    assert outputs[1].strip() == "8080"
    assert '"loader": "etcd"' in outputs[2]
    assert '"etcd://app"' in outputs[2]
