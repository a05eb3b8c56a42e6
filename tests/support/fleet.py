"""A fleet of processes of which one leads, what befalls the one that does, and who goes on.

Judged by a :class:`~fenced_counter.FencedCounter` that the one which leads raises.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from etcd_core import Client
from etcd_core.testing import EtcdServer, FaultProxy, eventually
from fenced_counter import FencedCounter
from takeovers import CLEAN_EXIT, CRASH, HOLD, STOP, Takeovers


class Process(Protocol):
    """What a fleet needs of a process."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, sig: int) -> None: ...


@dataclass(frozen=True)
class Member:
    """One process, and its own way to etcd."""

    process: Process
    proxy: FaultProxy

    def suffer(self, how: str) -> None:
        """Bring about what ends its leadership; returns when that is so."""
        if how == HOLD:
            self.proxy.hold()
        elif how == STOP:
            self.process.send_signal(signal.SIGSTOP)
        else:
            self.process.send_signal(signal.SIGKILL if how == CRASH else signal.SIGTERM)
            code = self.process.wait(30)
            assert (code == 0) is (how == CLEAN_EXIT), code

    def recover(self) -> None:
        """End that, if the process lives."""
        self.proxy.heal()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.proxy.close()


class Members:
    """The processes, which may serve several tests.

    Args:
        server: The etcd.
        prefix: Where they meet; emptied in the end.
        start: Starts a process, given the endpoint that it reaches etcd by.
    """

    def __init__(self, server: EtcdServer, prefix: str, start: Callable[[str], Process]) -> None:
        self.prefix = prefix
        self._server = server
        self._start = start
        self._members: list[Member] = []

    def complete(self, size: int) -> list[Member]:
        """Start as many as are missing; return those that run."""
        for member in self._members:
            if member.process.poll() is not None:
                member.close()
        self._members = [each for each in self._members if each.process.poll() is None]
        while len(self._members) < size:
            proxy = FaultProxy(self._server.endpoint)
            self._members.append(Member(self._start(proxy.endpoint), proxy))
        return self._members

    def __enter__(self) -> Members:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for member in self._members:
            member.close()
        self._server.delete_prefix(f"{self.prefix}/")


class Fleet:
    """The processes as one test sees them.

    Args:
        members: They.
        client: A client of the test's own, under their prefix.
        election: The name under which they compete.
    """

    size = 3

    def __init__(self, members: Members, client: Client, election: str) -> None:
        self._members = members
        self._client = client
        self._election = election
        self.counter = FencedCounter(client)

    def settled(self) -> Member:
        """Wait until all are in the election, so that no start delays what follows.

        Returns:
            The one that leads, and has counted.
        """
        members = self._members.complete(self.size)
        queue = f"{self._client.prefix}/elections/{self._election}/"
        eventually(lambda: len(list(self._client.raw.get_prefix(queue))) == self.size, timeout=40)

        def leader() -> Member | None:
            last, identity = self.counter.last(), self._client.leader(self._election)
            pid = last.pid if last and f"{identity}".endswith(f":{last.pid}") else None
            return next((each for each in members if each.process.pid == pid), None)

        found = eventually(leader, timeout=40, message="one leads and counts")
        assert found is not None
        return found

    def take_over(self, how: str, takeovers: Takeovers) -> Member:
        """Have the one that leads suffer, until another one counts; return the former."""
        leader = self.settled()
        last = self.counter.last()
        assert last is not None
        began = time.monotonic()
        leader.suffer(how)
        eventually(lambda: self._token() > last.token, timeout=40, message="another one counts")
        first = self.counter.first_after(last.token)
        assert first.pid != leader.process.pid
        takeovers.note(how, first.at - began)
        return leader

    def wait_for_counts(self, number: int) -> None:
        """Wait until there are so many more."""
        last = self.counter.last()
        wanted = (last.number if last else 0) + number
        eventually(lambda: self._number() >= wanted, timeout=40)

    def _token(self) -> int:
        last = self.counter.last()
        return last.token if last else 0

    def _number(self) -> int:
        last = self.counter.last()
        return last.number if last else 0
