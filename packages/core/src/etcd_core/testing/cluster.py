"""Several real etcd servers that form one cluster on 127.0.0.1.

Methods block in the calling thread; no thread is started. Each member is an :class:`EtcdServer`,
and is killed, paused and restarted as such.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, cast

from ._http import Status
from .server import Bootstrap, EtcdctlFailed, EtcdServer, EtcdStartFailed, PortInUse
from .tls import TlsFiles
from .wait import eventually

# Without it a member can be added or removed only once all members were up for five seconds.
_FLAGS = ("--strict-reconfig-check=false",)
_START_ATTEMPTS = 5


class EtcdCluster:
    """A cluster of real etcd servers, three by default.

    Args:
        n: How many members to start.
        tls: As for :class:`EtcdServer`; all members share the files, and peers talk in plain.
        auth: As for :class:`EtcdServer`.
        flags: More flags for every member.
        fast: As for :class:`EtcdServer`.

    Raises:
        EtcdNotFound: There is no etcd binary.

    Example:
        >>> with EtcdCluster(3) as cluster:
        ...     cluster.leader().kill()
        ...     cluster.wait_healthy()
    """

    def __init__(
        self,
        n: int = 3,
        *,
        tls: bool | Literal["mtls"] | TlsFiles | None = None,
        auth: str | None = None,
        flags: Sequence[str] = (),
        fast: bool = True,
    ) -> None:
        self._tls = tls
        self._auth = auth
        self._flags = (*_FLAGS, *flags)
        self._fast = fast
        self._names = 0
        self._settled = False
        self.members: list[EtcdServer] = []
        self._create(n)

    @property
    def endpoints(self) -> list[str]:
        """The client URLs of all members."""
        return [member.endpoint for member in self.members]

    def __enter__(self) -> EtcdCluster:
        """Start the cluster."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the cluster."""
        self.close()

    def start(self, timeout: float = 60.0) -> None:
        """Start the members that do not run, all at once, and wait until they agree.

        Args:
            timeout: Seconds to wait.

        Raises:
            EtcdStartFailed: One of them ended, or they did not agree in time.
        """
        for attempt in range(_START_ATTEMPTS):
            try:
                self._start(timeout)
                break
            except PortInUse:
                # Each member knows the ports of the others, so all of them get new ones; but
                # not once there is data, which would go to the wrong cluster.
                if attempt == _START_ATTEMPTS - 1 or self._settled:
                    raise
                count = len(self.members)
                self.close()
                self._create(count)
        self._settled = True
        self.wait_healthy(timeout)
        if self._auth is not None and all(member.username is None for member in self.members):
            self.members[0].enable_auth(self._auth)
            for member in self.members[1:]:
                member.adopt_auth(self._auth)

    def stop(self) -> None:
        """Stop every member, one after the other; the data stays."""
        for member in self.members:
            member.stop(timeout=5.0)

    def close(self) -> None:
        """Stop every member and remove the temporary data. Idempotent."""
        for member in self.members:
            # A graceful end hands leadership over first, to members that end next.
            member.kill()
            member.close()

    def leader(self, timeout: float = 15.0) -> EtcdServer:
        """Wait for a leader that a majority of all members agrees on, and return it.

        Paused and dead members are not asked.

        Raises:
            AssertionError: There was none within ``timeout`` seconds.
        """
        found = eventually(self._leader, timeout, message="a leader that a majority agrees on")
        assert found is not None
        return found

    def followers(self, timeout: float = 15.0) -> list[EtcdServer]:
        """Return the members that answer and are not the leader, learners included.

        Raises:
            AssertionError: There was no leader within ``timeout`` seconds.
        """
        leader = self.leader(timeout)
        return [member for member in self._reachable() if member is not leader]

    def wait_healthy(self, timeout: float = 30.0) -> None:
        """Wait until every running member serves reads and all agree on one leader.

        Dead and paused members do not count, but a majority must be left.

        Raises:
            EtcdStartFailed: It did not come to that within ``timeout`` seconds.
        """
        try:
            eventually(self._agreed, timeout, message=f"agreement of {self.members}")
        except AssertionError as exc:
            raise EtcdStartFailed(str(exc)) from exc

    def add_member(self, *, learner: bool = False, timeout: float = 30.0) -> EtcdServer:
        """Add a member with an empty store, and start it.

        Args:
            learner: Whether it only follows: it has no vote and refuses most requests.
            timeout: Seconds to wait until it answers.

        Raises:
            EtcdctlFailed: The cluster refused it.
            EtcdStartFailed: It ended, or did not answer in time.
        """
        server = self._server()
        known = [f"{member.name}={member.peer_url}" for member in [*self.members, server]]
        server.bootstrap = Bootstrap(",".join(known), "existing")
        kind = ["--learner"] if learner else []
        ask = self.leader(timeout)
        ask.ctl("member", "add", server.name, f"--peer-urls={server.peer_url}", *kind)
        self.members.append(server)
        server.start(wait=False)
        if self._auth is not None:
            server.adopt_auth(self._auth)
        server.wait_ready(timeout)
        return server

    def remove_member(self, server: EtcdServer, timeout: float = 15.0) -> None:
        """Remove a member from the cluster, and end its process. It may be dead already.

        Raises:
            EtcdctlFailed: The cluster refused.
        """
        ask = next(member for member in self._reachable() if member is not server)
        ask.ctl("member", "remove", f"{self._member_id(ask, server):x}", timeout=timeout)
        self.members.remove(server)
        server.close()

    def _create(self, count: int) -> None:
        self._settled = False
        self.members = [self._server() for _ in range(count)]
        known = ",".join(f"{member.name}={member.peer_url}" for member in self.members)
        for member in self.members:
            member.bootstrap = Bootstrap(known)

    def _server(self) -> EtcdServer:
        self._names += 1
        server = EtcdServer(
            tls=self._tls, flags=self._flags, fast=self._fast, name=f"m{self._names}"
        )
        # One set of files for all: a client has one CA for the whole cluster.
        self._tls = server.tls
        return server

    def _start(self, timeout: float) -> None:
        started = [member for member in self.members if not member.alive]
        for member in started:
            member.start(wait=False)
        for member in started:
            member.wait_ready(timeout)

    def _reachable(self) -> list[EtcdServer]:
        return [member for member in self.members if member.alive and not member.paused]

    def _statuses(self) -> dict[EtcdServer, Status]:
        found = {}
        for member in self._reachable():
            try:
                found[member] = member.status(timeout=1.0)
            except OSError:
                continue
        return found

    def _leader(self) -> EtcdServer | None:
        statuses = self._statuses()
        for member, own in statuses.items():
            # A leader that was frozen still believes in itself, in an older term.
            votes = [
                status
                for status in statuses.values()
                if (status.leader, status.term) == (own.member_id, own.term)
            ]
            if len(votes) > len(self.members) // 2:
                return member
        return None

    def _agreed(self) -> bool:
        reachable = self._reachable()
        if len(reachable) <= len(self.members) // 2 or self._leader() is None:
            return False
        views = {(status.leader, status.term) for status in self._statuses().values()}
        return len(views) == 1 and all(member.healthy() for member in reachable)

    @staticmethod
    def _member_id(ask: EtcdServer, server: EtcdServer) -> int:
        # Looked up by peer URL: a member that never started has no name yet.
        answer = cast("dict[str, list[dict[str, object]]]", json.loads(ask.ctl(*_MEMBER_LIST)))
        for member in answer["members"]:
            if member["peerURLs"] == [server.peer_url]:
                return int(str(member["ID"]))
        raise EtcdctlFailed(f"{server!r} is not a member of the cluster", "")


_MEMBER_LIST = ("member", "list", "--write-out=json")
