"""A nemesis (J9): breaks a cluster of three in ways drawn from a seed, one after the other.

Runs in the caller's thread; every action heals what it broke before it returns, so that a majority
is always left or comes back.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable

from etcd_core import Client, EtcdError
from etcd_core.testing import EtcdCluster, EtcdServer, FaultProxy, eventually
from etcd_core.wire import messages as pb
from etcd_core.wire.rpc import PUT, SERIALIZABLE_RANGE
from loads import read


class Nemesis:
    """Draws and does the actions.

    Args:
        cluster: Three members that run.
        seed: Decides everything but the timing.
        third_party: Gives a client of somebody else, straight to the endpoints, or to all members.
    """

    def __init__(
        self, cluster: EtcdCluster, seed: int, third_party: Callable[..., Client], prefix: str
    ) -> None:
        self.cluster = cluster
        self.proxies = {member: FaultProxy(member.endpoint) for member in cluster.members}
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._third_party = third_party
        self._prefix = prefix
        # How often each is drawn: a member takes seconds to join.
        self._actions: dict[Callable[[], None], int] = {
            self.kill: 3,
            self.pause: 3,
            self.hold_one: 3,
            self.hold_all: 3,
            self.reset: 3,
            self.compact: 3,
            self.revoke: 4,
            self.delete: 4,
            self.idle_past_the_token: 2,
            self.wipe_and_rejoin: 1,
        }

    @property
    def endpoints(self) -> list[str]:
        """What the fleet's clients are given: the proxies."""
        return [proxy.endpoint for proxy in self.proxies.values()]

    def run(self, seconds: float) -> None:
        """Act until ``seconds`` have passed, then heal."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            (action,) = self._random.choices(list(self._actions), list(self._actions.values()))
            self.done[action.__name__] += 1
            print(f"nemesis: {ends - time.monotonic():5.1f} s left: {action.__name__}", flush=True)
            try:
                action()
            except Exception:
                print(self.state(), flush=True)
                raise
            time.sleep(min(self._random.uniform(0.3, 1.5), max(0.0, ends - time.monotonic())))
        self.cluster.wait_healthy()

    def state(self) -> str:
        """Return what the members say of themselves: soon they are gone."""
        lines = []
        for member in self.cluster.members:
            state = f"alive {member.alive}, paused {member.paused}, {self._store(member)}"
            log = member.log.read_text(errors="replace").splitlines()[-10:]
            lines += [f"nemesis: {member!r}: {state}", *(line[:300] for line in log)]
        return "\n".join(lines)

    def stores(self) -> dict[str, tuple[int, int]]:
        """Return each member's applied raft index and its store's revision."""
        found = {member.name: self._store(member) for member in self.cluster.members}
        return {name: store for name, store in found.items() if isinstance(store, tuple)}

    @staticmethod
    def _store(member: EtcdServer) -> tuple[int, int] | str:
        if not member.alive or member.paused:
            return "does not run"
        try:
            answer = json.loads(member.ctl("endpoint", "status", "-w", "json"))
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"
        status = answer[0]["Status"]
        return int(status["raftAppliedIndex"]), int(status["header"]["revision"])

    def close(self) -> None:
        """Close the proxies."""
        for proxy in self.proxies.values():
            proxy.close()

    def _victim(self) -> EtcdServer:
        return self._random.choice(self.cluster.members)

    def _for_a_while(self, longest: float) -> None:
        time.sleep(self._random.uniform(0.2, longest))

    # -- servers -------------------------------------------------------------------------------

    def kill(self) -> None:
        """SIGKILL one member and start it again, or replace it if it has forgotten something.

        etcd 3.5.0 to 3.5.2 may, for the index of what is applied reaches the disk before what is
        applied does: such a member misses hundreds of revisions and says so to nobody. No client
        could be right about that, so none is let in before the member is known to be sound.
        """
        victim = self._victim()
        self.proxies[victim].refuse()
        victim.kill()
        self._for_a_while(2.0)
        victim.start()
        if self._is_sound(victim):
            self.proxies[victim].heal()
        else:
            print(f"nemesis: {victim!r} forgot what it had applied, and is replaced", flush=True)
            self.done["forgot"] += 1
            self._replace(victim)

    def pause(self) -> None:
        """SIGSTOP one member for a while."""
        victim = self._victim()
        victim.pause()
        try:
            self._for_a_while(4.0)
        finally:
            victim.resume()

    def wipe_and_rejoin(self) -> None:
        """Remove one member and let an empty one join behind the same proxy."""
        self.cluster.wait_healthy()
        self._replace(self._random.choice(self.cluster.followers()))

    def forgetful(self) -> list[str]:
        """Return the members whose stores are not the others' any more."""
        return [repr(member) for member in self.cluster.members if not self._is_sound(member)]

    def _is_sound(self, member: EtcdServer) -> bool:
        """Tell whether one entry of the log became one revision here and elsewhere."""
        others = [other for other in self.cluster.members if other is not member]
        key = f"{self._prefix}-marker"
        with (
            self._third_party(*[other.endpoint for other in others]) as elsewhere,
            self._third_party(member.endpoint) as here,
        ):
            put = pb.PutRequest(key=key.encode(), value=b"%d" % time.monotonic_ns())
            channel = elsewhere.scope().engine.channel
            written = eventually(
                lambda: channel.unary(PUT, put, what="mark", timeout=5.0).header.revision, 30, 0.1
            )
            request = pb.RangeRequest(key=key.encode(), serializable=True)
            channel = here.scope().engine.channel

            def found() -> int:
                answer = channel.unary(SERIALIZABLE_RANGE, request, what="look", timeout=5.0)
                (kv,) = answer.kvs
                return kv.mod_revision if kv.value == put.value else 0

            return eventually(found, 30, 0.05) == written

    def _replace(self, victim: EtcdServer) -> None:
        proxy = self.proxies.pop(victim)
        self.cluster.remove_member(victim)
        port = proxy.port
        proxy.close()
        fresh = self.cluster.add_member()
        self.proxies[fresh] = FaultProxy(fresh.endpoint, port=port)

    # -- network -------------------------------------------------------------------------------

    def hold_one(self) -> None:
        """Make the way to one member a black hole."""
        proxy = self.proxies[self._victim()]
        proxy.hold()
        try:
            self._for_a_while(4.0)
        finally:
            proxy.heal()

    def hold_all(self) -> None:
        """Cut the fleet off from etcd, now and then for longer than a lease lives."""
        for proxy in self.proxies.values():
            proxy.hold()
        try:
            self._for_a_while(self._random.choice((1.0, 3.0, 7.0)))
        finally:
            for proxy in self.proxies.values():
                proxy.heal()

    def reset(self) -> None:
        """Reset every connection, a few times."""
        for _ in range(self._random.randint(1, 5)):
            for proxy in self.proxies.values():
                proxy.reset()
            time.sleep(0.1)

    # -- data ----------------------------------------------------------------------------------

    def compact(self) -> None:
        """Compact everything but the newest few revisions."""

        def act(client: Client) -> None:
            newest = max((kv.mod_revision for kv in read(client, self._prefix)), default=1)
            client.raw.compact(max(1, newest - self._random.choice((0, 5, 50))))

        self._as_third_party(act)

    def revoke(self) -> None:
        """Revoke the lease of a registration or of a contender for the hunted lock."""

        def act(client: Client) -> None:
            leases = [kv.lease for kv in self._prey(client) if kv.lease]
            if leases:
                client.raw.revoke_lease(self._random.choice(leases))

        self._as_third_party(act)

    def delete(self) -> None:
        """Delete the key of a registration or of a contender for the hunted lock."""

        def act(client: Client) -> None:
            found = self._prey(client)
            if found:
                client.raw.delete(self._random.choice(found).key)

        self._as_third_party(act)

    def idle_past_the_token(self) -> None:
        """Leave etcd alone for longer than a login token lives unused."""
        time.sleep(1.5)

    def _prey(self, client: Client) -> list[object]:
        keys = [f"{self._prefix}/services/fleet/", f"{self._prefix}/locks/prey/"]
        return [kv for key in keys for kv in read(client, key)]

    def _as_third_party(self, act: Callable[[Client], None]) -> None:
        with self._third_party() as client:
            try:
                act(client)
            except EtcdError as exc:
                # Compacted already, or the lease or key is gone meanwhile.
                print(f"nemesis: {type(exc).__name__}", flush=True)
            except Exception as exc:
                if not type(exc).__module__.startswith(("etcd3", "grpc")):
                    raise
