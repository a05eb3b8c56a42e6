"""One object, one revision, one environment: in snapshots, and beside changes of environment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd import internals, live
from dynaconf_etcd.steps import Step
from etcd_core import Client, RequestTimeout
from etcd_core.testing import eventually

MakeSettings = Callable[..., Dynaconf]
BOUND = 20.0
COMPUTED = """
url = "@format http://{this.HOST}:{this.PORT}/"
page = "@jinja {{ this.HOST }}:{{ this.PORT }}"
[links]
home = "@format {this.HOST}:{this.PORT}"
[links.deep]
all = ["@format {this.HOST}:{this.PORT}", {one = "@format {this.HOST}:{this.PORT}"}]
"""


def computed(settings: Dynaconf) -> set[str]:
    """Return every computed value without what is around host and port."""
    links = settings.LINKS
    found = [settings.URL[7:-1], links.home, links["home"], settings("links.home")]
    found += [links.deep.all[0], links["deep"]["all"][1]["one"]]
    try:
        import jinja2  # noqa: F401
    except ImportError:
        return set(found)
    return {*found, settings.PAGE}


class TestSnapshots:
    @pytest.mark.parametrize("updates", [0, 1])
    def test_what_is_computed_is_of_its_revision(
        self, etcd_client: Client, make_settings: MakeSettings, updates: int
    ) -> None:
        source = etcd_client.config_source("app")
        source.save({"host": "h", "port": 0})
        settings = make_settings(COMPUTED)
        assert computed(settings) == {"h:0"}
        for port in range(1, updates + 1):
            source.update({"port": port})
            eventually(lambda port=port: port == settings.PORT)
        before = dynaconf_etcd.snapshot(settings)
        told: dict[object, dict[str, Dynaconf]] = {}

        def receive(_sender: object, *, revision: int, **what: Dynaconf) -> None:
            told[revision] = what

        with dynaconf_etcd.config_changed.connected_to(receive):
            revision = source.update({"host": "other", "port": 7})
            eventually(lambda: settings.PORT == 7 and revision in told)
        old, new = told[revision]["old"], told[revision]["new"]
        assert computed(before) == computed(old) == {f"h:{updates}"}
        assert computed(new) == computed(settings) == {"other:7"}
        source.update({"host": "third"})
        eventually(lambda: settings.HOST == "third")
        assert computed(before) == {f"h:{updates}"}
        assert computed(old) == {f"h:{updates}"}
        assert computed(new) == {"other:7"}

    def test_what_was_set_at_run_time_is_computed_in_it_too(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        source = etcd_client.config_source("app")
        source.save({"host": "one"})
        settings = make_settings("a = 1")
        for host in ("two", "three"):
            settings.set("mine", {"url": "@format http://{this.HOST}/"})
            before, shown = dynaconf_etcd.snapshot(settings), settings.HOST
            source.update({"host": host})
            eventually(lambda host=host: host == settings.HOST)
            assert (before.MINE.url, settings.MINE.url) == (f"http://{shown}/", f"http://{host}/")

    def test_changes_of_environment_do_not_touch_it(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        etcd_client.config_source("app").save({"port": 1})
        etcd_client.config_source("app.production").save({"port": 10})
        settings = make_settings(environments=True)
        now = dynaconf_etcd.snapshot(settings)
        with settings.using_env("production"):
            assert (settings.PORT, now.PORT) == (10, 1)
            there = dynaconf_etcd.snapshot(settings)
            with now.using_env("production"):
                assert now.PORT == 10
            assert (settings.PORT, now.PORT) == (10, 1)
        settings.setenv("production")
        settings.setenv()
        settings.reload()
        assert (settings.PORT, now.PORT, there.PORT) == (1, 1, 10)

    def test_its_environments_are_of_its_revision(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        """And what is refused gets in by none of them."""
        production = etcd_client.config_source("app.production")
        production.save({"port": 10})
        etcd_client.config_source("app").save({"port": 1})
        checked = Validator("PORT", env="production", lte=100)
        settings = make_settings(environments=True, validators=[checked])
        assert settings.PORT == 1
        before = dynaconf_etcd.snapshot(settings)
        production.update({"port": 11})
        eventually(lambda: settings.from_env("production").PORT == 11)
        assert before.from_env("production").PORT == 10
        assert before.from_env("staging").PORT == 1
        with before.using_env("production"):
            assert before.PORT == 10
        before.reload()
        assert before.PORT == 1
        now = dynaconf_etcd.snapshot(settings)
        production.update({"port": 999})
        eventually(lambda: dynaconf_etcd.status(settings).rejected is not None)
        for snapshot in (now, dynaconf_etcd.snapshot(settings)):
            assert snapshot.from_env("production", keep=True).PORT == 11
            snapshot.reload()
            with snapshot.using_env("production"):
                assert snapshot.PORT == 11
            assert snapshot.as_dict(env="production")["PORT"] == 11
        assert settings.as_dict(env="production")["PORT"] == 11
        assert dynaconf_etcd.status(settings).rejected is not None

    def test_it_holds_on_to_nothing(self, etcd_client: Client, make_settings: MakeSettings) -> None:
        settings = make_settings(COMPUTED)
        inner = internals.unwrap(settings)
        one, two = dynaconf_etcd.snapshot(settings), dynaconf_etcd.snapshot(settings)
        assert one is not two
        assert internals.raw_store(one) is internals.raw_store(inner)


class TestEnvironments:
    def test_blocks_within_blocks_give_back_what_they_found(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        for env in ("a", "b"):
            etcd_client.config_source(f"app.{env}").save({"where": env})
        settings = make_settings(environments=True, validators=[Validator("size", default=7)])
        assert (settings.get("where"), settings.SIZE) == (None, 7)
        with settings.using_env("a"):
            with settings.using_env("b"):
                assert settings.WHERE == "b"
                with settings.using_env("development"):
                    assert settings.get("where") is None
                assert settings.WHERE == "b"
            assert (settings.WHERE, settings.current_env) == ("a", "A")
        assert (settings.get("where"), settings.SIZE) == (None, 7)
        assert settings.current_env == "DEVELOPMENT"
        assert not settings.loaded_envs

    def test_blocks_of_several_threads_give_back_what_they_found(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        for env in ("a", "b"):
            etcd_client.config_source(f"app.{env}").save({"where": env})
        settings = make_settings(environments=True)
        assert settings.get("where") is None
        first, second = settings.using_env("a"), settings.using_env("b")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert settings.WHERE == "b"
        second.__exit__(None, None, None)
        assert settings.get("where") is None
        assert not settings.loaded_envs

    def test_a_reader_beside_a_change_of_environment_misses_nothing(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        """While it is being loaded, the others read what they read before."""
        etcd_client.config_source("app").save({"port": 1})
        etcd_client.config_source("app.production").save({"port": 10})
        waits, reached, go = [False], threading.Event(), threading.Event()

        def hook(_settings: object) -> dict[str, object]:
            if waits[0]:
                reached.set()
                assert go.wait(BOUND)
            return {}

        settings = make_settings(environments=True, post_hooks=[hook])
        assert settings.PORT == 1
        inside = threading.Event()

        def switch() -> None:
            with settings.using_env("production"):
                assert settings.PORT == 10
                inside.set()

        waits[0] = True
        thread = threading.Thread(target=switch, daemon=True)
        thread.start()
        assert reached.wait(BOUND)
        assert (settings.PORT, settings.get("port"), settings["PORT"]) == (1, 1, 1)
        assert settings.current_env == "DEVELOPMENT"
        waits[0] = False
        go.set()
        assert inside.wait(BOUND)
        thread.join(BOUND)
        assert settings.PORT == 1

    def test_a_revision_is_judged_where_the_program_runs(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        """What is good in a block only is refused, and what is bad in one only is not."""
        source = etcd_client.config_source("app")
        production = etcd_client.config_source("app.production")
        source.save({"port": 1})
        production.save({"port": 10})
        settings = make_settings(environments=True, validators=[Validator("PORT", lte=100)])
        assert settings.PORT == 1
        with settings.using_env("production"):
            source.update({"port": 999})
            eventually(lambda: dynaconf_etcd.status(settings).rejected is not None)
            assert settings.PORT == 10
        assert settings.PORT == 1
        source.update({"port": 2})
        eventually(lambda: settings.PORT == 2)
        with settings.using_env("production"):
            production.update({"port": 500})
            eventually(lambda: settings.PORT == 500)
        assert settings.PORT == 2
        assert dynaconf_etcd.status(settings).rejected is None

    def test_a_write_in_a_block_is_shown_in_it(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        etcd_client.config_source("app.production").save({"port": 10})
        settings = make_settings(environments=True)
        with settings.using_env("production"):
            dynaconf_etcd.write(settings, {"host": "h", "port": 1})
            assert (settings.HOST, settings.PORT) == ("h", 10)
            dynaconf_etcd.write(settings, {"port": 11}, env="production")
            assert settings.PORT == 11
        assert (settings.HOST, settings.PORT) == ("h", 1)

    def test_a_write_of_what_is_being_loaded_ends(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        """It waits for an update that waits for the change of environment which it is part of."""
        etcd_client.config_source("app").save({"port": 1})
        raised: list[BaseException] = []
        writes = [False]

        def hook(_settings: object) -> dict[str, object]:
            if writes[0]:
                writes[0] = False
                try:
                    dynaconf_etcd.write(settings, {"port": 2}, timeout=1.0)
                except RequestTimeout as exc:
                    raised.append(exc)
            return {}

        settings = make_settings(environments=True, post_hooks=[hook])
        assert settings.PORT == 1
        writes[0] = True
        with settings.using_env("production"):
            eventually(lambda: settings.PORT == 2)
        assert settings.PORT == 2
        assert len(raised) <= 1

    def test_a_validator_that_changes_it_itself(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        source = etcd_client.config_source("app")
        source.save({"port": 1})
        etcd_client.config_source("app.production").save({"port": 10})
        known: list[Dynaconf] = []
        seen: set[object] = set()

        def look(_value: object) -> bool:
            for each in known:
                with each.using_env("production"):
                    seen.add(each.PORT)
            return True

        settings = make_settings(environments=True, validators=[Validator("PORT", condition=look)])
        assert settings.PORT == 1
        known.append(settings)
        with settings.using_env("production"):
            assert settings.PORT == 10
        source.update({"port": 2})
        eventually(lambda: settings.PORT == 2)
        settings.reload()
        assert settings.PORT == 2
        assert seen == {10}

    def test_an_environment_that_cannot_be_loaded_changes_nothing(
        self, etcd_client: Client, make_settings: MakeSettings, tmp_path: Path
    ) -> None:
        source = etcd_client.config_source("app")
        source.save({"port": 1})
        file = tmp_path / "settings.toml"
        settings = make_settings("[default]\na = 1\n", environments=True)
        assert settings.A == 1
        file.write_text("[default")
        for change in (lambda: settings.setenv("production"), settings.reload):
            with pytest.raises(Exception):  # noqa: B017  (whatever the parser of the file raises)
                change()
            assert (settings.A, settings.PORT, settings.current_env) == (1, 1, "DEVELOPMENT")
        file.write_text("[default]\na = 1\n[production]\na = 2\n")
        block = settings.using_env("production")
        block.__enter__()
        assert settings.A == 2
        file.write_text("[default")
        with pytest.raises(Exception):  # noqa: B017
            block.__exit__(None, None, None)
        file.write_text("[default]\na = 3\n[production]\na = 2\n")
        source.update({"port": 2})
        eventually(lambda: settings.PORT == 2)
        assert (settings.A, settings.current_env) == (3, "DEVELOPMENT")


def test_who_subscribes_after_a_write_is_not_told_of_it(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    announced, go = live.Live._announce, threading.Event()

    def late(self: live.Live, step: Step) -> None:
        assert go.wait(BOUND)
        announced(self, step)

    monkeypatch.setattr(live.Live, "_announce", late)
    settings = make_settings()
    dynaconf_etcd.write(settings, {"level": 1})
    assert settings.LEVEL == 1
    seen: list[object] = []
    dynaconf_etcd.on_change(settings, "level")(lambda change: seen.append((change.old, change.new)))
    go.set()
    dynaconf_etcd.write(settings, {"level": 2})
    eventually(lambda: seen)
    assert seen == [(1, 2)]
