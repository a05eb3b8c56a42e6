"""A Flask service: registered while it serves, calls another, and runs a task on one process.

    python -m etcd_core dev
    gunicorn -w 4 "etcd_examples.flask_service:create_app()"

Then ``flask --app etcd_examples.flask_service etcd services`` shows one entry for the four workers.
"""

from __future__ import annotations

import os

from flask import Flask

from etcd_core import NoInstances, current_term
from flask_etcd import Etcd

etcd = Etcd()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.update(
        ETCD_ENDPOINTS=os.environ.get("ETCD_ENDPOINTS", "127.0.0.1:2379"),
        ETCD_PREFIX=os.environ.get("ETCD_PREFIX", "/example"),
        ETCD_SERVICE_NAME="shop",
        ETCD_SERVICE_METADATA={"version": "1"},
    )
    etcd.init_app(app)
    app.register_blueprint(etcd.health_blueprint(), url_prefix="/etcd")

    @app.get("/")
    def index() -> dict[str, object]:
        return {"service": "shop", "pid": os.getpid()}

    @app.get("/office")
    def office() -> tuple[dict[str, object], int]:
        try:
            return {"office": etcd.services("office").pick().address}, 200
        except NoInstances:
            return {"office": None}, 503

    @app.post("/report")
    def report() -> dict[str, object]:
        # Every worker may be asked; only the leader among all of them does it.
        return {"written_under": write_report()}

    return app


@etcd.leader_only("nightly-report")
def write_report() -> int:
    return current_term().token
