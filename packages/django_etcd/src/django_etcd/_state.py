"""The one service host of a Django process, made from the setting ``ETCD`` at first use."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import close_old_connections

from etcd_core.errors import InvalidConfig
from etcd_core.hosting import HostOptions, ServiceHost

_host: ServiceHost | None = None


def current_host() -> ServiceHost:
    """Return the host; no I/O.

    Raises:
        ImproperlyConfigured: The setting ``ETCD`` is missing or unusable.
    """
    global _host
    if _host is None:
        _host = ServiceHost(
            read_options(), may_serve=is_not_a_test, ready_context=_usable_connections
        )
    return _host


def made_host() -> ServiceHost | None:
    """Return the host if anything has needed it yet."""
    return _host


def forget_host() -> None:
    """Make the next use read the setting again."""
    global _host
    _host = None


def read_options() -> HostOptions:
    """Return the setting ``ETCD``, parsed.

    Raises:
        ImproperlyConfigured: It is missing or unusable.
    """
    given = getattr(settings, "ETCD", None)
    if not isinstance(given, Mapping):
        raise ImproperlyConfigured('The setting ETCD must be a dict with at least "ENDPOINTS".')
    try:
        return HostOptions.parse(given, label="ETCD: ")
    except InvalidConfig as exc:
        raise ImproperlyConfigured(str(exc)) from exc


@contextmanager
def _usable_connections() -> Iterator[None]:
    """Treat the database connections around the option READY as Django does around a request."""
    close_old_connections()
    try:
        yield
    finally:
        close_old_connections()


def is_not_a_test() -> bool:
    """Tell whether this is no test run: a live test server is not the service."""
    utils = sys.modules.get("django.test.utils")
    return not hasattr(getattr(utils, "_TestState", None), "saved_data")


def in_live_test_server() -> bool:
    """Tell whether the calling thread is Django's live test server."""
    return type(threading.current_thread()).__name__ == "LiveServerThread"
