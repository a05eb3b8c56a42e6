"""django-etcd's system checks, and what importing the adapters costs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from django.conf import settings

if not settings.configured:
    settings.configure(ETCD={"ENDPOINTS": ["127.0.0.1:2379"]}, INSTALLED_APPS=["django_etcd"])

from django.test import override_settings

from django_etcd.checks import check_setting

GOOD = {"ENDPOINTS": ["10.0.0.1:2379"], "SERVICE_NAME": "shop"}


def found(etcd: object) -> list[str | None]:
    with override_settings(ETCD=etcd):
        return [message.id for message in check_setting()]


@pytest.mark.parametrize(
    ("etcd", "expected"),
    [
        (GOOD, []),
        (None, ["django_etcd.E001"]),
        ("127.0.0.1", ["django_etcd.E001"]),
        ({**GOOD, "SERVICE_NAM": "x", "END": 1}, ["django_etcd.E002", "django_etcd.E002"]),
        ({**GOOD, "ENDPOINTS": ["ftp://x"]}, ["django_etcd.E003"]),
        ({**GOOD, "SERVICE_NAME": "a/b"}, ["django_etcd.E003"]),
        ({**GOOD, "SERVICE_ADDRESS": "localhost:80"}, ["django_etcd.W001"]),
        ({**GOOD, "USERNAME": "app", "PASSWORD": "x"}, ["django_etcd.W002"]),
        ({**GOOD, "USERNAME": "app", "PASSWORD": "x", "TLS": True}, []),
        ({**GOOD, "TLS": {"ca": "/nope"}}, ["django_etcd.E004"]),
        (
            {**GOOD, "TLS": {"cert": "/nope", "key": b"no PEM"}},
            ["django_etcd.E004", "django_etcd.E004"],
        ),
        ({**GOOD, "REGISTER": "sometimes"}, ["django_etcd.E003"]),
        ({**GOOD, "REGISTER": "yes"}, ["django_etcd.W003"]),
        ({**GOOD, "REGISTER": "true"}, []),
        ({**GOOD, "REGISTER": "auto"}, []),
    ],
)
def test_checks(etcd: object, expected: list[str]) -> None:
    assert found(etcd) == expected


def test_a_typo_gets_a_hint() -> None:
    with override_settings(ETCD={**GOOD, "SERVICE_NAM": "x"}):
        (message,) = check_setting()
    assert message.hint == "Did you mean 'SERVICE_NAME'?"


def test_what_is_unreadable_is_named() -> None:
    with override_settings(ETCD={**GOOD, "TLS": {"key": "/nope", "cert": b"-----BEGIN"}}):
        (message,) = check_setting()
    assert message.msg == "ETCD: Tls: cannot read key /nope: No such file or directory"


def test_what_a_text_counts_as_is_said() -> None:
    with override_settings(ETCD={**GOOD, "REGISTER": "yes"}):
        (message,) = check_setting()
    assert "'yes', which counts as True" in message.msg


@pytest.mark.parametrize("module", ["django_etcd", "flask_etcd", "etcd_core.hosting"])
def test_importing_is_cheap(module: str) -> None:
    code = (
        f"import sys, {module};"
        "print([name for name in ('grpc', 'google.protobuf', 'yaml', 'etcd3')"
        " if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
