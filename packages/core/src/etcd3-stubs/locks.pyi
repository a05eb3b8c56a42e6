from types import TracebackType

from etcd3.client import Etcd3Client
from etcd3.etcdrpc import LeaseKeepAliveResponse
from etcd3.leases import Lease
from typing_extensions import Self

class Lock:
    lock_prefix: str
    name: str
    ttl: int
    etcd_client: Etcd3Client
    key: str
    lease: Lease | None
    uuid: bytes
    def __init__(
        self, name: str, ttl: int = 60, etcd_client: Etcd3Client | None = None
    ) -> None: ...
    def acquire(self, timeout: float | None = 10) -> bool: ...
    def release(self) -> bool: ...
    def refresh(self) -> list[LeaseKeepAliveResponse]: ...
    def is_acquired(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...
