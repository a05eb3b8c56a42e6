"""FlaskDynaconf: ``app.config`` is live, in the process and under gunicorn's forks."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from dynaconf import Dynaconf, FlaskDynaconf
from flask import Flask

import dynaconf_etcd
from dynaconf_etcd import frameworks
from etcd_core import Client
from etcd_core.testing import EtcdServer, eventually

MakeSettings = Callable[..., Dynaconf]


@pytest.mark.parametrize("given", [True, False])
def test_app_config_is_live(etcd_client: Client, make_settings: MakeSettings, given: bool) -> None:
    source = etcd_client.config_source("app")
    source.save({"title": "one", "gone": 1, "secret_key": "s1", "table": {"a": 1}})
    app = Flask("app")
    if given:
        settings = make_settings("only_file = 1")
        FlaskDynaconf(app, dynaconf_instance=settings)
    else:
        made: list[Dynaconf] = []

        def through_flask(**options: object) -> Dynaconf:
            FlaskDynaconf(app, ENVIRONMENTS=False, **options)
            made.append(app.dynaconf)
            return app.dynaconf

        settings = make_settings("only_file = 1", factory=through_flask)
    config = app.config
    assert (config["TITLE"], config.TITLE, config.get("GONE"), app.secret_key) == (
        "one",
        "one",
        1,
        "s1",
    )
    assert config["ONLY_FILE"] == 1
    assert config["TESTING"] is False

    @app.get("/")
    def index() -> str:
        from flask import current_app, render_template_string

        return render_template_string("{{ config.TITLE }}") + str(current_app.config["TABLE"]["a"])

    config["MINE"] = "at run time"
    source.update({"title": "two", "secret_key": "s2", "table.a": 2}, delete=["gone"])
    eventually(lambda: config["TITLE"] == "two")
    assert app.test_client().get("/").text == "two2"
    assert app.secret_key == "s2"
    assert "GONE" not in {**config}
    assert "GONE" not in dict(config.items())
    assert config.get("GONE") is None
    assert config.get("GONE", 3) == 3
    with pytest.raises(KeyError):
        config["GONE"]
    assert config["MINE"] == "at run time"
    assert config["TESTING"] is False
    assert settings.TITLE == "two"


def test_a_frozen_config_forgets_too(etcd_client: Client, make_settings: MakeSettings) -> None:
    source = etcd_client.config_source("app")
    source.save({"gone": 1, "kept": 1})
    app = Flask("app")
    FlaskDynaconf(app, dynaconf_instance=make_settings())
    assert app.config["GONE"] == 1
    gc.freeze()  # as servers do before they fork
    try:
        source.update({}, delete=["gone"])
        eventually(lambda: app.config.get("GONE") is None)
        assert app.config["KEPT"] == 1
    finally:
        gc.unfreeze()


def test_a_config_is_let_go() -> None:
    app = Flask("app")
    FlaskDynaconf(app, dynaconf_instance=Dynaconf(loaders=[]))
    assert any(each is app.config for each in frameworks._flask_configs.values())
    held = weakref.ref(app.config)
    app.config = None
    gc.collect()
    assert held() is None


def test_flask_switches_environments_on(
    etcd_client: Client, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_ENV", "production")
    etcd_client.config_source("app").save({"title": "all", "name": "all"})
    etcd_client.config_source("app.production").save({"title": "production"})
    app = Flask("app")

    def through_flask(**options: object) -> Dynaconf:
        FlaskDynaconf(app, **options)
        return app.dynaconf

    settings = make_settings(
        "plain = 1\n[default]\nin_default = 1\n[production]\nin_production = 1\n",
        factory=through_flask,
    )
    assert (settings.TITLE, settings.NAME) == ("production", "all")
    assert (settings.IN_DEFAULT, settings.IN_PRODUCTION) == (1, 1)
    assert "PLAIN" not in settings
    assert "ETCD" not in app.config


def test_the_short_argument_of_flask(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path
) -> None:
    etcd_client.config_source("app").save({"title": "one"})
    app = Flask("app")
    table = {
        "endpoints": [etcd_server.endpoint],
        "prefix": etcd_client.prefix,
        "name": "app",
        "watch": False,
    }
    FlaskDynaconf(app, loaders=["dynaconf_etcd.loader"], root_path=str(tmp_path), etcd=table)
    assert app.config["TITLE"] == "one"
    assert "ETCD" not in app.config
    dynaconf_etcd.close(app.dynaconf)
