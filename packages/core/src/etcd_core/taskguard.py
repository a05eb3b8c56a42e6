"""What the guards of :mod:`tasks` share: decorating, asking for a run, refusing.

Users decorate at import time, so nothing here imports gRPC. Called in the threads and loops of the
tasks; has no thread of its own.
"""

from __future__ import annotations

import functools
import inspect
import logging
import math
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import (
    TYPE_CHECKING,
    Generic,
    Literal,
    NoReturn,
    TypedDict,
    TypeVar,
    Union,
    cast,
    overload,
)

from typing_extensions import ParamSpec

from . import signals
from .brokers import broker_of
from .errors import EtcdError, InvalidArgument
from .events import Event, fields
from .keys import require_name
from .taskrun import AsyncRun, OnLost, Pass, Run, entered_runs, off_loop

if TYPE_CHECKING:
    from .client import Client
    from .election import Term
    from .engine import Engine

_log = logging.getLogger("etcd_core.tasks")

P = ParamSpec("P")
T = TypeVar("T")
D_co = TypeVar("D_co", covariant=True)

Otherwise = Literal["skip", "raise", "wait"]
"""What a call does that may not run: return ``default``, raise, or wait and then raise."""

ClientSource = Union["Client", Callable[[], "Client"]]
"""A client, or a function that gives one when a task is called."""

_default_client: ClientSource | None = None
# Until when the log need not tell of an engine's outage: for ever once it did, however many tasks
# and calls there are; and for a while after its end, since candidates come back one by one.
_quiet_until: weakref.WeakKeyDictionary[object, float] = weakref.WeakKeyDictionary()
_COME_BACK_SECONDS = 10.0


class Options(TypedDict):
    """What all guards are told."""

    client: ClientSource | None
    identity: str | None
    ttl: float
    otherwise: Otherwise
    wait: float | None
    min_remaining: float
    at_least_for: float
    on_lost: OnLost


def use_client(provider: ClientSource | None) -> None:
    """Set the client of guards that were given none."""
    global _default_client
    check_source("set_default_client", provider)
    _default_client = provider


def check_source(what: str, source: object) -> None:
    """Refuse what is no source of a client.

    Raises:
        InvalidArgument: It is none.
    """
    if source is not None and not callable(source) and not _is_client(source):
        kind = type(source).__name__
        raise InvalidArgument(f"{what}: give a Client or a function that returns one, not {kind}")


def _is_client(value: object) -> bool:
    # Where there is a client, its module has been imported.
    module = sys.modules.get("etcd_core.client")
    return module is not None and isinstance(value, module.Client)


def find_client(source: ClientSource | None, what: str) -> Client:
    """Return the client of ``source``, or the default one.

    Raises:
        InvalidArgument: There is none, or what the function gave is none.
    """
    source = _default_client if source is None else source
    client = source() if callable(source) else source
    if client is None:
        raise InvalidArgument(f"{what}: no client; give one or call etcd_core.set_default_client()")
    if not _is_client(client):
        raise InvalidArgument(f"{what}: no Client was returned but {type(client).__name__}")
    return client


class Refused(Exception):
    """The task may not run now. Internal.

    Attributes:
        reason: As ``task_skipped`` tells it.
        error: What a caller who does not skip is told.
    """

    def __init__(self, reason: str, error: EtcdError) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error


class TaskGuard(ABC, Generic[D_co]):
    """What :func:`leader_only` and :func:`exclusive` return: a decorator and a context manager.

    Safe to use from any thread and in any number of calls at once. A ``with`` block (or ``async
    with``) gives the term; since a block cannot be skipped, entering it raises where a call would
    skip.
    """

    kind = ""
    default_ttl = 0.0

    def __init__(self, name: str, default: D_co, options: Options) -> None:
        require_name(self.kind, "name", name)
        # As etcd sees it: names that make one key are one name.
        self.name = name.strip("/")
        self.what = f"{self.kind} {self.name!r}"
        self.thread_name = f"etcd-task-{self.name}"
        self.on_lost = options["on_lost"]
        check_source(self.what, options["client"])
        self._client_source = options["client"]
        self._identity = options["identity"]
        self._otherwise = options["otherwise"]
        self._wait = options["wait"]
        self._default = default
        self._min_remaining = options["min_remaining"]
        self._at_least_for = options["at_least_for"]
        self._ttl = self._checked_ttl(options["ttl"])
        self._check_options()

    @overload
    def __call__(
        self, function: Callable[P, Coroutine[object, object, T]]
    ) -> Callable[P, Coroutine[object, object, T | D_co]]: ...

    @overload
    def __call__(self, function: Callable[P, T]) -> Callable[P, T | D_co]: ...

    def __call__(self, function: Callable[P, object]) -> Callable[P, object]:
        """Guard a function, a method, a classmethod, a staticmethod or an ``async def``.

        Raises:
            InvalidArgument: It is a generator, an async generator, a class or the task object of a
                broker, or the options do not suit it.
        """
        if isinstance(function, (classmethod, staticmethod)):
            inner = self(cast("Callable[P, object]", function.__func__))
            return cast("Callable[P, object]", type(function)(inner))
        self._check_function(function)
        if _is_async(function):
            return self._guarded_async(cast("Callable[P, Coroutine[object, object, T]]", function))
        self._check_on_lost()
        return self._guarded(function)

    def __enter__(self) -> Term:
        """Return the term under which the block runs.

        Raises:
            NotLeader: Another process leads.
            LockTimeout: The lock is taken.
            EtcdError: etcd cannot be reached or refused.
        """
        self._check_on_lost()
        try:
            admitted = self._ask()
        except Refused as refused:
            raise fresh(refused.error) from None
        return Run(self, admitted).__enter__().term

    def __exit__(self, *exc_info: object) -> None:
        """End the run."""
        self._current().__exit__(*exc_info)

    async def __aenter__(self) -> Term:
        """Return the term under which the block runs, as :meth:`__enter__`."""
        try:
            admitted = await self._ask_beside_loop()
        except Refused as refused:
            raise fresh(refused.error) from None
        return (await AsyncRun(self, admitted).__aenter__()).term

    async def __aexit__(self, kind: object, exc: BaseException | None, trace: object) -> None:
        """End the run."""
        run = self._current()
        if isinstance(run, AsyncRun):
            await run.__aexit__(kind, exc, trace)

    # -- what each kind of guard decides -------------------------------------------------------

    @abstractmethod
    def lost_error(self) -> EtcdError:
        """Return what a task is told whose term was lost."""

    @abstractmethod
    def _taken_error(self, details: str) -> EtcdError:
        """Return what a call is told while another process has what it needs."""

    @abstractmethod
    def _admit_at_once(self, client: Client) -> Pass | None:
        """Decide without waiting, or return None where etcd must be asked or waited for."""

    @abstractmethod
    def _admit(self, client: Client, abandoned: threading.Event) -> Pass:
        """Decide; may block.

        Raises:
            Refused: The task may not run now.
        """

    def _check_function(self, function: object) -> None:
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            self._bad(
                f"{qualified_name(function)} is a generator, whose body runs after the call; "
                "guard the function that consumes it"
            )
        if inspect.isclass(function) or not callable(function):
            self._bad(f"cannot guard {function!r}; give a function")
        broker = broker_of(function)
        if broker:
            self._bad(f"{function!r} is a task of {broker}; put the guard below its decorator")

    # -- calls ---------------------------------------------------------------------------------

    def _guarded(self, function: Callable[P, T]) -> Callable[P, T | D_co]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> T | D_co:
            self._check_call(function)
            try:
                admitted = self._ask()
            except Refused as refused:
                self._refuse(function, refused)
                return self._default
            with Run(self, admitted):
                return function(*args, **kwargs)

        return self._decorated(call)

    def _guarded_async(
        self, function: Callable[P, Coroutine[object, object, T]]
    ) -> Callable[P, Coroutine[object, object, T | D_co]]:
        @functools.wraps(function)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T | D_co:
            try:
                admitted = await self._ask_beside_loop()
            except Refused as refused:
                self._refuse(function, refused)
                return self._default
            async with AsyncRun(self, admitted):
                return await function(*args, **kwargs)

        return self._decorated(call)

    def _decorated(self, call: Callable[P, T]) -> Callable[P, T]:
        """Do what the kind of guard does with what it made."""
        return call

    def _check_call(self, function: object) -> None:
        """Refuse a call that the kind of guard does not suit."""

    def _check_skip(self) -> None:
        """Refuse to skip where the kind of guard does not suit the caller."""

    def _ask(self) -> Pass:
        admitted = self._known() or self._admit(self._client(), threading.Event())
        self._note_answer(admitted.home)
        return admitted

    async def _ask_beside_loop(self) -> Pass:
        admitted = self._known()
        if admitted is None:
            client = self._client()
            admitted = self._admit_at_once(client)
        if admitted is None:
            ask = functools.partial(self._admit, client)
            admitted = await off_loop(self.thread_name, ask, undo=_undo)
        self._note_answer(admitted.home)
        return admitted

    def _known(self) -> Pass | None:
        """Admit a call made by a task that runs under the same name, and what a test pretends."""
        fake = _fakes.get(self.name)
        home: object = fake
        for run in reversed(entered_runs()):
            if run.guard.what == self.what:
                home = home or self._client().scope().engine
                if run.home is home and run.active and run.lasting:
                    return Pass(run.term, run.home)
        if fake is None:
            return None
        if fake.term is None:
            raise Refused(fake.reason(self.kind), self._taken_error("a test says so"))
        return Pass(fake.term, fake)

    def _current(self) -> Run:
        return next(run for run in reversed(entered_runs()) if run.guard is self)

    def _client(self) -> Client:
        return find_client(self._client_source, self.what)

    # -- refusals ------------------------------------------------------------------------------

    def _refuse(self, function: object, refused: Refused) -> None:
        if self._otherwise != "skip":
            raise fresh(refused.error) from None
        self._check_skip()
        sender = qualified_name(function)
        if self.name in _fakes:
            send = signals.send
        else:
            client = self._client()
            send = client.announcer.send
            self._note_refusal(client.scope().engine, refused)
        _log.debug("%s: %s is skipped: %s", self.what, sender, refused.error)
        send(signals.task_skipped, sender, name=self.name, reason=refused.reason)

    def _note_refusal(self, engine: Engine, refused: Refused) -> None:
        if refused.reason != "unreachable":
            self._note_answer(engine)
            return
        quiet_until = _quiet_until.get(engine, 0.0)
        # In the next outage it may be told again at once.
        over = math.isfinite(quiet_until) and not engine.channel.connected
        if time.monotonic() < quiet_until and not over:
            return
        _quiet_until[engine] = math.inf
        reason = str(refused.error).removeprefix(f"{self.what}: ")
        _log.warning(
            "%s: tasks are skipped until etcd answers: %s",
            self.what,
            reason,
            extra=fields(Event.TASKS_SUSPENDED, name=self.name, reason=reason),
        )

    def _note_answer(self, home: object) -> None:
        if _quiet_until.get(home) != math.inf:
            return
        # A leader runs on for the rest of its lease: that is no answer.
        if cast("Engine", home).channel.connected:
            _quiet_until[home] = time.monotonic() + _COME_BACK_SECONDS
            _log.warning(
                "%s: etcd answers again",
                self.what,
                extra=fields(Event.TASKS_RESUMED, name=self.name),
            )

    # -- checks --------------------------------------------------------------------------------

    def _bad(self, complaint: str) -> NoReturn:
        raise InvalidArgument(f"{self.what}: {complaint}")

    def _checked_ttl(self, ttl: float) -> int:
        if not _is_seconds(ttl):
            self._bad(f"ttl must be a number of seconds >= 0, not {ttl!r}")
        return max(1, math.ceil(ttl or self.default_ttl))

    def _check_options(self) -> None:
        if not isinstance(self._identity, (str, type(None))):
            self._bad(f"identity must be a str, not {type(self._identity).__name__}")
        if self._otherwise not in ("skip", "raise", "wait"):
            self._bad(f'otherwise must be "skip", "raise" or "wait", not {self._otherwise!r}')
        if self._wait is not None and self._otherwise != "wait":
            self._bad('wait= needs otherwise="wait"')
        if self._wait is not None and not _is_seconds(self._wait):
            self._bad(f"wait must be None or a number of seconds >= 0, not {self._wait!r}")
        if self._default is not None and self._otherwise != "skip":
            self._bad(f'default= is what a skip returns; otherwise="{self._otherwise}" never skips')
        # The margin a lease keeps is 5 %, and at least 0.1 s: more than this is never left.
        if not _is_seconds(self._min_remaining) or self._min_remaining > 0.9 * self._ttl:
            limits = f"between 0 and 90 % of ttl ({self._ttl} s)"
            self._bad(f"min_remaining must be {limits}, not {self._min_remaining!r}")
        if not _is_seconds(self._at_least_for):
            self._bad(f"at_least_for must be a number of seconds, not {self._at_least_for!r}")
        if self.on_lost not in ("signal", "raise", "cancel"):
            self._bad(f'on_lost must be "signal", "raise" or "cancel", not {self.on_lost!r}')

    def _check_on_lost(self) -> None:
        if self.on_lost == "cancel":
            self._bad('on_lost="cancel" needs an async task; take "raise" and call checkpoint()')


def fresh(error: EtcdError) -> EtcdError:
    """Return an error that may be kept by a candidacy without what an earlier raise left on it."""
    return error.with_traceback(None)


def _undo(admitted: Pass) -> None:
    try:
        if admitted.end is not None:
            # It never ran, so nobody need be kept out.
            admitted.end(math.inf)
    except EtcdError as exc:
        _log.debug("a cancelled call: left to expire: %s", exc)


# -- what tests pretend ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Fake:
    """What a test says of one name: the term of its owner, or None where another has it."""

    term: Term | None

    @staticmethod
    def reason(kind: str) -> str:
        """Return why a call is skipped."""
        return "not_leader" if kind == "leader_only" else "locked"


_fakes: dict[str, _Fake] = {}


@contextmanager
def pretend(name: str, term: Term | None) -> Iterator[None]:
    """Let tasks of ``name`` run under ``term``, or not at all. For :mod:`etcd_core.testing`."""
    name = name.strip("/")
    before = _fakes.get(name)
    _fakes[name] = _Fake(term)
    try:
        yield
    finally:
        if before is None:
            del _fakes[name]
        else:
            _fakes[name] = before


# -- what a task is ----------------------------------------------------------------------------


def qualified_name(function: object) -> str:
    """Return module and name of a function, also of a partial or a callable object."""
    inner = function.func if isinstance(function, functools.partial) else function
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return f"{getattr(inner, '__module__', None) or type(inner).__module__}.{name}"


def _is_async(function: object) -> bool:
    call = getattr(function, "__call__", None)  # noqa: B004 -- an object with an async __call__
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _is_seconds(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return math.isfinite(value) and value >= 0
