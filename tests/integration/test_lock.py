"""Locks on a real etcd: M1 to M12 without faults, and what a lock costs."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from etcd_core import (
    Client,
    ClosedError,
    ConnectionFailed,
    EtcdError,
    InvalidArgument,
    LeaseLost,
    Lock,
    LockTimeout,
    signals,
)
from etcd_core.testing import EtcdServer, FaultProxy, RpcCounter, eventually
from witness import keys_under, lease_ids, revision


@pytest.fixture
def counter() -> RpcCounter:
    return RpcCounter()


@pytest.fixture
def client(
    # Before make_client, so that a client is closed before its way to etcd is.
    proxy: FaultProxy,
    etcd_server: EtcdServer,
    make_client: Callable[..., Client],
    counter: RpcCounter,
) -> Client:
    return make_client(etcd_server.endpoint, interceptors=(counter,))


def test_key_and_token(client: Client, etcd_server: EtcdServer, prefix: str) -> None:
    lock = client.lock("jobs/cleanup")
    assert lock.key == "jobs/cleanup"
    (key,) = keys_under(etcd_server, prefix)
    assert key == lock.etcd_key
    assert key.startswith(f"{prefix}/locks/jobs/cleanup/")
    assert int(key.rsplit("/", 1)[1], 16) > 0
    assert etcd_server.ctl("get", "--print-value-only", key).strip() == ""
    assert lock.held
    assert not lock.done.is_set()
    assert lock.unlock() is True
    assert not lock.held
    assert lock.done.is_set()
    assert keys_under(etcd_server, prefix) == []


def test_unlock_is_idempotent_and_a_released_lock_cannot_be_entered(client: Client) -> None:
    lock = client.lock("a")
    assert lock.unlock() is True
    assert lock.unlock() is False
    with pytest.raises(ClosedError, match="released"), lock:
        pytest.fail("the body ran unlocked")


def test_tokens_grow(client: Client) -> None:
    tokens = []
    for _ in range(5):
        with client.lock("a") as lock:
            tokens.append(lock.token)
    assert tokens == sorted(set(tokens))


def test_warm_cycle_costs_two_requests(client: Client, counter: RpcCounter) -> None:
    client.lock("a").unlock()
    with counter.expect(Txn=40):
        for _ in range(20):
            client.lock("a").unlock()


def test_failed_try_lock_costs_one_request_and_no_revision(
    client: Client, counter: RpcCounter, etcd_server: EtcdServer
) -> None:
    with client.lock("a"):
        assert client.try_lock("a") is None
        before = revision(etcd_server)
        with counter.expect(Txn=1):
            assert client.try_lock("a") is None
        assert revision(etcd_server) == before


def test_try_lock_takes_a_free_lock(client: Client) -> None:
    lock = client.try_lock("a")
    assert lock is not None
    assert lock.held
    assert client.try_lock("a") is None
    lock.unlock()
    again = client.try_lock("a")
    assert again is not None
    assert again.token > lock.token
    again.unlock()


def test_threads_of_one_process_exclude_each_other_in_order(client: Client) -> None:
    order: list[int] = []
    inside = threading.Lock()
    first = client.lock("a")

    def work(number: int) -> None:
        with client.lock("a", timeout=20):
            assert inside.acquire(blocking=False), "two owners"
            order.append(number)
            inside.release()

    threads = []
    for number in range(8):
        thread = threading.Thread(target=work, args=(number,))
        thread.start()
        threads.append(thread)
        eventually(lambda n=number: _waiters(client, "a") == n + 2)
    first.unlock()
    for thread in threads:
        thread.join(20)
    assert order == list(range(8))


def _waiters(client: Client, key: str) -> int:
    return len(list(client.raw.get_prefix(f"{client.prefix}/locks/{key}/")))


def test_timeout_leaves_no_key(client: Client, etcd_server: EtcdServer, prefix: str) -> None:
    with client.lock("a"):
        started = time.monotonic()
        with pytest.raises(LockTimeout, match=r"lock 'a': not acquired within 0.3 s \(behind"):
            client.lock("a", timeout=0.3)
        assert time.monotonic() - started >= 0.3
        assert len(keys_under(etcd_server, prefix)) == 1


def test_zero_timeout_takes_a_free_lock(client: Client) -> None:
    with client.lock("a", timeout=0), pytest.raises(LockTimeout):
        client.lock("a", timeout=0)


def test_interrupt_while_waiting_leaves_no_key(
    client: Client, etcd_server: EtcdServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcd_core.contender import Contender

    def interrupted(self: Contender, deadline: float | None) -> None:
        raise KeyboardInterrupt

    with client.lock("a"):
        monkeypatch.setattr(Contender, "_sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            client.lock("a")
        assert len(keys_under(etcd_server, prefix)) == 1


@pytest.mark.parametrize("holder", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("other", ["a", "a/b", "a/b/c"])
def test_nested_names_do_not_contend(client: Client, holder: str, other: str) -> None:
    with client.lock(holder):
        if holder == other:
            assert client.try_lock(other) is None
            with pytest.raises(LockTimeout):
                client.lock(other, timeout=0.1)
            return
        taken = client.try_lock(other)
        assert taken is not None
        assert client.try_lock(other) is None
        taken.unlock()
        client.lock(other, timeout=5).unlock()


def test_nested_waiter_is_served_when_its_own_holder_leaves(client: Client) -> None:
    nested = client.lock("a/b")
    outer = client.lock("a")
    got: list[bool] = []

    def wait() -> None:
        with client.lock("a", timeout=10) as lock:
            got.append(lock.held)

    thread = threading.Thread(target=wait)
    thread.start()
    eventually(lambda: _waiters(client, "a") == 3)
    outer.unlock()
    thread.join(10)
    assert got == [True]
    assert nested.held
    nested.unlock()


def test_guard_in_a_raw_transaction(client: Client) -> None:
    raw = client.raw
    with client.lock("a") as lock:
        guard = lock.guard()
        done, _ = raw.transaction(
            compare=[guard], success=[raw.transactions.put(f"{client.prefix}/x", "1")]
        )
        assert done
    done, _ = raw.transaction(
        compare=[guard], success=[raw.transactions.put(f"{client.prefix}/x", "2")]
    )
    assert not done
    assert raw.get(f"{client.prefix}/x")[0] == b"1"


def test_pool_of_zero_leaves_no_lease(
    etcd_server: EtcdServer, make_client: Callable[..., Client]
) -> None:
    client = make_client(etcd_server.endpoint, lease_pool=0)
    before = lease_ids(etcd_server)
    client.lock("a").unlock()
    lock = client.try_lock("a")
    assert lock is not None
    assert client.try_lock("a") is None
    client.close()
    assert not lock.held
    assert lease_ids(etcd_server) == before


def drop(held: list[Lock]) -> None:
    held.clear()
    gc.collect()


def test_collected_lock_warns_and_is_left_to_expire(client: Client) -> None:
    held = [client.lock("a", ttl=1)]
    done = held[0].done
    with pytest.warns(ResourceWarning, match="garbage-collected while held"):
        drop(held)
    assert done.wait(5)
    client.lock("a", timeout=20).unlock()


def test_lost_and_collected_lock_leaves_no_key(client: Client, etcd_server: EtcdServer) -> None:
    held = [client.lock("a")]
    etcd_server.ctl("put", held[0].etcd_key, "detached")
    assert held[0].done.wait(10)
    drop(held)
    client.lock("a", timeout=10).unlock()


def test_loss_is_told_once(client: Client, etcd_server: EtcdServer) -> None:
    told: list[tuple[str, str]] = []

    def on_lost(lock: object, *, key: str, reason: str, **_: object) -> None:
        told.append((key, reason))

    with signals.lock_lost.connected_to(on_lost):
        lock = client.lock("a")
        etcd_server.ctl("del", lock.etcd_key)
        assert lock.done.wait(10)
        assert not lock.held
        assert lock.lost_reason == "deleted"
        eventually(lambda: told == [("a", "deleted")])
        assert lock.unlock() is False
    with pytest.raises(ClosedError):
        lock.__enter__()


def test_a_lost_lock_cannot_be_entered(client: Client, etcd_server: EtcdServer) -> None:
    lock = client.lock("a")
    etcd_server.ctl("del", lock.etcd_key)
    assert lock.done.wait(10)
    with pytest.raises(LeaseLost, match="deleted"), lock:
        pytest.fail("the body ran unlocked")


@pytest.mark.parametrize("key", ["", "/", "a\0b", "\ud800", 3, None])
def test_bad_keys_are_refused(client: Client, counter: RpcCounter, key: str) -> None:
    with counter.expect(), pytest.raises(InvalidArgument, match="lock: key"):
        client.lock(key)


@pytest.mark.parametrize("ttl", [-1, float("nan"), float("inf"), 1e10, "3", True])
def test_bad_ttls_are_refused(client: Client, counter: RpcCounter, ttl: float) -> None:
    with counter.expect(), pytest.raises(InvalidArgument, match="lock 'a': ttl"):
        client.lock("a", ttl=ttl)


@pytest.mark.parametrize("timeout", [-1, -0.5, float("nan"), "5", True, [1]])
def test_bad_timeouts_are_refused(client: Client, counter: RpcCounter, timeout: float) -> None:
    with counter.expect():
        for call in (client.lock, client.try_lock):
            with pytest.raises(InvalidArgument, match="lock 'a': timeout must be"):
                call("a", timeout=timeout)
        with pytest.raises(InvalidArgument, match="campaign in election 'a': timeout must be"):
            client.campaign("a", "me", timeout=timeout)


@pytest.mark.parametrize("timeout", [float("nan"), "5", True])
def test_bad_timeouts_of_any_call(client: Client, counter: RpcCounter, timeout: float) -> None:
    with counter.expect(), pytest.raises(InvalidArgument, match="timeout must be"):
        client.config_source("a").load(timeout=timeout)


@pytest.mark.parametrize("how", ["refused", "black hole"])
def test_the_timeout_is_kept_while_etcd_is_away(
    proxy: FaultProxy, make_client: Callable[..., Client], how: str
) -> None:
    client = make_client(proxy.endpoint, timeout=30.0)
    client.lock("a").unlock()
    if how == "refused":
        proxy.refuse()
        proxy.reset()
    else:
        proxy.hold()
    calls = (
        lambda seconds: client.lock("a", timeout=seconds),
        lambda seconds: client.campaign("a", "me", timeout=seconds),
    )
    for call in calls:
        for seconds in (0, 0.3):
            started = time.monotonic()
            with pytest.raises(ConnectionFailed):
                call(seconds)
            assert time.monotonic() - started < 6
    proxy.heal()


def test_the_timeout_is_for_joining_and_waiting_together(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcd_core.contender import Contender

    join, wait = Contender.join, Contender.wait
    waits: list[float | None] = []

    def slow_join(self: Contender, within: float | None = None) -> None:
        join(self, within)
        time.sleep(0.2)

    def noted_wait(self: Contender, timeout: float | None) -> None:
        waits.append(timeout)
        wait(self, timeout)

    monkeypatch.setattr(Contender, "join", slow_join)
    monkeypatch.setattr(Contender, "wait", noted_wait)
    with client.lock("a"), pytest.raises(LockTimeout, match=r"within 0\.5 s"):
        client.lock("a", timeout=0.5)
    assert waits[0] is None
    assert waits[1] is not None
    assert 0 <= waits[1] <= 0.3


@pytest.mark.parametrize("queued", [True, False])
def test_what_was_given_up_in_an_outage_is_taken_back_after_it(
    client: Client,
    etcd_server: EtcdServer,
    proxy: FaultProxy,
    make_client: Callable[..., Client],
    queued: bool,
) -> None:
    other = make_client(proxy.endpoint)
    other.lock("warm", ttl=600).unlock()
    with client.lock("a", ttl=600) as lock:
        if queued:
            waiter = Caller(lambda: other.lock("a", ttl=600, timeout=1.0))
            # Its key is there before it knows of it; then it watches that and the one before it.
            eventually(lambda: other.scope().engine.hub.count == 2)
            proxy.hold()
        else:
            proxy.hold()
            waiter = Caller(lambda: other.lock("a", ttl=600, timeout=0.5))
        assert isinstance(waiter.error(), LockTimeout if queued else ConnectionFailed)
        proxy.heal()
        # Long before their TTL.
        eventually(lambda: _waiters(client, "a") == 1, timeout=20)
        eventually(lambda: other.scope()._held == {}, timeout=20)
        assert _waiters(client, "a") == 1
        assert lock.held


def test_an_interrupted_join_leaves_no_key_behind_a_close(
    client: Client, etcd_server: EtcdServer, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from etcd_core.contender import Contender

    transact = Contender._transact

    def interrupted(self: Contender, *args: object, **kwargs: object) -> None:
        transact(self, *args, **kwargs)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    client.lock("a").unlock()
    monkeypatch.setattr(Contender, "_transact", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.lock("a")
    client.close()
    assert keys_under(etcd_server, prefix) == []


def test_what_gave_up_returns_its_lease(client: Client, counter: RpcCounter) -> None:
    with client.lock("a"):
        for _ in range(2):
            with pytest.raises(LockTimeout):
                client.lock("a", timeout=0)
        counter.reset()
        with pytest.raises(LockTimeout):
            client.lock("a", timeout=0)
        assert counter.counts["Txn"] == 2
        assert not {"LeaseGrant", "LeaseRevoke"} & set(counter.counts)


class Caller:
    """A call in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._call()
        except EtcdError as exc:
            self._error = exc

    def error(self) -> BaseException | None:
        """Wait for the end."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self._error


def test_closed_client(client: Client) -> None:
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        client.lock("a")


def test_close_releases(client: Client, etcd_server: EtcdServer, prefix: str) -> None:
    lock = client.lock("a")
    election = client.campaign("b", "me")
    client.close()
    assert not lock.held
    assert not election.is_leader
    assert keys_under(etcd_server, prefix) == []


def test_no_lost_lock_is_returned(etcd_server: EtcdServer, prefix: str) -> None:
    """On a link that is slower than the lease lasts, a win can come too late."""
    with (
        FaultProxy(etcd_server.endpoint) as proxy,
        Client(endpoints=[proxy.endpoint], prefix=prefix) as client,
    ):
        # A spare lease, as in a busy program: joining is one request, which takes longer.
        client.lock("warm", ttl=1).unlock()
        proxy.delay(0.8)
        with suppress(EtcdError):
            lock = client.lock("a", ttl=1, timeout=5)
            assert lock.held
