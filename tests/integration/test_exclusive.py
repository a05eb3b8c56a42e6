"""``exclusive`` and the finer options of the guards, on a real etcd."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from etcd_core import (
    Client,
    EtcdError,
    LeaseLost,
    Lock,
    LockTimeout,
    NotLeader,
    PermissionDenied,
    Unauthenticated,
    checkpoint,
    current_term,
    exclusive,
    leader_only,
    signals,
)
from etcd_core.taskguard import TaskGuard
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually


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


def keys(server: EtcdServer, prefix: str) -> list[str]:
    return server.ctl("get", "--prefix", "--keys-only", prefix).split()


def counted(client: Client) -> list[str]:
    """Return a list that grows with every lock that ``client`` is asked for."""
    tries: list[str] = []
    lock = client.lock

    def noted(key: str, *args: float | None) -> Lock:
        tries.append(key)
        return lock(key, *args)

    client.lock = noted  # type: ignore[method-assign, assignment]
    return tries


@pytest.fixture(scope="module")
def guarded_server() -> Iterator[EtcdServer]:
    """An etcd with a user ``app`` that may do everything under ``/app/``."""
    with EtcdServer(auth="correct-horse") as server:
        server.ctl("user", "add", "app", "--interactive=false", input="first\n")
        server.ctl("role", "add", "app")
        server.ctl("role", "grant-permission", "app", "readwrite", "--prefix=true", "/app/")
        server.ctl("user", "grant-role", "app", "app")
        yield server


class TestRefusedForGood:
    """What etcd refuses is no outage: a job that is skipped for ever would hide it."""

    @pytest.mark.parametrize("guard", [exclusive, leader_only])
    @pytest.mark.parametrize(
        ("password", "error"), [("first", PermissionDenied), ("wrong", Unauthenticated)]
    )
    def test_it_is_raised(
        self,
        guarded_server: EtcdServer,
        guard: Callable[..., TaskGuard[None]],
        password: str,
        error: type[EtcdError],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        skips: list[object] = []

        def note(sender: object, **_: object) -> None:
            skips.append(sender)

        for otherwise in ("skip", "raise", "wait"):
            caplog.clear()
            with (
                Client(
                    endpoints=[guarded_server.endpoint],
                    username="app",
                    password=password,
                    prefix="/other",
                ) as client,
                signals.task_skipped.connected_to(note),
            ):
                task = guard("job", client=client, otherwise=otherwise)(lambda: 1)
                for _ in range(2):
                    with pytest.raises(error):
                        task()
            assert skips == []
            assert "skipped" not in caplog.text
            # One name of the operation, in one line.
            told = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
            assert len(told) == (guard is leader_only)
            assert all(line.count("campaign in election") == 1 for line in told)
            assert password not in caplog.text or password == "first"


class TestOutageLog:
    def test_one_line_for_all_guards(
        self,
        proxy: FaultProxy,
        make_client: Callable[..., Client],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        client = make_client(endpoints=[proxy.endpoint], timeout=0.5)
        proxy.refuse()
        tasks = [
            guard(name, client=client)(lambda: 1)
            for name in ("one", "two")
            for guard in (exclusive, leader_only)
        ]
        assert [task() for task in tasks] == [None] * 4
        proxy.refuse(False)
        for task in tasks:
            eventually(task, timeout=20)
        told = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert [r.etcd_event for r in told] == [
            "connection.lost",
            "tasks.suspended",
            "connection.restored",
            "tasks.resumed",
        ]

    @pytest.mark.slow
    def test_a_leadership_that_is_lost_and_won_again(
        self,
        proxy: FaultProxy,
        make_client: Callable[..., Client],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        client = make_client(endpoints=[proxy.endpoint], timeout=2.0)
        task = leader_only("job", client=client, ttl=1)(lambda: 1)
        assert task() == 1
        proxy.refuse()
        proxy.reset()
        eventually(lambda: not client.connected, timeout=20)
        candidate = client.candidate("other")
        assert candidate.wait_for_answer(20)
        eventually(lambda: task() is None, timeout=20)
        proxy.refuse(False)
        eventually(task, timeout=20)
        assert candidate.wait(20)
        told = [r.etcd_event for r in caplog.records if r.levelno >= logging.WARNING]
        assert sorted(told) == [
            "connection.lost",
            "connection.restored",
            "leadership.lost",
            "leadership.regained",
            "tasks.resumed",
            "tasks.suspended",
        ]


class TestExclusive:
    def test_runs_do_not_overlap(
        self, etcd_client: Client, make_client: Callable[..., Client]
    ) -> None:
        other, reasons = make_client(), []

        def note(sender: object, *, name: str, reason: str) -> None:
            reasons.append(reason)

        @exclusive("job", client=etcd_client)
        def first() -> tuple[int, int | None]:
            return current_term().token, second()

        @exclusive("job", client=other)
        def second() -> int:
            return current_term().token

        with signals.task_skipped.connected_to(note):
            got = first()
            assert got is not None
            assert got[1] is None
            assert reasons == ["locked"]
            later = second()
        assert later is not None
        assert later > got[0]

    def test_what_a_run_costs(
        self, etcd_client: Client, make_client: Callable[..., Client]
    ) -> None:
        counter = RpcCounter()
        client = make_client(interceptors=[counter])
        task = exclusive("job", client=client)(lambda: 1)
        assert task() == 1
        with counter.expect(Txn=2):
            assert task() == 1
        lock = etcd_client.lock("job")
        with counter.expect(Txn=1):
            assert task() is None
        lock.unlock()

    def test_a_call_inside_just_runs(self, etcd_client: Client) -> None:
        guard = exclusive("job", client=etcd_client, otherwise="raise")

        @guard
        def recurse(depth: int) -> int:
            return 0 if depth == 0 else 1 + recurse(depth - 1)

        assert recurse(3) == 3

    def test_threads_of_one_process_exclude_each_other(self, etcd_client: Client) -> None:
        inside, most, done = [0], [0], []

        @exclusive("job", client=etcd_client, otherwise="wait", wait=30)
        def task() -> None:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            inside[0] -= 1
            done.append(current_term().token)

        threads = [threading.Thread(target=task) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == [1]
        assert done == sorted(set(done))
        assert len(done) == 8

    def test_raise_and_wait(self, etcd_client: Client, make_client: Callable[..., Client]) -> None:
        client = make_client()
        with etcd_client.lock("job"):
            with pytest.raises(LockTimeout, match="another run has the lock"):
                exclusive("job", client=client, otherwise="raise")(lambda: 1)()
            with pytest.raises(LockTimeout, match=r"0\.2 s"):
                exclusive("job", client=client, otherwise="wait", wait=0.2)(lambda: 1)()
        assert exclusive("job", client=client, otherwise="wait", wait=20)(lambda: 1)() == 1

    def test_unreachable(self, proxy: FaultProxy, make_client: Callable[..., Client]) -> None:
        reasons: list[str] = []

        def note(sender: object, *, name: str, reason: str) -> None:
            reasons.append(reason)

        with signals.task_skipped.connected_to(note):
            proxy.refuse()
            client = make_client(endpoints=[proxy.endpoint], timeout=0.3)
            assert exclusive("job", client=client)(lambda: 1)() is None
            with pytest.raises(ConnectionError):
                exclusive("job", client=client, otherwise="raise")(lambda: 1)()
        assert reasons == ["unreachable"]

    def test_a_wait_lasts_through_an_outage(
        self, proxy: FaultProxy, make_client: Callable[..., Client]
    ) -> None:
        proxy.refuse()
        client = make_client(endpoints=[proxy.endpoint], timeout=0.2)
        tries = counted(client)
        guard = exclusive("job", client=client, otherwise="wait", wait=60)

        @guard
        async def in_a_loop() -> str:
            return "ran"

        with ThreadPoolExecutor() as pool:
            calls = [pool.submit(guard(lambda: "ran")), pool.submit(asyncio.run, in_a_loop())]
            eventually(lambda: len(tries) >= 6, timeout=30)
            proxy.refuse(False)
            assert [call.result(30) for call in calls] == ["ran", "ran"]

    def test_a_wait_ends_with_the_outage_s_error(
        self, proxy: FaultProxy, make_client: Callable[..., Client]
    ) -> None:
        proxy.refuse()
        client = make_client(endpoints=[proxy.endpoint], timeout=0.2)
        tries = counted(client)
        started = time.monotonic()
        with pytest.raises(ConnectionError):
            exclusive("job", client=client, otherwise="wait", wait=1.0)(lambda: 1)()
        assert 0.9 < time.monotonic() - started < 10
        assert len(tries) > 1

    def test_a_place_that_was_lost_is_taken_anew(
        self, etcd_client: Client, etcd_server: EtcdServer, make_client: Callable[..., Client]
    ) -> None:
        guard = exclusive("job", client=make_client(), otherwise="wait", wait=60)
        queue = f"{etcd_client.prefix}/locks/job/"
        with ThreadPoolExecutor() as pool:
            with etcd_client.lock("job") as lock:
                call = pool.submit(guard(lambda: 1))

                def second() -> str | None:
                    found = [key for key in keys(etcd_server, queue) if key != lock.etcd_key]
                    return found[0] if found else None

                first_place = eventually(second)
                etcd_server.ctl("lease", "revoke", first_place.rsplit("/", 1)[1])
                eventually(lambda: (second() or first_place) != first_place, timeout=20)
            assert call.result(30) == 1

    def test_a_cancelled_wait_leaves_no_lock(
        self, etcd_client: Client, etcd_server: EtcdServer, make_client: Callable[..., Client]
    ) -> None:
        async def main() -> None:
            task = exclusive("job", client=client, otherwise="wait")(number)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task(), 0.2)

        client = make_client()
        with etcd_client.lock("job"):
            asyncio.run(main())
        locks = f"{etcd_client.prefix}/locks/"
        eventually(lambda: not keys(etcd_server, locks), timeout=10)

    def test_in_a_loop(self, etcd_client: Client) -> None:
        async def main() -> list[int | None]:
            task = exclusive("job", client=etcd_client, otherwise="wait", wait=30)(number)
            return list(await asyncio.gather(*(task() for _ in range(5))))

        tokens = asyncio.run(main())
        assert len(set(tokens)) == 5

    @pytest.mark.parametrize("guard", [leader_only, exclusive])
    def test_what_a_term_calls_this_process(
        self, etcd_client: Client, guard: Callable[..., TaskGuard[None]]
    ) -> None:
        for name, given, shown in (
            ("named", {"identity": "me"}, "me"),
            ("unnamed", {}, f"{socket.gethostname()}:{os.getpid()}"),
        ):
            task = guard(name, client=etcd_client, **given)(lambda: current_term().identity)
            assert task() == shown

    def test_min_remaining_waits_for_a_renewal(self, etcd_client: Client) -> None:
        task = exclusive("job", client=etcd_client, ttl=2, min_remaining=1.8)
        seen = [task(lambda: current_term().remaining())() for _ in range(6)]
        assert all(left is not None and left > 1.7 for left in seen)


class TestAtLeastFor:
    @pytest.mark.slow
    def test_exclusive_keeps_everybody_out(
        self, etcd_client: Client, etcd_server: EtcdServer, make_client: Callable[..., Client]
    ) -> None:
        task = exclusive("job", client=etcd_client, at_least_for=2)(lambda: current_term().token)
        other = exclusive("job", client=make_client())(lambda: current_term().token)
        started = time.monotonic()
        token = task()
        assert token is not None
        assert time.monotonic() - started < 1.5
        assert task() is None
        assert other() is None
        later = eventually(other, timeout=15)
        assert time.monotonic() - started >= 2
        assert later is not None
        assert later > token

    def test_a_long_run_releases_at_once(
        self, etcd_client: Client, make_client: Callable[..., Client]
    ) -> None:
        @exclusive("job", client=etcd_client, at_least_for=0.05)
        def task() -> int:
            time.sleep(0.1)
            return 1

        assert task() == 1
        assert exclusive("job", client=make_client())(lambda: 2)() == 2

    @pytest.mark.slow
    def test_a_leader_that_exits_keeps_others_out(
        self, etcd_client: Client, make_client: Callable[..., Client]
    ) -> None:
        task = leader_only("job", client=etcd_client, at_least_for=2)(lambda: current_term().token)
        other = leader_only("job", client=make_client())(lambda: current_term().token)
        started = time.monotonic()
        token = task()
        assert token is not None
        identity = etcd_client.leader("job")
        etcd_client.close()
        assert time.monotonic() - started < 1.9
        with make_client() as witness:
            assert witness.leader("job") == identity
        assert other() is None
        later = eventually(other, timeout=15)
        assert time.monotonic() - started >= 2
        assert later is not None
        assert later > token

    @pytest.mark.slow
    def test_a_cron_job_on_two_nodes_runs_once(
        self, etcd_server: EtcdServer, etcd_client: Client
    ) -> None:
        code = textwrap.dedent(
            """
            import sys
            from etcd_core import Client, exclusive, leader_only
            client = Client(endpoints=[sys.argv[1]], prefix=sys.argv[2])
            for kind in (exclusive, leader_only):
                job = kind("job", client=client, at_least_for=9, default="skipped")(lambda: "ran")
                print(job())
            """
        )
        said = [
            subprocess.run(
                [sys.executable, "-c", code, etcd_server.endpoint, etcd_client.prefix],
                check=True,
                timeout=30,
                capture_output=True,
                text=True,
            ).stdout.split()
            for _ in range(2)
        ]
        assert said == [["ran", "ran"], ["skipped", "skipped"]]


class TestOnLost:
    def test_raise(self, etcd_client: Client, etcd_server: EtcdServer) -> None:
        def task() -> None:
            assert checkpoint()
            etcd_server.ctl("del", "--prefix", f"{etcd_client.prefix}/")
            while True:
                checkpoint()
                time.sleep(0.01)

        with pytest.raises(LeaseLost, match="exclusive 'job'"):
            exclusive("job", client=etcd_client, on_lost="raise")(task)()
        with pytest.raises(NotLeader, match="leader_only 'job'"):
            leader_only("job", client=etcd_client, on_lost="raise")(task)()

    def test_cancel(self, etcd_client: Client, etcd_server: EtcdServer) -> None:
        async def task() -> None:
            await asyncio.to_thread(etcd_server.ctl, "del", "--prefix", f"{etcd_client.prefix}/")
            await asyncio.sleep(60)

        async def main() -> None:
            with pytest.raises(LeaseLost):
                await exclusive("job", client=etcd_client, on_lost="cancel")(task)()
            with pytest.raises(NotLeader):
                await leader_only("job", client=etcd_client, on_lost="cancel")(task)()
            await asyncio.sleep(0)

        asyncio.run(main())

    def test_a_slow_receiver_holds_no_cancellation_up(
        self, etcd_server: EtcdServer, etcd_client: Client
    ) -> None:
        """A task that goes on beside the new owner does the harm that the lock is there for."""
        go_on = threading.Event()

        def block(sender: object, **_: object) -> None:
            go_on.wait(20)

        async def task() -> None:
            etcd_server.delete_prefix(f"{etcd_client.prefix}/locks/job/")
            await asyncio.sleep(20)

        guarded = exclusive("job", client=etcd_client, on_lost="cancel")(task)
        began = time.monotonic()
        with signals.lock_lost.connected_to(block):
            with pytest.raises(LeaseLost):
                asyncio.run(guarded())
            took = time.monotonic() - began
            go_on.set()
        assert took < 15

    def test_closing_the_client_ends_the_term(self, etcd_client: Client) -> None:
        @leader_only("job", client=etcd_client, on_lost="raise")
        def task() -> None:
            etcd_client.close()
            checkpoint()

        with pytest.raises(NotLeader):
            task()

    def test_the_guard_protects_a_write(self, etcd_client: Client, etcd_server: EtcdServer) -> None:
        raw, key = etcd_client.raw, f"{etcd_client.prefix}/protected"

        def write(value: str) -> bool:
            guard = current_term().guard()
            put = [raw.transactions.put(key, value)]
            done, _ = raw.transaction(compare=[guard], success=put, failure=[])
            return bool(done)

        @exclusive("job", client=etcd_client)
        def task() -> list[bool]:
            before = write("mine")
            etcd_server.ctl("del", "--prefix", f"{etcd_client.prefix}/locks/")
            return [before, write("too late")]

        assert task() == [True, False]
        assert raw.get(key)[0] == b"mine"


class TestBlock:
    def test_with(self, etcd_client: Client, make_client: Callable[..., Client]) -> None:
        with exclusive("job", client=etcd_client) as term:
            assert current_term() is term
            with pytest.raises(LockTimeout), exclusive("job", client=make_client()):
                raise AssertionError("entered")
        assert term.lost.is_set()
        with exclusive("job", client=make_client()) as later:
            assert later.token > term.token

    def test_async_with(self, etcd_client: Client) -> None:
        async def main() -> None:
            async with leader_only("job", client=etcd_client, otherwise="wait", wait=20) as term:
                assert term.remaining() > 0
            async with exclusive("job", client=etcd_client) as term:
                assert term.remaining() > 0
            assert term.lost.is_set()

        asyncio.run(main())


async def number() -> int:
    """Give the fencing token."""
    await asyncio.sleep(0)
    return current_term().token
