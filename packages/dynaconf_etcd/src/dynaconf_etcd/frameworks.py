"""What Flask's and Django's own copies of the settings need around a swap. On the feed's strand.

Neither framework is imported here: what is not loaded has no copy. Importing this makes Dynaconf's
Flask extension tell which configs it makes.
"""

from __future__ import annotations

import functools
import gc
import logging
import sys
import weakref
from typing import Any, Final

from etcd_core.events import Event, fields

from . import internals
from .internals import Settings
from .steps import Step
from .values import copied

_log = logging.getLogger("etcd_core.dynaconf")


def before_swap(holder: object, step: Step) -> None:
    """Let go of what the new contents lack: with the swap, readers are to miss it at once.

    Args:
        holder: What the program holds.
        step: What is about to change.
    """
    if step.removed_names:
        _forget_in_flask(holder, step)


def _forget_in_flask(holder: object, step: Step) -> None:
    """Remove vanished names from the copy that ``app.config`` falls back to."""
    for config in filter(None, (ref() for ref in _flask_configs.valuerefs())):
        if config.__dict__.get("_settings") is holder:
            for name in step.removed_names:
                dict.pop(config, name, None)


# A config knows its settings, not the other way round. By id: configs cannot be hashed.
_flask_configs: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _remember_flask_configs() -> None:
    """Note every config of Dynaconf's Flask extension, those that are made later too.

    To search for them when they are needed would miss what a server that forks has frozen.
    """
    # Dynaconf imports it with itself, and the first config is made before settings are loaded.
    config_class: Any = getattr(
        sys.modules.get("dynaconf.contrib.flask_dynaconf"), "DynaconfConfig", None
    )
    if config_class is None or not issubclass(config_class, dict):
        return  # Flask is not installed
    make = config_class.__init__

    @functools.wraps(make)
    def made(config: Any, *args: Any, **kwargs: Any) -> None:
        _flask_configs[id(config)] = config
        make(config, *args, **kwargs)

    config_class.__init__ = made
    for each in gc.get_objects():
        if issubclass(type(each), config_class):
            _flask_configs[id(each)] = each


_remember_flask_configs()


def django_defaults(settings: Settings) -> dict[str, object]:
    """Return what Django itself says for settings that these lack; nothing where they are not its.

    Dynaconf's extension asks Django once, and only for what nothing else provided by then: the
    defaults of the others are needed when etcd provides them no more.
    """
    if _ORIGINAL not in internals.defaults(settings):
        return {}
    present = dict.keys(internals.raw_store(settings))
    return {name: copied(value) for name, value in _django_names().items() if name not in present}


_ORIGINAL: Final = "ORIGINAL_SETTINGS_MODULE"
"""The name by which Dynaconf's extension notes whose place the settings have taken."""


def _django_names() -> dict[str, object]:
    known = getattr(sys.modules.get("django.conf.global_settings"), "__dict__", {})
    # Django refuses its default of this one; as a setting, it would be taken for a key.
    return {name: value for name, value in known.items() if name.isupper() and name != "SECRET_KEY"}


def push_to_django(step: Step) -> None:
    """Write what changed into the object that Django's own modules imported."""
    extension = sys.modules.get("dynaconf.contrib.django_dynaconf_v2")
    target = getattr(extension, "django_settings", None)
    if target is None:
        return
    from django.core.signals import setting_changed

    before, after = internals.raw_store(step.before), internals.raw_store(step.after)
    defaults = _django_names()
    tops = {path.partition(".")[0].upper() for path in step.changed | step.added | step.removed}
    for name in sorted(tops):
        if not name.isupper() or (name not in after and name not in before):
            continue
        gone = name not in after
        value = copied(defaults.get(name)) if gone else step.after.get(name)
        if not gone or name in defaults:
            setattr(target, name, value)
        elif hasattr(target, name):
            delattr(target, name)
        for receiver, result in setting_changed.send_robust(
            sender=type(target), setting=name, value=value, enter=not gone
        ):
            if isinstance(result, Exception):
                _log.error(
                    "a receiver of setting_changed failed: %r",
                    receiver,
                    exc_info=result,
                    extra=fields(Event.CALLBACK_FAILED, handler="signal setting_changed"),
                )
