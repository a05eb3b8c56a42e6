"""FaultProxy: each fault seen by plain sockets, and by etcd."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from etcd_core.testing import EtcdServer, FaultProxy, eventually
from etcd_core.testing._ports import in_use

# Long enough to see that nothing comes, short enough to wait for.
QUIET = 0.2


class Peer:
    """A server for one test: accepts, and keeps what it accepted."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.listener.settimeout(10)
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"

    def accept(self) -> socket.socket:
        sock = self._stack.enter_context(self.listener.accept()[0])
        sock.settimeout(10)
        return sock


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def peer(stack: ExitStack) -> Peer:
    return Peer(stack)


@pytest.fixture
def proxy(stack: ExitStack, peer: Peer) -> FaultProxy:
    return stack.enter_context(FaultProxy(peer.address))


@pytest.fixture
def connect(stack: ExitStack, proxy: FaultProxy) -> Callable[[], socket.socket]:
    def connect() -> socket.socket:
        return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))

    return connect


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair(connect: Callable[[], socket.socket], peer: Peer) -> Pair:
    return connect(), peer.accept()


def quiet(sock: socket.socket) -> bool:
    return not select.select([sock], [], [], QUIET)[0]


def read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (part := sock.recv(size - len(data))):
        data += part
    return data


def test_bytes_pass_both_ways(pair: Pair, proxy: FaultProxy) -> None:
    client, server = pair
    client.sendall(b"ping")
    assert read(server, 4) == b"ping"
    server.sendall(b"pong")
    assert read(client, 4) == b"pong"
    assert proxy.connections == 1


def test_large_transfers_arrive_whole(pair: Pair) -> None:
    client, server = pair
    data = os.urandom(8 << 20)
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    assert read(server, len(data)) == data
    sender.join()


def test_a_half_closed_connection_stays_half_open(pair: Pair, proxy: FaultProxy) -> None:
    client, server = pair
    client.sendall(b"last")
    client.shutdown(socket.SHUT_WR)
    assert read(server, 100) == b"last"
    server.sendall(b"answer")
    assert read(client, 6) == b"answer"
    server.close()
    assert client.recv(1) == b""
    eventually(lambda: proxy.connections == 0)


def test_hold_passes_nothing_and_heal_delivers_it(pair: Pair, proxy: FaultProxy) -> None:
    client, server = pair
    proxy.hold()
    client.sendall(b"to server")
    server.sendall(b"to client")
    assert quiet(server)
    assert quiet(client)
    proxy.heal()
    assert read(server, 9) == b"to server"
    assert read(client, 9) == b"to client"
    client.sendall(b"later")
    assert read(server, 5) == b"later"


def test_hold_accepts_new_connections(
    peer: Peer, proxy: FaultProxy, connect: Callable[[], socket.socket]
) -> None:
    proxy.hold()
    client = connect()
    client.sendall(b"early")
    assert quiet(peer.listener)
    eventually(lambda: proxy.connections == 1)
    proxy.heal()
    assert read(peer.accept(), 5) == b"early"


@pytest.mark.parametrize("reset", [False, True])
def test_held_bytes_outlive_their_sender(pair: Pair, proxy: FaultProxy, reset: bool) -> None:
    client, server = pair
    proxy.hold()
    client.sendall(b"late write")
    if reset:
        server.sendall(b"never read")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    assert quiet(server)
    proxy.heal()
    assert read(server, 100) == b"late write"
    server.close()
    eventually(lambda: proxy.connections == 0)


def test_reset_breaks_every_connection_at_once(
    pair: Pair, peer: Peer, proxy: FaultProxy, connect: Callable[[], socket.socket]
) -> None:
    proxy.reset()
    assert proxy.connections == 0
    for sock in pair:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    client = connect()
    client.sendall(b"again")
    assert read(peer.accept(), 5) == b"again"


def test_refuse_keeps_what_exists(
    pair: Pair, peer: Peer, proxy: FaultProxy, connect: Callable[[], socket.socket]
) -> None:
    client, server = pair
    port = proxy.port
    proxy.refuse()
    proxy.refuse()
    with pytest.raises(ConnectionRefusedError):
        connect()
    client.sendall(b"still here")
    assert read(server, 10) == b"still here"
    for accept_again in (proxy.heal, lambda: proxy.refuse(False)):
        accept_again()
        assert proxy.port == port
        connect()
        peer.accept()
        proxy.refuse()


def test_refuse_tells_when_the_port_is_gone(proxy: FaultProxy) -> None:
    proxy.refuse()
    with socket.create_server(("127.0.0.1", proxy.port)), pytest.raises(OSError, match="in use"):
        proxy.heal()
    proxy.heal()


def test_delay_is_each_way_and_keeps_the_order(pair: Pair, proxy: FaultProxy) -> None:
    client, server = pair
    proxy.delay(0.3)
    start = time.monotonic()
    client.sendall(b"one")
    assert read(server, 3) == b"one"
    server.sendall(b"two")
    assert read(client, 3) == b"two"
    assert time.monotonic() - start >= 0.6
    proxy.delay(60.0)
    client.sendall(b"three")
    assert quiet(server)
    proxy.delay(0.0)
    client.sendall(b"four")
    assert quiet(server)
    proxy.heal()
    assert read(server, 9) == b"threefour"


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
def test_drop_discards_one_direction_and_heal_resets(
    pair: Pair, proxy: FaultProxy, direction: str
) -> None:
    client, server = pair
    deaf, talking = (server, client) if direction == "to_server" else (client, server)
    proxy.drop("to_server" if direction == "to_server" else "to_client")
    talking.sendall(b"lost")
    assert quiet(deaf)
    deaf.sendall(b"heard")
    assert read(talking, 5) == b"heard"
    proxy.heal()
    for sock in pair:
        with pytest.raises(ConnectionResetError):
            sock.recv(1)


def test_drop_and_heal_leave_a_silent_connection_alone(pair: Pair, proxy: FaultProxy) -> None:
    client, server = pair
    proxy.drop("to_client")
    client.sendall(b"a")
    assert read(server, 1) == b"a"
    proxy.heal()
    server.sendall(b"b")
    assert read(client, 1) == b"b"


def test_drop_refuses_an_unknown_direction(proxy: FaultProxy) -> None:
    with pytest.raises(ValueError, match="'to_server' or 'to_client'"):
        proxy.drop("both")  # type: ignore[arg-type]


def test_a_target_that_is_down_resets_the_client(
    peer: Peer, proxy: FaultProxy, connect: Callable[[], socket.socket]
) -> None:
    peer.listener.close()
    with pytest.raises(ConnectionResetError):
        connect().recv(1)
    eventually(lambda: proxy.connections == 0)


def test_close_ends_connections_thread_and_port(pair: Pair, peer: Peer) -> None:
    proxy = FaultProxy(peer.address)
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        server = peer.accept()
        thread = proxy._thread
        assert thread.name == "etcd-test-proxy"
        proxy.close()
        proxy.close()
        assert not thread.is_alive()
        assert not in_use(proxy.port)
        assert client.recv(1) == b""
        assert server.recv(1) == b""
    with pytest.raises(RuntimeError, match="closed"):
        proxy.hold()


def test_an_idle_proxy_uses_no_time(pair: Pair, proxy: FaultProxy) -> None:
    proxy.hold()
    pair[0].sendall(b"held")
    pair[1].close()
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


_FORKED_CHILD = """
import os, socket
from etcd_core.testing import FaultProxy

listener = socket.create_server(("127.0.0.1", 0))
proxy = FaultProxy("127.0.0.1:%d" % listener.getsockname()[1])
client = socket.create_connection(("127.0.0.1", proxy.port))
pair = client, listener.accept()[0]
# A byte on its way proves that the proxy knows both ends; accept() alone does not.
client.sendall(b"x")
assert pair[1].recv(1) == b"x"
release_in, release_out = os.pipe()
child = os.fork()
if child == 0:
    os.close(release_out)
    # The sockets of this end are copied too, and would hide what the proxy closed.
    for sock in pair:
        sock.close()
    os.read(release_in, 1)
    os._exit(0)
try:
    proxy.reset()
    for sock in pair:
        sock.settimeout(20)
        try:
            sock.recv(1)
        except ConnectionResetError:
            print("reset")
finally:
    os.close(release_out)
    os.waitpid(child, 0)
"""


def test_a_forked_child_does_not_keep_connections_open() -> None:
    # In a process of its own: beside live gRPC channels of other tests a fork proves nothing.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKED_CHILD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=55, check=False)
    assert done.stdout.split() == ["reset", "reset"], done.stderr


def test_target_takes_urls() -> None:
    with FaultProxy("https://localhost:1") as proxy:
        assert proxy.endpoint == f"https://127.0.0.1:{proxy.port}"
        assert repr(proxy) == f"<FaultProxy {proxy.endpoint} to localhost:1>"
    with pytest.raises(ValueError, match="a host and a port"):
        FaultProxy("localhost")


def test_a_real_etcd_behind_it() -> None:
    with EtcdServer() as server, FaultProxy(server.endpoint) as proxy:
        server.ctl("--endpoints", proxy.endpoint, "put", "a", "1")
        proxy.hold()
        put = server.ctl_process("--endpoints", proxy.endpoint, "put", "a", "late", timeout=30)
        try:
            eventually(lambda: proxy.connections > 0, message="etcdctl connects")
            assert server.ctl("get", "a", "--print-value-only") == "1\n"
            proxy.heal()
            assert put.communicate(timeout=30)[0] == "OK\n"
        finally:
            put.kill()
            put.communicate()
        assert server.ctl("get", "a", "--print-value-only") == "late\n"
