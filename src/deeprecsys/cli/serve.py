"""`serve`: a KServe v2 server (HTTP and gRPC) that holds its target."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.core import SLA, Policy, UserError

NAME = "serve"
# Not "auto": what is measured fastest alone may hold the GIL that reading requests needs.
_RUNTIME = "torchscript"
HELP = """Serve a model over KServe v2 (Open Inference Protocol), HTTP and gRPC, under a policy.

Queries that would miss the target are turned away at once (429), so that the others hold it; the
live page is at /, metrics at /metrics. SIGTERM ends it once what it took is answered.

Example: deeprecsys serve dlrm-rmc1 --policy runs/20261121-tune-dlrm-rmc1/policy.json
"""


def run(
    model: opt.ModelName,
    policy: Annotated[
        str | None, typer.Option(help="policy.json of a tuning.  [default: batch size 128]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Instead of a policy file.")] = None,
    sla_ms: opt.SlaMs = None,
    percentile: opt.Percentile = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            help="Of queries that bring no timeout; 0: none, and nobody is turned away.  "
            "[default: the target]"
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for every one.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0: a free one.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="0: a free one; -1: no gRPC.")] = 8001,
    workers: opt.Workers = None,
    pin: opt.Pin = "auto",
    scale: opt.Scale = 1.0,
    variant: opt.Variant = "paper",
    runtime: Annotated[
        str | None,
        typer.Option(help="torchscript, eager or auto.  [default: the policy's, or torchscript]"),
    ] = None,
    query_inputs: Annotated[
        bool,
        typer.Option(help="Also take what belongs to the user in one row for all candidates."),
    ] = True,
    accelerator: opt.Accelerators = None,
    max_body_mb: Annotated[float, typer.Option(help="Of one request.")] = 64.0,
    max_waiting_mb: Annotated[float, typer.Option(help="Of all bodies not answered.")] = 1024.0,
    max_connections: Annotated[int, typer.Option(help="Of HTTP.")] = 4096,
    max_calls: Annotated[int, typer.Option(help="Of gRPC, at once.")] = 1024,
    max_candidates: Annotated[int, typer.Option(help="Of one query.")] = 65_536,
    max_unsent_mb: Annotated[
        float, typer.Option(help="Of answers that clients do not read, all together.")
    ] = 128.0,
    pipe_kb: Annotated[
        float, typer.Option(help="Of a connection's answers not read: its next request waits.")
    ] = 64.0,
    head_s: Annotated[float, typer.Option(help="For a request's head to come.")] = 10.0,
    body_s: Annotated[float, typer.Option(help="For a request's whole body to come.")] = 60.0,
    send_s: Annotated[float, typer.Option(help="For an answer to be read.")] = 60.0,
    idle_s: Annotated[float, typer.Option(help="Between a connection's requests.")] = 75.0,
    drain_s: Annotated[
        float, typer.Option(help="After SIGTERM: not ready, but still taking what comes.")
    ] = 5.0,
    max_queued_items: Annotated[int, typer.Option(help="Items that may wait.")] = 1_000_000,
    hang_s: Annotated[float, typer.Option(help="A request this long: its worker hangs.")] = 30.0,
    device_hang_s: Annotated[
        float,
        typer.Option(
            help="A request this long, and ten times its usual time: its accelerator hangs, and "
            "the cores answer."
        ),
    ] = 0.5,
    tls_cert: Annotated[str | None, typer.Option(help="PEM file; with --tls-key.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file.")] = None,
    key_file: Annotated[
        str | None, typer.Option(help="File with the bearer key that clients must bring.")
    ] = None,
    seed: opt.Seed = 0,
    log_level: Annotated[str, typer.Option(help="info, warning or error.")] = "info",
    log_queries: Annotated[bool, typer.Option(help="A line of the log for every query.")] = False,
    json_file: opt.JsonFile = None,
) -> int:
    from deeprecsys.models import get_spec

    spec = get_spec(model, variant)
    spec.check_scale(scale)
    tuned = Tuned.read(policy, model) if policy else Tuned()
    if policy and batch_size is not None:
        raise UserError("give either --policy or --batch-size")
    chosen = tuned.policy if batch_size is None else Policy(batch_size=batch_size)
    sla = _sla(tuned.sla or spec.target, sla_ms, percentile)
    runtime = runtime or tuned.runtime or _RUNTIME
    opt.check_runtime(runtime)
    _check_accelerators(accelerator or [], chosen)
    pinned = opt.pinned(pin)
    if deadline_ms is not None and deadline_ms < 0:
        raise UserError("--deadline-ms must not be negative")
    bounds = {
        "max-body-mb": max_body_mb, "max-waiting-mb": max_waiting_mb, "pipe-kb": pipe_kb,
        "max-connections": max_connections, "max-calls": max_calls, "head-s": head_s,
        "max-candidates": max_candidates, "max-unsent-mb": max_unsent_mb, "body-s": body_s,
        "send-s": send_s, "idle-s": idle_s,
    }  # fmt: skip
    if not 0 <= drain_s < math.inf:
        raise UserError("--drain-s must not be negative")
    for name, value in {
        "workers": workers,
        "hang-s": hang_s,
        "device-hang-s": device_hang_s,
        **bounds,
    }.items():
        opt.positive(f"--{name}", value)
    if bool(tls_cert) != bool(tls_key):
        raise UserError("TLS needs both --tls-cert and --tls-key")
    files.check_target("--json", json_file)
    key = _key(key_file)
    _start_logging(log_level)
    try:
        from deeprecsys.serving.bounds import Bounds
        from deeprecsys.serving.dataplane import Served
        from deeprecsys.serving.server import Address, Server, json_log
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'deeprecsys[serve]'") from error

    def open_engine() -> Any:
        from deeprecsys.engine import Engine
        from deeprecsys.models import load_model

        once = query_inputs and bool(spec.of_user)
        return Engine(
            load_model(model, scale=scale, seed=seed, variant=variant, query_inputs=once),
            workers,
            runtime,
            max_queued_items=max_queued_items,
            accelerators=accelerator or (),
            percentile=sla.percentile,
            pin=pinned,
            device_hang_s=device_hang_s,
        ).__enter__()

    deadline_s = sla.latency_s if deadline_ms is None else deadline_ms / 1e3 or None
    server = Server(
        Served(model, chosen, sla, deadline_s, deadline_s is not None, hang_s, log_queries),
        open_engine,
        Address(host, http_port, None if grpc_port < 0 else grpc_port, tls_cert, tls_key, key),
        Bounds(
            body_bytes=int(max_body_mb * 2**20),
            waiting_bytes=int(max_waiting_mb * 2**20),
            connections=max_connections,
            unsent_bytes=int(max_unsent_mb * 2**20),
            pipe_bytes=int(pipe_kb * 2**10),
            calls=max_calls,
            candidates=max_candidates,
            head_s=head_s,
            body_s=body_s,
            send_s=send_s,
            idle_s=idle_s,
            drain_s=drain_s,
        ),
        json_log(),
    )
    server.run()
    if json_file:
        text = json.dumps({**files.provenance(NAME), "model": model, **server.totals()}, indent=1)
        if json_file == "-":
            print(text)
        else:
            Path(json_file).write_text(text + "\n")
    if server.left_behind:  # a thread in a library's code, which may not outlive the interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a policy.json says, as `tune` writes it; or a bare policy's."""

    policy: Policy = field(default_factory=Policy)
    sla: SLA | None = None
    runtime: str | None = None

    @classmethod
    def read(cls, path: str, model: str) -> Self:
        """UserError where it cannot be read, or is of another model."""
        try:
            raw = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read the policy {path}: {error}") from error
        policy = raw.get("policy", raw) if isinstance(raw, dict) else None
        if not isinstance(policy, dict):
            raise UserError(f"{path} holds no policy: give a policy.json that `tune` wrote")
        if policy is raw:
            return cls(Policy.from_dict(raw))
        about, sla = raw.get("model"), raw.get("sla")
        of = about.get("model") if isinstance(about, dict) else about
        if of not in (None, model):
            raise UserError(f"{path} is the policy of {of}, not of {model}")
        return cls(
            Policy.from_dict(policy),
            SLA(sla["latency_s"], sla["percentile"]) if sla else None,
            raw.get("runtime"),
        )


def _sla(target: SLA, sla_ms: float | None, percentile: float | None) -> SLA:
    return SLA(
        target.latency_s if sla_ms is None else sla_ms / 1e3,
        target.percentile if percentile is None else percentile,
    )


def _check_accelerators(accelerators: Sequence[str], policy: Policy) -> None:
    for text in accelerators:
        if not text.startswith("cuda:"):
            raise UserError(f"--accelerator {text} computes nothing: serve takes cuda:N only")
    if policy.offload_threshold is not None and not accelerators:
        raise UserError("this policy offloads: give the --accelerator, or another policy")


def _start_logging(level: str) -> None:
    number = getattr(logging, level.upper(), None)
    if not isinstance(number, int):
        raise UserError(f"--log-level is info, warning or error, not {level!r}")
    logging.basicConfig(level=number, format="%(message)s", stream=sys.stderr)


def _key(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        key = Path(path).read_text().strip()
    except OSError as error:
        raise UserError(f"cannot read the key {path}: {error.strerror}") from error
    if not key:
        raise UserError(f"{path} is empty: write the key into it")
    return key
