"""A real browser, driven over a pipe by its own protocol: no driver, no library, no open port.

`--dump-dom` shows only how a page ends; here a test looks on while the page lives.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip


class Browser:
    """One headless browser with one page; a context manager."""

    def __init__(self, profile: Path) -> None:
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()
        # The browser reads commands from its descriptor 3 and answers on 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{back}', "-",
             str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(theirs, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs)
        os.close(back)
        self._received = b""
        self._events: list[dict[str, Any]] = []
        self._number = 0
        self._session = ""
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        target = {"targetId": pages[0]["targetId"], "flatten": True}
        self._session = self.call("Target.attachToTarget", target)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        with suppress(OSError, TimeoutError, EOFError):
            self.call("Browser.close")
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """A fresh page; what was said and asked for before is forgotten."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.call("Page.navigate", {"url": "about:blank"})
        self._wait_for("Page.domContentEventFired")
        self._events.clear()
        self.call("Page.navigate", {"url": url})
        self._wait_for("Page.domContentEventFired")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        how = {"returnByValue": True, "allowUnsafeEvalBlockedByCSP": False}
        found = self.call("Runtime.evaluate", {"expression": expression, **how})
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 10) -> None:
        """Waits until a JavaScript expression is true in the page."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"never true: {expression}"
            time.sleep(0.05)

    def asked(self) -> list[str]:
        """Addresses of all requests since `open`."""
        sent = [e for e in self._events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]

    def complaints(self) -> list[str]:
        """Errors and warnings on the console since `open`, and exceptions."""
        said = []
        for event in self._events:
            p = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                said.append(p["exceptionDetails"]["exception"].get("description", "exception"))
            elif event["method"] == "Log.entryAdded" and p["entry"]["level"] != "info":
                said.append(p["entry"]["text"])
            elif event["method"] == "Runtime.consoleAPICalled" and p["type"] in (
                "error",
                "warning",
            ):
                said.append(str(p["args"]))
        return said

    def screenshot(self, path: Path) -> None:
        """The whole page, not the window only."""
        found = self.call("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(found["data"]))

    def call(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])
            self._events.append(answer)

    def _wait_for(self, method: str) -> None:
        before = len(self._events)
        while all(event["method"] != method for event in self._events[before:]):
            self._events.append(self._next())

    def _next(self, seconds: float = 30) -> dict[str, Any]:
        while b"\0" not in self._received:
            if not select.select([self._from], [], [], seconds)[0]:
                raise TimeoutError("the browser is silent")
            part = os.read(self._from, 1 << 20)
            if not part:
                raise EOFError("the browser has gone")
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return dict(json.loads(message))
