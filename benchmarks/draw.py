"""A figure of the reports as a picture, photographed by a browser where there is one."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from deeprecsys.report.html import Section, document

# The figure alone, as large as the picture.
STYLE = "main { padding: 0; max-width: none } h2, p { display: none } .figure { height: %dpx }"


def draw(figure: dict[str, Any] | None, target: Path, size: tuple[int, int] = (1000, 540)) -> bool:
    """False, saying so, without a browser."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print(f"no chromium: {target} is left as it is")
        return False
    with tempfile.TemporaryDirectory() as folder:
        html = Path(folder) / "figure.html"
        page = document(target.stem, [Section("", "", figure)])
        html.write_text(page.replace("</style>", f"{STYLE % size[1]}</style>", 1))
        subprocess.run(
            [chromium, "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu",
             f"--window-size={size[0]},{size[1]}", f"--screenshot={target}", html.as_uri()],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
    return True
