"""Building HTML and SVG: every text and attribute is escaped, by the one function that writes tags.

Pure. Owns escaping; knows nothing of pages. Only what this module returns passes as markup.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

from walrecover.cli.output import harmless


class Markup(str):
    """Text that is markup already. Made by `tag` alone, and by this module's constants."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"
_VOID = frozenset({"meta", "link"})
_SHAPES = frozenset({"path", "rect"})


def tag(name: str, /, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """`<name …>children</name>`. In an attribute's name `_` stands for `-`, one at its end is left
    out (`class_`); None and False leave the attribute out."""
    words = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{_text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    if name in _SHAPES and not children:
        return Markup(f"<{name}{words}/>")
    return Markup(f"<{name}{words}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    return Markup("".join(_child(child) for child in children))


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return _text(child)
    return join(child)


def _text(value: object) -> str:
    return escape(harmless(str(value)))


def document(*children: Child, lang: str = "en") -> Markup:
    return Markup("<!doctype html>\n" + tag("html", *children, lang=lang))
