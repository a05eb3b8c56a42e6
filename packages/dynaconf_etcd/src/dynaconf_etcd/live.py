"""One live settings object: a complete new one is built aside per revision, then swapped in.

In-place updates of Dynaconf are torn between keys, and its cache can keep an old value for ever;
so readers only ever see whole contents. Builds and swaps run on the feed's strand, one at a time;
reading :class:`Live` is safe from any thread.
"""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from etcd_core import EtcdError, forking
from etcd_core.events import Event, fields
from etcd_core.signals import config_changed, config_rejected, send

from . import internals, snapshot_file
from .building import Build, pin, pinned
from .feed import Feed
from .frameworks import before_swap, push_to_django
from .internals import LazySettings, Settings
from .layers import Refused, Revision
from .passing import may_pass
from .reasons import reasons_of
from .steps import Step
from .turns import Turns

_log = logging.getLogger("etcd_core.dynaconf")

_FORGET_UNFINISHED_SECONDS = 60.0
_TURN_SECONDS = 10.0
_TRIES = (False, False, True)  # a hook or a validator may itself change what is shown, every time
_RETRY_SECONDS = (2.0, 60.0)


@dataclass(frozen=True)
class Rejection:
    """A revision that was refused as a whole.

    Attributes:
        revision: The store's revision.
        reasons: Why; values are masked.
        since: Unix time of the first refusal since a revision was accepted.
    """

    revision: int
    reasons: tuple[str, ...]
    since: float


class Temporary(str):
    """An environment that a block chose, among those chosen one after another."""

    __slots__ = ()


def lasting(chosen: list[str]) -> list[str]:
    """Return the environments that were chosen for good."""
    return [each for each in chosen if not isinstance(each, Temporary)]


class Receiver(Protocol):
    """Something that is told of each swap."""

    def receive(self, step: Step, feed: Feed) -> None:
        """Take note of a step; must not block."""


class Live:
    """What is known about one settings object that follows etcd.

    Args:
        settings: The object; held weakly.
        lazy: The lazy object around it, if known; held weakly.
        feed: Where its revisions come from.
        revision: What it was loaded with.

    Attributes:
        accepted: The revision that is shown.
        rejected: A newer one, while that is refused.
        retry_at: When to try it again, by the monotonic clock; None if its cause cannot pass.
    """

    def __init__(
        self, settings: Settings, lazy: LazySettings | None, feed: Feed, revision: Revision
    ) -> None:
        self.feed = feed
        self.accepted = revision
        self.rejected: Rejection | None = None
        self.subscriptions: list[Receiver] = []
        self._to_tell: list[Receiver] = []
        self._settings = weakref.ref(settings)
        self._lazy = weakref.ref(lazy) if lazy is not None else None
        self._finished = lazy is None
        self._since = time.monotonic()
        self._overrides: set[str] = set()
        self.retry_at: float | None = None
        self._tries = 0
        self._offered = revision
        self._untold: Rejection | None = None
        self._kept = feed.options.snapshot is None
        self._building = threading.RLock()
        self._turns = Turns(_TURN_SECONDS)
        self._decided = threading.Condition()

    @property
    def settings(self) -> Settings | None:
        """The settings object, unless it is gone."""
        return self._settings()

    @property
    def is_finished(self) -> bool:
        """Whether the settings have been loaded for the first time."""
        settings = self._settings()
        return settings is not None and self._is_finished(settings)

    @property
    def sender(self) -> object:
        """What the user holds: the lazy object where there is one."""
        lazy = self._lazy() if self._lazy is not None else None
        return lazy if lazy is not None else self._settings()

    @property
    def shown(self) -> Revision | None:
        """The revision that the settings show; None once nobody can read them any more."""
        settings = self._settings()
        if settings is None or self._is_superseded(settings):
            return None
        return self.accepted

    @property
    def refused(self) -> int | None:
        """The newest revision, where that was refused and an older one is shown."""
        rejected = self.rejected
        return None if rejected is None else rejected.revision

    def subscribe(self, receiver: Receiver) -> None:
        """Have a receiver told of each swap from now on."""
        with self._decided:
            self.subscriptions.append(receiver)

    def is_of(self, lazy: object) -> bool:
        """Tell whether this is what ``lazy`` was made into."""
        return self._lazy is not None and self._lazy() is lazy

    def offer(self, revision: Revision) -> bool:
        """Apply or refuse a revision; False if the object is still being loaded."""
        settings = self._settings()
        if settings is None or self._is_superseded(settings):
            return True
        if not self._is_finished(settings):
            return time.monotonic() - self._since > _FORGET_UNFINISHED_SECONDS
        self._tell_late()
        again = revision is self._offered
        if again and not self._is_due():
            self._keep_first(settings)
            return True
        self._offered = revision
        try:
            step = self._apply(settings, revision)
        except Exception as exc:  # a file, a hook or a validator of the user may raise anything
            self._plan_retry(may_pass(exc), again)
            reasons = reasons_of(exc, revision, self.accepted, settings)
            self.refuse(revision.number, reasons, quiet=again and self.retry_at is not None)
            return True
        self.retry_at = None
        self._accept(revision)
        self._announce(step)
        return True

    def _is_due(self) -> bool:
        at = self.retry_at
        return at is not None and time.monotonic() >= at

    def _plan_retry(self, passing: bool, again: bool) -> None:
        """Note when to try what was refused once more, if its cause may be over by then."""
        self._tries = self._tries + 1 if again else 0
        first, most = _RETRY_SECONDS
        # Spread: a fleet that was refused together must not come back together.
        seconds = min(most, first * 2**self._tries) * random.uniform(0.5, 1.0)
        self.retry_at = time.monotonic() + seconds if passing else None

    def _keep_first(self, settings: Settings) -> None:
        """Write the file for the revision that the settings were loaded with.

        Not before they are finished: a program may add validators to them after loading.
        """
        revision = self.accepted
        if self._kept or revision.cause == snapshot_file.CAUSE or self.rejected is not None:
            return
        self._kept = True
        try:
            self.build(settings, revision)
        except Exception as exc:  # whatever the program's own code raises
            _log.debug("dynaconf: revision %d is not kept: %s", revision.number, type(exc).__name__)
        else:
            self._keep()

    def _keep(self) -> None:
        revision = self.accepted
        self.feed.write_soon(
            lambda: self.feed.keep(revision) if revision is self.accepted else None
        )

    def _accept(self, revision: Revision) -> None:
        with self._decided:
            self.accepted = revision
            refused, self.rejected = self.rejected, None
            self._decided.notify_all()
        if refused is not None:
            why = f"revision {refused.revision} was refused"
            _log.warning(
                "dynaconf: revision %d of %r is accepted; before: %s",
                revision.number,
                self.feed.options.name,
                why,
                extra=fields(
                    Event.CONFIG_RESTORED,
                    name=self.feed.options.name,
                    revision=revision.number,
                    reason=why,
                ),
            )

    def read_again(self, settings: Settings) -> None:
        """Read etcd anew for settings that do not follow it; keep what is known if that fails."""
        try:
            revision = self.feed.read_again()
            self._try(settings, revision)
        except Refused as exc:
            self.refuse(exc.revision, exc.reasons)
        except EtcdError as exc:
            _log.warning(
                "dynaconf: revision %d stays: %s",
                self.accepted.number,
                exc,
                extra=fields(
                    Event.CONFIG_UNAVAILABLE, name=self.feed.options.name, reason=str(exc)
                ),
            )
        else:
            if revision is not self.accepted:
                self._accept(revision)
                self._keep()

    def _try(self, settings: Settings, revision: Revision) -> None:
        """Check that a revision can be built.

        Raises:
            Refused: It cannot.
        """
        try:
            self.build(settings, revision)
        except Exception as exc:  # a file, a hook or a validator of the user may raise anything
            reasons = reasons_of(exc, revision, self.accepted, settings)
            raise Refused(*reasons, revision=revision.number) from None

    def refuse(self, number: int, reasons: tuple[str, ...], *, quiet: bool = False) -> None:
        """Keep the last good revision and tell, once; the log says the same reasons once.

        Args:
            number: The store's revision.
            reasons: Why.
            quiet: It is known to be refused, and still is: only the status tells the reasons now.
        """
        with self._decided:
            before = self.rejected
            since = time.time() if before is None else before.since
            rejection = Rejection(number, reasons, since)
            if rejection == before:
                return
            self.rejected = rejection
            self._decided.notify_all()
        if quiet and before is not None:
            return
        if before is None or before.reasons != reasons:
            self._log_refusal(rejection)
        self._tell(rejection)

    def _tell(self, rejection: Rejection) -> None:
        settings = self._settings()
        if settings is not None and not self._is_finished(settings):
            # The lazy object holds nothing yet: to read it, or even to look its receivers up,
            # would load it again, and refuse again, without end.
            self._untold = rejection
            return
        self.feed.announce(
            lambda: send(
                config_rejected,
                self.sender,
                revision=rejection.revision,
                reasons=rejection.reasons,
            )
        )

    def _tell_late(self) -> None:
        """Tell what was refused while the settings were being loaded."""
        untold, self._untold = self._untold, None
        if untold is not None:
            self._tell(untold)

    def _log_refusal(self, rejection: Rejection) -> None:
        _log.warning(
            "dynaconf: revision %d of %r is refused, revision %d stays: %s",
            rejection.revision,
            self.feed.options.name,
            self.accepted.number,
            "; ".join(rejection.reasons),
            extra=fields(
                Event.CONFIG_REJECTED,
                name=self.feed.options.name,
                revision=rejection.revision,
                kept=self.accepted.number,
                reasons=rejection.reasons,
            ),
        )

    def wait_for(self, number: int, timeout: float | None) -> bool:
        """Wait until a revision from ``number`` on is accepted or refused; False: not in time."""

        def decided() -> bool:
            refused = self.rejected
            newest = max(self.accepted.number, refused.revision if refused else 0)
            return newest >= number

        with self._decided:
            return self._decided.wait_for(decided, timeout)

    def after_fork_in_child(self) -> None:
        """Make the locks anew: a thread that the child lacks may have held them."""
        self._building = threading.RLock()
        self._turns = Turns(_TURN_SECONDS)
        self._decided = threading.Condition()

    # -- building ------------------------------------------------------------------------------

    def build(self, settings: Settings, revision: Revision) -> Settings:
        """Return a new object with the contents that ``settings`` would have at ``revision``.

        In the environment that the program runs in: it is there that a revision is judged, and not
        where a block of ``using_env`` is just now.

        Raises:
            Exception: Whatever loading and validating raises.
        """
        # Programs may build too, to try what they are about to write.
        with self._building:
            return self.build_aside(settings, revision, lasting(settings.loaded_envs), check=True)

    def build_aside(
        self, settings: Settings, revision: Revision, chosen: list[str], *, check: bool
    ) -> Settings:
        """Return a new object with the contents of a revision in some environment.

        Args:
            settings: What it takes the place of.
            revision: What it shows of etcd.
            chosen: The environments that were chosen one after another; the last one counts.
            check: Refuse what validators do, and what files lack. To choose an environment, as to
                choose it in Dynaconf, is not to validate it.

        Raises:
            Exception: Whatever loading and validating raises.
        """
        with pin(self.feed, revision) as now:
            try:
                new = Build(settings, self._overrides, chosen, check=check).run()
            except SystemExit:
                # It would end a thread of ours, and tell nobody.
                raise Refused("a file, a hook or a validator called sys.exit()") from None
        remember(new, self, revision)
        for environment in now.environments:
            if settings is self._settings():
                add_child(environment, self)
            else:
                remember(environment, self, revision)
        return new

    # -- changing what is shown ----------------------------------------------------------------

    def turn(self) -> AbstractContextManager[None]:
        """Take turns with whatever else changes what is shown, so that each comes to its end.

        Where that would take for ever, it goes on without: a swap of what is out of date is none.
        """
        return self._turns.turn()

    def choose(self, settings: Settings, change: Callable[[list[str]], list[str]]) -> None:
        """Show another environment, or this one loaded anew. Blocks while it is loaded.

        Readers see what they saw until all of it is there.

        Args:
            settings: The object, or a snapshot of it.
            change: Gives the environments chosen from now on for those chosen until now.

        Raises:
            Exception: Whatever loading raises; nothing has changed then.
        """
        with self.turn():
            for force in _TRIES:
                shown = _Shown(settings)
                origin = None if settings is self._settings() else origin_of(settings)
                revision = self.accepted if origin is None else origin[1]
                new = self.build_aside(settings, revision, change(shown.chosen), check=False)
                if self._swap(settings, new, shown, revision, force=force):
                    return

    def frozen(self, settings: Settings) -> Settings:
        """Return what ``settings`` show now in an object that no change reaches."""
        with self._decided:  # no swap until it is noted of which revision that is
            held = internals.frozen(settings)
            if origin_of(held) is None:
                remember(internals.home(held), self, self.accepted)
        return held

    def _apply(self, settings: Settings, revision: Revision) -> Step:
        internals.settle(settings)  # before anything of another revision is there
        shown = _Shown(settings)
        new = self.build(settings, revision)
        if shown.chosen != new.loaded_envs:
            new = self.build_aside(settings, revision, shown.chosen, check=False)
        with self.turn():
            for force in _TRIES:
                step = Step(self.frozen(settings), internals.alias(new), revision.number)
                before_swap(self.sender, step)
                if self._swap(settings, new, shown, revision, force=force):
                    break
                # Another environment was chosen meanwhile. Nobody chooses one from here on.
                shown = _Shown(settings)
                new = self.build_aside(settings, revision, shown.chosen, check=False)
        return step

    def _swap(
        self, settings: Settings, new: Settings, shown: _Shown, revision: Revision, *, force: bool
    ) -> bool:
        """Swap the new contents in, unless they are made for others than those shown by now."""
        internals.settle(settings)
        # A set at run time that raced with the build went to the old contents. Most are carried
        # over before the swap, so that nobody misses them; what raced with that, after it.
        known = _carry_sets(new, shown.known, shown.present)
        with self._decided:
            if not (force or shown.is_shown_in(settings)):
                return False
            # Together: an environment made from now on must not be of the old revision, and who
            # subscribes from now on has seen the new one.
            if settings is self._settings() and revision is not self.accepted:
                self.accepted = revision
                self._to_tell = list(self.subscriptions)
            internals.swap(settings, new)
        _carry_sets(settings, known, shown.present)
        return True

    def _announce(self, step: Step) -> None:
        self._keep()
        if self.feed.options.push_to_django:
            _push(step)
        for receiver in self._to_tell:
            receiver.receive(step, self.feed)
        self.feed.announce(lambda: self._send(step))

    def _send(self, step: Step) -> None:
        if config_changed.receivers and step.differs:
            send(
                config_changed,
                self.sender,
                changed=step.changed,
                added=step.added,
                removed=step.removed,
                old=step.before,
                new=step.after,
                revision=step.revision,
            )

    def _is_finished(self, settings: Settings) -> bool:
        if not self._finished:
            lazy = self._lazy() if self._lazy is not None else None
            self._finished = lazy is None or internals.wrapped(lazy) is settings
        return self._finished

    def _is_superseded(self, settings: Settings) -> bool:
        """Tell whether the lazy object holds another live object now.

        Several threads that are first to read each make one, and the last one stays.
        """
        lazy = self._lazy() if self._lazy is not None else None
        if lazy is None:
            return False
        inside = internals.wrapped(lazy)
        return inside is not None and inside is not settings and find(inside) is not None


def _push(step: Step) -> None:
    try:
        push_to_django(step)
    except Exception:  # Django's settings object may refuse, and its receivers do as they like
        _log.exception(
            "dynaconf: a change could not be pushed to Django",
            extra=fields(Event.CALLBACK_FAILED, handler="push_to_django"),
        )


class _Shown:
    """What an object shows at this moment, to find out later what has changed since."""

    def __init__(self, settings: Settings) -> None:
        self.chosen = list(settings.loaded_envs)
        self.present = internals.defaults(settings)
        self.known = dict(self.present)
        self._store = internals.raw_store(settings)

    def is_shown_in(self, settings: Settings) -> bool:
        """Tell whether it is still there, but for settings of run time."""
        same = internals.raw_store(settings) is self._store
        return same and list(settings.loaded_envs) == self.chosen


def _carry_sets(
    target: Settings, known: Mapping[str, object], present: Mapping[str, object]
) -> dict[str, object]:
    """Set in ``target`` what was set since ``known`` was taken; return what was present now."""
    now = dict(present)
    for name, value in now.items():
        if name not in known or known[name] is not value:
            target.set(name, value)
    return now


# -- who is live -------------------------------------------------------------------------------

_lives: weakref.WeakKeyDictionary[Settings, Live] = weakref.WeakKeyDictionary()
_parents: weakref.WeakKeyDictionary[Settings, weakref.ref[Live]] = weakref.WeakKeyDictionary()
_origins: weakref.WeakKeyDictionary[Settings, tuple[Live, Revision]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def find(settings: Settings) -> Live | None:
    """Return what is known about a settings object, or about the one it is an environment of."""
    with _lock:
        live = _lives.get(settings)
        if live is None and settings in _parents:
            live = _parents[settings]()
        return live


def all_of(lazy: object) -> list[Live]:
    """Return every live object that was made inside ``lazy``, superseded ones too."""
    with _lock:
        return [live for live in _lives.values() if live.is_of(lazy)]


def find_by_lazy(lazy: object) -> Live | None:
    """Return the live object that ``lazy`` holds."""
    if not isinstance(lazy, LazySettings):
        return None
    inside = internals.wrapped(lazy)
    found = find(inside) if inside is not None else None
    if found is not None:
        return found
    # It may hold a copy for a while, as under Django's override_settings.
    made_inside = all_of(lazy)
    return made_inside[-1] if made_inside else None


def add(settings: Settings, live: Live) -> None:
    """Remember a live object for as long as its settings live."""
    with _lock:
        for other in _lives.values():
            if other.is_of(live.sender):
                # The program subscribed to what it holds, not to what is inside just now.
                live.subscriptions = other.subscriptions
        _lives[settings] = live
    forking.track(live)


def add_child(settings: Settings, live: Live) -> None:
    """Remember an environment made by ``from_env``: it sees what its parent accepted."""
    with _lock:
        _parents[settings] = weakref.ref(live)


def remember(home: Settings, live: Live, revision: Revision) -> None:
    """Note of which revision the contents are that compute from ``home``."""
    with _lock:
        _origins[home] = (live, revision)


def origin_of(settings: Settings) -> tuple[Live, Revision] | None:
    """Return whose contents a settings object shows, and of which revision; None where unknown.

    A snapshot has no other mark than these contents, nor need it be noted.
    """
    home = internals.home(settings)
    with _lock:
        found = _origins.get(home)
    # A deep copy computes from there too, but its contents are its own.
    same = found is not None and internals.raw_store(home) is internals.raw_store(settings)
    return found if same else None


def own_of(settings: Settings) -> Live | None:
    """Return the live object that a settings object is, or is a snapshot of; None while it loads.

    None too in a build, whose hooks and validators may change what is shown: to build for that
    would not end.
    """
    with _lock:
        live = _lives.get(settings)
    if live is None:
        origin = origin_of(settings)
        live = None if origin is None else origin[0]
    elif not live.is_finished:
        return None
    now = pinned()
    return None if live is None or (now is not None and now.feed is live.feed) else live


class _ModuleState:
    def after_fork_in_child(self) -> None:
        global _lock
        _lock = threading.Lock()


_module_state = _ModuleState()
forking.track(_module_state)
