"""Options for the long fault tests: how long, and from which seed."""

from __future__ import annotations

import os

import pytest

_LONG = bool(os.environ.get("CI"))


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("etcd faults")
    group.addoption("--nemesis-seconds", type=float, help="how long the nemesis acts")
    group.addoption("--nemesis-seed", type=int, help="what the nemesis draws from")
    group.addoption("--soak", type=float, help="seconds of the soak")


def _chosen(config: pytest.Config, option: str, default: float) -> float:
    # Not registered where pytest was started on another folder.
    value = config.getoption(option, None)
    return default if value is None else float(value)


@pytest.fixture
def nemesis_seconds(request: pytest.FixtureRequest) -> float:
    """How long to act: 60 s in CI, 25 s elsewhere, or ``--nemesis-seconds``."""
    return _chosen(request.config, "--nemesis-seconds", 60.0 if _LONG else 25.0)


@pytest.fixture
def nemesis_seed(request: pytest.FixtureRequest) -> int:
    """``--nemesis-seed``, else a new one each time."""
    chosen = request.config.getoption("--nemesis-seed", None)
    return int.from_bytes(os.urandom(4), "big") if chosen is None else int(chosen)


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    """How long to soak: 60 s in CI, 25 s elsewhere, or ``--soak``."""
    return _chosen(request.config, "--soak", 60.0 if _LONG else 25.0)
