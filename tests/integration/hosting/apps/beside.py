"""Answers by itself, beside a Flask application: no thread of a request can hold up the end."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import flask_site  # noqa: F401

Message = MutableMapping[str, Any]


async def application(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[..., Awaitable[None]]
) -> None:
    """Answer one request, or the lifespan."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})
        return
    for moment in ("startup", "shutdown"):
        await receive()
        await send({"type": f"lifespan.{moment}.complete"})
