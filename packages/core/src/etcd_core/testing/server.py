"""One real etcd process on 127.0.0.1, with the faults that tests want.

Methods block in the calling thread and may be called from any thread; one at a time runs. No
thread is started. Only the process that made the server controls it; a forked child may use it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

from ..keys import prefix_range_end
from ._etcdctl import Etcdctl, EtcdctlFailed, clean_environment
from ._http import HttpApi, Status
from ._ports import free_ports, in_use
from ._process import Process
from .binary import find_binaries
from .tls import TestCA, TlsFiles

__all__ = ["Bootstrap", "EtcdServer", "EtcdStartFailed", "EtcdctlFailed", "PortInUse"]

_FAST = ("--heartbeat-interval=50", "--election-timeout=500", "--unsafe-no-fsync")
_SHM = Path("/dev/shm")
# etcd reserves two WAL files of 64 MB each; containers often have a /dev/shm of 64 MB.
_SHM_ROOM = 1 << 30
_IN_USE = "address already in use"


class EtcdStartFailed(RuntimeError):
    """etcd ended while it started, or did not answer in time; the text ends with its log."""


class PortInUse(EtcdStartFailed):
    """etcd could not listen on its port."""


@dataclass(frozen=True)
class Bootstrap:
    """How a server that starts with an empty folder joins others.

    Attributes:
        cluster: The members as ``name=peer_url,...``, this one included.
        state: ``new`` for a cluster that starts now, ``existing`` for one that runs.
    """

    cluster: str
    state: Literal["new", "existing"] = "new"


class EtcdServer:
    """A real etcd, started and broken on request.

    The process ends with the process that started it, even if that is killed. Without
    ``data_dir`` the data lives in memory where there is room (about 130 MB each), else in a
    temporary folder, and is removed by :meth:`close`.

    Args:
        data_dir: Folder for the data, kept after :meth:`close`; None makes a temporary one.
        port: Client port; None picks a free one. Ports stay the same over restarts.
        tls: True for TLS, ``"mtls"`` to ask clients for a certificate too, or your own files
            (see :class:`TestCA`).
        auth: Password for the user ``root``; if given, authentication is enabled at the first
            start, and again after a wipe.
        flags: More flags for etcd, such as ``"--auth-token-ttl=1"``; the last one wins.
        fast: Short election timeout, so that a TTL of 1 s is honoured and a start takes 0.1 s,
            and no fsync. False runs etcd with its own defaults.
        name: Member name.
        log: File for the output of etcd; None puts it beside the temporary data.
        bootstrap: How it joins other members; :class:`EtcdCluster` fills this in.

    Raises:
        EtcdNotFound: There is no etcd binary.

    Example:
        >>> with EtcdServer() as server:
        ...     server.ctl("put", "greeting", "hello")
        ...     server.kill()
        ...     server.start()
        ...     assert "hello" in server.ctl("get", "greeting")
    """

    def __init__(
        self,
        *,
        data_dir: str | Path | None = None,
        port: int | None = None,
        tls: bool | Literal["mtls"] | TlsFiles | None = None,
        auth: str | None = None,
        flags: Sequence[str] = (),
        fast: bool = True,
        name: str = "default",
        log: str | Path | None = None,
        bootstrap: Bootstrap | None = None,
    ) -> None:
        self._binaries = find_binaries()
        self._owner = os.getpid()
        self._root = _temporary_root()
        self._finalizer = weakref.finalize(self, _remove, self._root, self._owner)
        self.data_dir = Path(data_dir).absolute() if data_dir else self._root / "data"
        self.log = Path(log).absolute() if log else self._root / "etcd.log"
        self.name = name
        self.tls = _tls_files(tls, self._root)
        self._given_port = port
        self._ports_settled = False
        self._choose_ports()
        self._auth = auth
        self._auth_on = auth is not None and self._has_data()
        self._auth_due = False
        self._flags = _split_flags(flags)
        self._fast = fast
        self.bootstrap = bootstrap
        self._process: Process | None = None
        self._paused = False
        self._log_start = 0
        self._lock = threading.RLock()

    @property
    def endpoint(self) -> str:
        """The client URL. Without ``port`` it is final once the server has started."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.client_port}"

    @property
    def peer_url(self) -> str:
        """The URL for other members."""
        return f"http://127.0.0.1:{self.peer_port}"

    @property
    def alive(self) -> bool:
        """Whether the process runs; a paused one does."""
        return self._process is not None and self._process.alive

    @property
    def paused(self) -> bool:
        """Whether :meth:`pause` is in force."""
        return self._paused and self.alive

    @property
    def pid(self) -> int:
        """The process id of etcd.

        Raises:
            RuntimeError: It does not run.
        """
        return self._running().pid

    @property
    def version(self) -> str:
        """The version of the binary, such as ``3.5.1``."""
        return self._binaries.version

    @property
    def username(self) -> str | None:
        """``root`` while authentication is on, else None."""
        return "root" if self._auth_on else None

    @property
    def password(self) -> str | None:
        """The password of :attr:`username`."""
        return self._auth if self._auth_on else None

    def __enter__(self) -> EtcdServer:
        """Start the server."""
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the server."""
        self.close()

    def __repr__(self) -> str:
        """Show the name and the endpoint; no password."""
        return f"<EtcdServer {self.name} {self.endpoint}>"

    def start(self, *, wait: bool = True, timeout: float = 30.0) -> None:
        """Start etcd; does nothing if it runs.

        Args:
            wait: Return only when it answers. A member whose cluster has no majority cannot
                answer: start it with False, then use :meth:`wait_ready`.
            timeout: Seconds to wait for the answer.

        Raises:
            PortInUse: The given port, or the one it had before a restart, is taken.
            EtcdStartFailed: It ended, or did not answer in time.
        """
        with self._lock:
            while not self.alive:
                try:
                    self._launch()
                    if not wait:
                        break
                    self.wait_ready(timeout)
                except PortInUse:
                    # Other members know the ports of a member by heart.
                    if self._ports_settled or self.bootstrap is not None:
                        raise
                    self._choose_ports()
            self._ports_settled = True
            if wait and self._auth_due:
                self.enable_auth()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until a linearizable read succeeds: the member is up and has a leader.

        Raises:
            EtcdStartFailed: It ended, or did not answer in time. It is dead then.
        """
        deadline = time.monotonic() + timeout
        while self.alive:
            left = deadline - time.monotonic()
            if self.healthy(min(2.0, max(left, 0.1))):
                return
            if left < 0:
                self.kill()
                tail = _tail(self._log_text())
                raise EtcdStartFailed(f"{self!r} did not answer within {timeout:g} s{tail}")
            time.sleep(0.01)
        raise self._start_failure()

    def healthy(self, timeout: float = 2.0) -> bool:
        """Try one linearizable read; alarms such as NOSPACE do not count.

        Args:
            timeout: Seconds to wait for the answer.
        """
        try:
            return self._http().healthy(timeout)
        except (OSError, ValueError):
            return False

    def stop(self, timeout: float = 15.0) -> None:
        """End etcd with SIGTERM, with SIGKILL after ``timeout`` seconds; the data stays.

        Does nothing if it does not run.
        """
        with self._lock:
            if self._process is not None and self._process.alive:
                self._process.terminate(timeout)
            self._paused = False

    def kill(self) -> None:
        """End etcd with SIGKILL, and wait until it is gone; the data stays."""
        with self._lock:
            if self._process is not None and self._process.alive:
                self._process.kill()
            self._paused = False

    def pause(self) -> None:
        """Freeze etcd with SIGSTOP: connections stay open and nothing answers.

        Raises:
            RuntimeError: It does not run.
        """
        with self._lock:
            self._running().pause()
            self._paused = True

    def resume(self) -> None:
        """End :meth:`pause`.

        Raises:
            RuntimeError: It does not run.
        """
        with self._lock:
            self._running().resume()
            self._paused = False

    def wipe(self) -> None:
        """Remove all data: the next start begins with an empty store at revision 1.

        Raises:
            RuntimeError: It runs.
        """
        with self._lock:
            if self.alive:
                raise RuntimeError(f"{self!r} runs: stop it before its data is wiped")
            shutil.rmtree(self.data_dir, ignore_errors=True)

    def restart(self, *, wipe: bool = False, wait: bool = True) -> None:
        """Stop, and start again on the same ports.

        Args:
            wipe: Remove the data in between.
            wait: As for :meth:`start`.
        """
        with self._lock:
            self.stop()
            if wipe:
                self.wipe()
            self.start(wait=wait)

    def close(self) -> None:
        """Stop etcd and remove what is temporary. Idempotent; in a forked child a no-op."""
        if os.getpid() != self._owner:
            return
        self.stop(timeout=5.0)
        self._finalizer()

    def ctl(self, *args: str, input: str | None = None, timeout: float = 10.0) -> str:
        """Run etcdctl against this server, with its TLS files and credentials.

        Usable in a forked child too.

        Args:
            args: The command, such as ``"get", "--prefix", "jobs/"``. A ``--user`` or
                ``--endpoints`` of your own replaces that of the server.
            input: Text for its standard input.
            timeout: Seconds until etcdctl gives up.

        Returns:
            What it printed on standard output.

        Raises:
            EtcdctlFailed: It ended with an error.
            EtcdNotFound: There is no etcdctl.
        """
        return self._etcdctl().run(args, input, timeout)

    def ctl_process(self, *args: str, timeout: float = 10.0) -> subprocess.Popen[str]:
        """Start etcdctl without waiting, for commands that stay: ``lock``, ``elect``, ``watch``.

        The caller ends it. Its three streams are text pipes.

        Args:
            args: As for :meth:`ctl`.
            timeout: Seconds until etcdctl gives up on a request.
        """
        return self._etcdctl().popen(args, timeout)

    def status(self, timeout: float = 2.0) -> Status:
        """Ask this member for its id, the leader it sees (0: none) and the raft term.

        Raises:
            OSError: It did not answer within ``timeout`` seconds.
        """
        return self._http().status(timeout)

    def delete_prefix(self, prefix: str) -> None:
        """Delete every key that starts with ``prefix``, which must not be empty.

        Raises:
            OSError: It did not answer within 5 s.
            EtcdctlFailed: With authentication on: etcd refused, or did not answer.
        """
        if self._auth_on:
            # The gateway cannot carry a user beside a client certificate.
            self.ctl("del", "--prefix", prefix)
            return
        key = prefix.encode()
        self._http().delete_range(key, prefix_range_end(key), timeout=5.0)

    def enable_auth(self, password: str | None = None) -> None:
        """Make the user and the role ``root``, and enable authentication.

        Args:
            password: For the user ``root``; None is the one given as ``auth``.

        Raises:
            ValueError: There is no password.
            EtcdctlFailed: etcd refused.
        """
        with self._lock:
            self._auth = password or self._auth
            if self._auth is None:
                raise ValueError("enable_auth needs a password")
            self._make_root(self._auth)
            self.ctl("auth", "enable")
            self._auth_on, self._auth_due = True, False

    def disable_auth(self) -> None:
        """Disable authentication; the users stay.

        Raises:
            EtcdctlFailed: etcd refused.
        """
        with self._lock:
            self.ctl("auth", "disable")
            self._auth_on = False

    def adopt_auth(self, password: str) -> None:
        """Use ``root`` and ``password`` from now on: authentication was enabled elsewhere."""
        self._auth, self._auth_on, self._auth_due = password, True, False

    def _make_root(self, password: str) -> None:
        try:
            self.ctl("user", "add", "root", "--interactive=false", input=f"{password}\n")
            self.ctl("role", "add", "root")
        except EtcdctlFailed as exc:
            # Enabled, disabled, and enabled again: the user is there already.
            if "already exists" not in exc.output:
                raise
        self.ctl("user", "grant-role", "root", "root")

    def _etcdctl(self) -> Etcdctl:
        binary = self._binaries.etcdctl
        return Etcdctl(binary, self.endpoint, self.tls, self.username, self.password)

    def _http(self) -> HttpApi:
        return HttpApi(self.client_port, self.tls)

    def _running(self) -> Process:
        if self._process is None or not self._process.alive:
            raise RuntimeError(f"{self!r} does not run")
        return self._process

    def _choose_ports(self) -> None:
        first, second = free_ports(2)
        self.client_port = self._given_port or first
        self.peer_port = second

    def _check_ports(self) -> None:
        """Refuse to start beside another server on our port: it would answer in our place."""
        taken = [port for port in (self.client_port, self.peer_port) if in_use(port)]
        if taken:
            # Where the port was asked for, another peer port would not help.
            self._ports_settled = self._ports_settled or self._given_port in taken
            raise PortInUse(f"{self!r}: port {taken[0]} of 127.0.0.1 is in use")

    def _has_data(self) -> bool:
        return (self.data_dir / "member").exists()

    def _launch(self) -> None:
        self._check_ports()
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if not self._has_data():
            self._auth_on, self._auth_due = False, self._auth is not None
        self._log_start = self.log.stat().st_size if self.log.exists() else 0
        self._paused = False
        self._process = Process(
            self._command(), env=clean_environment(), log=self.log, trash=self._root
        )

    def _command(self) -> list[str]:
        bootstrap = self.bootstrap or Bootstrap(f"{self.name}={self.peer_url}")
        return [
            os.fspath(self._binaries.etcd),
            f"--name={self.name}",
            f"--data-dir={self.data_dir}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={bootstrap.cluster}",
            f"--initial-cluster-state={bootstrap.state}",
            "--logger=zap",
            "--log-level=warn",
            *(_FAST if self._fast else ()),
            *(_server_tls_flags(self.tls) if self.tls else ()),
            *self._flags,
        ]

    def _start_failure(self) -> EtcdStartFailed:
        """Say why etcd ended while it started."""
        text = self._log_text()
        tail = _tail(text)
        if _IN_USE not in text:
            return EtcdStartFailed(f"{self!r} ended while it started{tail}")
        if self._given_port is not None and f":{self._given_port}: " in text:
            self._ports_settled = True  # another peer port would not help
        return PortInUse(f"{self!r}: a port is in use{tail}")

    def _log_text(self) -> str:
        with self.log.open(errors="replace") as log:
            log.seek(self._log_start)
            return log.read()


def _temporary_root() -> Path:
    usable = _SHM.is_dir() and os.access(_SHM, os.W_OK) and shutil.disk_usage(_SHM).free > _SHM_ROOM
    return Path(tempfile.mkdtemp(prefix="etcd-test-", dir=_SHM if usable else None))


def _remove(root: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(root, ignore_errors=True)


def _tls_files(tls: bool | Literal["mtls"] | TlsFiles | None, root: Path) -> TlsFiles | None:
    if isinstance(tls, TlsFiles):
        return tls
    return TestCA(root / "tls").files(mutual=tls == "mtls") if tls else None


def _server_tls_flags(tls: TlsFiles) -> list[str]:
    flags = [f"--cert-file={tls.server.cert}", f"--key-file={tls.server.key}"]
    trust = [f"--trusted-ca-file={tls.ca}", "--client-cert-auth"]
    return [*flags, *trust] if tls.mutual else flags


def _split_flags(flags: Sequence[str]) -> list[str]:
    """Take ``"--name value"`` for two arguments; a value may hold spaces."""
    return [part for flag in flags for part in (flag.split(" ", 1) if flag[:1] == "-" else [flag])]


def _tail(text: str) -> str:
    lines = text.strip().splitlines()[-20:]
    return "\n".join([", its log ends:", *lines]) if lines else ", its log is empty"
