"""Options for the long fault tests: how long, and from which seed."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("etcd faults")
    group.addoption("--nemesis-seconds", type=float, help="how long the nemesis acts")
    group.addoption("--nemesis-seed", type=int, help="what the nemesis draws from")
    group.addoption("--soak", type=float, help="seconds of the soak")


def _seconds(config: pytest.Config, option: str) -> float:
    # Not registered where pytest was started on another folder.
    value = config.getoption(option, None)
    if value is not None:
        return float(value)
    return 60.0 if config.getoption("--full") else 15.0


@pytest.fixture
def nemesis_seconds(request: pytest.FixtureRequest) -> float:
    """How long to act: 60 s with ``--full``, 15 s without, or ``--nemesis-seconds``."""
    return _seconds(request.config, "--nemesis-seconds")


@pytest.fixture
def nemesis_seed(request: pytest.FixtureRequest) -> int:
    """``--nemesis-seed``, else a new one each time."""
    chosen = request.config.getoption("--nemesis-seed", None)
    return int.from_bytes(os.urandom(4), "big") if chosen is None else int(chosen)


@pytest.fixture
def soak_seconds(request: pytest.FixtureRequest) -> float:
    """How long to soak: 60 s with ``--full``, 15 s without, or ``--soak``."""
    return _seconds(request.config, "--soak")
