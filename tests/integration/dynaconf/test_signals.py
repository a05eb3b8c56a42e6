"""What a program is told: signals, subscriptions, refusals."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd import config_changed, config_rejected, on_change
from etcd_core import Client, InvalidArgument
from etcd_core.testing import EtcdServer, eventually

MakeSettings = Callable[..., Dynaconf]


def test_config_changed_tells_paths_and_both_states(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"server": {"port": 1}, "gone": 1, "over": 1, "same": [1]})
    settings = make_settings("over = 0\n[server]\nhost = 'h'\n")
    assert settings.GONE == 1
    told: list[dict[str, object]] = []

    def listen(sender: object, **payload: object) -> None:
        told.append({"sender": sender, **payload})

    with config_changed.connected_to(listen, sender=settings):
        revision = source.update({"server.port": 2, "new": {"x": 1}}, delete=["gone", "over"])
        eventually(lambda: told)
    (payload,) = told
    assert payload["sender"] is settings
    assert payload["changed"] == {"server.port", "over"}
    assert payload["added"] == {"new.x"}
    assert payload["removed"] == {"gone"}
    assert payload["revision"] == revision
    old, new = payload["old"], payload["new"]
    assert (old.SERVER.port, new.SERVER.port) == (1, 2)  # type: ignore[attr-defined]
    assert (old.OVER, new.OVER) == (1, 0)  # type: ignore[attr-defined]


def test_config_rejected_tells_masked_reasons(
    etcd_client: Client, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    source = etcd_client.config_source("app")
    source.save({"password": "old-secret"})
    settings = make_settings(validators=[Validator("password", len_max=12)])
    assert settings.PASSWORD == "old-secret"
    told: list[dict[str, object]] = []

    def listen(sender: object, **payload: object) -> None:
        told.append(payload)

    with config_rejected.connected_to(listen), caplog.at_level(logging.DEBUG):
        revision = source.update({"password": "hunter2-is-far-too-long"})
        eventually(lambda: told)
    assert told[0]["revision"] == revision
    reasons = told[0]["reasons"]
    assert isinstance(reasons, tuple)
    assert "PASSWORD" in reasons[0].upper()
    assert "hunter2" not in str(reasons) + caplog.text
    assert settings.PASSWORD == "old-secret"


def test_on_change_of_a_leaf_and_of_a_table(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"server": {"port": 1}, "other": 1})
    settings = make_settings()
    ports: list[tuple[object, object]] = []
    tables: list[object] = []
    gone: list[object] = []

    @on_change(settings, "server.port")
    def port_changed(change: dynaconf_etcd.SettingChange) -> None:
        ports.append((change.old, change.new))
        raise RuntimeError("logged, and nothing else")

    with (
        on_change(settings, "server")(lambda change: tables.append(change.new)),
        on_change(settings, "other")(lambda change: gone.append((change.old, change.new))),
    ):
        source.update({"server.port": 2})
        eventually(lambda: ports == [(1, 2)] and len(tables) == 1)
        source.update({"server.host": "h"}, delete=["other"])
        eventually(lambda: len(tables) == 2 and gone == [(1, None)])
        source.update({"server.port": True})
        eventually(lambda: ports == [(1, 2), (2, True)] and len(tables) == 3)
    port_changed.cancel()
    source.update({"server.port": 4})
    eventually(lambda: settings("server.port") == 4)
    assert ports == [(1, 2), (2, True)]
    assert len(tables) == 3


def test_a_slow_callback_holds_up_nothing_else(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    import threading

    source = etcd_client.config_source("app")
    source.save({"n": 0})
    settings = make_settings()
    release = threading.Event()
    slow = on_change(settings, "n")(lambda change: release.wait(30))
    seen: list[object] = []
    quick = on_change(settings, "n")(lambda change: seen.append(change.new))
    try:
        for n in (1, 2, 3):
            source.update({"n": n})
            eventually(lambda n=n: n == settings.N)
        eventually(lambda: seen == [1, 2, 3])
    finally:
        release.set()
        slow.cancel()
        quick.cancel()


def test_on_change_of_an_item_of_a_list(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    source.save({"hosts": ["a", "b"], "step": 0})
    settings = make_settings()
    items: list[tuple[object, object]] = []
    others: list[object] = []
    on_change(settings, "hosts.1")(lambda change: items.append((change.old, change.new)))
    on_change(settings, "hosts.name")(lambda change: others.append(change.new))
    source.update({"hosts": ["a"]})
    eventually(lambda: items == [("b", None)])
    source.update({"hosts": ["a", "c"]})
    eventually(lambda: items == [("b", None), (None, "c")])
    source.update({"hosts": {"name": "n"}}, delete=["hosts"])
    eventually(lambda: items[2:] == [("c", None)] and others == ["n"])


@pytest.mark.parametrize("key", [5, None, b"hosts"])
def test_a_key_that_is_no_text_is_refused(make_settings: MakeSettings, key: object) -> None:
    settings = make_settings(etcd={"watch": False})
    with pytest.raises(InvalidArgument, match="the key must be a str"):
        on_change(settings, key)  # type: ignore[arg-type]


def test_on_change_in_a_forked_child(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save({"a": 1})
    script = f"""
import os, dynaconf_etcd
from dynaconf import Dynaconf
from etcd_core import Client, Config
from etcd_core.testing import eventually

def make():
    table = {{
        "endpoints": [{etcd_server.endpoint!r}], "prefix": {etcd_client.prefix!r}, "name": "app"
    }}
    return Dynaconf(loaders=["dynaconf_etcd.loader"], etcd=table)

settings = make()
told = []
dynaconf_etcd.on_change(settings, "a")(lambda change: told.append(change.new))

def write(value):
    with Client(Config([{etcd_server.endpoint!r}], prefix={etcd_client.prefix!r})) as client:
        client.config_source("app").update({{"a": value}})

write(2)
eventually(lambda: told == [2])
child = os.fork()
if child == 0:
    status = 1
    try:
        other = make()
        assert other.A == 2  # which makes this process follow etcd
        write(3)
        eventually(lambda: other.A == 3)
        eventually(lambda: told == [2, 3])
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
eventually(lambda: told == [2, 3])
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        cwd=tmp_path,
    )
    assert done.stdout == "done\n", done.stderr


def test_settings_without_the_loader_are_refused() -> None:
    settings = Dynaconf()
    for call in (dynaconf_etcd.status, dynaconf_etcd.snapshot, dynaconf_etcd.close):
        with pytest.raises(InvalidArgument, match="LOADERS_FOR_DYNACONF"):
            call(settings)
    with pytest.raises(InvalidArgument):
        dynaconf_etcd.status({})


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("[unclosed", "secret"),
        ("a: b: c", "secret"),
    ],
)
def test_an_undecodable_update(
    etcd_client: Client, make_settings: MakeSettings, bad: str, reason: str
) -> None:
    source = etcd_client.config_source("app")
    source.save({"secret": "s", "a": 1})
    settings = make_settings()
    assert settings.A == 1
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/secret", bad)
    source.update({"a": 2})
    rejected = eventually(lambda: dynaconf_etcd.status(settings).rejected)
    assert reason in rejected.reasons[0]
    assert bad not in rejected.reasons[0]
    assert (settings.SECRET, settings.A) == ("s", 1)
    source.update({"secret": "t"})
    eventually(lambda: settings.SECRET == "t")
    assert settings.A == 2


def test_a_value_above_others_is_refused(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    source.save({"a": {"b": 1}})
    settings = make_settings()
    assert settings.A.b == 1
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/a", "1")
    eventually(lambda: dynaconf_etcd.status(settings).rejected)
    assert settings.A.b == 1
    etcd_client.raw.delete(f"{etcd_client.prefix}/config/app/a.b")
    eventually(lambda: settings.A == 1)


def test_late_and_environment_validators_count(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    production = etcd_client.config_source("app.production")
    source.save({"port": 1})
    production.save({"port": 1})
    settings = make_settings(
        environments=True, validators=[Validator("port", lt=10, env="production")]
    )
    settings.validators.register(Validator("port", gt=0))
    assert settings.PORT == 1
    production.update({"port": 99})
    eventually(lambda: dynaconf_etcd.status(settings).rejected)
    production.update({"port": 2})
    eventually(lambda: dynaconf_etcd.status(settings).rejected is None)
    source.update({"port": "text"})
    eventually(lambda: dynaconf_etcd.status(settings).rejected)
    source.update({"port": -1})
    bad = source.update({}, delete=["port"])
    eventually(lambda: dynaconf_etcd.status(settings).revision >= bad, timeout=10)


def test_a_broken_file_a_vanished_file_and_a_failing_hook_refuse(
    tmp_path: Path, etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    fail = False

    def hook(settings: Dynaconf) -> dict[str, object]:
        if fail:
            raise RuntimeError("the hook's own words")
        return {}

    settings = make_settings("foo = 1", post_hooks=[hook])
    assert settings.FOO == 1
    file = tmp_path / "settings.toml"

    def refused_with(text: str, **values: object) -> None:
        source.update(values)
        eventually(lambda: text in str(dynaconf_etcd.status(settings).rejected))
        assert settings.FOO == 1

    file.write_text("foo = [")
    refused_with("TOMLDecodeError", step=1)
    file.rename(tmp_path / "elsewhere")
    refused_with("settings files vanished", step=2)
    file.write_text("foo = 1")
    fail = True
    refused_with("RuntimeError at test_signals.py:", step=3)
    assert "own words" not in str(dynaconf_etcd.status(settings).rejected)
    fail = False
    source.update({"step": 4})
    eventually(lambda: settings.get("step") == 4)
    assert dynaconf_etcd.status(settings).rejected is None


def test_no_side_door_for_a_refused_revision(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 80})
    settings = make_settings(environments=True, validators=[Validator("port", lt=1000)])
    assert settings.PORT == 80
    source.update({"port": 99999})
    eventually(lambda: dynaconf_etcd.status(settings).rejected)
    settings.reload()
    assert settings.PORT == 80
    assert settings.get_fresh("port") == 80
    assert settings.from_env("production").PORT == 80
    with settings.using_env("production"):
        assert settings.PORT == 80
    assert settings.PORT == 80


def test_reserved_names_are_ignored_with_one_warning(
    tmp_path: Path,
    etcd_client: Client,
    make_settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    name = f"dynaconf_include{tmp_path.name}"
    source = etcd_client.config_source("app")
    source.save(
        {
            "dynaconf_include": ["evil.py"],
            "includes_for_dynaconf": ["evil.py"],
            "settings_file_for_dynaconf": ["evil.py"],
            "preload_for_dynaconf": ["evil.py"],
            "loaders_for_dynaconf": ["evil"],
            "root_path_for_dynaconf": "/",
            name: 1,
            "validators": 1,
            "a": 1,
        }
    )
    settings = make_settings("foo = 1")
    assert settings.A == 1
    source.update({"a": 2})
    eventually(lambda: settings.A == 2)
    settings.reload()
    assert not marker.exists()
    assert set(settings.as_dict()) == {"FOO", "A"}
    assert caplog.text.count(repr(name)) == 1


def test_strings_stay_strings_whatever_touches_their_table(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DYNACONF_TABLE__zzz", "1")
    values = {"table": {"home": "@format {env[HOME]}", "port": 1, "list": ["@int 3"]}}
    source = etcd_client.config_source("app")
    source.save(values)
    settings = make_settings(
        validators=[Validator("table.port", gt=0), Validator("table.more", default=3)]
    )
    for n in (1, 2):
        assert settings.TABLE.home == "@format {env[HOME]}"
        assert settings.TABLE.list == ["@int 3"]
        assert (settings.TABLE.zzz, settings.TABLE.more) == (1, 3)
        source.update({"step": n})
        eventually(lambda n=n: settings.get("step") == n)


def test_strings_are_evaluated_on_request(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORD", "hello")
    source = etcd_client.config_source("app")
    source.save({"a": "@format {env[WORD]}", "t": {"n": "@int 3"}})
    settings = make_settings(etcd={"evaluate": True})
    assert (settings.A, settings.T.n) == ("hello", 3)
    source.update({"a": "@format {this.T.n}"})
    eventually(lambda: settings.A == "3")
