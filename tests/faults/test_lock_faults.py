"""Faults under locks and elections: F4 to F7, F20, F23 to F25, F30, F45, F47 to F51."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from checkers import Witness
from etcd_core import (
    CampaignTimeout,
    Client,
    ClosedError,
    Config,
    ConnectionFailed,
    Descriptor,
    EtcdError,
    LeaseLost,
    Lock,
    LockTimeout,
)
from etcd_core.contender import Contender, TurnTimeout
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually
from etcd_core.wire import messages as pb
from mutual_exclusion import contenders, finish
from witness import keys_under, lease_ids

MakeClient = Callable[..., Client]


class Waiting:
    """A thread that waits for a lock."""

    def __init__(self, client: Client, key: str, ttl: float = 30.0) -> None:
        self.lock: Lock | None = None
        self.error: EtcdError | None = None
        self.done_at = 0.0
        self._args = (client, key, ttl)
        self.thread = threading.Thread(target=self._run, name=f"waiter-{key}")
        self.thread.start()

    def _run(self) -> None:
        client, key, ttl = self._args
        try:
            self.lock = client.lock(key, ttl=ttl)
        except EtcdError as exc:
            self.error = exc
        self.done_at = time.monotonic()

    def result(self, timeout: float = 20.0) -> Lock:
        self.thread.join(timeout)
        assert not self.thread.is_alive(), "still waiting"
        assert self.lock is not None, f"not acquired: {self.error!r}"
        return self.lock


def queue_length(server: EtcdServer, prefix: str, key: str) -> int:
    return len(keys_under(server, f"{prefix}/locks/{key}/"))


@pytest.mark.slow
def test_f04_server_paused_longer_than_the_ttl(
    own_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(own_server.endpoint)
    lock = client.lock("a", ttl=1)
    own_server.pause()
    try:
        # The lease's own deadline ends it, with no word from the server.
        assert lock.done.wait(5)
        assert not lock.held
        assert lock.lost_reason == "expired"
    finally:
        own_server.resume()
    assert not lock.held
    with client.lock("a", timeout=20) as again:
        assert again.token > lock.token
        assert not lock.held


@pytest.mark.slow
def test_f05_client_paused_longer_than_the_ttl(
    etcd_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    code = """
import sys
from etcd_core import Client
client = Client(endpoints=[sys.argv[1]], prefix=sys.argv[2])
lock = client.lock("a", ttl=1)
print(lock.token, flush=True)
sys.stdin.readline()
held = lock.held
done, _ = client.raw.transaction(
    compare=[lock.guard()], success=[client.raw.transactions.put(sys.argv[2] + "/x", "stale")])
print(held, lock.lost_reason, done, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, etcd_server.endpoint, prefix],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        token = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGSTOP)
        process.stdin.write("go\n")
        process.stdin.flush()
        client = make_client(etcd_server.endpoint)
        with client.lock("a", timeout=20) as lock:
            assert lock.token > token
            os.kill(process.pid, signal.SIGCONT)
            assert process.stdout.readline().split() == ["False", "expired", "False"]
            assert lock.held
        process.wait(20)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_f06_restart_with_an_empty_store_loses_the_lock(
    own_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(own_server.endpoint)
    lock = client.lock("a", ttl=2)
    election = client.campaign("boss", "me", ttl=2)
    own_server.kill()
    own_server.restart(wipe=True)
    assert lock.done.wait(15)
    assert election.done.wait(15)
    assert not lock.held
    assert not election.is_leader
    with client.lock("a", timeout=20) as again:
        assert again.held


def test_f07_a_restore_takes_what_is_newer(
    own_server: EtcdServer, make_client: MakeClient, prefix: str
) -> None:
    """A lock and a registration from after the backup: lost and told, and made anew."""
    client = make_client(own_server.endpoint)
    client.raw.put(f"{prefix}/kept", "1")
    backup = own_server.data_dir.parent / "backup.db"
    own_server.ctl("snapshot", "save", str(backup))
    lock, election = client.lock("a", ttl=3), client.campaign("boss", "me", ttl=3)
    registration = client.register(Descriptor(name="web", id="1", address="h:1"), ttl=3)
    for number in range(10):
        client.raw.put(f"{prefix}/newer", str(number))
    own_server.stop()
    own_server.wipe()
    own_server.ctl(
        "snapshot",
        "restore",
        str(backup),
        f"--data-dir={own_server.data_dir}",
        f"--name={own_server.name}",
        f"--initial-cluster={own_server.name}={own_server.peer_url}",
        f"--initial-advertise-peer-urls={own_server.peer_url}",
    )
    own_server.start()
    assert lock.done.wait(20)
    assert election.done.wait(20)
    eventually(lambda: keys_under(own_server, f"{prefix}/services/"), timeout=20)
    eventually(lambda: registration.registered, timeout=20)
    assert keys_under(own_server, f"{prefix}/locks/") == []
    assert client.raw.get(f"{prefix}/kept")[0] == b"1"
    with client.lock("a", timeout=20):
        assert client.campaign("boss", "me", timeout=20).is_leader


@pytest.mark.slow
def test_f20_late_writes_leave_no_lock(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    """40 tries enter a black hole, each succeeds on a second path and ends, then the hole opens."""
    client = make_client(proxy.endpoint, etcd_server.endpoint, timeout=20.0, lease_pool=50)
    prefer(client, proxy.port)
    keys = [f"late-{number}" for number in range(40)]
    for lock in [client.lock(key) for key in keys]:
        lock.unlock()
    proxy.hold()
    waiting = [Waiting(client, key) for key in keys]
    assert all(waiter.result(30).unlock() for waiter in waiting)
    proxy.heal()
    prefer(client, proxy.port)
    assert client.leader("through the proxy again") is None
    never_again_keys(etcd_server, f"{client.prefix}/locks/", seconds=1.0)


@pytest.mark.slow
def test_f20_late_campaigns_and_proclamations(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    client = make_client(proxy.endpoint, etcd_server.endpoint, timeout=20.0)
    election = client.campaign("boss", "one")
    prefer(client, proxy.port)
    assert client.leader("boss") == "one"
    proxy.hold()
    election.proclaim("two")
    election.proclaim("three")
    proxy.heal()
    never_again(lambda: client.leader("boss") != "three", seconds=1.0)
    election.resign()
    never_again_keys(etcd_server, f"{client.prefix}/elections/", seconds=0.5)


@pytest.mark.slow
def test_f20_late_campaigns_leave_no_leader(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    """As with locks: 20 campaigns enter a black hole, each wins on a second path and resigns."""
    client = make_client(proxy.endpoint, etcd_server.endpoint, timeout=20.0, lease_pool=25)
    names = [f"late-{number}" for number in range(20)]
    for election in [client.campaign(name, "warm") for name in names]:
        election.resign()
    prefer(client, proxy.port)
    assert client.leader("late-0") is None
    proxy.hold()
    with ThreadPoolExecutor(len(names)) as pool:
        won = list(pool.map(lambda name: client.campaign(name, "me", timeout=20), names))
    for election in won:
        election.resign()
    proxy.heal()
    prefer(client, proxy.port)
    assert client.leader("through the proxy again") is None
    never_again_keys(etcd_server, f"{client.prefix}/elections/", seconds=1.0)


@pytest.mark.slow
def test_f20_a_try_given_up_in_a_black_hole_dies_with_its_lease(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    client = make_client(proxy.endpoint, timeout=0.3)
    client.lock("a", ttl=1).unlock()
    proxy.hold()
    with pytest.raises(ConnectionFailed):
        client.lock("a", ttl=1)
    proxy.heal()
    eventually(lambda: not keys_under(etcd_server, f"{client.prefix}/locks/"), timeout=15)


def prefer(client: Client, port: int) -> None:
    """Make the endpoint on ``port`` the client's current one."""
    endpoints = client.scope().engine.channel.endpoints
    while (link := endpoints.pick()).endpoint.port != port:
        endpoints.rotate(link)


def never_again_keys(server: EtcdServer, prefix: str, seconds: float) -> None:
    """Watch that no key appears; a process of etcdctl for each look would be the machine's load."""
    with Witness(server.endpoint) as witness:
        never_again(lambda: witness.range(prefix), seconds)


def never_again(present: Callable[[], object], seconds: float) -> None:
    """Watch for ``seconds`` that nothing appears: a late write has no event to wait for."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = present()
        assert not found, found
        time.sleep(0.02)


def test_f23_lease_revoked_by_a_third_party(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(etcd_server.endpoint)
    lock = client.lock("a")
    etcd_server.ctl("lease", "revoke", lock.etcd_key.rsplit("/", 1)[1])
    assert lock.done.wait(10)
    assert lock.lost_reason in ("deleted", "revoked")
    assert lock.unlock() is False
    client.lock("a", timeout=5).unlock()


def test_f24_key_deleted_by_a_third_party(etcd_server: EtcdServer, make_client: MakeClient) -> None:
    client, other = make_client(etcd_server.endpoint), make_client(etcd_server.endpoint)
    lock = client.lock("a")
    waiter = Waiting(other, "a")
    eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 2)
    etcd_server.ctl("del", lock.etcd_key)
    assert lock.done.wait(10)
    next_lock = waiter.result()
    guard_holds, _ = client.raw.transaction(compare=[lock.guard()], success=[])
    assert not guard_holds
    assert lock.unlock() is False
    assert next_lock.held, "the old owner's release must not touch the new one's key"
    assert next_lock.unlock() is True


@pytest.mark.parametrize("lease", [None, "own"])
def test_f25_key_overwritten_by_a_third_party(
    etcd_server: EtcdServer, make_client: MakeClient, lease: str | None
) -> None:
    client = make_client(etcd_server.endpoint)
    lock = client.lock("a")
    flags = [] if lease is None else [f"--lease={lock.etcd_key.rsplit('/', 1)[1]}"]
    etcd_server.ctl("put", *flags, lock.etcd_key, "mine now")
    assert lock.done.wait(10)
    assert lock.lost_reason == ("detached" if lease is None else "overwritten")
    assert lock.unlock() is False
    assert queue_length(etcd_server, client.prefix, "a") == 0
    client.lock("a", timeout=5).unlock()


def test_f30_compaction_while_waiting(
    etcd_server: EtcdServer, proxy: FaultProxy, make_client: MakeClient
) -> None:
    client, other = make_client(etcd_server.endpoint), make_client(proxy.endpoint)
    lock = client.lock("a")
    election = client.campaign("boss", "one")
    waiter = Waiting(other, "a")
    candidate = other.candidate("boss", "two")
    assert candidate.wait_for_answer(10)
    leaders = other.observe("boss")
    assert leaders.next(10) == "one"
    eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 2)
    proxy.refuse()
    proxy.reset()
    for number in range(20):
        client.raw.put(f"{client.prefix}/noise", str(number))
    election.proclaim("uno")
    lock.unlock()
    election.resign()
    client.raw.put(f"{client.prefix}/noise", "last")
    _, meta = client.raw.get(f"{client.prefix}/noise")
    client.raw.compact(meta.mod_revision)
    proxy.heal()
    assert waiter.result().unlock() is True
    assert candidate.wait(20)
    seen: list[str | None] = []

    def last_leader() -> str | None:
        seen.append(leaders.next(10))
        return seen[-1]

    eventually(lambda: last_leader() == "two", timeout=20)


def test_timeout_holds_in_an_outage_that_began_with_a_wake_up(
    own_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(own_server.endpoint)
    with client.lock("a", ttl=60):
        queue = f"{client.prefix}/locks/b/".encode()
        try:
            with Contender(client.scope(), queue, b"", 60, "lock 'b'") as contender:
                contender.join()
                contender._predecessor = queue + b"1"
                own_server.kill()
                contender._wake.set()
                before = time.monotonic()
                with pytest.raises(TurnTimeout):
                    contender.wait(1.0)
                assert time.monotonic() - before < 6.0
        finally:
            own_server.start()


def test_f45_close_ends_every_wait(etcd_server: EtcdServer, make_client: MakeClient) -> None:
    client, other = make_client(etcd_server.endpoint), make_client(etcd_server.endpoint)
    with other.lock("a"), other.campaign("boss", "one"):
        waiter = Waiting(client, "a")
        errors: list[BaseException] = []
        leaders = client.observe("boss")
        assert leaders.next(10) == "one"

        def expect_closed(call: Callable[[], object]) -> threading.Thread:
            def run() -> None:
                try:
                    call()
                except ClosedError as exc:
                    errors.append(exc)

            thread = threading.Thread(target=run)
            thread.start()
            return thread

        threads = [
            expect_closed(lambda: client.campaign("boss", "two")),
            expect_closed(lambda: leaders.next()),
        ]
        eventually(lambda: len(keys_under(etcd_server, f"{client.prefix}/elections/boss/")) == 2)
        eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 2)
        before = time.monotonic()
        client.close()
        for thread in threads:
            thread.join(5)
        waiter.thread.join(5)
        assert time.monotonic() - before < 3.0
        assert isinstance(waiter.error, ClosedError)
        assert len(errors) == 2
        eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 1)


def test_f45_close_is_bounded_when_etcd_is_a_black_hole(
    proxy: FaultProxy, make_client: MakeClient
) -> None:
    client = make_client(proxy.endpoint)
    lock = client.lock("a")
    election = client.campaign("boss", "me")
    proxy.hold()
    before = time.monotonic()
    client.close()
    assert time.monotonic() - before < 4.0
    assert not lock.held
    assert not election.is_leader


@pytest.fixture
def waiters() -> Iterator[list[Waiting]]:
    started: list[Waiting] = []
    yield started
    for waiter in started:
        waiter.thread.join(20)


def test_f47_fifty_waiters_are_served_in_order_with_constant_work(
    etcd_server: EtcdServer, make_client: MakeClient, waiters: list[Waiting]
) -> None:
    counter = RpcCounter()
    client = make_client(etcd_server.endpoint, interceptors=(counter,))
    first = client.lock("a")
    for number in range(50):
        waiters.append(Waiting(client, "a"))
        eventually(lambda n=number: queue_length(etcd_server, client.prefix, "a") == n + 2)
    # A third of the waiters leave in the middle of the queue: their keys go.
    queue = sorted_queue(etcd_server, client.prefix)
    for key in queue[10:40:2]:
        etcd_server.ctl("del", key)
    victims = eventually(
        lambda: (
            [w for w in waiters if w.error is not None][14:]
            and [w for w in waiters if w.error is not None]
        ),
        timeout=20,
    )
    assert all(isinstance(w.error, LeaseLost) for w in victims)
    survivors = [w for w in waiters if w not in victims]
    counter.reset()
    first.unlock()
    last_token = first.token
    for waiter in survivors:
        lock = waiter.result()
        assert lock.token > last_token
        last_token = lock.token
        lock.unlock()
    handovers = len(survivors)
    # Per hand-over: one verification and one release; nothing grows with the queue.
    assert counter.counts.get("Txn", 0) <= handovers + 3
    assert counter.counts.get("Range", 0) <= handovers + 3


def test_a_release_before_the_watch_on_it_begins(
    etcd_server: EtcdServer, make_client: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, other = make_client(etcd_server.endpoint), make_client(etcd_server.endpoint)
    lock = other.lock("a")
    follow = Contender._follow

    def too_late(contender: Contender) -> None:
        lock.unlock()
        follow(contender)

    monkeypatch.setattr(Contender, "_follow", too_late)
    # Nothing wakes it again if the missing deletion is not looked for.
    began = time.monotonic()
    client.lock("a", ttl=60, timeout=40).unlock()
    assert time.monotonic() - began < 10


def test_what_others_write_costs_a_waiter_one_look(
    etcd_server: EtcdServer, make_client: MakeClient, waiters: list[Waiting]
) -> None:
    counter = RpcCounter()
    client = make_client(etcd_server.endpoint, interceptors=(counter,))
    other = make_client(etcd_server.endpoint)
    client.lock("warm").unlock()
    with other.lock("a") as lock:
        counter.reset()
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                other.raw.put(f"{other.prefix}/noise", "")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            waiters.append(Waiting(client, "a"))
            eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 2)
            time.sleep(0.5)  # nothing is to happen
        finally:
            stop.set()
            writer.join()
        assert counter.counts["Txn"] <= 2
        assert lock.held
    waiters[0].result().unlock()


def sorted_queue(server: EtcdServer, prefix: str) -> list[str]:
    return server.ctl(
        "get", "--prefix", f"{prefix}/locks/a/", "--keys-only", "--sort-by=CREATE", "--order=ASCEND"
    ).split()


@pytest.mark.slow
def test_f47_holders_killed_at_random(etcd_server: EtcdServer, prefix: str) -> None:
    with contenders(4, [etcd_server.endpoint], prefix, rounds=15, ttl=1) as processes:
        eventually(lambda: keys_under(etcd_server, f"{prefix}/counter/"), timeout=20)
        processes[0].kill()
        processes[0].communicate()
        records = finish(processes[1:], timeout=40)
    assert len([r for r in records if r["counted"]]) == 45


def test_f48_waiter_whose_lease_is_revoked_stops_at_once(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    client = make_client(etcd_server.endpoint)
    with client.lock("a") as lock:
        waiter = Waiting(client, "a")
        eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 2)
        (own,) = [k for k in sorted_queue(etcd_server, client.prefix) if k != lock.etcd_key]
        etcd_server.ctl("lease", "revoke", own.rsplit("/", 1)[1])
        waiter.thread.join(10)
        assert isinstance(waiter.error, LeaseLost)
        assert lock.held


@pytest.mark.parametrize("name", ["größe/ключ", "a b", "x\u10ffff", "ÿ", "nested/deep/name"])
def test_f49_unusual_names(etcd_server: EtcdServer, make_client: MakeClient, name: str) -> None:
    client = make_client(etcd_server.endpoint)
    with client.lock(name) as lock:
        assert client.try_lock(name) is None
        assert lock.etcd_key.startswith(f"{client.prefix}/locks/{name}/")
    client.lock(name, timeout=5).unlock()


@pytest.mark.parametrize(("holder", "other"), [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c")])
def test_f49_a_nested_name_is_another_lock(
    etcd_server: EtcdServer, make_client: MakeClient, holder: str, other: str
) -> None:
    client = make_client(etcd_server.endpoint)
    with client.lock(holder), client.lock(other, timeout=5) as second:
        assert second.held
        assert client.try_lock(holder) is None
        assert client.try_lock(other) is None


@pytest.mark.slow
def test_f50_etcdctl_in_the_same_queue_and_killed(
    etcd_server: EtcdServer, make_client: MakeClient, waiters: list[Waiting]
) -> None:
    """Ours, then ``etcdctl lock``, then ours; the tool dies as it is: its lease is its last word.

    Both tools in both orders, elections too: tests/interop/test_etcdctl.py.
    """
    client = make_client(etcd_server.endpoint)
    name = f"{client.prefix}/locks/a"
    first = client.lock("a")
    tool = etcd_server.ctl_process("lock", "--ttl=1", name)
    try:
        eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 2)
        waiters.append(Waiting(client, "a"))
        eventually(lambda: queue_length(etcd_server, client.prefix, "a") == 3)
        assert first.unlock()
        assert tool.stdout is not None
        assert tool.stdout.readline().startswith(name)
        assert waiters[0].lock is None
        tool.kill()
        last = waiters[0].result(30)
    finally:
        tool.kill()
        tool.communicate()
    assert last.token > first.token
    assert last.unlock()


def test_f51_a_thousand_cycles_leave_nothing(
    etcd_server: EtcdServer, make_client: MakeClient
) -> None:
    before = lease_ids(etcd_server)
    client = make_client(etcd_server.endpoint)
    for _ in range(1000):
        client.lock("a").unlock()
    assert keys_under(etcd_server, client.prefix) == []
    assert len(lease_ids(etcd_server) - before) <= client.config.lease_pool
    client.close()
    assert lease_ids(etcd_server) <= before


def test_no_wait_can_crash_the_server(prefix: str) -> None:
    """etcd up to 3.5.4 panics where a read-only transaction with a range is cancelled.

    A waiter that looks at its queue while its connection breaks, or its time ends, must not take
    the cluster down: everything that it sends without writing is a plain range.
    """
    recorder = Recorder()
    with EtcdServer() as server, Client(endpoints=[server.endpoint], prefix=prefix) as holder:
        waiting = Client(Config([server.endpoint], prefix=prefix), interceptors=[recorder])
        with waiting, holder.lock("a"):
            with pytest.raises(LockTimeout):
                waiting.lock("a", timeout=0.5)
            election = holder.campaign("a", "me")
            with pytest.raises(CampaignTimeout):
                waiting.campaign("a", "you", timeout=0.5)
            election.resign()
            assert waiting.try_lock("a") is None
            assert waiting.leader("a") is None
    assert recorder.transactions
    assert not [each for each in recorder.transactions if only_reads(each)]


class Recorder(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Keeps the transactions that a client sends."""

    def __init__(self) -> None:
        self.transactions: list[pb.TxnRequest] = []

    def intercept_unary_unary(self, continuation, details, request):  # type: ignore[no-untyped-def]
        """Keep a transaction, and pass everything on."""
        if isinstance(request, pb.TxnRequest):
            self.transactions.append(request)
        return continuation(details, request)


def only_reads(txn: pb.TxnRequest) -> bool:
    return all(op.HasField("request_range") for op in [*txn.success, *txn.failure])
