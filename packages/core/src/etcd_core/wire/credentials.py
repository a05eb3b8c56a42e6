"""What a login sends and gets, so that a traceback with its variables shows neither.

Error pages and error trackers print the variables of every frame, gRPC's too. Plain data.
"""

from __future__ import annotations

from ..config import Config
from . import messages as pb


class Login:
    """The request of a login; stands in for :class:`messages.AuthenticateRequest` on the wire."""

    def __init__(self, config: Config) -> None:
        self._config = config

    def SerializeToString(self) -> bytes:
        """Return the message's bytes."""
        return pb.AuthenticateRequest(
            name=self._config.username or "", password=self._config.password or ""
        ).SerializeToString()

    def __repr__(self) -> str:
        """Return the user's name."""
        return f"<Login {self._config.username!r}>"


class Token(str):
    """A login token, which travels in the metadata of every call."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Return nothing of it."""
        return "'***'"
