"""What tells that a process begins to serve, and that the hooks are gone afterwards."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator

import pytest

from etcd_core.hosting import HostOptions, ServiceHost, signs


class Waiting:
    """Somebody who waits for a sign."""

    def __init__(self) -> None:
        self.begun = 0
        signs.await_first(self.begin)

    def begin(self) -> None:
        self.begun += 1


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    """Leave no hook behind in the process of the tests."""
    assert not signs.awaited()
    yield
    signs.tell()
    assert hooked() == set()


def hooked() -> set[str]:
    """Return what of Python's own is not as it was."""
    found = {name for name in ("bind", "listen") if name in vars(socket.socket)}
    serve = socketserver.BaseServer.serve_forever
    return found | ({"serve_forever"} if serve.__globals__ is vars(signs) else set())


def test_a_socket_that_listens_is_a_sign_told_once() -> None:
    first, second = Waiting(), Waiting()
    assert hooked() == {"bind", "listen", "serve_forever"}
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0)) as server:
            assert server.getsockname()[1] > 0
        assert (first.begun, second.begun) == (1, 1)
        assert hooked() == set()


def test_a_socket_that_was_bound_before_and_listens_now_is_a_sign() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        waiting = Waiting()
        server.listen()
    assert waiting.begun == 1


def test_clients_and_datagrams_are_none() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        waiting = Waiting()
        with (
            socket.create_connection(server.getsockname()),
            socket.socket(type=socket.SOCK_DGRAM) as datagrams,
        ):
            datagrams.bind(("127.0.0.1", 0))
    assert waiting.begun == 0


def test_a_server_whose_socket_listens_already_gives_it_when_it_runs() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        waiting = Waiting()
        server._BaseServer__shutdown_request = True  # type: ignore[attr-defined]
        server.serve_forever(poll_interval=0.01)
    assert waiting.begun == 1


def test_in_a_running_loop_its_next_turn_is_the_sign() -> None:
    async def serve() -> tuple[int, int]:
        waiting = Waiting()
        before = waiting.begun
        await asyncio.sleep(0)
        return before, waiting.begun

    assert asyncio.run(serve()) == (0, 1)


@pytest.mark.parametrize("port", ["8000", "", None])
def test_a_request_is_a_sign_also_through_a_unix_socket(port: str | None) -> None:
    options = HostOptions.parse({"ENDPOINTS": ["localhost:1"], "SERVICE_NAME": "shop"}, "ETCD_")
    waiting = Waiting()
    host = ServiceHost(options)
    assert host.awaits_request
    host.note_request("", port)
    assert waiting.begun == 1
    assert not host.awaits_request


def test_nobody_is_called_who_was_forgotten_or_is_gone() -> None:
    forgotten, gone, stays = Waiting(), Waiting(), Waiting()
    signs.forget(forgotten.begin)
    signs.forget(forgotten.begin)
    calls = gone.__dict__
    del gone
    gc.collect()
    signs.tell()
    assert (forgotten.begun, calls["begun"], stays.begun) == (0, 0, 1)


def test_a_failure_is_reported_and_the_server_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Waiting):
        def begin(self) -> None:
            raise RuntimeError("no thread")

    failing, waiting = Failing(), Waiting()
    with (
        caplog.at_level(logging.ERROR, "etcd_core.hosting"),
        socket.create_server(("127.0.0.1", 0)),
    ):
        pass
    assert (failing.begun, waiting.begun) == (0, 1)
    assert [record.getMessage() for record in caplog.records] == [
        "starting in a serving process failed"
    ]


def test_what_somebody_else_puts_over_the_hook_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting()
    ours = socket.socket.listen
    calls = []

    def theirs(self: socket.socket, *args: int) -> None:
        calls.append(args)
        ours(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "listen", theirs)
        with socket.create_server(("127.0.0.1", 0)):
            pass
        assert socket.socket.listen is theirs
    del socket.socket.listen  # type: ignore[misc]
    assert len(calls) == waiting.begun == 1


# The second process is forked from one that waits; neither it nor its parent is to have a hook.
FORKS = """
import os, socket
from etcd_core.hosting import HostOptions, ServiceHost, signs

class Waiting:
    def begin(self):
        os.write(1, b"begun ")

waiting = Waiting()
signs.await_first(waiting.begin)
child = os.fork()
if child == 0:
    socket.create_server(("127.0.0.1", 0)).close()
    os._exit("listen" in vars(socket.socket))
assert os.waitpid(child, 0)[1] == 0
os.write(1, b"child ")
socket.create_server(("127.0.0.1", 0)).close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_gives_no_sign() -> None:
    command = [sys.executable, "-W", "error", "-c", FORKS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "child begun ", done.stderr
