"""What the four packages offer, what importing them costs, and who may import whom."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TypeGuard

import pytest

import etcd_core

CORE = Path(__file__).parents[1] / "packages" / "core" / "src" / "etcd_core"

EXPORTS = {
    "etcd_core": {
        "AlreadyRegistered",
        "CampaignTimeout",
        "Candidate",
        "Client",
        "ClosedError",
        "ClusterReset",
        "Compacted",
        "Compare",
        "Config",
        "ConfigNotFound",
        "ConfigSnapshot",
        "ConfigSource",
        "Conflict",
        "ConnectionFailed",
        "DecodeError",
        "Descriptor",
        "Election",
        "EtcdError",
        "InvalidArgument",
        "InvalidConfig",
        "LeaderWatch",
        "LeaseLost",
        "Lock",
        "LockTimeout",
        "NoInstances",
        "NoSpace",
        "NotLeader",
        "OutcomeUnknown",
        "PermissionDenied",
        "Registration",
        "RequestTimeout",
        "RequestTooLarge",
        "ServerError",
        "ServiceEvent",
        "ServiceEventType",
        "ServiceView",
        "Subscription",
        "Term",
        "Timeout",
        "Tls",
        "UNSET",
        "Unauthenticated",
        "checkpoint",
        "connect",
        "current_term",
        "exclusive",
        "leader_only",
        "set_default_client",
        "shared_client",
        "signals",
    },
    "etcd_core.hosting": {"HostOptions", "ServiceHost", "when_running"},
    "etcd_core.testing": {
        "Binaries",
        "Bootstrap",
        "EtcdCluster",
        "EtcdNotFound",
        "EtcdServer",
        "EtcdStartFailed",
        "EtcdctlFailed",
        "FaultProxy",
        "KeyPair",
        "PortInUse",
        "RpcCounter",
        "TestCA",
        "TlsFiles",
        "eventually",
        "fake_leader",
        "find_binaries",
        "no_leader",
    },
    "dynaconf_etcd": {
        "Explanation",
        "Provider",
        "Rejection",
        "SettingChange",
        "Status",
        "close",
        "config_changed",
        "config_rejected",
        "delete",
        "explain",
        "on_change",
        "snapshot",
        "status",
        "write",
    },
    "django_etcd": {"client", "exclusive", "leader_only", "ready", "registration", "signals"},
    "flask_etcd": {"Etcd", "signals"},
}
DISTRIBUTIONS = ["etcd_core", "dynaconf_etcd", "django_etcd", "flask_etcd"]
HEAVY = {"grpc", "google.protobuf", "yaml", "etcd3"}
FRAMEWORKS = {
    "apscheduler",
    "celery",
    "django",
    "dynaconf",
    "flask",
    "gunicorn",
    "uvicorn",
    "werkzeug",
}
# It does so only where celery has been imported already.
HOOKS_INTO_CELERY = CORE / "hosting" / "running.py"

# A module imports only from rows above its own. Type annotations do not count.
FLOORS = [
    {"events"},
    {"errors", "forking", "latch", "signals"},
    {"brokers", "keys", "dispatch", "masking", "resolver", "taskrun", "telemetry", "vitals"},
    {"leaves", "config", "presence", "taskguard"},
    {"wire"},
    {"watch", "lease"},
    {"engine"},
    {"wire.raw", "mirror", "ownership", "descriptor"},
    {"registry", "guarded", "snapshot", "contender"},
    {"source", "discovery", "lock", "observe", "sharing"},
    {"election"},
    {"candidate"},
    {"client", "tasks"},
    {"hosting", "inventory", "contrib"},
    {"cli", "statuspage", "testing"},
    {"__main__"},
]
FLOOR_OF = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}
# etcd3's client on our channel is an application of the hub of watches, for all that it is in wire.
RAW = ("raw", "raw_channel", "raw_watch")


@pytest.mark.parametrize("name", EXPORTS)
def test_exports(name: str) -> None:
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert set(module.__all__) == EXPORTS[name]
    for export in module.__all__:
        assert getattr(module, export) is not None


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_ships_its_types(name: str) -> None:
    assert files(name).joinpath("py.typed").is_file()


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        etcd_core.no_such_name  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", ["etcd_core", "flask_etcd", "django_etcd", "etcd_core.hosting"])
def test_importing_is_cheap(name: str) -> None:
    code = f"import sys, {name}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == []


@dataclass(frozen=True)
class Import:
    where: str
    importer: str
    imported: str


def test_every_module_has_a_floor() -> None:
    assert {module_of(path) for path in sources()} - set(FLOOR_OF) == set()
    assert set(FLOOR_OF) - {module_of(path) for path in sources()} == set()


def test_modules_import_from_below_only() -> None:
    wrong = [
        f"{each.where}: {each.importer} imports {each.imported}"
        for each in own_imports()
        if FLOOR_OF[each.imported] >= FLOOR_OF[each.importer]
    ]
    assert wrong == []


def test_core_imports_no_framework() -> None:
    wrong = [
        f"{path.relative_to(CORE)} imports {name}"
        for path in sources()
        if module_of(path) != "contrib" and path != HOOKS_INTO_CELERY
        for _, name in imported_names(path)
        if name.partition(".")[0] in FRAMEWORKS
    ]
    assert wrong == []


def sources() -> list[Path]:
    top = CORE / "__init__.py"
    return [path for path in sorted(CORE.rglob("*.py")) if path != top]


def module_of(path: Path) -> str:
    parts = path.relative_to(CORE).with_suffix("").parts
    return of_parts(parts)


def of_parts(parts: tuple[str, ...]) -> str:
    if parts[0] == "wire" and parts[1:2] and parts[1] in RAW:
        return "wire.raw"
    return parts[0]


def own_imports() -> Iterator[Import]:
    for path in sources():
        importer = module_of(path)
        for line, name in imported_names(path):
            root, _, rest = name.partition(".")
            if root != "etcd_core" or not rest:
                continue
            imported = of_parts(home_of(rest.split(".")))
            if {imported, importer} <= set(FLOOR_OF) and imported != importer:
                yield Import(f"{path.relative_to(CORE)}:{line}", importer, imported)


def home_of(parts: list[str]) -> tuple[str, ...]:
    home = etcd_core._HOME_OF.get(parts[0])
    return (home,) if home is not None else tuple(parts)


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Every name that is imported, absolute, as ``package.module.name``."""
    package = ("etcd_core", *path.relative_to(CORE).parent.parts)
    for node in imports_at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        else:
            base = package[: len(package) + 1 - node.level] if node.level else ()
            start = [*base, *filter(None, [node.module])]
            yield from ((node.lineno, ".".join([*start, alias.name])) for alias in node.names)


def imports_at_run_time(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif not is_for_types(child):
            yield from imports_at_run_time(child)
        else:
            for other in child.orelse:
                yield from imports_at_run_time(other)


def is_for_types(node: ast.AST) -> TypeGuard[ast.If]:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )
