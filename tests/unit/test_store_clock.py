"""The store clock: answers that go back mean a reset, answers that overtake each other do not."""

from __future__ import annotations

import threading

from etcd_core.wire import messages as pb
from etcd_core.wire.channel import Backoff, ResetNotice, StoreClock


def header(revision: int, term: int = 2, cluster: int = 7) -> pb.ResponseHeader:
    return pb.ResponseHeader(revision=revision, raft_term=term, cluster_id=cluster)


class Clock(StoreClock):
    def __init__(self) -> None:
        self.notices: list[ResetNotice] = []
        super().__init__(self.notices.append)

    def answer(self, revision: int, term: int = 2, cluster: int = 7) -> None:
        self.observe(self.mark(), header(revision, term, cluster))


def test_forward_is_quiet() -> None:
    clock = Clock()
    for revision, term in ((5, 2), (5, 2), (9, 3)):
        clock.answer(revision, term)
    assert (clock.revision, clock.term, clock.epoch, clock.notices) == (9, 3, 0, [])


def test_a_lower_revision_is_one_reset() -> None:
    clock = Clock()
    clock.answer(55)
    clock.answer(3)
    clock.answer(4)
    assert clock.notices == [ResetNotice(before=55, after=3)]
    assert (clock.revision, clock.epoch) == (4, 1)


def test_a_lower_term_or_another_cluster_is_a_reset() -> None:
    clock = Clock()
    clock.answer(5, term=4)
    clock.answer(90, term=2)
    clock.answer(91, term=2, cluster=8)
    assert [(n.before, n.after) for n in clock.notices] == [(5, 90), (90, 91)]


def test_concurrent_answers_may_overtake_each_other() -> None:
    clock = Clock()
    slow = clock.mark()
    clock.answer(50)
    clock.observe(slow, header(49))
    assert clock.notices == []
    assert clock.revision == 50


def test_an_answer_sent_before_the_reset_says_nothing_about_after() -> None:
    clock = Clock()
    clock.answer(50)
    late = clock.mark()
    clock.answer(2)
    clock.observe(late, header(51))
    assert (clock.revision, clock.epoch, len(clock.notices)) == (2, 1, 1)


def test_a_watch_adds_what_it_saw() -> None:
    clock = Clock()
    clock.know(40, clock.epoch)
    assert clock.revision == 40
    clock.answer(39)
    assert len(clock.notices) == 1


def test_what_a_watch_saw_before_a_reset_is_forgotten_with_it() -> None:
    clock = Clock()
    clock.answer(50)
    before = clock.epoch
    clock.answer(2)
    clock.know(50, before)
    clock.answer(3)
    assert len(clock.notices) == 1


def test_many_threads_see_one_reset() -> None:
    clock = Clock()
    clock.answer(50)
    marks = [clock.mark() for _ in range(16)]
    threads = [threading.Thread(target=clock.observe, args=(m, header(1))) for m in marks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clock.notices) == 1


def test_backoff_grows_to_its_cap_and_starts_over() -> None:
    backoff = Backoff(base=0.1, cap=0.4)
    for ceiling in (0.1, 0.2, 0.4, 0.4):
        assert 0.0 <= backoff.next() <= ceiling
    backoff.reset()
    assert backoff.next() <= 0.1
    for _ in range(2000):
        assert backoff.next() <= 0.4
