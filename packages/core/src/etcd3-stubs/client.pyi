from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Literal, TypeAlias, overload

import grpc
from etcd3.etcdrpc import (
    AuthStub,
    ClusterStub,
    DeleteRangeResponse,
    KeyValue,
    KVStub,
    LeaseKeepAliveResponse,
    LeaseStub,
    LeaseTimeToLiveResponse,
    MaintenanceStub,
    PutResponse,
    RangeResponse,
    ResponseHeader,
    ResponseOp,
)
from etcd3.events import Event
from etcd3.leases import Lease
from etcd3.locks import Lock
from etcd3.members import Member
from etcd3.transactions import BaseCompare, Create, Delete, Get, Mod, Put, Txn, Value, Version
from etcd3.utils import SupportsWrite
from etcd3.watch import Watcher, WatchResponse, _Callback
from typing_extensions import Self

_Text: TypeAlias = str | bytes
_Lease: TypeAlias = Lease | int
_Operation: TypeAlias = Put | Get | Delete | Txn
_SortOrder: TypeAlias = Literal["ascend", "descend"]
_SortTarget: TypeAlias = Literal["key", "version", "create", "mod", "value"]
_Option: TypeAlias = tuple[str, str | int]
_Pair: TypeAlias = tuple[bytes, KVMetadata]

class Transactions:
    value: type[Value]
    version: type[Version]
    create: type[Create]
    mod: type[Mod]
    put: type[Put]
    get: type[Get]
    delete: type[Delete]
    txn: type[Txn]
    def __init__(self) -> None: ...

class KVMetadata:
    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease_id: int
    response_header: ResponseHeader
    def __init__(self, keyvalue: KeyValue, header: ResponseHeader) -> None: ...

class Status:
    version: str
    db_size: int
    leader: Member | None
    raft_index: int
    raft_term: int
    def __init__(
        self,
        version: str,
        db_size: int,
        leader: Member | None,
        raft_index: int,
        raft_term: int,
    ) -> None: ...

class Alarm:
    alarm_type: int
    member_id: int
    def __init__(self, alarm_type: int, member_id: int) -> None: ...

class EtcdTokenCallCredentials(grpc.AuthMetadataPlugin):
    def __init__(self, access_token: str) -> None: ...
    def __call__(
        self, context: grpc.AuthMetadataContext, callback: grpc.AuthMetadataPluginCallback
    ) -> None: ...

# Of the options that the reads accept, only those that etcd3 puts into the request are listed:
# it drops limit, revision, count_only and the four revision bounds without a word.
class Etcd3Client:
    channel: grpc.Channel
    timeout: float | None
    metadata: Sequence[tuple[str, str]] | None
    call_credentials: grpc.CallCredentials | None
    uses_secure_channel: bool
    # Only where a user and a password were given.
    auth_stub: AuthStub
    kvstub: KVStub
    clusterstub: ClusterStub
    leasestub: LeaseStub
    maintenancestub: MaintenanceStub
    watcher: Watcher
    transactions: Transactions
    def __init__(
        self,
        host: str = "localhost",
        port: int = 2379,
        ca_cert: str | None = None,
        cert_key: str | None = None,
        cert_cert: str | None = None,
        timeout: float | None = None,
        user: str | None = None,
        password: str | None = None,
        grpc_options: Sequence[_Option] | None = None,
    ) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        exc_type: type[BaseException] | None = ...,
        exc_value: BaseException | None = ...,
        traceback: TracebackType | None = ...,
        /,
    ) -> None: ...
    def get_response(self, key: _Text, serializable: bool = False) -> RangeResponse: ...
    def get(self, key: _Text, *, serializable: bool = False) -> _Pair | tuple[None, None]: ...
    def get_prefix_response(
        self,
        key_prefix: _Text,
        *,
        sort_order: _SortOrder | None = None,
        sort_target: _SortTarget | None = "key",
        serializable: bool = False,
        keys_only: bool = False,
    ) -> RangeResponse: ...
    def get_prefix(
        self,
        key_prefix: _Text,
        *,
        sort_order: _SortOrder | None = None,
        sort_target: _SortTarget | None = "key",
        serializable: bool = False,
        keys_only: bool = False,
    ) -> Iterator[_Pair]: ...
    def get_range_response(
        self,
        range_start: _Text,
        range_end: _Text,
        sort_order: _SortOrder | None = None,
        sort_target: _SortTarget | None = "key",
        *,
        serializable: bool = False,
        keys_only: bool = False,
    ) -> RangeResponse: ...
    def get_range(
        self,
        range_start: _Text,
        range_end: _Text,
        *,
        sort_order: _SortOrder | None = None,
        sort_target: _SortTarget | None = "key",
        serializable: bool = False,
        keys_only: bool = False,
    ) -> Iterator[_Pair]: ...
    def get_all_response(
        self,
        sort_order: _SortOrder | None = None,
        sort_target: _SortTarget | None = "key",
        keys_only: bool = False,
    ) -> RangeResponse: ...
    def get_all(
        self,
        *,
        sort_order: _SortOrder | None = None,
        sort_target: _SortTarget | None = "key",
        keys_only: bool = False,
    ) -> Iterator[_Pair]: ...
    def put(
        self, key: _Text, value: _Text, lease: _Lease | None = None, prev_kv: bool = False
    ) -> PutResponse: ...
    def put_if_not_exists(self, key: _Text, value: _Text, lease: _Lease | None = None) -> bool: ...
    def replace(self, key: _Text, initial_value: _Text, new_value: _Text) -> bool: ...
    @overload
    def delete(
        self, key: _Text, prev_kv: bool = False, return_response: Literal[False] = False
    ) -> bool: ...
    @overload
    def delete(
        self, key: _Text, prev_kv: bool = False, *, return_response: Literal[True]
    ) -> DeleteRangeResponse: ...
    @overload
    def delete(
        self, key: _Text, prev_kv: bool, return_response: Literal[True]
    ) -> DeleteRangeResponse: ...
    def delete_prefix(self, prefix: _Text) -> DeleteRangeResponse: ...
    def status(self) -> Status: ...
    def add_watch_callback(
        self,
        key: _Text,
        callback: _Callback,
        range_end: _Text | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> int: ...
    def add_watch_prefix_callback(
        self,
        key_prefix: _Text,
        callback: _Callback,
        *,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> int: ...
    def watch_response(
        self,
        key: _Text,
        *,
        range_end: _Text | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> tuple[Iterator[WatchResponse], Callable[[], None]]: ...
    def watch(
        self,
        key: _Text,
        *,
        range_end: _Text | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> tuple[Iterator[Event], Callable[[], None]]: ...
    def watch_prefix_response(
        self,
        key_prefix: _Text,
        *,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> tuple[Iterator[WatchResponse], Callable[[], None]]: ...
    def watch_prefix(
        self,
        key_prefix: _Text,
        *,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> tuple[Iterator[Event], Callable[[], None]]: ...
    def watch_once_response(
        self,
        key: _Text,
        timeout: float | None = None,
        *,
        range_end: _Text | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> WatchResponse: ...
    def watch_once(
        self,
        key: _Text,
        timeout: float | None = None,
        *,
        range_end: _Text | None = None,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> Event: ...
    def watch_prefix_once_response(
        self,
        key_prefix: _Text,
        timeout: float | None = None,
        *,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> WatchResponse: ...
    def watch_prefix_once(
        self,
        key_prefix: _Text,
        timeout: float | None = None,
        *,
        start_revision: int | None = None,
        progress_notify: bool = False,
        filters: Iterable[int] | None = None,
        prev_kv: bool = False,
    ) -> Event: ...
    def cancel_watch(self, watch_id: int) -> None: ...
    # etcd3 0.12 fails where success or failure is None; the client of etcd-core takes it as empty.
    def transaction(
        self,
        compare: Iterable[BaseCompare],
        success: Iterable[_Operation] | None = None,
        failure: Iterable[_Operation] | None = None,
    ) -> tuple[bool, list[ResponseOp | list[_Pair]]]: ...
    def lease(self, ttl: int, lease_id: int | None = None) -> Lease: ...
    def revoke_lease(self, lease_id: int) -> None: ...
    def refresh_lease(self, lease_id: int) -> Iterator[LeaseKeepAliveResponse]: ...
    def get_lease_info(self, lease_id: int) -> LeaseTimeToLiveResponse: ...
    def lock(self, name: str, ttl: int = 60) -> Lock: ...
    def add_member(self, urls: Iterable[str]) -> Member: ...
    def remove_member(self, member_id: int) -> None: ...
    def update_member(self, member_id: int, peer_urls: Iterable[str]) -> None: ...
    @property
    def members(self) -> Iterator[Member]: ...
    def compact(self, revision: int, physical: bool = False) -> None: ...
    def defragment(self) -> None: ...
    def hash(self) -> int: ...
    def create_alarm(self, member_id: int = 0) -> list[Alarm]: ...
    def list_alarms(
        self, member_id: int = 0, alarm_type: Literal["none", "no space"] = "none"
    ) -> Iterator[Alarm]: ...
    def disarm_alarm(self, member_id: int = 0) -> list[Alarm]: ...
    def snapshot(self, file_obj: SupportsWrite) -> None: ...

def client(
    host: str = "localhost",
    port: int = 2379,
    ca_cert: str | None = None,
    cert_key: str | None = None,
    cert_cert: str | None = None,
    timeout: float | None = None,
    user: str | None = None,
    password: str | None = None,
    grpc_options: Sequence[_Option] | None = None,
) -> Etcd3Client: ...
