"""Flask over live settings: ``flask --app etcd_examples.dynaconf_flask run``."""

from __future__ import annotations

from dynaconf import FlaskDynaconf
from flask import Flask


def create_app() -> Flask:
    """Return the application; ``app.config`` follows etcd."""
    app = Flask(__name__)
    FlaskDynaconf(
        app,
        ENVIRONMENTS=False,
        LOADERS_FOR_DYNACONF=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
        ETCD_FOR_DYNACONF={"name": "example-flask"},
        GREETING="hello from the code",
    )

    @app.get("/")
    def index() -> str:
        return str(app.config["GREETING"])

    return app
