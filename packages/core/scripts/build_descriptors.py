"""Compile `wire/proto/*.proto` and write what the sources carry of it.

Writes `descriptors.binpb`, `messages.pyi` and the `etcdrpc` part of the etcd3 type stubs.
Run it after a change of a `.proto` file, from the root of the repository:

    uv run --group proto python packages/core/scripts/build_descriptors.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

SOURCES = Path(__file__).parents[1] / "src"
WIRE = SOURCES / "etcd_core" / "wire"
DESCRIPTORS = WIRE / "descriptors.binpb"

_HEAD = """\
# Written by packages/core/scripts/build_descriptors.py: change the .proto files instead.
# ruff: noqa
# fmt: off
"""
_MESSAGES_HEAD = """
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, overload, type_check_only

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.internal.containers import (
    RepeatedCompositeFieldContainer,
    RepeatedScalarFieldContainer,
)
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message import Message
from typing_extensions import TypeVar

_Request = TypeVar("_Request", bound=Message, default=Message)
_Response = TypeVar("_Response", bound=Message, default=Message)

@dataclass(frozen=True)
class Method(Generic[_Request, _Response]):
    service: str
    name: str
    path: str
    request: type[_Request]
    response: type[_Response]
    client_streaming: bool
    server_streaming: bool

FILES: Mapping[str, FileDescriptor]
NAMES: Mapping[str, Mapping[str, object]]
METHODS: _Methods
"""
_SCALARS = {
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_INT64: "int",
    FieldDescriptorProto.TYPE_STRING: "str",
    FieldDescriptorProto.TYPE_UINT32: "int",
    FieldDescriptorProto.TYPE_UINT64: "int",
    # An enum of proto3 is open: a newer server may send any number.
    FieldDescriptorProto.TYPE_ENUM: "int",
}
_CALLABLES = {
    (False, False): "UnaryUnaryMultiCallable",
    (False, True): "UnaryStreamMultiCallable",
    (True, True): "StreamStreamMultiCallable",
}


def compile_set() -> FileDescriptorSet:
    """Compile the `.proto` files, imported files first.

    Raises:
        subprocess.CalledProcessError: A file does not compile, or grpcio-tools is not installed.
    """
    proto = WIRE / "proto"
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "set"
        arguments = [f"-I{proto}", "--include_imports", f"--descriptor_set_out={out}"]
        command = [sys.executable, "-m", "grpc_tools.protoc", *arguments, str(proto / "rpc.proto")]
        subprocess.run(command, check=True)
        return canonical(FileDescriptorSet.FromString(out.read_bytes()))


def canonical(files: FileDescriptorSet) -> FileDescriptorSet:
    """Return the set without what one protoc writes and another leaves out (the JSON names)."""
    result = FileDescriptorSet.FromString(files.SerializeToString())
    for file in result.file:
        file.ClearField("source_code_info")
        for message in file.message_type:
            for field in message.field:
                field.ClearField("json_name")
    return result


def type_stubs(files: FileDescriptorSet) -> dict[Path, str]:
    """Return the text of every stub file that follows from the descriptors, by path."""
    etcdrpc = SOURCES / "etcd3-stubs" / "etcdrpc"
    every = [name for file in files.file for name in _top_level(file)]
    stubs = {
        WIRE / "messages.pyi": _messages_stub(files),
        etcdrpc / "rpc_pb2_grpc.pyi": _grpc_stub(files),
        etcdrpc / "__init__.pyi": _reexport(every)
        + "from etcd3.etcdrpc.rpc_pb2_grpc import (\n"
        + "".join(f"    {name} as {name},\n" for name in sorted(_stub_names(files)))
        + ")\n",
    }
    for file in files.file:
        stem = file.name.removesuffix(".proto")
        stubs[etcdrpc / f"{stem}_pb2.pyi"] = _reexport(_top_level(file))
    return stubs


def _top_level(file: FileDescriptorProto) -> Iterator[str]:
    yield from (message.name for message in file.message_type)
    for enum in file.enum_type:
        yield enum.name
        yield from (value.name for value in enum.value)


def _messages_stub(files: FileDescriptorSet) -> str:
    lines = [_HEAD + _MESSAGES_HEAD]
    for file in files.file:
        for enum in file.enum_type:
            lines += _enum(enum, "")
            lines.append("")
        for message in file.message_type:
            lines += _message(message)
    lines += _methods(files)
    names = ["FILES", "METHODS", "NAMES", "Method", *(n for f in files.file for n in _top_level(f))]
    lines += ["__all__ = [", *(f'    "{name}",' for name in sorted(names)), "]", ""]
    return "\n".join(lines)


def _enum(enum: EnumDescriptorProto, indent: str) -> Iterator[str]:
    wrapper, number = (
        ("ClassVar[EnumTypeWrapper]", "ClassVar[int]")
        if indent
        else (
            "EnumTypeWrapper",
            "int",
        )
    )
    yield f"{indent}{enum.name}: {wrapper}"
    for value in enum.value:
        yield f"{indent}{value.name}: {number}"


def _message(message: DescriptorProto) -> Iterator[str]:
    yield f"class {message.name}(Message):"
    for enum in message.enum_type:
        yield from _enum(enum, "    ")
    for field in message.field:
        yield from _attribute(field)
    yield from _constructor(message)
    yield from _presence(message)
    yield ""


def _is_repeated(field: FieldDescriptorProto) -> bool:
    return field.label == FieldDescriptorProto.LABEL_REPEATED


def _is_message(field: FieldDescriptorProto) -> bool:
    return field.type == FieldDescriptorProto.TYPE_MESSAGE


def _element(field: FieldDescriptorProto) -> str:
    return field.type_name.rpartition(".")[2] if _is_message(field) else _SCALARS[field.type]


def _attribute(field: FieldDescriptorProto) -> Iterator[str]:
    element = _element(field)
    if _is_repeated(field):
        kind = "Composite" if _is_message(field) else "Scalar"
        element = f"Repeated{kind}FieldContainer[{element}]"
    elif not _is_message(field):
        yield f"    {field.name}: {element}"
        return
    yield "    @property"
    yield f"    def {field.name}(self) -> {element}: ..."


def _constructor(message: DescriptorProto) -> Iterator[str]:
    if not message.field:
        yield "    def __init__(self) -> None: ..."
        return
    yield "    def __init__("
    yield "        self,"
    yield "        *,"
    for field in message.field:
        element = _element(field)
        accepted = f"Iterable[{element}]" if _is_repeated(field) else element
        yield f"        {field.name}: {accepted} | None = ...,"
    yield "    ) -> None: ..."


def _presence(message: DescriptorProto) -> Iterator[str]:
    tracked = [
        field.name
        for field in message.field
        if field.HasField("oneof_index") or (_is_message(field) and not _is_repeated(field))
    ]
    oneofs = [oneof.name for oneof in message.oneof_decl]
    if tracked:
        names = _literal([*tracked, *oneofs])
        yield f"    def HasField(self, field_name: {names}) -> bool: ..."
    if message.field:
        names = _literal([*(field.name for field in message.field), *oneofs])
        yield f"    def ClearField(self, field_name: {names}) -> None: ..."
    for index, oneof in enumerate(oneofs):
        members = [
            field.name
            for field in message.field
            if field.HasField("oneof_index") and field.oneof_index == index
        ]
        group, answer = _literal([oneof]), _literal(members)
        yield f"    def WhichOneof(self, oneof_group: {group}) -> {answer} | None: ..."


def _literal(names: Iterable[str]) -> str:
    return "Literal[" + ", ".join(f'"{name}"' for name in names) + "]"


def _short(type_name: str) -> str:
    return type_name.rpartition(".")[2]


def _services(files: FileDescriptorSet) -> Iterator[tuple[str, list[MethodDescriptorProto]]]:
    for file in files.file:
        for service in file.service:
            yield service.name, list(service.method)


def _methods(files: FileDescriptorSet) -> Iterator[str]:
    yield "@type_check_only"
    yield "class _Methods(Mapping[str, Method[Any, Any]]):"
    for service, methods in _services(files):
        for method in methods:
            key = _literal([f"{service}/{method.name}"])
            types = f"{_short(method.input_type)}, {_short(method.output_type)}"
            yield "    @overload"
            yield f"    def __getitem__(self, key: {key}) -> Method[{types}]: ..."
    yield "    @overload"
    yield "    def __getitem__(self, key: str) -> Method[Any, Any]: ..."
    yield "    def __iter__(self) -> Iterator[str]: ..."
    yield "    def __len__(self) -> int: ..."
    yield ""


def _reexport(names: Iterable[str]) -> str:
    lines = [f"    {name} as {name}," for name in sorted(names)]
    return _HEAD + "\n".join(["from etcd_core.wire.messages import (", *lines, ")", ""])


def _stub_names(files: FileDescriptorSet) -> Iterator[str]:
    return (f"{service}Stub" for service, _ in _services(files))


def _grpc_stub(files: FileDescriptorSet) -> str:
    lines = [_HEAD, "import grpc", "from etcd_core.wire import messages", ""]
    for service, methods in _services(files):
        lines += [
            f"class {service}Stub:",
            "    def __init__(self, channel: grpc.Channel) -> None: ...",
        ]
        for method in methods:
            kind = _CALLABLES[method.client_streaming, method.server_streaming]
            lines += [
                f"    {method.name}: grpc.{kind}[",
                f"        messages.{_short(method.input_type)},",
                f"        messages.{_short(method.output_type)},",
                "    ]",
            ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Write every file that follows from the `.proto` files."""
    files = compile_set()
    DESCRIPTORS.write_bytes(files.SerializeToString(deterministic=True))
    for path, text in type_stubs(files).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
