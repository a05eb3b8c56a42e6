from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import grpc
from etcd3.client import Etcd3Client
from etcd3.etcdrpc import ResponseHeader, WatchStub
from etcd3.events import Event

# A watch that breaks hands its error to the same callback.
_Callback: TypeAlias = Callable[[WatchResponse | Exception], object]

class Watch:
    watch_id: int
    iterator: Iterator[Event] | None
    etcd_client: Etcd3Client | None
    def __init__(
        self,
        watch_id: int,
        iterator: Iterator[Event] | None = None,
        etcd_client: Etcd3Client | None = None,
    ) -> None: ...
    def cancel(self) -> None: ...

class Watcher:
    timeout: float | None
    def __init__(
        self,
        watchstub: WatchStub,
        timeout: float | None = None,
        call_credentials: grpc.CallCredentials | None = None,
        metadata: Sequence[tuple[str, str]] | None = None,
    ) -> None: ...
    def add_callback(
        self,
        key: str | bytes,
        callback: _Callback,
        range_end: str | bytes | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> int: ...
    def cancel(self, watch_id: int) -> None: ...

class WatchResponse:
    header: ResponseHeader
    events: list[Event]
    def __init__(self, header: ResponseHeader, events: list[Event]) -> None: ...
