"""The paths of shared memory over HTTP: `/v2/systemsharedmemory…`, and that there is none of CUDA.

Values only, as `http_routes`, beside which it stands for what takes a body.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from deeprecsys.protocol.reasons import Reason, Refusal, invalid
from deeprecsys.protocol.tensors import Buffer
from deeprecsys.serving.shared_memory import Region, Regions, check_local

SYSTEM, CUDA = "systemsharedmemory", "cudasharedmemory"
NO_CUDA = (
    "shared memory of CUDA is not supported: queries lie in the host's; register them as system "
    "shared memory"
)
_LONGEST = 8 << 10  # bytes of what is registered


class _Registered(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


_decode = msgspec.json.Decoder(_Registered).decode


def is_path(parts: Sequence[str]) -> bool:
    return parts[:1] == ["v2"] and parts[1:2] in ([SYSTEM], [CUDA])


def is_change(parts: Sequence[str]) -> bool:
    """Does it register something, or unregister it?"""
    return is_path(parts) and parts[-1] in ("register", "unregister")


def answer(regions: Regions, method: str, parts: Sequence[str], body: Buffer, client: str) -> Any:
    """What is said to it, as JSON. parts: of the path."""
    kind, *rest = parts[1:]
    if kind == CUDA:
        raise Refusal(Reason.UNSUPPORTED, NO_CUDA)
    name, act = _asked(rest)
    match "GET" if method == "HEAD" else method, act:
        case "GET", "status":
            return [said(region) for region in regions.status(name)]
        case "POST", "register" if name:
            check_local(client)
            asked = _read(body)
            regions.register(name, asked.key, asked.offset, asked.byte_size)
            return {}
        case "POST", "unregister":
            check_local(client)
            regions.unregister(name)
            return {}
        case _, "status" | "register" | "unregister":
            raise Refusal(Reason.METHOD, f"{method[:20]} is not what this path takes")
    raise Refusal(Reason.NOT_FOUND, "no such path")


def said(region: Region) -> dict[str, Any]:
    return {"name": region.name, "key": region.key, "offset": region.offset,
            "byte_size": region.size}  # fmt: skip


def _asked(rest: Sequence[str]) -> tuple[str, str]:
    """A region's name, "" for all, and what is to be done."""
    if len(rest) == 1:
        return "", rest[0]
    if rest[:1] == ["region"] and (name := "/".join(rest[1:-1])):  # clients leave slashes in names
        return name, rest[-1]
    return "", ""


def _read(body: Buffer) -> _Registered:
    if len(body) > _LONGEST:
        raise Refusal(Reason.TOO_LARGE, f"the body is over {_LONGEST} bytes")
    try:
        return _decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        what = '{"key": "/queries", "byte_size": 1000, "offset": 0}'
        raise invalid(f"the body is not {what}: {str(error)[:200]}") from None


__all__ = ["NO_CUDA", "answer", "is_change", "is_path", "said"]
