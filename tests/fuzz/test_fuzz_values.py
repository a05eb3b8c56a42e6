"""What others may have written, and what users may type: never a crash, never a wrong acceptance.

The YAML of leaves is compared with Go's reading in tests/unit/test_leaves.py; here are documents
that are nearly right.
"""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etcd_core import Config, Descriptor
from etcd_core.config import Endpoint
from etcd_core.errors import DecodeError, InvalidArgument, InvalidConfig
from etcd_core.keys import (
    config_prefix,
    is_queue_key,
    lock_prefix,
    prefix_range_end,
    queue_key,
    service_key,
    services_prefix,
)
from etcd_core.leaves import decode_leaf, encode_leaf, flatten, nest

BOUNDED = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
    max_leaves=8,
)
# Surrogates too: os.environ and argv can hold them.
any_text = st.text(st.characters(), max_size=12)


# -- descriptors -------------------------------------------------------------------------------


@BOUNDED
@given(
    stored=st.fixed_dictionaries(
        {},
        optional={
            "id": anything,
            "name": anything,
            "address": anything,
            "metadata": anything,
            "more": anything,
        },
    )
)
def test_a_descriptor_is_accepted_only_if_its_fields_are_text(stored: dict[str, object]) -> None:
    raw = json.dumps(stored).encode()
    try:
        found = Descriptor.decode(raw, "/k")
    except DecodeError:
        return
    for name in ("id", "name", "address"):
        assert isinstance(stored[name], str)
        assert getattr(found, name) == stored[name] != ""
    assert dict(found.metadata) == (stored.get("metadata") or {})
    assert all(isinstance(v, str) for v in found.metadata.values())
    assert Descriptor.decode(found.encode(), "/k") == found


@BOUNDED
@given(raw=st.binary(max_size=40), cut=st.integers(0, 70), put=st.binary(max_size=2))
def test_damaged_descriptors_are_refused_or_whole(raw: bytes, cut: int, put: bytes) -> None:
    whole = Descriptor(name="n", id="i", address="h:1", metadata={"k": "v"}).encode()
    for damaged in (raw, whole[:cut] + put + whole[cut:], whole[:cut], whole[:cut] + put):
        try:
            found = Descriptor.decode(damaged, "/k")
        except DecodeError as exc:
            refused = str(exc)
        else:
            refused = ""
            assert found.name
            assert found.id
            assert found.address
        assert "h:1" not in refused, "the value is not for the log"


_YAML_BITS = (
    *(b"{", b"}", b"[", b"&a ", b"*a", b"!!python/object:os.system ", b"<<: ", b"\n", b": "),
    *(b"\xff", b"\x00", b"'", b'"', b"- ", b"? ", b"%", b"---\n", b"...\n", b"\t", b"#", b"|"),
)

# -- leaves ------------------------------------------------------------------------------------


@BOUNDED
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
        ),
        max_leaves=6,
    ),
    cut=st.integers(0, 60),
    put=st.sampled_from(_YAML_BITS),
)
def test_damaged_leaves_are_values_or_decode_errors(value: object, cut: int, put: bytes) -> None:
    try:
        whole = encode_leaf(value, "k")
    except InvalidArgument:
        return
    for damaged in (whole[:cut] + put + whole[cut:], whole[:cut] + put, put + whole, put * 3):
        try:
            found = decode_leaf(damaged, "k")
        except DecodeError:
            continue
        _plain_only(found)


def _plain_only(value: object) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) is str
            _plain_only(item)
    elif isinstance(value, list):
        for item in value:
            _plain_only(item)
    else:
        assert type(value) in (type(None), bool, int, float, str, bytes)


@BOUNDED
@given(config=st.dictionaries(any_text, anything, max_size=4))
def test_a_configuration_is_refused_or_comes_back(config: dict[str, object]) -> None:
    try:
        leaves = flatten(config)
    except InvalidArgument:
        return
    stored = {path: decode_leaf(encode_leaf(value, path), path) for path, value in leaves.items()}
    # NaN is not equal to itself, so texts are compared.
    assert repr(nest(stored)) == repr(nest(leaves))


# -- keys --------------------------------------------------------------------------------------


@BOUNDED
@given(prefix=st.binary(max_size=4), key=st.binary(max_size=6))
def test_a_range_holds_exactly_what_starts_with_the_prefix(prefix: bytes, key: bytes) -> None:
    end = prefix_range_end(prefix)
    inside = key >= prefix and (end == b"\0" or key < end)
    assert key.startswith(prefix) <= inside
    # An open range (nothing but 0xff) may hold more; any other holds no stranger.
    if end != b"\0" and not prefix.endswith(b"\xff"):
        assert inside == key.startswith(prefix)


@BOUNDED
@given(names=st.lists(any_text, min_size=2, max_size=2), lease=st.integers(1, 2**63 - 1))
def test_names_share_a_queue_only_if_they_are_the_same(names: list[str], lease: int) -> None:
    queues = [lock_prefix("/p", name).encode("utf-8", "surrogatepass") for name in names]
    if queues[0] == queues[1]:
        assert names[0].strip("/") == names[1].strip("/")
    else:
        assert not is_queue_key(queues[0], queue_key(queues[1], lease))
    assert is_queue_key(queues[0], queue_key(queues[0], lease))


@BOUNDED
@given(name=any_text, instance=any_text)
def test_a_service_name_that_is_accepted_lists_its_own_instances_only(
    name: str, instance: str
) -> None:
    try:
        Descriptor(name=name, id=instance, address="h:1").validate()
    except InvalidArgument:
        return
    key = service_key("/p", name, instance)
    assert key.startswith(services_prefix("/p", name))
    assert key.count("/") == 4
    key.encode()


@BOUNDED
@given(name=any_text)
def test_config_names_are_refused_or_usable(name: str) -> None:
    from etcd_core import Client

    with Client(endpoints=["127.0.0.1:1"], prefix="/p") as client:
        try:
            client.config_source(name)
        except InvalidArgument:
            return
        assert config_prefix("/p", name).encode().startswith(b"/p/config/")


# -- endpoints ---------------------------------------------------------------------------------

_PIECES = (
    "http:// https:// HTTP:// ftp:// // / : @ [ ] ::1 % ? # 127.0.0.1 host a.b 2379 0 65536 -1 é _"
    " user:secret@"
)
_pieces = st.sampled_from([*_PIECES.split(), " ", "\n"])
endpoint_like = st.lists(_pieces, max_size=5).map("".join) | any_text


@BOUNDED
@given(text=endpoint_like)
def test_an_endpoint_is_refused_or_sane(text: str) -> None:
    try:
        found = Endpoint.parse(text)
    except InvalidConfig as exc:
        shown = str(exc)
    else:
        shown = ""
        _check_sane(found)
    assert "user:secret" not in shown


def _check_sane(found: Endpoint) -> None:
    assert 1 <= found.port <= 65535
    assert found.host
    assert not set(found.host) & set("/@?#[] \n")
    again = Endpoint.parse(found.target)
    assert (again.host, again.port) == (found.host, found.port)


@BOUNDED
@given(texts=st.lists(endpoint_like, max_size=3), prefix=any_text, password=st.none() | any_text)
def test_a_config_is_refused_or_shows_no_password(
    texts: list[str], prefix: str, password: str | None
) -> None:
    secret = None if password is None else f"pw-{password}-pw"
    try:
        config = Config(texts, prefix=prefix, username="u", password=secret)
    except InvalidConfig as exc:
        shown = str(exc)
    else:
        shown = repr(config)
    assert secret is None or secret not in shown
