"""Whatever is stored, in whatever order: what is told adds up to what is shown.

Values are good, bad and in between; keys are instances', others' and none at all.
"""

from __future__ import annotations

from types import MappingProxyType

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_core import Descriptor
from etcd_core.discovery import ServiceEventType, _Roster
from etcd_core.mirror import Cause, Change, Entry, View
from etcd_core.snapshot import LeafDecoder

BOUNDED = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))

SERVICE = b"/p/services/web/"
CONFIG = b"/p/config/app/"

# A text is a host: the value is then the descriptor of the key's own instance there.
_values = st.one_of(
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([b"", b"{}", b"garbage", b"[1]", b"on", b"{a: 1}", b"- x", b"\xff", b"'"]),
    st.binary(max_size=4),
)
_names = st.sampled_from([b"1", b"2", b"a.b", b"A.b", b"a", b"", b"x/y", b"\xff", b"..", b"a..b"])
_steps = st.lists(st.dictionaries(_names, st.none() | _values, max_size=4), max_size=8)
Steps = list[dict[bytes, "bytes | str | None"]]


def _stored(name: bytes, value: bytes | str) -> bytes:
    if isinstance(value, bytes):
        return value
    instance = name.decode(errors="backslashreplace")
    return Descriptor(name="web", id=instance, address=f"{value}:1").encode()


def _changes(prefix: bytes, steps: Steps) -> list[Change]:
    """Return the steps as a mirror tells them."""
    view = View(1, MappingProxyType({}))
    changes = []
    for number, step in enumerate(steps, start=2):
        entries = dict(view.entries)
        deleted = []
        put = []
        for name, value in step.items():
            key = prefix + name
            if value is not None:
                entries[key] = Entry(key, _stored(name, value), number, number, 0)
                put.append(entries[key])
            elif key in entries:
                deleted.append(entries.pop(key))
        after = View(number, MappingProxyType(dict(sorted(entries.items()))))
        changes.append(Change(Cause.CHANGE, view, after, tuple(put), tuple(deleted)))
        view = after
    return changes


@BOUNDED
@given(steps=_steps)
def test_what_is_told_of_instances_adds_up(steps: Steps) -> None:
    roster = _Roster(SERVICE)
    told: dict[str, Descriptor] = {}
    for change in _changes(SERVICE, steps):
        for event in roster.apply(change):
            # Each id: added, then modified any number of times, then removed as it was last.
            assert (event.info.id in told) == (event.type is not ServiceEventType.ADDED)
            if event.type is ServiceEventType.REMOVED:
                assert told.pop(event.info.id) == event.info
            else:
                assert told.get(event.info.id) != event.info
                told[event.info.id] = event.info
        assert {info.id: info for info in roster.instances()} == told
        assert len(roster.instances()) == len(told)


@BOUNDED
@given(steps=_steps)
def test_a_decoder_that_remembers_decodes_as_a_new_one(
    steps: Steps,
) -> None:
    remembers = LeafDecoder()
    for change in _changes(CONFIG, steps):
        entries = change.after.entries.values()
        old, new = remembers.read(entries, CONFIG), LeafDecoder().read(entries, CONFIG)
        assert repr(old) == repr(new)
        assert set(old.found) <= {leaf.path for leaf in old.stored.values()}
