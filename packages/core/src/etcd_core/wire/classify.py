"""What a failed RPC means. Pure functions over the status code's name and etcd's text.

etcd's codes mislead ("too many requests" travels as UNKNOWN, "no leader" as UNAVAILABLE like a dead
socket does), so the text decides first and the code second (semantics 9.1). Measured on etcd 3.4.23
and 3.5.1.
"""

from __future__ import annotations

import enum
import re

from ..errors import (
    Compacted,
    ConnectionFailed,
    EtcdError,
    LeaseLost,
    NoSpace,
    OutcomeUnknown,
    PermissionDenied,
    RequestTimeout,
    RequestTooLarge,
    ServerError,
    Unauthenticated,
)


class Kind(enum.Enum):
    """What may be done after a failure."""

    NOT_EXECUTED = "N"
    """Certainly not executed: any RPC may be sent again, to another endpoint."""
    TOKEN = "T"
    """Refused for its token before execution: refresh once, then any RPC may be sent again."""
    AMBIGUOUS = "A"
    """It may have been executed, now or later: only idempotent RPCs may be sent again."""
    FINAL = "F"
    """etcd's answer is no."""


_NOT_EXECUTED = re.compile(
    r"failed to connect to all addresses|errors resolving|DNS resolution failed"
    r"|etcdserver: no leader|too many requests|rpc not supported for learner|not capable",
    re.IGNORECASE,
)
_TOKEN = re.compile(
    # The third is what etcd 3.5.1 says of an outdated JWT, as UNKNOWN.
    r"invalid auth token|revision of auth store is old|revision in header is old"
    r"|user name is empty"
)
_BAD_PASSWORD = re.compile(r"authentication failed, invalid user ID or password")
_AMBIGUOUS = re.compile(
    r"request timed out|leader changed|server stopped|unhealthy cluster|context deadline exceeded"
)
_TLS = re.compile(
    r"CERTIFICATE_VERIFY_FAILED|certificate has expired|Hostname Verification Check failed"
    r"|Unwrap failed|Handshake read failed|Handshake failed|SSL_ERROR|TSI_|wrong version number"
    r"|speaks TLS",
    re.IGNORECASE,
)
_BROKEN = re.compile(
    r"Stream removed|Socket closed|Connection reset|Broken pipe|GOAWAY|leader changed"
    r"|request timed out|server stopped",
    re.IGNORECASE,
)
_HUNG_UP = re.compile(r"Socket closed|Connection reset", re.IGNORECASE)
_TOO_LARGE = re.compile(r"request is too large|message larger than max|too many operations")
_AMBIGUOUS_CODES = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL", "UNKNOWN", "ABORTED"}
)


def classify(code: str, details: str) -> Kind:
    """Return what may be done after an RPC failed with ``code`` and ``details``."""
    if _NOT_EXECUTED.search(details):
        return Kind.NOT_EXECUTED
    if _TOKEN.search(details):
        return Kind.TOKEN
    if _AMBIGUOUS.search(details):
        return Kind.AMBIGUOUS
    return Kind.AMBIGUOUS if code in _AMBIGUOUS_CODES else Kind.FINAL


def is_tls_failure(details: str) -> bool:
    """Tell whether the connection failed for its certificates or protocol: waiting won't help."""
    return _TLS.search(details) is not None


def is_hung_up(details: str) -> bool:
    """Tell whether the server took the connection and closed it without a word of HTTP/2."""
    return "failed to connect" in details and _HUNG_UP.search(details) is not None


def is_broken(details: str) -> bool:
    """Tell whether a connection or a leader was lost: the next try may well succeed."""
    return _BROKEN.search(details) is not None and "Deadline Exceeded" not in details


def is_learner(details: str) -> bool:
    """Tell whether the member is a learner, which serves none of our RPCs."""
    return "rpc not supported for learner" in details


def is_overload(details: str) -> bool:
    """Tell whether etcd asked for a pause."""
    return "too many requests" in details


def is_auth_disabled(details: str) -> bool:
    """Tell whether Authenticate was refused because the cluster runs without authentication."""
    return "authentication is not enabled" in details


def lease_exists(error: EtcdError) -> bool:
    """Tell whether a grant was refused because its id is taken: our own, when it was retried."""
    return isinstance(error, ServerError) and "lease already exists" in error.message


def denied(what: str, user: str | None) -> PermissionDenied:
    """Return the error of a user, None where there is no login, whose roles do not allow it."""
    return PermissionDenied(f"{what}: permission denied" + (f" for user {user!r}" if user else ""))


def final_error(what: str, code: str, details: str, user: str | None = None) -> EtcdError:
    """Return the typed error of a FINAL failure (also of a TOKEN failure that a refresh left)."""
    text = f"{what}: {details or code}"
    if code == "NOT_FOUND" and "lease not found" in details:
        return LeaseLost(f"{what}: the lease has expired or was revoked")
    if "has been compacted" in details:
        return Compacted(f"{what}: the required revision has been compacted")
    if "user name is empty" in details:
        return Unauthenticated(f"{what}: this etcd needs a login: give username and password")
    if "space exceeded" in details:
        return NoSpace(f"{what}: etcd's storage quota is used up (NOSPACE alarm)")
    if _TOO_LARGE.search(details):
        return RequestTooLarge(f"{text}; etcd takes 1.5 MiB in one request")
    if code == "PERMISSION_DENIED":
        return denied(what, user)
    if code == "UNAUTHENTICATED" or _BAD_PASSWORD.search(details) or _TOKEN.search(details):
        return Unauthenticated(text)
    return ServerError(text, code=code, server_message=details)


def unanswered_error(
    what: str, details: str, *, sent: bool, timed_out: bool, write: bool
) -> EtcdError:
    """Return the typed error of a call that got no answer within its time.

    Args:
        what: The operation and its key.
        details: The last failure, in gRPC's words.
        sent: An attempt may have reached etcd.
        timed_out: The time was used up, rather than the connection refused: an attempt waited for
            its answer, or there was no time for one.
        write: The request may change the store.
    """
    if sent and write:
        return OutcomeUnknown(f"{what}: no answer; it may have been applied ({details})")
    if timed_out:
        return RequestTimeout(f"{what}: no answer in time ({details})")
    if is_tls_failure(details):
        return ConnectionFailed(f"{what}: TLS handshake failed ({details})")
    return ConnectionFailed(f"{what}: etcd cannot be reached ({details})")
