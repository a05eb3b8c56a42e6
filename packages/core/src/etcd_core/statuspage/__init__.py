"""The page of everything under a client's prefix, as the adapters' web pages show it. Read-only.

:func:`collect` reads etcd, in a bounded number of requests; the rest is pure. The page loads one
style sheet and one script by relative addresses (:data:`ASSETS`) and has nothing inline, so that a
content security policy of ``'self'`` suffices; the script asks for the fragment again and again.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Final

from .markup import Html, el, join
from .reading import Section, Status, collect
from .sections import fragment

__all__ = [
    "ASSETS",
    "FRAGMENT",
    "Section",
    "Status",
    "asset",
    "body",
    "collect",
    "document",
    "fragment",
    "links",
]

FRAGMENT: Final = "fragment"
"""Where the page looks for its fragment, relative to its own address."""

ASSETS: Final = MappingProxyType(
    {"cluster.css": "text/css; charset=utf-8", "cluster.js": "text/javascript; charset=utf-8"}
)
"""What the page loads, relative to its own address, and of which type it is."""

_REFRESH_SECONDS = 5


@lru_cache
def asset(name: str) -> bytes:
    """Return one of the :data:`ASSETS`."""
    return files(__package__).joinpath(name).read_bytes()


def links() -> Html:
    """Return the elements for the page's head."""
    return join(
        el("link", rel="stylesheet", href=_versioned("cluster.css")),
        el("script", src=_versioned("cluster.js"), defer=True),
    )


def body(status: Status) -> Html:
    """Return what the page shows: its controls and the fragment.

    The controls appear when the script runs; without it the page is as it was loaded.
    """
    controls = el(
        "div",
        el("label", "Filter ", el("input", type="search", data_role="filter", autocomplete="off")),
        el("span", data_role="clock", class_="etcd-clock"),
        el("button", "Pause", type="button", data_role="pause", aria_pressed="false"),
        class_="etcd-controls",
    )
    # A live region for what goes wrong only: nobody wants a page read out every few seconds.
    trouble = el("p", role="status", data_role="trouble", class_="etcd-trouble", hidden=True)
    bar = el("div", controls, trouble, class_="etcd-bar", data_role="bar", hidden=True)
    view = el("div", fragment(status), data_role="view")
    return el(
        "div", bar, view,
        class_="etcd-page", data_etcd_refresh=_REFRESH_SECONDS, data_etcd_source=FRAGMENT,
    )  # fmt: skip


def document(status: Status) -> str:
    """Return the page as a document of its own, for a framework without an admin site."""
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("title", "etcd cluster"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="robots", content="noindex"),
        links(),
    )
    page = el("body", el("main", el("h1", "etcd cluster"), body(status)), class_="etcd-document")
    return f"<!doctype html>{el('html', head, page, lang='en')}"


def _versioned(name: str) -> str:
    return f"{name}?v={hashlib.sha256(asset(name)).hexdigest()[:12]}"
