"""What ``leader_only`` does without etcd: decorating, refusing, and what tests pretend."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from etcd_core import (
    Client,
    InvalidArgument,
    LeaseLost,
    LockTimeout,
    NotLeader,
    Term,
    checkpoint,
    current_term,
    exclusive,
    leader_only,
    set_default_client,
    signals,
)
from etcd_core.taskguard import TaskGuard
from etcd_core.testing import fake_leader, no_leader


@leader_only("unit")
def report(day: str, *, pages: int = 1) -> str:
    """Write the report."""
    return f"{day}:{pages}:{current_term().token}"


@leader_only("unit")
async def report_async(day: str) -> str:
    """Write the report in a loop."""
    await asyncio.sleep(0)
    return f"{day}:{current_term().token}"


class Shop:
    """Every kind of method."""

    greeting = "hi"

    @leader_only("unit")
    def method(self, x: int) -> str:
        return f"{self.greeting} {x}"

    @classmethod
    @leader_only("unit")
    def inner_classmethod(cls, x: int) -> str:
        return f"{cls.greeting} {x}"

    @leader_only("unit")
    @classmethod
    def outer_classmethod(cls, x: int) -> str:
        return f"{cls.greeting} {x}"

    @staticmethod
    @leader_only("unit")
    def inner_staticmethod(x: int) -> str:
        return f"static {x}"

    @leader_only("unit")
    @staticmethod
    def outer_staticmethod(x: int) -> str:
        return f"static {x}"

    @leader_only("unit")
    async def async_method(self, x: int) -> str:
        return f"{self.greeting} {x}"


MakeGuard = Callable[..., TaskGuard[None]]


@pytest.fixture
def skips() -> Iterator[list[tuple[object, str, str]]]:
    seen: list[tuple[object, str, str]] = []

    def note(sender: object, *, name: str, reason: str) -> None:
        seen.append((sender, name, reason))

    signals.task_skipped.connect(note)
    yield seen
    signals.task_skipped.disconnect(note)


@pytest.fixture(autouse=True)
def _no_default_client() -> Iterator[None]:
    yield
    set_default_client(None)


class TestDecorating:
    def test_name_doc_and_signature_stay(self) -> None:
        assert report.__name__ == "report"
        assert report.__doc__ == "Write the report."
        assert str(inspect.signature(report)) == "(day: 'str', *, pages: 'int' = 1) -> 'str'"
        assert inspect.iscoroutinefunction(report_async)
        assert not inspect.iscoroutinefunction(report)

    def test_decorating_imports_no_grpc_and_needs_no_client(self) -> None:
        code = (
            "import sys\n"
            "from etcd_core import leader_only\n"
            "@leader_only('x')\n"
            "def task(): ...\n"
            "heavy = {'grpc', 'google.protobuf', 'yaml', 'etcd3'} & set(sys.modules)\n"
            "assert not heavy, heavy\n"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30)

    def test_every_kind_of_method(self) -> None:
        with fake_leader("unit"):
            assert Shop().method(1) == "hi 1"
            assert Shop.inner_classmethod(2) == "hi 2"
            assert Shop().outer_classmethod(3) == "hi 3"
            assert Shop.inner_staticmethod(4) == "static 4"
            assert Shop().outer_staticmethod(5) == "static 5"
            assert asyncio.run(Shop().async_method(6)) == "hi 6"
        with no_leader("unit"):
            assert Shop().method(1) is None
            assert Shop.outer_classmethod(3) is None
            assert asyncio.run(Shop().async_method(6)) is None

    def test_generators_are_refused(self) -> None:
        def generator() -> Iterator[int]:
            yield 1

        async def async_generator() -> AsyncIterator[int]:
            yield 1

        for function in (generator, async_generator):
            with pytest.raises(InvalidArgument, match="is a generator"):
                leader_only("unit")(function)

    def test_classes_and_values_are_refused(self) -> None:
        with pytest.raises(InvalidArgument, match="cannot guard"):
            leader_only("unit")(Shop)
        with pytest.raises(InvalidArgument, match="cannot guard"):
            leader_only("unit")(3)  # type: ignore[call-overload]

    def test_an_object_with_an_async_call(self) -> None:
        class Task:
            async def __call__(self) -> int:
                return current_term().token

        guarded = leader_only("unit")(Task())
        with fake_leader("unit", token=9):
            assert asyncio.run(guarded()) == 9

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"otherwise": "ignore"}, "otherwise must be"),
            ({"wait": 1.0}, 'wait= needs otherwise="wait"'),
            ({"otherwise": "wait", "wait": -1}, "wait must be"),
            ({"otherwise": "wait", "wait": float("nan")}, "wait must be"),
            ({"otherwise": "raise", "default": 0}, "default= is what a skip returns"),
            ({"identity": 3}, "identity must be a str"),
            ({"ttl": -1}, "ttl must be"),
            ({"ttl": True}, "ttl must be"),
            ({"min_remaining": -0.1}, "min_remaining must be"),
            ({"ttl": 10, "min_remaining": 9.5}, "90 % of ttl"),
            ({"at_least_for": -1}, "at_least_for must be"),
            ({"on_lost": "panic"}, "on_lost must be"),
        ],
    )
    def test_options_are_checked_when_decorating(
        self, options: dict[str, object], complaint: str
    ) -> None:
        for guard in (leader_only, exclusive):
            with pytest.raises(InvalidArgument, match=complaint):
                guard("unit", **options)  # type: ignore[call-overload]

    def test_both_take_the_same_options(self) -> None:
        ours = inspect.signature(leader_only).parameters.keys()
        assert ours - inspect.signature(exclusive).parameters.keys() == {"allow_drop"}

    @pytest.mark.parametrize("name", ["", "/", "a\0b", None])
    def test_names_are_checked_when_decorating(self, name: str) -> None:
        with pytest.raises(InvalidArgument, match="leader_only: name"):
            leader_only(name)


class TestRefusing:
    def test_skip_returns_the_default_and_tells(self, skips: list[tuple[object, str, str]]) -> None:
        @leader_only("unit", default=-1)
        def count() -> int:
            raise AssertionError("must not run")

        with no_leader("unit"):
            assert report("mon") is None
            assert count() == -1
        assert [skip[1:] for skip in skips] == [("unit", "not_leader")] * 2
        assert str(skips[0][0]).endswith("test_tasks.report")

    @pytest.mark.parametrize("otherwise", ["raise", "wait"])
    def test_raise(self, otherwise: str, skips: list[tuple[object, str, str]]) -> None:
        guard = leader_only("unit", otherwise=otherwise)  # type: ignore[call-overload]
        with no_leader("unit"), pytest.raises(NotLeader):
            guard(lambda: 1)()
        assert skips == []

    def test_a_receiver_that_raises_is_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        def broken(sender: object, **_: object) -> None:
            raise ValueError("receiver")

        with signals.task_skipped.connected_to(broken), no_leader("unit"):
            assert report("mon") is None
        assert "a receiver of" in caplog.text

    def test_no_client_names_the_function_to_call(self) -> None:
        with pytest.raises(InvalidArgument, match="set_default_client"):
            report("mon")
        with pytest.raises(InvalidArgument, match="set_default_client"):
            asyncio.run(report_async("mon"))

    @pytest.mark.parametrize("source", ["127.0.0.1:2379", 5, ["h:1"]])
    def test_what_is_no_client_is_refused_at_once(self, source: Client) -> None:
        with pytest.raises(InvalidArgument, match="set_default_client: give a Client or a func"):
            set_default_client(source)
        for guard in (leader_only, exclusive):
            with pytest.raises(InvalidArgument, match="'unit': give a Client or a function"):
                guard("unit", client=source)
            task = guard("unit", client=lambda: source)(lambda: 1)
            with pytest.raises(InvalidArgument, match="'unit': no Client was returned but"):
                task()

    def test_the_client_is_looked_up_at_call_time(self) -> None:
        asked: list[int] = []

        def provider() -> Client:
            asked.append(1)
            raise LookupError("no app context")

        set_default_client(provider)
        assert asked == []
        with pytest.raises(LookupError):
            report("mon")
        assert asked == [1]


class TestBrokers:
    """A broker gives a message to one process; these stand for its task objects."""

    class Task:
        __module__ = "celery.app.task"

        def __call__(self) -> None: ...

    class Actor(Task):
        __module__ = "dramatiq.actor"

    def test_leader_only_names_exclusive(self) -> None:
        for task in (self.Task(), self.Actor()):
            with pytest.raises(InvalidArgument, match=r"take exclusive\(\)"):
                leader_only("unit")(task)

    def test_who_calls_is_told_from_the_stack(self) -> None:
        skipped = leader_only("unit", default="skipped")(lambda: None)
        module = {"task": skipped, "__name__": "rq.job"}
        with no_leader("unit"):
            with pytest.raises(InvalidArgument, match="rq gives each message"):
                eval("task()", module)
            assert eval("task()", {**module, "__name__": "shop.rq"}) == "skipped"
            # By code of the program that a broker calls, which may do with the answer as it likes.
            call = eval("lambda: run()", {"run": lambda: skipped(), "__name__": "rq.job"})
            assert call() == "skipped"

    def test_a_guard_above_the_brokers_decorator_is_refused(self) -> None:
        for guard in (
            leader_only("unit", allow_drop=True),
            leader_only("unit", otherwise="raise"),
            exclusive("unit"),
        ):
            with pytest.raises(InvalidArgument, match="below its decorator"):
                guard(self.Task())


class TestExclusive:
    def test_a_fake_tells_its_loss_as_a_real_term(self) -> None:
        told: list[tuple[object, ...]] = []

        def lost(
            sender: object, *, key: str, identity: str, token: int, reason: str, **_: object
        ) -> None:
            told.append((key, identity, token, reason))

        with signals.leadership_lost.connected_to(lost), fake_leader("unit", token=7) as term:
            term.lost.set()
        assert told == [("unit", "fake", 7, "fake")]

    def test_it_is_faked_as_leader_only_is(self, skips: list[tuple[object, str, str]]) -> None:
        task = exclusive("unit")(lambda: current_term().token)
        with fake_leader("unit", token=3):
            assert task() == 3
        with no_leader("unit"):
            assert task() is None
            with pytest.raises(LockTimeout):
                exclusive("unit", otherwise="raise")(lambda: 1)()
        assert [skip[1:] for skip in skips] == [("unit", "locked")]


class TestBlock:
    def test_with(self) -> None:
        with fake_leader("unit", token=2):
            with leader_only("unit") as term:
                assert current_term() is term
                assert term.token == 2
                with leader_only("unit") as again:
                    assert again is term
                assert current_term() is term
            with pytest.raises(NotLeader):
                current_term()

    def test_a_block_is_never_entered_without(self) -> None:
        for guard, error in ((leader_only("unit"), NotLeader), (exclusive("unit"), LockTimeout)):
            with no_leader("unit"), pytest.raises(error), guard:
                raise AssertionError("entered")

    def test_async_with(self) -> None:
        async def main() -> int:
            async with exclusive("unit") as term:
                await asyncio.sleep(0)
                assert current_term() is term
            with pytest.raises(NotLeader):
                current_term()
            with no_leader("unit"), pytest.raises(LockTimeout):
                async with exclusive("unit"):
                    raise AssertionError("entered")
            return term.token

        with fake_leader("unit", token=8):
            assert asyncio.run(main()) == 8


class TestLoss:
    def test_signal(self) -> None:
        @leader_only("unit")
        def task() -> list[bool]:
            before = checkpoint()
            current_term().lost.set()
            return [before, checkpoint()]

        with fake_leader("unit"):
            assert task() == [True, False]

    @pytest.mark.parametrize(("guard", "error"), [(leader_only, NotLeader), (exclusive, LeaseLost)])
    def test_raise(self, guard: MakeGuard, error: type[Exception]) -> None:
        @guard("unit", on_lost="raise")
        def task() -> None:
            assert checkpoint()
            current_term().lost.set()
            checkpoint()

        with fake_leader("unit"), pytest.raises(error, match="was lost while the task ran"):
            task()

    def test_the_loss_of_an_outer_term_counts(self) -> None:
        @exclusive("inner")
        def inner(outer: Term) -> None:
            outer.lost.set()
            checkpoint()

        @leader_only("outer", on_lost="raise")
        def task() -> None:
            inner(current_term())

        with fake_leader("outer"), fake_leader("inner"), pytest.raises(NotLeader, match="outer"):
            task()

    def test_a_checkpoint_outside_raises(self) -> None:
        with pytest.raises(NotLeader, match="checkpoint: not called from"):
            checkpoint()

    @pytest.mark.parametrize(("guard", "error"), [(leader_only, NotLeader), (exclusive, LeaseLost)])
    def test_cancel(self, guard: MakeGuard, error: type[Exception]) -> None:
        ends: list[str] = []

        @guard("unit", on_lost="cancel")
        async def task() -> None:
            threading.Timer(0.05, current_term().lost.set).start()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise

        async def main() -> None:
            with pytest.raises(error, match="was lost while the task ran"):
                await task()
            # The cancellation is used up: the caller goes on.
            await asyncio.sleep(0.01)
            ends.append("went on")

        with fake_leader("unit"):
            asyncio.run(main())
        assert ends == ["cancelled", "went on"]

    def test_a_cancellation_from_outside_stays_one(self) -> None:
        @leader_only("unit", on_lost="cancel")
        async def task() -> None:
            await asyncio.sleep(30)

        async def main() -> None:
            running = asyncio.ensure_future(task())
            await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

        with fake_leader("unit"):
            asyncio.run(main())

    def test_a_task_that_ended_is_not_cancelled(self) -> None:
        @leader_only("unit", on_lost="cancel")
        async def task() -> Term:
            return current_term()

        async def main() -> None:
            term = await task()
            assert term is not None
            term.lost.set()
            await asyncio.sleep(0.02)

        with fake_leader("unit"):
            asyncio.run(main())

    def test_cancel_needs_a_coroutine(self) -> None:
        guard = leader_only("unit", on_lost="cancel")
        with pytest.raises(InvalidArgument, match="needs an async task"):
            guard(lambda: None)
        with fake_leader("unit"), pytest.raises(InvalidArgument, match="async"), guard:
            raise AssertionError("entered")


class TestTerm:
    def test_outside_there_is_none(self) -> None:
        with pytest.raises(NotLeader, match="not called from a running"):
            current_term()

    def test_inside(self) -> None:
        with fake_leader("unit", token=7, identity="me") as term:
            assert report("mon", pages=2) == "mon:2:7"
            assert asyncio.run(report_async("tue")) == "tue:7"
            assert (term.name, term.identity, term.token) == ("unit", "me", 7)
            with pytest.raises(NotLeader):
                current_term()

    def test_it_ends_with_an_exception_too(self) -> None:
        @leader_only("unit")
        def broken() -> None:
            raise ValueError(current_term().token)

        with fake_leader("unit"), pytest.raises(ValueError, match="1"):
            broken()
        with pytest.raises(NotLeader):
            current_term()

    def test_nested_names_give_the_inner_term(self) -> None:
        @leader_only("inner")
        def inner() -> Term:
            return current_term()

        @leader_only("outer")
        def outer() -> tuple[Term, Term | None, Term]:
            return current_term(), inner(), current_term()

        with fake_leader("outer", token=1), fake_leader("inner", token=2):
            got = outer()
        assert got is not None
        before, within, after = got
        assert within is not None
        assert (before.token, within.token, after.token) == (1, 2, 1)

    def test_threads_see_it_where_the_context_is_copied(self) -> None:
        seen: list[object] = []

        def look() -> None:
            try:
                seen.append(current_term().token)
            except NotLeader:
                seen.append(None)

        @leader_only("unit")
        def task() -> contextvars.Context:
            context = contextvars.copy_context()
            for target in (look, lambda: context.run(look)):
                thread = threading.Thread(target=target)
                thread.start()
                thread.join()
            return context

        with fake_leader("unit", token=5):
            context = task()
        assert seen == [None, 5]
        assert context is not None
        with pytest.raises(NotLeader):
            # The copy outlives the run; the term does not.
            context.run(current_term)

    def test_a_to_thread_call_sees_it(self) -> None:
        @leader_only("unit")
        async def task() -> int:
            return await asyncio.to_thread(lambda: current_term().token)

        with fake_leader("unit", token=6):
            assert asyncio.run(task()) == 6

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
    def test_a_forked_child_has_none(self) -> None:
        @leader_only("unit")
        def task() -> int:
            child = os.fork()
            if child == 0:
                try:
                    current_term()
                except NotLeader:
                    os._exit(0)
                os._exit(1)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

        with fake_leader("unit"):
            assert task() == 0


class TestReentrant:
    def test_a_call_of_the_same_name_just_runs(self) -> None:
        @leader_only("unit", otherwise="raise")
        def inner() -> int:
            return current_term().token

        @leader_only("unit")
        def outer() -> int:
            return inner() + 1

        with fake_leader("unit", token=3):
            assert outer() == 4

    def test_not_when_the_leadership_was_lost(self) -> None:
        @leader_only("unit")
        def inner() -> str:
            return "ran"

        @leader_only("unit")
        def outer() -> str | None:
            current_term().lost.set()
            with no_leader("unit"):
                return inner()

        with fake_leader("unit"):
            assert outer() is None


class TestFakes:
    def test_fakes_nest_and_end(self) -> None:
        with fake_leader("unit", token=1):
            with no_leader("unit"):
                assert report("mon") is None
            assert report("mon") == "mon:1:1"
        with pytest.raises(InvalidArgument):
            report("mon")

    def test_fakes_reach_other_threads_and_leave_other_names(self) -> None:
        seen: list[object] = []
        with fake_leader("unit"):
            thread = threading.Thread(target=lambda: seen.append(report("mon")))
            thread.start()
            thread.join()
        assert seen == ["mon:1:1"]
        with fake_leader("other"), pytest.raises(InvalidArgument):
            report("mon")

    def test_as_fixtures(
        self,
        etcd_fake_leader: Callable[..., Term],
        etcd_no_leader: Callable[[str], None],
    ) -> None:
        term = etcd_fake_leader("unit", token=12)
        assert report("mon") == f"mon:1:{term.token}"
        etcd_no_leader("unit")
        assert report("mon") is None

    def test_the_fake_guard_is_a_compare(self) -> None:
        with fake_leader("unit", token=4) as term:
            assert term.guard().build_message().create_revision == 4
            assert term.remaining() > 0
            term.lost.set()
            assert term.remaining() == 0

    def test_slashes_around_a_name_do_not_count(self) -> None:
        with fake_leader("/unit/"):
            assert report("mon") == "mon:1:1"

    def test_no_log_above_debug_for_a_skip(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO), no_leader("unit"):
            report("mon")
        assert caplog.records == []
