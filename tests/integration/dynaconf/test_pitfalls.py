"""What live Dynaconf settings are known to break on, each shown to hold."""

from __future__ import annotations

import logging
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator
from dynaconf.hooking import Action, Hook, HookableSettings, HookValue

import dynaconf_etcd
from dynaconf_etcd import feed, internals
from etcd_core import Client
from etcd_core.testing import RpcCounter, eventually

MakeSettings = Callable[..., Dynaconf]


def test_one_watch_for_all_layers_updates_and_rereads(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    main = etcd_client.config_source("app")
    production = etcd_client.config_source("app.production")
    main.save({"a": 0})
    production.save({"b": 0})
    counter = RpcCounter()
    counted = partial(Client, interceptors=(counter,))
    monkeypatch.setattr(feed, "Client", counted)
    monkeypatch.setattr(feed, "shared_client", counted)
    settings = make_settings(environments=True, env="production", fresh_vars=["a"])
    assert (settings.A, settings.B) == (0, 0)
    eventually(lambda: counter.streams == {"Watch": 1})
    for n in (1, 2):
        main.update({"a": n})
        production.update({"b": n})
        eventually(lambda n=n: (n, n) == (settings.A, settings.B))
    settings.reload()
    assert settings.get_fresh("b") == 2
    assert settings.from_env("development").A == 2
    with settings.using_env("development"), settings.fresh():
        assert settings.A == 2
    assert counter.streams == {"Watch": 1}
    assert counter.counts["Range"] == 1
    assert set(counter.counts) == {"Range", "Watch"}


@pytest.mark.parametrize("stored_past_set", [False, True])
def test_hooks_on_reads_survive_updates(
    etcd_client: Client, make_settings: MakeSettings, stored_past_set: bool
) -> None:
    source = etcd_client.config_source("app")
    source.save({"n": 1})
    hooks = {Action.AFTER_GET: [Hook(_doubled)]}
    options: dict[str, object] = {} if stored_past_set else {"_registered_hooks": hooks}
    settings = make_settings(_wrapper_class=HookableSettings, **options)
    if stored_past_set:
        settings["_registered_hooks"] = hooks  # as DjangoDynaconf does
    assert settings.get("n") == 2
    for n in (2, 3):
        source.update({"n": n})
        eventually(lambda n=n: settings.get("n") == 2 * n)
        assert type(internals.unwrap(settings)) is HookableSettings


def _doubled(_settings: object, found: HookValue, key: str, *_: object, **__: object) -> object:
    return found.value * 2 if key.upper() == "N" else found.value


def test_what_is_set_while_a_build_runs_is_kept(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"n": 0, "over": "etcd"})
    inside, go_on = threading.Event(), threading.Event()
    go_on.set()

    def slow(_settings: Dynaconf) -> dict[str, object]:
        inside.set()
        assert go_on.wait(30)
        return {}

    settings = make_settings(post_hooks=[slow])
    assert settings.OVER == "etcd"
    inside.clear()
    go_on.clear()
    source.update({"n": 1})
    assert inside.wait(30)
    settings.OVER = "mine"
    settings["new"] = "mine"
    assert (settings.OVER, settings.NEW, settings.N) == ("mine", "mine", 0)
    go_on.set()
    eventually(lambda: settings.N == 1)
    assert (settings.OVER, settings.get("new")) == ("mine", "mine")
    source.update({"n": 2, "over": "etcd again"})
    eventually(lambda: settings.N == 2)
    assert (settings.OVER, settings.NEW) == ("mine", "mine")


def test_sets_racing_with_swaps_are_kept(etcd_client: Client, make_settings: MakeSettings) -> None:
    if not internals.HAS_CORE:
        pytest.skip("a set that straddles the swap itself can be lost on Dynaconf 3.2")
    source = etcd_client.config_source("app")
    source.save({"n": 0})
    settings = make_settings()
    assert settings.N == 0
    stop = threading.Event()
    done: list[str] = []

    def keep_setting(own: str) -> None:
        count = 0
        while not stop.wait(0.002):
            settings.set(f"{own}_{count}", count)
            done.append(f"{own}_{count}")
            count += 1

    writers = [threading.Thread(target=keep_setting, args=(f"OWN_{i}",)) for i in range(2)]
    for writer in writers:
        writer.start()
    try:
        for n in range(1, 11):
            source.update({"n": n})
            eventually(lambda n=n: n == settings.N)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert done
    eventually(lambda: all(name in settings for name in done))


def test_a_hook_module_beside_the_file_runs_for_each_update(
    tmp_path: Path, etcd_client: Client, make_settings: MakeSettings
) -> None:
    (tmp_path / "dynaconf_hooks.py").write_text(
        textwrap.dedent(
            """
            def post(settings):
                return {"COMPUTED": settings.BASE * 10 + settings.get("step", 0)}
            """
        )
    )
    source = etcd_client.config_source("app")
    settings = make_settings("base = 1")
    assert settings.COMPUTED == 10
    for n in (1, 2):
        source.update({"step": n})
        eventually(lambda n=n: 10 + n == settings.COMPUTED)


def test_the_global_settings_object_is_live(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"N": 0})
    # What `from dynaconf import settings` is; that one would outlive this test.
    settings = make_settings(environments=True, lowercase_read=False, load_dotenv=False)
    assert settings.N == 0
    source.update({"N": 1})
    eventually(lambda: settings.N == 1)


def test_a_file_that_formats_a_value_of_etcd_follows_it(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"host": "one", "n": 0})
    settings = make_settings('url = "@format http://{this.HOST}/"\n[t]\nu = "@format {this.HOST}"')
    assert (settings.URL, settings.T.u) == ("http://one/", "one")
    source.update({"host": "two"})
    eventually(lambda: settings.URL == "http://two/")
    assert settings.T.u == "two"


def test_a_revision_that_breaks_a_format_in_a_file_is_refused(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"host": "one", "n": 0})
    settings = make_settings(
        '[t]\nurls = ["@format http://{this.HOST}/"]\n[never]\nworked = "@format {this.NOWHERE}"'
    )
    assert settings.T.urls == ["http://one/"]
    source.update({"n": 1}, delete=["host"])
    rejected = eventually(lambda: dynaconf_etcd.status(settings).rejected)
    assert "t.urls" in rejected.reasons[0]
    assert (settings.T.urls, settings.N) == (["http://one/"], 0)
    source.update({"host": "two", "n": 2})
    eventually(lambda: settings.N == 2)
    assert settings.T.urls == ["http://two/"]


@pytest.mark.parametrize(
    "restriction",
    [
        {"validate_only": ["port"]},
        {"validate_exclude": ["other"]},
        {"environments": True, "validate_only_current_env": True},
    ],
)
def test_restrictions_of_validation_are_carried(
    etcd_client: Client, make_settings: MakeSettings, restriction: dict[str, object]
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 1, "other": 99})
    validators = [Validator("port", lt=10)]
    env = {"env": "production"} if "environments" in restriction else {}
    validators.append(Validator("other", lt=10, **env))
    settings = make_settings(validators=validators, **restriction)
    assert settings.PORT == 1
    source.update({"port": 2})
    eventually(lambda: settings.PORT == 2)
    source.update({"port": 99})
    eventually(lambda: dynaconf_etcd.status(settings).rejected)
    assert settings.PORT == 2


def test_a_held_table_keeps_its_revision(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    source.save({"db": {"host": "one", "port": 1}})
    settings = make_settings("[db]\nname = 'n'")
    held = settings.DB
    source.update({"db": {"host": "two", "port": 2}})
    eventually(lambda: settings.DB.port == 2)
    assert held == {"name": "n", "host": "one", "port": 1}


def test_names_that_are_no_identifiers(
    etcd_client: Client, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    base = f"{etcd_client.prefix}/config/app/"
    for path, text in {
        "my-key": "1",
        "a-b.c-d": "2",
        "größe": "3",
        "srv.0": "4",
        "table.items": "5",
        "table.max__conn": "6",
        "reload": "7",
        "list": "[1, dynaconf_merge]",
        "with space": "9",
    }.items():
        etcd_client.raw.put(base + path, text)
    with caplog.at_level(logging.WARNING):
        settings = make_settings("list = [0]\nsrv = [1]")
        assert settings["my-key"] == 1
    assert settings.get("a-b.c-d") == 2
    assert settings.GRÖSSE == settings["größe"] == 3
    assert settings.SRV == {"0": 4}
    assert settings.TABLE["items"] == settings.get("table.items") == 5
    assert settings.TABLE["max__conn"] == 6
    assert settings.RELOAD == 7
    assert callable(settings.reload)
    assert settings.LIST == [1, "dynaconf_merge"]
    assert settings["with space"] == 9
    assert "table.max__conn" in caplog.text


def test_an_empty_segment_is_refused(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    source.save({"n": 0})
    settings = make_settings()
    assert settings.N == 0
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/empty..segment", "1")
    rejected = eventually(lambda: dynaconf_etcd.status(settings).rejected)
    assert "empty..segment" in rejected.reasons[0]
    assert settings.N == 0
