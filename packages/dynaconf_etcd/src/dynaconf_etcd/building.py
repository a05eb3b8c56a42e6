"""Builds the contents of a settings object aside: the new ones, for one revision.

What a build loads, and whatever its hooks make, sees that revision and no other: it is pinned in
the context. A build runs in one thread and shows nothing of itself to readers.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from dynaconf.loaders import execute_module_hooks

from . import internals
from .feed import Feed
from .frameworks import django_defaults
from .internals import Settings, SourceMetadata
from .layers import Refused, Revision
from .passing import may_pass
from .validating import quieten
from .values import copied

_SET_AT_RUN_TIME = ("set_method", "undefined")
_NOT_LOADERS = ("set_method", "setdefault", "hooking", "validation_default")


@dataclass(frozen=True)
class Pinned:
    """The revision that everything loaded in this context must see."""

    feed: Feed
    revision: Revision
    environments: list[Settings] = field(default_factory=list)
    """What the build made by ``from_env``: part of the new contents once they are accepted."""


_pinned: ContextVar[Pinned | None] = ContextVar("dynaconf_etcd_pinned", default=None)


def pinned() -> Pinned | None:
    """Return the revision that a build in this context is for."""
    return _pinned.get()


@contextmanager
def pin(feed: Feed, revision: Revision) -> Iterator[Pinned]:
    """Make every load inside see ``revision``: of the object built, and of its environments."""
    now = Pinned(feed, revision)
    token = _pinned.set(now)
    try:
        yield now
    finally:
        _pinned.reset(token)


class Build:
    """Builds the new contents of a settings object. For one use, in one thread.

    Args:
        old: The object that the new one takes the place of; only read.
        overrides: Names set at run time although a loader provides them; those found are added.
        chosen: The environments that were chosen one after another; the last one counts.
        check: Refuse what validators do, and what files lack.
    """

    def __init__(
        self, old: Settings, overrides: set[str], chosen: list[str], *, check: bool
    ) -> None:
        self._old = old
        self._overrides = overrides
        self._chosen = chosen
        self._checks = check

    def run(self) -> Settings:
        """Return an object with the new contents.

        Raises:
            Exception: Whatever loading and validating raises.
        """
        old = self._old
        new = self._load()
        internals.copy_registered_hooks(old, new)
        if self._chosen:
            new.setenv(self._chosen[-1])
            new.loaded_envs = list(self._chosen)
        self._run_missed_hooks(new)
        self._load_extra_files(new)
        if self._checks:
            self._check_files(new)
        self._set_again(new)
        self._give_way_to_django(new)
        internals.clear_cache(new)
        new.validators.extend(old.validators)
        if self._checks:
            internals.validate(new, like=old)
            self._check_lazy(new)
        else:
            internals.apply_defaults(new, like=old)
        quieten(new)
        return new

    def _load(self) -> Settings:
        """Make it as the old one was made; what only the making needs is taken out again."""
        old = self._old
        arguments = _arguments_of(old)
        hooks = [
            hook for hook in internals.post_hooks(old) if not getattr(hook, "_dynaconf_hook", False)
        ]
        scratch = {}
        if "post_hooks" not in arguments:
            scratch["post_hooks"] = hooks
        root = old._root_path
        if root is not None and arguments.get("ROOT_PATH_FOR_DYNACONF") is None:
            # In a thread, files are not searched for beside the program.
            scratch["ROOT_PATH_FOR_DYNACONF"] = root
        new = type(old)(
            settings_module=internals.settings_module(old),
            **{**arguments, "post_hooks": hooks, **scratch},
        )
        for name in scratch:
            internals.defaults(new).pop(name, None)
            if name in arguments:
                internals.defaults(new)[name] = arguments[name]
        if "post_hooks" in scratch:
            internals.forget_name(new, "POST_HOOKS", [SourceMetadata("set_method", "init_kwargs")])
        return new

    @staticmethod
    def _give_way_to_django(new: Settings) -> None:
        """Put Django's defaults below what etcd provides no more.

        Not among the arguments: its tables would be merged with those of etcd.
        """
        provided = SourceMetadata("set_method", "init_kwargs")
        for name, value in django_defaults(new).items():
            internals.defaults(new)[name] = value
            internals.put(new, name, value)
            internals.history(new).setdefault(provided, {})[name] = value

    def _run_missed_hooks(self, new: Settings) -> None:
        """Run ``dynaconf_hooks`` beside modules that were named to Dynaconf after loading."""
        known = internals.loaded_modules(new)
        missed = [name for name in internals.loaded_modules(self._old) if name not in known]
        if missed:
            execute_module_hooks("post", new, new.current_env, modules=missed, files=[])
            known[:0] = missed

    def _load_extra_files(self, new: Settings) -> None:
        """Load again what the program loaded with ``load_file``."""
        patterns = _included(self._old)
        for source in list(internals.history(self._old)):
            if not source.loader.startswith("load_file@"):
                continue
            if any(fnmatch.fnmatch(source.identifier, pattern) for pattern in patterns):
                continue
            known = set(internals.history(new))
            env = False if source.env == "_envless" else source.env
            new.load_file(path=source.identifier, env=env, silent=False, validate=False)
            # The history names the program's line, not this one, and does not grow.
            for added in set(internals.history(new)) - known:
                if added.loader.startswith("load_file@"):
                    internals.history(new)[source] = internals.history(new).pop(added)

    def _check_files(self, new: Settings) -> None:
        gone = set(internals.loaded_files(self._old)) - set(internals.loaded_files(new))
        if gone:
            raise Refused(f"settings files vanished: {', '.join(sorted(gone))}", passing=True)

    def _check_lazy(self, new: Settings) -> None:
        """Refuse what breaks a value of a file that is computed when it is read.

        One that cannot be computed with the old contents either is no fault of the revision.
        """
        for path, lazy in internals.lazy_values(new):
            error = internals.error_of(lazy, new)
            if error is not None and internals.error_of(lazy, self._old) is None:
                why = f"{path} cannot be computed any more: {type(error).__name__}"
                raise Refused(why, passing=may_pass(error))

    def _set_again(self, new: Settings) -> None:
        """Put overrides on top: what was set at run time although a loader provided it."""
        history = dict(internals.history(self._old))
        for source, values in history.items():
            if source[:2] == _SET_AT_RUN_TIME:
                self._overrides |= _provided_by_loaders(history) & values.keys()
        record = SourceMetadata(*_SET_AT_RUN_TIME)
        present = internals.defaults(self._old)
        computed = _computed_urls(internals.history(new))
        for name in self._overrides - computed:
            if name in present:
                internals.put(new, name, copied(present[name]))
                internals.history(new).setdefault(record, {})[name] = present[name]


def _arguments_of(old: Settings) -> dict[str, object]:
    """Return what to make the new object with: copies, since loaders write into what they get."""
    # One step copies the mapping: a set at run time may add to it meanwhile.
    arguments = {name: copied(value) for name, value in dict(internals.defaults(old)).items()}
    arguments.pop("validators", None)
    return arguments


def _included(old: Settings) -> list[str]:
    """Return patterns for the paths that Dynaconf itself loads with ``load_file``."""
    named: list[object] = []
    for option in ("PRELOAD_FOR_DYNACONF", "DYNACONF_INCLUDE", "INCLUDES_FOR_DYNACONF"):
        value = old.get(option)
        named += value if isinstance(value, list) else [value] if value else []
    return [f"*{str(name).removeprefix('./')}" for name in named]


def _provided_by_loaders(history: internals.History) -> set[str]:
    names: set[str] = set()
    for source, values in history.items():
        if source.loader not in _NOT_LOADERS:
            names.update(values)
    return names


def _computed_urls(history: Mapping[SourceMetadata, Mapping[str, object]]) -> set[str]:
    """Return what Dynaconf's Django extension computes anew after each load."""
    return {
        name
        for source, values in history.items()
        if source.identifier.startswith("fix_absolute_urls@")
        for name in values
    }
