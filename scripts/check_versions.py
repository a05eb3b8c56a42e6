"""One version for all four packages, in their metadata, in their modules and between siblings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VERSION = re.compile(r'^(?:version|__version__) = "([^"]+)"$', re.MULTILINE)
SIBLING = re.compile(r'"(?:etcd-core|dynaconf-etcd|django-etcd|flask-etcd)(?:\[.*\])?([^"]*)"')


def main() -> int:
    """Print what differs and return the exit status."""
    stated = [
        (path, version)
        for pattern in ("packages/*/pyproject.toml", "packages/*/src/*/__init__.py")
        for path in sorted(ROOT.glob(pattern))
        for version in VERSION.findall(path.read_text())
    ]
    versions = {version for _, version in stated}
    if len(versions) != 1:
        for path, version in stated:
            print(f"{path.relative_to(ROOT)}: {version}")
        return 1
    (version,) = versions
    wrong = [text for text in sibling_ranges() if text != expected_range(version)]
    for text in wrong:
        print(f"a sibling is required as {text!r}, not as {expected_range(version)!r}")
    print(f"version {version}, stated {len(stated)} times")
    return 1 if wrong else 0


def sibling_ranges() -> list[str]:
    """Return the ranges that the packages ask of each other."""
    return [
        text
        for path in sorted(ROOT.glob("packages/*/pyproject.toml"))
        for text in SIBLING.findall(path.read_text())
        if text
    ]


def expected_range(version: str) -> str:
    """Return the range that takes this version and its fixes."""
    major, minor, *_ = version.split(".")
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


if __name__ == "__main__":
    sys.exit(main())
