"""The paths of the protocol and of the server's own pages: what each answers, and what it takes.

Values only: an `Answer`, or a `Refusal`. Inference is the connection's, which has the body.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec

from deeprecsys.protocol.reasons import Reason, Refusal
from deeprecsys.protocol.tensors import Buffer
from deeprecsys.serving import http_memory, keys
from deeprecsys.serving.dataplane import DataPlane
from deeprecsys.serving.page import CONTENT_SECURITY_POLICY
from deeprecsys.serving.tracing import Trace

Header = tuple[bytes, bytes]
Page = Callable[[str], tuple[bytes, bytes]]  # of a URL's query: content type and body

JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")
_POLICY = (b"content-security-policy", CONTENT_SECURITY_POLICY.encode())
_RETRIED = (Reason.OVERLOADED, Reason.UNAVAILABLE)
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Answer:
    status: int
    headers: list[Header]
    parts: Sequence[Buffer]


def said(status: int, value: Any) -> Answer:
    return Answer(status, [JSON], [_encode(value)])


def refused(refusal: Refusal, id: str = "") -> Answer:
    answer = said(refusal.reason.status, {"error": refusal.message} | ({"id": id} if id else {}))
    if refusal.reason is Reason.UNAUTHENTICATED:
        answer.headers.append((b"www-authenticate", b'Bearer, Basic realm="deeprecsys"'))
    if refusal.reason in _RETRIED:
        answer.headers.append((b"retry-after", b"1"))
    return answer


def traced(answer: Answer, trace: Trace | None) -> Answer:
    """It says which span stands for its query."""
    if trace is not None:
        answer.headers.append((b"traceparent", trace.traceparent.encode()))
    return answer


def is_keyless(path: str) -> bool:
    """Probes are: who asks whether a server lives has no key."""
    return path.startswith("/v2/health/")


def takes_body(method: str, path: str) -> bool:
    parts = parts_of(path)
    takes = http_memory.is_path(parts) or parts[1:2] in (["models"], ["repository"], ["reload"])
    return method == "POST" and parts[:1] == ["v2"] and takes


def right_of(method: str, path: str) -> str:
    """What a key must have for it: see `keys`."""
    if method == "POST" and (path.endswith("/infer") or asked_model(path) is not None):
        return keys.INFER
    parts = parts_of(path)
    if http_memory.is_change(parts):
        return keys.MEMORY
    match parts:
        case ["v2", "repository", "models", *_] | ["v2", "reload"]:
            return keys.ADMIN
    return keys.ANY


def asked_model(path: str) -> tuple[str, str] | None:
    """Model and version of an inference request; None: it is none."""
    match parts_of(path):
        case ["v2", "models", model, "infer"]:
            return model, ""
        case ["v2", "models", model, "versions", version, "infer"]:
            return model, version
    return None


def asked_of_repository(path: str) -> tuple[str, str] | None:
    """What is to be done, and with which model; None: nothing."""
    match parts_of(path):
        case ["v2", "repository", "models", model, ("load" | "unload") as what]:
            return what, model
        case ["v2", "reload"]:
            return "reload", ""
    return None


def answer(plane: DataPlane, pages: Mapping[str, Page], method: str, path: str) -> Answer:
    """Of all but inference. HEAD is answered as GET is, and the connection leaves the body out."""
    parts = parts_of(path)
    page = "/" + "/".join(parts)
    match "GET" if method == "HEAD" else method, parts:
        case "GET", ["v2", "health", "live"]:
            return said(200 if plane.live else 503, {"live": plane.live})
        case "GET", ["v2", "health", "ready"]:
            return said(200 if plane.ready else 503, {"ready": plane.ready})
        case "GET", ["v2"] | ["v2", ""]:
            return said(200, plane.server_metadata())
        case "GET", ["v2", "models", "stats"]:
            return said(200, plane.statistics())
        case "GET", ["v2", "models", model, *rest]:
            return _of_model(plane, model, rest)
        case "POST", ["v2", "repository", "index"]:
            return said(200, plane.index())
        case "GET", _ if page in pages:
            kind, content = pages[page](path.partition("?")[2])
            return Answer(200, [(b"content-type", kind), _POLICY], [content])
        case _ if _exists(parts) or page in pages:
            raise Refusal(Reason.METHOD, f"{method[:20]} is not what this path takes")
    raise Refusal(Reason.NOT_FOUND, "no such path")


def _of_model(plane: DataPlane, model: str, rest: Sequence[str]) -> Answer:
    version = ""
    if len(rest) > 1 and rest[0] == "versions":
        version, rest = rest[1], rest[2:]
    plane.check_model(model, version)
    match rest:
        case []:
            return said(200, plane.model_metadata(model, version))
        case ["ready"]:
            ready = plane.is_ready(model, version)
            return said(200 if ready else 503, {"name": model, "ready": ready})
        case ["config"]:
            return said(200, plane.model_config(model, version))
        case ["stats"]:
            return said(200, plane.statistics(model, version))
        case ["infer"]:
            raise Refusal(Reason.METHOD, "infer takes POST")
    raise Refusal(Reason.NOT_FOUND, "no such path")


def parts_of(path: str) -> list[str]:
    return [unquote(part) for part in path.split("?", 1)[0].split("/")[1:]]


def _exists(parts: Sequence[str]) -> bool:
    """Is there such a path of the protocol, whatever the method?"""
    match parts:
        case ["v2"] | ["v2", "health", "live" | "ready"] | ["v2", "models", *_]:
            return True
        case ["v2", "repository", *_] | ["v2", "reload"]:
            return True
    return False
