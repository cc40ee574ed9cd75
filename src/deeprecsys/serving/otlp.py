"""Spans on their way to a collector: OTLP over HTTP, by OpenTelemetry's own batches and exporter.

Alone in importing OpenTelemetry (extra `[otel]`), and only when a server traces. Whether a query is
traced was decided before (`tracing`), and times and ids are given: so neither a tracer nor a
sampler of the SDK is asked, which would cost more than all the rest of it. Its variables hold: for
the exporter's headers, certificates and time-outs (`OTEL_EXPORTER_OTLP_…`), the batches
(`OTEL_BSP_…`) and the resource (`OTEL_SERVICE_NAME`, `OTEL_RESOURCE_ATTRIBUTES`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from deeprecsys.core import UserError
from deeprecsys.serving.hosted import clock
from deeprecsys.serving.tracing import Span, Trace

_PATH = "/v1/traces"  # of OTLP over HTTP
_FAULT = 500  # the least status that is an error of a server's span


def endpoint(url: str) -> str:
    """Where spans go: a collector's address, or the whole URL. UserError."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise UserError(f"--trace is a collector's URL, http://HOST:4318, not {url}")
    return urlunsplit(parts._replace(path=_PATH)) if parts.path in ("", "/") else url


def to_collector(url: str) -> Otlp:
    """UserError without the extra, or for what is no URL."""
    where = endpoint(url)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise UserError("--trace needs OpenTelemetry: pip install 'deeprecsys[otel]'") from error
    return Otlp(BatchSpanProcessor(OTLPSpanExporter(where)))


class Otlp:
    """A `tracing.Collector`. processor: of OpenTelemetry's SDK, which is told of ended spans."""

    def __init__(self, processor: Any) -> None:
        import opentelemetry.trace as api
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._api, self._ended_span = api, ReadableSpan
        own = version("deeprecsys")
        name = os.environ.get("OTEL_SERVICE_NAME") or "deeprecsys"
        self._processor = processor
        self._resource = Resource.create({"service.name": name, "service.version": own})
        self._scope = InstrumentationScope("deeprecsys", own)

    def send(self, trace: Trace, spans: Sequence[Span]) -> None:
        api = self._api
        began_ns = time.time_ns() - int(clock() * 1e9)  # of the clock, by the wall's
        state = api.TraceState(trace.parent.state if trace.parent else ())
        flags = api.TraceFlags(api.TraceFlags.SAMPLED)

        def context(span_id: int, *, remote: bool = False) -> Any:
            return api.SpanContext(trace.trace_id, span_id, remote, flags, state)

        within = None if trace.parent is None else context(trace.parent.span_id, remote=True)
        kind = api.SpanKind.SERVER
        for span in spans:
            own = context(span.span_id)
            self._processor.on_end(self._ended(span, own, within, kind, began_ns))
            if kind is api.SpanKind.SERVER:
                within, kind = own, api.SpanKind.INTERNAL

    def _ended(self, span: Span, own: Any, within: Any, kind: Any, began_ns: int) -> Any:
        code = self._api.StatusCode
        failed = int(span.attributes.get("deeprecsys.status", 0)) >= _FAULT
        return self._ended_span(
            span.name,
            context=own,
            parent=within,
            resource=self._resource,
            attributes=span.attributes,
            kind=kind,
            instrumentation_scope=self._scope,
            status=self._api.Status(code.ERROR if failed else code.UNSET),
            start_time=began_ns + int(span.since_s * 1e9),
            end_time=began_ns + int(span.until_s * 1e9),
        )

    def close(self) -> bool:
        self._processor.shutdown()
        return True


__all__ = ["Otlp", "endpoint", "to_collector"]
