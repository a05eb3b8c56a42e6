"""The options of the loader: their names, where they are looked up, and what they mean.

Importing this module makes the names known to Dynaconf, as it knows ``REDIS_FOR_DYNACONF``: then
``etcd={...}`` works as an argument, environment variables are parsed, ``from_env`` inherits them
and ``as_dict`` leaves them out. No I/O, no thread.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import dynaconf.base
import dynaconf.default_settings
from dynaconf.base import Settings

from etcd_core import Config, InvalidConfig, Tls
from etcd_core.keys import require_name

TABLE: Final = "ETCD_FOR_DYNACONF"

_CONFIG_OPTIONS: Final = tuple(
    entry.name for entry in dataclasses.fields(Config) if entry.name != "lease_pool"
)
_OWN_OPTIONS: Final = (
    "name",
    "watch",
    "required",
    "snapshot",
    "evaluate",
    "allow_empty",
    "push_to_django",
)
OPTION_NAMES: Final = (*_CONFIG_OPTIONS, *_OWN_OPTIONS)


@dataclass(frozen=True)
class Options:
    """What the user asked for. Equal options share one feed.

    Attributes:
        config: How to reach etcd.
        name: The configuration's name; the layer of an environment is ``{name}.{env}``.
        watch: Follow etcd; False reads it at load and ``reload()`` only.
        required: Whether an unreachable etcd is an error at start.
        snapshot: Path of the last-known-good file, or None.
        evaluate: Let strings from etcd use Dynaconf's ``@`` tokens. They can run code.
        allow_empty: Take all keys vanishing through a reset of the store for a wish.
        push_to_django: Copy changes into Django's own settings object as well.
    """

    config: Config
    name: str = "config"
    watch: bool = True
    required: bool = True
    snapshot: str | None = field(default=None)
    evaluate: bool = False
    allow_empty: bool = False
    push_to_django: bool = False


def option_name(option: str) -> str:
    """Return the name of an option as a setting of its own and as an environment variable."""
    return f"ETCD_{option.upper()}_FOR_DYNACONF"


def register() -> None:
    """Make the names known to Dynaconf. Idempotent."""
    for name in (TABLE, *map(option_name, OPTION_NAMES)):
        if name not in dynaconf.base.UPPER_DEFAULT_SETTINGS:
            dynaconf.base.UPPER_DEFAULT_SETTINGS.append(name)
        if hasattr(dynaconf.base, "_INTERNAL_KEYS"):
            dynaconf.base._INTERNAL_KEYS.add(name)
            dynaconf.base._is_key_internal.cache_clear()
        if not hasattr(dynaconf.default_settings, name):
            setattr(dynaconf.default_settings, name, None)


def read(settings: Settings) -> Options:
    """Return the options of a settings object that is being loaded.

    A setting or environment variable for one option counts before the table.

    Raises:
        InvalidConfig: They are unusable.
    """
    given = _table(settings)
    for option in OPTION_NAMES:
        value = _single(settings, option_name(option))
        if value is not None:
            given[option] = value
    if "endpoints" not in given:
        raise InvalidConfig(
            f"dynaconf: no endpoints; set {TABLE} = {{'endpoints': [...], 'name': ...}}"
            f" or {option_name('endpoints')}"
        )
    return _options(given)


def _table(settings: Settings) -> dict[str, object]:
    table = settings.get_environ(TABLE, cast=True) if TABLE in os.environ else settings.get(TABLE)
    if table is None:
        return {}
    if not isinstance(table, Mapping):
        raise InvalidConfig(f"dynaconf: {TABLE} must be a table, not {type(table).__name__}")
    given = {str(key).lower(): _plain(value) for key, value in table.items()}
    unknown = sorted(given.keys() - set(OPTION_NAMES))
    if unknown:
        raise InvalidConfig(f"dynaconf: {TABLE} has no option {', '.join(unknown)}")
    return {key: value for key, value in given.items() if value is not None}


def _single(settings: Settings, name: str) -> object:
    # The first load comes before register(), so Dynaconf has not looked at the environment yet.
    if name in os.environ:
        return _plain(settings.get_environ(name, cast=True))
    return _plain(settings.get(name))


def _plain(value: object) -> object:
    """Copy Dynaconf's own containers into plain ones."""
    if isinstance(value, Mapping):
        return {str(key).lower(): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _options(given: dict[str, object]) -> Options:
    endpoints = given["endpoints"]
    if isinstance(endpoints, str):
        given["endpoints"] = [part.strip() for part in endpoints.split(",")]
    given["tls"] = _tls(given.get("tls"))
    for option in ("username", "password", "prefix", "name"):
        if isinstance(given.get(option), int):
            # An environment variable with digits only was parsed as a number.
            given[option] = str(given[option])
    config = Config(**{name: given[name] for name in _CONFIG_OPTIONS if name in given})  # type: ignore[arg-type]
    own: dict[str, object] = {name: given[name] for name in _OWN_OPTIONS if name in given}
    for option in ("watch", "required", "evaluate", "allow_empty", "push_to_django"):
        if not isinstance(own.get(option, True), bool):
            raise InvalidConfig(f"dynaconf: the option {option} must be true or false")
    if "snapshot" in own:
        own["snapshot"] = _path(own["snapshot"])
    own["name"] = require_name("dynaconf", "name", own.get("name", "config")).strip("/")
    return Options(config, **own)  # type: ignore[arg-type]


def _path(value: object) -> str | None:
    if value is False:
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise InvalidConfig("dynaconf: the option snapshot must be a path")
    return os.path.abspath(os.fspath(value))


def _tls(value: object) -> Tls | None:
    if value is None or value is False:
        return None
    if value is True:
        return Tls()
    if isinstance(value, Tls):
        return value
    if not isinstance(value, Mapping):
        raise InvalidConfig("dynaconf: the option tls must be a table, true or false")
    try:
        return Tls(**value)
    except TypeError as exc:
        raise InvalidConfig("dynaconf: tls takes ca, cert, key and server_name") from exc


register()
