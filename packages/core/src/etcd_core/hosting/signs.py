"""Tells when this process begins to serve. Owns the hooks into sockets and servers. No thread.

That an application is built says little: scripts, shells and parents that will fork build it too.
What a server does next says more: it binds, listens, runs its loop, receives a request. The first
such sign is told, in whichever thread gives it, and all hooks are taken out again.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable

from ..events import Event, fields
from . import process

_log = logging.getLogger("etcd_core.hosting")

# Module, class where it is a method, and function. A server that is not loaded yet loads later
# than the application, and then binds and listens later too.
_SIGNS = (
    # uvloop binds here, and listens in C.
    ("socket", "socket", "bind"),
    ("socket", "socket", "listen"),
    ("gevent.socket", "socket", "bind"),
    ("gevent.socket", "socket", "listen"),
    # werkzeug's reloader hands its child a socket that listens.
    ("socketserver", "BaseServer", "serve_forever"),
    # Servers whose workers are given such a socket, and call this once they have the application.
    ("hypercorn.asyncio.run", None, "worker_serve"),
    ("granian._signals", None, "set_loop_signals"),
    ("granian._signals", None, "set_sync_signals"),
)

_lock = threading.Lock()
_waiting: list[weakref.WeakMethod[Callable[[], object]]] = []
_hooks: list[_Hook] = []


def await_first(begin: Callable[[], object]) -> None:
    """Call ``begin()`` once, at the first sign that this process serves; never in a forked child.

    Thread-safe, no I/O.

    Args:
        begin: A bound method; not called any more once its object is gone.
    """
    with _lock:
        _waiting.append(weakref.WeakMethod(begin))
        if not _hooks:
            _hooks.extend(_hook_in())
    _follow_running_loop()


def forget(begin: Callable[[], object]) -> None:
    """Call ``begin()`` no more. Thread-safe."""
    with _lock:
        if weakref.WeakMethod(begin) in _waiting:
            _waiting.remove(weakref.WeakMethod(begin))


def awaited() -> bool:
    """Tell whether somebody waits for a sign."""
    return bool(_waiting)


def tell() -> None:
    """Take note of a sign, unless a parent that only starts the server gives it. Thread-safe."""
    if not _waiting or process.is_supervisor():
        return
    with _lock:
        begins = [reference() for reference in _waiting]
        _waiting.clear()
        _take_hooks_out()
    for begin in begins:
        if begin is not None:
            _call(begin)


class _Hook:
    """A function of somebody else's that gives the sign when it is called."""

    def __init__(self, owner: object, name: str) -> None:
        self._owner = owner
        self._name = name
        self._own = name in vars(owner)
        original = getattr(owner, name)

        @functools.wraps(original)
        def tell_and_call(*args: object, **kwargs: object) -> object:
            if not _is_datagram(args):
                tell()
            return original(*args, **kwargs)

        self._original = original
        self._hook = tell_and_call
        setattr(owner, name, tell_and_call)

    def take_out(self) -> None:
        """Put back what was there, unless somebody else has put theirs over it."""
        if vars(self._owner).get(self._name) is not self._hook:
            return
        if self._own:
            setattr(self._owner, self._name, self._original)
        else:
            delattr(self._owner, self._name)


def _hook_in() -> list[_Hook]:
    found = {}
    for module_name, class_name, name in _SIGNS:
        module = sys.modules.get(module_name)
        owner = module if class_name is None else getattr(module, class_name, None)
        # Once patched by gevent, both sockets are the same class.
        if hasattr(owner, name):
            found[id(owner), name] = (owner, name)
    return [_Hook(owner, name) for owner, name in found.values()]


def _take_hooks_out() -> None:
    for hook in _hooks:
        hook.take_out()
    _hooks.clear()


def _is_datagram(args: tuple[object, ...]) -> bool:
    first = args[0] if args else None
    return isinstance(first, socket.socket) and first.type != socket.SOCK_STREAM


def _follow_running_loop() -> None:
    """Take the loop's next turn for a sign: uvicorn loads the application in the loop it serves in.

    With uvloop, a worker of several shows nothing else before the first request.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    loop.call_soon(tell)


def _call(begin: Callable[[], object]) -> None:
    try:
        begin()
    except Exception:
        _log.exception(
            "starting in a serving process failed",
            extra=fields(Event.CALLBACK_FAILED, handler="arm"),
        )


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    _waiting.clear()
    _take_hooks_out()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
