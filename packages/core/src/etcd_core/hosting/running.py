"""Defers work to the processes that run, past every fork. Owns the hooks into gunicorn and Celery.

No thread: a hook runs in the main thread of the process it is for. A child that a worker or a
parent forks for other reasons gets nothing.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial

from ..events import Event, fields
from . import process
from .process import GunicornWorker, Role

_log = logging.getLogger("etcd_core.hosting")

Starter = Callable[[GunicornWorker | None], object]

_for_children: list[Starter] = []
_worker_starters: dict[int, list[Starter]] = {}


def when_running(fn: Callable[[], object]) -> None:
    """Call ``fn()`` in every process that runs the application, once it is past its forks.

    At once in an ordinary process. Under gunicorn in each worker when it begins to serve, with
    preload too; under Celery in each process of the pool. Never in a parent that only starts the
    serving process (a reloader, gunicorn's arbiter, ``gunicorn --check-config``). ``fn`` may start
    threads and open connections. Thread-safe; does not block but for what ``fn`` does.
    """
    place = process.here()
    if place.role is Role.SERVING_WORKER:
        fn()
    elif place.role is Role.PLAIN:
        if not process.expects_reloader():
            fn()
    else:
        defer(place, lambda worker: fn())


def defer(place: process.Place, start: Starter) -> None:
    """Have ``start(worker)`` called where this process's role says. Internal."""
    if place.role is Role.WORKER and place.worker is not None:
        _at_run(place.worker, start)
    elif place.role is Role.SERVING_WORKER:
        start(place.worker)
    elif place.role is Role.ARBITER:
        _for_children.append(start)
    elif place.role is Role.CELERY:
        _in_celery(start)


def _at_run(worker: GunicornWorker, start: Starter) -> None:
    """Call ``start`` just before the worker's main loop: after signals, privileges, gevent."""
    starters = _worker_starters.get(id(worker))
    if starters is not None:
        starters.append(start)
        return
    starters = _worker_starters[id(worker)] = [start]
    run = worker.run

    def run_with_starters() -> object:
        for each in starters:
            _call(partial(each, worker))
        return run()

    worker.run = run_with_starters


def _in_celery(start: Starter) -> None:
    if "celery.signals" not in sys.modules:
        return
    from celery import signals  # type: ignore[import-not-found,import-untyped,unused-ignore]

    def in_pool_process(**_: object) -> None:
        _call(partial(start, None))

    def in_main_process(sender: object, **_: object) -> None:
        # Threads and green pools run the tasks in this very process and send no process signal.
        pool = type(getattr(sender, "pool", None)).__module__
        if pool not in ("celery.concurrency.prefork", "celery.concurrency.solo"):
            _call(partial(start, None))

    signals.worker_process_init.connect(in_pool_process, weak=False)
    signals.worker_ready.connect(in_main_process, weak=False)


def _call(action: Callable[[], object]) -> None:
    try:
        action()
    except Exception:
        _log.exception(
            "starting in a serving process failed",
            extra=fields(Event.CALLBACK_FAILED, handler="when_running"),
        )


def _after_fork_in_child() -> None:
    starters = [*_for_children]
    _for_children.clear()
    _worker_starters.clear()
    worker = process.spawned_worker() if starters else None
    if worker is not None:
        for start in starters:
            _at_run(worker, start)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
