"""Celery on the filesystem broker: several beats of which one sends, and tasks that do not overlap.

Skipped where Celery is not installed; needs nothing else but an etcd.
"""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

import fenced_counter
from etcd_core import Client
from etcd_core.testing import EtcdServer, eventually
from fenced_counter import FencedCounter
from fleet import Fleet, Members
from takeovers import CLEAN_EXIT, CRASH, HOLD, STOP, Takeovers
from warm_start import Program, WarmStart

pytest.importorskip("celery")

TTL = 2
INTERVAL = 0.5

APP = """
    import json, os, pathlib, signal, time
    from celery import Celery
    from etcd_core import (
        Client, ConnectionFailed, current_term, exclusive, leader_only, set_default_client
    )
    from etcd_core.contrib.celery import LeaderScheduler
    from fenced_counter import FencedCounter

    root = pathlib.Path(os.environ["ROOT"])
    client = Client(endpoints=[os.environ["ENDPOINT"]], prefix=os.environ["PREFIX"])
    set_default_client(client)
    app = Celery("shop", broker="filesystem://", backend=f"file://{root}/results")
    app.conf.update(
        broker_transport_options={
            "data_folder_in": f"{root}/queue", "data_folder_out": f"{root}/queue",
            "control_folder": f"{root}/control",
            # Where a message goes when a worker takes it, whether or not it is acknowledged later.
            "store_processed": True, "processed_folder": f"{root}/taken",
            "polling_interval": 0.05,
        },
        beat_schedule={
            "tick": {"task": "shop.tick", "schedule": 0.5, "args": (1,)},
            "hourly/report": {"task": "shop.tick", "schedule": 3600.0},
        },
        etcd_beat_name="shop-beat",
        etcd_beat_ttl=2,
        worker_lost_wait=0.5,
        worker_hijack_root_logger=False,
    )

    class CountingScheduler(LeaderScheduler):
        # Counts each message in etcd before it is sent, under the term that it is sent under.

        def apply_async(self, entry, *args, **kwargs):
            if "ENDING" in os.environ:
                os.kill(os.getpid(), signal.SIGTERM)
            due = self.schedule[entry.name].last_run_at.timestamp()
            what = json.dumps([entry.name, entry.options["task_id"], due])
            try:
                FencedCounter(client).count(self._term, what)
            except Exception as exc:
                # As the scheduler's own requests tell it, and not as etcd3 does.
                raise ConnectionFailed(str(exc)) from exc
            return super().apply_async(entry, *args, **kwargs)

    @app.task(name="shop.tick")
    def tick(*args): ...

    @app.task(name="shop.slow")
    @exclusive("slow", default="skipped")
    def slow(seconds):
        with open(root / "overlap", "a") as log:
            log.write(f"+{current_term().token}\\n")
        time.sleep(seconds)
        with open(root / "overlap", "a") as log:
            log.write(f"-{current_term().token}\\n")
        return current_term().token

    @app.task(name="shop.turns", bind=True, acks_late=True)
    @exclusive("turns", otherwise="wait", wait=30)
    def turns(self):
        return [self.request.id, current_term().token]

    @app.task(name="shop.deadly", bind=True, acks_late=True, reject_on_worker_lost=True)
    @exclusive("deadly", ttl=2, otherwise="wait", wait=30)
    def deadly(self):
        runs = root / "runs"
        first = not (runs.exists() and self.request.id in runs.read_text())
        with open(runs, "a") as log:
            log.write(f"{self.request.id} {current_term().token} {os.getpid()} {time.time()}\\n")
        if first:
            time.sleep(300)
        return current_term().token

    @app.task(name="shop.retried", bind=True, max_retries=50, default_retry_delay=0.1)
    def retried(self):
        from etcd_core import LockTimeout
        try:
            with exclusive("slow") as term:
                return term.token
        except LockTimeout as exc:
            raise self.retry(exc=exc)

    if "DROPPING" in os.environ:

        @app.task(name="shop.dropping")
        @leader_only("dropping")
        def dropping(): ...

    @app.task(name="shop.allowed", bind=True, autoretry_for=(KeyError,))
    @leader_only("dropping", allow_drop=True)
    def allowed(self):
        return "ran"
"""


class Run(NamedTuple):
    """A run of ``shop.deadly``."""

    token: int
    pid: int
    at: float


CALLS = """
    import contextlib, json, sys
    import shop

    def get(call):
        return call.get(timeout=40, interval=0.05)

    def main():
        with open(sys.argv[1]) as code, open(sys.argv[2], "w") as answer:
            with contextlib.redirect_stdout(answer):
                exec(code.read(), globals())
"""


class Shop:
    """The app's folder, and the processes that run it."""

    def __init__(self, root: Path, endpoint: str, prefix: str, warm: WarmStart) -> None:
        self.root = root
        self._warm = warm
        for name in ("queue", "taken", "control", "results"):
            (root / name).mkdir()
        (root / "shop.py").write_text(textwrap.dedent(APP))
        (root / "calls.py").write_text(textwrap.dedent(CALLS))
        support = str(Path(fenced_counter.__file__).parent)
        self.env = {
            **os.environ,
            "ROOT": str(root),
            "ENDPOINT": endpoint,
            "PREFIX": prefix,
            "PYTHONPATH": os.pathsep.join([str(root), support]),
            # Celery refuses some options for root; the tests may run as root in a container.
            "C_FORCE_ROOT": "1",
        }
        self._number = 0
        self._programs: list[Program] = []

    def __enter__(self) -> Shop:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for program in self._programs:
            self.kill(program)

    def start(self, *args: str, main: str = "celery.__main__:main", **env: str) -> Program:
        self._number += 1
        program = self._warm.start(
            main,
            *args,
            env={**self.env, **env},
            cwd=self.root,
            log=self.root / f"log-{self._number}",
        )
        self._programs.append(program)
        return program

    def beat(self, endpoint: str, scheduler: str = "shop:CountingScheduler") -> Program:
        options = ["-S", scheduler, "--pidfile=", "-l", "info"]
        return self.start("-A", "shop", "beat", *options, ENDPOINT=endpoint)

    def worker(self, children: int = 4, queue: str = "celery") -> Program:
        options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-Q", queue]
        return self.start("-A", "shop", "worker", "-c", str(children), "-l", "info", *options)

    def call(self, code: str) -> str:
        """Run code in a process of its own that imported the app; return what it printed."""
        asked, answer = self.root / "asked", self.root / "answer"
        asked.write_text(textwrap.dedent(code))
        program = self.start(str(asked), str(answer), main="calls:main")
        assert program.wait(50) == 0, self.logs
        return answer.read_text().strip()

    @property
    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.root.glob("log-*")))

    @property
    def sent(self) -> list[tuple[float, str, str]]:
        """When each message was sent, its task id and its arguments; the oldest first."""
        found = []
        for path in list((self.root / "queue").glob("*.msg")):
            try:
                message = json.loads(path.read_bytes())
            except ValueError:
                # Half written: it is sent when it is whole.
                continue
            body = json.loads(base64.b64decode(message["body"]))
            found.append((path.stat().st_mtime, message["headers"]["id"], str(body[0])))
        return sorted(found)

    def runs(self, task_id: str) -> list[Run]:
        """Return the runs of a ``shop.deadly``."""
        lines = (self.root / "runs").read_text().split("\n")[:-1]
        words = [line.split() for line in lines]
        return [Run(int(t), int(pid), float(at)) for one, t, pid, at in words if one == task_id]

    def deliver_again(self, task_id: str) -> None:
        """Put a message that was taken back into the queue, as a broker does after a while."""
        for path in (self.root / "taken").glob("*.msg"):
            if json.loads(path.read_bytes())["headers"].get("id") == task_id:
                path.rename(self.root / "queue" / f"{path.name.partition('.')[0]}.celery.msg")

    @staticmethod
    def kill(program: Program) -> None:
        """Kill a program and its children."""
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
        program.wait(10)


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStart]:
    """Where Celery is imported already: that takes longer than most of what is tested here."""
    with WarmStart("celery.bin.celery", "celery.apps.beat", "celery.apps.worker") as warm:
        yield warm


@pytest.fixture
def shop(
    etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path, warm: WarmStart
) -> Iterator[Shop]:
    with Shop(tmp_path, etcd_server.endpoint, etcd_client.prefix, warm) as shop:
        yield shop


@pytest.fixture(scope="class")
def working(
    etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory, warm: WarmStart
) -> Iterator[Shop]:
    """A shop with a worker, for several tests."""
    prefix = f"/test/{uuid.uuid4().hex}"
    with Shop(tmp_path_factory.mktemp("shop"), etcd_server.endpoint, prefix, warm) as shop:
        shop.worker()
        yield shop
    etcd_server.delete_prefix(f"{prefix}/")


@pytest.fixture
def takeovers(request: pytest.FixtureRequest) -> Takeovers:
    return Takeovers(request.node, "Celery beat", TTL)


def ticks(shop: Shop) -> list[tuple[float, str]]:
    return [(at, task_id) for at, task_id, args in shop.sent if args == "[1]"]


class Send(NamedTuple):
    """A message of beat, as it was counted in etcd."""

    token: int
    entry: str
    task_id: str
    due: float


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestBeat:
    def test_one_sends_and_others_take_over(
        self, shop: Shop, etcd_client: Client, etcd_server: EtcdServer, takeovers: Takeovers
    ) -> None:
        with Members(etcd_server, etcd_client.prefix, shop.beat) as members:
            fleet = Fleet(members, etcd_client, "shop-beat")
            for how in (STOP, HOLD):
                fleet.take_over(how, takeovers).recover()
            for _ in takeovers.rounds():
                fleet.take_over(CRASH, takeovers)
                fleet.take_over(CLEAN_EXIT, takeovers)
            fleet.wait_for_counts(2)
            self.judge(shop, fleet.counter, takeovers.longest(CRASH) + INTERVAL)

    def test_one_that_is_told_to_end_amid_a_send_finishes_it(
        self, shop: Shop, etcd_client: Client, etcd_server: EtcdServer
    ) -> None:
        """Else the next one sends it again; and a gRPC call that is cut hangs the process."""
        shop.env["ENDING"] = "1"
        assert shop.beat(etcd_server.endpoint).wait(40) == 0
        ((_, task_id),) = ticks(shop)
        (count,) = FencedCounter(etcd_client).judge()
        assert json.loads(count.what)[1] == task_id
        entry = etcd_client.raw.get(f"{etcd_client.prefix}/schedules/shop-beat/tick")[0]
        assert "pending" not in json.loads(entry or b"")
        assert etcd_client.leader("shop-beat") is None

    def test_an_outage_of_etcd(self, shop: Shop, own_server: EtcdServer) -> None:
        shop.beat(own_server.endpoint)
        eventually(lambda: len(ticks(shop)) >= 2, timeout=40)
        own_server.kill()
        # Its leadership ends on its own clock; nothing is sent from then on.
        eventually(lambda: "'shop-beat': lost: expired" in shop.logs, timeout=40)
        seen = len(ticks(shop))
        time.sleep(2 * INTERVAL)
        assert len(ticks(shop)) == seen
        own_server.start()
        eventually(lambda: len(ticks(shop)) >= seen + 3, timeout=40)
        with Client(endpoints=[own_server.endpoint], prefix=shop.env["PREFIX"]) as client:
            self.judge(shop, FencedCounter(client))

    @staticmethod
    def judge(shop: Shop, counter: FencedCounter, longest: float = math.inf) -> None:
        """No entry was doubled: neither a task id twice, nor two sends for one due time."""
        queued = Counter(task_id for _, task_id in ticks(shop))
        sends = [Send(count.token, *json.loads(count.what)) for count in counter.judge()]
        sends = [send for send in sends if send.entry == "tick"]
        # What is in the queue was counted before. A beat that was paused or cut off between its
        # note and its sending may be too late for that, but another one sends the same by then.
        late = [json.loads(what)[1] for what in counter.refused()]
        assert set(late) <= {send.task_id for send in sends}
        assert not queued - Counter([*(send.task_id for send in sends), *late])
        firsts = {send.token: send for send in reversed(sends)}
        known: dict[str, Send] = {}
        for send in sends:
            # An id comes again where the term ended amid its sending, and then before all others.
            earlier = known.setdefault(send.task_id, send)
            assert earlier is send or firsts[send.token] is send, sends
            assert earlier.due == send.due
        gaps = [later.due - one.due for one, later in pairwise(known.values())]
        assert min(gaps) > INTERVAL - 0.01
        assert max(gaps) <= longest

    def test_a_beat_goes_on_from_the_notes_of_another(
        self, shop: Shop, etcd_client: Client, etcd_server: EtcdServer
    ) -> None:
        scheduler = "etcd_core.contrib.celery:LeaderScheduler"
        first = shop.beat(etcd_server.endpoint, scheduler)
        eventually(lambda: ticks(shop), timeout=40)
        entries = f"{etcd_client.prefix}/schedules/shop-beat/"
        hourly = etcd_client.raw.get(f"{entries}hourly%2Freport")[0]
        assert hourly is not None
        first.terminate()
        assert first.wait(20) == 0
        seen = len(ticks(shop))
        # As a beat leaves it that died between its two notes.
        record = {"last_run": "2024-01-01T00:00:00+00:00", "count": 7, "pending": "the-same-id"}
        etcd_client.raw.put(f"{entries}tick", json.dumps(record))
        shop.beat(etcd_server.endpoint, scheduler)
        eventually(lambda: len(ticks(shop)) >= seen + 3, timeout=40)
        # What was about to be sent was sent, under its id, and before all others.
        ids = [task_id for _, task_id in ticks(shop)]
        assert ids.count("the-same-id") == 1
        assert ids[seen] == "the-same-id"
        stored = json.loads(etcd_client.raw.get(f"{entries}tick")[0] or b"{}")
        assert stored["count"] > 7
        # The clock of a long interval started with the first leader.
        assert etcd_client.raw.get(f"{entries}hourly%2Freport")[0] == hourly


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestTasks:
    @pytest.fixture
    def takeovers(self, request: pytest.FixtureRequest) -> Takeovers:
        return Takeovers(request.node, "Celery task", TTL)

    def test_exclusive_runs_do_not_overlap(self, working: Shop) -> None:
        said = working.call(
            """
            calls = [shop.slow.delay(1.0) for _ in range(4)]
            print(json.dumps([get(call) for call in calls]))
            """
        )
        results = json.loads(said)
        assert "skipped" in results
        tokens = [token for token in results if token != "skipped"]
        assert len(tokens) == len(set(tokens)) >= 1
        lines = (working.root / "overlap").read_text().split()
        assert lines == [f"{sign}{token}" for token in sorted(tokens) for sign in "+-"]

    def test_a_run_whose_child_was_killed_runs_again(
        self, working: Shop, etcd_client: Client, takeovers: Takeovers
    ) -> None:
        task_id = working.call("print(shop.deadly.delay().id)")
        (first,) = eventually(lambda: working.runs(task_id), timeout=40, message="the task runs")
        expected = self.earliest_end(working, etcd_client)
        os.kill(first.pid, signal.SIGKILL)
        self.judge_second_run(working, task_id, expected, time.time(), takeovers)

    def test_a_run_whose_worker_was_killed_runs_again(
        self, working: Shop, etcd_client: Client, takeovers: Takeovers
    ) -> None:
        """The message was not acknowledged; this broker forgets it, so the test gives it back."""
        worker = working.worker(children=1, queue="doomed")
        task_id = working.call("print(shop.deadly.apply_async(queue='doomed').id)")
        (first,) = eventually(lambda: working.runs(task_id), timeout=40, message="the task runs")
        assert os.getpgid(first.pid) == worker.pid
        expected = self.earliest_end(working, etcd_client)
        working.kill(worker)
        ended = time.time()
        working.deliver_again(task_id)
        self.judge_second_run(working, task_id, expected, ended, takeovers)

    @staticmethod
    def earliest_end(shop: Shop, client: Client) -> float:
        """Return the time before which the lock of ``shop.deadly`` cannot end by itself."""
        asked = time.time()
        ((_, lock),) = client.raw.get_prefix(f"{shop.env['PREFIX']}/locks/deadly/")
        left: int = client.raw.get_lease_info(lock.lease_id).TTL
        return asked + left

    @staticmethod
    def judge_second_run(
        shop: Shop, task_id: str, expected: float, ended: float, takeovers: Takeovers
    ) -> None:
        """The same message ran once more, and not before the lease of the lock had ended."""
        said = shop.call(f"print(get(shop.app.AsyncResult({task_id!r})))")
        first, second = shop.runs(task_id)
        assert first.token < second.token == int(said)
        assert first.pid != second.pid
        assert second.at >= expected
        takeovers.note(CRASH, second.at - ended)
        assert not list((shop.root / "queue").glob("*.msg"))

    def test_wait_loses_no_message(self, working: Shop) -> None:
        said = working.call(
            """
            calls = [shop.turns.delay() for _ in range(8)]
            results = [get(call) for call in calls]
            assert [result[0] for result in results] == [call.id for call in calls]
            print(json.dumps([result[1] for result in results]))
            """
        )
        assert len(set(json.loads(said))) == 8

    def test_a_refused_block_can_be_retried(self, working: Shop) -> None:
        said = working.call(
            """
            first, second = shop.slow.delay(1.0), shop.retried.delay()
            print(json.dumps([get(first), get(second)]))
            """
        )
        first, second = json.loads(said)
        assert first == "skipped" or first != second

    def test_leader_only_that_may_drop_runs(self, working: Shop) -> None:
        assert working.call("print(get(shop.allowed.delay()))") == "ran", working.logs

    def test_above_the_task_it_is_refused_when_decorating(self, working: Shop) -> None:
        said = working.call(
            """
            from etcd_core import exclusive, leader_only
            for guard in (leader_only("x"), exclusive("x"), leader_only("x", allow_drop=True)):
                try:
                    guard(shop.tick)
                except ValueError as exc:
                    print(exc)
            """
        )
        lines = said.splitlines()
        assert "take exclusive()" in lines[0]
        assert "below its decorator" in lines[1]
        assert "below its decorator" in lines[2]


@pytest.mark.slow
def test_leader_only_names_exclusive(shop: Shop) -> None:
    """Below ``@app.task`` it cannot be seen when decorating: the worker and a message tell."""
    shop.env["DROPPING"] = "1"
    # Here and only here as its users start it: as a command, with its imports.
    command = [sys.executable, "-m", "celery", "-A", "shop", "worker", "-c", "1"]
    done = subprocess.run(
        command, env=shop.env, cwd=shop.root, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert "take exclusive()" in done.stderr
    said = shop.call("print(repr(shop.dropping.apply().result))")
    assert said.startswith("InvalidArgument"), said
    assert "take exclusive()" in said


def test_a_beat_that_is_only_shown_does_no_io(shop: Shop) -> None:
    said = shop.call(
        """
        from celery import Celery
        from etcd_core.contrib.celery import LeaderScheduler
        for app in shop.app, Celery():
            print(LeaderScheduler(app=app, lazy=True).info.split()[-1])
        print(shop.client._scope)
        """
    )
    assert said.split() == ["shop-beat", "celery-beat", "None"]
