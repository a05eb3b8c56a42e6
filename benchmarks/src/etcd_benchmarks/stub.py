"""The floor: a bare gRPC stub on one endpoint, with the library's message classes and no more.

A watch has one thread, ``etcd-bench-watch``, which ends with its stream.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import grpc

from etcd_core.keys import prefix_range_end
from etcd_core.wire import messages as pb


class Stub:
    """Bare calls on one channel."""

    def __init__(self, endpoint: str) -> None:
        self.channel = grpc.insecure_channel(
            urlsplit(endpoint).netloc,
            options=[
                ("grpc.max_receive_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self.put = self.unary("KV/Put")
        self.txn = self.unary("KV/Txn")
        self.range = self.unary("KV/Range")
        self.delete_range = self.unary("KV/DeleteRange")
        self.grant = self.unary("Lease/LeaseGrant")

    def __enter__(self) -> Stub:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.channel.close()

    def unary(self, name: str) -> Callable[[Any], Any]:
        """Return the call of one method."""
        method = pb.METHODS[name]
        return self.channel.unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )

    def set(self, key: str, value: bytes = b"v") -> None:
        """Put one key."""
        self.put(pb.PutRequest(key=key.encode(), value=value))

    def read(self, prefix: str) -> Any:
        """Return the answer of a range over a prefix."""
        start = prefix.encode()
        return self.range(pb.RangeRequest(key=start, range_end=prefix_range_end(start)))

    def clear(self, prefix: str) -> None:
        """Delete a prefix."""
        start = prefix.encode()
        self.delete_range(pb.DeleteRangeRequest(key=start, range_end=prefix_range_end(start)))

    def watch(self, prefix: str, callback: Callable[[Any], object]) -> Callable[[], None]:
        """Call ``callback(response)`` in the stream's thread; return what ends it."""
        method = pb.METHODS["Watch/Watch"]
        start = prefix.encode()
        create = pb.WatchCreateRequest(key=start, range_end=prefix_range_end(start), watch_id=1)
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        requests.put(pb.WatchRequest(create_request=create))
        call = self.channel.stream_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.response.FromString,
        )(_until_none(requests))
        ready = threading.Event()

        def read() -> None:
            try:
                for response in call:
                    if response.created:
                        ready.set()
                    else:
                        callback(response)
            except grpc.RpcError:
                return

        thread = threading.Thread(target=read, name="etcd-bench-watch", daemon=True)
        thread.start()
        ready.wait(10)

        def stop() -> None:
            requests.put(None)
            call.cancel()  # type: ignore[no-untyped-call]
            thread.join(5)

        return stop


def _until_none(requests: queue.SimpleQueue[Any]) -> Iterator[Any]:
    while (request := requests.get()) is not None:
        yield request
