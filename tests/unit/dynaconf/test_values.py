"""Names that are refused, strings that stay strings, and when two values are one."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import yaml
from dynaconf.utils.parse_conf import converters, parse_conf_data

from dynaconf_etcd.steps import same
from dynaconf_etcd.values import Literal, is_ignored, is_reserved, tree_of


@pytest.mark.parametrize(
    "text",
    [
        *(f"{token} 1" for token in converters),
        "@format {env[HOME]}",
        "@jinja {{ 1 + 1 }}",
        "@none",
        "@",
        "@unknown x",
    ],
)
@pytest.mark.parametrize("tomlfy", [False, True])
def test_a_literal_is_never_evaluated(text: str, tomlfy: bool) -> None:
    literal = Literal(text)
    assert parse_conf_data(literal, tomlfy=tomlfy, box_settings={}) == text
    for copied in (
        copy.deepcopy(literal),
        copy.copy(literal),
        pickle.loads(pickle.dumps(literal)),
    ):
        assert parse_conf_data(copied, tomlfy=tomlfy, box_settings={}) == text


def test_a_literal_is_a_string_to_everybody_else() -> None:
    literal = Literal("@format x")
    assert literal == "@format x"
    assert hash(literal) == hash("@format x")
    assert literal.startswith("@for")
    assert literal.startswith(("a", "@"))
    assert literal.partition(" ")[1:] == (" ", "x")
    assert json.dumps(literal) == '"@format x"'
    assert yaml.safe_load(yaml.safe_dump({"a": literal})) == {"a": "@format x"}


@pytest.mark.parametrize(
    "name",
    [
        "includes_for_dynaconf",
        "ETCD_FOR_DYNACONF",
        "dynaconf_include",
        "dynaconf_merge",
        "dynaboxify",
        "validators",
        "post_hooks",
        "_registered_hooks",
        "settings_module",
        "yaml",
        "_anything",
        "dynaconf include",
        "Dynaconf Include",
        "dynaconf merge",
        " registered hooks",
        "settings file for dynaconf",
        "\tincludes_for_dynaconf",
        "includes_for_dynaconf ",
        "includes_for_dynaconf[0]",
        "includes_for_dynaconf____x",
        "post_hoo\u212as",
        "\u0131ncludes",
        "nested_separator",
        "redis_enabled",
        "secrets",
    ],
)
def test_names_of_dynaconf_are_reserved(name: str) -> None:
    assert tree_of({name: 1, "mine": 2}, "__", evaluate=False) == {"MINE": 2}
    assert tree_of({name: 1, "mine": 2}, "__", evaluate=True) == {"MINE": 2}


@pytest.mark.parametrize(
    ("path", "ignored"),
    [
        ("a.b", False),
        ("a__b", False),
        ("_x", True),
        ("__x", True),
        ("loaders_for_dynaconf", True),
        ("yaml__x.y", True),
        ("a.dynaconf_merge", True),
        ("a.yaml", False),
        ("dynaconf include", True),
        ("a.dynaconf merge", True),
        ("a.dynaconf merge.b", True),
        ("a__dynaconf_merge", True),
        ("a__dynaconf_merge__b", True),
        ("includes_for_dynaconf____x", True),
        ("secrets.key", False),
        ("dynaconf.include", False),
    ],
)
def test_what_is_not_taken_from_etcd(path: str, ignored: bool) -> None:
    assert is_ignored(path, "__") is ignored


@pytest.mark.parametrize(
    ("path", "value", "ignored"),
    [
        ("secrets", "conf/.secrets.toml", True),
        ("secrets", ["a.toml"], True),
        ("secrets", {"key": 1}, False),
        ("secrets.key", "x", False),
        ("a", {"B": 1, "DYNACONF MERGE": True}, True),
        ("a", [1, {"dynaconf_merge_unique": True}], True),
        ("a", ["dynaconf_merge"], False),
        ("a", "x", False),
    ],
)
def test_what_is_not_taken_from_etcd_for_its_value(path: str, value: object, ignored: bool) -> None:
    assert is_ignored(path, "__", value) is ignored


def test_names_of_others_are_not() -> None:
    for name in (
        "debug",
        "server",
        "secret_key",
        "environment",
        "databases",
        "env",
        "redis",
        "email host",
        "hosts[0]",
    ):
        assert not is_reserved(name)
    assert tree_of({"secrets": {"a": 1}}, "__", evaluate=False) == {"SECRETS": {"a": 1}}


def test_what_counts_does_not_depend_on_the_order() -> None:
    tables = {"foo__bar": 5, "foo": {"bar": 6}, "a": 1, "a__b": 2, "größe": 1, "grösse": 2}
    back = dict(reversed(tables.items()))
    assert tree_of(tables, "__", evaluate=False) == tree_of(back, "__", evaluate=False)


def test_a_tree_has_upper_case_tops_and_split_names() -> None:
    tables = {"a": {"B": 1}, "foo__bar": 1, "foo__baz__x": 2, "größe": 3, "__x": 4, "my-key": 5}
    assert tree_of(tables, "__", evaluate=False) == {
        "A": {"B": 1},
        "FOO": {"bar": 1, "baz": {"x": 2}},
        "GRÖSSE": 3,
        "MY-KEY": 5,
    }


def test_a_tree_holds_no_merge_marks() -> None:
    tables = {"a": {"dynaconf_merge": True, "b": [{"dynaconf_merge_unique": 1, "c": 2}]}}
    assert tree_of(tables, "__", evaluate=False) == {"A": {"b": [{"c": 2}]}}
    tables = {"a": {"Dynaconf Merge": True, "b": [{"DYNACONF_MERGE": 1}, "x"]}}
    assert tree_of(tables, "__", evaluate=False) == {"A": {"b": [{}, "x"]}}


def test_only_what_begins_with_a_token_is_wrapped() -> None:
    tree = tree_of({"a": "x@y", "b": "@x", "c": ["@y"]}, "__", evaluate=False)
    assert type(tree["A"]) is str
    assert type(tree["B"]) is Literal
    assert type(tree["C"][0]) is Literal  # type: ignore[index]
    assert type(tree_of({"b": "@x"}, "__", evaluate=True)["B"]) is str


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (1, 1, True),
        (1, True, False),
        (1, 1.0, False),
        (float("nan"), float("nan"), True),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1, "b": 1}, False),
        ([1, 2], [1], False),
        ("x", Literal("x"), True),
        (None, False, False),
        ([], {}, False),
    ],
)
def test_same(one: object, other: object, equal: bool) -> None:
    assert same(one, other) is equal
    assert same(other, one) is equal
