"""APScheduler 3 in several processes of which only the leader runs jobs.

Skipped where APScheduler is not installed.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from etcd_core import Client, InvalidArgument
from etcd_core.testing import EtcdServer, FaultProxy, eventually

pytest.importorskip("apscheduler", reason="APScheduler is not installed")
from apscheduler.schedulers.base import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
    BaseScheduler,
)

from etcd_core.contrib.apscheduler import LeaderBackgroundScheduler
from takeovers import CLEAN_EXIT, CRASH, Takeovers

TTL = 2
INTERVAL = 0.5

MakeScheduler = Callable[..., LeaderBackgroundScheduler]
Runs = list[tuple[str, float]]


@pytest.fixture
def takeovers(request: pytest.FixtureRequest) -> Takeovers:
    return Takeovers(request.node, "APScheduler", TTL)


@pytest.fixture
def make_scheduler(etcd_server: EtcdServer, etcd_client: Client) -> Iterator[MakeScheduler]:
    """Schedulers, each with a client of its own, like a process of its own."""
    with ExitStack() as stack:

        def make(
            endpoint: str | None = None, ttl: float = TTL, **options: str
        ) -> LeaderBackgroundScheduler:
            client = Client(
                endpoints=[endpoint or etcd_server.endpoint],
                prefix=etcd_client.prefix,
                timeout=1.0,
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
        schedulers = {}
        for name in "abc":
            scheduler = schedulers[name] = make_scheduler()
            tick = lambda name=name: runs.append((name, time.monotonic()))  # noqa: E731
            scheduler.add_job(tick, "interval", seconds=INTERVAL, id="tick")
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
        # Nothing ran twice: no more runs than were due, give or take how late each end was.
        assert len(runs) - 2 <= (runs[-1][1] - runs[0][1]) / INTERVAL

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
        when = datetime.now(timezone.utc) + timedelta(seconds=1)
        for scheduler in (first, second):
            scheduler.add_job(ran.append, "date", run_date=when, args=("x",), id="once")
            scheduler.start()
        eventually(lambda: ran, timeout=20)
        leader = first if first.term else second
        other = second if leader is first else first
        leader.shutdown()
        eventually(lambda: other.get_job("once") is None, timeout=20)
        assert ran == ["x"]

    @pytest.mark.slow
    def test_an_outage(self, make_scheduler: MakeScheduler, etcd_server: EtcdServer) -> None:
        runs: list[float] = []
        with FaultProxy(etcd_server.endpoint) as proxy:
            scheduler = make_scheduler(proxy.endpoint)
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
        etcd_server: EtcdServer,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        def told() -> list[str]:
            events = [record.__dict__.get("etcd_event", "") for record in caplog.records]
            return [event for event in events if event.startswith("tasks.")]

        runs: list[float] = []
        with FaultProxy(etcd_server.endpoint) as proxy:
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


WSGI = """
    import os
    from etcd_core import Client
    from etcd_core.contrib.apscheduler import LeaderBackgroundScheduler

    client = Client(endpoints=[os.environ["ENDPOINT"]], prefix=os.environ["PREFIX"])
    scheduler = LeaderBackgroundScheduler(client=client, ttl=2)
    KEY = os.environ["PREFIX"] + "/counter"

    @scheduler.scheduled_job("interval", seconds=0.5)
    def tick():
        term, raw = scheduler.term, client.raw
        value, meta = raw.get(KEY)
        unchanged = raw.transactions.mod(KEY) == (meta.mod_revision if meta else 0)
        done, _ = raw.transaction(
            compare=[term.guard(), unchanged],
            success=[raw.transactions.put(KEY, str(int(value or b"0") + 1))],
            failure=[],
        )
        line = f"{os.getpid()} {term.token} {int(done)} {int(term.remaining() > 0)}\\n"
        with open(os.environ["LOG"], "a") as log:
            log.write(line)

    scheduler.start()

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]
"""


@pytest.mark.slow
def test_four_workers_of_gunicorn(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path, takeovers: Takeovers
) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "shop.py").write_text(textwrap.dedent(WSGI))
    log = tmp_path / "runs"
    log.touch()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    env = {
        **os.environ,
        "ENDPOINT": etcd_server.endpoint,
        "PREFIX": etcd_client.prefix,
        "LOG": str(log),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "-w", "4", "-b", f"127.0.0.1:{port}", "shop:app"],
        cwd=tmp_path,
        env=env,
        stderr=subprocess.DEVNULL,
    )

    def runs() -> list[tuple[int, int, bool, bool]]:
        lines = [line.split() for line in log.read_text().splitlines()]
        return [(int(p), int(t), done == "1", lasting == "1") for p, t, done, lasting in lines]

    try:
        for _ in takeovers.rounds():
            for how, sent in ((CRASH, signal.SIGKILL), (CLEAN_EXIT, signal.SIGTERM)):
                wait_for_candidates(etcd_client, 4)
                eventually(lambda: len(runs()) >= 3, timeout=40)
                leader = runs()[-1][0]
                os.kill(leader, sent)
                ended = time.monotonic()
                wait_for_another(runs, leader)
                takeovers.note(how, time.monotonic() - ended)
    finally:
        server.terminate()
        server.wait(30)
    seen = runs()
    # Judged by the store: none was refused while its term lasted, and tokens never went back.
    assert not [run for run in seen if not run[2] and run[3]]
    tokens = [token for _, token, _, _ in seen]
    assert tokens == sorted(tokens)
    value = etcd_client.raw.get(f"{etcd_client.prefix}/counter")[0]
    # A killed worker may have counted without noting it.
    counted = len([run for run in seen if run[2]])
    assert 0 <= int(value or b"0") - counted <= takeovers.count(CRASH)


def wait_for_candidates(client: Client, number: int) -> None:
    """Wait until so many are in the election: gunicorn replaces those that ended."""
    queue = f"{client.prefix}/elections/apscheduler/"
    eventually(lambda: len(list(client.raw.get_prefix(queue))) == number, timeout=40)


def wait_for_another(runs: Callable[[], list[tuple[int, int, bool, bool]]], leader: int) -> None:
    eventually(lambda: runs()[-1][0] != leader, timeout=30)
