"""The live page of a server: one HTML file, and the plotly.js that it draws with.

Knows nothing of the server: the page asks the origin it came from for `/plotly.min.js` once and
for `/live.json` every second, and shows what it gets. Called by the server's HTTP front, which
sends it with `CONTENT_SECURITY_POLICY`: the browser itself then refuses whatever would leave the
origin. Both are read once; the first time takes a second, since it imports plotly.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

# 'unsafe-inline' since style and script are in the page; it needs no eval, and plotly none either.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'"
)


@cache
def live_page() -> bytes:
    """The whole page in UTF-8, the same for every server: what differs is in `/live.json`.

    The report's style comes first, so that the two cannot grow apart.
    """
    style = _text("deeprecsys.report", "style.css") + _text("deeprecsys.serving", "live.css")
    script = _text("deeprecsys.serving", "live.js")
    return (
        _text("deeprecsys.serving", "live.html")
        .replace("<link rel=stylesheet href=live.css>", f"<style>\n{style}</style>")
        .replace("<script src=live.js></script>", f"<script>\n{script}</script>")
        .encode()
    )


@cache
def plotly_js() -> bytes:
    """plotly.min.js (5 MB) as the installed package brings it: no network, and no copy of ours."""
    return (files("plotly") / "package_data" / "plotly.min.js").read_bytes()


def _text(package: str, name: str) -> str:
    return (files(package) / name).read_text(encoding="utf-8")
