"""The messages of etcd's API and the table of its RPCs.

The classes are built at import from the descriptors in `descriptors.binpb`, in a pool of our own:
no generated code, so no window of protobuf versions to fit, and no clash with another package that
puts a `rpc.proto` into the default pool. Read-only after import; imports protobuf, never gRPC.
The types are in `messages.pyi`, which `scripts/build_descriptors.py` writes as it does the set.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message

_DESCRIPTORS = "descriptors.binpb"

_Request = TypeVar("_Request", bound=Message)
_Response = TypeVar("_Response", bound=Message)


@dataclass(frozen=True)
class Method(Generic[_Request, _Response]):
    """One RPC of etcd.

    Attributes:
        service: Name of the service without its package, such as `KV`.
        name: Name of the RPC, such as `Range`.
        path: What gRPC calls, such as `/etcdserverpb.KV/Range`.
        request: Class of what is sent.
        response: Class of what is received.
        client_streaming: Whether the client sends a stream of requests.
        server_streaming: Whether the server answers with a stream.
    """

    service: str
    name: str
    path: str
    request: type[_Request]
    response: type[_Response]
    client_streaming: bool
    server_streaming: bool


def _load_files() -> tuple[FileDescriptor, ...]:
    # pkgutil rather than importlib.resources: it is imported already and reads from a zip as well.
    blob = pkgutil.get_data(__package__, _DESCRIPTORS)
    if blob is None:
        raise ImportError(f"{_DESCRIPTORS} is missing from {__package__}")
    pool = descriptor_pool.DescriptorPool()
    names = []
    # A set lists a file after those that it imports, which is the order the pool asks for.
    for file in descriptor_pb2.FileDescriptorSet.FromString(blob).file:
        pool.AddSerializedFile(file.SerializeToString())
        names.append(file.name)
    return tuple(pool.FindFileByName(name) for name in names)


def _names_of(file: FileDescriptor) -> Iterator[tuple[str, object]]:
    for name, descriptor in file.message_types_by_name.items():
        message = message_factory.GetMessageClass(descriptor)
        # The class says where it can be imported from; pickle and repr read it.
        message.__module__ = __name__
        yield name, message
    for name, enum in file.enum_types_by_name.items():
        yield name, EnumTypeWrapper(enum)
        for value in enum.values:
            yield value.name, value.number


def _methods_of(service: ServiceDescriptor) -> Iterator[Method[Message, Message]]:
    for method in service.methods:
        yield Method(
            service=service.name,
            name=method.name,
            path=f"/{service.full_name}/{method.name}",
            request=message_factory.GetMessageClass(method.input_type),
            response=message_factory.GetMessageClass(method.output_type),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )


FILES: Mapping[str, FileDescriptor] = MappingProxyType({file.name: file for file in _load_files()})
"""The descriptors, by file name: `kv.proto`, `auth.proto`, `rpc.proto`."""

NAMES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {name: MappingProxyType(dict(_names_of(file))) for name, file in FILES.items()}
)
"""What each file defines at its top level, by file name: classes, enums and enum values."""

METHODS: Mapping[str, Method[Message, Message]] = MappingProxyType(
    {
        f"{method.service}/{method.name}": method
        for file in FILES.values()
        for service in file.services_by_name.values()
        for method in _methods_of(service)
    }
)
"""Every RPC, by service and name: `METHODS["KV/Range"]`."""

for _defined in NAMES.values():
    globals().update(_defined)

__all__ = ["FILES", "METHODS", "NAMES", "Method", *(name for d in NAMES.values() for name in d)]
