"""The options of the loader: their names, where they are looked up, and what they mean.

Importing this module makes the names known to Dynaconf, as it knows ``REDIS_FOR_DYNACONF``: then
environment variables are parsed, ``from_env`` inherits them and ``as_dict`` leaves them out. The
argument ``etcd={...}`` is ours; the setting ``ETCD`` is the program's, or django-etcd's. No I/O.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import dynaconf.base
import dynaconf.default_settings
from dynaconf.base import Settings

from etcd_core import Config, InvalidConfig, Tls
from etcd_core.keys import require_name

from . import internals

TABLE: Final = "ETCD_FOR_DYNACONF"
_ENDING: Final = "_FOR_DYNACONF"

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


class _Unabridged(str):
    """A name of Dynaconf's that has no short form.

    Dynaconf would take any argument ``ETCD`` for :data:`TABLE`, and pass over that one: but in a
    Django settings module ``ETCD`` is django-etcd's. It looks for names with this ending only.
    """

    __slots__ = ()

    def endswith(self, suffix: Any, /, *bounds: Any) -> bool:
        """Answer as str does, but deny the ending that makes short forms."""
        return suffix != _ENDING and str.endswith(self, suffix, *bounds)


def register() -> None:
    """Make the names known to Dynaconf. Idempotent."""
    for name in _names():
        if name not in dynaconf.base.UPPER_DEFAULT_SETTINGS:
            dynaconf.base.UPPER_DEFAULT_SETTINGS.append(_Unabridged(name))
        if hasattr(dynaconf.base, "_INTERNAL_KEYS"):
            dynaconf.base._INTERNAL_KEYS.add(name)
            dynaconf.base._is_key_internal.cache_clear()
        if not hasattr(dynaconf.default_settings, name):
            setattr(dynaconf.default_settings, name, None)


def adopt(settings: Settings) -> None:
    """Take over the arguments in lower case, such as ``etcd={...}``.

    Dynaconf stored them as settings of the program's. The long name counts before the short one.
    """
    defaults = internals.defaults(settings)
    for name in _names():
        short = name.removesuffix(_ENDING)
        given = defaults.pop(short.lower(), None)
        if given is not None:
            if defaults.get(short) is given:
                del defaults[short]  # FlaskDynaconf passes each argument in upper case as well
            internals.withdraw_argument(settings, short, defaults.get(short))
            if settings.get(name) is None:
                defaults[name] = given
                internals.put(settings, name, given)
        internals.reveal(settings, name)


def _names() -> tuple[str, ...]:
    return (TABLE, *map(option_name, OPTION_NAMES))


def read(settings: Settings) -> Options:
    """Return the options of a settings object that is being loaded.

    A setting or environment variable for one option counts before the table.

    Raises:
        InvalidConfig: They are unusable.
    """
    adopt(settings)
    given = _table(settings)
    for option in OPTION_NAMES:
        value = _single(settings, option_name(option))
        if value is not None:
            given[option] = value
    if "endpoints" not in given:
        raise InvalidConfig(
            f"dynaconf: no endpoints; set {TABLE} = {{'endpoints': [...], 'name': ...}}"
            f" or {option_name('endpoints')}{_hint(settings)}"
        )
    return _options(given)


def _hint(settings: Settings) -> str:
    if not isinstance(settings.get("ETCD"), Mapping):
        return ""
    return (
        ". There is a setting ETCD, which is not read here: it is the program's own, or"
        f" django-etcd's; the loader's is called {TABLE}"
    )


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
