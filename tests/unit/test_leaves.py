"""The YAML of leaves against what real Go reads (vectors), and the rules of paths and tables."""

from __future__ import annotations

import base64
import copy
import enum
import json
import math
import time as clock
from collections.abc import Iterator
from datetime import date, datetime, time, timezone
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_core import leaves
from etcd_core.errors import DecodeError, InvalidArgument
from etcd_core.leaves import (
    MAX_ALIASED_NODES,
    MAX_DEPTH,
    Value,
    decode_leaf,
    encode_leaf,
    flatten,
    leaf_path,
    nest,
    overlay,
)

VECTORS = json.loads((Path(__file__).parent / "data" / "yaml_go_vectors.json").read_text())
LOADERS = [yaml.SafeLoader] + ([yaml.CSafeLoader] if yaml.__with_libyaml__ else [])
BOUNDED = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Run the test with the C loader and with the Python one."""
    monkeypatch.setattr(leaves, "_LOADER", request.param)
    return request.param


def untyped(vector: dict) -> Value:
    ((kind, value),) = vector.items()
    if kind == "list":
        return [untyped(item) for item in value]
    if kind == "map":
        # Our keys are the text of the key; the vectors only have keys that Go reads as text.
        return {untyped(key): untyped(item) for key, item in value}
    if kind == "bytes":
        return base64.b64decode(value)
    return {"int": int, "float": float}.get(kind, lambda same: same)(value)


def same(a: object, b: object) -> bool:
    """Equal in value and type, at every depth; NaN equals NaN, and -0.0 is not 0.0."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return repr(a) == repr(b)


def reads_as(got: object, expected: dict) -> bool:
    if "error" in expected:
        return got is DecodeError
    value = untyped(expected)
    # A Go string holds any bytes; what is tagged !!binary is bytes here.
    return same(got, value) or (isinstance(value, str) and got == value.encode())


def decoded(raw: bytes) -> object:
    try:
        return decode_leaf(raw, "k")
    except DecodeError:
        return DecodeError


text = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=12)
tricky = st.sampled_from([row[0] for row in VECTORS["read"]])
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | text
    | tricky
    | st.binary(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text | tricky, inner, max_size=4),
    max_leaves=12,
)
lower_names = st.text(alphabet="abcz09_-é ", min_size=1, max_size=6)
any_names = st.text(alphabet="abAB./é", max_size=4)
tables = st.dictionaries(
    lower_names,
    st.recursive(
        st.integers(0, 9) | st.just([]) | st.just({}),
        lambda inner: st.dictionaries(lower_names | any_names, inner, max_size=4),
        max_leaves=10,
    ),
    max_size=4,
)


class TestReading:
    def test_as_go_reads_it(self, loader: type) -> None:
        differ = [
            (source, expected, got)
            for source, expected in VECTORS["read"]
            if not reads_as(got := decoded(source.encode()), expected)
        ]
        assert not differ

    @pytest.mark.parametrize(
        ("source", "expected"),
        [
            (b"{8080: a, yes: b, ~: c, 1.0: d, ? : e}", ["8080", "yes", "~", "1.0", ""]),
            (b"{&k on: a, *k : b, 'on ': c}", ["on", "on "]),
        ],
    )
    def test_mapping_keys_are_their_text(
        self, loader: type, source: bytes, expected: list[str]
    ) -> None:
        table = decode_leaf(source, "k")
        assert isinstance(table, dict)
        assert list(table) == expected

    @pytest.mark.parametrize("source", [b"{[a]: 1}", b"{{a: b}: 1}", b"? [a]\n: 1"])
    def test_a_key_that_is_no_scalar_is_refused(self, loader: type, source: bytes) -> None:
        assert decoded(source) is DecodeError

    def test_no_bytes_is_null(self, loader: type) -> None:
        assert decode_leaf(b"", "k") is None

    def test_a_tab_in_plain_text(self) -> None:
        if not yaml.__with_libyaml__:
            pytest.skip("PyYAML's own scanner does not take tabs in plain text")
        assert decode_leaf(b"a\tb", "k") == "a\tb"

    @pytest.mark.parametrize(
        "source",
        [
            b"!!python/object/apply:os.system ['exit 1']",
            b"!!python/name:os.system ''",
            b"!!python/object/new:os.system [x]",
            b"!!python/tuple [1]",
            b"!!python/object:etcd_core.config.Config {}",
        ],
    )
    def test_never_makes_python_objects(self, loader: type, source: bytes) -> None:
        assert type(decode_leaf(source, "k")) in (str, list, dict)

    def test_results_share_nothing(self, loader: type) -> None:
        value = decode_leaf(b"[&a {x: [1]}, *a]", "k")
        assert isinstance(value, list)
        value[0]["x"].append(2)
        assert value[1] == {"x": [1]}
        first, second = decode_leaf(b"[]", "k"), decode_leaf(b"[]", "k")
        assert first is not second

    @BOUNDED
    @given(raw=st.binary(max_size=20) | text.map(str.encode) | tricky.map(str.encode))
    def test_any_bytes_give_a_value_or_decode_error(self, loader: type, raw: bytes) -> None:
        decoded(raw)

    @BOUNDED
    @given(
        raw=st.lists(
            st.sampled_from([*"ab1yN.:-_+@/ ", "true", "null", '"', "1.5", "0"]), max_size=6
        ).map(lambda parts: "".join(parts).encode())
    )
    def test_the_short_way_gives_what_the_long_way_gives(self, loader: type, raw: bytes) -> None:
        for source in (raw, b'"' + raw + b'"'):
            if leaves._SIMPLE.fullmatch(source):
                assert same(decode_leaf(source, "k"), leaves._decode_document(source, "k"))

    def test_the_short_way_takes_what_is_common(self) -> None:
        for source in (b"8080", b"-1", b"true", b"word", b'"a b, c: d"', b"1.5", b"http://h:1/p"):
            assert leaves._SIMPLE.fullmatch(source), source

    @pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML without libyaml")
    @BOUNDED
    @given(source=st.text(alphabet="01234567890+-._eExXbBoOyn:~ ", max_size=8))
    def test_both_loaders_agree_on_scalars(
        self, source: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        got = []
        for loader in LOADERS:
            monkeypatch.setattr(leaves, "_LOADER", loader)
            got.append(decoded(source.encode()))
        assert same(*got) or got[0] is got[1]


class TestReadingIsBounded:
    @pytest.mark.parametrize(
        "raw", [b"[" * 100_000, b"{a: " * 100_000, b"- " * 3_000, b"? " * 3_000, b"[[" * 200]
    )
    def test_absurd_nesting(self, loader: type, raw: bytes) -> None:
        assert decoded(raw) is DecodeError

    def test_the_deepest_allowed(self, loader: type) -> None:
        assert decoded(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH) is not DecodeError
        deeper = b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2)
        assert decoded(deeper) is DecodeError

    def test_alias_bomb(self, loader: type) -> None:
        lines = [b"a0: &a0 [x, x]"]
        for i in range(1, 60):
            lines.append(b"a%d: &a%d [*a%d, *a%d]" % (i, i, i - 1, i - 1))
        started = clock.monotonic()
        with pytest.raises(DecodeError, match="aliases"):
            decode_leaf(b"\n".join(lines), "k")
        assert clock.monotonic() - started < 5

    def test_aliases_do_not_nest_deeper(self, loader: type) -> None:
        deep = b"[" * (MAX_DEPTH - 2) + b"]" * (MAX_DEPTH - 2)
        assert decoded(b"[&a " + deep + b", *a]") is not DecodeError
        assert decoded(b"[&a " + deep + b", [[[*a]]]]") is DecodeError
        chained = [b"- &a0 [x]"]
        chained += [b"- &a%d [[[[[[[[*a%d]]]]]]]]" % (i, i - 1) for i in range(1, 30)]
        assert decoded(b"\n".join(chained)) is DecodeError

    def test_reasonable_aliases_are_fine(self, loader: type) -> None:
        count = MAX_ALIASED_NODES // 4
        raw = b"[&a {x: 1}" + b", *a" * (count // 2) + b"]"
        value = decode_leaf(raw, "k")
        assert isinstance(value, list)
        assert value == [{"x": 1}] * (count // 2 + 1)

    def test_huge_numbers_cost_nothing(self, loader: type) -> None:
        digits = b"1" * 200_000
        started = clock.monotonic()
        assert decode_leaf(digits, "k") == digits.decode()
        assert decode_leaf(b"0x" + b"0" * 9_000 + b"1f", "k") == 31
        assert clock.monotonic() - started < 5


class TestDecodeErrors:
    SECRET = "hunter2"

    @pytest.mark.parametrize(
        "source",
        [
            "{password: hunter2",
            "*hunter2",
            "!!int hunter2",
            "!!binary '*hunter2'",
            "@hunter2",
            "'hunter2",
            "a: b: hunter2",
            "!hunter2!x y",
            "[&hunter2 [*hunter2]]",
            "hunter2\x00",
            "{[hunter2]: 1}",
            "{<<: hunter2}",
        ],
    )
    def test_name_the_key_and_never_the_value(self, loader: type, source: str) -> None:
        with pytest.raises(DecodeError) as caught:
            decode_leaf(source.encode(), "db.password")
        self.check(caught.value)

    def test_bytes_that_are_not_utf8(self, loader: type) -> None:
        with pytest.raises(DecodeError) as caught:
            decode_leaf(b"hunter2 \xff\xfe", "db.password")
        self.check(caught.value)

    def check(self, error: DecodeError) -> None:
        assert error.key == "db.password"
        assert "db.password" in str(error)
        assert self.SECRET not in repr(error)
        # Either would be printed with a traceback, or walked by an error tracker.
        assert error.__cause__ is None
        assert error.__context__ is None

    def test_tell_where(self, loader: type) -> None:
        with pytest.raises(DecodeError, match="line 2, column"):
            decode_leaf(b"a: 1\nb c: d: e\n", "k")


class Color(enum.IntEnum):
    RED = 3


class Name(str):
    """A str subclass whose methods lie, as some settings libraries have them."""

    def __str__(self) -> str:
        return "lie"

    __repr__ = __str__


class TestWriting:
    def test_text_that_go_reads_back(self, loader: type) -> None:
        for expected, source in VECTORS["write"]:
            value = untyped(expected)
            assert encode_leaf(value, "k") == source.encode()
            assert same(decode_leaf(source.encode(), "k"), value)
            assert same(yaml.load(source, Loader=loader), value)

    @BOUNDED
    @given(value=values)
    def test_round_trip(self, loader: type, value: Value) -> None:
        raw = encode_leaf(value, "k")
        assert raw.isascii()
        assert b"\n" not in raw
        assert same(decode_leaf(raw, "k"), value)
        assert same(yaml.load(raw, Loader=loader), value)

    def test_keeps_the_order_of_keys(self) -> None:
        assert encode_leaf({"b": 1, "a": 2}, "k") == b"{b: 1, a: 2}"

    def test_shared_objects_become_no_aliases(self) -> None:
        shared = [1]
        assert encode_leaf([shared, shared], "k") == b"[[1], [1]]"

    @pytest.mark.parametrize(
        ("value", "source"),
        [
            ((1, (2,)), b"[1, [2]]"),
            (MappingProxyType({"a": 1}), b"{a: 1}"),
            (Color.RED, b"3"),
            (Name("truth"), b"truth"),
            ({Name("truth"): Name("x")}, b"{truth: x}"),
        ],
    )
    def test_what_has_a_plain_form(self, value: object, source: bytes) -> None:
        assert encode_leaf(value, "k") == source

    @pytest.mark.parametrize(
        "value",
        [
            {1, 2},
            frozenset(),
            object(),
            object,
            Decimal("1.5"),
            date(2024, 1, 2),
            datetime(2024, 1, 2, 3, tzinfo=timezone.utc),
            time(3, 4),
            1j,
            bytearray(b"x"),
            range(3),
            2**64,
            -(2**63) - 1,
            "\ud800",
            {"\udfff": 1},
            {1: "a"},
            {None: "a"},
            {True: "a"},
            {("a",): 1},
            [1, [{"a": {1}}]],
            iter([]),
        ],
    )
    def test_refuses_what_would_come_back_as_another(self, value: object) -> None:
        with pytest.raises(InvalidArgument, match=r"store 'db\.options"):
            encode_leaf(value, "db.options")

    def test_the_error_tells_where_and_not_what(self) -> None:
        with pytest.raises(InvalidArgument, match=r"'db\.options\.hosts\[1\]'") as caught:
            encode_leaf({"hosts": ["ok", "hunter2\ud800"]}, "db.options")
        assert "hunter2" not in str(caught.value)

    def test_refuses_what_contains_itself(self) -> None:
        items: list[object] = []
        items += [items, items]
        table: dict[str, object] = {}
        table["x"] = table
        for value in (items, table):
            with pytest.raises(InvalidArgument, match="contains itself"):
                encode_leaf(value, "k")
            with pytest.raises(InvalidArgument, match="contains itself"):
                flatten({"k": value})

    def test_what_is_deep_enough_to_read_is_deep_enough_to_write(self) -> None:
        value: Value = 1
        for _ in range(MAX_DEPTH):
            value = [value]
        assert decode_leaf(encode_leaf(value, "k"), "k") == value
        with pytest.raises(InvalidArgument, match="deeper"):
            encode_leaf([value], "k")


class TestPaths:
    @pytest.mark.parametrize(
        ("key", "path"),
        [
            ("Server.Port", "server.port"),
            ("GRÖSSE", "größe".replace("ß", "ss")),
            ("ΟΔΟΣ", "οδοσ"),  # Go knows no final sigma
            ("İ", "i"),
            ("a b.c d", "a b.c d"),
            ("my-key_1", "my-key_1"),
        ],
    )
    def test_lowered_as_go_does(self, key: str, path: str) -> None:
        assert leaf_path(key) == path
        assert leaf_path(path) == path

    @pytest.mark.parametrize(
        "key",
        [
            *("", ".", "a.", ".a", "a..b", "/a", "a/", "a/b", "a.b/c.d", "/", "a\0b", "\ud800"),
            *(1, None, ".".join("a" * (MAX_DEPTH + 1))),
        ],
    )
    def test_refused(self, key: str) -> None:
        with pytest.raises(InvalidArgument):
            leaf_path(key)
        with pytest.raises(InvalidArgument):
            flatten({key: 1})


DJANGO = {
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "OPTIONS": {}}},
    "CACHES": {"default": {"BACKEND": "x.Y", "TIMEOUT": None}},
    "LOGGING": {
        "version": 1,
        "loggers": {"": {"level": "INFO"}, "django.request": {"handlers": ["mail"]}},
    },
    "DEBUG": False,
    "ALLOWED_HOSTS": [],
}


class TestFlatten:
    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ({}, {}),
            ({"a": 1, "b": {"c": 2, "d": {"e": 3}}}, {"a": 1, "b.c": 2, "b.d.e": 3}),
            ({"A.B": 1, "a.c": 2, "a": {"d": 3}}, {"a.b": 1, "a.c": 2, "a.d": 3}),
            ({"a": {}, "b": [], "c": None}, {"a": {}, "b": [], "c": None}),
            ({"a": {"b": {}, "c": []}}, {"a.b": {}, "a.c": []}),
            ({"a": [{"B": 1}], "b": (1, 2)}, {"a": [{"B": 1}], "b": [1, 2]}),
            ({"a": {"b": {"C": 1}, "d": 2}}, {"a.b": {"C": 1}, "a.d": 2}),
            ({"a": {"B": {"c": 1}, "d": 2}}, {"a": {"B": {"c": 1}, "d": 2}}),
            ({"a": {"x.y": 1}}, {"a": {"x.y": 1}}),
            ({"a": {"": 1}}, {"a": {"": 1}}),
            ({"a": {"/": 1}}, {"a": {"/": 1}}),
            ({"a": {"x\0": 1}}, {"a": {"x\0": 1}}),
            ({"a": {"Ä": 1}}, {"a": {"Ä": 1}}),
            ({"a": {"x/y": 1}}, {"a": {"x/y": 1}}),
            ({"s.port": 1, "s.head": {"X-Id": 2}}, {"s.port": 1, "s.head": {"X-Id": 2}}),
            ({"a": {"B": 1}, "a.c": 2}, {"a": {"B": 1}, "a.c": 2}),
            ({"a": {}, "a.c": 2}, {"a": {}, "a.c": 2}),
        ],
    )
    def test_leaves(self, config: dict, expected: dict) -> None:
        before = copy.deepcopy(config)
        assert flatten(config) == expected
        assert config == before

    def test_django(self) -> None:
        assert flatten(DJANGO) == {
            "databases.default": DJANGO["DATABASES"]["default"],
            "caches.default": DJANGO["CACHES"]["default"],
            "logging.version": 1,
            "logging.loggers": DJANGO["LOGGING"]["loggers"],
            "debug": False,
            "allowed_hosts": [],
        }
        stored = {path: encode_leaf(leaf, path) for path, leaf in flatten(DJANGO).items()}
        read = nest({path: decode_leaf(raw, path) for path, raw in stored.items()})
        assert read == {name.lower(): value for name, value in DJANGO.items()}

    @pytest.mark.parametrize(
        ("config", "named"),
        [
            ({"Port": 1, "port": 2}, ["'Port'", "'port'"]),
            ({"a.B": 1, "A": {"b": 2}}, ["'a.B'", "'A.b'"]),
            ({"a": {"b": 1}, "a.b": 2}, ["'a.b'"]),
            ({"a": 1, "a.b": 2}, ["'a'", "'a.b'"]),
            ({"a.b": 2, "a": 1}, ["'a'", "'a.b'"]),
            ({"a": [], "a.b.c": 2}, ["'a'", "'a.b.c'"]),
            ({"a": {"b": None}, "a.b.c": 2}, ["'a.b'", "'a.b.c'"]),
            ({"a": None, "a.b": {"C": 1}}, ["'a'", "'a.b'"]),
            ({"a": {1: 2}}, ["'a'", "int"]),
            ({"a": {"b": {2}}}, ["'a.b'", "set"]),
        ],
    )
    def test_refused(self, config: dict, named: list[str]) -> None:
        with pytest.raises(InvalidArgument) as caught:
            flatten(config)
        for name in named:
            assert name in str(caught.value)

    def test_shares_nothing_with_its_input(self) -> None:
        config = {"a": [1, {"B": [2]}]}
        flat = flatten(config)
        flat["a"][1]["B"].append(3)
        assert config == {"a": [1, {"B": [2]}]}

    @BOUNDED
    @given(config=tables)
    def test_nest_is_the_inverse(self, config: dict) -> None:
        flat = flatten(config)
        assert nest(flat) == config
        assert flatten(nest(flat)) == flat
        assert flatten(flat) == flat


class TestNest:
    @pytest.mark.parametrize(
        ("flat", "expected"),
        [
            ({}, {}),
            ({"a.b": 1, "a.c.d": 2, "e": []}, {"a": {"b": 1, "c": {"d": 2}}, "e": []}),
            ({"a.b": 2, "a": {"b": 1, "C": 3}}, {"a": {"b": 2, "C": 3}}),
            ({"a": {"b": {"X": 1}}, "a.b": {"Y": 2}}, {"a": {"b": {"X": 1, "Y": 2}}}),
            ({"a": {"b": 1}, "a.b.c": 2}, {"a": {"b": {"c": 2}}}),
            ({"a": {}, "a.b": {}, "a.b.c": 1}, {"a": {"b": {"c": 1}}}),
            (
                {"db": {"default": {"PORT": 1}}, "db.default.port": 2},
                {"db": {"default": {"PORT": 2}}},
            ),
        ],
    )
    def test_tables(self, flat: dict, expected: dict) -> None:
        before = copy.deepcopy(flat)
        assert nest(flat) == expected
        assert nest(dict(reversed(flat.items()))) == expected
        assert flat == before

    @pytest.mark.parametrize(
        "flat",
        [
            {"a": 1, "a.b": 2},
            {"a.b": 2, "a": 1},
            {"a": None, "a.b.c": 2},
            {"a": 1, "a.b": {}},
            {"a.b.c": 1, "a": [], "a.d": 2},
            {".".join("a" * (MAX_DEPTH + 1)): 1},
            {"." * 50_000: 1},
        ],
    )
    def test_refused(self, flat: dict) -> None:
        with pytest.raises(InvalidArgument):
            nest(flat)

    def test_shares_nothing_with_its_input(self) -> None:
        flat: dict[str, Value] = {"a": {"B": [1]}, "c.d": [2]}
        tree = nest(flat)
        tree["a"]["B"].append(9)
        tree["c"]["d"].append(9)
        assert flat == {"a": {"B": [1]}, "c.d": [2]}


class Lazy(dict):
    """A table that evaluates what it hands out, as Dynaconf's do."""

    def items(self) -> Iterator[tuple[str, object]]:
        raise AssertionError("evaluated")

    __getitem__ = get = __iter__ = items


class TestOverlay:
    @pytest.mark.parametrize(
        ("base", "top", "expected"),
        [
            ({}, {}, {}),
            ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
            ({"s": {"Port": 1, "x": 2}}, {"S": {"port": 3}}, {"s": {"Port": 3, "x": 2}}),
            ({"l": [1, 2]}, {"l": [9]}, {"l": [9]}),
            ({"t": {"a": 1}}, {"t": 5}, {"t": 5}),
            ({"t": 5}, {"t": {"a": 1}}, {"t": {"a": 1}}),
            ({"t": {"a": 1}}, {"t": {}}, {"t": {"a": 1}}),
            ({"t": {"a": 1}}, {"t": None}, {"t": None}),
            ({"A": 1, "a": 2}, {"a": 3}, {"A": 1, "a": 3}),
            ({"Ab": 1, "aB": 2}, {"ab": 3}, {"Ab": 3, "aB": 2}),
            ({1: "a"}, {"b": 2}, {1: "a", "b": 2}),
            ({"A": 1}, {"A": 2, "a": 3}, {"A": 2, "a": 3}),
        ],
    )
    def test_tables_merge_and_the_rest_replaces(
        self, base: dict, top: dict, expected: dict
    ) -> None:
        before = copy.deepcopy((base, top))
        result = overlay(base, top)
        assert result == expected
        assert list(result)[: len(base)] == list(base)
        assert (base, top) == before

    def test_the_result_is_free_to_change(self) -> None:
        base, top = {"a": {"x": [1]}, "b": [[2]]}, {"a": {"y": {"z": 3}}, "c": [4]}
        before = copy.deepcopy((base, top))
        result = overlay(base, top)
        result["a"]["x"].append(0)
        result["a"]["y"]["q"] = 0
        result["b"][0].append(0)
        result["c"].append(0)
        assert (base, top) == before

    def test_lazy_tables_are_read_raw(self) -> None:
        result = overlay(Lazy(a=Lazy(b=1)), {"a": {"c": 2}})
        assert result == {"a": {"b": 1, "c": 2}}
        assert type(result["a"]) is dict

    @BOUNDED
    @given(a=tables, b=tables, c=tables)
    def test_laws(self, a: dict, b: dict, c: dict) -> None:
        assert overlay(a, {}) == a == overlay({}, a)
        assert overlay(a, a) == a
        assert overlay(overlay(a, b), b) == overlay(a, b)


def test_infinity_and_nan_are_floats_for_every_reader() -> None:
    for value in (math.inf, -math.inf, math.nan):
        assert isinstance(yaml.safe_load(encode_leaf(value, "k")), float)
