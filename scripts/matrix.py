"""The hosting tests on every Python that is installed here, each in an environment of its own.

    uv run python scripts/matrix.py [--pythons 3.10,3.12] [pytest arguments]

Without arguments for pytest it runs ``--full tests/integration/hosting``. The environments are kept
in ``$XDG_CACHE_HOME/etcd-python`` and brought up to date at every run. A Python that is not
installed is said and left out.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

WHOLE = ["--full", "tests/integration/hosting"]
ROOT = Path(__file__).resolve().parents[1]
PYTHONS = "3.10,3.11,3.12,3.13,3.14"
PACKAGES = ("packages/core[cli,server]", "packages/dynaconf_etcd", "packages/django_etcd",
            "packages/flask_etcd", "examples")  # fmt: skip


def main(argv: list[str]) -> int:
    """Run the tests on each version; return 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pythons", default=PYTHONS, help=f"default {PYTHONS}")
    options, pytest_arguments = parser.parse_known_args(argv)
    results = [
        (version, run(version, pytest_arguments or WHOLE)) for version in options.pythons.split(",")
    ]
    print("\n== the matrix")
    for version, result in results:
        print(f"{version:<6} {result}")
    return int(any(result.startswith("FAILED") for _, result in results))


def run(version: str, arguments: list[str]) -> str:
    """Run the tests on one version and say how it went."""
    found = interpreter(version)
    if found is None:
        return "left out: not installed"
    python = environment(version, found)
    began = time.monotonic()
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    code = subprocess.run(command, cwd=ROOT).returncode
    result = "passed" if code == 0 else f"FAILED (exit code {code})"
    return f"{result} in {time.monotonic() - began:.0f} s on {found}"


def interpreter(version: str) -> str | None:
    """Return the path of an installed Python; nothing is downloaded."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for path in sorted(pyenv.glob(f"{version}.*/bin/python")):
        return str(path)
    done = subprocess.run(
        ["uv", "python", "find", "--no-python-downloads", "--system", version],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() if done.returncode == 0 else None


def environment(version: str, python: str) -> str:
    """Make the environment for a version, and return its interpreter."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "etcd-python"
    place = cache / f"matrix-{version}"
    made = str(place / "bin" / "python")
    if not Path(made).exists():
        uv("venv", "--python", python, str(place))
    editable = [word for each in PACKAGES for word in ("--editable", each)]
    uv("pip", "install", "--python", made, "--group", "test", *editable)
    return made


def uv(*arguments: str) -> None:
    """Run uv; its failure ends the program, and it has printed why."""
    if subprocess.run(["uv", "--quiet", *arguments], cwd=ROOT).returncode != 0:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
