"""What is refused for a cause that passes is taken over when it has passed, and nothing else is."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, Validator

import dynaconf_etcd
from dynaconf_etcd import live
from etcd_core import Client, ConfigSource
from etcd_core.testing import eventually

MakeSettings = Callable[..., Dynaconf]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_RETRY_SECONDS", (0.05, 0.1))
    monkeypatch.setattr("dynaconf_etcd.feed._LOOK_SECONDS", 0.02)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events of all records from the level of a warning on."""
    return [
        str(r.__dict__.get("etcd_event")) for r in caplog.records if r.levelno >= logging.WARNING
    ]


class Service:
    """What a hook or a validator asks for something."""

    def __init__(self) -> None:
        self.error: Callable[[int], Exception] | None = None
        self.asked = 0

    def ask(self) -> None:
        if self.error is not None:
            self.asked += 1
            raise self.error(self.asked)

    @property
    def hook(self) -> Callable[[object], dict[str, object]]:
        def hook(_settings: object) -> dict[str, object]:
            self.ask()
            return {}

        return hook

    def is_content(self, _value: object) -> bool:
        self.ask()
        return True


class OfAClient(Exception):
    pass


class ReadTimeout(OfAClient):
    pass


def test_a_file_that_is_being_replaced(
    etcd_client: Client,
    make_settings: MakeSettings,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = etcd_client.config_source("app")
    source.save({"port": 1})
    settings = make_settings("a = 1")
    assert settings.PORT == 1
    file = tmp_path / "settings.toml"
    for port, meanwhile in ((2, None), (3, "a = [half")):
        caplog.clear()
        if meanwhile is None:
            file.unlink()
        else:
            file.write_text(meanwhile)
        revision = source.update({"port": port})
        eventually(lambda: dynaconf_etcd.status(settings).rejected is not None)
        assert dynaconf_etcd.status(settings).rejected.revision == revision
        assert port - 1 == settings.PORT
        # In one step: a file that is empty for a moment is a valid one, and would be believed.
        (tmp_path / "new").write_text(f"a = {port}")
        (tmp_path / "new").replace(file)
        eventually(lambda port=port: (port, port) == (settings.A, settings.PORT))
        eventually(lambda: dynaconf_etcd.status(settings).rejected is None)
        assert dynaconf_etcd.status(settings).revision == revision
        eventually(lambda: told(caplog) == ["config.rejected", "config.restored"])


@pytest.mark.parametrize("by", ["hook", "validator"])
@pytest.mark.parametrize(
    "error",
    [
        lambda n: ConnectionRefusedError(f"attempt {n}"),
        lambda n: OSError(n, "no such device"),
        lambda n: ReadTimeout(f"attempt {n}"),
    ],
    ids=["refused", "os", "client"],
)
def test_a_service_that_is_away(
    etcd_client: Client,
    make_settings: MakeSettings,
    caplog: pytest.LogCaptureFixture,
    by: str,
    error: Callable[[int], Exception],
) -> None:
    source, service = etcd_client.config_source("app"), Service()
    source.save({"port": 1})
    validators = [Validator("PORT", condition=service.is_content)] if by == "validator" else []
    hooks = [service.hook] if by == "hook" else []
    settings = make_settings(post_hooks=hooks, validators=validators)
    assert settings.PORT == 1
    signals: list[int] = []

    def receive(_sender: object, *, revision: int, **_: object) -> None:
        signals.append(revision)

    service.error = error
    with dynaconf_etcd.config_rejected.connected_to(receive):
        revision = source.update({"port": 2})
        eventually(lambda: service.asked >= 4)
        assert settings.PORT == 1
        assert dynaconf_etcd.status(settings).rejected.revision == revision
        service.error = None
        eventually(lambda: settings.PORT == 2)
        eventually(lambda: dynaconf_etcd.status(settings).rejected is None)
    eventually(lambda: told(caplog) == ["config.rejected", "config.restored"])
    assert signals == [revision]


def test_what_cannot_pass_is_not_tried_again(
    etcd_client: Client, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    source, service = etcd_client.config_source("app"), Service()
    source.save({"port": 1, "wrong": 1})
    builds = {"no": 0, "error": 0}

    def count(name: str) -> Callable[[object], dict[str, object]]:
        def hook(_settings: object) -> dict[str, object]:
            builds[name] += 1
            return {}

        return hook

    def fails(value: object) -> bool:
        if value == 2:
            raise KeyError(value)
        return True

    witness = make_settings(post_hooks=[service.hook])
    refuses = make_settings(post_hooks=[count("no")], validators=[Validator("WRONG", lt=2)])
    raises = make_settings(
        post_hooks=[count("error")], validators=[Validator("WRONG", condition=fails)]
    )
    assert witness.PORT == refuses.PORT == raises.PORT == 1
    service.error = lambda n: ConnectionError(str(n))
    builds.update(no=0, error=0)
    source.update({"wrong": 2})
    # They are offered what it is: those who are tried again, are so by now.
    eventually(lambda: service.asked >= 4)
    assert builds == {"no": 1, "error": 1}
    for each in (refuses, raises):
        assert dynaconf_etcd.status(each).rejected is not None
    etcd_client.raw.put(f"{etcd_client.prefix}/config/app/x", "[broken")
    eventually(lambda: told(caplog).count("config.rejected") >= 4)
    assert builds == {"no": 1, "error": 1}


def test_a_passing_cause_that_turns_into_another_is_told(
    etcd_client: Client, make_settings: MakeSettings, caplog: pytest.LogCaptureFixture
) -> None:
    source, service = etcd_client.config_source("app"), Service()
    source.save({"port": 1})
    settings = make_settings(post_hooks=[service.hook])
    assert settings.PORT == 1
    service.error = lambda n: TimeoutError(str(n)) if n < 3 else KeyError(str(n))
    source.update({"port": 2})
    eventually(lambda: "KeyError" in str(dynaconf_etcd.status(settings).rejected))
    assert service.asked == 3
    eventually(lambda: told(caplog) == ["config.rejected", "config.rejected"])
    service.error = None
    source.update({"port": 3})
    eventually(lambda: settings.PORT == 3)
    assert service.asked == 3


def refused(source: ConfigSource, service: Service, make_settings: MakeSettings) -> Dynaconf:
    """Return settings of which an update was refused for a cause that lasts."""
    source.save({"port": 1})
    settings = make_settings(post_hooks=[service.hook])
    assert settings.PORT == 1
    service.error = lambda n: ConnectionError(str(n))
    source.update({"port": 2})
    eventually(lambda: dynaconf_etcd.status(settings).rejected is not None)
    return settings


def test_a_newer_revision_is_not_kept_waiting(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_RETRY_SECONDS", (600.0, 600.0))
    source, service = etcd_client.config_source("app"), Service()
    settings = refused(source, service, make_settings)
    service.error = None
    source.update({"port": 3})
    eventually(lambda: settings.PORT == 3)
    # And one that is refused meanwhile is tried in its own time, not when the other would be.
    service.error = lambda n: ConnectionError(str(n))
    monkeypatch.setattr(live, "_RETRY_SECONDS", (0.05, 0.1))
    source.update({"port": 4})
    eventually(lambda: service.asked >= 4)
    service.error = None
    eventually(lambda: settings.PORT == 4)


def test_nothing_is_tried_after_the_end(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_RETRY_SECONDS", (600.0, 600.0))
    source, service = etcd_client.config_source("app"), Service()
    settings = refused(source, service, make_settings)
    ours = {thread for thread in threading.enumerate() if thread.name.startswith("etcd-dispatch")}
    assert ours
    dynaconf_etcd.close(settings)
    eventually(lambda: not any(thread.is_alive() for thread in ours))
    assert service.asked == 1
