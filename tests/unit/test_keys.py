"""The key layout and the end of a prefix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_core import keys
from etcd_core.errors import InvalidArgument


@pytest.mark.parametrize(
    ("prefix", "end"),
    [
        (b"a", b"b"),
        (b"a/", b"a0"),
        (b"a\xff", b"b"),
        (b"a\xff\xff", b"b"),
        (b"\xff", b"\0"),
        (b"\xff\xff", b"\0"),
        (b"", b"\0"),
        (b"\0", b"\x01"),
        (b"a\xfe", b"a\xff"),
        ("ä".encode(), b"\xc3\xa5"),
    ],
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert keys.prefix_range_end(prefix) == end


@given(prefix=st.binary(min_size=1, max_size=6), key=st.binary(max_size=8))
def test_prefix_end_covers_exactly_the_prefix(prefix: bytes, key: bytes) -> None:
    end = keys.prefix_range_end(prefix)
    inside = key >= prefix and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix) or (end == b"\0" and key >= prefix)


@pytest.mark.parametrize(
    ("prefix", "parts", "key"),
    [
        ("/go-core", ("config", "web"), "/go-core/config/web"),
        ("/go-core/", ("config", "web"), "/go-core/config/web"),
        ("/", ("config", "web"), "/config/web"),
        ("shop", ("config", "web"), "shop/config/web"),
        ("/p", ("/config/", "//web//"), "/p/config/web"),
        ("/p", ("config", "", "web"), "/p/config/web"),
        ("/p", ("locks", "a/b"), "/p/locks/a/b"),
    ],
)
def test_join(prefix: str, parts: tuple[str, ...], key: str) -> None:
    assert keys.join(prefix, *parts) == key


def test_layout() -> None:
    assert keys.config_prefix("/p", "web") == "/p/config/web/"
    assert keys.services_prefix("/p", "web") == "/p/services/web/"
    assert keys.service_key("/p", "web", "web-1") == "/p/services/web/web-1"
    assert keys.lock_prefix("/p", "jobs") == "/p/locks/jobs/"
    assert keys.election_prefix("/p", "jobs") == "/p/elections/jobs/"
    assert keys.queue_key(b"/p/locks/jobs/", 0x75A1A203702C0706) == (
        b"/p/locks/jobs/75a1a203702c0706"
    )


@pytest.mark.parametrize(
    ("key", "ours"),
    [
        (b"q/75a1a203702c0706", True),
        (b"q/1", True),
        (b"q/nested/75a1", False),
        (b"q/75A1", False),
        (b"q/", False),
        (b"q/0123456789abcdef0", False),
        (b"q/-5", False),
        (b"other/1", False),
    ],
)
def test_queue_key(key: bytes, ours: bool) -> None:
    assert keys.is_queue_key(b"q/", key) is ours


@pytest.mark.parametrize("name", ["", "/", "//", "a\0b", "\ud800", 3, None, b"a"])
def test_bad_names(name: object) -> None:
    with pytest.raises(InvalidArgument, match="lock"):
        keys.require_name("lock", "key", name)


def test_segments_hold_no_slash() -> None:
    assert keys.require_name("lock", "key", "a/b") == "a/b"
    assert keys.require_segment("discover", "name", "a") == "a"
    with pytest.raises(InvalidArgument, match="must not hold '/'"):
        keys.require_segment("discover", "name", "a/b")
