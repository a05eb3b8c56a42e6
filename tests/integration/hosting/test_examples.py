"""The example services, under gunicorn."""

from __future__ import annotations

import json

import pytest

from etcd_core.testing import eventually
from serving import PATIENCE, Registry, Start

pytestmark = pytest.mark.timeout(180)


def test_examples_find_each_other(registry: Registry, start: Start) -> None:
    env = {"ETCD_ENDPOINTS": registry.endpoint, "ETCD_PREFIX": registry.prefix}
    gunicorn = "-m gunicorn -b 127.0.0.1:PORT"
    shop = start(*gunicorn.split(), "etcd_examples.flask_service:create_app()", **env)
    django = {**env, "DJANGO_SETTINGS_MODULE": "etcd_examples.django_service"}
    office = start(*gunicorn.split(), "etcd_examples.django_service:application", **django)
    shop.wait_serving()
    office.wait_serving()
    registry.wait_for(f"127.0.0.1:{shop.port}")
    found = {"office": f"127.0.0.1:{office.port}"}
    eventually(lambda: json.loads(shop.get("/office")) == found, PATIENCE, message="office found")
    listed = {"shop": [f"127.0.0.1:{shop.port}"]}
    eventually(lambda: json.loads(office.get("/shop")) == listed, PATIENCE, message="shop found")
    # 503 from a worker that is not registered yet.
    health = eventually(lambda: json.loads(office.get("/etcd/health")), PATIENCE, message="healthy")
    assert health["registration"]["name"] == "office"
    assert office.stop() == 0
    assert shop.stop() == 0
    registry.wait_for()
