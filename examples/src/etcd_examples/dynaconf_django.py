"""Django over live settings, in one file: ``python -m etcd_examples.dynaconf_django runserver``."""

from __future__ import annotations

import os
import sys

import dynaconf
from django.http import HttpRequest, HttpResponse
from django.urls import path

ROOT_URLCONF = __name__
SECRET_KEY = "only-for-the-example"
ALLOWED_HOSTS = ["127.0.0.1", "testserver"]
GREETING = "hello from the code"


def index(request: HttpRequest) -> HttpResponse:
    """Answer with a live setting."""
    from django.conf import settings

    return HttpResponse(settings.GREETING)


urlpatterns = [path("", index)]

if os.environ.get("DJANGO_SETTINGS_MODULE") == __name__:
    settings = dynaconf.DjangoDynaconf(
        __name__,
        ENVIRONMENTS_FOR_DYNACONF=False,
        LOADERS_FOR_DYNACONF=["dynaconf_etcd.loader", "dynaconf.loaders.env_loader"],
        ETCD_FOR_DYNACONF={"name": "example-django"},
    )


def main() -> None:
    """Run a command of Django."""
    from django.core.management import execute_from_command_line

    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "etcd_examples.dynaconf_django")
    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
