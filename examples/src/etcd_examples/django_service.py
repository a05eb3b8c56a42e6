"""A Django service in one file: registered while it serves, with the health view.

    python -m etcd_core dev
    gunicorn -w 4 etcd_examples.django_service:application

Then ``DJANGO_SETTINGS_MODULE=etcd_examples.django_service python -m django etcd services`` shows
one entry for the four workers. A real project has these settings in its ``settings.py``.
"""

from __future__ import annotations

import os

from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import URLPattern, URLResolver, include, path

import django_etcd

SECRET_KEY = "an example"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = __name__
INSTALLED_APPS = ["django_etcd"]
ETCD = {
    "ENDPOINTS": os.environ.get("ETCD_ENDPOINTS", "127.0.0.1:2379"),
    "PREFIX": os.environ.get("ETCD_PREFIX", "/example"),
    "SERVICE_NAME": "office",
    "SERVICE_METADATA": {"version": "1"},
}


def index(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"service": "office", "pid": os.getpid()})


def shop(request: HttpRequest) -> HttpResponse:
    instances = django_etcd.client().services("shop").instances
    return JsonResponse({"shop": [each.address for each in instances]})


urlpatterns: list[URLPattern | URLResolver] = [
    path("", index),
    path("shop", shop),
    path("etcd/", include("django_etcd.urls")),
]


def __getattr__(name: str) -> WSGIHandler:
    # Built at first use: this module is also the settings, which Django imports before its apps.
    if name != "application":
        raise AttributeError(name)
    from django.core.wsgi import get_wsgi_application

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", __name__)
    return get_wsgi_application()
