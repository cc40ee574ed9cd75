"""Prometheus metrics: ours, and Triton's names where the meaning is the same.

Histograms, so that they can be added up over servers, by stage and by class of query size; read
from `Observed` when asked for, so that a query pays for a few additions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from deeprecsys.protocol.reasons import Reason
from deeprecsys.serving.dataplane import VERSION, DataPlane
from deeprecsys.serving.hosted import Hosted
from deeprecsys.serving.observed import Histogram, size_label

if TYPE_CHECKING:
    from deeprecsys.engine import Load
    from deeprecsys.serving.shadow import Compared

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(plane: DataPlane) -> bytes:
    """All metrics in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(plane))
    return bytes(generate_latest(registry))


class _Collector:
    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    def collect(self) -> Iterator[Metric]:
        plane, seen = self._plane, self._plane.seen()
        found = _Found()
        for hosted in plane.hosted():
            _of_version(found, hosted, plane)
        if plane.engine is None:  # nothing is loaded yet
            for name in plane.models:
                found.add("deeprecsys_ready", {"model": name, "version": VERSION}, 0.0)
        for hosting in plane.models.values():
            compared = plane.repository.shadow(hosting.name) if plane.repository else None
            if compared is not None and hosting.shadow is not None:
                _of_shadow(found, hosting.name, hosting.shadow, compared)
        for reason, count in plane.of_no_model.items():
            if count:
                labels = {"model": "", "version": "", "reason": reason.name}
                found.add("nv_inference_request_failure", labels, count)
        for reason, count in seen.others.items():
            found.add("deeprecsys_requests_refused", {"reason": reason.name}, count)
        for option, count in seen.bounds.items():
            found.add("deeprecsys_bounded", {"bound": option}, count)
        found.add("deeprecsys_pending", {}, plane.pending)
        found.add("deeprecsys_waiting_bytes", {}, plane.waiting.held + plane.waiting.elsewhere)
        found.add("deeprecsys_waiting_bytes_limit", {}, plane.waiting.limit)
        found.add("deeprecsys_loop_lag_seconds", {}, seen.loop_lag_s)
        if plane.engine is not None and plane.state != "ended":
            _of_workers(found, plane.engine.load())
        yield from found.metrics.values()


class _Found:
    """Metrics by name, as `_WHAT` describes them."""

    def __init__(self) -> None:
        self.metrics: dict[str, Metric] = {}

    def add(self, name: str, labels: dict[str, str], value: float) -> None:
        self._of(name).add_sample(name, labels, value)

    def histogram(self, name: str, labels: dict[str, str], histogram: Histogram) -> None:
        metric, counts = self._of(name), list(accumulate(histogram.counts))
        for edge, count in zip([*map(str, histogram.edges_s), "+Inf"], counts, strict=True):
            metric.add_sample(f"{name}_bucket", {**labels, "le": edge}, count)
        metric.add_sample(f"{name}_count", labels, counts[-1])
        metric.add_sample(f"{name}_sum", labels, histogram.sum_s)

    def _of(self, name: str) -> Metric:
        if name not in self.metrics:
            self.metrics[name] = Metric(name, *_WHAT[name])
        return self.metrics[name]


def _of_version(found: _Found, hosted: Hosted, plane: DataPlane) -> None:
    seen, model = hosted.observed, {"model": hosted.name, "version": hosted.version}
    load = hosted.engine.load() if plane.state != "ended" else None
    traffic = plane.models[hosted.name].traffic
    found.add("nv_inference_request_success", model, seen.answered)
    for reason, count in seen.failures.items():
        found.add("nv_inference_request_failure", {**model, "reason": reason.name}, count)
    found.add("nv_inference_count", model, seen.items)
    found.add("nv_inference_exec_count", model, load.requests if load else 0)
    found.add("nv_inference_pending_request_count", model, load.open_queries if load else 0)
    stages = seen.stages
    for name, seconds in (
        ("request", sum(histogram.sum_s for histogram in seen.by_size)),
        ("queue", stages["queue"].sum_s),
        ("compute_input", stages["receive"].sum_s),
        ("compute_infer", stages["compute"].sum_s),
        ("compute_output", stages["send"].sum_s),
    ):
        found.add(f"nv_inference_{name}_duration_us", model, int(seconds * 1e6))
    for stage, histogram in stages.items():
        found.histogram("deeprecsys_stage_seconds", {**model, "stage": stage}, histogram)
    for k, histogram in enumerate(seen.by_size):
        found.histogram("deeprecsys_query_seconds", {**model, "size": size_label(k)}, histogram)
    found.add("deeprecsys_shed", model, seen.shed)
    found.add("deeprecsys_expired", model, seen.failures[Reason.DEADLINE])
    found.add("deeprecsys_sla_seconds", model, hosted.served.sla.latency_s)
    found.add("deeprecsys_ready", model, float(plane.ready))
    share = 0.0
    if traffic is not None:
        canary = traffic.share if traffic.canary is not None else 0.0
        share = {traffic.stable: 1.0 - canary, traffic.canary: canary}.get(hosted.version, 0.0)
    found.add("deeprecsys_version_share", model, share)
    if load is not None:
        found.add("deeprecsys_queued_items", model, load.queued_items)


def _of_shadow(found: _Found, name: str, version: str, compared: Compared) -> None:
    model = {"model": name, "version": version}
    found.add("deeprecsys_shadow_queries", model, compared.queries)
    found.add("deeprecsys_shadow_difference", model, compared.difference)
    found.add("deeprecsys_shadow_slower", model, compared.slower)


def _of_workers(found: _Found, load: Load) -> None:
    """Which all models have in common."""
    found.add("deeprecsys_workers_replaced", {}, len(load.lost_workers))
    for worker, seconds in enumerate(load.busy_s):
        found.add("deeprecsys_worker_busy_seconds", {"worker": str(worker)}, seconds)
    for number, device in enumerate(load.devices):
        labels = {"device": device.name, "number": str(number)}
        found.add("deeprecsys_device_present", labels, float(device.present))
        found.add("deeprecsys_device_failures", labels, device.failures)


# Triton's counters are called without the suffix that the format asks of counters.
_COUNTER, _GAUGE = "unknown", "gauge"
_WHAT = {
    "nv_inference_request_success": ("Queries answered.", _COUNTER),
    "nv_inference_request_failure": ("Queries not answered.", _COUNTER),
    "nv_inference_count": ("Items scored.", _COUNTER),
    "nv_inference_exec_count": ("Requests executed, by all models.", _COUNTER),
    "nv_inference_pending_request_count": ("Queries taken and not answered.", _GAUGE),
    **{
        f"nv_inference_{name}_duration_us": (f"Microseconds, cumulative: {name}.", _COUNTER)
        for name in ("request", "queue", "compute_input", "compute_infer", "compute_output")
    },
    "deeprecsys_requests_refused": ("Requests that asked for no query.", _COUNTER),
    "deeprecsys_bounded": ("Refused or ended by a bound.", _COUNTER),
    "deeprecsys_pending": ("Queries taken and not answered, of all models.", _GAUGE),
    "deeprecsys_waiting_bytes": ("Bodies of queries that are not answered.", _GAUGE),
    "deeprecsys_waiting_bytes_limit": ("What of them may wait.", _GAUGE),
    "deeprecsys_stage_seconds": ("Time of a query by stage.", "histogram"),
    "deeprecsys_query_seconds": (
        "From first byte to answer, by class of query size.", "histogram",
    ),
    "deeprecsys_shed": ("Queries turned away.", _COUNTER),
    "deeprecsys_expired": ("Queries whose deadline passed.", _COUNTER),
    "deeprecsys_sla_seconds": ("The target.", _GAUGE),
    "deeprecsys_loop_lag_seconds": (
        "The longest that a request waited for the event loop in the last second.", _GAUGE,
    ),
    "deeprecsys_ready": ("1 if it takes queries.", _GAUGE),
    "deeprecsys_version_share": ("Of a model's queries, those that a version answers.", _GAUGE),
    "deeprecsys_queued_items": ("Items that wait for a worker.", _GAUGE),
    "deeprecsys_shadow_queries": ("Compared with the version that serves.", _COUNTER),
    "deeprecsys_shadow_difference": ("Of scores, the most that was seen.", _GAUGE),
    "deeprecsys_shadow_slower": ("p95 of a query over that of the version that serves.", _GAUGE),
    "deeprecsys_workers_replaced": ("Died or hung.", _COUNTER),
    "deeprecsys_worker_busy_seconds": ("In requests, cumulative.", _COUNTER),
    "deeprecsys_device_present": ("1 if it takes queries.", _GAUGE),
    "deeprecsys_device_failures": ("Failed, or hung.", _COUNTER),
}  # fmt: skip
