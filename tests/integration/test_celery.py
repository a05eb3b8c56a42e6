"""Celery on the filesystem broker: several beats of which one sends, and tasks that do not overlap.

Skipped where Celery is not installed; needs nothing else but an etcd.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from etcd_core import Client
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from takeovers import CLEAN_EXIT, CRASH, Takeovers

pytest.importorskip("celery")

TTL = 2
INTERVAL = 0.5

APP = """
    import os, pathlib, time
    from celery import Celery
    from etcd_core import Client, exclusive, leader_only, current_term, set_default_client

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
        },
        beat_schedule={
            "tick": {"task": "shop.tick", "schedule": 0.5, "args": (1,)},
            "hourly/report": {"task": "shop.tick", "schedule": 3600.0},
        },
        etcd_beat_ttl=2,
        worker_lost_wait=0.5,
        worker_hijack_root_logger=False,
    )

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
        first = not (root / "runs").exists()
        with open(root / "runs", "a") as log:
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

    task_id: str
    token: int
    pid: int
    at: float


class Shop:
    """The app's folder, and the processes that run it."""

    def __init__(self, root: Path, server: EtcdServer, prefix: str, stack: ExitStack) -> None:
        self.root = root
        self._stack = stack
        for name in ("queue", "taken", "control", "results"):
            (root / name).mkdir()
        (root / "shop.py").write_text(textwrap.dedent(APP))
        self.env = {
            **os.environ,
            "ROOT": str(root),
            "ENDPOINT": server.endpoint,
            "PREFIX": prefix,
            "PYTHONPATH": str(root),
            # Celery refuses some options for root; the tests may run as root in a container.
            "C_FORCE_ROOT": "1",
        }
        self._number = 0

    def start(self, *args: str, **env: str) -> subprocess.Popen[bytes]:
        self._number += 1
        log = self._stack.enter_context(open(self.root / f"log-{self._number}", "wb"))  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", *args],
            env={**self.env, **env},
            cwd=self.root,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self._stack.callback(self._kill, process)
        return process

    def beat(self, endpoint: str | None = None) -> subprocess.Popen[bytes]:
        scheduler = "etcd_core.contrib.celery:LeaderScheduler"
        options = ["-S", scheduler, "--pidfile=", "-l", "info"]
        return self.start("beat", *options, ENDPOINT=endpoint or self.env["ENDPOINT"])

    def worker(self, children: int = 4) -> subprocess.Popen[bytes]:
        options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        return self.start("worker", "-c", str(children), "-l", "info", *options)

    def call(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", f"import shop, json\n{textwrap.dedent(code)}"],
            env=self.env,
            cwd=self.root,
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.returncode == 0, done.stderr + self.logs
        return done.stdout.strip()

    @property
    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.root.glob("log-*")))

    @property
    def sent(self) -> list[tuple[float, str, str]]:
        """When each message was sent, its task id and its arguments; the oldest first."""
        found = []
        for path in list((self.root / "queue").glob("*.msg")):
            message = json.loads(path.read_bytes())
            body = json.loads(base64.b64decode(message["body"]))
            found.append((path.stat().st_mtime, message["headers"]["id"], str(body[0])))
        return sorted(found)

    @property
    def runs(self) -> list[Run]:
        """The runs of ``shop.deadly``."""
        lines = (self.root / "runs").read_text().split("\n")[:-1]
        words = [line.split() for line in lines]
        return [Run(one, int(token), int(pid), float(at)) for one, token, pid, at in words]

    def deliver_again(self, task_id: str) -> None:
        """Put a message that was taken back into the queue, as a broker does after a while."""
        for path in (self.root / "taken").glob("*.msg"):
            if json.loads(path.read_bytes())["headers"].get("id") == task_id:
                path.rename(self.root / "queue" / path.name)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(10)


@pytest.fixture
def shop(etcd_server: EtcdServer, etcd_client: Client, tmp_path: Path) -> Iterator[Shop]:
    with ExitStack() as stack:
        yield Shop(tmp_path, etcd_server, etcd_client.prefix, stack)


@pytest.fixture(scope="class")
def working(etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A shop with a worker, for several tests."""
    prefix = f"/test/{uuid.uuid4().hex}"
    with ExitStack() as stack:
        shop = Shop(tmp_path_factory.mktemp("shop"), etcd_server, prefix, stack)
        shop.worker()
        yield shop
    etcd_server.delete_prefix(f"{prefix}/")


@pytest.fixture
def takeovers(request: pytest.FixtureRequest) -> Takeovers:
    return Takeovers(request.node, "Celery beat", TTL)


def ticks(shop: Shop) -> list[tuple[float, str]]:
    return [(at, task_id) for at, task_id, args in shop.sent if args == "[1]"]


def leader_of(
    beats: list[subprocess.Popen[bytes]], client: Client
) -> subprocess.Popen[bytes] | None:
    leader = client.leader("celery-beat")
    return next((beat for beat in beats if leader and leader.endswith(f":{beat.pid}")), None)


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestBeat:
    def test_one_sends_and_others_take_over(
        self, shop: Shop, etcd_client: Client, takeovers: Takeovers
    ) -> None:
        beats = [shop.beat() for _ in range(3)]

        def take_over(how: str) -> subprocess.Popen[bytes]:
            """Wait until the three beats are settled, end the one that leads, and return it."""
            leader = self.settled(shop, etcd_client, beats)
            ended = self.end(leader, how)
            beats.remove(leader)
            takeovers.note(how, self.wait_for_tick_after(shop, ended + 0.05) - ended)
            return leader

        for _ in takeovers.rounds():
            for how in (CRASH, CLEAN_EXIT):
                take_over(how)
                beats.append(shop.beat())
        stopped = take_over("SIGSTOP")
        stopped.send_signal(signal.SIGCONT)
        self.wait_for_ticks(shop, len(ticks(shop)) + 4)
        self.judge(ticks(shop), takeovers.longest(CRASH) + INTERVAL)

    def test_a_leader_without_a_network(
        self, shop: Shop, etcd_client: Client, etcd_server: EtcdServer, takeovers: Takeovers
    ) -> None:
        with FaultProxy(etcd_server.endpoint) as proxy:
            leader = shop.beat(proxy.endpoint)
            eventually(lambda: leader_of([leader], etcd_client), timeout=40)
            other = shop.beat()
            assert self.settled(shop, etcd_client, [leader, other]) is leader
            proxy.hold()
            held = time.time()
            takeovers.note("network hold", self.wait_for_tick_after(shop, held + 0.05) - held)
            assert leader_of([other], etcd_client)
            proxy.heal()
            # The one that led is back, and waits for its turn.
            assert self.settled(shop, etcd_client, [leader, other]) is other
            self.wait_for_ticks(shop, len(ticks(shop)) + 2)
        self.judge(ticks(shop), takeovers.longest(CRASH) + INTERVAL)

    @staticmethod
    def settled(
        shop: Shop, client: Client, beats: list[subprocess.Popen[bytes]]
    ) -> subprocess.Popen[bytes]:
        """Wait until all beats are in the election and one has just sent; return that one."""
        queue = f"{client.prefix}/elections/celery-beat/"
        seen = len(ticks(shop))
        eventually(lambda: len(list(client.raw.get_prefix(queue))) == len(beats), timeout=40)
        eventually(lambda: len(ticks(shop)) >= seen + 2, timeout=40, message="beat sends")
        leader = eventually(lambda: leader_of(beats, client), timeout=20)
        assert leader is not None
        # A send that is cut in its middle is repeated, and that is not what is judged here.
        entry = f"{client.prefix}/schedules/celery-beat/tick"
        eventually(lambda: "pending" not in json.loads(client.raw.get(entry)[0] or b""))
        return leader

    @staticmethod
    def wait_for_ticks(shop: Shop, count: int) -> None:
        eventually(lambda: len(ticks(shop)) >= count, timeout=20)

    @staticmethod
    def wait_for_tick_after(shop: Shop, moment: float) -> float:
        return eventually(lambda: [at for at, _ in ticks(shop) if at > moment], timeout=30)[0]

    @staticmethod
    def end(leader: subprocess.Popen[bytes], how: str) -> float:
        """End a beat and return when it could send no more."""
        if how == "SIGSTOP":
            leader.send_signal(signal.SIGSTOP)
        elif how == CRASH:
            leader.kill()
        else:
            leader.terminate()
        if how != "SIGSTOP":
            leader.wait(20)
        return time.time()

    @staticmethod
    def judge(sent: list[tuple[float, str]], longest: float = 15.0) -> None:
        """No entry was doubled: neither a task id twice, nor two sends for one due time."""
        ids = [task_id for _, task_id in sent]
        assert len(ids) == len(set(ids))
        gaps = [later - earlier for (earlier, _), (later, _) in pairwise(sent)]
        # A send may be late by a little and the next one in time. After an interruption the one
        # that was about to be sent comes first, and at once what became due meanwhile.
        close = [n for n, gap in enumerate(gaps) if gap <= INTERVAL / 2]
        assert all(n > 0 and gaps[n - 1] > 1.5 * INTERVAL for n in close), gaps
        assert max(gaps) <= longest

    def test_a_takeover_does_not_put_off_a_long_interval(
        self, shop: Shop, etcd_client: Client
    ) -> None:
        """The hourly entry's clock started with the first leader, and is kept in etcd."""
        first = shop.beat()
        eventually(lambda: ticks(shop), timeout=40)
        key = f"{etcd_client.prefix}/schedules/celery-beat/hourly%2Freport"
        before = etcd_client.raw.get(key)[0]
        assert before is not None
        first.terminate()
        assert first.wait(20) == 0
        seen = len(ticks(shop))
        shop.beat()
        eventually(lambda: len(ticks(shop)) > seen, timeout=40)
        assert etcd_client.raw.get(key)[0] == before

    def test_what_was_about_to_be_sent_is_sent_again_under_its_id(
        self, shop: Shop, etcd_client: Client
    ) -> None:
        """As a beat leaves it that died between its two notes."""
        record = {"last_run": "2024-01-01T00:00:00+00:00", "count": 7, "pending": "the-same-id"}
        key = f"{etcd_client.prefix}/schedules/celery-beat/tick"
        etcd_client.raw.put(key, json.dumps(record))
        shop.beat()
        eventually(lambda: len(ticks(shop)) >= 3, timeout=40)
        ids = [task_id for _, task_id in ticks(shop)]
        assert ids.count("the-same-id") == 1
        assert ids[0] == "the-same-id"
        stored = json.loads(etcd_client.raw.get(key)[0] or b"{}")
        assert stored["count"] > 7

    def test_an_outage_of_etcd(self, shop: Shop, own_server: EtcdServer) -> None:
        shop.env["ENDPOINT"] = own_server.endpoint
        shop.beat()
        eventually(lambda: len(ticks(shop)) >= 2, timeout=40)
        own_server.kill()
        # Its leadership ends on its own clock; nothing is sent from then on.
        time.sleep(TTL + 1)
        seen = len(ticks(shop))
        time.sleep(2 * INTERVAL)
        assert len(ticks(shop)) == seen
        own_server.start()
        eventually(lambda: len(ticks(shop)) >= seen + 3, timeout=40)
        self.judge(ticks(shop))


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
            print(json.dumps([call.get(timeout=40) for call in calls]))
            """
        )
        results = json.loads(said)
        assert "skipped" in results
        tokens = [token for token in results if token != "skipped"]
        assert len(tokens) == len(set(tokens)) >= 1
        lines = (working.root / "overlap").read_text().split()
        assert lines == [f"{sign}{token}" for token in sorted(tokens) for sign in "+-"]

    def test_a_run_whose_child_was_killed_runs_again(
        self, working: Shop, takeovers: Takeovers
    ) -> None:
        task_id = working.call("print(shop.deadly.delay().id)")
        first = eventually(lambda: working.runs, timeout=40, message="the task runs")[0]
        os.kill(first.pid, signal.SIGKILL)
        self.judge_second_run(working, task_id, time.time(), takeovers)

    def test_a_run_whose_worker_was_killed_runs_again(
        self, shop: Shop, takeovers: Takeovers
    ) -> None:
        """The message was not acknowledged; this broker forgets it, so the test gives it back."""
        workers = [shop.worker(children=1) for _ in range(2)]
        eventually(lambda: shop.logs.count(" ready.") == 2, timeout=40, message="both run")
        task_id = shop.call("print(shop.deadly.delay().id)")
        first = eventually(lambda: shop.runs, timeout=40, message="the task runs")[0]
        (its_worker,) = (w for w in workers if w.pid == os.getpgid(first.pid))
        Shop._kill(its_worker)
        ended = time.time()
        shop.deliver_again(task_id)
        self.judge_second_run(shop, task_id, ended, takeovers)

    @staticmethod
    def judge_second_run(shop: Shop, task_id: str, ended: float, takeovers: Takeovers) -> None:
        """The same message ran once more, and not before the lease of the lock had ended."""
        said = shop.call(f"print(shop.app.AsyncResult({task_id!r}).get(timeout=40))")
        first, second = shop.runs
        assert first.task_id == second.task_id == task_id
        assert first.token < second.token == int(said)
        assert first.pid != second.pid
        # The lease was fresh or just renewed: nothing else than its end made room for the second.
        assert second.at - ended > TTL / 2
        takeovers.note(CRASH, second.at - ended)
        assert not list((shop.root / "queue").glob("*celery.msg"))

    def test_wait_loses_no_message(self, working: Shop) -> None:
        said = working.call(
            """
            calls = [shop.turns.delay() for _ in range(8)]
            results = [call.get(timeout=40) for call in calls]
            assert [result[0] for result in results] == [call.id for call in calls]
            print(json.dumps([result[1] for result in results]))
            """
        )
        assert len(set(json.loads(said))) == 8

    def test_a_refused_block_can_be_retried(self, working: Shop) -> None:
        said = working.call(
            """
            first, second = shop.slow.delay(1.0), shop.retried.delay()
            print(json.dumps([first.get(timeout=40), second.get(timeout=40)]))
            """
        )
        first, second = json.loads(said)
        assert first == "skipped" or first != second

    def test_leader_only_that_may_drop_runs(self, working: Shop) -> None:
        assert working.call("print(shop.allowed.delay().get(timeout=40))") == "ran", working.logs

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
    assert shop.worker().wait(40) != 0
    assert "take exclusive()" in shop.logs
    said = shop.call("print(repr(shop.dropping.apply().result))")
    assert said.startswith("InvalidArgument"), said
    assert "take exclusive()" in said


def test_a_beat_that_is_only_shown_does_no_io(shop: Shop) -> None:
    said = shop.call(
        """
        from etcd_core.contrib.celery import LeaderScheduler
        scheduler = LeaderScheduler(app=shop.app, lazy=True)
        print(scheduler.info, shop.client._scope)
        """
    )
    assert said.split() == [".", "leader", "of", "->", "celery-beat", "None"]
