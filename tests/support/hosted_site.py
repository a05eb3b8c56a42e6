"""The application that the fault tests serve under gunicorn; its wall clock can be set."""

from __future__ import annotations

import logging
import os

from flask import Flask

from flask_etcd import Etcd
from probes import WallClock

logging.basicConfig()
logging.getLogger("etcd_core").setLevel("INFO")

app = Flask(__name__)
app.config.update(
    ETCD_ENDPOINTS=os.environ["TEST_ENDPOINTS"],
    ETCD_PREFIX=os.environ["TEST_PREFIX"],
    ETCD_SERVICE_NAME=os.environ["TEST_SERVICE"],
    ETCD_SERVICE_TTL=os.environ["TEST_TTL"],
)
if os.environ.get("TEST_PASSWORD"):
    app.config.update(ETCD_USERNAME="root", ETCD_PASSWORD=os.environ["TEST_PASSWORD"])
etcd = Etcd(app)
clock = WallClock()


@app.get("/")
def hello() -> str:
    return "ok"


@app.get("/jump/<int(signed=True):seconds>")
def jump(seconds: int) -> str:
    clock.jump(seconds)
    return "ok"
