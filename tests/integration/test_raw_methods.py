"""Every method of ``etcd3.Etcd3Client`` is there on ``client.raw``, and is used by a test."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import etcd3
import pytest

from etcd_core import Client
from etcd_core.wire.raw import RawClient

BOUND = 20.0


@pytest.fixture
def raw(etcd_client: Client) -> RawClient:
    return etcd_client.raw


@pytest.fixture
def key(etcd_client: Client) -> str:
    return f"{etcd_client.prefix}/raw/key"


def test_a_whole_response(raw: RawClient, key: str) -> None:
    revision = raw.put(key, "1").header.revision
    response = raw.get_response(key)
    assert [(kv.value, kv.mod_revision) for kv in response.kvs] == [(b"1", revision)]
    assert raw.get_response(f"{key}/none", serializable=True).count == 0


def test_whole_responses_of_a_watch(raw: RawClient, key: str) -> None:
    responses, cancel = raw.watch_response(key)
    revision = raw.put(key, "1").header.revision
    response = next(responses)
    assert (response.header.revision, response.events[0].value) == (revision, b"1")
    cancel()
    assert list(responses) == []
    once = raw.watch_once_response(key, BOUND, start_revision=revision)
    assert [event.value for event in once.events] == [b"1"]


def test_every_method_is_used_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_raw*.py"))
    methods = {
        name
        for name, _ in inspect.getmembers(etcd3.Etcd3Client, callable)
        if not name.startswith("_")
    }
    assert len(methods) > 40
    assert {name for name in methods if not re.search(rf"\.{name}\b", tests)} == set()
