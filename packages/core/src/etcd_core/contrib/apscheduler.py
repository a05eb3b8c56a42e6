"""APScheduler 3 in every process of a fleet, of which only the leader runs jobs.

A process that does not lead touches no job; one that takes over goes on from the run times that the
last leader noted in etcd. Everything here runs in the scheduler's own thread.
"""

# mypy: disable-error-code="import-not-found,import-untyped,misc"
# It has no types, and is installed by those who use it.

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from apscheduler.executors.base import BaseExecutor
from apscheduler.job import Job
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_PAUSED, STATE_STOPPED, BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.util import obj_to_ref

from etcd_core.errors import EtcdError, InvalidArgument, NotLeader
from etcd_core.taskguard import find_client

from .ledger import Ledger, Record
from .suspension import Suspension

if TYPE_CHECKING:
    from etcd_core import Candidate, Term
    from etcd_core.taskguard import ClientSource

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 1.0
_GRACE_SECONDS = 5


class LeaderScheduler(BaseScheduler):
    """What :class:`LeaderBackgroundScheduler` and :class:`LeaderBlockingScheduler` share.

    Jobs in a memory store must be added alike in every process and are told apart by their id,
    which is the function's name where none is given. A run is noted in etcd before it starts, so
    it never starts twice; a run that the leader's end interrupted is not repeated. A takeover runs
    what became due meanwhile as APScheduler runs any misfire; ``misfire_grace_time`` is ``ttl``
    plus 5 seconds unless you set it, so that a takeover is within it. While etcd cannot be reached
    no process runs a job.

    Jobs in another store may be shared by all processes, since only the leader looks at them.

    Args:
        gconfig: As APScheduler's.
        election: The name under which the processes compete.
        client: A client, or a function that gives one; left out, what
            :func:`~etcd_core.set_default_client` was given.
        ttl: Seconds after which another process leads if this one dies.
        **options: As APScheduler's.
    """

    def __init__(
        self,
        gconfig: Mapping[str, object] | None = None,
        *,
        election: str = "apscheduler",
        client: ClientSource | None = None,
        ttl: float = 15.0,
        **options: object,
    ) -> None:
        self._election_name = election
        self._client_source = client
        self._ttl = ttl
        self._candidate: Candidate | None = None
        self._candidate_lock = threading.Lock()
        self._ledger: Ledger | None = None
        self._term: Term | None = None
        self._noted: dict[str, Record] = {}
        self._suspension = Suspension("apscheduler")
        super().__init__({} if gconfig is None else gconfig, **options)

    @property
    def term(self) -> Term | None:
        """The term under which this process runs jobs, or None while it does not lead."""
        candidate = self._candidate
        return None if candidate is None else candidate.term

    def add_job(
        self,
        func: Callable[..., object] | str,
        trigger: object = None,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        id: str | None = None,
        *rest: object,
        **options: object,
    ) -> Job:
        """Add a job, as APScheduler's ``add_job``.

        Raises:
            InvalidArgument: A job of a memory store has neither an id nor a function with a name.
        """
        if id is None and self._in_memory(str(options.get("jobstore", "default"))):
            id = _name_of(func)
        return super().add_job(func, trigger, args, kwargs, id, *rest, **options)

    def shutdown(self, *args: object, **kwargs: object) -> None:
        """Stop, as APScheduler's ``shutdown``, and resign."""
        try:
            super().shutdown(*args, **kwargs)
        finally:
            with self._candidate_lock:
                candidate, self._candidate, self._term = self._candidate, None, None
            if candidate is not None:
                candidate.close()

    def _configure(self, config: dict[str, object]) -> None:
        defaults = config.get("job_defaults")
        given = defaults if isinstance(defaults, Mapping) else {}
        grace = math.ceil(self._ttl) + _GRACE_SECONDS
        config["job_defaults"] = {"misfire_grace_time": grace, **given}
        super()._configure(config)

    def _process_jobs(self) -> float | None:
        if self.state == STATE_PAUSED:
            return None
        try:
            candidate = self._candidacy()
            if candidate is None:
                return None
            term = candidate.term
            if term is None:
                self._term = None
                self._suspension.forget()
                return _POLL_SECONDS
            self._take_over(term)
            self._note_due(term)
        except EtcdError as exc:
            # The jobs in memory may be ahead of what is noted: begin again from the notes.
            self._term = None
            self._suspension.begin(self._election_name, exc)
            return _RETRY_SECONDS
        self._suspension.end(self._election_name)
        delay = self._run_due_jobs()
        # Not for ever: another process may have added a job to a shared store.
        return self._ttl if delay is None else min(delay, self._ttl)

    def _run_due_jobs(self) -> float | None:
        try:
            delay: float | None = super()._process_jobs()
        except JobLookupError:
            # Shut down meanwhile by another thread: APScheduler then looks for a job that has run
            # for the last time among those that are not added yet.
            if self.state != STATE_STOPPED:
                raise
            return None
        return delay

    def _lookup_executor(self, alias: str) -> _NotingExecutor:
        return _NotingExecutor(super()._lookup_executor(alias), self._note)

    def _candidacy(self) -> Candidate | None:
        """Return the candidacy, begun if there is none; None once the scheduler is shut down."""
        if self._candidate is None and self.state != STATE_STOPPED:
            client = find_client(self._client_source, "apscheduler")
            with self._candidate_lock:
                # The blocking one goes through its jobs once more as it is shut down.
                if self.state != STATE_STOPPED:
                    self._ledger = Ledger(client, self._election_name)
                    self._candidate = client.candidate(self._election_name, ttl=self._ttl)
        return self._candidate

    # -- jobs in memory ------------------------------------------------------------------------

    def _in_memory(self, alias: str) -> bool:
        # Stores that are configured exist by now; APScheduler's default is one in memory.
        return isinstance(self._jobstores.get(alias), (MemoryJobStore, type(None)))

    def _jobs_in_memory(self) -> list[tuple[str, Job]]:
        with self._jobstores_lock:
            return [
                (alias, job)
                for alias, store in self._jobstores.items()
                if isinstance(store, MemoryJobStore)
                for job in store.get_all_jobs()
            ]

    def _take_over(self, term: Term) -> None:
        """Set each job to the run after the last noted one, once per term."""
        if self._ledger is None:
            raise NotLeader("the scheduler is shut down")
        if self._term is not None and self._term.token == term.token:
            return
        records = self._ledger.load()
        self._noted = {}
        for alias, job in self._jobs_in_memory():
            record = records.get(job.id)
            if record is not None:
                self._noted[job.id] = record
                self._restore(alias, job, record)
        self._term = term

    def _restore(self, alias: str, job: Job, record: Record) -> None:
        due = record.last_run.astimezone(self.timezone)
        # A count of 0 is a job that has not run: what is noted is when it is to run first.
        if record.count > 0:
            due = job.trigger.get_next_fire_time(due, due)
        if due is None:
            self.remove_job(job.id, alias)
        elif job.next_run_time is not None:
            with self._jobstores_lock:
                job._modify(next_run_time=due)
                self._jobstores[alias].update_job(job)

    def _note_due(self, term: Term) -> None:
        """Note what the next pass will start, and when a new job starts first."""
        now = datetime.now(self.timezone)
        for _, job in self._jobs_in_memory():
            if job.next_run_time is None:
                continue
            if job.next_run_time <= now:
                self._note(job, job._get_run_times(now)[-1])
            elif job.id not in self._noted:
                self._write(term, job.id, Record(job.next_run_time))

    def _note(self, job: Job, run_time: datetime) -> None:
        """Note a run before it starts, or make sure that it is noted.

        Raises:
            NotLeader: Another process leads by now.
            EtcdError: etcd cannot be reached or refused.
        """
        term = self._term
        if term is None or term.remaining() <= 0:
            raise NotLeader("the leadership was lost")
        if not self._in_memory(job._jobstore_alias):
            return
        noted = self._noted.get(job.id, Record(run_time))
        if noted.count == 0 or noted.last_run < run_time:
            self._write(term, job.id, Record(run_time, noted.count + 1))

    def _write(self, term: Term, job_id: str, record: Record) -> None:
        if self._ledger is None:
            raise NotLeader("the scheduler is shut down")
        self._ledger.write(term, job_id, record)
        self._noted[job_id] = record


class _NotingExecutor:
    """An executor that starts noted runs only: one may have become due since they were noted."""

    def __init__(self, executor: BaseExecutor, note: Callable[[Job, datetime], None]) -> None:
        self._executor = executor
        self._note = note

    def submit_job(self, job: Job, run_times: list[datetime]) -> None:
        """Start a job; what this raises, APScheduler logs."""
        self._note(job, run_times[-1])
        self._executor.submit_job(job, run_times)

    def shutdown(self, wait: bool = True) -> None:
        """Shut the executor down."""
        self._executor.shutdown(wait)


class LeaderBackgroundScheduler(LeaderScheduler, BackgroundScheduler):
    """APScheduler's ``BackgroundScheduler``, running jobs in the leader only."""


class LeaderBlockingScheduler(LeaderScheduler, BlockingScheduler):
    """APScheduler's ``BlockingScheduler``, running jobs in the leader only."""


def _name_of(func: Callable[..., object] | str) -> str:
    try:
        name: str = func if isinstance(func, str) else obj_to_ref(func)
    except (TypeError, ValueError, AttributeError) as exc:
        raise InvalidArgument(f"apscheduler: give the job of {func!r} an id: {exc}") from exc
    return name
