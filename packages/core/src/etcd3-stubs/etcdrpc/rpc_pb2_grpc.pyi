# Written by packages/core/scripts/build_descriptors.py: change the .proto files instead.
# ruff: noqa
# fmt: off

import grpc
from etcd_core.wire import messages

class KVStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Range: grpc.UnaryUnaryMultiCallable[
        messages.RangeRequest,
        messages.RangeResponse,
    ]
    Put: grpc.UnaryUnaryMultiCallable[
        messages.PutRequest,
        messages.PutResponse,
    ]
    DeleteRange: grpc.UnaryUnaryMultiCallable[
        messages.DeleteRangeRequest,
        messages.DeleteRangeResponse,
    ]
    Txn: grpc.UnaryUnaryMultiCallable[
        messages.TxnRequest,
        messages.TxnResponse,
    ]
    Compact: grpc.UnaryUnaryMultiCallable[
        messages.CompactionRequest,
        messages.CompactionResponse,
    ]

class WatchStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Watch: grpc.StreamStreamMultiCallable[
        messages.WatchRequest,
        messages.WatchResponse,
    ]

class LeaseStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    LeaseGrant: grpc.UnaryUnaryMultiCallable[
        messages.LeaseGrantRequest,
        messages.LeaseGrantResponse,
    ]
    LeaseRevoke: grpc.UnaryUnaryMultiCallable[
        messages.LeaseRevokeRequest,
        messages.LeaseRevokeResponse,
    ]
    LeaseKeepAlive: grpc.StreamStreamMultiCallable[
        messages.LeaseKeepAliveRequest,
        messages.LeaseKeepAliveResponse,
    ]
    LeaseTimeToLive: grpc.UnaryUnaryMultiCallable[
        messages.LeaseTimeToLiveRequest,
        messages.LeaseTimeToLiveResponse,
    ]
    LeaseLeases: grpc.UnaryUnaryMultiCallable[
        messages.LeaseLeasesRequest,
        messages.LeaseLeasesResponse,
    ]

class ClusterStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    MemberAdd: grpc.UnaryUnaryMultiCallable[
        messages.MemberAddRequest,
        messages.MemberAddResponse,
    ]
    MemberRemove: grpc.UnaryUnaryMultiCallable[
        messages.MemberRemoveRequest,
        messages.MemberRemoveResponse,
    ]
    MemberUpdate: grpc.UnaryUnaryMultiCallable[
        messages.MemberUpdateRequest,
        messages.MemberUpdateResponse,
    ]
    MemberList: grpc.UnaryUnaryMultiCallable[
        messages.MemberListRequest,
        messages.MemberListResponse,
    ]
    MemberPromote: grpc.UnaryUnaryMultiCallable[
        messages.MemberPromoteRequest,
        messages.MemberPromoteResponse,
    ]

class MaintenanceStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    Alarm: grpc.UnaryUnaryMultiCallable[
        messages.AlarmRequest,
        messages.AlarmResponse,
    ]
    Status: grpc.UnaryUnaryMultiCallable[
        messages.StatusRequest,
        messages.StatusResponse,
    ]
    Defragment: grpc.UnaryUnaryMultiCallable[
        messages.DefragmentRequest,
        messages.DefragmentResponse,
    ]
    Hash: grpc.UnaryUnaryMultiCallable[
        messages.HashRequest,
        messages.HashResponse,
    ]
    HashKV: grpc.UnaryUnaryMultiCallable[
        messages.HashKVRequest,
        messages.HashKVResponse,
    ]
    Snapshot: grpc.UnaryStreamMultiCallable[
        messages.SnapshotRequest,
        messages.SnapshotResponse,
    ]
    MoveLeader: grpc.UnaryUnaryMultiCallable[
        messages.MoveLeaderRequest,
        messages.MoveLeaderResponse,
    ]

class AuthStub:
    def __init__(self, channel: grpc.Channel) -> None: ...
    AuthEnable: grpc.UnaryUnaryMultiCallable[
        messages.AuthEnableRequest,
        messages.AuthEnableResponse,
    ]
    AuthDisable: grpc.UnaryUnaryMultiCallable[
        messages.AuthDisableRequest,
        messages.AuthDisableResponse,
    ]
    AuthStatus: grpc.UnaryUnaryMultiCallable[
        messages.AuthStatusRequest,
        messages.AuthStatusResponse,
    ]
    Authenticate: grpc.UnaryUnaryMultiCallable[
        messages.AuthenticateRequest,
        messages.AuthenticateResponse,
    ]
    UserAdd: grpc.UnaryUnaryMultiCallable[
        messages.AuthUserAddRequest,
        messages.AuthUserAddResponse,
    ]
    UserGet: grpc.UnaryUnaryMultiCallable[
        messages.AuthUserGetRequest,
        messages.AuthUserGetResponse,
    ]
    UserList: grpc.UnaryUnaryMultiCallable[
        messages.AuthUserListRequest,
        messages.AuthUserListResponse,
    ]
    UserDelete: grpc.UnaryUnaryMultiCallable[
        messages.AuthUserDeleteRequest,
        messages.AuthUserDeleteResponse,
    ]
    UserChangePassword: grpc.UnaryUnaryMultiCallable[
        messages.AuthUserChangePasswordRequest,
        messages.AuthUserChangePasswordResponse,
    ]
    UserGrantRole: grpc.UnaryUnaryMultiCallable[
        messages.AuthUserGrantRoleRequest,
        messages.AuthUserGrantRoleResponse,
    ]
    UserRevokeRole: grpc.UnaryUnaryMultiCallable[
        messages.AuthUserRevokeRoleRequest,
        messages.AuthUserRevokeRoleResponse,
    ]
    RoleAdd: grpc.UnaryUnaryMultiCallable[
        messages.AuthRoleAddRequest,
        messages.AuthRoleAddResponse,
    ]
    RoleGet: grpc.UnaryUnaryMultiCallable[
        messages.AuthRoleGetRequest,
        messages.AuthRoleGetResponse,
    ]
    RoleList: grpc.UnaryUnaryMultiCallable[
        messages.AuthRoleListRequest,
        messages.AuthRoleListResponse,
    ]
    RoleDelete: grpc.UnaryUnaryMultiCallable[
        messages.AuthRoleDeleteRequest,
        messages.AuthRoleDeleteResponse,
    ]
    RoleGrantPermission: grpc.UnaryUnaryMultiCallable[
        messages.AuthRoleGrantPermissionRequest,
        messages.AuthRoleGrantPermissionResponse,
    ]
    RoleRevokePermission: grpc.UnaryUnaryMultiCallable[
        messages.AuthRoleRevokePermissionRequest,
        messages.AuthRoleRevokePermissionResponse,
    ]
