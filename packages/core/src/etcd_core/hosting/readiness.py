"""Asks an application whether it is ready to be called. Owns the thread ``etcd-ready``.

The question is the user's code and may hang, so nobody waits for its answer: the thread of the
service host looks at the last one, and at how long the present question has been open.
"""

from __future__ import annotations

import importlib
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from ..events import Event, fields

_log = logging.getLogger("etcd_core.hosting")

Question = Callable[[], object]
Context = Callable[[], AbstractContextManager[object]]


class Readiness:
    """The answers to one question, asked again and again.

    Args:
        service: For the log.
        question: Returns whether the application is ready, or the dotted path of such a function.
        interval: Seconds between an answer and the next question, and after which a question
            without an answer counts as a no.
        context: What the question is asked in.
        on_answer: Called in the thread after every answer.
    """

    def __init__(
        self,
        service: str,
        question: Question | str,
        interval: float,
        context: Context,
        on_answer: Callable[[], object],
    ) -> None:
        self.interval = interval
        self._service = service
        self._question = question
        self._context = context
        self._on_answer = on_answer
        self._asked_at: float | None = None
        # Read by another thread, so replaced as a whole.
        self._answer: tuple[bool | None, BaseException | None] = (None, None)
        self._told: bool | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="etcd-ready", daemon=True)

    # -- the service host's thread -------------------------------------------------------------

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more. Does not wait for a question that is open."""
        self._stopped.set()

    def look(self) -> bool:
        """Return whether the application is ready as far as is known; tell when that changes."""
        asked_at = self._asked_at
        answer, error = self._answer
        if asked_at is not None and time.monotonic() - asked_at >= self.interval:
            answer, error = False, TimeoutError(f"no answer within {self.interval:g} s")
        if answer is not self._told:
            self._tell(answer, error)
        return answer is True

    def _tell(self, answer: bool | None, error: BaseException | None) -> None:
        if answer:
            _log.info(
                "%s is ready",
                self._service,
                extra=fields(Event.HOSTING_READY, service=self._service),
            )
        else:
            reason = "READY says so" if error is None else f"READY: {error!r}"
            _log.warning(
                "%s is not ready, so this process does not register it: %s",
                self._service,
                reason,
                extra=fields(Event.HOSTING_NOT_READY, service=self._service, reason=reason),
            )
        self._told = answer

    # -- the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._asked_at = time.monotonic()
            self._answer = self._ask()
            self._asked_at = None
            self._on_answer()
            self._stopped.wait(self.interval)

    def _ask(self) -> tuple[bool, BaseException | None]:
        try:
            if isinstance(self._question, str):
                self._question = _function_at(self._question)
            with self._context():
                return bool(self._question()), None
        except (Exception, SystemExit) as exc:  # the user's code
            _log.debug("%s: READY failed", self._service, exc_info=True)
            return False, exc.with_traceback(None)


def _function_at(path: str) -> Question:
    module, _, name = path.replace(":", ".").rpartition(".")
    question: Question = getattr(importlib.import_module(module), name)
    return question
