"""The stored form of a service instance: as Go's encoding/json writes it, read with tolerance."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_core import DecodeError, Descriptor, InvalidArgument, ServiceEventType


def make(**changes: object) -> Descriptor:
    fields: dict[str, object] = {"name": "billing", "id": "b-1", "address": "10.0.0.5:8080"}
    return Descriptor(**{**fields, **changes})  # type: ignore[arg-type]


# Written by hand from the rules of Go's encoding/json (HTML escaping on).
GO_VECTORS = [
    (make(), b'{"id":"b-1","name":"billing","address":"10.0.0.5:8080"}'),
    (
        make(metadata={"z": "1", "a": "2"}),
        b'{"id":"b-1","name":"billing","address":"10.0.0.5:8080","metadata":{"a":"2","z":"1"}}',
    ),
    (
        make(address="<a>&b"),
        rb'{"id":"b-1","name":"billing","address":"\u003ca\u003e\u0026b"}',
    ),
    (
        make(address='q"\\/\n\r\t\b\f\x01\x1f\x7f'),
        b'{"id":"b-1","name":"billing","address":"q\\"\\\\/\\n\\r\\t\\u0008\\u000c\\u0001\\u001f\x7f"}',
    ),
    (
        make(address="\u2028\u2029\u00e9\U0001f600"),
        b'{"id":"b-1","name":"billing","address":"\\u2028\\u2029\xc3\xa9\xf0\x9f\x98\x80"}',
    ),
    (
        # U+FF5E sorts before U+1F600 by UTF-8 bytes, after it by UTF-16 units.
        make(metadata={"\U0001f600": "", "\uff5e": "<"}),
        b'{"id":"b-1","name":"billing","address":"10.0.0.5:8080",'
        b'"metadata":{"\xef\xbd\x9e":"\\u003c","\xf0\x9f\x98\x80":""}}',
    ),
]


@pytest.mark.parametrize(("descriptor", "stored"), GO_VECTORS)
def test_encodes_as_go(descriptor: Descriptor, stored: bytes) -> None:
    assert descriptor.encode() == stored
    assert Descriptor.decode(stored, "k") == descriptor


text = st.text(st.characters(exclude_categories=["Cs"]))


@given(text.filter(bool), st.dictionaries(text, text))
def test_round_trip(address: str, metadata: dict[str, str]) -> None:
    descriptor = make(address=address, metadata=metadata)
    assert Descriptor.decode(descriptor.encode(), "k") == descriptor
    assert json.loads(descriptor.encode())["address"] == address


@given(st.binary())
def test_decode_never_fails_otherwise(raw: bytes) -> None:
    with contextlib.suppress(DecodeError):
        Descriptor.decode(raw, "k").encode()


@pytest.mark.parametrize(
    "stored",
    [
        '{"id":"b-1","name":"billing","address":"a:1","metadata":null}',
        '{"id":"b-1","name":"billing","address":"a:1","metadata":{}}',
        '{"address":"a:1","weight":[1,2],"name":"billing","id":"b-1"}\n',
    ],
)
def test_decodes_what_others_write(stored: str) -> None:
    assert Descriptor.decode(stored.encode(), "k") == make(address="a:1")


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"SECRET",
        b'"SECRET"',
        b'{"id":"SECRET"',
        b'{"id":"SECRET","name":"n"}',
        b'{"id":"","name":"n","address":"SECRET"}',
        b'{"id":1,"name":"n","address":"SECRET"}',
        b'{"id":"i","name":"n","address":"a","metadata":"SECRET"}',
        b'{"id":"i","name":"n","address":"a","metadata":{"SECRET":1}}',
        b'{"id":"i","name":"n","address":"SECRET\\ud800"}',
        b'{"id":"i","name":"n","address":"SECRET\xff"}',
        b"[" * 100_000,
    ],
)
def test_refuses_malformed_values_without_showing_them(stored: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        Descriptor.decode(stored, "/p/services/n/i")
    assert caught.value.key == "/p/services/n/i"
    assert "/p/services/n/i" in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "a/b"},
        {"name": 1},
        {"name": "a\0"},
        {"name": "\ud800"},
        {"id": ""},
        {"id": "/"},
        {"id": "a/b"},
        {"id": None},
        {"address": ""},
        {"address": 80},
        {"address": "a\0"},
        {"address": "\udfff"},
        {"metadata": {"a": 1}},
        {"metadata": {1: "a"}},
        {"metadata": {"a": "\ud800"}},
    ],
)
def test_validate_refuses(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        make(**changes).validate()


def test_validate_accepts() -> None:
    make(name="a.b-c", id="h\u00f6st:80", metadata={"": "", "n": "\0"}).validate()


def test_metadata_must_be_a_mapping() -> None:
    with pytest.raises(InvalidArgument):
        make(metadata=[("a", "b")])


def test_is_immutable() -> None:
    given_metadata = {"a": "1"}
    descriptor = make(metadata=given_metadata)
    given_metadata["a"] = "2"
    assert descriptor.metadata == {"a": "1"}
    with pytest.raises(TypeError):
        descriptor.metadata["a"] = "2"  # type: ignore[index]
    for change in ("clear", "popitem"):
        with pytest.raises(TypeError):
            getattr(descriptor.metadata, change)()
    with pytest.raises(TypeError):
        descriptor.metadata.update(a="2")  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError):
        descriptor.address = "x"  # type: ignore[misc]


def test_is_keyword_only() -> None:
    with pytest.raises(TypeError):
        Descriptor("billing", "b-1", "a:1")  # type: ignore[call-arg]


def test_equality() -> None:
    assert make(metadata={"a": "1"}) == make(metadata={"a": "1"})
    assert make() != make(metadata={"a": "1"})


def test_can_be_copied_pickled_and_turned_into_json() -> None:
    descriptor = make(metadata={"a": "1"})
    assert pickle.loads(pickle.dumps(descriptor)) == descriptor
    assert copy.deepcopy(descriptor) == descriptor
    assert json.loads(json.dumps(dataclasses.asdict(descriptor)))["metadata"] == {"a": "1"}


def test_event_types_are_those_of_go() -> None:
    assert [(int(kind), str(kind), f"{kind}") for kind in ServiceEventType] == [
        (1, "added", "added"),
        (2, "modified", "modified"),
        (3, "removed", "removed"),
    ]
