"""What the registry stores of a service instance, byte for byte as Go services write it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from .errors import DecodeError, InvalidArgument
from .keys import require_segment

# As Go's encoding/json writes strings; \b and \f as Go before 1.22 does, every decoder reads both.
_ESCAPES = {code: f"\\u{code:04x}" for code in [*range(0x20), *map(ord, "<>&\u2028\u2029")]} | {
    ord('"'): '\\"',
    ord("\\"): "\\\\",
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}


class _Metadata(dict[str, str]):
    """A dict that refuses to change; a dict still, so that ``asdict`` and JSON take it."""

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("a descriptor's metadata is read-only")

    __setitem__ = __delitem__ = clear = pop = popitem = _refuse
    setdefault = update = __ior__ = _refuse

    def __reduce__(self) -> tuple[type[_Metadata], tuple[dict[str, str]]]:
        return _Metadata, (dict(self),)


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """One instance of a service. Immutable; the metadata is copied.

    Attributes:
        name: The service.
        id: The instance, unique within the service.
        address: Where it is reached, such as ``"10.0.0.5:8080"``.
        metadata: Anything else its users should know.

    Example:
        >>> Descriptor(name="billing", id="billing-1", address="10.0.0.5:8080").encode()
        b'{"id":"billing-1","name":"billing","address":"10.0.0.5:8080"}'
    """

    name: str
    id: str
    address: str
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.metadata, Mapping):
            given = type(self.metadata).__name__
            raise InvalidArgument(f"descriptor: metadata must be a mapping, not {given}")
        object.__setattr__(self, "metadata", _Metadata(self.metadata))

    def validate(self) -> None:
        """Check that it can be registered. No I/O.

        Raises:
            InvalidArgument: The name, id or address is empty or not text, the name or the id holds
                ``/``, or the metadata is not text to text.
        """
        require_segment("descriptor", "name", self.name)
        require_segment("descriptor", "id", self.id)
        if not _is_text(self.address) or not self.address or "\0" in self.address:
            raise InvalidArgument(
                f"descriptor: address must be a non-empty str, not {self.address!r}"
            )
        for key, value in self.metadata.items():
            if not _is_text(key) or not _is_text(value):
                raise InvalidArgument(f"descriptor: metadata {key!r} must be text, and so its key")

    def encode(self) -> bytes:
        """Return the stored form, byte for byte what Go's ``encoding/json`` writes."""
        fields = [
            f'"id":{_quote(self.id)}',
            f'"name":{_quote(self.name)}',
            f'"address":{_quote(self.address)}',
        ]
        if self.metadata:
            # Sorting by code point is sorting by UTF-8 bytes, which is what Go does.
            pairs = (f"{_quote(k)}:{_quote(v)}" for k, v in sorted(self.metadata.items()))
            fields.append(f'"metadata":{{{",".join(pairs)}}}')
        return f"{{{','.join(fields)}}}".encode()

    @classmethod
    def decode(cls, raw: bytes, key: str) -> Descriptor:
        """Read the stored form; fields it does not know are ignored.

        Args:
            raw: The stored value.
            key: Its key, for the error.

        Raises:
            DecodeError: It is not a descriptor. The value is not in the message.
        """
        try:
            stored = json.loads(raw.decode())
        except (ValueError, RecursionError):
            raise DecodeError(f"{key!r} does not hold JSON", key=key) from None
        if not isinstance(stored, dict):
            raise DecodeError(f"{key!r} does not hold a JSON object", key=key)
        for name in ("id", "name", "address"):
            if not stored.get(name) or not _is_text(stored[name]):
                raise DecodeError(f"{key!r}: its field {name!r} is not a non-empty text", key=key)
        metadata = stored.get("metadata")
        metadata = {} if metadata is None else metadata
        if not isinstance(metadata, dict) or not all(
            _is_text(k) and _is_text(v) for k, v in metadata.items()
        ):
            raise DecodeError(f"{key!r}: its field 'metadata' does not map text to text", key=key)
        return cls(
            name=stored["name"], id=stored["id"], address=stored["address"], metadata=metadata
        )


def _quote(text: str) -> str:
    return f'"{text.translate(_ESCAPES)}"'


def _is_text(value: object) -> bool:
    """Tell whether ``value`` is a str that UTF-8 can carry: JSON may escape half a surrogate."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or bool(value.encode())
    except UnicodeEncodeError:
        return False
