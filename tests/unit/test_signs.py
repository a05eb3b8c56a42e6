"""What tells that a process begins to serve, and that the hooks are gone afterwards."""

from __future__ import annotations

import _socket
import _thread
import gc
import importlib.abc
import inspect
import logging
import multiprocessing.connection
import os
import socket
import socketserver
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

from etcd_core.hosting import HostOptions, ServiceHost, signs
from etcd_core.testing import eventually


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


def test_a_server_may_begin_where_nothing_called_it() -> None:
    """At the bottom of a thread's stack, as of a greenlet's."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        waiting = Waiting()
        _thread.start_new_thread(server.listen, (5,))
        eventually(lambda: server.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    eventually(lambda: waiting.begun == 1)


def test_processes_that_talk_to_each_other_are_none() -> None:
    waiting = Waiting()
    with multiprocessing.connection.Listener():
        pass
    assert waiting.begun == 0


def test_a_server_that_is_imported_later_has_its_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "daphne"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "server.py").write_text("class Server:\n    def run(self):\n        return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("daphne", "daphne.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    waiting = Waiting()
    server = importlib.import_module("daphne.server")
    # Nothing of the import system is different for it.
    assert inspect.getsource(server).startswith("class Server")
    assert server.__spec__ is not None
    assert server.__spec__.loader is server.__loader__
    assert server.__loader__.__class__.__module__ == "_frozen_importlib_external"
    assert waiting.begun == 0
    assert server.Server().run() == 42
    assert waiting.begun == 1
    for name in ("daphne", "daphne.server"):
        sys.modules.pop(name)


def test_a_finder_that_asks_all_of_them_is_no_circle(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asking(importlib.abc.MetaPathFinder):
        def find_spec(
            self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
        ) -> ModuleSpec | None:
            others = (each for each in sys.meta_path if each is not self)
            found = (each.find_spec(name, path, target) for each in others)
            return next((spec for spec in found if spec is not None), None)

    waiting = Waiting()
    monkeypatch.setattr(sys, "meta_path", [Asking(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "socketserver")
    again = importlib.import_module("socketserver")
    assert again is not socketserver
    assert again.BaseServer.serve_forever.__globals__ is vars(signs)
    signs.tell()
    assert waiting.begun == 1


def test_what_cannot_be_changed_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", _socket.socket)
    waiting = Waiting()
    assert socket.socket is _socket.socket
    assert "listen" in vars(_socket.socket)
    signs.tell()
    assert waiting.begun == 1


def test_a_name_that_is_replaced_meanwhile_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, original = Waiting(), socket.socket
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", lambda *args: original(*args))
        with original() as server:
            server.bind(("127.0.0.1", 0))
    assert waiting.begun == 1


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


def test_with_the_last_one_forgotten_the_hooks_go() -> None:
    waiting = Waiting()
    assert hooked()
    signs.forget(waiting.begin)
    assert hooked() == set()


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


def run(program: str) -> str:
    """Run a program, which is no test to the library; return what it said."""
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout


# The second process is forked from one that waits; neither it nor its parent is to have a hook.
FORKS = """
import os, socket
from etcd_core.hosting import signs

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
    assert run(FORKS) == "child begun "


HOST = """
import os, signal, socket, sys, threading, time
from etcd_core.hosting import HostOptions, ServiceHost, host, signs

def armed():
    found = ServiceHost(HostOptions.parse({"ENDPOINTS": ["127.0.0.1:1"], "SERVICE_NAME": "s"}, ""))
    found.arm()
    return found

def serve():
    return socket.create_server(("127.0.0.1", 0))

def threads():
    return sorted({each.name for each in threading.enumerate()} - {"MainThread"})
"""


def test_deregistered_before_the_sign_it_stays_out() -> None:
    said = run(f"{HOST}\nhost = armed(); host.close()\nwith serve(): print(threads())")
    assert said == "[]\n"


def test_deregistered_while_the_sign_is_given_it_stays_out() -> None:
    # The other thread has the sign, and has not begun yet.
    program = f"""{HOST}
given, go_on, call = threading.Event(), threading.Event(), signs._call
def slowly(begin):
    given.set()
    go_on.wait(30)
    call(begin)
signs._call = slowly
host = armed()
server = threading.Thread(target=lambda: serve().close())
server.start()
given.wait(30)
host.close()
go_on.set()
server.join(30)
print(threads(), host.serving)
"""
    assert run(program) == "[] False\n"


def test_not_ready_before_the_sign_holds_for_an_application_built_twice() -> None:
    program = f"""{HOST}
first, second = armed(), armed()
second.ready(False)
with serve():
    ends = time.monotonic() + 30
    while not first.serving and time.monotonic() < ends:
        time.sleep(0.01)
    # It would begin to make the entry in the step after that it found the address in.
    time.sleep(0.3)
    print(first.serving, threads())
    first.close()
"""
    assert run(program) == "True ['etcd-host']\n"


def test_a_signal_may_deregister_in_the_middle_of_all_this() -> None:
    program = f"""{HOST}
signal.signal(signal.SIGUSR1, lambda *_: found.deregister())
found, hook_in = armed(), signs._hook_in
found.close()
def interrupted():
    os.kill(os.getpid(), signal.SIGUSR1)
    hook_in()
signs._hook_in = interrupted
another = armed()
another.close()
print("done")
"""
    assert run(program) == "done\n"


def test_a_server_that_has_ended_takes_no_signal_along() -> None:
    """The handler that uvicorn leaves behind is ours, and over what was there at first."""
    program = f"""{HOST}
import asyncio, uvicorn
from etcd_core.hosting import stopping

async def answer(scope, receive, send):
    raise AssertionError(scope)

found = armed()
server = uvicorn.Server(uvicorn.Config(answer, port=0, lifespan="off", log_level="critical"))
async def serve_a_moment():
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    stopping.claim_signals()
    server.should_exit = True
    await serving
asyncio.run(serve_a_moment())
found.close()
print("goes on", flush=True)
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(30)
print("alive")
"""
    assert run(program) == "goes on\n"


def test_without_a_thread_the_process_still_ends_by_sigterm() -> None:
    program = f"""{HOST}
import logging
logging.disable()
found = armed()
start = threading.Thread.start
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
with serve():
    threading.Thread.start = start
    print(found.serving, found.deregister(0), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    print("alive")
"""
    assert run(program) == "False True\n"


def test_applications_that_are_dropped_before_they_serve_are_gone() -> None:
    program = """
import gc, weakref
from flask import Flask
from flask_etcd import Etcd

def build():
    app = Flask("x")
    app.config.update(ETCD_ENDPOINTS="127.0.0.1:1", ETCD_SERVICE_NAME="shop")
    Etcd(app)
    return weakref.ref(app)

built = [build() for _ in range(10)]
gc.collect()
print([app() for app in built].count(None))
"""
    assert run(program) == "10\n"


def test_a_request_of_djangos_test_client_needs_no_setting() -> None:
    program = """
import sys, types
from django.conf import settings
from django.http import HttpResponse
from django.urls import path

settings.configure(INSTALLED_APPS=["django_etcd"], ROOT_URLCONF="urls", ALLOWED_HOSTS=["*"])
urls = sys.modules["urls"] = types.ModuleType("urls")
urls.urlpatterns = [path("", lambda request: HttpResponse("served"))]
import django
django.setup()
from django.test import Client
print(Client().get("/").content.decode())
"""
    assert run(program) == "served\n"
