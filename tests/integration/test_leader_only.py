"""``leader_only`` on a real etcd: one process and many, faults, forks and event loops."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import fenced_counter
from etcd_core import (
    Client,
    ClosedError,
    EtcdError,
    NotLeader,
    current_term,
    leader_only,
    set_default_client,
    shared_client,
    signals,
)
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually
from fenced_counter import FencedCounter
from fleet import Fleet, Members
from takeovers import CLEAN_EXIT, CRASH, HOLD, STOP, Takeovers

TTL = 2


@pytest.fixture
def takeovers(request: pytest.FixtureRequest) -> Takeovers:
    return Takeovers(request.node, "leader_only", TTL)


@pytest.fixture
def make_client(
    etcd_server: EtcdServer, etcd_client: Client, proxy: FaultProxy
) -> Iterator[Callable[..., Client]]:
    """More clients under the prefix of ``etcd_client``, each like a process of its own.

    Closed before ``proxy`` is: a client that cannot reach etcd takes its time.
    """
    with ExitStack() as stack:

        def make(**options: object) -> Client:
            options = {"endpoints": [etcd_server.endpoint], "prefix": etcd_client.prefix, **options}
            return stack.enter_context(Client(**options))  # type: ignore[arg-type]

        yield make


@pytest.fixture
def skips() -> Iterator[list[str]]:
    reasons: list[str] = []

    def note(sender: object, *, name: str, reason: str) -> None:
        reasons.append(reason)

    with signals.task_skipped.connected_to(note):
        yield reasons


def guarded(client: Client, **options: object) -> Callable[[], int | None]:
    """Return a task that gives its fencing token."""
    guard = leader_only("job", client=client, ttl=TTL, **options)  # type: ignore[call-overload]
    task: Callable[[], int | None] = guard(lambda: current_term().token)
    return task


class TestOneProcess:
    def test_the_first_call_runs(self, etcd_client: Client) -> None:
        token = guarded(etcd_client)()
        assert token is not None
        assert token > 0
        assert etcd_client.leader("job") is not None

    def test_one_candidacy_for_all_tasks_and_handles(self, etcd_client: Client) -> None:
        with shared_client(etcd_client.config) as one, shared_client(etcd_client.config) as other:
            tokens = {guarded(one)(), guarded(other)(), guarded(one, otherwise="raise")()}
            assert len(tokens) == 1
            assert None not in tokens
            threads = [t for t in threading.enumerate() if t.name == "etcd-candidate-job"]
            assert len(threads) == 1

    def test_the_other_client_skips_and_takes_over(
        self, etcd_client: Client, make_client: Callable[..., Client], skips: list[str]
    ) -> None:
        first, second = guarded(etcd_client), guarded(make_client())
        token = first()
        assert token is not None
        assert second() is None
        assert skips == ["not_leader"]
        etcd_client.close()
        later = eventually(second, timeout=10)
        assert later is not None
        assert later > token

    def test_raise(self, etcd_client: Client, make_client: Callable[..., Client]) -> None:
        assert guarded(etcd_client)()
        with pytest.raises(NotLeader, match="another process leads"):
            guarded(make_client(), otherwise="raise")()

    def test_wait(self, etcd_client: Client, make_client: Callable[..., Client]) -> None:
        first, client = guarded(etcd_client), make_client()
        assert first()
        with pytest.raises(NotLeader, match=r"another process leads \(waited 0\.3 s\)"):
            guarded(client, otherwise="wait", wait=0.3)()
        closer = threading.Thread(target=etcd_client.close)
        closer.start()
        assert guarded(client, otherwise="wait", wait=30)()
        closer.join()

    def test_skipped_calls_cost_no_request(
        self, etcd_client: Client, make_client: Callable[..., Client]
    ) -> None:
        counter = RpcCounter()
        task = leader_only("job", client=make_client(interceptors=[counter]))(lambda: 1)
        leader = leader_only("job", client=etcd_client)(lambda: 1)
        assert leader() == 1
        assert task() is None
        # The candidacy watches its own key and the one before it.
        eventually(lambda: counter.counts.get("Watch", 0) >= 2, timeout=10)
        with counter.expect():
            assert {task() for _ in range(1000)} == {None}

    def test_calls_that_run_cost_no_request(self, make_client: Callable[..., Client]) -> None:
        counter = RpcCounter()
        task = leader_only("job", client=make_client(interceptors=[counter]))(lambda: 1)
        assert task() == 1
        # The watch on the leader's key starts a quarter of a second after the election.
        eventually(lambda: counter.streams.get("Watch"), timeout=10)
        eventually(lambda: counter.counts.get("Watch"), timeout=10)
        with counter.expect():
            assert {task() for _ in range(1000)} == {1}

    def test_prefixes_do_not_mix(self, etcd_client: Client, etcd_server: EtcdServer) -> None:
        with Client(
            endpoints=[etcd_server.endpoint], prefix=f"{etcd_client.prefix}-other"
        ) as other:
            outer = leader_only("job", client=etcd_client)
            inner = leader_only("job", client=other)
            seen: list[int] = []

            @inner
            def within() -> None:
                seen.append(current_term().token)

            @outer
            def task() -> None:
                seen.append(current_term().token)
                within()

            task()
            assert len(set(seen)) == 2
            etcd_server.delete_prefix(other.prefix)

    def test_a_closed_client(self, make_client: Callable[..., Client]) -> None:
        clients = [make_client()]
        set_default_client(lambda: clients[0])
        try:
            task = leader_only("job", ttl=TTL)(lambda: current_term().token)
            token = task()
            assert token is not None
            clients[0].close()
            with pytest.raises(ClosedError):
                task()
            clients[0] = make_client()
            later = eventually(task, timeout=10)
            assert later is not None
            assert later > token
        finally:
            set_default_client(None)

    def test_signals(self, etcd_client: Client) -> None:
        told: list[tuple[str, object]] = []

        def acquired(sender: object, *, key: str, token: int, **_: object) -> None:
            told.append(("acquired", token))

        def lost(sender: object, *, key: str, token: int, reason: str, **_: object) -> None:
            told.append((reason, token))

        with (
            signals.leadership_acquired.connected_to(acquired),
            signals.leadership_lost.connected_to(lost),
        ):
            token = guarded(etcd_client)()
            eventually(lambda: told == [("acquired", token)], timeout=10)
            etcd_client.close()
            eventually(lambda: told[1:] == [("resigned", token)], timeout=10)


class TestUnreachable:
    def test_skip_with_one_warning_and_recover(
        self,
        proxy: FaultProxy,
        make_client: Callable[..., Client],
        skips: list[str],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with caplog.at_level(logging.INFO):
            proxy.refuse()
            task = guarded(make_client(endpoints=[proxy.endpoint], timeout=0.5))
            assert [task() for _ in range(50)] == [None] * 50
            assert skips == ["unreachable"] * 50
            lines = [r for r in caplog.records if r.name == "etcd_core.tasks"]
            assert len(lines) == 1
            assert lines[0].levelno == logging.WARNING
            proxy.refuse(False)
            assert eventually(task, timeout=20)
            lines = [r for r in caplog.records if r.name == "etcd_core.tasks"]
            assert len(lines) == 2
            assert "answers again" in lines[1].getMessage()

    def test_raise_gives_the_error(
        self, proxy: FaultProxy, make_client: Callable[..., Client]
    ) -> None:
        proxy.refuse()
        task = guarded(make_client(endpoints=[proxy.endpoint], timeout=0.3), otherwise="raise")
        for _ in range(2):
            with pytest.raises((ConnectionError, TimeoutError)) as caught:
                task()
            assert isinstance(caught.value, EtcdError)

    def test_the_first_call_is_bounded_by_the_timeout(
        self, proxy: FaultProxy, make_client: Callable[..., Client], skips: list[str]
    ) -> None:
        proxy.hold()
        task = guarded(make_client(endpoints=[proxy.endpoint], timeout=0.3))
        started = time.monotonic()
        assert task() is None
        assert time.monotonic() - started < 3
        assert skips == ["unreachable"]
        proxy.heal()

    @pytest.mark.slow
    def test_leadership_ends_before_the_lease(
        self, proxy: FaultProxy, make_client: Callable[..., Client], skips: list[str]
    ) -> None:
        client = make_client(endpoints=[proxy.endpoint], timeout=0.5)
        task, careful = guarded(client), guarded(client, min_remaining=1.0)
        assert task()
        eventually(careful, timeout=10)
        proxy.hold()
        eventually(lambda: careful() is None and task() is not None, timeout=10)
        assert set(skips) == {"min_remaining"}
        eventually(lambda: task() is None, timeout=10)
        eventually(lambda: task() is None and skips[-1] == "unreachable", timeout=10)
        proxy.heal()
        assert eventually(task, timeout=20)


class TestEventLoop:
    def test_no_wait_blocks_the_loop(
        self, proxy: FaultProxy, make_client: Callable[..., Client]
    ) -> None:
        async def main(client: Client, proxy: FaultProxy) -> int:
            task = leader_only("job", client=client, ttl=TTL, otherwise="raise")(token_of_term)
            ticks = 0
            call = asyncio.ensure_future(task())
            while not call.done():
                started = time.monotonic()
                await asyncio.sleep(0.01)
                assert time.monotonic() - started < 1
                ticks += 1
                if ticks == 20:
                    proxy.heal()
            assert await call > 0
            return ticks

        proxy.hold()
        client = make_client(endpoints=[proxy.endpoint], timeout=20.0)
        assert asyncio.run(main(client, proxy)) >= 20

    def test_waiting_can_be_cancelled(
        self, etcd_client: Client, make_client: Callable[..., Client]
    ) -> None:
        async def main() -> None:
            task = leader_only("job", client=make_client(), otherwise="wait")(token_of_term)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task(), 0.3)

        assert guarded(etcd_client)()
        asyncio.run(main())
        eventually(
            lambda: not any(t.name == "etcd-task-job" for t in threading.enumerate()), timeout=10
        )

    def test_many_waits_at_once(
        self, etcd_client: Client, make_client: Callable[..., Client]
    ) -> None:
        async def main() -> list[int]:
            task = leader_only("job", client=client, otherwise="wait", wait=30)(token_of_term)
            calls = [asyncio.ensure_future(task()) for _ in range(40)]
            # The loop's own executor stays free for others.
            await asyncio.wait_for(asyncio.to_thread(etcd_client.close), 20)
            return await asyncio.gather(*calls)

        client = make_client()
        assert guarded(etcd_client)()
        assert len(set(asyncio.run(main()))) == 1

    def test_skipped_calls_start_no_thread(
        self,
        etcd_client: Client,
        make_client: Callable[..., Client],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        started: list[str] = []
        start = threading.Thread.start

        def noted(thread: threading.Thread) -> None:
            started.append(thread.name)
            start(thread)

        async def main() -> None:
            task = leader_only("job", client=client)(token_of_term)
            assert await task() is None
            monkeypatch.setattr(threading.Thread, "start", noted)
            for _ in range(100):
                assert await task() is None
            # The client may start its own meanwhile: to watch, or to send signals.
            assert not [name for name in started if name.startswith("etcd-task-")]

        client = make_client()
        assert guarded(etcd_client)()
        asyncio.run(main())


async def token_of_term() -> int:
    """Give the fencing token."""
    await asyncio.sleep(0)
    return current_term().token


WORKER = """
    import signal, sys, time
    import etcd_core
    from etcd_core import Client, current_term
    from fenced_counter import FencedCounter

    endpoint, prefix, kind = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    client = Client(endpoints=[endpoint], prefix=prefix)
    counter = FencedCounter(client)

    @getattr(etcd_core, kind)("job", client=client, ttl=2)
    def tick():
        counter.count(current_term())

    while True:
        try:
            tick()
        except Exception as exc:
            print("failed", type(exc).__name__, flush=True)
        time.sleep(0.04)
"""


@pytest.fixture(scope="module")
def start_worker(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[str]]:
    """Start a process that calls its task again and again, and counts in it."""
    script = tmp_path_factory.mktemp("worker") / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    path = [str(Path(fenced_counter.__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}

    def start(endpoint: str, prefix: str, kind: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(script), endpoint, prefix, kind],
            env=env,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    return start


@pytest.fixture(scope="class")
def members(
    etcd_server: EtcdServer, start_worker: Callable[..., subprocess.Popen[str]]
) -> Iterator[Members]:
    prefix = f"/test/{uuid.uuid4().hex}"
    start = lambda endpoint: start_worker(endpoint, prefix, "leader_only")  # noqa: E731
    with Members(etcd_server, prefix, start) as members:
        yield members


@pytest.mark.slow
@pytest.mark.timeout(120)
class TestProcesses:
    """Three processes, which all tests share: each one leaves three that are well."""

    @pytest.fixture
    def fleet(self, members: Members, make_client: Callable[..., Client]) -> Fleet:
        return Fleet(members, make_client(prefix=members.prefix), "job")

    def test_one_runs_and_others_take_over(self, fleet: Fleet, takeovers: Takeovers) -> None:
        for _ in takeovers.rounds():
            fleet.take_over(CRASH, takeovers)
            fleet.take_over(CLEAN_EXIT, takeovers)
        fleet.wait_for_counts(20)
        fleet.counter.judge()

    def test_a_stopped_leader_does_no_harm(self, fleet: Fleet, takeovers: Takeovers) -> None:
        self.lose_and_come_back(fleet, takeovers, STOP)

    def test_a_leader_without_a_network_does_no_harm(
        self, fleet: Fleet, takeovers: Takeovers
    ) -> None:
        self.lose_and_come_back(fleet, takeovers, HOLD)

    @staticmethod
    def lose_and_come_back(fleet: Fleet, takeovers: Takeovers, how: str) -> None:
        refused = len(fleet.counter.refused())
        fleet.take_over(how, takeovers).recover()
        fleet.wait_for_counts(20)
        # It has joined again, and has tried to count once at most: in the run it was in.
        fleet.settled()
        assert len(fleet.counter.refused()) <= refused + 1
        fleet.counter.judge()


class TestOtherProcesses:
    @pytest.mark.slow
    def test_exclusive_runs_of_three_processes(
        self,
        etcd_server: EtcdServer,
        etcd_client: Client,
        start_worker: Callable[..., subprocess.Popen[str]],
    ) -> None:
        counter, fleet = FencedCounter(etcd_client), []

        def runs_of(pids: set[int], since: int) -> bool:
            return pids <= {count.pid for count in counter.counts() if count.number > since}

        try:
            for _ in range(3):
                fleet.append(start_worker(etcd_server.endpoint, etcd_client.prefix, "exclusive"))
            pids = {process.pid for process in fleet}
            eventually(lambda: runs_of(pids, 0), timeout=30)
            fleet[0].kill()
            fleet[0].wait(10)
            killed_after = len(counter.counts())
            eventually(lambda: runs_of(pids - {fleet[0].pid}, killed_after), timeout=30)
            for process in fleet[1:]:
                process.terminate()
                assert process.wait(20) == 0
        finally:
            for process in fleet:
                process.kill()
                process.wait(10)
        tokens = [count.token for count in counter.judge()]
        assert len(set(tokens)) == len(tokens)

    def test_a_job_that_runs_once_runs_and_resigns(
        self, etcd_server: EtcdServer, etcd_client: Client
    ) -> None:
        code = (
            "import sys\n"
            "from etcd_core import *\n"
            "client = Client(endpoints=[sys.argv[1]], prefix=sys.argv[2])\n"
            "print(leader_only('job', client=client)(lambda: current_term().token)())\n"
        )
        tokens = []
        for _ in range(2):
            out = subprocess.run(
                [sys.executable, "-c", code, etcd_server.endpoint, etcd_client.prefix],
                check=True,
                timeout=30,
                capture_output=True,
                text=True,
            )
            tokens.append(int(out.stdout))
            assert etcd_client.leader("job") is None
        assert tokens[0] < tokens[1]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
    def test_a_forked_child_joins_anew(self, etcd_server: EtcdServer, etcd_client: Client) -> None:
        code = textwrap.dedent(
            """
            import os, sys
            from etcd_core import Client, current_term, leader_only
            client = Client(endpoints=[sys.argv[1]], prefix=sys.argv[2])
            task = leader_only("job", client=client, default=0)(lambda: current_term().token)
            token = task()
            child = os.fork()
            if child == 0:
                print("child", task(), flush=True)
                client.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            print("parent", task() == token, client.leader("job").endswith(f":{os.getpid()}"))
            """
        )
        out = subprocess.run(
            [sys.executable, "-c", code, etcd_server.endpoint, etcd_client.prefix],
            check=True,
            timeout=50,
            capture_output=True,
            text=True,
        )
        assert out.stdout.splitlines() == ["child 0", "parent True True"]
