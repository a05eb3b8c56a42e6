"""What Flask's and Django's own copies of the settings need around a swap. On the feed's strand.

Neither framework is imported here: what is not loaded has no copy.
"""

from __future__ import annotations

import gc
import logging
import sys

from etcd_core.events import Event, fields

from . import internals
from .steps import Step

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
    extension = sys.modules.get("dynaconf.contrib.flask_dynaconf")
    config_class = getattr(extension, "DynaconfConfig", None)
    if config_class is None or "flask" not in sys.modules:
        return
    # A config knows its settings, not the other way round; a name vanishes rarely enough to search.
    for candidate in gc.get_objects():
        if type(candidate) is config_class and candidate.__dict__.get("_settings") is holder:
            for name in step.removed_names:
                dict.pop(candidate, name, None)


def push_to_django(step: Step) -> None:
    """Write what changed into the object that Django's own modules imported."""
    extension = sys.modules.get("dynaconf.contrib.django_dynaconf_v2")
    target = getattr(extension, "django_settings", None)
    if target is None:
        return
    from django.core.signals import setting_changed

    before, after = internals.raw_store(step.before), internals.raw_store(step.after)
    tops = {path.partition(".")[0].upper() for path in step.changed | step.added | step.removed}
    for name in sorted(tops):
        if not name.isupper() or (name not in after and name not in before):
            continue
        gone = name not in after
        value = None if gone else step.after.get(name)
        if gone:
            if hasattr(target, name):
                delattr(target, name)
        else:
            setattr(target, name, value)
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
