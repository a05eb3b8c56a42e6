"""J9: a whole fleet's work while a nemesis breaks a cluster of three; and F14, in order.

pytest tests/faults/test_nemesis.py --nemesis-seconds 600 --nemesis-seed 7 -s
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from checkers import CHEAP_LOGINS
from etcd_core import Client, Config, signals
from etcd_core.testing import EtcdCluster
from loads import Fleet
from nemesis import Nemesis

_PASSWORD = "of-the-nemesis"
_TOKEN_SECONDS = 1


@contextmanager
def clients(prefix: str, **options: object) -> Iterator[Callable[..., Client]]:
    """Give a maker of clients; they are closed at the end."""
    made: list[Client] = []

    def make(endpoints: list[str]) -> Client:
        client = Client(Config(endpoints, prefix=prefix, **options))  # type: ignore[arg-type]
        made.append(client)
        return client

    try:
        yield make
    finally:
        for client in made:
            client.close()


@contextmanager
def no_reset_is_seen(ask: Callable[[], object] = str) -> Iterator[None]:
    """One member's store is emptied, never the cluster's: nobody may take that for a reset."""
    seen: list[object] = []

    def note(sender: object, **payload: object) -> None:
        seen.append(payload)
        print(f"a reset that never was: {payload}; {ask()}", flush=True)

    with signals.cluster_reset.connected_to(note):  # type: ignore[attr-defined]
        yield
    assert seen == [], "a reset that never was"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_j9_nemesis(
    nemesis_seconds: float, nemesis_seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    print(f"\nnemesis: seed {nemesis_seed}, {nemesis_seconds:g} s")
    caplog.set_level(logging.CRITICAL, logger="etcd_core")
    prefix = f"/nemesis/{uuid.uuid4().hex}"
    flags = [f"--auth-token-ttl={_TOKEN_SECONDS}", CHEAP_LOGINS]
    login = {"username": "root", "password": _PASSWORD}
    with (
        EtcdCluster(3, auth=_PASSWORD, flags=flags) as cluster,
        clients(prefix, timeout=10.0, **login) as make,
    ):

        def third_party(*endpoints: str) -> Client:
            chosen = endpoints or cluster.endpoints
            return Client(Config(chosen, prefix=prefix, **login))  # type: ignore[arg-type]

        nemesis = Nemesis(cluster, nemesis_seed, third_party, prefix)
        try:
            with no_reset_is_seen(nemesis.state):
                fleet = Fleet.over(lambda: make(nemesis.endpoints))
                fleet.start()
                try:
                    nemesis.run(nemesis_seconds)
                finally:
                    print(f"nemesis: applied index and revision: {nemesis.stores()}")
                    fleet.stop()
                with third_party() as judge:
                    fleet.check(judge)
        except AssertionError:
            print(f"nemesis: members that forgot something: {nemesis.forgetful() or 'none'}")
            raise
        finally:
            print(f"nemesis: seed {nemesis_seed} did {dict(nemesis.done)}")
            nemesis.close()
        print(fleet.figures())


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_f14_rolling_restart_under_load(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="etcd_core")
    prefix = f"/rolling/{uuid.uuid4().hex}"
    with EtcdCluster(3) as cluster, clients(prefix) as make, no_reset_is_seen():
        fleet = Fleet.over(lambda: make(cluster.endpoints), prey=False)
        fleet.start()
        try:
            for member in list(cluster.members):
                member.stop()
                member.start()
                cluster.wait_healthy()
                before = [load.rounds for load in fleet.loads]
                # On to the next member only once everybody has got something done since.
                deadline = time.monotonic() + 30
                while any(
                    load.rounds <= done and load.crash is None
                    for load, done in zip(fleet.loads, before, strict=True)
                ):
                    assert time.monotonic() < deadline, fleet.figures()
                    time.sleep(0.05)
        finally:
            fleet.stop()
        fleet.check(make(cluster.endpoints))
        print(fleet.figures())
