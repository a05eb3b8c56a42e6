"""A nemesis (J9): breaks a cluster of three in ways drawn from a seed, one after the other.

Runs in the caller's thread; every action heals what it broke before it returns, so that a majority
is always left or comes back.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable

from etcd_core import Client, EtcdError
from etcd_core.testing import EtcdCluster, EtcdServer, FaultProxy
from loads import read


class Nemesis:
    """Draws and does the actions.

    Args:
        cluster: Three members that run.
        seed: Decides everything but the timing.
        third_party: Gives a client of somebody else, straight to the members.
    """

    def __init__(
        self, cluster: EtcdCluster, seed: int, third_party: Callable[[], Client], prefix: str
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
            action()
            time.sleep(min(self._random.uniform(0.3, 1.5), max(0.0, ends - time.monotonic())))
        self.cluster.wait_healthy()

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
        """SIGKILL one member and start it again."""
        victim = self._victim()
        victim.kill()
        self._for_a_while(2.0)
        victim.start()

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
        victim = self._random.choice(self.cluster.followers())
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
