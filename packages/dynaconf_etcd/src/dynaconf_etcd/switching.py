"""Changes of environment, and ``reload()``, of live settings: built aside and swapped in.

Dynaconf empties the object and loads it again, in sight of all readers, and a block of
``using_env`` within another one, or beside one of another thread, does not give back what it found.
Importing this has Dynaconf ask here first. In the thread that calls; any other settings object, and
one that is just being built, is left to Dynaconf.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final

from .internals import Settings
from .live import Live, Temporary, find, own_of

_setenv: Final[Callable[..., None]] = Settings.setenv
_using_env: Final[Callable[..., AbstractContextManager[None]]] = Settings.using_env
_reload: Final[Callable[..., None]] = Settings.reload


@functools.wraps(_setenv)
def setenv(
    self: Settings,
    env: str | None = None,
    clean: bool = True,
    silent: bool = True,
    filename: str | None = None,
) -> None:
    """Choose an environment for good."""
    live = own_of(self) if clean and filename is None else None
    if live is None:
        with _turn_of(self):
            _setenv(self, env, clean=clean, silent=silent, filename=filename)
        return
    default = self.ENV_FOR_DYNACONF
    chosen = _checked(env or default)
    live.choose(self, lambda known: [] if chosen == default else [*known, chosen])


@functools.wraps(_using_env)
@contextmanager
def using_env(
    self: Settings,
    env: str,
    clean: bool = True,
    silent: bool = True,
    filename: str | None = None,
) -> Iterator[None]:
    """Choose an environment for a block."""
    live = own_of(self) if clean and filename is None else None
    if live is None:
        known = list(self.loaded_envs)
        try:
            with _using_env(self, env, clean=clean, silent=silent, filename=filename):
                yield
        finally:
            if _is_live(self):
                self.loaded_envs = known  # after a block in a block, Dynaconf leaves one too many
        return
    chosen = Temporary(_checked(env))
    live.choose(self, lambda known: [*known, chosen])
    try:
        yield
    finally:
        _leave(live, self, chosen)


def _leave(live: Live, settings: Settings, left: Temporary) -> None:
    def without(known: list[str]) -> list[str]:
        return [each for each in known if each is not left]

    try:
        live.choose(settings, without)
    except BaseException:
        # What is there stays, and the next revision is for where the program is by then.
        settings.loaded_envs = without(settings.loaded_envs)
        raise


@functools.wraps(_reload)
def reload(self: Settings, env: str | None = None, silent: bool | None = None) -> None:
    """Load everything anew."""
    live = own_of(self) if env is None else None
    if live is None:
        with _turn_of(self):
            _reload(self, env, silent)
        return
    if not live.feed.options.watch and live.settings is self:
        live.read_again(self)
    live.choose(self, list)


@contextmanager
def _turn_of(settings: Settings) -> Iterator[None]:
    """Let nobody swap contents below what Dynaconf changes in place."""
    live = find(settings)
    with live.turn() if live is not None and _is_live(settings) else nullcontext():
        yield


def _is_live(settings: Settings) -> bool:
    live = find(settings)
    return live is not None and live.settings is settings


def _checked(env: object) -> str:
    if not isinstance(env, str) or " " in env:
        raise ValueError("env should be a string without spaces")
    return env.upper()


Settings.setenv = Settings.namespace = setenv
Settings.using_env = Settings.using_namespace = using_env
Settings.reload = reload
