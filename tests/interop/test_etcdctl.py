"""F50: the same locks and elections as etcd's own tools, in both directions."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from etcd_core import Client, Descriptor
from etcd_core.testing import EtcdServer, eventually
from witness import keys_under


@pytest.fixture
def client(etcd_server: EtcdServer, make_client: Callable[..., Client]) -> Client:
    return make_client(etcd_server.endpoint)


class Tool:
    """A running etcdctl and the lines it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="etcdctl-reader")
        self._reader.start()

    def line(self, timeout: float = 15.0) -> str:
        return self._lines.get(timeout=timeout)

    def quiet(self) -> bool:
        return self._lines.empty()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.strip())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait(10)
            self._reader.join(10)
            for pipe in (self.process.stdout, self.process.stderr, self.process.stdin):
                if pipe is not None:
                    pipe.close()


@contextmanager
def tool(server: EtcdServer, *args: str) -> Iterator[Tool]:
    running = Tool(server.ctl_process(*args))
    try:
        yield running
    finally:
        running.stop()


def test_etcdctl_holds_the_lock_we_wait_for(client: Client, etcd_server: EtcdServer) -> None:
    name = f"{client.prefix}/locks/job"
    with tool(etcd_server, "lock", name) as holder:
        key = holder.line()
        assert key.startswith(f"{name}/")
        assert client.try_lock("job") is None
        taken = []
        thread = threading.Thread(target=lambda: taken.append(client.lock("job", timeout=20)))
        thread.start()
        eventually(lambda: len(keys_under(etcd_server, f"{name}/")) == 2)
        assert not taken
    thread.join(20)
    assert taken[0].held
    taken[0].unlock()


def test_etcdctl_waits_for_the_lock_we_hold(client: Client, etcd_server: EtcdServer) -> None:
    name = f"{client.prefix}/locks/job"
    lock = client.lock("job")
    with tool(etcd_server, "lock", name) as waiter:
        eventually(lambda: len(keys_under(etcd_server, f"{name}/")) == 2)
        assert waiter.quiet()
        third: list[bool] = []

        def wait_behind() -> None:
            with client.lock("job", timeout=30) as mine:
                third.append(mine.held)

        thread = threading.Thread(target=wait_behind)
        thread.start()
        eventually(lambda: len(keys_under(etcd_server, f"{name}/")) == 3)
        lock.unlock()
        # The order of arrival is shared: the tool is next, then our third contender.
        assert waiter.line().startswith(name)
        assert not third
    thread.join(30)
    assert third == [True]


def test_etcdctl_elects_and_we_observe(client: Client, etcd_server: EtcdServer) -> None:
    name = f"{client.prefix}/elections/boss"
    with client.observe("boss") as leaders:
        assert leaders.next(10) is None
        with tool(etcd_server, "elect", name, "from-the-shell") as candidate:
            assert candidate.line().startswith(name)
            assert candidate.line() == "from-the-shell"
            assert leaders.next(10) == "from-the-shell"
            assert client.leader("boss") == "from-the-shell"
            mine = client.candidate("boss", "python")
            assert mine.wait_for_answer(10)
            assert not mine.is_leader
        assert mine.wait(20)
        assert client.leader("boss") == "python"


def test_etcdctl_observes_our_leader(client: Client, etcd_server: EtcdServer) -> None:
    name = f"{client.prefix}/elections/boss"
    with (
        client.campaign("boss", "python") as election,
        tool(etcd_server, "elect", "--listen", name) as observer,
    ):
        assert observer.line().startswith(name)
        assert observer.line() == "python"
        election.proclaim("python 2")
        assert observer.line().startswith(name)
        assert observer.line() == "python 2"


def test_lease_of_a_lock_is_an_ordinary_lease(client: Client, etcd_server: EtcdServer) -> None:
    with client.lock("job", ttl=40) as lock:
        lease = lock.etcd_key.rsplit("/", 1)[1]
        answer = json.loads(etcd_server.ctl("lease", "timetolive", lease, "--keys", "-w", "json"))
        assert answer["granted-ttl"] == 40
        assert 0 < answer["ttl"] <= 40
        assert len(answer["keys"]) == 1


def test_config_and_service_values_as_go_writes_them(
    client: Client, etcd_server: EtcdServer
) -> None:
    prefix = client.prefix
    client.config_source("app").save({"server": {"port": 8080, "name": "yes", "tags": ["a"]}})
    assert (
        etcd_server.ctl("get", "--print-value-only", f"{prefix}/config/app/server.port") == "8080\n"
    )
    assert (
        etcd_server.ctl("get", "--print-value-only", f"{prefix}/config/app/server.name")
        == '"yes"\n'
    )
    me = Descriptor(name="billing", id="b-1", address="10.0.0.5:80", metadata={"z": "1", "a": "<"})
    with client.register(me):
        value = etcd_server.ctl("get", "--print-value-only", f"{prefix}/services/billing/b-1")
    assert value == (
        '{"id":"b-1","name":"billing","address":"10.0.0.5:80","metadata":{"a":"\\u003c","z":"1"}}\n'
    )


def test_values_that_the_tool_wrote_are_read(client: Client, etcd_server: EtcdServer) -> None:
    prefix = client.prefix
    etcd_server.ctl("put", f"{prefix}/config/app/server.port", "9090")
    etcd_server.ctl("put", f"{prefix}/config/app/debug", "true")
    assert client.config_source("app").load().nested() == {"server": {"port": 9090}, "debug": True}
    etcd_server.ctl(
        "put", f"{prefix}/services/billing/go-1", '{"id":"go-1","name":"billing","address":"x:1"}'
    )
    assert [d.address for d in client.discover("billing")] == ["x:1"]
