"""Settings of the demo's Django app."""

from __future__ import annotations

import os

SECRET_KEY = "only for the demo"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "etcd_examples.demo_apps.office.urls"
INSTALLED_APPS = ["django_etcd"]
ETCD = {
    "ENDPOINTS": [os.environ["DEMO_ETCD"]],
    "PREFIX": "/demo",
    "SERVICE_NAME": "office",
    "SERVICE_METADATA": {"framework": "django"},
}
