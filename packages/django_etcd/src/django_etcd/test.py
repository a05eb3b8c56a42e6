"""Helpers for a project's own tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.test.utils import override_settings

from ._state import current_host


@contextmanager
def override_etcd(**options: object) -> Iterator[None]:
    """Change options of the setting ``ETCD`` for a ``with`` block or a decorated test.

    Nothing is registered inside, unless ``REGISTER`` is given. The client of the block is closed
    when it ends.

    Args:
        options: Option name to value, such as ``PREFIX="/test/1"``.
    """
    changed = {**getattr(settings, "ETCD", {}), "REGISTER": False, **options}
    with override_settings(ETCD=changed):
        try:
            yield
        finally:
            current_host().close()
