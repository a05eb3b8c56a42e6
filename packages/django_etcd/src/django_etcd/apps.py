"""The Django app: hooks into the handlers, which only a server builds. No I/O, no thread."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register
from django.core.signals import setting_changed

from etcd_core.tasks import set_default_client

from . import _handlers, _state
from .checks import check_setting


class DjangoEtcdConfig(AppConfig):
    """Registers the service when the process turns out to serve."""

    name = "django_etcd"
    verbose_name = "etcd"
    default_auto_field = "django.db.models.AutoField"

    def ready(self) -> None:
        """Hook in; a management command does nothing more than this."""
        set_default_client(lambda: _state.current_host().client)
        setting_changed.connect(_on_setting_changed, dispatch_uid="django_etcd")
        register(check_setting)
        _handlers.hook_in()


def _on_setting_changed(*, setting: str, **_: object) -> None:
    if setting == "ETCD":
        _state.forget_host()
