"""Reads what a user wrote: `name:options`, lists of numbers, small text tables.

Knows no law; it turns text into numbers, or into one line that says what to mend. Called by the
three families of laws in this package.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from deeprecsys.core import FloatArray, UserError

Law = TypeVar("Law")


def parse(kind: str, registry: Mapping[str, Callable[[str], Law]], spec: str) -> Law:
    """The law that `spec`, such as "lognormal:5.1,0.2", names in `registry`.

    kind: "sizes", "arrivals" or "indices", for the message. Raises UserError for an unknown name.
    """
    name, _, options = str(spec).partition(":")
    if name.strip() not in registry:
        raise UserError(f"unknown {kind} {str(spec)!r}; known: {', '.join(registry)}")
    return registry[name.strip()](options.strip())


def no_options(name: str, options: str) -> None:
    """Raises UserError if a law without options was given some."""
    if options:
        raise UserError(f"{name} takes no options: write {name!r} instead of '{name}:{options}'")


def numbers(usage: str, options: str, default: tuple[float, ...]) -> tuple[float, ...]:
    """As many finite numbers as `usage`, such as "lognormal:MU,SIGMA", names.

    default: returned when `options` is empty; an empty default makes the options obligatory.
    """
    if not options and default:
        return default
    words = options.split(",")
    wanted = usage.count(",") + 1
    if len(words) != wanted or not options:
        raise UserError(f"{usage} needs {wanted} number(s), not {options!r}")
    return tuple(number(usage, word) for word in words)


def number(where: str, word: str) -> float:
    """`word` as a finite float, or a UserError that begins with `where`."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {word.strip()!r} is not a number")
    return value


def read_table(path: str, columns: str) -> tuple[list[int], FloatArray]:
    """Line numbers [n] and values [n, c] of a text file of numbers.

    Cells are parted by commas, semicolons or blanks; empty lines, what follows a `#`, and a first
    line without any number (a header) are skipped. `columns` says what was expected, for the
    message. Raises UserError for a missing, binary, empty or ragged file and for a non-number.
    """
    cells = _cells(path)
    if cells and not any(_is_number(word) for word in cells[0][1]):
        cells = cells[1:]
    if not cells:
        raise UserError(f"{path} holds no numbers: write {columns} on each line")
    width = len(cells[0][1])
    for line, words in cells:
        if len(words) != width:
            raise UserError(
                f"{path} line {line}: {len(words)} column(s), but {width} before: write {columns}"
            )
    values = [[number(f"{path} line {line}", word) for word in words] for line, words in cells]
    return [line for line, _ in cells], np.array(values)


def aggregated(table: FloatArray) -> FloatArray | None:
    """The sizes in rows of `from, to, size`, which MLPerf's reference (recommendation/dlrm_v2,
    --samples-to-aggregate-trace-file) writes for its queries; None for other tables [n, c]."""
    if table.shape[1] != 3 or (table[:, 1] - table[:, 0] != table[:, 2]).any():
        return None
    return np.asarray(table[:, 2])


def _cells(path: str) -> list[tuple[int, list[str]]]:
    if not Path(path).is_file():
        raise UserError(f"no file {path or '(a path is needed after the colon)'}")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} as text: {str(error).splitlines()[0]}") from error
    stripped = ((i, line.split("#")[0].strip()) for i, line in enumerate(text.splitlines(), 1))
    return [(i, re.split(r"\s*[,;]\s*|\s+", line)) for i, line in stripped if line]


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
