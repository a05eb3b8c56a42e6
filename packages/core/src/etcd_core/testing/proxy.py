"""A TCP proxy on 127.0.0.1 that breaks the network on request.

One thread, ``etcd-test-proxy``, owns every socket; the methods hand it a command and return once
that is in force. A crash of the thread is logged to ``etcd_core.testing`` and raised by the next
method. A forked child closes its copies of the sockets, so that only the owner keeps them open.
"""

from __future__ import annotations

import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Literal, TypeVar, cast
from urllib.parse import urlsplit

from .. import forking
from ._ports import free_ports

logger = logging.getLogger("etcd_core.testing")

Direction = Literal["to_server", "to_client"]
T = TypeVar("T")

_CHUNK = 256 * 1024
# What one direction may hold back; then the sender's own buffers fill up, as on a dead network.
_ROOM = 64 * 1024 * 1024
_COMMAND_TIMEOUT = 30.0
_CONNECT_TIMEOUT = 2.0
# l_onoff=1, l_linger=0: close() sends RST.
_LINGER_RESET = struct.pack("ii", 1, 0)


class FaultProxy:
    """A TCP proxy in front of one server.

    Faults add up, and :meth:`heal` ends all of them. Thread-safe. Starts its thread when made.
    Where the target itself refuses connections, the client's connection is made and then reset.

    Args:
        target: Where to, as ``"127.0.0.1:2379"`` or a URL.
        port: Port to listen on; None picks a free one.

    Example:
        >>> with FaultProxy(server.endpoint) as proxy:
        ...     client = Client(endpoints=[proxy.endpoint])
        ...     proxy.hold()
        ...     proxy.heal()
    """

    def __init__(self, target: str, *, port: int | None = None) -> None:
        parts = urlsplit(target if "//" in target else f"//{target}")
        if parts.hostname is None or parts.port is None:
            raise ValueError(f"the target needs a host and a port: {target!r}")
        self._scheme = parts.scheme or "http"
        self._owner = os.getpid()
        self._loop = _Loop((parts.hostname, parts.port), port or free_ports(1)[0])
        self._thread = threading.Thread(target=self._loop.run, name="etcd-test-proxy", daemon=True)
        self._thread.start()
        forking.track(self._loop)

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._loop.port

    @property
    def endpoint(self) -> str:
        """The URL to give to a client, with the scheme of the target (``http`` without one)."""
        return f"{self._scheme}://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many connections of clients it carries now."""
        return self._loop.call(lambda: len(self._loop.links))

    def __enter__(self) -> FaultProxy:
        """Return the proxy; it runs already."""
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the proxy."""
        self.close()

    def __repr__(self) -> str:
        """Show both ends."""
        host, port = self._loop.target
        return f"<FaultProxy {self.endpoint} to {host}:{port}>"

    def hold(self) -> None:
        """Become a black hole: connections stay and new ones are accepted, but no byte passes.

        What is sent meanwhile is kept for :meth:`heal`, also if the sender hangs up.
        """
        self._loop.call(self._loop.hold)

    def heal(self) -> None:
        """End all faults: deliver what is held or delayed, and listen again.

        Connections that lost bytes to :meth:`drop` are reset, for their streams are corrupt.

        Raises:
            OSError: After :meth:`refuse`, another process has taken the port.
        """
        self._loop.call(self._loop.heal)

    def reset(self) -> None:
        """Reset (RST) every connection, on both sides. New ones are accepted at once."""
        self._loop.call(self._loop.reset)

    def refuse(self, refused: bool = True) -> None:
        """Refuse new connections, or accept them again. Those that exist stay.

        Raises:
            OSError: Another process has taken the port in between.
        """
        self._loop.call(self._loop.shut if refused else self._loop.listen)

    def delay(self, seconds: float) -> None:
        """Deliver what is sent from now on that much later, in each direction."""
        self._loop.call(lambda: setattr(self._loop, "lag", seconds))

    def drop(self, direction: Direction) -> None:
        """Discard what is sent in one direction from now on; connections stay open.

        Bytes that the proxy took earlier and is still holding or delaying are delivered.
        """
        if direction not in ("to_server", "to_client"):
            raise ValueError(f"direction is 'to_server' or 'to_client', not {direction!r}")
        self._loop.call(lambda: self._loop.dropped.add(direction))

    def close(self) -> None:
        """End every connection and the thread. Idempotent; in a forked child a no-op."""
        if os.getpid() != self._owner:
            return
        self._loop.close()
        self._thread.join(_COMMAND_TIMEOUT)


class _Flow:
    """One direction of one connection. Owned by the proxy's thread."""

    def __init__(self, direction: Direction) -> None:
        self.direction = direction
        self.chunks: deque[tuple[float, memoryview]] = deque()
        self.size = 0
        self.ended = False  # nothing more comes in
        self.done = False  # and everything went out, or cannot
        self.lost = False  # bytes were discarded

    def take(self, data: bytes, due: float) -> None:
        self.chunks.append((due, memoryview(data)))
        self.size += len(data)

    @property
    def over(self) -> bool:
        # The end of a stream that lost bytes is lost as well: it is not passed on.
        return self.done or (self.ended and self.lost and not self.chunks)

    def hurry(self) -> None:
        self.chunks = deque((0.0, view) for _, view in self.chunks)

    def give_up(self) -> None:
        self.chunks.clear()
        self.size = 0
        self.done = True


class _Link:
    """One connection of a client, and ours to the server. Owned by the proxy's thread."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket | None = None
        self.to_server = _Flow("to_server")
        self.to_client = _Flow("to_client")

    @property
    def flows(self) -> tuple[_Flow, _Flow]:
        return self.to_server, self.to_client

    @property
    def sockets(self) -> list[socket.socket]:
        return [self.client] if self.server is None else [self.client, self.server]

    def source(self, flow: _Flow) -> socket.socket | None:
        return self.client if flow is self.to_server else self.server

    def sink(self, flow: _Flow) -> socket.socket | None:
        return self.server if flow is self.to_server else self.client


class _Loop:
    """The proxy's thread: its sockets, and the faults that are in force.

    Only :meth:`call`, :meth:`close` and :meth:`after_fork_in_child` are for other threads.
    """

    def __init__(self, target: tuple[str, int], port: int) -> None:
        self.target = target
        self.port = port
        self.links: set[_Link] = set()
        self.lag = 0.0
        self.dropped: set[Direction] = set()
        self._held = False
        self._owner = os.getpid()
        self._lock = threading.Lock()
        self._commands: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._ended: Exception | None = None
        self._closing = False
        self._listener: socket.socket | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = socket.socketpair()
        for sock in (self._wake_in, self._wake_out):
            sock.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        try:
            self.listen()
        except OSError:
            self._close_all()
            raise

    def call(self, action: Callable[[], T]) -> T:
        """Run ``action`` on the proxy's thread and return what it returns or raises."""
        if os.getpid() != self._owner:
            raise RuntimeError("the proxy belongs to the process that made it")
        future: Future[object] = Future()
        with self._lock:
            if self._ended is not None:
                raise RuntimeError("the proxy is closed") from self._ended
            self._commands.append((action, future))
            # Under the lock: the thread takes it before it closes this socket.
            with suppress(BlockingIOError):  # full of wake-ups: it will wake up
                self._wake_in.send(b"\0")
        return cast("T", future.result(_COMMAND_TIMEOUT))

    def close(self) -> None:
        with suppress(RuntimeError):
            self.call(lambda: setattr(self, "_closing", True))

    def after_fork_in_child(self) -> None:
        # A copy that stays open would keep the port, and hide every end of a connection.
        self._close_all()

    def run(self) -> None:
        crash: Exception | None = None
        try:
            while not self._closing:
                self._turn()
        except Exception as exc:
            logger.exception("the proxy's thread ended by an error")
            crash = exc
        with self._lock:
            self._ended = crash or RuntimeError("closed")
            rest = list(self._commands)
        self._close_all()
        for _, future in rest:
            future.set_exception(self._ended)

    def hold(self) -> None:
        self._held = True

    def heal(self) -> None:
        self._held, self.lag = False, 0.0
        self.dropped.clear()
        for link in list(self.links):
            if any(flow.lost for flow in link.flows):
                self._end(link, reset=True)
            for flow in link.flows:
                flow.hurry()
        self.listen()

    def reset(self) -> None:
        self._accept()
        for link in list(self.links):
            self._end(link, reset=True)

    def shut(self) -> None:
        if self._listener is not None:
            self._accept()
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None

    def listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.socket()
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self.port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._listener = listener

    def _turn(self) -> None:
        for key, mask in self._selector.select(self._patience()):
            sock = cast("socket.socket", key.fileobj)
            if sock is self._wake_out:
                sock.recv(4096)
            elif sock is self._listener:
                self._accept()
            elif mask & selectors.EVENT_READ:
                self._receive(key.data, sock)
        self._run_commands()
        now = time.monotonic()
        for link in list(self.links):
            self._pump(link, now)

    def _patience(self) -> float | None:
        """Seconds until the next delayed bytes are due."""
        if self._held:
            return None
        now = time.monotonic()
        heads = [flow.chunks[0][0] for link in self.links for flow in link.flows if flow.chunks]
        # What is due and still here waits for its socket, which the selector watches.
        return min((due - now for due in heads if due > now), default=None)

    def _run_commands(self) -> None:
        while True:
            with self._lock:
                if not self._commands:
                    return
                action, future = self._commands.popleft()
            try:
                future.set_result(action())
            except Exception as exc:  # it is the caller's
                future.set_exception(exc)

    def _accept(self) -> None:
        while self._listener is not None:
            try:
                client, _ = self._listener.accept()
            except BlockingIOError:
                return
            _prepare(client)
            self.links.add(_Link(client))

    def _receive(self, link: _Link, sock: socket.socket) -> None:
        flow, back = link.flows if sock is link.client else link.flows[::-1]
        try:
            data = sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            # Reset by its peer: nobody is left to send to, but what it sent before is sent on.
            data = b""
            back.give_up()
        flow.ended = not data
        if flow.direction in self.dropped:
            flow.lost = True
        elif data and not flow.done:
            flow.take(data, time.monotonic() + self.lag)

    def _pump(self, link: _Link, now: float) -> None:
        if link.server is None and not self._held and not self._connect(link):
            return
        for flow in link.flows:
            sink = link.sink(flow)
            if sink is not None and not self._held and not flow.done:
                _send(flow, sink, now)
        if all(flow.over for flow in link.flows):
            self._end(link, reset=False)
            return
        for flow in link.flows:
            self._watch(link, flow, now)

    def _connect(self, link: _Link) -> bool:
        try:
            link.server = socket.create_connection(self.target, _CONNECT_TIMEOUT)
        except OSError:
            self._end(link, reset=True)
            return False
        _prepare(link.server)
        return True

    def _watch(self, link: _Link, flow: _Flow, now: float) -> None:
        """Watch the source of ``flow`` for reading, and for writing if it is a full sink."""
        sock = link.source(flow)
        if sock is None:
            return
        back = link.to_client if flow is link.to_server else link.to_server
        mask = 0
        if not flow.ended and flow.size < _ROOM:
            mask |= selectors.EVENT_READ
        if back.chunks and back.chunks[0][0] <= now and not self._held:
            mask |= selectors.EVENT_WRITE
        registered = sock in self._selector.get_map()
        if mask and registered:
            self._selector.modify(sock, mask, link)
        elif mask:
            self._selector.register(sock, mask, link)
        elif registered:
            self._selector.unregister(sock)

    def _end(self, link: _Link, *, reset: bool) -> None:
        self.links.discard(link)
        for sock in link.sockets:
            if sock in self._selector.get_map():
                self._selector.unregister(sock)
            if reset:
                with suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
            sock.close()

    def _close_all(self) -> None:
        self._selector.close()
        sockets = [self._wake_in, self._wake_out]
        sockets += [sock for link in self.links for sock in link.sockets]
        sockets += [self._listener] if self._listener is not None else []
        for sock in sockets:
            sock.close()
        self.links.clear()


def _prepare(sock: socket.socket) -> None:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _send(flow: _Flow, sink: socket.socket, now: float) -> None:
    while flow.chunks and flow.chunks[0][0] <= now:
        due, view = flow.chunks[0]
        try:
            sent = sink.send(view)
        except BlockingIOError:
            return
        except OSError:
            flow.give_up()
            return
        flow.size -= sent
        if sent == len(view):
            flow.chunks.popleft()
        else:
            flow.chunks[0] = (due, view[sent:])
    if flow.ended and not flow.chunks and not flow.lost:
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        flow.done = True
