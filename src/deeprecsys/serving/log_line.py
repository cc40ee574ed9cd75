"""A line of the log: one JSON object, whatever clients sent to be in it.

Printable ASCII alone, all else as JSON's escapes: no line ends early, and nothing of a line does
anything to the terminal it is shown in.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Mapping
from typing import Any

import msgspec

OURS = "deeprecsys.serving"  # the logger whose messages are lines already
_OTHERS = re.compile(r"[^\x20-\x7e]")
_encode = msgspec.json.Encoder().encode


def line(said: Mapping[str, Any]) -> str:
    try:
        text = _encode(said).decode()
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 has no bytes for
        return json.dumps(said, default=repr)
    if text.isascii() and "\x7f" not in text:  # all others are escaped
        return text
    return _OTHERS.sub(lambda found: json.dumps(found[0])[1:-1], text)


class Formatter(logging.Formatter):
    """For a handler of all loggers: what is none of ours becomes a line as well, with the words of
    an exception, which may be a client's."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.name == OURS:
            return text
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return line({"time": stamp, "event": "logged", "by": record.name, "text": text[-4000:]})


__all__ = ["OURS", "Formatter", "line"]
