"""Checks code from the documentation without running it: names of ours exist, calls of them fit."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator

import django
from django.conf import settings

OURS = ("etcd_core", "dynaconf_etcd", "django_etcd", "flask_etcd")

# The models of the adapter need an application registry.
settings.configure(INSTALLED_APPS=["django.contrib.contenttypes", "django_etcd"], ETCD={})
django.setup()

# A page imports a name once and uses it in later blocks.
_known: dict[str, object] = {}


def check(code: str, line: int) -> None:
    """Raise if ``code``, which begins on ``line`` of its page, names or calls what there is not."""
    tree = ast.increment_lineno(ast.parse(code), line - 1)
    _known.update(_imported(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            called = _known.get(node.func.id)
            if callable(called):
                _check_call(node, called)


def _imported(tree: ast.AST) -> Iterator[tuple[str, object]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(OURS):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                yield alias.asname or alias.name, getattr(module, alias.name)


def _check_call(node: ast.Call, called: object) -> None:
    keywords = {each.arg: ... for each in node.keywords if each.arg is not None}
    try:
        inspect.signature(called).bind(*node.args, **keywords)  # type: ignore[arg-type]
    except TypeError as exc:
        raise TypeError(f"line {node.lineno}: {ast.unparse(node)}: {exc}") from exc
