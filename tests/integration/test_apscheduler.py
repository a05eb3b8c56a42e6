"""APScheduler 3 in several processes of which only the leader runs jobs.

Skipped where APScheduler is not installed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import pytest

import fenced_counter
from etcd_core import Client, InvalidArgument
from etcd_core.testing import EtcdServer, FaultProxy, eventually

pytest.importorskip("apscheduler", reason="APScheduler is not installed")
from apscheduler.schedulers.base import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    STATE_STOPPED,
    BaseScheduler,
)

from etcd_core.contrib import apscheduler as contrib
from etcd_core.contrib.apscheduler import LeaderBackgroundScheduler, LeaderBlockingScheduler
from fenced_counter import FencedCounter
from takeovers import CLEAN_EXIT, CRASH, HOLD, STOP, Takeovers

TTL = 2
INTERVAL = 0.25

MakeScheduler = Callable[..., LeaderBackgroundScheduler]
Runs = list[tuple[str, float]]
EXECUTED = 2**12


@pytest.fixture
def takeovers(request: pytest.FixtureRequest) -> Takeovers:
    return Takeovers(request.node, "APScheduler", TTL)


@pytest.fixture
def make_scheduler(
    etcd_server: EtcdServer, etcd_client: Client, proxy: FaultProxy
) -> Iterator[MakeScheduler]:
    """Schedulers, each with a client of its own, like a process of its own.

    Closed before ``proxy`` is: a client that cannot reach etcd takes its time.
    """
    with ExitStack() as stack:

        def make(
            endpoint: str | None = None, ttl: float = TTL, **options: str
        ) -> LeaderBackgroundScheduler:
            client = Client(
                endpoints=[endpoint or etcd_server.endpoint],
                prefix=etcd_client.prefix,
                timeout=0.5,
            )
            stack.callback(client.close)
            scheduler = LeaderBackgroundScheduler(options, client=client, ttl=ttl, prefix="")
            stack.callback(stop, scheduler)
            return scheduler

        yield make


def stop(scheduler: BaseScheduler) -> None:
    if scheduler.running:
        scheduler.shutdown()


def token_of(scheduler: LeaderBackgroundScheduler) -> int:
    assert scheduler.term is not None
    return scheduler.term.token


def record(client: Client, job: str) -> dict[str, object]:
    value = client.raw.get(f"{client.prefix}/schedules/apscheduler/{job}")[0]
    decoded: dict[str, object] = json.loads(value or b"{}")
    return decoded


class TestScheduler:
    def test_only_the_leader_runs_and_another_takes_over(
        self, make_scheduler: MakeScheduler, takeovers: Takeovers
    ) -> None:
        runs: Runs = []
        due: list[datetime] = []
        schedulers = {}
        for name in "abc":
            scheduler = schedulers[name] = make_scheduler()
            tick = lambda name=name: runs.append((name, time.monotonic()))  # noqa: E731
            scheduler.add_job(tick, "interval", seconds=INTERVAL, id="tick")
            scheduler.add_listener(lambda event: due.append(event.scheduled_run_time), EXECUTED)
            scheduler.start()
        eventually(lambda: len(runs) >= 4, timeout=20)
        first = runs[0][0]
        assert {name for name, _ in runs} == {first}
        token = token_of(schedulers[first])
        schedulers[first].shutdown()
        gone, seen = time.monotonic(), len(runs)
        eventually(lambda: len(runs) >= seen + 3, timeout=20)
        takeovers.note(CLEAN_EXIT, runs[seen][1] - gone)
        second = runs[-1][0]
        assert {name for name, _ in runs[seen:]} == {second}
        assert second != first
        assert token_of(schedulers[second]) > token
        # Nothing ran twice, and the second went on in the rhythm of the first.
        gaps = [(later - one).total_seconds() / INTERVAL for one, later in pairwise(due)]
        assert all(gap >= 1 and gap.is_integer() for gap in gaps), gaps

    def test_a_run_that_was_due_in_between_is_a_misfire(
        self, make_scheduler: MakeScheduler, etcd_client: Client
    ) -> None:
        """It runs at the takeover, and the others go on in the last leader's rhythm."""
        now = datetime.now(timezone.utc)
        noted = {
            "due": now - timedelta(seconds=3601),
            "late": now - timedelta(seconds=3600 + 60),
            "not-due": now - timedelta(seconds=60),
        }
        for name, last in noted.items():
            key = f"{etcd_client.prefix}/schedules/apscheduler/{name}"
            etcd_client.raw.put(key, json.dumps({"last_run": last.isoformat(), "count": 3}))
        ran: list[str] = []
        missed: list[str] = []
        scheduler = make_scheduler(timezone="UTC")
        scheduler.add_listener(lambda event: missed.append(event.job_id), 2**14)
        for name in noted:
            scheduler.add_job(ran.append, "interval", args=(name,), hours=1, id=name)
        scheduler.start()
        eventually(lambda: ran and missed, timeout=20)
        assert ran == ["due"]
        # Later than misfire_grace_time, which is the TTL and five seconds by default.
        assert missed == ["late"]
        eventually(lambda: record(etcd_client, "due")["count"] == 4, timeout=10)
        due = scheduler.get_job("not-due").next_run_time
        assert abs((due - noted["not-due"]).total_seconds() - 3600) < 0.001

    def test_a_takeover_does_not_put_off_a_long_interval(
        self, make_scheduler: MakeScheduler, etcd_client: Client
    ) -> None:
        first, second = make_scheduler(), make_scheduler()
        first.add_job(print, "interval", hours=1, id="hourly")
        first.start()
        eventually(lambda: record(etcd_client, "hourly"), timeout=20)
        due = first.get_job("hourly").next_run_time
        first.shutdown()
        second.add_job(print, "interval", hours=1, id="hourly")
        second.start()
        eventually(lambda: second.get_job("hourly").next_run_time == due, timeout=20)
        assert record(etcd_client, "hourly")["count"] == 0

    def test_a_job_of_one_date_runs_once(
        self, make_scheduler: MakeScheduler, etcd_client: Client
    ) -> None:
        ran: list[str] = []
        first, second = make_scheduler(), make_scheduler()
        when = datetime.now(timezone.utc) + timedelta(seconds=0.5)
        for scheduler in (first, second):
            scheduler.add_job(ran.append, "date", run_date=when, args=("x",), id="once")
            scheduler.start()
        eventually(lambda: ran, timeout=20)
        leader = first if first.term else second
        other = second if leader is first else first
        leader.shutdown()
        eventually(lambda: other.get_job("once") is None, timeout=20)
        assert ran == ["x"]

    def test_shut_down_while_a_job_begins_its_last_run(
        self, make_scheduler: MakeScheduler, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        scheduler, stopped = make_scheduler(), threading.Event()
        submit = contrib._NotingExecutor.submit_job

        def shut_down() -> None:
            scheduler.shutdown()
            stopped.set()

        def stop_and_submit(executor: object, job: object, run_times: object) -> None:
            # shutdown() says so first, and then waits for the job stores.
            threading.Thread(target=shut_down).start()
            eventually(lambda: scheduler.state == STATE_STOPPED)
            submit(executor, job, run_times)

        monkeypatch.setattr(contrib._NotingExecutor, "submit_job", stop_and_submit)
        when = datetime.now(timezone.utc) + timedelta(seconds=0.5)
        scheduler.add_job(int, "date", run_date=when, id="once")
        scheduler.start()
        # An exception in the scheduler's thread would fail the test.
        assert stopped.wait(20)

    @pytest.mark.slow
    def test_an_outage(self, make_scheduler: MakeScheduler, proxy: FaultProxy) -> None:
        runs: list[float] = []
        scheduler = make_scheduler(proxy.endpoint, ttl=1)
        scheduler.add_job(
            lambda: runs.append(time.monotonic()), "interval", seconds=INTERVAL, id="tick"
        )
        scheduler.start()
        eventually(lambda: len(runs) >= 2, timeout=20)
        proxy.refuse()
        proxy.reset()
        eventually(lambda: scheduler.term is None, timeout=20)
        seen = len(runs)
        time.sleep(2 * INTERVAL)
        assert len(runs) == seen
        proxy.refuse(False)
        eventually(lambda: len(runs) >= seen + 3, timeout=20)
        scheduler.shutdown()

    @pytest.mark.slow
    def test_a_leader_without_etcd_says_so_once(
        self,
        make_scheduler: MakeScheduler,
        proxy: FaultProxy,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def told() -> list[str]:
            events = [record.__dict__.get("etcd_event", "") for record in caplog.records]
            return [event for event in events if event.startswith("tasks.")]

        monkeypatch.setattr(contrib, "_RETRY_SECONDS", 0.1)
        runs: list[float] = []
        scheduler = make_scheduler(proxy.endpoint, ttl=60)
        scheduler.add_job(
            lambda: runs.append(time.monotonic()), "interval", seconds=INTERVAL, id="tick"
        )
        caplog.set_level("DEBUG", logger="etcd_core.tasks")
        scheduler.start()
        eventually(lambda: len(runs) >= 2, timeout=20)
        proxy.refuse()
        proxy.reset()
        eventually(lambda: "trying again" in caplog.records[-1].message, timeout=20)
        again = caplog.text.count("trying again") + 2
        eventually(lambda: caplog.text.count("trying again") >= again, timeout=20)
        assert scheduler.term is not None
        seen = len(runs)
        proxy.refuse(False)
        eventually(lambda: len(runs) >= seen + 2, timeout=20)
        scheduler.shutdown()
        assert told() == ["tasks.suspended", "tasks.resumed"]

    def test_ids(self, make_scheduler: MakeScheduler) -> None:
        scheduler = make_scheduler()
        assert scheduler.add_job(gc.collect, "interval", hours=1).id == "gc:collect"
        assert scheduler.add_job("os:getpid", "interval", hours=1).id == "os:getpid"
        decorated = scheduler.scheduled_job("interval", hours=1)(threading.active_count)
        assert decorated is threading.active_count
        with pytest.raises(InvalidArgument, match="an id"):
            scheduler.add_job(lambda: None, "interval", hours=1)

    def test_pause_and_shutdown_resigns(
        self, make_scheduler: MakeScheduler, etcd_client: Client
    ) -> None:
        runs: list[int] = []
        scheduler = make_scheduler()
        scheduler.add_job(runs.append, "interval", args=(1,), seconds=0.1, id="tick")
        scheduler.start(paused=True)
        scheduler.resume()
        eventually(lambda: runs, timeout=20)
        scheduler.shutdown()
        assert etcd_client.leader("apscheduler") is None
        assert scheduler.term is None

    def test_the_blocking_one_under_a_name_of_its_own(self, etcd_client: Client) -> None:
        scheduler = LeaderBlockingScheduler(client=etcd_client, ttl=TTL, election="reports")
        tokens: list[int | None] = []
        scheduler.add_job(
            lambda: tokens.append(scheduler.term and scheduler.term.token),
            "interval",
            seconds=0.1,
            id="tick",
        )
        blocked = threading.Thread(target=scheduler.start, name="test-blocked", daemon=True)
        blocked.start()
        eventually(lambda: tokens, timeout=20)
        assert tokens[0] is not None
        assert etcd_client.leader("reports") is not None
        scheduler.shutdown()
        blocked.join(20)
        assert not blocked.is_alive()
        assert etcd_client.leader("reports") is None


WSGI = """
    import os
    from etcd_core import Client
    from etcd_core.contrib.apscheduler import LeaderBackgroundScheduler
    from fenced_counter import FencedCounter

    endpoint = os.environ["ENDPOINT"]
    client = Client(endpoints=[endpoint], prefix=os.environ["PREFIX"])
    scheduler = LeaderBackgroundScheduler(client=client, ttl=2)

    @scheduler.scheduled_job("interval", seconds=0.5)
    def tick():
        FencedCounter(client).count(scheduler.term, endpoint)

    scheduler.start()

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]
"""

# Each worker has its own way to etcd, so that one can be cut off.
CONFIGURATION = """
    import os

    def post_fork(server, worker):
        endpoints = os.environ["ENDPOINTS"].split(",")
        os.environ["ENDPOINT"] = endpoints[worker.age % len(endpoints)]
"""


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_four_workers_of_gunicorn(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path, takeovers: Takeovers
) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "shop.py").write_text(textwrap.dedent(WSGI))
    (tmp_path / "gunicorn.conf.py").write_text(textwrap.dedent(CONFIGURATION))
    support = str(Path(fenced_counter.__file__).parent)
    with ExitStack() as stack:
        made = [stack.enter_context(FaultProxy(etcd_server.endpoint)) for _ in range(8)]
        proxies = {proxy.endpoint: proxy for proxy in made}
        env = {
            **os.environ,
            "ENDPOINTS": ",".join(proxies),
            "PREFIX": etcd_client.prefix,
            "PYTHONPATH": os.pathsep.join([support, os.environ.get("PYTHONPATH", "")]),
        }
        server = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-w", "4", "-b", "127.0.0.1:0", "shop:app"],
            cwd=tmp_path,
            env=env,
            stderr=subprocess.DEVNULL,
        )
        stack.callback(end, server)
        counter = FencedCounter(etcd_client)

        def take_over(how: str) -> None:
            """End the run of the one that leads, and wait until another one runs."""
            # gunicorn replaces those that ended.
            wait_for_candidates(etcd_client, 4)
            last = eventually(counter.last, timeout=40)
            assert last is not None
            began = time.monotonic()
            if how == HOLD:
                proxies[last.what].hold()
            else:
                os.kill(last.pid, SIGNALS[how])
            eventually(lambda: counter.last().token > last.token, timeout=30)  # type: ignore[union-attr]
            takeovers.note(how, counter.first_after(last.token).at - began)
            if how == HOLD:
                proxies[last.what].heal()
            elif how == STOP:
                os.kill(last.pid, signal.SIGCONT)

        for how in (STOP, HOLD):
            take_over(how)
        for _ in takeovers.rounds():
            take_over(CRASH)
            take_over(CLEAN_EXIT)
    counter.judge()


SIGNALS = {CRASH: signal.SIGKILL, STOP: signal.SIGSTOP, CLEAN_EXIT: signal.SIGTERM}


def end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(30)


def wait_for_candidates(client: Client, number: int) -> None:
    """Wait until so many are in the election."""
    queue = f"{client.prefix}/elections/apscheduler/"
    eventually(lambda: len(list(client.raw.get_prefix(queue))) == number, timeout=40)
