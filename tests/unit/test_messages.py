"""The message classes, the table of RPCs, and what the sources carry of the .proto files."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from etcd_core.wire import messages
from etcd_core.wire.messages import (
    METHODS,
    AlarmType,
    Compare,
    Event,
    KeyValue,
    LeaseGrantRequest,
    Permission,
    RangeRequest,
    RangeResponse,
    RequestOp,
    ResponseHeader,
    TxnRequest,
    WatchCreateRequest,
)

SCRIPT = Path(__file__).parents[2] / "packages" / "core" / "scripts" / "build_descriptors.py"


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_descriptors", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def carried(builder: ModuleType) -> object:
    return builder.FileDescriptorSet.FromString(builder.DESCRIPTORS.read_bytes())


@pytest.mark.skipif(
    importlib.util.find_spec("grpc_tools") is None,
    reason="grpcio-tools is absent: uv run --group proto pytest",
)
def test_carried_descriptors_are_those_of_the_proto_files(builder: ModuleType) -> None:
    assert builder.canonical(carried(builder)) == builder.compile_set()


def test_carried_type_stubs_are_those_of_the_descriptors(builder: ModuleType) -> None:
    for path, text in builder.type_stubs(carried(builder)).items():
        assert path.read_text() == text, f"{path.name}: run {SCRIPT.name}"


def test_importing_messages_leaves_grpc_alone() -> None:
    code = "import sys; from etcd_core.wire import messages; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_default_pool_stays_untouched() -> None:
    code = (
        "from google.protobuf import descriptor_pool\n"
        "from etcd_core.wire import messages\n"
        "try:\n"
        "    descriptor_pool.Default().FindFileByName('rpc.proto')\n"
        "except KeyError:\n"
        "    pass\n"
        "else:\n"
        "    raise SystemExit('rpc.proto is in the default pool')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Numbers and types on the wire, spelled out: tag byte(s), then the value.
WIRE = [
    (KeyValue(key=b"k", lease=5), b"\x0a\x01k\x30\x05"),
    (Compare(key=b"k", range_end=b"l"), b"\x1a\x01k\x82\x04\x01l"),
    (Compare(target=Compare.LEASE, lease=7), b"\x10\x04\x40\x07"),
    (Compare(result=Compare.NOT_EQUAL, mod_revision=0), b"\x08\x03\x30\x00"),
    (RangeRequest(max_create_revision=9), b"\x68\x09"),
    (RangeRequest(sort_order=RangeRequest.DESCEND), b"\x28\x02"),
    (RangeRequest(sort_target=RangeRequest.CREATE), b"\x30\x02"),
    (LeaseGrantRequest(TTL=3, ID=1), b"\x08\x03\x10\x01"),
    (WatchCreateRequest(watch_id=1, fragment=True), b"\x38\x01\x40\x01"),
    (
        WatchCreateRequest(filters=[WatchCreateRequest.NOPUT, WatchCreateRequest.NODELETE]),
        b"\x2a\x02\x00\x01",
    ),
]


@pytest.mark.parametrize(("message", "wire"), WIRE, ids=lambda value: type(value).__name__)
def test_wire_form(message: KeyValue, wire: bytes) -> None:
    assert message.SerializeToString() == wire
    assert type(message).FromString(wire) == message


def test_enums() -> None:
    assert (Event.PUT, Event.DELETE) == (0, 1)
    assert Event.EventType.DESCRIPTOR.values_by_number[1].name == "DELETE"
    assert (Compare.EQUAL, Compare.GREATER, Compare.LESS, Compare.NOT_EQUAL) == (0, 1, 2, 3)
    assert RangeRequest.SortOrder.Name(RangeRequest.ASCEND) == "ASCEND"
    assert (messages.NONE, messages.NOSPACE, messages.CORRUPT) == (0, 1, 2)
    assert AlarmType.Value("NOSPACE") == 1
    assert Permission.READWRITE == 2


def test_classes_of_fields_are_the_exposed_ones() -> None:
    response = RangeResponse(header=ResponseHeader(revision=3), kvs=[KeyValue(key=b"a")])
    assert type(response.header) is ResponseHeader
    assert type(response.kvs[0]) is KeyValue


def test_nested_transaction_round_trips() -> None:
    inner = TxnRequest(success=[RequestOp(request_range=RangeRequest(key=b"a"))])
    outer = TxnRequest(failure=[RequestOp(request_txn=inner)])
    again = TxnRequest.FromString(outer.SerializeToString())
    assert again == outer
    assert again.failure[0].WhichOneof("request") == "request_txn"


def test_none_is_unset() -> None:
    assert LeaseGrantRequest(TTL=3, ID=None) == LeaseGrantRequest(TTL=3)


def test_messages_copy_and_pickle() -> None:
    kv = KeyValue(key=b"k", value=b"v", mod_revision=4)
    assert copy.deepcopy(kv) == kv
    assert pickle.loads(pickle.dumps(kv)) == kv


def test_unknown_fields_of_a_newer_server_survive() -> None:
    wire = ResponseHeader(revision=3).SerializeToString() + b"\xf8\x07\x01"
    assert ResponseHeader.FromString(wire).revision == 3


def test_every_exported_name_exists() -> None:
    assert [name for name in messages.__all__ if not hasattr(messages, name)] == []


def test_methods() -> None:
    method = METHODS["KV/Range"]
    assert method.path == "/etcdserverpb.KV/Range"
    assert method.request is RangeRequest
    assert method.response is RangeResponse
    streams = {
        key: (method.client_streaming, method.server_streaming)
        for key, method in METHODS.items()
        if method.client_streaming or method.server_streaming
    }
    assert streams == {
        "Watch/Watch": (True, True),
        "Lease/LeaseKeepAlive": (True, True),
        "Maintenance/Snapshot": (False, True),
    }
    assert len(METHODS) == 40
