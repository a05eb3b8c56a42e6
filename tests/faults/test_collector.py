"""The garbage collector finalises a lock in the middle of anything, with any lock of ours held."""

from __future__ import annotations

import subprocess
import sys

from etcd_core.testing import EtcdServer

_PROGRAM = """
import faulthandler, gc, sys, threading, warnings, weakref
faulthandler.dump_traceback_later(40, exit=True)
from etcd_core import Client, Descriptor
from etcd_core.testing import eventually

warnings.simplefilter("ignore", ResourceWarning)
gc.disable()
client = Client(endpoints=[sys.argv[1]], prefix=sys.argv[2])
source = client.config_source("app")
source.save({"a": 1})
source.watch(lambda snapshot: None)
client.register(Descriptor(name="web", id="1", address="h:1"))
view = client.services("web")
candidate = client.candidate("chief", "me")
candidate.wait(20)
kinds = (type(threading.Lock()), type(threading.RLock()), threading.Condition)

def owned():
    # Every lock of this library that there is in the process.
    for module in [m for name, m in sys.modules.items() if name.split(".")[0] == "etcd_core"]:
        for name, value in vars(module).items():
            if isinstance(value, kinds):
                yield f"{module.__name__}.{name}", value
    for each in gc.get_objects():
        kind = type(each)
        if str(kind.__module__).split(".")[0] != "etcd_core":
            continue
        names = [*getattr(each, "__dict__", {}), *getattr(kind, "__slots__", ())]
        for name in names:
            value = getattr(each, name, None)
            if isinstance(value, kinds):
                yield f"{kind.__qualname__}.{name}", value

def collect_under(number, held):
    cycle = [client.lock(f"doomed-{number}")]
    cycle.append(cycle)
    name = cycle[0].etcd_key
    gone = weakref.ref(cycle[0])
    lease = cycle[0]._ownership.lease
    # Its own locks too: the newest object of each kind is part of what is collected.
    where = dict(owned())[held]
    del cycle
    assert gone() is not None
    print(held, flush=True)
    with where:
        gc.collect()
        assert gone() is None
    keeper = client.scope().engine.keeper
    eventually(lambda: lease.id not in keeper._renewals)

first = client.lock("first")
names = sorted(dict(owned()))
for number, held in enumerate(names):
    collect_under(number, held)
assert first.held
assert first.unlock()
with client.lock("after", timeout=10):
    pass
client.close()
print("fine", len(names))
"""


def test_a_lock_is_finalised_under_every_lock_there_is(
    etcd_server: EtcdServer, prefix: str
) -> None:
    """Whatever ``Lock.__del__`` waited for would be held by the very thread that it runs in."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, etcd_server.endpoint, prefix],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, (done.stdout[-300:], done.stderr[-3000:])
    *held, last = done.stdout.splitlines()
    assert last.startswith("fine")
    for name in ("LeaseKeeper._lock", "Ownership._lock", "Lease._lock", "Scope._lock"):
        assert name in held
