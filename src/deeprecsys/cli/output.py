"""Standard output and standard error while a verb works: trouble with printing is not a verdict.

Results are in their files, so a stream that is closed, full, or knows few characters stops
nothing: characters are degraded, and what cannot be written is left out. `cli.main` asks at the
end what went wrong. Replaces the two streams, so that every print and every console is served.
"""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

_PLAIN = {
    "≤": "<=", "≥": ">=", "×": "x", "·": "*", "–": "-", "—": "-", "…": "...", "µ": "u", "μ": "u",
    "→": "->", "✓": "yes", "✗": "no", "²": "2", "’": "'", "±": "+-", "│": "|", "─": "-", "━": "-",
    "╸": "-", "╺": "-", "█": "#",
}  # fmt: skip
_ERRORS = "deeprecsys.degrade"


class Output:
    """A text stream that never raises on writing; `error` is what the first failure was.

    It has no `buffer`, past which others could write.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.error: Exception | None = None
        if stream is None:  # the shell had closed it
            self.error = OSError(errno.EBADF, os.strerror(errno.EBADF))
        elif hasattr(stream, "reconfigure"):
            try:
                stream.reconfigure(errors=_ERRORS)
            except (OSError, ValueError) as error:  # it writes what was buffered before
                self._give_up(error)

    def write(self, text: str) -> int:
        if self._stream is not None and self.error is None:
            try:
                self._stream.write(text)
            except (OSError, ValueError) as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None and self.error is None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._give_up(error)

    def isatty(self) -> bool:
        return self._stream is not None and not self.error and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._stream.fileno()

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str:
        return _ERRORS

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def writable(self) -> bool:
        return True

    @property
    def closed(self) -> bool:
        return False

    def _give_up(self, error: Exception) -> None:
        """What is still buffered goes nowhere, or the interpreter would try it again at its end."""
        self.error = error
        if self._stream in (sys.__stdout__, sys.__stderr__):
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.fileno())
                os.close(nowhere)


@contextmanager
def steady() -> Iterator[Output]:
    """Replaces both streams; standard output, to be asked at the end."""
    before = sys.stdout, sys.stderr
    out, err = Output(before[0]), Output(before[1])
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        out.flush()
        err.flush()
        sys.stdout, sys.stderr = before


def reserve_streams() -> None:
    """Opens 0, 1 and 2 where the shell had closed them, lest a file that is opened become one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _degrade(error: UnicodeError) -> tuple[str, int]:
    """Characters that an encoding lacks: what is read alike, else a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_PLAIN.get(letter, "?") for letter in lacking), error.end


codecs.register_error(_ERRORS, _degrade)
