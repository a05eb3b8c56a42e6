"""Every error text that was measured on real servers, and what may be done after it."""

from __future__ import annotations

import pytest

from etcd_core.errors import (
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
from etcd_core.wire.classify import (
    Kind,
    classify,
    final_error,
    is_auth_disabled,
    is_broken,
    is_hung_up,
    is_learner,
    is_overload,
    is_tls_failure,
    lease_exists,
    unanswered_error,
)

_REFUSED = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
    "Failed to connect to remote host: connect: Connection refused (111)"
)
_VERIFY = (
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: "
    "Ssl handshake failed: SSL_ERROR_SSL: error:1000007d: CERTIFICATE_VERIFY_FAILED"
)

NOT_EXECUTED = [
    ("UNAVAILABLE", _REFUSED),
    ("UNAVAILABLE", "errors resolving etcd.example:2379: [UNKNOWN: no such host]"),
    ("UNAVAILABLE", "DNS resolution failed for etcd.example:2379: C-ares status is not success"),
    ("UNAVAILABLE", "etcdserver: no leader"),
    ("UNKNOWN", "etcdserver: too many requests"),
    ("RESOURCE_EXHAUSTED", "etcdserver: too many requests"),
    ("UNAVAILABLE", "etcdserver: rpc not supported for learner"),
    ("FAILED_PRECONDITION", "etcdserver: rpc not supported for learner"),
    ("FAILED_PRECONDITION", "etcdserver: not capable"),
    ("UNAVAILABLE", "etcdserver: not capable"),
]
TOKEN = [
    ("UNAUTHENTICATED", "etcdserver: invalid auth token"),
    ("INVALID_ARGUMENT", "etcdserver: revision of auth store is old"),
    ("INVALID_ARGUMENT", "etcdserver: user name is empty"),
    ("UNKNOWN", "auth: revision in header is old"),
]
AMBIGUOUS = [
    ("UNAVAILABLE", "Stream removed (UNKNOWN:Error received from peer)"),
    ("UNAVAILABLE", "Socket closed"),
    ("UNAVAILABLE", "recvmsg:Connection reset by peer"),
    ("UNAVAILABLE", "ping timeout"),
    ("UNAVAILABLE", "GOAWAY received; Error code: 11; Debug Text: too_many_pings"),
    ("UNAVAILABLE", "etcdserver: request timed out"),
    ("UNAVAILABLE", "etcdserver: request timed out, possibly due to previous leader failure"),
    ("UNAVAILABLE", "etcdserver: request timed out, possibly due to connection lost"),
    ("UNAVAILABLE", "etcdserver: leader changed"),
    ("UNAVAILABLE", "etcdserver: server stopped"),
    ("UNAVAILABLE", "etcdserver: unhealthy cluster"),
    ("UNKNOWN", "context deadline exceeded"),
    ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
    ("CANCELLED", "Channel closed!"),
    ("INTERNAL", "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"),
    ("UNKNOWN", "something nobody has seen yet"),
]
FINAL = [
    ("INVALID_ARGUMENT", "etcdserver: key is not provided", ServerError),
    ("INVALID_ARGUMENT", "etcdserver: duplicate key given in txn request", ServerError),
    ("INVALID_ARGUMENT", "etcdserver: request is too large", RequestTooLarge),
    ("INVALID_ARGUMENT", "etcdserver: too many operations in txn request", RequestTooLarge),
    ("OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted", Compacted),
    ("OUT_OF_RANGE", "etcdserver: mvcc: required revision is a future revision", ServerError),
    ("OUT_OF_RANGE", "etcdserver: too large lease TTL", ServerError),
    ("NOT_FOUND", "etcdserver: requested lease not found", LeaseLost),
    ("NOT_FOUND", "etcdserver: member not found", ServerError),
    ("PERMISSION_DENIED", "etcdserver: permission denied", PermissionDenied),
    ("FAILED_PRECONDITION", "etcdserver: lease already exists", ServerError),
    ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", NoSpace),
    (
        "RESOURCE_EXHAUSTED",
        "grpc: received message larger than max (3000000 vs. 2097152)",
        RequestTooLarge,
    ),
    ("DATA_LOSS", "etcdserver: corrupt cluster", ServerError),
    ("UNIMPLEMENTED", "unknown method", ServerError),
    (
        "INVALID_ARGUMENT",
        "etcdserver: authentication failed, invalid user ID or password",
        Unauthenticated,
    ),
]


@pytest.mark.parametrize(("code", "text"), NOT_EXECUTED)
def test_not_executed(code: str, text: str) -> None:
    assert classify(code, text) is Kind.NOT_EXECUTED


@pytest.mark.parametrize(("code", "text"), TOKEN)
def test_token(code: str, text: str) -> None:
    assert classify(code, text) is Kind.TOKEN
    # What a refresh left is an error of authentication for the caller.
    assert isinstance(final_error("get 'a'", code, text), Unauthenticated)


@pytest.mark.parametrize(("code", "text"), AMBIGUOUS)
def test_ambiguous(code: str, text: str) -> None:
    assert classify(code, text) is Kind.AMBIGUOUS


@pytest.mark.parametrize(("code", "text", "error"), FINAL)
def test_final(code: str, text: str, error: type[EtcdError]) -> None:
    assert classify(code, text) is Kind.FINAL
    raised = final_error("put 'a'", code, text)
    assert type(raised) is error
    assert str(raised).startswith("put 'a': ")


def test_a_server_error_keeps_code_and_text() -> None:
    error = final_error("put 'a'", "DATA_LOSS", "etcdserver: corrupt cluster")
    assert isinstance(error, ServerError)
    assert (error.code, error.message) == ("DATA_LOSS", "etcdserver: corrupt cluster")


@pytest.mark.parametrize(
    ("text", "tls"),
    [
        (_VERIFY, True),
        ("x; last error: certificate has expired", True),
        ("x; last error: Hostname Verification Check failed.", True),
        ("x; last error: Ssl handshake failed (TSI_PROTOCOL_FAILURE): wrong version number", True),
        ("x; last error: Unwrap failed", True),
        ("x; last error: Handshake read failed", True),
        (_REFUSED, False),
        ("Socket closed", False),
        ("etcdserver: no leader", False),
        ("127.0.0.1:1 speaks TLS: give tls=", True),
    ],
)
def test_tls_texts(text: str, tls: bool) -> None:
    assert is_tls_failure(text) is tls


def test_who_hangs_up_before_the_first_word() -> None:
    assert is_hung_up("failed to connect to all addresses; last error: Socket closed")
    assert not is_hung_up("Socket closed")
    assert not is_hung_up(_REFUSED)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("Stream removed (recvmsg:Connection reset by peer (104))", True),
        ("Socket closed", True),
        ("GOAWAY received", True),
        ("etcdserver: leader changed", True),
        ("etcdserver: request timed out", True),
        (_REFUSED, False),
        ("etcdserver: no leader", False),
        ("Deadline Exceeded", False),
        ("Stream removed (Deadline Exceeded)", False),
        ("ping timeout", False),
    ],
)
def test_what_breaks_is_no_outage_yet(text: str, broken: bool) -> None:
    assert is_broken(text) is broken


def test_the_other_predicates() -> None:
    assert is_learner("etcdserver: rpc not supported for learner")
    assert is_overload("etcdserver: too many requests")
    assert is_auth_disabled("etcdserver: authentication is not enabled")
    exists = final_error("grant", "FAILED_PRECONDITION", "etcdserver: lease already exists")
    assert lease_exists(exists)
    assert not lease_exists(final_error("grant", "NOT_FOUND", "etcdserver: lease not found"))


@pytest.mark.parametrize(
    ("details", "sent", "timed_out", "write", "error"),
    [
        ("Socket closed", True, False, True, OutcomeUnknown),
        ("Deadline Exceeded", True, True, True, OutcomeUnknown),
        ("Deadline Exceeded", True, True, False, RequestTimeout),
        ("Socket closed", True, False, False, ConnectionFailed),
        (_REFUSED, False, False, True, ConnectionFailed),
        (_REFUSED, False, False, False, ConnectionFailed),
        ("no time left", False, True, True, RequestTimeout),
        (_VERIFY, False, False, True, ConnectionFailed),
    ],
)
def test_without_an_answer(
    details: str, sent: bool, timed_out: bool, write: bool, error: type[EtcdError]
) -> None:
    raised = unanswered_error("put 'a'", details, sent=sent, timed_out=timed_out, write=write)
    assert type(raised) is error
    assert raised.outcome_unknown is (error is OutcomeUnknown)
    assert details in str(raised)


def test_a_tls_failure_is_called_one() -> None:
    error = unanswered_error("get 'a'", _VERIFY, sent=False, timed_out=False, write=False)
    assert "TLS" in str(error)
    assert "CERTIFICATE_VERIFY_FAILED" in str(error)


def test_what_a_user_has_to_do_is_said() -> None:
    refused = final_error("get 'a'", "INVALID_ARGUMENT", "etcdserver: user name is empty")
    assert isinstance(refused, Unauthenticated)
    assert "give username and password" in str(refused)
    large = final_error("put 'a'", "INVALID_ARGUMENT", "etcdserver: request is too large")
    assert "1.5 MiB" in str(large)
