"""What pages are put together from: documents, tables, and values as people read them.

Pure. Owns the frame of a page and its scripts; knows nothing of what a page is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from walrecover.cli.output import clock, seconds
from walrecover_daemon.html import Child, Markup, document, tag


def page(title: str, body: Child, *, run: int | None = None, curve: str | None = None) -> Markup:
    """A whole document. `run`: whose rows it shows, None for all of them."""
    scripts = ["htmx.min.js", *(["uplot.min.js"] if curve else []), "page.js"]
    sheets = [*(["uplot.min.css"] if curve else []), "page.css"]
    return document(
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag(
                "meta",
                name="htmx-config",
                content='{"includeIndicatorCSS": false, "history": false, "mode": "same-origin"}',
            ),
            tag("title", f"{title} · walrecover"),
            [tag("link", rel="stylesheet", href=f"/static/{name}") for name in sheets],
            tag("link", rel="icon", href="/static/icon.svg", type="image/svg+xml"),
            [tag("script", src=f"/static/{name}", defer=True) for name in scripts],
        ),
        tag(
            "body",
            tag("a", "Skip to the content", href="#content", class_="skip"),
            tag(
                "header",
                tag("a", "walrecover", href="/", class_="home"),
                tag("p", "", id="progress", role="status"),
            ),
            tag("main", body, id="content", tabindex="-1"),
            data_run="" if run is None else run,
            data_curve=curve,
        ),
    )


def live(name: str, url: str, content: Child) -> Markup:
    """A section's content that the page replaces when the run has new rows."""
    return tag(
        "div",
        content,
        id=f"part-{name}",
        class_="live",
        data_hx_get=url,
        data_hx_trigger="stirred",
        data_hx_swap="innerMorph",
    )


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Child]]) -> Markup:
    head = tag("tr", [tag("th", name, scope="col") for name in columns])
    body = [
        tag(
            "tr",
            [tag("td", cell, data_label=name) for name, cell in zip(columns, row, strict=True)],
        )
        for row in rows
    ]
    return scrolling(
        caption, tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    )


def scrolling(label: str, content: Child) -> Markup:
    """What is wider than a phone: scrolled by itself, by keyboard too."""
    return tag("div", content, class_="wide", role="region", aria_label=label, tabindex="0")


def number(value: int | None) -> str:
    return "" if value is None else f"{value}"


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def span(first: int | None, last: int | None) -> str:
    if first is None or last is None:
        return ""
    return f"{first}" if first == last else f"{first} to {last}"


def size(value: int | None) -> str:
    if value is None:
        return ""
    for unit in ("B", "KB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}"
        value /= 1000  # type: ignore[assignment]
    return f"{value:.1f} TB"


def word(text: str) -> Markup:
    """What is read as one, and so is not broken."""
    return tag("span", text, class_="word")


def moment(at: float | None) -> Child:
    return tag("time", clock(at)) if at else ""


def age(at: float | None, now: float) -> str:
    return f"{seconds(max(0.0, now - at))} ago" if at else ""


def short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]} …"
