"""The code in the documentation: that of the READMEs runs, each block in a process of its own.

What needs an application around it is checked for what it imports from us and how it calls that.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from etcd_core.testing import EtcdServer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "packages" / "core" / "README.md"]
ALL_PAGES = sorted({*PAGES, *ROOT.glob("docs/*.md"), *ROOT.glob("packages/*/README.md")})
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = ["pip install uv && uv run demo", "pip install uv && uv run pytest"]

# What the pages take for granted: a configuration and a file.
PREPARE = """
import etcd_core
with etcd_core.Client(endpoints=[{endpoint!r}], prefix={prefix!r}) as client:
    client.config_source("billing").bootstrap({{"server.port": 8080}})
"""


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(pages: list[Path]) -> Iterator[Block]:
    for page in pages:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            yield Block(page, text.count("\n", 0, match.start()) + 2, match[1])


@pytest.mark.parametrize("block", [pytest.param(each, id=str(each)) for each in blocks(PAGES)])
def test_block_runs(block: Block, etcd_server: EtcdServer, prefix: str, tmp_path: Path) -> None:
    endpoint = etcd_server.endpoint.removeprefix("http://")
    code = block.code.replace("127.0.0.1:2379", endpoint).replace('"/shop"', repr(prefix))
    prepare = PREPARE.format(endpoint=endpoint, prefix=prefix)
    # Line numbers in a traceback are those of the page.
    (tmp_path / "block.py").write_text("\n" * (block.line - 1) + code)
    (tmp_path / "settings.toml").write_text("[server]\nhost = 'localhost'\n")
    run = f"{prepare}\nimport runpy\nrunpy.run_path('block.py', run_name='__main__')"
    try:
        done = subprocess.run(
            [sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True, timeout=50
        )
    finally:
        etcd_server.delete_prefix(f"{prefix}/")
    assert done.returncode == 0, textwrap.indent(done.stdout + done.stderr, "    ")


def test_the_first_screen() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    code_ends = lines.index("```", lines.index("```python")) + 1
    assert code_ends <= 25
    assert [line for line in lines if line.startswith("pip install uv")] == COMMANDS
    assert lines.index(COMMANDS[1]) <= 35


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in ALL_PAGES])
def test_page_calls_what_there_is(page: Path, tmp_path: Path) -> None:
    checked = "\n".join(f"check({each.code!r}, {each.line})" for each in blocks([page]))
    (tmp_path / "checks.py").write_text(f"from documented import check\n{checked}\n")
    done = subprocess.run(
        [sys.executable, "checks.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests" / "support")},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, f"{page}:\n{textwrap.indent(done.stderr, '    ')}"
