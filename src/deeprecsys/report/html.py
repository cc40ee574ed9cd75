"""One self-contained HTML page of parts: style, data and the installed plotly.js are in the file.

It opens offline, in light and dark, on a phone and in print. Knows no summary: `pages/` says what
is on it. Whatever is text is escaped here or by who makes a part.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from typing import NamedTuple

from deeprecsys.report.figures import Figure

# The browser itself refuses whatever would leave the file, and says so on its console.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"

# A number, perhaps with its unit or a word; an interval; a dash; nothing.
_NUMBERS = re.compile(r"([\d.,]+%?( |$)|[-–\[]|$)")


class Section(NamedTuple):
    """A figure under its heading; left out where there is no figure."""

    heading: str
    caption: str
    figure: Figure | None


Part = str | Section  # HTML, or a section


def document(title: str, body: Sequence[Part]) -> str:
    """The whole page."""
    shown = [part for part in body if isinstance(part, str) or part.figure is not None]
    figures = [part.figure for part in shown if isinstance(part, Section)]
    numbers = iter(range(len(figures)))
    html = "".join(part if isinstance(part, str) else _section(part, numbers) for part in shown)
    # No "<" in the script: a name from the summary must not end it.
    data = json.dumps(figures, allow_nan=False).replace("<", "\\u003c")
    return (
        f"<!doctype html><html lang=en>{_head(title)}"
        f"<body><main>{html}</main><script>{_plotly()}</script>"
        f"<script>const FIGURES = {data};\n{_file('page.js')}</script></body></html>\n"
    )


def table(heading: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A section with a table."""
    return f"<section><h2>{escape(heading)}</h2>{grid(heads, rows)}</section>"


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    words = [not all(map(_NUMBERS.match, column)) for column in zip(*rows, strict=True)]
    lines = _row("th", heads, words) + "".join(_row("td", row, words) for row in rows)
    return f"<div class=wide><table>{lines}</table></div>"


def _row(tag: str, cells: Sequence[str], words: Sequence[bool]) -> str:
    """Words to the left, numbers to the right."""
    kinds = [" class=text" if text else "" for text in words] or [""] * len(cells)
    columns = zip(cells, kinds, strict=True)
    return "<tr>" + "".join(f"<{tag}{k}>{escape(c)}</{tag}>" for c, k in columns) + "</tr>"


def _section(section: Section, numbers: Iterator[int]) -> str:
    return (
        f"<section><h2>{escape(section.heading)}</h2><p>{escape(section.caption)}</p>"
        f"<div class=figure id=figure-{next(numbers)}></div></section>"
    )


def _head(title: str) -> str:
    return (
        f"<head><meta charset=utf-8>"
        f"<meta name=viewport content='width=device-width, initial-scale=1'>"
        f'<meta http-equiv=Content-Security-Policy content="{_POLICY}">'
        f"<link rel=icon href='data:,'><title>{escape(title)}</title>"
        f"<style>{_file('style.css')}</style></head>"
    )


def _file(name: str) -> str:
    return (files("deeprecsys.report") / name).read_text(encoding="utf-8")


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())
