"""What task brokers do with guarded functions, told without importing any of them.

A broker gives each message to one process, so a task that is skipped there is dropped. Where a
guard can see that when decorating, it refuses; these functions see the rest. They run in the
threads of the tasks, and in the main thread of a Celery worker that starts.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys

from .events import Event, fields

_log = logging.getLogger("etcd_core.tasks")

# Their task objects are more than functions, and a guard around one would hide that.
_BROKERS = ("celery", "dramatiq", "huey", "rq")
_ALL_BROKERS = frozenset(_BROKERS)
_TRANSPARENT = frozenset({"etcd_core", "functools", "contextlib"})
_MARK = "__etcd_drops__"


def broker_of(function: object) -> str | None:
    """Return the name of the task broker whose task object this is."""
    roots = {base.__module__.partition(".")[0] for base in type(function).__mro__}
    return next((broker for broker in _BROKERS if broker in roots), None)


def mark(call: object, refusal: str) -> None:
    """Note on a guarded function that it would drop messages, and have Celery's workers look."""
    setattr(call, _MARK, refusal)
    if "celery" in sys.modules:
        _watch_workers()


def runs_for_celery(function: object) -> bool:
    """Tell whether ``function`` is the body of the message that a Celery worker runs just now."""
    task = getattr(sys.modules.get("celery"), "current_task", None)
    if not task or task.request.called_directly:
        return False
    body = task.run
    while body is not None and body is not function:
        body = getattr(body, "__wrapped__", None)
    return body is function


def calling_broker() -> str | None:
    """Return the broker by which the guarded function was called, if it was by one directly."""
    frame = sys._getframe(1)
    while True:
        root = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if root not in _TRANSPARENT:
            return root if root in _ALL_BROKERS else None
        if frame.f_back is None:
            return None
        frame = frame.f_back


@functools.cache
def _watch_workers() -> None:
    """Have each Celery worker look at its tasks before it takes the first message."""
    signals = importlib.import_module("celery.signals")
    signals.worker_init.connect(_refuse_dropping, weak=False)


def _refuse_dropping(sender: object, **_: object) -> None:
    tasks = getattr(getattr(sender, "app", None), "tasks", {})
    for name, task in tasks.items():
        refusal = getattr(getattr(task, "run", None), _MARK, None)
        if refusal is not None:
            _log.error(
                "the worker does not start: task %s: %s",
                name,
                refusal,
                extra=fields(Event.TASK_REFUSED, task=name, reason=refusal),
            )
            # Celery catches and logs every Exception of a receiver, and would go on.
            raise SystemExit(f"task {name}: {refusal}")
