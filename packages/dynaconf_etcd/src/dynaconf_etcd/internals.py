"""What we know of Dynaconf's insides, for 3.2 and 3.3: the one place that names its private parts.

3.3 keeps everything in ``Settings.__core__``; 3.2 in attributes of ``Settings``. Pure functions on
the object given; which thread calls them is the caller's business.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, MutableMapping, MutableSequence
from types import CodeType, FrameType
from typing import Any, Final

import dynaconf.base
from dynaconf.base import LazySettings, Settings
from dynaconf.loaders.base import SourceMetadata
from dynaconf.utils.functional import empty
from dynaconf.utils.parse_conf import Lazy
from dynaconf.validator import Validator

__all__ = ["Lazy", "LazySettings", "Settings", "SourceMetadata", "Validator"]

LOADER: Final = "etcd"
"""The loader's name in Dynaconf's history."""

HAS_CORE: Final = hasattr(dynaconf.base, "DynaconfCore")
"""Whether this is Dynaconf 3.3 or later."""

History = MutableMapping[SourceMetadata, MutableMapping[str, object]]


@functools.cache
def internal_names() -> frozenset[str]:
    """Return the names in the store that are Dynaconf's own business, our options among them."""
    own = {str(name) for name in dynaconf.base.UPPER_DEFAULT_SETTINGS}
    return frozenset(own | {"_REGISTERED_HOOKS", "SETTINGS_MODULE"})


def raw_store(settings: Settings) -> dict[str, object]:
    """Return the mapping of top-level name to value; read and write it with ``dict``'s methods."""
    store: dict[str, object] = settings.store
    return store


def put(settings: Settings, name: str, value: object) -> None:
    """Store a value under a top-level name as it is: nothing in it is parsed, looked up or merged.

    ``Settings.set`` takes time in proportion to the number of settings, evaluates ``@`` tokens and
    merges lists. The caller clears the cache afterwards.
    """
    dict.__setitem__(raw_store(settings), name, _node(settings, value))
    _deleted(settings).discard(name)
    if not HAS_CORE:
        # unset() of 3.2 gives up half-way where the attribute is missing.
        object.__setattr__(settings, name, dict.__getitem__(raw_store(settings), name))


def _node(settings: Settings, value: object) -> object:
    if not isinstance(value, (dict, list)):
        return value
    if HAS_CORE:
        from dynaconf.nodes import DataDict, DataList

        if isinstance(value, list):
            return DataList(value, box_settings=settings)
        boxed = settings.__core__.config.dynaboxify
        return DataDict(value, box_settings=settings) if boxed else value
    from dynaconf.utils.boxing import DynaBox

    return dict.__getitem__(DynaBox({"value": value}, box_settings=settings), "value")


def clear_cache(settings: Settings) -> None:
    """Make reads see what was :func:`put`."""
    if HAS_CORE:
        settings.__core__.clear_cache()


def history(settings: Settings) -> History:
    """Return what each source provided: ``dynaconf inspect`` shows it."""
    by_source: History = settings.loaded_by_loaders if HAS_CORE else settings._loaded_by_loaders
    return by_source


def _deleted(settings: Settings) -> set[str]:
    deleted: set[str] = settings.__core__.config.deleted if HAS_CORE else settings._deleted
    return deleted


def defaults(settings: Settings) -> MutableMapping[str, object]:
    """Return the lowest layer: the arguments it was made with, and what was set at run time."""
    found: MutableMapping[str, object] = (
        settings.__core__.config.defaults if HAS_CORE else settings._defaults
    )
    return found


def loaded_files(settings: Settings) -> list[str]:
    """Return the paths of the files that were read."""
    files: list[str] = settings.__core__.config.loaded_files if HAS_CORE else settings._loaded_files
    return files


def loaded_modules(settings: Settings) -> list[str]:
    """Return the names of the Python modules that were read."""
    modules: list[str] = (
        settings.__core__.config.loaded_py_modules if HAS_CORE else settings._loaded_py_modules
    )
    return modules


def post_hooks(settings: Settings) -> MutableSequence[Callable[..., object]]:
    """Return the hooks that run after loading."""
    hooks: MutableSequence[Callable[..., object]] = (
        settings.__core__.config.post_hooks if HAS_CORE else settings._post_hooks
    )
    return hooks


def settings_module(settings: Settings) -> object:
    """Return the settings file that it was made with apart from its arguments, or None."""
    provided = history(settings).get(SourceMetadata("set_method", "init_settings_module"), {})
    return provided.get("SETTINGS_FILE_FOR_DYNACONF")


def validate(settings: Settings, like: Settings) -> None:
    """Run the validators with the restrictions that ``like`` was made with."""
    _validate(settings, like, settings.validators.validate)


def _validate(settings: Settings, like: Settings, run: Callable[..., object]) -> None:
    if HAS_CORE:
        config = like.__core__.config
        only, exclude = config.validate_only, config.validate_exclude
        current = config.validate_only_current_env
    else:
        only, exclude = like._validate_only, like._validate_exclude
        current = like._validate_only_current_env
        # They were arguments of the old object, and 3.2 keeps no other record of them.
        settings._validate_only, settings._validate_exclude = only, exclude
        settings._validate_only_current_env = current
    run(only=only, exclude=exclude, only_current_env=current)


def apply_defaults(settings: Settings, like: Settings) -> None:
    """Let the validators store their defaults, as after loading; what they refuse is nothing."""
    with contextlib.suppress(Exception):  # validators of the user may raise anything
        _validate(settings, like, settings.validators.validate_all)


def copy_registered_hooks(old: Settings, new: Settings) -> None:
    """Carry the hooks on reads over: they may have been stored past ``set``."""
    for name in ("_registered_hooks", "_REGISTERED_HOOKS"):
        if name in old.__dict__:
            object.__setattr__(new, name, old.__dict__[name])


def swap(settings: Settings, new: Settings) -> None:
    """Give ``settings`` the contents of ``new``: one assignment, so no reader sees a mixture."""
    if HAS_CORE:
        object.__setattr__(settings, "__core__", new.__core__)
    else:
        object.__setattr__(settings, "__dict__", new.__dict__)


def frozen(settings: Settings) -> Settings:
    """Return an object with the present contents that no later :func:`swap` touches."""
    while True:
        held = alias(settings)
        if home(settings) is settings:
            settle(settings)
        # A swap between the two settled other contents than those held.
        if home(held) is not settings:
            return held


def alias(settings: Settings) -> Settings:
    """Return another object with the same contents."""
    held = object.__new__(type(settings))
    if HAS_CORE:
        held.__dict__.update(settings.__dict__)
    else:
        object.__setattr__(held, "__dict__", settings.__dict__)
    return held


def home(settings: Settings) -> Settings:
    """Return the object from which its contents compute what is computed when it is read.

    That is the one that they were loaded into: itself, or after a :func:`swap` the one built.
    """
    found = _home_of(raw_store(settings))
    return settings if found is None else found


def settle(settings: Settings) -> None:
    """Have its contents compute from themselves, also once other contents are swapped in.

    Until then they ask ``settings``, which by then is of another revision.
    """
    store = raw_store(settings)
    place = _home_of(store)
    if place is settings or place is None:
        place = alias(settings)
    if raw_store(place) is not store:
        return  # swapped meanwhile; what swaps settles first
    for node in _nodes(store):
        if _home_of(node) is settings:
            _move(node, place)


def _nodes(store: dict[str, object]) -> Iterator[object]:
    pending: list[object] = [store]
    while pending:
        node = pending.pop()
        yield node
        inside = dict.values(node) if isinstance(node, dict) else list.__iter__(node)  # type: ignore[arg-type]
        pending += [each for each in list(inside) if isinstance(each, (dict, list))]


def _home_of(node: object) -> Settings | None:
    if HAS_CORE:
        meta = getattr(node, "__dict__", {}).get("__meta__")
        found = None if meta is None else meta.core
    else:
        found = _options_of(node).get("box_settings")
    return found if isinstance(found, Settings) else None


def _move(node: object, place: Settings) -> None:
    if HAS_CORE:
        node.__meta__.core = place  # type: ignore[attr-defined]
    else:
        _options_of(node)["box_settings"] = place


def _options_of(node: object) -> dict[str, object]:
    """Return what a table or a list of 3.2 was made with."""
    known = getattr(node, "__dict__", {})
    options: dict[str, object] = known.get("_box_config") or known.get("box_options") or {}
    return options


def reveal(settings: Settings, name: str) -> None:
    """Make a name readable as an attribute that became one of Dynaconf's own while this loads.

    Every later build stores it, and what :func:`swap` brings does not reach the attributes.
    """
    if name not in settings.__dict__:
        object.__setattr__(settings, name, dict.get(raw_store(settings), name))


def withdraw_argument(settings: Settings, name: str, instead: object) -> None:
    """Undo that an argument was stored as a setting; what a loader provided since then stays.

    Args:
        settings: Being loaded.
        name: The setting.
        instead: What an argument of that very name gave; None if there was none.
    """
    argument = SourceMetadata("set_method", "init_kwargs")
    sources = (argument, SourceMetadata("set_method", "default_settings"))
    if any(name in values for source, values in history(settings).items() if source not in sources):
        history(settings).get(argument, {}).pop(name, None)
        return
    forget_name(settings, name, sources)
    if instead is not None:
        put(settings, name, instead)
        history(settings).setdefault(argument, {})[name] = instead
    clear_cache(settings)


def forget_name(settings: Settings, name: str, sources: Iterable[SourceMetadata]) -> None:
    """Remove every trace of a top-level name that only we put there."""
    dict.pop(raw_store(settings), name, None)
    settings.__dict__.pop(name, None)
    for source in sources:
        history(settings).get(source, {}).pop(name, None)


def unwrap(settings: object) -> Settings:
    """Return the ``Settings`` below any number of lazy objects, made now if need be.

    Raises:
        TypeError: It is no Dynaconf object.
    """
    while isinstance(settings, LazySettings):
        if settings._wrapped is empty:
            settings._setup()
        settings = settings._wrapped
    if not isinstance(settings, Settings):
        raise TypeError(f"a Dynaconf settings object is needed, not {type(settings).__name__}")
    return settings


def wrapped(lazy: LazySettings) -> Settings | None:
    """Return the ``Settings`` below a lazy object, or None if it is not made yet."""
    below: object = lazy
    while isinstance(below, LazySettings):
        below = below.__dict__.get("_wrapped", empty)
    return below if isinstance(below, Settings) else None


def forget_environments(settings: Settings) -> None:
    """Have ``from_env`` make each environment anew.

    3.2 keeps one that could not be loaded, and loads it where it is read, without its parent.
    """
    cache: MutableMapping[object, object] = (
        settings.__core__.config.env_cache if HAS_CORE else settings._env_cache
    )
    cache.clear()


def held_by(lazy: LazySettings | None) -> object:
    """Return what a lazy object holds, for :func:`hold`."""
    return None if lazy is None else lazy.__dict__.get("_wrapped", empty)


def hold(lazy: LazySettings | None, held: object) -> None:
    """Make a lazy object hold again what it held."""
    if lazy is not None:
        lazy.__dict__["_wrapped"] = held


def lazy_values(settings: Settings) -> Iterator[tuple[str, Lazy]]:
    """Yield the path and the raw value of each setting that is computed when it is read."""
    pending: list[tuple[str, object]] = [
        (str(name).lower(), value)
        for name, value in list(dict.items(raw_store(settings)))
        if name not in internal_names()
    ]
    while pending:
        path, value = pending.pop()
        if isinstance(value, Lazy):
            yield path, value
        elif isinstance(value, dict):
            pending += [(f"{path}.{key}", item) for key, item in dict.items(value)]
        elif isinstance(value, list):
            pending += [(path, item) for item in list.__iter__(value)]


def error_of(lazy: Lazy, settings: Settings) -> Exception | None:
    """Compute a lazy value; return what that raises."""
    # A copy: computing notes the settings on the object, which readers of other contents share.
    try:
        copy.copy(lazy)(settings)
    except Exception as exc:  # templates call what they like
        return exc
    return None


class Caller:
    """Who is loading: found on the stack, because a loader is given no back reference.

    Attributes:
        lazy: The object the user holds, where this load makes its contents.
        parent: Where this load is part of ``parent.from_env(...)``: the parent.
        late: Validators that a typed class adds once this load is done.

    Args:
        outermost: The function to stop at: a build may itself run inside a load.
    """

    def __init__(self, outermost: CodeType) -> None:
        self.lazy: LazySettings | None = None
        self.parent: Settings | None = None
        self.late: list[Validator] = []
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code is not outermost:
            self._look(frame)
            frame = frame.f_back

    def _look(self, frame: FrameType) -> None:
        if frame.f_code in _MAKERS and self.lazy is None:
            self.lazy = frame.f_locals["self"]
        elif frame.f_code is _FROM_ENV and self.parent is None:
            self.parent = frame.f_locals["self"]
        elif frame.f_globals.get("__name__") == "dynaconf.typed.main" and not self.late:
            found = frame.f_locals.get("validators")
            self.late = list(found) if isinstance(found, list) else []


def _code_of(function: Any) -> object:
    return getattr(function, "__wrapped__", function).__code__


_MAKERS: Final = frozenset(map(_code_of, (LazySettings._setup, LazySettings.configure)))
_FROM_ENV: Final = _code_of(Settings.from_env)
