from collections.abc import Iterable, Iterator
from typing import Protocol, type_check_only

from etcd3.events import Event
from etcd3.leases import Lease
from etcd3.watch import WatchResponse

@type_check_only
class SupportsWrite(Protocol):
    def write(self, data: bytes, /) -> object: ...

def increment_last_byte(byte_string: bytes) -> bytes: ...
def to_bytes(maybe_bytestring: str | bytes) -> bytes: ...
def lease_to_id(lease: Lease | int | None) -> int: ...
def response_to_event_iterator(
    response_iterator: Iterable[WatchResponse],
) -> Iterator[Event]: ...
