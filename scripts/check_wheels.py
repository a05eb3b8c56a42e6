"""Each wheel alone in a clean environment: all its modules import with what it declares.

    uv run --no-project python scripts/check_wheels.py DIST

DIST holds the four wheels. A sibling is installed only beside a wheel that declares it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

PACKAGES = ("etcd_core", "dynaconf_etcd", "django_etcd", "flask_etcd")

# Missing is no error for what an extra brings, or for the package that a module is there for.
IMPORT_ALL = """
import importlib, pkgutil, sys
OPTIONAL = {"click", "rich", "pytest", "cryptography"}
package = importlib.import_module(sys.argv[1])
for name in package.__all__:
    getattr(package, name)
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if module.name.endswith("__main__") or ".wire.proto" in module.name:
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as exc:
        missing = (exc.name or "").partition(".")[0]
        # prometheus_client is what etcd_core.contrib.prometheus is there for.
        contrib = module.name.rpartition("etcd_core.contrib.")[2]
        if missing not in OPTIONAL and not missing.startswith(contrib):
            raise
        print(f"  {module.name} is left out: it needs {exc.name}")
"""

PROBES = {
    "etcd_core": """
import etcd_core
with etcd_core.Client(endpoints=["127.0.0.1:1"]) as client:
    client.config_source().name, client.raw
import etcd3
etcd3.etcdrpc.PutRequest
""",
    "dynaconf_etcd": "import dynaconf_etcd.loader",
    "django_etcd": """
import django
from django.conf import settings
apps = [f"django.contrib.{name}" for name in ("admin", "auth", "contenttypes", "messages")]
settings.configure(INSTALLED_APPS=[*apps, "django_etcd"], ETCD={"ENDPOINTS": ["127.0.0.1:1"]})
django.setup()
import django_etcd
django_etcd.client()
import etcd_core.cli
etcd_core.cli.build_group(django_etcd._state.current_host)
""",
    "flask_etcd": """
import flask, flask_etcd
app = flask.Flask("probe")
app.config["ETCD_ENDPOINTS"] = ["127.0.0.1:1"]
flask_etcd.Etcd(app).client
assert "etcd" in app.cli.commands
""",
}


def main(folder: Path) -> None:
    """Check the wheels; ends with an error at the first that fails."""
    for package in PACKAGES:
        with tempfile.TemporaryDirectory() as scratch:
            check(package, folder, Path(scratch))


def check(package: str, folder: Path, scratch: Path) -> None:
    """Install one wheel into a new environment and use it there."""
    wheel = find(package, folder)
    required = requirements(wheel)
    siblings = [
        find(other, folder)
        for other in PACKAGES
        if other != package and other.replace("_", "-") in required
    ]
    python = scratch / "env" / "bin" / "python"
    run("uv", "--quiet", "venv", "--python", sys.executable, scratch / "env")
    run("uv", "--quiet", "pip", "install", "--python", python, "--no-sources", wheel, *siblings)
    print(f"{wheel.name}: {', '.join(sorted(required))}", flush=True)
    code = PROBES[package] + IMPORT_ALL
    run(python, "-I", "-W", "error", "-c", code, package)


def run(*command: str | Path) -> None:
    """Run a program; its failure is ours, and it has printed why."""
    done = subprocess.run(command)
    if done.returncode != 0:
        sys.exit(1)


def find(package: str, folder: Path) -> Path:
    """Return the one wheel of a package."""
    (wheel,) = folder.glob(f"{package}-*.whl")
    return wheel.absolute()


def requirements(wheel: Path) -> set[str]:
    """Return the names of what a wheel needs without any extra."""
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        fields = HeaderParser().parsestr(archive.read(metadata).decode())
    lines = fields.get_all("Requires-Dist") or []
    needed = [line for line in lines if "extra ==" not in line]
    return {re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() for line in needed}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
