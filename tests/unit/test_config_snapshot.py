"""Leaves, snapshots and the plan of a write, without a socket."""

from __future__ import annotations

import weakref
from types import MappingProxyType

import pytest

from etcd_core.errors import ClosedError, InvalidArgument
from etcd_core.guarded import Claim, Plan, make_plan
from etcd_core.mirror import Cause, Entry, View
from etcd_core.snapshot import ConfigSnapshot, LeafDecoder, Origin
from etcd_core.source import ConfigSource
from etcd_core.wire import messages as pb
from etcd_core.wire.channel import StoreClock

PREFIX = b"/p/config/app/"
CLOCK = StoreClock(lambda notice: None)


def view(leaves: dict[str, bytes], revision: int = 10, mod: int = 5) -> View:
    entries = {}
    for name, raw in leaves.items():
        key = PREFIX + name.encode("utf-8", "surrogateescape")
        entries[key] = Entry(key, raw, mod, mod, 0)
    return View(revision, MappingProxyType(entries))


def snapshot(
    leaves: dict[str, bytes], decoder: LeafDecoder | None = None, cause: Cause = Cause.INITIAL
) -> ConfigSnapshot:
    origin = Origin(weakref.ref(CLOCK), 0)
    return ConfigSnapshot("app", PREFIX, view(leaves), cause, decoder or LeafDecoder(), origin)


# -- reading -----------------------------------------------------------------------------------


def test_mapping_of_paths_and_nested_tables():
    config = snapshot({"server.port": b"8080", "server.host": b"localhost", "debug": b"true"})
    assert dict(config) == {"server.port": 8080, "server.host": "localhost", "debug": True}
    assert config.nested() == {"server": {"port": 8080, "host": "localhost"}, "debug": True}
    assert (config.name, config.revision, config.exists, config.cause) == (
        "app",
        10,
        True,
        "initial",
    )
    assert not config.errors
    assert "server.port" in config
    assert "server" not in config
    with pytest.raises(KeyError):
        config["server"]


def test_nothing_stored_does_not_exist():
    config = snapshot({})
    assert not config.exists
    assert config.nested() == {}


def test_leaves_of_a_configuration_named_below_are_not_ours():
    config = snapshot({"port": b"1", "other/port": b"2"})
    assert dict(config) == {"port": 1}
    assert not snapshot({"other/port": b"2"}).exists


def test_repr_shows_no_value():
    config = snapshot({"password": b"hunter2", "bad": b"[hunter2"})
    assert repr(config) == "<ConfigSnapshot 'app' revision=10 leaves=2>"
    assert "hunter2" not in str(dict(config.errors))


def test_what_is_given_out_is_a_copy():
    config = snapshot({"hosts": b"[a, b]", "databases": b"{default: {NAME: x}}"})
    hosts, nested = config["hosts"], config.nested()
    assert isinstance(hosts, list)
    hosts.append("c")
    nested["databases"]["default"]["NAME"] = "y"  # type: ignore[index]
    assert config["hosts"] == ["a", "b"]
    assert config.nested()["databases"] == {"default": {"NAME": "x"}}


def test_snapshot_is_read_only():
    config = snapshot({"port": b"1"})
    with pytest.raises(TypeError):
        config["port"] = 2  # type: ignore[index]
    with pytest.raises(TypeError):
        config.errors["port"] = None  # type: ignore[index]


@pytest.mark.parametrize(
    ("leaves", "bad", "good"),
    [
        ({"port": b"[1", "host": b"a"}, {"port"}, {"host": "a"}),
        ({".port": b"1", "host": b"a"}, {".port"}, {"host": "a"}),
        ({"": b"1", "host": b"a"}, {""}, {"host": "a"}),
        ({"\udcff": b"1", "host": b"a"}, {"\\xff"}, {"host": "a"}),
        # Upper case, written by hand: served, and told when it collides.
        ({"Port": b"1"}, set(), {"port": 1}),
        ({"Port": b"1", "port": b"2"}, {"Port"}, {"port": 2}),
        ({"PORT": b"1", "Port": b"2"}, {"Port"}, {"port": 1}),
        # A value above other leaves cannot be nested.
        ({"a": b"1", "a.b": b"2", "a.b.c": b"3"}, {"a", "a.b"}, {"a.b.c": 3}),
        ({"a": b"{X: 1}", "a.b": b"2"}, set(), {"a": {"X": 1}, "a.b": 2}),
    ],
)
def test_one_bad_leaf_is_reported_and_hides_no_other(leaves, bad, good):
    config = snapshot(leaves)
    assert set(config.errors) == bad
    assert dict(config) == good
    assert config.exists
    config.nested()


def test_only_changed_leaves_are_decoded_again(monkeypatch):
    decoded: list[str] = []

    def spy(raw: bytes, path: str) -> object:
        decoded.append(path)
        return raw.decode()

    monkeypatch.setattr("etcd_core.snapshot.decode_leaf", spy)
    decoder = LeafDecoder()
    dict(snapshot({"a": b"1", "b": b"2", "c": b"3"}, decoder))
    decoded.clear()
    assert dict(snapshot({"a": b"1", "b": b"9", "d": b"4"}, decoder)) == {
        "a": "1",
        "b": "9",
        "d": "4",
    }
    assert decoded == ["b", "d"]


def test_one_decoder_serves_several_layers():
    decoder = LeafDecoder()
    entries = [Entry(key, b"1", 1, 1, 0) for key in (b"/c/app/a", b"/c/app.dev/b")]
    assert set(decoder.read(entries, b"/c/app/").found) == {"a"}
    assert set(decoder.read(entries, b"/c/app.dev/").found) == {"b"}


def test_diff():
    old = snapshot({"same": b"1", "spelled": b"'x'", "typed": b"1", "gone": b"1", "value": b"a"})
    new = snapshot({"same": b"1", "spelled": b"x", "typed": b"true", "fresh": b"1", "value": b"b"})
    diff = new.diff(old)
    assert diff.changed == {"typed", "value"}
    assert diff.added == {"fresh"}
    assert diff.removed == {"gone"}
    assert diff
    assert not new.diff(new)


# -- the plan of a write -----------------------------------------------------------------------


def depth_budget(request: pb.TxnRequest) -> int:
    """What etcd counts: the larger of compares and operations, summed along the deepest path."""
    below = [depth_budget(op.request_txn) for op in request.success if op.HasField("request_txn")]
    return max(len(request.compare), len(request.success)) + max(below, default=0)


def operations(request: pb.TxnRequest) -> int:
    return sum(
        operations(op.request_txn)
        if op.HasField("request_txn")
        else not op.HasField("request_range")
        for op in request.success
    )


def wide(count: int) -> dict[bytes, bytes | None]:
    return {PREFIX + b"%d" % i: b"new" for i in range(count)}


def plan_of(stored: int, written: int, *, whole: bool = True) -> Plan:
    base = view({str(i): b"old" for i in range(stored)})
    return make_plan(base, Claim(wide(written), whole=whole), PREFIX)


@pytest.mark.parametrize("count", [1, 127, 128, 129, 4032, 4033, 10_000, 63_488])
@pytest.mark.parametrize("known", [False, True])
def test_any_number_of_writes_fits_the_limit_of_etcd(count, known):
    plan = plan_of(count if known else 0, count)
    assert depth_budget(plan.request) <= 128
    assert operations(plan.request) == count


def test_every_key_has_its_compare_while_there_is_room():
    plan = plan_of(127, 1)
    assert len(plan.request.compare) == 2
    assert not plan.counts
    base = view({str(i): b"old" for i in range(127)})
    kept = {key: entry.value for key, entry in base.entries.items()}
    plan = make_plan(base, Claim({**kept, PREFIX + b"0": b"new"}, whole=True), PREFIX)
    assert len(plan.request.compare) == 128
    assert not plan.counts


def test_beyond_that_the_keys_are_counted_and_the_written_ones_come_first():
    base = view({str(i): b"old" for i in range(500)})
    kept = {key: entry.value for key, entry in base.entries.items()}
    plan = make_plan(base, Claim({**kept, PREFIX + b"499": b"new"}, whole=True), PREFIX)
    assert plan.counts
    assert plan.request.success[0].request_range.count_only
    assert plan.request.compare[1].key == PREFIX + b"499"


def test_a_part_is_guarded_by_its_own_keys_only():
    plan = plan_of(500, 3, whole=False)
    assert [compare.key for compare in plan.request.compare] == [
        PREFIX + b"%d" % i for i in range(3)
    ]
    assert not any(compare.range_end for compare in plan.request.compare)
    assert plan_of(500, 200, whole=False).request.compare[0].range_end


def test_unchanged_leaves_are_not_written():
    base = view({"a": b"1", "b": b"2"})
    plan = make_plan(base, Claim({PREFIX + b"a": b"1", PREFIX + b"b": None}, whole=True), PREFIX)
    assert plan.writes == [PREFIX + b"b"]


# -- arguments ---------------------------------------------------------------------------------


def no_scope():
    raise ClosedError("an argument should have been refused before this")


def a_source(name: str = "app") -> ConfigSource:
    return ConfigSource(no_scope, "/p", name)


@pytest.mark.parametrize("name", ["", "/", "a\0b", 7])
def test_names_that_cannot_be_a_key_are_refused(name):
    with pytest.raises(InvalidArgument):
        a_source(name)


def test_a_source_is_made_without_io():
    source = a_source("app.production")
    assert (source.name, repr(source)) == ("app.production", "<ConfigSource 'app.production'>")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"": 1},
        {"a": object()},
        {"a": 1, "A": 2},
        {"a": 1, "a.b": 2},
        {"a/b": 1},
        [("a", 1)],
        None,
    ],
)
def test_values_are_refused_before_any_io(values):
    with pytest.raises(InvalidArgument):
        a_source().save(values)


@pytest.mark.parametrize("delete", ["port", b"port", 7, [""], ["a/b"], [7]])
def test_paths_to_delete_are_refused_before_any_io(delete):
    with pytest.raises(InvalidArgument):
        a_source().update({}, delete=delete)


def test_a_snapshot_of_another_configuration_is_refused():
    source = a_source("other")
    with pytest.raises(InvalidArgument, match="'app'"):
        source.save({"a": 1}, expect=snapshot({}))
    with pytest.raises(InvalidArgument, match="'app'"):
        source.watch(lambda config: None, since=snapshot({}))
    with pytest.raises(InvalidArgument, match="ConfigSnapshot"):
        source.update({"a": 1}, expect={"a": 1})  # type: ignore[arg-type]


def test_bootstrap_needs_defaults():
    with pytest.raises(InvalidArgument):
        a_source().bootstrap({})


def test_an_empty_snapshot_still_is_an_expectation():
    # A mapping without leaves is false: "expect or read" would read instead.
    with pytest.raises(ClosedError):
        a_source().save({"a": 1}, expect=snapshot({}))
