"""Celery beat on several nodes: one sends, another takes over, no due entry is lost or doubled.

Start each with ``celery -A app beat -S etcd_core.contrib.celery:LeaderScheduler``. Everything here
runs in beat's own thread; the candidacy has its thread.
"""

# mypy: disable-error-code="import-not-found,import-untyped,misc"
# It has no types, and is installed by those who use it.

from __future__ import annotations

import logging
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType
from typing import TYPE_CHECKING

from celery.beat import ScheduleEntry, Scheduler, SchedulingError
from kombu.exceptions import OperationalError

from etcd_core.errors import EtcdError, NotLeader
from etcd_core.events import Event, fields
from etcd_core.taskguard import find_client

from .ledger import Ledger, Record
from .suspension import Suspension

if TYPE_CHECKING:
    from etcd_core import Candidate, Client, Term

_log = logging.getLogger("etcd_core.tasks")

_WAIT_SECONDS = 0.5
_RETRY_SECONDS = 1.0


class LeaderScheduler(Scheduler):
    """A beat scheduler that sends while its process leads.

    Reads these settings of the app, all optional: ``etcd_client`` (a client, or a function that
    gives one; left out, what :func:`~etcd_core.set_default_client` was given), ``etcd_beat_name``
    (the election's and the schedule's name, ``"celery-beat"``) and ``etcd_beat_ttl`` (seconds after
    which another beat takes over from one that died, 15).

    The last run of each entry is kept in etcd. An entry is noted there as about to be sent, sent,
    and noted as sent. Where a beat dies between the first and the last note, the next one sends the
    entry again under the same task id, since it cannot know: that is the only moment at which a
    message can be in the queue twice. After a gap an overdue entry is sent once, beside one
    that was about to be sent when the gap began.

    While etcd cannot be reached no beat sends, and what became due is sent afterwards, once.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Take what beat gives. No I/O: beat makes one only to show it, too."""
        self._candidate: Candidate | None = None
        self._ledger: Ledger | None = None
        self._term: Term | None = None
        self._suspension = Suspension("celery beat")
        super().__init__(*args, **kwargs)

    @property
    def election_name(self) -> str:
        """The name under which beats compete."""
        return str(self.app.conf.get("etcd_beat_name") or "celery-beat")

    @property
    def info(self) -> str:
        """The line beat shows when it starts."""
        return f"    . leader of -> {self.election_name}"

    def tick(self, *args: object, **kwargs: object) -> float:
        """Send what is due, if this process leads; else wait a little for the leadership."""
        candidate = self._candidacy()
        if not candidate.wait(_WAIT_SECONDS):
            self._term = None
            self._suspension.forget()
            return 0.0
        try:
            with _uninterrupted():
                self._take_over(candidate)
                delay: float = super().tick(*args, **kwargs)
        except (EtcdError, _BrokerDown) as exc:
            # What is in memory may be ahead of what was sent: begin again from the records.
            self._term = None
            self._suspension.begin(self.election_name, exc)
            return _RETRY_SECONDS
        self._suspension.end(self.election_name)
        return delay

    def apply_entry(self, entry: ScheduleEntry, producer: object = None) -> None:
        """Send a due entry between two notes in etcd.

        Raises:
            NotLeader: Another beat leads by now; nothing was sent.
            EtcdError: etcd cannot be reached; nothing was sent, or it is not noted.
        """
        following = self.schedule[entry.name]
        record = Record(following.last_run_at, following.total_run_count, uuid.uuid4().hex)
        self._note(entry.name, record)
        self._send(entry, record)

    def close(self) -> None:
        """Release the broker's connection and resign."""
        try:
            super().close()
        finally:
            candidate, self._candidate, self._term = self._candidate, None, None
            if candidate is not None:
                candidate.close()

    def _candidacy(self) -> Candidate:
        if self._candidate is None:
            client: Client = find_client(self.app.conf.get("etcd_client"), "celery beat")
            ttl = self.app.conf.get("etcd_beat_ttl")
            self._ledger = Ledger(client, self.election_name)
            self._candidate = client.candidate(self.election_name, ttl=ttl)
        return self._candidate

    def _take_over(self, candidate: Candidate) -> None:
        """Go on where the last leader ended, once per term."""
        term = candidate.term
        if term is None:
            raise NotLeader("the leadership was lost")
        if self._term is not None and self._term.token == term.token:
            return
        if self._ledger is None:
            raise NotLeader("the scheduler is closed")
        self._term = term
        records = self._ledger.load()
        for entry in list(self.schedule.values()):
            self._restore(entry, records.get(entry.name))
        self._heap = None

    def _restore(self, entry: ScheduleEntry, record: Record | None) -> None:
        if record is None:
            # Noted before its first run, so that a takeover does not put that off.
            self._note(entry.name, Record(entry.last_run_at, entry.total_run_count))
            return
        entry.last_run_at = record.last_run
        entry.total_run_count = record.count
        if record.pending is not None:
            self._send(entry, record)

    def _send(self, entry: ScheduleEntry, record: Record) -> None:
        if self._term is None or self._term.remaining() <= 0:
            raise NotLeader("the leadership was lost")
        options = {**entry.options, "task_id": record.pending}
        message = self.Entry(**dict(entry, options=options))
        _log.info(
            "celery beat: sending due task %s (%s)",
            entry.name,
            entry.task,
            extra=fields(Event.TASK_SENT, entry=entry.name, task=entry.task),
        )
        try:
            self.apply_async(message, producer=self.producer, advance=False)
        except SchedulingError as exc:
            if isinstance(exc.__context__, (OperationalError, OSError)):
                raise _BrokerDown(str(exc)) from exc
            # It can never be sent as it is; the others must not wait for it.
            _log.exception(
                "celery beat: %s is not sent",
                entry.name,
                extra=fields(Event.TASK_NOT_SENT, entry=entry.name, task=entry.task),
            )
        self._note(entry.name, replace(record, pending=None))

    def _note(self, name: str, record: Record) -> None:
        if self._ledger is None or self._term is None:
            raise NotLeader("the leadership was lost")
        self._ledger.write(self._term, name, record)


class _BrokerDown(Exception):
    """A message could not be sent now; it stays noted as about to be sent."""


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold beat's end back while a request or a message may be on its way.

    Beat's handler closes the scheduler and raises SystemExit wherever the main thread is. Amid a
    gRPC call that leaves gRPC's locks held, or is swallowed, and the process never ends; amid a
    send it is sent again by the next beat. Who signals twice does not want to wait.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    late: list[int] = []
    handlers = {
        number: handler
        for number in (signal.SIGINT, signal.SIGTERM)
        if callable(handler := signal.getsignal(number))
    }

    def hold(number: int, frame: FrameType | None) -> None:
        late.append(number)
        if len(late) > 1:
            handlers[signal.Signals(number)](number, frame)

    for number in handlers:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if len(late) == 1:
            signal.raise_signal(late[0])
