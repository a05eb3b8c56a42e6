"""A Flask app whose settings come from a file and, over it, from etcd, and follow etcd live.

Run by gunicorn. It registers as ``shop`` while it serves.
"""

from __future__ import annotations

import os
from pathlib import Path

from dynaconf import FlaskDynaconf
from flask import Flask

from flask_etcd import Etcd

app = Flask(__name__)
FlaskDynaconf(
    app,
    settings_files=[str(Path(__file__).with_name("shop.toml"))],
    loaders_for_dynaconf=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
    etcd_endpoints_for_dynaconf=[os.environ["DEMO_ETCD"]],
    etcd_prefix_for_dynaconf="/demo",
    etcd_name_for_dynaconf="shop",
)
app.config.update(
    ETCD_ENDPOINTS=[os.environ["DEMO_ETCD"]],
    ETCD_PREFIX="/demo",
    ETCD_SERVICE_NAME="shop",
    ETCD_SERVICE_METADATA={"framework": "flask"},
)
etcd = Etcd(app)


@app.get("/")
def greet() -> dict[str, str]:
    return {"greeting": app.config["GREETING"], "currency": app.config["CURRENCY"]}
