"""Ctrl-C ends a verb's process and keeps what was measured."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest
from small import SMALL

pytestmark = pytest.mark.engine


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to a process is POSIX")
@pytest.mark.parametrize(
    "arguments",
    [
        ["bench", "ncf", "--qps", "100", "--duration-s", "60"],
        ["tune", "ncf", "--budget-s", "60", "--execution", "exact"],
    ],
)
def test_ctrl_c_keeps_what_was_measured(tmp_path, arguments):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "deeprecsys", *arguments, *SMALL, "--out", str(folder)]
    # On a terminal there is a line that lives, and it has a percentile once queries are answered.
    terminal = os.environ | {"FORCE_COLOR": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=terminal
    )
    said = b""
    while not re.search(rb"p95 \d", said):
        part = os.read(process.stdout.fileno(), 1 << 16)
        assert part, process.stderr.read()
        said += part
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted: what was measured until then is kept" in out.decode()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["interrupted"] is True
    measured = summary.get("queries") or summary["trials"][0]["runs"][0]["queries"]
    assert measured > 0
    assert (folder / "report.html").is_file()
