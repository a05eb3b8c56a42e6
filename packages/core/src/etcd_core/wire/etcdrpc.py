"""What the modules of `etcd3.etcdrpc` define, on our messages instead of generated code.

`etcd3_import` puts these names into the modules when etcd3 is imported. A stub takes any object
with the four method factories of a `grpc.Channel`, so gRPC itself is not imported here.
Read-only after import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Protocol

from google.protobuf.message import Message

from etcd_core.wire.messages import FILES, METHODS, NAMES, Method

_PACKAGE = "etcd3.etcdrpc"


class _Factory(Protocol):
    """A method factory of a channel, such as `channel.unary_unary`."""

    def __call__(
        self, method: str, *, request_serializer: object, response_deserializer: object
    ) -> object: ...


def _factory(channel: object, method: Method[Message, Message]) -> _Factory:
    sent = "stream" if method.client_streaming else "unary"
    received = "stream" if method.server_streaming else "unary"
    factory: _Factory = getattr(channel, f"{sent}_{received}")
    return factory


def _stub_class(service: str, methods: list[Method[Message, Message]]) -> type[object]:
    def bind(self: object, channel: object) -> None:
        for method in methods:
            call = _factory(channel, method)(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
            setattr(self, method.name, call)

    name = f"{service}Stub"
    namespace = {
        "__init__": bind,
        "__module__": f"{_PACKAGE}.rpc_pb2_grpc",
        "__doc__": f"The RPCs of etcd's {service} service on one channel, one attribute each.",
    }
    return type(name, (), namespace)


def _stubs() -> Iterator[tuple[str, type[object]]]:
    for service in dict.fromkeys(method.service for method in METHODS.values()):
        methods = [method for method in METHODS.values() if method.service == service]
        yield f"{service}Stub", _stub_class(service, methods)


STUBS: Mapping[str, type[object]] = MappingProxyType(dict(_stubs()))
"""The stub classes, by name: `STUBS["KVStub"](channel).Range(request, timeout)`."""

MODULES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        _PACKAGE: {
            **{name: defined for names in NAMES.values() for name, defined in names.items()},
            **STUBS,
        },
        **{
            f"{_PACKAGE}.{file.removesuffix('.proto')}_pb2": {"DESCRIPTOR": FILES[file], **names}
            for file, names in NAMES.items()
        },
        f"{_PACKAGE}.rpc_pb2_grpc": STUBS,
    }
)
"""What each module defines, by the module's full name; the package comes first."""
