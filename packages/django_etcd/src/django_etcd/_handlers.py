"""Hooks into Django's WSGI and ASGI handlers: building one is what tells a server from a command.

Patches two classes once per process, before ``get_wsgi_application()`` builds a handler. Runs in
whichever thread builds or calls the handler.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_started

from etcd_core.hosting import signs, stopping

from ._state import current_host, in_live_test_server, made_host

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_hooked = False


def hook_in() -> None:
    """Have the service host armed whenever a handler is built. Idempotent."""
    global _hooked
    if _hooked:
        return
    _hooked = True
    _arm_when_built(WSGIHandler)
    _arm_when_built(ASGIHandler)
    _answer_lifespan()
    request_started.connect(_note_request, dispatch_uid="django_etcd")


def _note_request(
    *,
    environ: Mapping[str, str] | None = None,
    scope: Mapping[str, tuple[str, int] | None] | None = None,
    **_: object,
) -> None:
    """Take the first request for a sign, and for the address where sockets cannot be listed."""
    host = made_host()  # one that waits for a sign is there since a handler was built
    if host is None or not host.awaits_request:
        return
    if environ is not None:
        host.note_request(environ.get("SERVER_NAME", ""), environ.get("SERVER_PORT"))
    elif scope is not None:
        host.note_request(*(scope.get("server") or ("", None)))


def _arm_when_built(handler: type[WSGIHandler] | type[ASGIHandler]) -> None:
    build = handler.__init__

    @functools.wraps(build)
    def build_and_arm(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        if not in_live_test_server():
            current_host().arm(by_server=True)

    handler.__init__ = build_and_arm  # type: ignore[method-assign]


def _answer_lifespan() -> None:
    """Serve ASGI's lifespan protocol, which Django refuses: it runs in the server's own loop."""
    call = ASGIHandler.__call__

    @functools.wraps(call)
    async def call_or_live(
        self: ASGIHandler, scope: _Scope, receive: _Receive, send: _Send
    ) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        else:
            await call(self, scope, receive, send)  # type: ignore[arg-type]

    ASGIHandler.__call__ = call_or_live  # type: ignore[method-assign, assignment]


async def _live(receive: _Receive, send: _Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            signs.tell()
            stopping.claim_signals_again()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await asyncio.to_thread(current_host().deregister)
            await send({"type": "lifespan.shutdown.complete"})
            return
