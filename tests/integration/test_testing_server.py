"""EtcdServer, EtcdCluster, RpcCounter and the pytest plugin, on real servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from etcd_core.testing import (
    Bootstrap,
    EtcdCluster,
    EtcdctlFailed,
    EtcdServer,
    EtcdStartFailed,
    PortInUse,
    RpcCounter,
    TestCA,
    eventually,
    find_binaries,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs signals and fork")


@pytest.fixture(scope="module")
def server() -> Iterator[EtcdServer]:
    with EtcdServer() as running:
        yield running


@pytest.fixture(scope="module")
def cluster() -> Iterator[EtcdCluster]:
    with EtcdCluster(3) as running:
        yield running


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def revision(server: EtcdServer) -> int:
    answer = json.loads(server.ctl("get", "x", "--write-out=json"))
    return int(answer["header"]["revision"])


def test_ready_means_that_it_answers(server: EtcdServer) -> None:
    server.ctl("put", "ready/a", "1")
    assert server.ctl("get", "ready/a") == "ready/a\n1\n"
    assert server.endpoint == f"http://127.0.0.1:{server.client_port}"
    assert psutil.Process(server.pid).exe() == str(find_binaries().etcd)
    assert server.version.count(".") == 2


def test_it_listens_on_loopback_only(server: EtcdServer) -> None:
    listening = {
        connection.laddr
        for connection in psutil.Process(server.pid).net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {("127.0.0.1", server.client_port), ("127.0.0.1", server.peer_port)}


def test_a_ttl_of_one_second_is_honoured(server: EtcdServer) -> None:
    assert "TTL(1s)" in server.ctl("lease", "grant", "1")


def test_ctl_takes_input_and_tells_errors(server: EtcdServer) -> None:
    server.ctl("put", "ctl/a", input="from input")
    assert server.ctl("get", "ctl/a", "--print-value-only") == "from input\n"
    with pytest.raises(EtcdctlFailed, match=r"etcdctl lease revoke: exit status \d+.*not found"):
        server.ctl("lease", "revoke", "1234")


def test_ctl_process_runs_beside_the_test(server: EtcdServer) -> None:
    watch = server.ctl_process("watch", "beside/a")
    try:
        lines: list[str] = []
        reader = threading.Thread(target=lambda: lines.append(watch.stdout.readline()))  # type: ignore[union-attr]
        reader.start()

        def put() -> bool:
            server.ctl("put", "beside/a", "1")
            return bool(lines)

        eventually(put, message="the watch prints")
        assert lines == ["PUT\n"]
    finally:
        watch.kill()
        watch.communicate()


def test_flags_of_etcd_in_our_environment_are_kept_from_it(
    monkeypatch: pytest.MonkeyPatch, server: EtcdServer
) -> None:
    monkeypatch.setenv("ETCDCTL_USER", "nobody:wrong")
    server.ctl("get", "env")
    monkeypatch.setenv("ETCD_LISTEN_CLIENT_URLS", "http://127.0.0.1:1")
    with EtcdServer() as other:
        other.ctl("put", "a", "1")


def test_delete_prefix_deletes_that_prefix_only(server: EtcdServer) -> None:
    for key in ("del/a", "del/b", "dem"):
        server.ctl("put", key, "1")
    server.delete_prefix("del/")
    assert server.ctl("get", "--prefix", "de", "--keys-only").split() == ["dem"]


def test_life_cycle() -> None:
    with EtcdServer() as server:
        endpoint, first = server.endpoint, server.pid
        server.ctl("put", "x", "1")
        server.kill()
        assert not server.alive
        assert gone(first)
        server.kill()
        server.stop()
        with pytest.raises(RuntimeError, match="does not run"):
            server.pause()
        server.start()
        server.start()
        assert server.endpoint == endpoint
        assert server.pid != first
        assert revision(server) == 2
        with pytest.raises(RuntimeError, match="stop it before"):
            server.wipe()
        server.restart()
        assert revision(server) == 2
        server.restart(wipe=True)
        assert revision(server) == 1
        folder = server.data_dir
        assert folder.exists()
    assert not folder.exists()
    assert not server.alive
    server.close()


def test_pause_freezes_it_until_resume(server: EtcdServer) -> None:
    server.pause()
    try:
        assert server.paused
        assert server.alive
        assert psutil.Process(server.pid).status() == psutil.STATUS_STOPPED
        # The kernel still accepts: a frozen server is not a refused connection.
        socket.create_connection(("127.0.0.1", server.client_port), timeout=5).close()
        assert not server.healthy(timeout=0.2)
    finally:
        server.resume()
    assert not server.paused
    eventually(server.healthy, message="it answers again")


def test_a_paused_server_can_be_stopped() -> None:
    with EtcdServer() as server:
        server.pause()
        server.stop()
        assert not server.alive
        assert not server.paused


def test_data_dir_of_the_caller_is_kept(tmp_path: Path) -> None:
    for expected in ("", "x\n1\n"):
        with EtcdServer(data_dir=tmp_path / "data", log=tmp_path / "log" / "etcd.log") as server:
            assert server.ctl("get", "x") == expected
            server.ctl("put", "x", "1")
    assert (tmp_path / "data" / "member").is_dir()
    assert (tmp_path / "log" / "etcd.log").is_file()


def test_flags_reach_etcd() -> None:
    with EtcdServer(flags=["--max-txn-ops 2", "--auth-token-ttl=1"]) as server:
        three = "\n\nput a 1\nput b 1\nput c 1\n\n"
        with pytest.raises(EtcdctlFailed, match="too many operations"):
            server.ctl("txn", input=three)


def test_a_bad_flag_is_told_with_the_log() -> None:
    server = EtcdServer(flags=["--no-such-flag"])
    with pytest.raises(EtcdStartFailed, match=r"(?s)ended while it started.*no-such-flag"):
        server.start()
    server.close()


def test_no_answer_in_time_is_an_error_and_leaves_nothing() -> None:
    # A member of a cluster of two, whose other member never comes.
    server = EtcdServer(name="a")
    server.bootstrap = Bootstrap(f"a={server.peer_url},b=http://127.0.0.1:1")
    with pytest.raises(EtcdStartFailed, match=r"did not answer within 0\.5 s"):
        server.start(timeout=0.5)
    assert not server.alive
    server.close()


def test_a_port_in_use_is_an_error_even_if_etcd_answers_there(server: EtcdServer) -> None:
    other = EtcdServer(port=server.client_port)
    with pytest.raises(PortInUse, match=f"port {server.client_port} "):
        other.start()
    assert not other.alive
    other.close()


def test_a_free_port_that_is_taken_meanwhile_is_replaced() -> None:
    server = EtcdServer()
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", server.peer_port))
        squatter.listen()
        squatted = server.peer_port
        with server:
            assert server.peer_port != squatted
            server.ctl("put", "a", "1")


def test_auth_from_the_start() -> None:
    with EtcdServer(auth="s3cret") as server:
        assert (server.username, server.password) == ("root", "s3cret")
        assert "s3cret" not in repr(server)
        server.ctl("put", "a", "1")
        with pytest.raises(EtcdctlFailed, match="authentication failed") as caught:
            server.ctl("--user", "root:wrong", "get", "a")
        assert "s3cret" not in str(caught.value)
        server.delete_prefix("a")
        assert server.ctl("get", "a") == ""
        server.restart()
        assert server.username == "root"
        server.disable_auth()
        server.restart()
        assert server.username is None
        server.ctl("put", "a", "2")
        server.enable_auth()
        server.restart(wipe=True)
        assert server.username == "root"
        assert server.ctl("user", "list") == "root\n"


def test_auth_needs_a_password(server: EtcdServer) -> None:
    with pytest.raises(ValueError, match="password"):
        server.enable_auth()


@pytest.mark.parametrize("mutual", [False, True])
def test_tls(mutual: bool) -> None:
    with EtcdServer(tls="mtls" if mutual else True, auth="pw") as server:
        assert server.endpoint.startswith("https://")
        assert server.tls is not None
        assert server.tls.mutual is mutual
        server.ctl("put", "a", "1")
        server.delete_prefix("a")
        assert server.ctl("get", "a") == ""
        server.restart()
        assert server.status().leader != 0
        plain = ["--insecure-transport=false", f"--cacert={server.tls.ca}"]
        # Where it is refused, etcdctl takes all the time it has.
        done = _get(server, *plain, seconds=1 if mutual else 20)
        assert (done.returncode != 0) is mutual


def test_an_expired_certificate_still_starts_and_the_witness_still_works(tmp_path: Path) -> None:
    with EtcdServer(tls=TestCA(tmp_path).files(expired=True)) as server:
        assert server.tls is not None
        server.ctl("put", "a", "1")
        refused = _get(server, f"--cacert={server.tls.ca}", seconds=1)
        assert "certificate has expired" in refused.stderr


def _get(server: EtcdServer, *flags: str, seconds: int) -> subprocess.CompletedProcess[str]:
    binary = find_binaries().etcdctl
    limits = [f"--dial-timeout={seconds}s", f"--command-timeout={seconds}s"]
    command = [str(binary), f"--endpoints={server.endpoint}", *limits, *flags]
    env = {**os.environ, "ETCDCTL_API": "3", "ETCDCTL_USER": "root:pw"}
    if server.username is None:
        del env["ETCDCTL_USER"]
    return subprocess.run(
        [*command, "get", "a"], env=env, capture_output=True, text=True, timeout=30, check=False
    )


_OWNER = """
import sys, threading, time
from etcd_core.testing import EtcdServer
server = EtcdServer()
# Started by a thread that ends: the server must belong to the process.
thread = threading.Thread(target=server.start)
thread.start()
thread.join()
server.ctl("put", "a", "1")
print(server.pid, server.data_dir.parent, flush=True)
if sys.argv[1] == "pause":
    server.pause()
if sys.argv[1] != "exit":
    time.sleep(600)
"""


@pytest.mark.parametrize("end", ["kill", "pause", "exit"])
def test_it_ends_with_the_process_that_started_it(end: str) -> None:
    command = [sys.executable, "-c", _OWNER, end]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        try:
            assert owner.stdout is not None
            pid, root = owner.stdout.readline().split()
            if end != "exit":
                assert not gone(int(pid))
                owner.send_signal(signal.SIGKILL)
            owner.wait(60)
            eventually(lambda: gone(int(pid)), timeout=30, message="etcd is gone")
            eventually(lambda: not Path(root).exists(), timeout=30, message="its data is gone")
        finally:
            owner.kill()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_uses_it_but_does_not_control_it(server: EtcdServer) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            server.close()
            server.ctl("put", "forked", "1")
            try:
                server.kill()
            except RuntimeError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert server.alive
    assert server.ctl("get", "forked", "--print-value-only") == "1\n"


def test_cluster_agrees_on_one_leader(cluster: EtcdCluster) -> None:
    leader, followers = cluster.leader(), cluster.followers()
    assert len(cluster.endpoints) == 3
    assert {leader, *followers} == set(cluster.members)
    leader.ctl("put", "c/a", "1")
    assert all(member.ctl("get", "c/a", "--print-value-only") == "1\n" for member in followers)


def test_cluster_elects_another_leader(cluster: EtcdCluster) -> None:
    old = cluster.leader()
    old.pause()
    second = cluster.leader()
    assert second is not old
    old.resume()
    cluster.wait_healthy()
    second = cluster.leader()
    second.kill()
    assert cluster.leader() is not second
    cluster.wait_healthy()
    second.start()
    cluster.wait_healthy()
    assert len(cluster.followers()) == 2


def test_cluster_without_a_majority_has_no_leader(cluster: EtcdCluster) -> None:
    dead = cluster.followers()
    for member in dead:
        member.kill()
    with pytest.raises(AssertionError, match="a leader that a majority agrees on"):
        cluster.leader(timeout=0.1)
    with pytest.raises(EtcdStartFailed, match="agreement"):
        cluster.wait_healthy(timeout=0.1)
    cluster.start()
    assert len(cluster.followers()) == 2


def test_cluster_members_come_and_go(cluster: EtcdCluster) -> None:
    cluster.leader().ctl("put", "m/a", "1")
    fourth = cluster.add_member()
    cluster.wait_healthy()
    assert fourth.ctl("get", "m/a", "--print-value-only") == "1\n"
    fourth.kill()
    cluster.remove_member(fourth)
    learner = cluster.add_member(learner=True)
    assert "true" in cluster.leader().ctl("member", "list").partition(learner.name)[2]
    cluster.remove_member(learner)
    assert not learner.alive
    assert len(cluster.leader().ctl("member", "list").splitlines()) == 3
    cluster.wait_healthy()


def test_cluster_with_tls_and_auth() -> None:
    with EtcdCluster(2, tls=True, auth="pw") as cluster:
        assert {member.username for member in cluster.members} == {"root"}
        assert len({member.tls for member in cluster.members}) == 1
        cluster.members[0].ctl("put", "a", "1")
        assert cluster.members[1].ctl("get", "a", "--print-value-only") == "1\n"
        cluster.stop()
        cluster.start()
        cluster.members[1].ctl("get", "a")


def _call(channel: grpc.Channel, name: str, request: bytes) -> bytes:
    # No message classes here: the bytes of an empty request and of a key are simple enough.
    call = channel.unary_unary(
        f"/etcdserverpb.{name}", request_serializer=bytes, response_deserializer=bytes
    )
    answer: bytes = call(request, timeout=10)
    return answer


def test_counter_counts_requests_and_messages(server: EtcdServer) -> None:
    counter = RpcCounter()
    with grpc.insecure_channel(f"127.0.0.1:{server.client_port}") as plain:
        channel = grpc.intercept_channel(plain, counter)
        get_a, grant_lease = b"\x0a\x01a", b"\x08\x05"
        with counter.expect(Range=2, LeaseGrant=1):
            _call(channel, "KV/Range", get_a)
            _call(channel, "KV/Range", get_a)
            _call(channel, "Lease/LeaseGrant", grant_lease)
        with counter.expect(Snapshot=1):
            snapshot = channel.unary_stream(
                "/etcdserverpb.Maintenance/Snapshot",
                request_serializer=bytes,
                response_deserializer=bytes,
            )
            assert list(snapshot(b"", timeout=10))
        with counter.expect(LeaseKeepAlive=3):
            keep_alive = channel.stream_stream(
                "/etcdserverpb.Lease/LeaseKeepAlive",
                request_serializer=bytes,
                response_deserializer=bytes,
            )
            assert len(list(keep_alive(iter([b"\x08\x01"] * 3), timeout=10))) == 3
    assert counter.streams == {"LeaseKeepAlive": 1}
    assert counter.counts == {"Range": 2, "LeaseGrant": 1, "Snapshot": 1, "LeaseKeepAlive": 3}
    assert counter.total == 7
    counter.reset()
    assert (counter.counts, counter.streams, counter.total) == ({}, {}, 0)


def test_counter_names_every_difference(server: EtcdServer) -> None:
    counter = RpcCounter()
    with grpc.insecure_channel(f"127.0.0.1:{server.client_port}") as plain:
        channel = grpc.intercept_channel(plain, counter)
        text = "requests differ: Range: expected 0, sent 1; Txn: expected 2, sent 0"
        with pytest.raises(AssertionError, match=text), counter.expect(Txn=2):
            _call(channel, "KV/Range", b"\x0a\x01a")
    with pytest.raises(KeyError), counter.expect(Txn=2):
        raise KeyError("the block's own error wins")


def _pytest(folder: Path, source: str, *, installed: bool = False, **env: str) -> str:
    (folder / "test_it.py").write_text(source)
    clean = {name: value for name, value in os.environ.items() if name != "CI"}
    args: list[str] = []
    if not installed:
        # Quicker: none of the other plugins of this environment is loaded.
        clean["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        args = ["-p", "etcd_core.testing.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rs", "-q", *args, str(folder)],
        cwd=folder,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout


_ONE_TEST = "def test_one(etcd_server):\n    etcd_server.ctl('put', 'a', '1')\n"


_TESTS = """
seen = []

def test_one(etcd_server):
    etcd_server.ctl("put", "a", "1")

def test_two(etcd_server):
    assert etcd_server.ctl("get", "a")

def test_three(etcd_client):
    etcd_client.raw.put(f"{etcd_client.prefix}/a", "1")
    seen.append(etcd_client)

def test_four(etcd_client, etcd_server):
    assert etcd_client.prefix != seen[0].prefix
    assert not etcd_server.ctl("get", "--prefix", seen[0].prefix)
    etcd_client.close()
"""


def test_plugin_gives_one_server_to_all_tests_and_each_a_client(tmp_path: Path) -> None:
    """Each client has a prefix of its own."""
    assert "4 passed" in _pytest(tmp_path, _TESTS, installed=True)


def test_plugin_skips_where_there_is_no_etcd(tmp_path: Path) -> None:
    output = _pytest(tmp_path, _ONE_TEST, ETCD_BIN="/nowhere/etcd")
    assert "1 skipped" in output
    assert "ETCD_BIN is '/nowhere/etcd'" in output


def test_plugin_fails_in_ci_where_there_is_no_etcd(tmp_path: Path) -> None:
    assert "1 error" in _pytest(tmp_path, _ONE_TEST, ETCD_BIN="/nowhere/etcd", CI="true")
