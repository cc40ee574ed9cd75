"""`serve`: a KServe v2 server (HTTP and gRPC) that holds its target."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli.which import Own, Published, which
from deeprecsys.core import SLA, Policy, Servable, UserError
from deeprecsys.experiments.result import origin
from deeprecsys.serving import log_line
from deeprecsys.serving.keys import Keys

if TYPE_CHECKING:
    from deeprecsys.engine import Engine
    from deeprecsys.serving.bounds import Bounds
    from deeprecsys.serving.server import Server

NAME = "serve"
# Not "auto": what is measured fastest alone may hold the GIL that reading requests needs.
_RUNTIME = "torchscript"
_POSITIVE = (
    "workers", "hang_s", "device_hang_s", "max_body_mb", "max_waiting_mb", "pipe_kb",
    "max_connections", "max_calls", "head_s", "max_candidates", "max_unsent_mb", "body_s", "send_s",
    "idle_s", "max_qps_per_client",
)  # fmt: skip
HELP = """Serve a model over KServe v2 (Open Inference Protocol), HTTP and gRPC, under a policy.

Queries that would miss the target are turned away at once (429), so that the others hold it; the
live page is at /, metrics at /metrics. SIGTERM ends it once what it took is answered.

Example: deeprecsys serve dlrm-rmc1 --policy runs/20261121-tune-dlrm-rmc1/policy.json
"""


@dataclass(frozen=True)
class Wanted:
    """What is served, under which rules, to whom, and within which bounds."""

    model: opt.ModelName
    policy: Annotated[
        str | None, typer.Option(help="policy.json of a tuning.  [default: batch size 128]")
    ] = None
    batch_size: Annotated[int | None, typer.Option(help="Instead of a policy file.")] = None
    execution: opt.ExecutionText = None
    sla_ms: opt.SlaMs = None
    percentile: opt.Percentile = None
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            help="Of queries that bring no timeout; 0: none, and nobody is turned away.  "
            "[default: the target]"
        ),
    ] = None
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for every one.")] = (
        "127.0.0.1"
    )
    http_port: Annotated[int, typer.Option(help="0: a free one.")] = 8000
    grpc_port: Annotated[int, typer.Option(help="0: a free one; -1: no gRPC.")] = 8001
    uds: Annotated[
        str | None, typer.Option(help="Path of a Unix socket to listen at beside --http-port.")
    ] = None
    grpc_uds: Annotated[str | None, typer.Option(help="The same beside --grpc-port.")] = None
    workers: opt.Workers = None
    pin: opt.Pin = "auto"
    scale: opt.Scale = 1.0
    variant: opt.Variant = "paper"
    runtime: Annotated[
        str | None,
        typer.Option(help="torchscript, eager or auto.  [default: the policy's, or torchscript]"),
    ] = None
    query_inputs: Annotated[
        bool,
        typer.Option(help="Also take what belongs to the user in one row for all candidates."),
    ] = True
    accelerator: opt.Accelerators = None
    trust: opt.Trust = False
    max_body_mb: Annotated[float, typer.Option(help="Of one request.")] = 64.0
    max_waiting_mb: Annotated[float, typer.Option(help="Of all bodies not answered.")] = 1024.0
    max_connections: Annotated[int, typer.Option(help="Of HTTP.")] = 4096
    max_calls: Annotated[int, typer.Option(help="Of gRPC, at once.")] = 1024
    max_candidates: Annotated[int, typer.Option(help="Of one query.")] = 65_536
    max_qps_per_client: Annotated[
        float | None,
        typer.Option(help="Queries/s of one client, by its address.  [default: any]"),
    ] = None
    max_unsent_mb: Annotated[
        float, typer.Option(help="Of answers that clients do not read, all together.")
    ] = 128.0
    pipe_kb: Annotated[
        float, typer.Option(help="Of a connection's answers not read: its next request waits.")
    ] = 64.0
    head_s: Annotated[float, typer.Option(help="For a request's head to come.")] = 10.0
    body_s: Annotated[float, typer.Option(help="For a request's whole body to come.")] = 60.0
    send_s: Annotated[float, typer.Option(help="For an answer to be read.")] = 60.0
    idle_s: Annotated[float, typer.Option(help="Between a connection's requests.")] = 75.0
    drain_s: Annotated[
        float, typer.Option(help="After SIGTERM: not ready, but still taking what comes.")
    ] = 5.0
    max_queued_items: Annotated[int, typer.Option(help="Items that may wait.")] = 1_000_000
    hang_s: Annotated[float, typer.Option(help="A request this long: its worker hangs.")] = 30.0
    device_hang_s: Annotated[
        float,
        typer.Option(
            help="A request this long, and ten times its usual time: its accelerator hangs, and "
            "the cores answer."
        ),
    ] = 0.5
    tls_cert: Annotated[str | None, typer.Option(help="PEM file; with --tls-key.")] = None
    tls_key: Annotated[str | None, typer.Option(help="PEM file.")] = None
    tls_client_ca: Annotated[
        str | None,
        typer.Option(help="PEM file: clients must show a certificate that one of these signed."),
    ] = None
    key_file: Annotated[
        str | None,
        typer.Option(
            help="File with the bearer key that clients must bring, or with a line NAME RIGHTS KEY "
            "for each; rights: infer, memory, admin."
        ),
    ] = None
    seed: opt.Seed = 0
    log_level: Annotated[str, typer.Option(help="info, warning or error.")] = "info"
    log_queries: Annotated[bool, typer.Option(help="A line of the log for every query.")] = False
    json_file: opt.JsonFile = None


@opt.expanded
def run(wanted: Wanted) -> int:
    model = which(wanted.model, trust=wanted.trust, scale=wanted.scale, variant=wanted.variant,
                  seed=wanted.seed)  # fmt: skip
    model.check()
    tuned = Tuned.read(wanted.policy, model.name, _made(model)) if wanted.policy else Tuned()
    policy = _policy(tuned, wanted)
    model = replace(model, execution=policy.execution)
    if isinstance(model, Published):
        model = replace(model, query_inputs=wanted.query_inputs and model.of_user)
    model.check()
    sla = opt.asked_target(tuned.sla or model.target, wanted.sla_ms, wanted.percentile)
    if sla is None:
        raise UserError(opt.NO_TARGET)
    usual = _RUNTIME if isinstance(model, Published) else "auto"
    tuned = replace(tuned, policy=policy, sla=sla,
                    runtime=wanted.runtime or tuned.runtime or usual)  # fmt: skip
    _check(wanted, tuned, model)
    keys = Keys.read(wanted.key_file) if wanted.key_file is not None else None
    _start_logging(wanted.log_level)
    try:
        server = _server(wanted, tuned, sla, keys, model)
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'deeprecsys[serve]'") from error
    server.run()
    if wanted.json_file:
        said = {**origin(NAME), "model": model.name, **server.totals()}
        files.write_json(json.dumps(said, indent=1), wanted.json_file)
    if server.left_behind:  # a thread in a library's code, which may not outlive the interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _server(
    wanted: Wanted, tuned: Tuned, sla: SLA, keys: Keys | None, model: Published | Own
) -> Server:
    from deeprecsys.serving.dataplane import Served
    from deeprecsys.serving.server import Address, Server, json_log

    deadline_s = sla.latency_s if wanted.deadline_ms is None else wanted.deadline_ms / 1e3 or None
    grpc_port = None if wanted.grpc_port < 0 else wanted.grpc_port
    return Server(
        Served(
            model.name, tuned.policy, sla, deadline_s, deadline_s is not None, wanted.hang_s,
            wanted.log_queries,
        ),
        lambda: _engine(wanted, tuned, sla, model),
        Address(wanted.host, wanted.http_port, grpc_port, wanted.tls_cert, wanted.tls_key, keys,
                wanted.tls_client_ca, wanted.uds, wanted.grpc_uds),
        _bounds(wanted),
        json_log(),
    )  # fmt: skip


def _engine(wanted: Wanted, tuned: Tuned, sla: SLA, model: Published | Own) -> Engine:
    """Open, with the model loaded."""
    from deeprecsys.engine import Engine

    loaded = model.load()
    _check_weights(wanted, tuned, loaded)
    return Engine(
        loaded,
        wanted.workers,
        tuned.runtime or "auto",
        max_queued_items=wanted.max_queued_items,
        accelerators=wanted.accelerator or (),
        percentile=sla.percentile,
        pin=opt.pinned(wanted.pin),
        device_hang_s=wanted.device_hang_s,
    ).__enter__()


def _check_weights(wanted: Wanted, tuned: Tuned, model: Servable) -> None:
    """UserError where they are not those that the policy was chosen for."""
    from deeprecsys.artifacts.weights import weights_hash

    if tuned.weights is not None and (found := weights_hash(model)) != tuned.weights:
        raise UserError(
            f"{wanted.policy} was chosen for weights {tuned.weights}, {model.name} here has "
            f"{found}: tune again, or serve the model that it was chosen for"
        )


def _bounds(wanted: Wanted) -> Bounds:
    from deeprecsys.serving.bounds import Bounds

    return Bounds(
        body_bytes=int(wanted.max_body_mb * 2**20),
        waiting_bytes=int(wanted.max_waiting_mb * 2**20),
        connections=wanted.max_connections,
        unsent_bytes=int(wanted.max_unsent_mb * 2**20),
        pipe_bytes=int(wanted.pipe_kb * 2**10),
        calls=wanted.max_calls,
        candidates=wanted.max_candidates,
        client_qps=wanted.max_qps_per_client,
        head_s=wanted.head_s,
        body_s=wanted.body_s,
        send_s=wanted.send_s,
        idle_s=wanted.idle_s,
        drain_s=wanted.drain_s,
    )


def _made(model: Published | Own) -> dict[str, Any]:
    """What a published model's weights depend on."""
    if isinstance(model, Own):
        return {}
    return {name: getattr(model, name) for name in ("variant", "scale", "seed")}


def _policy(tuned: Tuned, wanted: Wanted) -> Policy:
    """As its file says, or the options."""
    if wanted.policy and wanted.batch_size is not None:
        raise UserError("give either --policy or --batch-size")
    asked, own = opt.asked_execution(wanted.execution), tuned.policy.execution
    if wanted.policy:
        if wanted.execution is not None and asked != own:
            raise UserError(
                f"{wanted.policy} was chosen for execution {own}: leave out --execution {asked}, "
                "or tune again"
            )
        return tuned.policy
    policy = Policy(execution=asked)
    return policy if wanted.batch_size is None else replace(policy, batch_size=wanted.batch_size)


def _check(wanted: Wanted, tuned: Tuned, model: Published | Own) -> None:
    """UserError for what contradicts itself, before any work."""
    if isinstance(model, Published):
        opt.check_runtime(tuned.runtime or _RUNTIME)
        if wanted.accelerator:
            opt.check_cores_alone(model.execution)
    elif wanted.accelerator:
        raise UserError("a model of your own runs on the cores: leave out --accelerator")
    _check_accelerators(wanted.accelerator or [], tuned.policy)
    opt.pinned(wanted.pin)
    if wanted.deadline_ms is not None and wanted.deadline_ms < 0:
        raise UserError("--deadline-ms must not be negative")
    if not 0 <= wanted.drain_s < math.inf:
        raise UserError("--drain-s must not be negative")
    for name in _POSITIVE:
        opt.positive(f"--{name.replace('_', '-')}", getattr(wanted, name))
    if bool(wanted.tls_cert) != bool(wanted.tls_key):
        raise UserError("TLS needs both --tls-cert and --tls-key")
    if wanted.tls_client_ca and not wanted.tls_cert:
        raise UserError("--tls-client-ca is of TLS: give --tls-cert and --tls-key")
    if wanted.grpc_uds and wanted.grpc_port < 0:
        raise UserError("--grpc-uds is of gRPC: leave out --grpc-port -1")
    files.check_target("--json", wanted.json_file)


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a policy.json says, as `tune` writes it; or a bare policy's."""

    policy: Policy = field(default_factory=Policy)
    sla: SLA | None = None
    runtime: str | None = None
    weights: str | None = None  # their hash

    @classmethod
    def read(cls, path: str, model: str, made: Mapping[str, Any] | None = None) -> Self:
        """UserError where it cannot be read, or is of another model, or one made otherwise."""
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
        about = about if isinstance(about, dict) else {"model": about}
        if (of := about.get("model")) not in (None, model):
            raise UserError(f"{path} is the policy of {of}, not of {model}")
        for name, given in (made or {}).items():
            if about.get(name) not in (None, given):
                raise UserError(
                    f"{path} was chosen for {name} {about[name]}, not {given}: "
                    f"give --{name} {about[name]}, or tune again"
                )
        try:
            target = SLA(sla["latency_s"], sla["percentile"]) if sla else None
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} has a damaged sla: {sla!r}; tune again") from error
        return cls(
            Policy.from_dict(policy),
            target,
            raw.get("runtime"),
            about.get("weights"),
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
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_line.Formatter())
    logging.basicConfig(level=number, handlers=[handler])
