"""A figure of the reports as a picture, photographed by a browser where there is one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from deeprecsys.report.html import Section, document


def draw(figure: dict[str, Any] | None, target: Path, size: tuple[int, int] = (1000, 540)) -> bool:
    """False, saying so, without a browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"no chromium: {target} is left as it is")
        return False
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "figure.html"
        html.write_text(document(target.stem, [Section("", "", figure)]))
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
             f"--window-size={size[0]},{size[1]}", f"--screenshot={target}", html.as_uri()],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    return True
