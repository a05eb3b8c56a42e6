"""One tree of errors. This module imports nothing of the package and nothing of gRPC.

::

    EtcdError                          .retryable  .outcome_unknown
    |- InvalidArgument (ValueError)    refused before any I/O
    |  `- InvalidConfig
    |- ClosedError                     the client, lock or registration has ended
    |- ConnectionFailed (ConnectionError)
    |- RequestTimeout (TimeoutError)
    |- OutcomeUnknown                  a write may or may not have happened
    |- Unauthenticated
    |- PermissionDenied
    |- Compacted                       .compact_revision
    |- ClusterReset                    the store went back in time
    |- RequestTooLarge
    |- NoSpace
    |- LeaseLost
    |- LockTimeout (TimeoutError)
    |- CampaignTimeout (TimeoutError)
    |- NotLeader
    |- ConfigNotFound
    |- Conflict
    |- DecodeError                     .key
    |- AlreadyRegistered
    |- NoInstances
    `- ServerError                     .code  .message: everything else etcd refused
"""

from __future__ import annotations


class EtcdError(Exception):
    """Base of every error this library raises.

    Attributes:
        retryable: The same call may succeed later without a change by the caller.
        outcome_unknown: A write was sent and its answer is missing: it may be in the store, now or
            later. Read before deciding to write again.
    """

    retryable: bool = False
    outcome_unknown: bool = False

    def __init__(self, message: str, *, outcome_unknown: bool | None = None) -> None:
        super().__init__(message)
        if outcome_unknown is not None:
            self.outcome_unknown = outcome_unknown


class InvalidArgument(EtcdError, ValueError):
    """An argument was refused before anything was sent."""


class InvalidConfig(InvalidArgument):
    """The client's configuration was refused before anything was sent."""


class ClosedError(EtcdError):
    """The client, or the object the call was made on, is closed."""


class ConnectionFailed(EtcdError, ConnectionError):
    """No endpoint could be reached (or TLS refused); the request was not executed."""

    retryable = True


class RequestTimeout(EtcdError, TimeoutError):
    """No answer within the time given."""

    retryable = True


class OutcomeUnknown(EtcdError):
    """A write got no definite answer: it may have been applied, or be applied later."""

    outcome_unknown = True


OUTAGE = (ConnectionFailed, RequestTimeout, OutcomeUnknown)
"""What a call raises while etcd is away. Anything else is an answer, and waiting mends it not."""


class Unauthenticated(EtcdError):
    """Wrong user name or password, or a token that a refresh could not mend."""


class PermissionDenied(EtcdError):
    """The user's roles do not allow the operation."""


class Compacted(EtcdError):
    """The revision asked for has been compacted away.

    Attributes:
        compact_revision: The oldest revision that is still readable.
    """

    def __init__(self, message: str, *, compact_revision: int = 0) -> None:
        super().__init__(message)
        self.compact_revision = compact_revision


class ClusterReset(EtcdError):
    """The store's revision went back: restored from a backup, or restarted empty."""


class RequestTooLarge(EtcdError):
    """The request exceeds etcd's limit on its size or on the operations in a transaction."""


class NoSpace(EtcdError):
    """etcd's storage quota is used up; it refuses writes until an operator makes room."""


class LeaseLost(EtcdError):
    """The lease expired or was revoked, or its key was deleted by someone else."""


class LockTimeout(EtcdError, TimeoutError):
    """The lock was not acquired in time. No key of ours is left in the queue."""

    retryable = True


class CampaignTimeout(EtcdError, TimeoutError):
    """The election was not won in time. No key of ours is left in the queue."""

    retryable = True


class NotLeader(EtcdError):
    """The operation needs leadership that this process does not hold."""


class ConfigNotFound(EtcdError):
    """No configuration is stored under the name."""


class Conflict(EtcdError):
    """The stored state changed since it was read; nothing was written."""

    retryable = True


class DecodeError(EtcdError):
    """A stored value is not in the expected form. The value itself is never in the message.

    Attributes:
        key: The etcd key or the dotted path of the value.
    """

    def __init__(self, message: str, *, key: str) -> None:
        super().__init__(message)
        self.key = key


class AlreadyRegistered(EtcdError):
    """Another live lease holds the service id."""


class NoInstances(EtcdError):
    """No instance of the service is known."""

    retryable = True


class ServerError(EtcdError):
    """etcd refused the request for a reason that has no class of its own.

    Attributes:
        code: Name of the gRPC status code, for example ``"INVALID_ARGUMENT"``.
        message: etcd's own text.
    """

    def __init__(self, message: str, *, code: str, server_message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = server_message
