# Written by packages/core/scripts/build_descriptors.py: change the .proto files instead.
# ruff: noqa
# fmt: off

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

class UserAddOptions(Message):
    no_password: bool
    def __init__(
        self,
        *,
        no_password: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["no_password"]) -> None: ...

class User(Message):
    name: bytes
    password: bytes
    @property
    def roles(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def options(self) -> UserAddOptions: ...
    def __init__(
        self,
        *,
        name: bytes | None = ...,
        password: bytes | None = ...,
        roles: Iterable[str] | None = ...,
        options: UserAddOptions | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["options"]) -> bool: ...
    def ClearField(self, field_name: Literal["name", "password", "roles", "options"]) -> None: ...

class Permission(Message):
    Type: ClassVar[EnumTypeWrapper]
    READ: ClassVar[int]
    WRITE: ClassVar[int]
    READWRITE: ClassVar[int]
    permType: int
    key: bytes
    range_end: bytes
    def __init__(
        self,
        *,
        permType: int | None = ...,
        key: bytes | None = ...,
        range_end: bytes | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["permType", "key", "range_end"]) -> None: ...

class Role(Message):
    name: bytes
    @property
    def keyPermission(self) -> RepeatedCompositeFieldContainer[Permission]: ...
    def __init__(
        self,
        *,
        name: bytes | None = ...,
        keyPermission: Iterable[Permission] | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["name", "keyPermission"]) -> None: ...

class KeyValue(Message):
    key: bytes
    create_revision: int
    mod_revision: int
    version: int
    value: bytes
    lease: int
    def __init__(
        self,
        *,
        key: bytes | None = ...,
        create_revision: int | None = ...,
        mod_revision: int | None = ...,
        version: int | None = ...,
        value: bytes | None = ...,
        lease: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["key", "create_revision", "mod_revision", "version", "value", "lease"]) -> None: ...

class Event(Message):
    EventType: ClassVar[EnumTypeWrapper]
    PUT: ClassVar[int]
    DELETE: ClassVar[int]
    type: int
    @property
    def kv(self) -> KeyValue: ...
    @property
    def prev_kv(self) -> KeyValue: ...
    def __init__(
        self,
        *,
        type: int | None = ...,
        kv: KeyValue | None = ...,
        prev_kv: KeyValue | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["kv", "prev_kv"]) -> bool: ...
    def ClearField(self, field_name: Literal["type", "kv", "prev_kv"]) -> None: ...

AlarmType: EnumTypeWrapper
NONE: int
NOSPACE: int
CORRUPT: int

class ResponseHeader(Message):
    cluster_id: int
    member_id: int
    revision: int
    raft_term: int
    def __init__(
        self,
        *,
        cluster_id: int | None = ...,
        member_id: int | None = ...,
        revision: int | None = ...,
        raft_term: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["cluster_id", "member_id", "revision", "raft_term"]) -> None: ...

class RangeRequest(Message):
    SortOrder: ClassVar[EnumTypeWrapper]
    NONE: ClassVar[int]
    ASCEND: ClassVar[int]
    DESCEND: ClassVar[int]
    SortTarget: ClassVar[EnumTypeWrapper]
    KEY: ClassVar[int]
    VERSION: ClassVar[int]
    CREATE: ClassVar[int]
    MOD: ClassVar[int]
    VALUE: ClassVar[int]
    key: bytes
    range_end: bytes
    limit: int
    revision: int
    sort_order: int
    sort_target: int
    serializable: bool
    keys_only: bool
    count_only: bool
    min_mod_revision: int
    max_mod_revision: int
    min_create_revision: int
    max_create_revision: int
    def __init__(
        self,
        *,
        key: bytes | None = ...,
        range_end: bytes | None = ...,
        limit: int | None = ...,
        revision: int | None = ...,
        sort_order: int | None = ...,
        sort_target: int | None = ...,
        serializable: bool | None = ...,
        keys_only: bool | None = ...,
        count_only: bool | None = ...,
        min_mod_revision: int | None = ...,
        max_mod_revision: int | None = ...,
        min_create_revision: int | None = ...,
        max_create_revision: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["key", "range_end", "limit", "revision", "sort_order", "sort_target", "serializable", "keys_only", "count_only", "min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"]) -> None: ...

class RangeResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def kvs(self) -> RepeatedCompositeFieldContainer[KeyValue]: ...
    more: bool
    count: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        kvs: Iterable[KeyValue] | None = ...,
        more: bool | None = ...,
        count: int | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "kvs", "more", "count"]) -> None: ...

class PutRequest(Message):
    key: bytes
    value: bytes
    lease: int
    prev_kv: bool
    ignore_value: bool
    ignore_lease: bool
    def __init__(
        self,
        *,
        key: bytes | None = ...,
        value: bytes | None = ...,
        lease: int | None = ...,
        prev_kv: bool | None = ...,
        ignore_value: bool | None = ...,
        ignore_lease: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["key", "value", "lease", "prev_kv", "ignore_value", "ignore_lease"]) -> None: ...

class PutResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def prev_kv(self) -> KeyValue: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        prev_kv: KeyValue | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header", "prev_kv"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "prev_kv"]) -> None: ...

class DeleteRangeRequest(Message):
    key: bytes
    range_end: bytes
    prev_kv: bool
    def __init__(
        self,
        *,
        key: bytes | None = ...,
        range_end: bytes | None = ...,
        prev_kv: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["key", "range_end", "prev_kv"]) -> None: ...

class DeleteRangeResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    deleted: int
    @property
    def prev_kvs(self) -> RepeatedCompositeFieldContainer[KeyValue]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        deleted: int | None = ...,
        prev_kvs: Iterable[KeyValue] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "deleted", "prev_kvs"]) -> None: ...

class RequestOp(Message):
    @property
    def request_range(self) -> RangeRequest: ...
    @property
    def request_put(self) -> PutRequest: ...
    @property
    def request_delete_range(self) -> DeleteRangeRequest: ...
    @property
    def request_txn(self) -> TxnRequest: ...
    def __init__(
        self,
        *,
        request_range: RangeRequest | None = ...,
        request_put: PutRequest | None = ...,
        request_delete_range: DeleteRangeRequest | None = ...,
        request_txn: TxnRequest | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["request_range", "request_put", "request_delete_range", "request_txn", "request"]) -> bool: ...
    def ClearField(self, field_name: Literal["request_range", "request_put", "request_delete_range", "request_txn", "request"]) -> None: ...
    def WhichOneof(self, oneof_group: Literal["request"]) -> Literal["request_range", "request_put", "request_delete_range", "request_txn"] | None: ...

class ResponseOp(Message):
    @property
    def response_range(self) -> RangeResponse: ...
    @property
    def response_put(self) -> PutResponse: ...
    @property
    def response_delete_range(self) -> DeleteRangeResponse: ...
    @property
    def response_txn(self) -> TxnResponse: ...
    def __init__(
        self,
        *,
        response_range: RangeResponse | None = ...,
        response_put: PutResponse | None = ...,
        response_delete_range: DeleteRangeResponse | None = ...,
        response_txn: TxnResponse | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["response_range", "response_put", "response_delete_range", "response_txn", "response"]) -> bool: ...
    def ClearField(self, field_name: Literal["response_range", "response_put", "response_delete_range", "response_txn", "response"]) -> None: ...
    def WhichOneof(self, oneof_group: Literal["response"]) -> Literal["response_range", "response_put", "response_delete_range", "response_txn"] | None: ...

class Compare(Message):
    CompareResult: ClassVar[EnumTypeWrapper]
    EQUAL: ClassVar[int]
    GREATER: ClassVar[int]
    LESS: ClassVar[int]
    NOT_EQUAL: ClassVar[int]
    CompareTarget: ClassVar[EnumTypeWrapper]
    VERSION: ClassVar[int]
    CREATE: ClassVar[int]
    MOD: ClassVar[int]
    VALUE: ClassVar[int]
    LEASE: ClassVar[int]
    result: int
    target: int
    key: bytes
    version: int
    create_revision: int
    mod_revision: int
    value: bytes
    lease: int
    range_end: bytes
    def __init__(
        self,
        *,
        result: int | None = ...,
        target: int | None = ...,
        key: bytes | None = ...,
        version: int | None = ...,
        create_revision: int | None = ...,
        mod_revision: int | None = ...,
        value: bytes | None = ...,
        lease: int | None = ...,
        range_end: bytes | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["version", "create_revision", "mod_revision", "value", "lease", "target_union"]) -> bool: ...
    def ClearField(self, field_name: Literal["result", "target", "key", "version", "create_revision", "mod_revision", "value", "lease", "range_end", "target_union"]) -> None: ...
    def WhichOneof(self, oneof_group: Literal["target_union"]) -> Literal["version", "create_revision", "mod_revision", "value", "lease"] | None: ...

class TxnRequest(Message):
    @property
    def compare(self) -> RepeatedCompositeFieldContainer[Compare]: ...
    @property
    def success(self) -> RepeatedCompositeFieldContainer[RequestOp]: ...
    @property
    def failure(self) -> RepeatedCompositeFieldContainer[RequestOp]: ...
    def __init__(
        self,
        *,
        compare: Iterable[Compare] | None = ...,
        success: Iterable[RequestOp] | None = ...,
        failure: Iterable[RequestOp] | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["compare", "success", "failure"]) -> None: ...

class TxnResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    succeeded: bool
    @property
    def responses(self) -> RepeatedCompositeFieldContainer[ResponseOp]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        succeeded: bool | None = ...,
        responses: Iterable[ResponseOp] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "succeeded", "responses"]) -> None: ...

class CompactionRequest(Message):
    revision: int
    physical: bool
    def __init__(
        self,
        *,
        revision: int | None = ...,
        physical: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["revision", "physical"]) -> None: ...

class CompactionResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class WatchRequest(Message):
    @property
    def create_request(self) -> WatchCreateRequest: ...
    @property
    def cancel_request(self) -> WatchCancelRequest: ...
    @property
    def progress_request(self) -> WatchProgressRequest: ...
    def __init__(
        self,
        *,
        create_request: WatchCreateRequest | None = ...,
        cancel_request: WatchCancelRequest | None = ...,
        progress_request: WatchProgressRequest | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["create_request", "cancel_request", "progress_request", "request_union"]) -> bool: ...
    def ClearField(self, field_name: Literal["create_request", "cancel_request", "progress_request", "request_union"]) -> None: ...
    def WhichOneof(self, oneof_group: Literal["request_union"]) -> Literal["create_request", "cancel_request", "progress_request"] | None: ...

class WatchCreateRequest(Message):
    FilterType: ClassVar[EnumTypeWrapper]
    NOPUT: ClassVar[int]
    NODELETE: ClassVar[int]
    key: bytes
    range_end: bytes
    start_revision: int
    progress_notify: bool
    @property
    def filters(self) -> RepeatedScalarFieldContainer[int]: ...
    prev_kv: bool
    watch_id: int
    fragment: bool
    def __init__(
        self,
        *,
        key: bytes | None = ...,
        range_end: bytes | None = ...,
        start_revision: int | None = ...,
        progress_notify: bool | None = ...,
        filters: Iterable[int] | None = ...,
        prev_kv: bool | None = ...,
        watch_id: int | None = ...,
        fragment: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["key", "range_end", "start_revision", "progress_notify", "filters", "prev_kv", "watch_id", "fragment"]) -> None: ...

class WatchCancelRequest(Message):
    watch_id: int
    def __init__(
        self,
        *,
        watch_id: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["watch_id"]) -> None: ...

class WatchProgressRequest(Message):
    def __init__(self) -> None: ...

class WatchResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    watch_id: int
    created: bool
    canceled: bool
    compact_revision: int
    cancel_reason: str
    fragment: bool
    @property
    def events(self) -> RepeatedCompositeFieldContainer[Event]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        watch_id: int | None = ...,
        created: bool | None = ...,
        canceled: bool | None = ...,
        compact_revision: int | None = ...,
        cancel_reason: str | None = ...,
        fragment: bool | None = ...,
        events: Iterable[Event] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "watch_id", "created", "canceled", "compact_revision", "cancel_reason", "fragment", "events"]) -> None: ...

class LeaseGrantRequest(Message):
    TTL: int
    ID: int
    def __init__(
        self,
        *,
        TTL: int | None = ...,
        ID: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["TTL", "ID"]) -> None: ...

class LeaseGrantResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    ID: int
    TTL: int
    error: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int | None = ...,
        TTL: int | None = ...,
        error: str | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "ID", "TTL", "error"]) -> None: ...

class LeaseRevokeRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID"]) -> None: ...

class LeaseRevokeResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class LeaseKeepAliveRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID"]) -> None: ...

class LeaseKeepAliveResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    ID: int
    TTL: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int | None = ...,
        TTL: int | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "ID", "TTL"]) -> None: ...

class LeaseTimeToLiveRequest(Message):
    ID: int
    keys: bool
    def __init__(
        self,
        *,
        ID: int | None = ...,
        keys: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID", "keys"]) -> None: ...

class LeaseTimeToLiveResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    ID: int
    TTL: int
    grantedTTL: int
    @property
    def keys(self) -> RepeatedScalarFieldContainer[bytes]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        ID: int | None = ...,
        TTL: int | None = ...,
        grantedTTL: int | None = ...,
        keys: Iterable[bytes] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "ID", "TTL", "grantedTTL", "keys"]) -> None: ...

class LeaseLeasesRequest(Message):
    def __init__(self) -> None: ...

class LeaseStatus(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID"]) -> None: ...

class LeaseLeasesResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def leases(self) -> RepeatedCompositeFieldContainer[LeaseStatus]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        leases: Iterable[LeaseStatus] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "leases"]) -> None: ...

class Member(Message):
    ID: int
    name: str
    @property
    def peerURLs(self) -> RepeatedScalarFieldContainer[str]: ...
    @property
    def clientURLs(self) -> RepeatedScalarFieldContainer[str]: ...
    isLearner: bool
    def __init__(
        self,
        *,
        ID: int | None = ...,
        name: str | None = ...,
        peerURLs: Iterable[str] | None = ...,
        clientURLs: Iterable[str] | None = ...,
        isLearner: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID", "name", "peerURLs", "clientURLs", "isLearner"]) -> None: ...

class MemberAddRequest(Message):
    @property
    def peerURLs(self) -> RepeatedScalarFieldContainer[str]: ...
    isLearner: bool
    def __init__(
        self,
        *,
        peerURLs: Iterable[str] | None = ...,
        isLearner: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["peerURLs", "isLearner"]) -> None: ...

class MemberAddResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def member(self) -> Member: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        member: Member | None = ...,
        members: Iterable[Member] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header", "member"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "member", "members"]) -> None: ...

class MemberRemoveRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID"]) -> None: ...

class MemberRemoveResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "members"]) -> None: ...

class MemberUpdateRequest(Message):
    ID: int
    @property
    def peerURLs(self) -> RepeatedScalarFieldContainer[str]: ...
    def __init__(
        self,
        *,
        ID: int | None = ...,
        peerURLs: Iterable[str] | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID", "peerURLs"]) -> None: ...

class MemberUpdateResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "members"]) -> None: ...

class MemberListRequest(Message):
    linearizable: bool
    def __init__(
        self,
        *,
        linearizable: bool | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["linearizable"]) -> None: ...

class MemberListResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "members"]) -> None: ...

class MemberPromoteRequest(Message):
    ID: int
    def __init__(
        self,
        *,
        ID: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["ID"]) -> None: ...

class MemberPromoteResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def members(self) -> RepeatedCompositeFieldContainer[Member]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        members: Iterable[Member] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "members"]) -> None: ...

class AlarmRequest(Message):
    AlarmAction: ClassVar[EnumTypeWrapper]
    GET: ClassVar[int]
    ACTIVATE: ClassVar[int]
    DEACTIVATE: ClassVar[int]
    action: int
    memberID: int
    alarm: int
    def __init__(
        self,
        *,
        action: int | None = ...,
        memberID: int | None = ...,
        alarm: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["action", "memberID", "alarm"]) -> None: ...

class AlarmMember(Message):
    memberID: int
    alarm: int
    def __init__(
        self,
        *,
        memberID: int | None = ...,
        alarm: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["memberID", "alarm"]) -> None: ...

class AlarmResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def alarms(self) -> RepeatedCompositeFieldContainer[AlarmMember]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        alarms: Iterable[AlarmMember] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "alarms"]) -> None: ...

class StatusRequest(Message):
    def __init__(self) -> None: ...

class StatusResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    version: str
    dbSize: int
    leader: int
    raftIndex: int
    raftTerm: int
    raftAppliedIndex: int
    @property
    def errors(self) -> RepeatedScalarFieldContainer[str]: ...
    dbSizeInUse: int
    isLearner: bool
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        version: str | None = ...,
        dbSize: int | None = ...,
        leader: int | None = ...,
        raftIndex: int | None = ...,
        raftTerm: int | None = ...,
        raftAppliedIndex: int | None = ...,
        errors: Iterable[str] | None = ...,
        dbSizeInUse: int | None = ...,
        isLearner: bool | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "version", "dbSize", "leader", "raftIndex", "raftTerm", "raftAppliedIndex", "errors", "dbSizeInUse", "isLearner"]) -> None: ...

class DefragmentRequest(Message):
    def __init__(self) -> None: ...

class DefragmentResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class HashRequest(Message):
    def __init__(self) -> None: ...

class HashResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    hash: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        hash: int | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "hash"]) -> None: ...

class HashKVRequest(Message):
    revision: int
    def __init__(
        self,
        *,
        revision: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["revision"]) -> None: ...

class HashKVResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    hash: int
    compact_revision: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        hash: int | None = ...,
        compact_revision: int | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "hash", "compact_revision"]) -> None: ...

class SnapshotRequest(Message):
    def __init__(self) -> None: ...

class SnapshotResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    remaining_bytes: int
    blob: bytes
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        remaining_bytes: int | None = ...,
        blob: bytes | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "remaining_bytes", "blob"]) -> None: ...

class MoveLeaderRequest(Message):
    targetID: int
    def __init__(
        self,
        *,
        targetID: int | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["targetID"]) -> None: ...

class MoveLeaderResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthEnableRequest(Message):
    def __init__(self) -> None: ...

class AuthEnableResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthDisableRequest(Message):
    def __init__(self) -> None: ...

class AuthDisableResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthStatusRequest(Message):
    def __init__(self) -> None: ...

class AuthStatusResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    enabled: bool
    authRevision: int
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        enabled: bool | None = ...,
        authRevision: int | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "enabled", "authRevision"]) -> None: ...

class AuthenticateRequest(Message):
    name: str
    password: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        password: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["name", "password"]) -> None: ...

class AuthenticateResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    token: str
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        token: str | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "token"]) -> None: ...

class AuthUserAddRequest(Message):
    name: str
    password: str
    @property
    def options(self) -> UserAddOptions: ...
    hashedPassword: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        password: str | None = ...,
        options: UserAddOptions | None = ...,
        hashedPassword: str | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["options"]) -> bool: ...
    def ClearField(self, field_name: Literal["name", "password", "options", "hashedPassword"]) -> None: ...

class AuthUserAddResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthUserGetRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["name"]) -> None: ...

class AuthUserGetResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def roles(self) -> RepeatedScalarFieldContainer[str]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        roles: Iterable[str] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "roles"]) -> None: ...

class AuthUserListRequest(Message):
    def __init__(self) -> None: ...

class AuthUserListResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def users(self) -> RepeatedScalarFieldContainer[str]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        users: Iterable[str] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "users"]) -> None: ...

class AuthUserDeleteRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["name"]) -> None: ...

class AuthUserDeleteResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthUserChangePasswordRequest(Message):
    name: str
    password: str
    hashedPassword: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        password: str | None = ...,
        hashedPassword: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["name", "password", "hashedPassword"]) -> None: ...

class AuthUserChangePasswordResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthUserGrantRoleRequest(Message):
    user: str
    role: str
    def __init__(
        self,
        *,
        user: str | None = ...,
        role: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["user", "role"]) -> None: ...

class AuthUserGrantRoleResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthUserRevokeRoleRequest(Message):
    name: str
    role: str
    def __init__(
        self,
        *,
        name: str | None = ...,
        role: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["name", "role"]) -> None: ...

class AuthUserRevokeRoleResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthRoleAddRequest(Message):
    name: str
    def __init__(
        self,
        *,
        name: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["name"]) -> None: ...

class AuthRoleAddResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthRoleGetRequest(Message):
    role: str
    def __init__(
        self,
        *,
        role: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["role"]) -> None: ...

class AuthRoleGetResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def perm(self) -> RepeatedCompositeFieldContainer[Permission]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        perm: Iterable[Permission] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "perm"]) -> None: ...

class AuthRoleListRequest(Message):
    def __init__(self) -> None: ...

class AuthRoleListResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    @property
    def roles(self) -> RepeatedScalarFieldContainer[str]: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
        roles: Iterable[str] | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header", "roles"]) -> None: ...

class AuthRoleDeleteRequest(Message):
    role: str
    def __init__(
        self,
        *,
        role: str | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["role"]) -> None: ...

class AuthRoleDeleteResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthRoleGrantPermissionRequest(Message):
    name: str
    @property
    def perm(self) -> Permission: ...
    def __init__(
        self,
        *,
        name: str | None = ...,
        perm: Permission | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["perm"]) -> bool: ...
    def ClearField(self, field_name: Literal["name", "perm"]) -> None: ...

class AuthRoleGrantPermissionResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

class AuthRoleRevokePermissionRequest(Message):
    role: str
    key: bytes
    range_end: bytes
    def __init__(
        self,
        *,
        role: str | None = ...,
        key: bytes | None = ...,
        range_end: bytes | None = ...,
    ) -> None: ...
    def ClearField(self, field_name: Literal["role", "key", "range_end"]) -> None: ...

class AuthRoleRevokePermissionResponse(Message):
    @property
    def header(self) -> ResponseHeader: ...
    def __init__(
        self,
        *,
        header: ResponseHeader | None = ...,
    ) -> None: ...
    def HasField(self, field_name: Literal["header"]) -> bool: ...
    def ClearField(self, field_name: Literal["header"]) -> None: ...

@type_check_only
class _Methods(Mapping[str, Method[Any, Any]]):
    @overload
    def __getitem__(self, key: Literal["KV/Range"]) -> Method[RangeRequest, RangeResponse]: ...
    @overload
    def __getitem__(self, key: Literal["KV/Put"]) -> Method[PutRequest, PutResponse]: ...
    @overload
    def __getitem__(self, key: Literal["KV/DeleteRange"]) -> Method[DeleteRangeRequest, DeleteRangeResponse]: ...
    @overload
    def __getitem__(self, key: Literal["KV/Txn"]) -> Method[TxnRequest, TxnResponse]: ...
    @overload
    def __getitem__(self, key: Literal["KV/Compact"]) -> Method[CompactionRequest, CompactionResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Watch/Watch"]) -> Method[WatchRequest, WatchResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Lease/LeaseGrant"]) -> Method[LeaseGrantRequest, LeaseGrantResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Lease/LeaseRevoke"]) -> Method[LeaseRevokeRequest, LeaseRevokeResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Lease/LeaseKeepAlive"]) -> Method[LeaseKeepAliveRequest, LeaseKeepAliveResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Lease/LeaseTimeToLive"]) -> Method[LeaseTimeToLiveRequest, LeaseTimeToLiveResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Lease/LeaseLeases"]) -> Method[LeaseLeasesRequest, LeaseLeasesResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Cluster/MemberAdd"]) -> Method[MemberAddRequest, MemberAddResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Cluster/MemberRemove"]) -> Method[MemberRemoveRequest, MemberRemoveResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Cluster/MemberUpdate"]) -> Method[MemberUpdateRequest, MemberUpdateResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Cluster/MemberList"]) -> Method[MemberListRequest, MemberListResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Cluster/MemberPromote"]) -> Method[MemberPromoteRequest, MemberPromoteResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Maintenance/Alarm"]) -> Method[AlarmRequest, AlarmResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Maintenance/Status"]) -> Method[StatusRequest, StatusResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Maintenance/Defragment"]) -> Method[DefragmentRequest, DefragmentResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Maintenance/Hash"]) -> Method[HashRequest, HashResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Maintenance/HashKV"]) -> Method[HashKVRequest, HashKVResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Maintenance/Snapshot"]) -> Method[SnapshotRequest, SnapshotResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Maintenance/MoveLeader"]) -> Method[MoveLeaderRequest, MoveLeaderResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/AuthEnable"]) -> Method[AuthEnableRequest, AuthEnableResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/AuthDisable"]) -> Method[AuthDisableRequest, AuthDisableResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/AuthStatus"]) -> Method[AuthStatusRequest, AuthStatusResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/Authenticate"]) -> Method[AuthenticateRequest, AuthenticateResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/UserAdd"]) -> Method[AuthUserAddRequest, AuthUserAddResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/UserGet"]) -> Method[AuthUserGetRequest, AuthUserGetResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/UserList"]) -> Method[AuthUserListRequest, AuthUserListResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/UserDelete"]) -> Method[AuthUserDeleteRequest, AuthUserDeleteResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/UserChangePassword"]) -> Method[AuthUserChangePasswordRequest, AuthUserChangePasswordResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/UserGrantRole"]) -> Method[AuthUserGrantRoleRequest, AuthUserGrantRoleResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/UserRevokeRole"]) -> Method[AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/RoleAdd"]) -> Method[AuthRoleAddRequest, AuthRoleAddResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/RoleGet"]) -> Method[AuthRoleGetRequest, AuthRoleGetResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/RoleList"]) -> Method[AuthRoleListRequest, AuthRoleListResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/RoleDelete"]) -> Method[AuthRoleDeleteRequest, AuthRoleDeleteResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/RoleGrantPermission"]) -> Method[AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse]: ...
    @overload
    def __getitem__(self, key: Literal["Auth/RoleRevokePermission"]) -> Method[AuthRoleRevokePermissionRequest, AuthRoleRevokePermissionResponse]: ...
    @overload
    def __getitem__(self, key: str) -> Method[Any, Any]: ...
    def __iter__(self) -> Iterator[str]: ...
    def __len__(self) -> int: ...

__all__ = [
    "AlarmMember",
    "AlarmRequest",
    "AlarmResponse",
    "AlarmType",
    "AuthDisableRequest",
    "AuthDisableResponse",
    "AuthEnableRequest",
    "AuthEnableResponse",
    "AuthRoleAddRequest",
    "AuthRoleAddResponse",
    "AuthRoleDeleteRequest",
    "AuthRoleDeleteResponse",
    "AuthRoleGetRequest",
    "AuthRoleGetResponse",
    "AuthRoleGrantPermissionRequest",
    "AuthRoleGrantPermissionResponse",
    "AuthRoleListRequest",
    "AuthRoleListResponse",
    "AuthRoleRevokePermissionRequest",
    "AuthRoleRevokePermissionResponse",
    "AuthStatusRequest",
    "AuthStatusResponse",
    "AuthUserAddRequest",
    "AuthUserAddResponse",
    "AuthUserChangePasswordRequest",
    "AuthUserChangePasswordResponse",
    "AuthUserDeleteRequest",
    "AuthUserDeleteResponse",
    "AuthUserGetRequest",
    "AuthUserGetResponse",
    "AuthUserGrantRoleRequest",
    "AuthUserGrantRoleResponse",
    "AuthUserListRequest",
    "AuthUserListResponse",
    "AuthUserRevokeRoleRequest",
    "AuthUserRevokeRoleResponse",
    "AuthenticateRequest",
    "AuthenticateResponse",
    "CORRUPT",
    "CompactionRequest",
    "CompactionResponse",
    "Compare",
    "DefragmentRequest",
    "DefragmentResponse",
    "DeleteRangeRequest",
    "DeleteRangeResponse",
    "Event",
    "FILES",
    "HashKVRequest",
    "HashKVResponse",
    "HashRequest",
    "HashResponse",
    "KeyValue",
    "LeaseGrantRequest",
    "LeaseGrantResponse",
    "LeaseKeepAliveRequest",
    "LeaseKeepAliveResponse",
    "LeaseLeasesRequest",
    "LeaseLeasesResponse",
    "LeaseRevokeRequest",
    "LeaseRevokeResponse",
    "LeaseStatus",
    "LeaseTimeToLiveRequest",
    "LeaseTimeToLiveResponse",
    "METHODS",
    "Member",
    "MemberAddRequest",
    "MemberAddResponse",
    "MemberListRequest",
    "MemberListResponse",
    "MemberPromoteRequest",
    "MemberPromoteResponse",
    "MemberRemoveRequest",
    "MemberRemoveResponse",
    "MemberUpdateRequest",
    "MemberUpdateResponse",
    "Method",
    "MoveLeaderRequest",
    "MoveLeaderResponse",
    "NAMES",
    "NONE",
    "NOSPACE",
    "Permission",
    "PutRequest",
    "PutResponse",
    "RangeRequest",
    "RangeResponse",
    "RequestOp",
    "ResponseHeader",
    "ResponseOp",
    "Role",
    "SnapshotRequest",
    "SnapshotResponse",
    "StatusRequest",
    "StatusResponse",
    "TxnRequest",
    "TxnResponse",
    "User",
    "UserAddOptions",
    "WatchCancelRequest",
    "WatchCreateRequest",
    "WatchProgressRequest",
    "WatchRequest",
    "WatchResponse",
]
