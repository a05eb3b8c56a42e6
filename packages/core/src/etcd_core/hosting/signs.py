"""Tells when this process begins to serve. Owns the hooks into sockets and servers. No thread.

That an application is built says little: scripts, shells and parents that will fork build it too.
What a server does next says more: it binds, listens, runs. The first such sign is told, in
whichever thread gives it, and the hooks are taken out again.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from types import ModuleType

from ..events import Event, fields
from . import process

_log = logging.getLogger("etcd_core.hosting")

# Module, class where it is a method, and function.
_SIGNS = (
    # Any server that opens its socket in Python; what uvloop opens it binds here.
    ("socket", "socket", "bind"),
    ("socket", "socket", "listen"),
    # Those that may be given a socket that listens already: werkzeug by its reloader, ...
    ("socketserver", "BaseServer", "serve_forever"),
    ("gevent.baseserver", "BaseServer", "start"),
    ("uvicorn.server", "Server", "startup"),
    ("daphne.server", "Server", "run"),
    ("hypercorn.asyncio.run", None, "worker_serve"),
    ("hypercorn.trio.run", None, "worker_serve"),
    # ... and these, which listen in Rust. What they call next is in C, but for this.
    ("granian._signals", None, "set_loop_signals"),
    ("granian._signals", None, "set_sync_signals"),
    ("granian.server.embed", "Server", "startup"),
)
_MODULES = frozenset(module for module, _, _ in _SIGNS)

# Reentrant: a program may deregister in a handler of a signal that comes while this thread has it.
_lock = threading.RLock()
_waiting: list[weakref.WeakMethod[Callable[[], object]]] = []
_hooks: dict[tuple[int, str], _Hook] = {}


def await_first(begin: Callable[[], object]) -> None:
    """Call ``begin()`` once, at the first sign that this process serves; never in a forked child.

    Thread-safe, no I/O.

    Args:
        begin: A bound method; not called any more once its object is gone.
    """
    with _lock:
        _waiting.append(weakref.WeakMethod(begin))
        if _finder not in sys.meta_path:
            # It stays: to take a finder out while another thread imports may have that thread
            # pass over the one behind it.
            sys.meta_path.insert(0, _finder)
        _hook_in()


def forget(begin: Callable[[], object]) -> None:
    """Call ``begin()`` no more. Thread-safe."""
    with _lock:
        _waiting[:] = [each for each in _waiting if each() not in (None, begin)]
        if not _waiting:
            _take_hooks_out()


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
        self._original = original = getattr(owner, name)

        @functools.wraps(original)
        def tell_and_call(*args: object, **kwargs: object) -> object:
            if not (_is_datagram(args) or process.called_by("multiprocessing")):
                _call(tell)
            return original(*args, **kwargs)

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


class _Finder(importlib.abc.MetaPathFinder):
    """Hooks into the servers that are imported while somebody waits."""

    def __init__(self) -> None:
        # Another finder may ask all of them too, and this one among them.
        self._search = threading.local()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Have the others find the module, and hook into it when it is there."""
        if fullname not in _MODULES or not _waiting or hasattr(self._search, "goes_on"):
            return None
        self._search.goes_on = True
        try:
            return self._find_by_others(fullname, path, target)
        finally:
            del self._search.goes_on

    def _find_by_others(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> importlib.machinery.ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # From here on it is the module that it would be without us.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        with _lock:
            if _waiting:
                _hook_in()


_finder = _Finder()


def _hook_in() -> None:
    """Hook into whatever is loaded, and has no hook yet."""
    for module_name, class_name, name in _SIGNS:
        module = sys.modules.get(module_name)
        owner = module if class_name is None else getattr(module, class_name, None)
        if (id(owner), name) in _hooks or not hasattr(owner, name):
            continue
        try:
            _hooks[id(owner), name] = _Hook(owner, name)
        except TypeError:
            # Somebody has put a type there that cannot be changed. There are other signs.
            continue


def _take_hooks_out() -> None:
    # Taken first: a handler of a signal may come to do the same meanwhile.
    hooks = [*_hooks.values()]
    _hooks.clear()
    for hook in hooks:
        hook.take_out()


def _is_datagram(args: tuple[object, ...]) -> bool:
    # The class may have been replaced, even by a function: only the object itself is asked.
    kind = getattr(args[0], "type", None) if args else None
    return kind == socket.SOCK_DGRAM


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
    _lock = threading.RLock()
    _waiting.clear()
    _take_hooks_out()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
