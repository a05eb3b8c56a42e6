"""Elements of HTML whose text is escaped unless it is markup already. Pure."""

from __future__ import annotations

from html import escape

_VOID = frozenset({"input", "link", "meta"})


class Html(str):
    """Markup: put into an element as it is. Django and Jinja know it as safe, too."""

    __slots__ = ()

    def __html__(self) -> str:
        """Return the markup, for template engines."""
        return self


def el(tag: str, *children: object, **attributes: object) -> Html:
    """Return an element.

    Args:
        tag: Its name.
        children: Markup and text; None is left out.
        attributes: ``class_`` and ``data_key`` mean ``class`` and ``data-key``. True stands for an
            attribute without a value; None and False leave it out.
    """
    inside = join(*children)
    opening = f"<{tag}{''.join(_attribute(*each) for each in attributes.items())}>"
    return Html(opening if tag in _VOID else f"{opening}{inside}</{tag}>")


def join(*children: object) -> Html:
    """Return markup and text as one piece of markup; None is left out."""
    return Html("".join(_escaped(child) for child in children if child is not None))


def _escaped(child: object) -> str:
    return child if isinstance(child, Html) else escape(str(child))


def _attribute(name: str, value: object) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'
