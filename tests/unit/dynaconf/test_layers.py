"""The layers of a revision: which leaf counts, and what a fault in one of them stops."""

from __future__ import annotations

import logging

import pytest

from dynaconf_etcd.layers import Place, Refused, Revision
from etcd_core.mirror import Entry, View
from etcd_core.snapshot import LeafDecoder

PLACE = Place("/p", "app")


def _view(*rows: tuple[str, str], revision: int = 1) -> View:
    keys = [(PLACE.base + name.encode(), raw.encode()) for name, raw in rows]
    return View(revision, {key: Entry(key, raw, 1, 1, 0) for key, raw in keys})


def _tree(*rows: tuple[str, str]) -> dict[str, object]:
    return Revision.decode(PLACE, _view(*rows), LeafDecoder()).tree("", "__", evaluate=False)


@pytest.mark.parametrize(
    ("rows", "tree"),
    [
        ([("/Port", "1"), ("/PORT", "2")], {"PORT": 2}),
        ([("/Port", "1"), ("/port", "2"), ("/PORT", "3")], {"PORT": 2}),
        ([("/foo__bar", "5"), ("/foo.bar", "6")], {"FOO": {"bar": 5}}),
    ],
)
def test_what_counts_does_not_depend_on_the_order_of_arrival(
    rows: list[tuple[str, str]], tree: dict[str, object]
) -> None:
    assert _tree(*rows) == _tree(*reversed(rows)) == tree


def test_the_decoder_lets_go_of_layers_that_vanished() -> None:
    decoder = LeafDecoder()
    for n in range(5):
        view = _view(("/port", "1"), (f".pr-{n}/x", "1"), revision=n)
        Revision.decode(PLACE, view, decoder)
    assert set(decoder._known) == {PLACE.layer_prefix(""), PLACE.layer_prefix("pr-4")}
    Revision.decode(PLACE, _view(), decoder)
    assert not decoder._known


BROKEN = _view(("/port", "1"), (".pr-12/x", "{broken"), (".pr-12/y", "1"), revision=7)


def test_a_fault_in_a_layer_that_is_not_read(caplog: pytest.LogCaptureFixture) -> None:
    decoder = LeafDecoder()
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            revision = Revision.decode(PLACE, BROKEN, decoder, read=frozenset({"global"}))
    assert revision.tree("", "__", evaluate=False) == {"PORT": 1}
    assert list(revision.faults) == ["pr-12"]
    (told,) = caplog.messages
    assert "'app.pr-12/' is not usable, and not read here" in told
    assert "the leaf 'x' does not decode" in told
    with pytest.raises(Refused, match=r"app\.pr-12: config: the leaf 'x'") as caught:
        revision.tree("pr-12", "__", evaluate=False)
    assert caught.value.revision == 7
    assert "broken" not in str(caught.value)


@pytest.mark.parametrize("read", [None, frozenset({"pr-12"})])
def test_a_fault_in_a_layer_that_is_read(read: frozenset[str] | None) -> None:
    with pytest.raises(Refused, match=r"app\.pr-12: config: the leaf 'x'") as caught:
        Revision.decode(PLACE, BROKEN, LeafDecoder(), read=read)
    assert caught.value.revision == 7


def test_a_fault_in_the_main_layer() -> None:
    with pytest.raises(Refused, match="app: config: the leaf 'port'"):
        Revision.decode(PLACE, _view(("/port", "{")), LeafDecoder(), read=frozenset())
