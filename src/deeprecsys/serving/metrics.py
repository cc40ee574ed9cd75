"""Prometheus metrics: ours, and Triton's names where the meaning is the same.

Histograms, so that they can be added up over servers, by stage and by class of query size; read
from `Observed` when asked for, so that a query pays for a few additions only.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import CollectorRegistry

from deeprecsys.protocol.reasons import Reason
from deeprecsys.serving.dataplane import VERSION, DataPlane
from deeprecsys.serving.observed import EDGES_S, Histogram, size_label

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
        model = {"model": plane.served.name, "version": VERSION}
        load = plane.engine.load() if plane.engine else None

        def one(name: str, what: str, value: float, kind: str = "gauge") -> Metric:
            metric = Metric(name, what, kind)
            metric.add_sample(name, model, value)
            return metric

        # Triton's counters are called without the suffix that the format asks of counters.
        triton = "unknown"
        yield one("nv_inference_request_success", "Queries answered.", seen.answered, triton)
        failure = Metric("nv_inference_request_failure", "Queries not answered.", triton)
        for reason, count in seen.failures.items():
            failure.add_sample(failure.name, {**model, "reason": reason.name}, count)
        yield failure
        other = Metric("deeprecsys_requests_refused", "Requests that asked for no query.", triton)
        for reason, count in seen.others.items():
            other.add_sample(other.name, {**model, "reason": reason.name}, count)
        yield other
        bounds = Metric("deeprecsys_bounded", "Refused or ended by a bound.", triton)
        for option, count in seen.bounds.items():
            bounds.add_sample(bounds.name, {**model, "bound": option}, count)
        yield bounds
        yield one("nv_inference_count", "Items scored.", seen.items, triton)
        executed = load.requests if load else 0
        yield one("nv_inference_exec_count", "Requests executed.", executed, triton)
        pending = "nv_inference_pending_request_count"
        yield one(pending, "Queries taken and not answered.", plane.pending)
        request_s = sum(histogram.sum_s for histogram in seen.by_size)
        for name, seconds in (
            ("request", request_s),
            ("queue", seen.stages["queue"].sum_s),
            ("compute_input", seen.stages["receive"].sum_s),
            ("compute_infer", seen.stages["compute"].sum_s),
            ("compute_output", seen.stages["send"].sum_s),
        ):
            label = f"nv_inference_{name}_duration_us"
            yield one(label, f"Microseconds, cumulative: {name}.", int(seconds * 1e6), triton)
        yield _histograms(
            "deeprecsys_stage_seconds", "Time of a query by stage.",
            [({**model, "stage": name}, h) for name, h in seen.stages.items()],
        )  # fmt: skip
        yield _histograms(
            "deeprecsys_query_seconds", "From first byte to answer, by class of query size.",
            [({**model, "size": size_label(k)}, h) for k, h in enumerate(seen.by_size)],
        )  # fmt: skip
        yield one("deeprecsys_shed", "Queries turned away.", seen.shed, triton)
        expired = seen.failures[Reason.DEADLINE]
        yield one("deeprecsys_expired", "Queries whose deadline passed.", expired, triton)
        yield one("deeprecsys_sla_seconds", "The target.", plane.served.sla.latency_s)
        lag = "The longest that a request waited for the event loop in the last second."
        yield one("deeprecsys_loop_lag_seconds", lag, seen.loop_lag_s)
        yield one("deeprecsys_ready", "1 if it takes queries.", float(plane.ready))
        if load is not None:
            queued = load.queued_items
            yield one("deeprecsys_queued_items", "Items that wait for a worker.", queued)
            lost = len(load.lost_workers)
            yield one("deeprecsys_workers_replaced", "Died or hung.", lost, triton)
            busy = Metric("deeprecsys_worker_busy_seconds", "In requests, cumulative.", triton)
            for worker, seconds in enumerate(load.busy_s):
                busy.add_sample(busy.name, {**model, "worker": str(worker)}, seconds)
            yield busy
            present = Metric("deeprecsys_device_present", "1 if it takes queries.", "gauge")
            failures = Metric("deeprecsys_device_failures", "Failed, or hung.", triton)
            for number, device in enumerate(load.devices):
                labels = {**model, "device": device.name, "number": str(number)}
                present.add_sample(present.name, labels, float(device.present))
                failures.add_sample(failures.name, labels, device.failures)
            yield present
            yield failures


def _histograms(name: str, what: str, rows: list[tuple[dict[str, Any], Histogram]]) -> Metric:
    metric = Metric(name, what, "histogram")
    for labels, histogram in rows:
        counts = list(accumulate(histogram.counts))
        for edge, count in zip([*map(str, EDGES_S), "+Inf"], counts, strict=True):
            metric.add_sample(f"{name}_bucket", {**labels, "le": edge}, count)
        metric.add_sample(f"{name}_count", labels, counts[-1])
        metric.add_sample(f"{name}_sum", labels, histogram.sum_s)
    return metric
