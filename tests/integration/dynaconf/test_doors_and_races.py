"""What is refused stays out by every way in, and what is written arrives whatever goes on."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd.feed import Feed
from dynaconf_etcd.layers import Revision
from etcd_core import Client, Conflict, ConnectionFailed, DecodeError
from etcd_core.mirror import View
from etcd_core.testing import eventually

MakeSettings = Callable[..., Dynaconf]
BOUND = 20.0


class Gate:
    """A hook on loading that waits, once it is told to."""

    def __init__(self) -> None:
        self.closed = False
        self.reached = threading.Event()
        self._open = threading.Event()

    @property
    def hook(self) -> Callable[[object], dict[str, object]]:
        # A function, since Dynaconf 3.2 copies whatever else a hook is.
        def hook(_settings: object) -> dict[str, object]:
            if self.closed:
                self.closed = False
                self.reached.set()
                assert self._open.wait(BOUND)
            return {}

        return hook

    def open(self) -> None:
        self._open.set()


def refused(settings: Dynaconf) -> bool:
    return dynaconf_etcd.status(settings).rejected is not None


def test_a_change_while_another_object_loads_reaches_all(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 1})
    first = make_settings()
    assert first.PORT == 1
    source.update({"port": 2})
    eventually(lambda: first.PORT == 2)
    gate = Gate()
    gate.closed = True
    second = make_settings(post_hooks=[gate.hook])
    loading = threading.Thread(target=lambda: second.PORT, daemon=True)
    loading.start()
    assert gate.reached.wait(BOUND)
    for port in (3, 4, 5):
        source.update({"port": port})
    gate.open()
    loading.join(BOUND)
    eventually(lambda: (first.PORT, second.PORT) == (5, 5))


class TestDoors:
    def test_an_environment_that_a_build_made(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        etcd_client.config_source("app").save({"port": 1})
        production = etcd_client.config_source("app.production")
        production.save({"port": 10})
        checked = Validator("PORT", env="production", lte=100)
        settings = make_settings(environments=True, validators=[checked])
        assert settings.PORT == 1
        production.update({"port": 11})
        eventually(lambda: settings.from_env("production").PORT == 11)
        production.update({"port": 999})
        eventually(lambda: refused(settings))
        environment = settings.from_env("production")
        assert environment.get_fresh("port") == 11
        environment.reload()
        assert environment.PORT == 11

    def test_configure(self, etcd_client: Client, make_settings: MakeSettings) -> None:
        source = etcd_client.config_source("app")
        source.save({"port": 1})
        settings = make_settings()
        assert settings.PORT == 1
        settings.validators.register(Validator("PORT", lte=100))
        source.update({"port": 999})
        eventually(lambda: refused(settings))
        settings.configure()
        assert settings.PORT == 1
        assert refused(settings)

    def test_a_hook_that_reads_the_live_object(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        etcd_client.config_source("app").save({"port": 1})
        etcd_client.config_source("app.production").save({"port": 10})
        live: list[Dynaconf] = []

        def hook(_settings: object) -> dict[str, object]:
            for each in live:
                assert each.from_env("production").PORT
            return {}

        settings = make_settings(
            environments=True, post_hooks=[hook], validators=[Validator("PORT", lte=100)]
        )
        assert settings.PORT == 1
        live.append(settings)
        raw, base = etcd_client.raw, f"{etcd_client.prefix}/config"
        puts = [
            raw.transactions.put(f"{base}/app/port", "999"),
            raw.transactions.put(f"{base}/app.production/port", "666"),
        ]
        raw.transaction(compare=[], success=puts, failure=[])
        eventually(lambda: refused(settings))
        assert settings.from_env("production").PORT == 10

    def test_a_hook_that_reads_other_settings(
        self, etcd_client: Client, make_settings: MakeSettings
    ) -> None:
        for name in ("app", "features", "app.production", "features.production"):
            etcd_client.config_source(name).save({"flag": name})
        features = make_settings(etcd={"name": "features"}, environments=True)
        assert features.FLAG == "features"
        seen: list[object] = []

        def hook(_settings: object) -> dict[str, object]:
            seen.append((features.get_fresh("flag"), features.from_env("production").FLAG))
            return {}

        settings = make_settings(environments=True, post_hooks=[hook])
        assert settings.FLAG == "app"
        etcd_client.config_source("app").update({"port": 1})
        eventually(lambda: settings.get("PORT") == 1)
        assert set(seen) == {("features", "features.production")}
        assert features.FLAG == "features"

    def test_a_typed_class_starts_from_the_file(
        self, etcd_client: Client, make_settings: MakeSettings, tmp_path: Path
    ) -> None:
        typed = pytest.importorskip("dynaconf.typed", reason="Dynaconf 3.2 has no typed settings")

        class Shop(typed.Dynaconf):  # type: ignore[misc, name-defined]
            port: int

        source = etcd_client.config_source("app")
        good = source.save({"port": 1})
        path = tmp_path / "last-known-good"
        options = {"snapshot": str(path), "watch": False}
        assert make_settings(etcd=options, factory=Shop).PORT == 1
        source.save({"port": "none"})
        assert make_settings(etcd=options, factory=Shop).PORT == 1
        assert json.loads(path.read_text())["body"]["revision"] == good

    def test_sys_exit_is_a_refusal(self, etcd_client: Client, make_settings: MakeSettings) -> None:
        source = etcd_client.config_source("app")
        source.save({"port": 1})

        def hook(settings: Dynaconf) -> dict[str, object]:
            if settings.get("PORT") == 2:
                sys.exit(1)
            return {}

        settings = make_settings(post_hooks=[hook])
        assert settings.PORT == 1
        source.update({"port": 2})
        eventually(lambda: refused(settings))
        assert "sys.exit()" in dynaconf_etcd.status(settings).rejected.reasons[0]
        source.update({"port": 3})
        eventually(lambda: settings.PORT == 3)


def test_a_write_that_is_refused_for_what_others_wrote_says_so(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 1, "host": "a"})
    settings = make_settings(validators=[Validator("PORT", lte=100)])
    assert settings.PORT == 1
    source.update({"port": 999})
    eventually(lambda: refused(settings))
    with pytest.raises(Conflict, match="written at revision"):
        dynaconf_etcd.write(settings, {"host": "b"})
    assert settings.HOST == "a"


def test_a_fault_in_a_layer_that_nobody_reads_stops_nothing(
    etcd_client: Client, make_settings: MakeSettings
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 1})
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app.pr-12/x", "[broken")
    settings = make_settings(environments=True)
    assert settings.PORT == 1
    source.update({"port": 2})
    eventually(lambda: settings.PORT == 2)
    assert dynaconf_etcd.write(settings, {"port": 3})
    assert settings.PORT == 3
    with pytest.raises(DecodeError, match=r"app\.pr-12"):
        settings.from_env("pr-12")
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app.pr-12/x", "mended")
    eventually(lambda: settings.from_env("pr-12").X == "mended")


class TestWithoutAWatch:
    def test_reload_refuses_what_validators_refuse(
        self, etcd_client: Client, make_settings: MakeSettings, tmp_path: Path
    ) -> None:
        source = etcd_client.config_source("app")
        source.save({"port": 1})
        path = tmp_path / "last-known-good"
        settings = make_settings(
            etcd={"watch": False, "snapshot": str(path)}, validators=[Validator("PORT", lte=100)]
        )
        assert settings.PORT == 1
        bad = source.update({"port": 999})
        settings.reload()
        assert settings.PORT == 1
        assert dynaconf_etcd.status(settings).rejected.revision == bad
        good = source.update({"port": 3})
        settings.reload()
        assert settings.PORT == 3
        assert not refused(settings)
        assert json.loads(path.read_text())["body"]["revision"] == good

    def test_reload_keeps_the_values_of_a_wiped_store(
        self,
        etcd_client: Client,
        make_settings: MakeSettings,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        etcd_client.config_source("app").save({"port": 1})
        settings = make_settings(etcd={"watch": False})
        assert settings.PORT == 1

        def wiped(feed: Feed) -> Revision:
            return Revision.decode(feed.place, View(1, {}), feed.decoder, cluster_id=77)

        with monkeypatch.context() as patch:
            patch.setattr(Feed, "read", wiped)
            settings.reload()
        assert settings.PORT == 1
        assert "reset" in (dynaconf_etcd.status(settings).held or "")
        settings.reload()
        assert settings.PORT == 1
        assert dynaconf_etcd.status(settings).held is None


@contextmanager
def handled_by(handler: logging.Handler) -> Iterator[None]:
    logger = logging.getLogger()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


class TestLogsThatReadSettings:
    def test_a_filter_at_the_first_load(self, make_settings: MakeSettings) -> None:
        """The empty configuration is worth a warning, whose record asks for a setting."""
        settings = make_settings()
        seen: list[object] = []

        class Naming(logging.Filter):
            def filter(self, record: logging.LogRecord) -> bool:
                seen.append(settings.get("APP", "nameless"))
                return True

        handler = logging.StreamHandler(io.StringIO())
        handler.addFilter(Naming())
        with handled_by(handler):
            assert settings.get("PORT") is None
        assert seen
        assert set(seen) == {"nameless"}

    def test_a_filter_at_a_load_that_fails(
        self, make_settings: MakeSettings, tmp_path: Path
    ) -> None:
        path = tmp_path / "last-known-good"
        path.write_text("damaged")
        settings = make_settings(
            etcd={"endpoints": ["127.0.0.1:1"], "dial_timeout": 0.3, "snapshot": str(path)}
        )
        seen: list[object] = []

        class Naming(logging.Filter):
            def filter(self, record: logging.LogRecord) -> bool:
                seen.append(settings.get("APP", "nameless"))
                return True

        handler = logging.StreamHandler(io.StringIO())
        handler.addFilter(Naming())
        with handled_by(handler), pytest.raises(ConnectionFailed):
            settings.get("PORT")
        assert set(seen) == {"nameless"}
        assert not settings.configured

    def test_a_formatter_in_another_thread(self, make_settings: MakeSettings) -> None:
        """It loads with the handler's lock held, while the first load logs."""
        settings = make_settings()
        inside, go = threading.Event(), threading.Event()

        class Naming(logging.Formatter):
            def format(self, record: logging.LogRecord) -> str:
                if record.name == "program":
                    inside.set()
                    assert go.wait(BOUND)
                    settings.get("APP")
                return record.getMessage()

        handler = logging.StreamHandler(io.StringIO())
        handler.setFormatter(Naming())
        with handled_by(handler):
            logs = threading.Thread(
                target=lambda: logging.getLogger("program").warning("hello"), daemon=True
            )
            loads = threading.Thread(target=lambda: settings.get("PORT"), daemon=True)
            logs.start()
            assert inside.wait(BOUND)
            loads.start()
            go.set()
            logs.join(BOUND)
            loads.join(BOUND)
            assert not logs.is_alive()
            assert not loads.is_alive()


@pytest.mark.parametrize("begins", ["before", "meanwhile"])
def test_using_env_beside_a_build(
    etcd_client: Client, make_settings: MakeSettings, begins: str
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 1})
    etcd_client.config_source("app.production").save({"port": 10})
    gate = Gate()
    settings = make_settings(environments=True, post_hooks=[gate.hook])
    assert settings.PORT == 1

    def update() -> int:
        gate.closed = True
        revision = source.update({"port": 2})
        assert gate.reached.wait(BOUND)
        return revision

    if begins == "before":
        with settings.using_env("production"):
            update()
            assert settings.PORT == 10
        gate.open()
    else:
        revision = update()
        with settings.using_env("production"):
            gate.open()
            eventually(lambda: dynaconf_etcd.status(settings).revision == revision)
            assert settings.PORT == 10
    eventually(lambda: settings.PORT == 2)
    assert settings.current_env == "DEVELOPMENT"
    source.update({"port": 3})
    eventually(lambda: settings.PORT == 3)


def test_a_receiver_that_hangs_does_not_hold_up_the_file(
    etcd_client: Client, make_settings: MakeSettings, tmp_path: Path
) -> None:
    path = tmp_path / "last-known-good"
    source = etcd_client.config_source("app")
    source.save({"port": 1})
    settings = make_settings(etcd={"snapshot": str(path)})
    assert settings.PORT == 1
    reached, release = threading.Event(), threading.Event()

    def hang(sender: object, **_: object) -> None:
        reached.set()
        release.wait(BOUND)

    with dynaconf_etcd.config_changed.connected_to(hang):
        source.update({"port": 2})
        assert reached.wait(BOUND)
        last = source.update({"port": 3})
        eventually(lambda: f'"revision":{last},' in path.read_text())
        release.set()
