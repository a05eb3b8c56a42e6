"""Django's system checks for the setting ``ETCD``. They read the files of ``TLS``, nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.core.exceptions import ImproperlyConfigured

from etcd_core.errors import InvalidConfig
from etcd_core.hosting import HostOptions
from etcd_core.hosting.listeners import is_loopback
from etcd_core.hosting.options import OPTIONS

from ._state import read_options

_WHERE = 'The README of django-etcd says under "Options" what each of them takes.'
_AS_TEXT = ("auto", "true", "false")


def check_setting(
    app_configs: Sequence[AppConfig] | None = None, **_: object
) -> list[CheckMessage]:
    """Check the setting ``ETCD``."""
    given = getattr(settings, "ETCD", None)
    if not isinstance(given, Mapping):
        return [
            Error(
                "The setting ETCD is missing or not a dict.",
                hint='Set ETCD = {"ENDPOINTS": ["127.0.0.1:2379"], "SERVICE_NAME": "..."}.',
                id="django_etcd.E001",
            )
        ]
    unknown = [_unknown(str(name)) for name in given if name not in OPTIONS]
    if unknown:
        return unknown
    try:
        options = read_options()
    except ImproperlyConfigured as exc:
        return [Error(str(exc), hint=_WHERE, id="django_etcd.E003")]
    return [*_unreadable(options), *_warnings(options, given.get("REGISTER"))]


def _unknown(name: str) -> CheckMessage:
    close = get_close_matches(name.upper(), OPTIONS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(sorted(OPTIONS))}."
    return Error(f"ETCD has an unknown option {name!r}.", hint=hint, id="django_etcd.E002")


def _unreadable(options: HostOptions) -> list[CheckMessage]:
    tls = options.config.effective_tls
    found: list[CheckMessage] = []
    if tls is None:
        return found
    parts: tuple[Literal["ca", "cert", "key"], ...] = ("ca", "cert", "key")
    for part in parts:
        try:
            tls.read(part)
        except InvalidConfig as exc:
            hint = "Give the path of a PEM file that this user can read, or its bytes."
            found.append(Error(f"ETCD: {exc}", hint=hint, id="django_etcd.E004"))
    return found


def _warnings(options: HostOptions, register: object) -> list[CheckMessage]:
    found: list[CheckMessage] = []
    if isinstance(register, str) and register.lower() not in _AS_TEXT:
        found.append(
            Warning(
                f"ETCD REGISTER is the text {register!r}, which counts as {options.register}.",
                hint='Write "auto" (when this process serves), True (in tests too) or False.',
                id="django_etcd.W003",
            )
        )
    if options.service_address is not None and is_loopback(options.service_address):
        found.append(
            Warning(
                f"ETCD SERVICE_ADDRESS {options.service_address!r} can be reached from this"
                " machine only.",
                hint="Advertise an address that other machines can reach.",
                id="django_etcd.W001",
            )
        )
    if options.config.username is not None and options.config.effective_tls is None:
        found.append(
            Warning(
                "ETCD sends its user name and password unencrypted.",
                hint="Use https:// endpoints, or set TLS.",
                id="django_etcd.W002",
            )
        )
    return found
