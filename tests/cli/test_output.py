"""Trouble with printing is no verdict: exit codes, lines and files where output cannot be had."""

import errno
import gc
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deeprecsys.cli.main import call

SIMULATE = ["simulate", "--service", "linear:1e-4,1.5e-5", "--qps", "100", "--queries", "500"]
VERBS = [["models"], ["--help"], ["models", "--help"], [*SIMULATE, "--out", "run"]]


class Broken(io.RawIOBase):
    """A descriptor that fails on writing, until its test has ended."""

    ended = False

    def __init__(self, number):
        self.number = number

    def writable(self):
        return True

    def write(self, data):
        if self.ended:
            return len(data)
        raise OSError(self.number, os.strerror(self.number))


def broken(number):
    return io.TextIOWrapper(io.BufferedWriter(Broken(number)), encoding="utf-8")


@pytest.fixture
def streams(monkeypatch, tmp_path):
    """Sets standard output; answers what came to standard error."""
    monkeypatch.chdir(tmp_path)
    said = io.StringIO()

    def use(stream):
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", said)
        return said

    yield use
    Broken.ended = True  # what is buffered is written once more
    monkeypatch.undo()
    gc.collect()
    Broken.ended = False


@pytest.mark.parametrize("arguments", VERBS, ids=lambda a: " ".join(a[:2]))
@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (lambda: broken(errno.EPIPE), ""),
        (lambda: broken(errno.ENOSPC), "No space left on device"),
        (lambda: None, "Bad file descriptor"),
    ],
    ids=["pipe", "full", "closed"],
)
def test_an_output_that_cannot_be_written_stops_nothing(streams, arguments, stream, says):
    said = streams(stream())
    assert call(arguments) == 0
    assert says in said.getvalue()
    assert said.getvalue().count("\n") == bool(says)
    if "--out" in arguments:
        assert json.loads(Path("run/summary.json").read_text())["queries"] == 500
        assert Path("run/report.html").is_file()


@pytest.mark.parametrize("asked", [["--json", "-"], ["--json=-"]], ids=" ".join)
@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC])
def test_json_that_was_asked_for_and_cannot_be_written_is_told(streams, asked, number):
    said = streams(broken(number))
    assert call(["models", *asked]) == 2
    last = said.getvalue().splitlines()[-1]
    assert last.startswith("deeprecsys: the JSON could not be written to standard output")
    assert "use --json FILE" in last


def test_a_verdict_stays_one_whatever_becomes_of_its_line(streams):
    streams(broken(errno.EPIPE))
    missed = [*SIMULATE, "--sla-ms", "0.2", "--out", "run"]
    assert call(missed) == 1
    assert call(["models", "nosuch"]) == 2


def test_standard_error_that_is_closed_stops_nothing(streams, monkeypatch):
    streams(io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    assert call(["models", "nosuch"]) == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", VERBS, ids=lambda a: " ".join(a[:2]))
def test_characters_that_an_encoding_lacks_are_degraded(streams, arguments, encoding):
    written = io.BytesIO()
    said = streams(io.TextIOWrapper(written, encoding=encoding))
    assert call([*arguments, *(["--sla-ms", "50"] if arguments[0] == "simulate" else [])]) == 0
    assert said.getvalue() == ""
    text = written.getvalue().decode(encoding)
    assert "?" not in text.replace("[default: ?", "")
    if arguments[0] == "simulate" and encoding == "ascii":
        assert "p95 <= 50 ms" in text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("where", ["full", "closed pipe"])
def test_a_process_ends_quietly_too(where):
    """The interpreter tries what is still buffered once more at its end."""
    if where == "full":
        out = os.open("/dev/full", os.O_WRONLY)
    else:
        reads, out = os.pipe()
        os.close(reads)
    done = subprocess.run(
        [sys.executable, "-m", "deeprecsys", "--help"],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(out)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
