"""`serve`: a KServe v2 server (HTTP and gRPC) that holds its target."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated

import typer

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import serve_file
from deeprecsys.cli.hosting import Entry
from deeprecsys.core import UserError
from deeprecsys.experiments.result import origin
from deeprecsys.serving import log_line, tracing
from deeprecsys.serving.keys import Keys

if TYPE_CHECKING:
    from deeprecsys.serving.bounds import Bounds
    from deeprecsys.serving.record import Recorder
    from deeprecsys.serving.server import Server
    from deeprecsys.serving.source import Source

NAME = "serve"
_POSITIVE = (
    "workers", "hang_s", "device_hang_s", "max_body_mb", "max_waiting_mb", "pipe_kb",
    "max_connections", "max_calls", "head_s", "max_candidates", "max_unsent_mb", "body_s", "send_s",
    "idle_s", "max_qps_per_client", "record_mb",
)  # fmt: skip
HELP = """Serve models over KServe v2 (Open Inference Protocol), HTTP and gRPC, under a policy each.

Queries that would miss the target are turned away at once (429), so that the others hold it; the
live page is at /, metrics at /metrics. Several models have the workers in common, with shares by
weight. SIGTERM ends it once what it took is answered.

Example: deeprecsys serve dlrm-rmc1 --policy runs/20261121-tune-dlrm-rmc1/policy.json
"""


@dataclass(frozen=True)
class Wanted:
    """What is served, under which rules, to whom, and within which bounds."""

    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL | NAME=MODEL]...",
            help="Of `deeprecsys models`, or paths to your own: a model, or a folder of versions.",
        ),
    ] = None
    config: Annotated[
        str | None,
        typer.Option(help="serve.toml: models, each with its options, and the server's."),
    ] = None
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="policy.json of a tuning; NAME=FILE with several models.  "
            "[default: batch size 128]"
        ),
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
    record: Annotated[
        str | None,
        typer.Option(
            help="Write queries down, evenly spread over time: a .jsonl for load, and for tune as "
            "a model's samples.jsonl."
        ),
    ] = None
    record_mb: Annotated[float, typer.Option(help="Of one such file.")] = 256.0
    record_schedule: Annotated[
        str | None,
        typer.Option(help="Write down when queries come and their sizes: a .csv for replay:FILE."),
    ] = None
    weight: Annotated[
        float, typer.Option(help="Of each model's share of the workers, beside others.")
    ] = 1.0
    load_share: Annotated[
        float,
        typer.Option(help="Of one core: what loading a version beside others may take, at most 1."),
    ] = 0.1
    seed: opt.Seed = 0
    log_level: Annotated[str, typer.Option(help="info, warning or error.")] = "info"
    log_queries: Annotated[bool, typer.Option(help="A line of the log for every query.")] = False
    log_share: Annotated[
        float,
        typer.Option(
            help="Of the queries that were answered, those with a line: by their ids; all others "
            "have theirs."
        ),
    ] = 1.0
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Of an OpenTelemetry collector (OTLP over HTTP), which gets the spans of queries. "
            "HTTP is then read by Python.  [default: none]",
        ),
    ] = None
    trace_share: Annotated[
        float,
        typer.Option(
            help="Of the queries without a traceparent, those that are traced; one whose parent is "
            "sampled always is."
        ),
    ] = tracing.SHARE
    json_file: opt.JsonFile = None


# What the options say of every model, where several are served.
_OF_MODELS = tuple(
    f.name for f in fields(Entry) if f.name not in ("model", "name", "policy", "where", "weight",
                                                   "slower", "keep", "version", "accelerator")
)  # fmt: skip


@opt.expanded
def run(wanted: Wanted) -> int:
    asked = wanted  # as on the command line
    wanted, entries, keys = _read(asked)
    _check(wanted)
    _start_logging(wanted.log_level)
    names = [entry.served_as for entry in entries]
    try:
        server = _server(wanted, entries, keys, asked)
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}: pip install 'deeprecsys[serve]'") from error
    server.run()
    if wanted.json_file:
        said = {**origin(NAME), "model": names[0], "models": names, **server.totals()}
        files.write_json(json.dumps(said, indent=1), wanted.json_file)
    if server.left_behind:  # a thread in a library's code, which may not outlive the interpreter
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def _read(asked: Wanted, before: Sequence[Entry] = ()) -> tuple[Wanted, list[Entry], Keys | None]:
    """What the options and the files that they name say; UserError where that is wrong. before:
    the same, read before: models that are served already are not opened."""
    wanted, entries = _entries(asked)
    known = {(entry.model, entry.name): entry for entry in before}
    for entry in entries:
        entry.like(known.get((entry.model, entry.name))).check()
    names = [entry.served_as for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"two models are called {twice}: give one another name, NAME=MODEL")
    return wanted, entries, Keys.read(wanted.key_file) if wanted.key_file is not None else None


def _entries(wanted: Wanted) -> tuple[Wanted, list[Entry]]:
    """The models that are asked for, and the options of the server, those of a file among them."""
    if wanted.config is not None:
        if wanted.models or wanted.policy:
            raise UserError(f"{wanted.config} says which models: leave MODEL and --policy out")
        return serve_file.read(wanted.config, wanted)
    from deeprecsys.artifacts import is_path

    if not wanted.models:
        raise UserError(
            "which model? give MODEL, one of `deeprecsys models` or a path, or --config"
        )
    policies = _by_name("--policy", wanted.policy or [], len(wanted.models))
    entries: list[Entry] = []
    for text in wanted.models:
        name, _, model = text.partition("=") if _is_named(text) else ("", "", text)
        said = {field: getattr(wanted, field) for field in _OF_MODELS}
        if len(wanted.models) > 1 and is_path(model):  # those are of the published ones
            said |= {"scale": Entry.scale, "variant": Entry.variant}
        policy = policies.pop(name, None) or policies.pop("", None)
        accelerator = tuple(wanted.accelerator or ()) if not entries else ()
        entries.append(
            Entry(
                model, name or None, policy, accelerator=accelerator, weight=wanted.weight, **said
            )
        )
    if policies:
        raise UserError(f"--policy {next(iter(policies))}=…: no model is called so")
    return wanted, entries


def _is_named(text: str) -> bool:
    """NAME=…, and not a path with such a sign in it."""
    name, sign, _ = text.partition("=")
    return bool(sign and name) and "/" not in name


def _by_name(option: str, texts: list[str], models: int) -> dict[str, str]:
    """FILE, or NAME=FILE each."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=") if _is_named(text) else ("", "", text)
        if name in found or (not name and models > 1):
            raise UserError(f"with several models give {option} NAME=FILE, once for each")
        found[name] = value
    return found


def _server(wanted: Wanted, entries: list[Entry], keys: Keys | None, asked: Wanted) -> Server:
    from deeprecsys.serving.server import Address, Server, json_log

    grpc_port = None if wanted.grpc_port < 0 else wanted.grpc_port

    def sources(entries: list[Entry]) -> list[Source]:
        first, *others = entries
        return [
            first.source(
                workers=wanted.workers,
                max_queued_items=wanted.max_queued_items,
                accelerators=tuple(wanted.accelerator or ()),
                pin=opt.pinned(wanted.pin),
                device_hang_s=wanted.device_hang_s,
            ),
            *(entry.source(max_queued_items=wanted.max_queued_items) for entry in others),
        ]

    served = entries

    def read_again() -> tuple[list[Source], Keys | None]:
        nonlocal served
        _, entries, keys = _read(asked, served)
        found = sources(entries)
        served = entries
        return found, keys

    return Server(
        sources(entries),
        Address(
            wanted.host,
            wanted.http_port,
            grpc_port,
            wanted.tls_cert,
            wanted.tls_key,
            keys,
            wanted.tls_client_ca,
            wanted.uds,
            wanted.grpc_uds,
        ),
        _bounds(wanted),
        json_log(),
        wanted.load_share,
        read_again,
        _recorder(wanted, len(entries)),
        _tracing(wanted),
    )


def _tracing(wanted: Wanted) -> tracing.Tracing | None:
    if wanted.trace is None:
        return None
    from deeprecsys.serving import otlp

    return tracing.Tracing(otlp.to_collector(wanted.trace), wanted.trace_share)


def _recorder(wanted: Wanted, models: int) -> Recorder | None:
    from deeprecsys.serving.record import Recorder
    from deeprecsys.serving.server import json_log

    if wanted.record is None and wanted.record_schedule is None:
        return None
    most_bytes = int(wanted.record_mb * 2**20)
    files = wanted.record, wanted.record_schedule
    return Recorder(*files, most_bytes, several=models > 1, log=json_log())


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


def _check(wanted: Wanted) -> None:
    """UserError for what contradicts itself, before any work."""
    opt.pinned(wanted.pin)
    if not 0 <= wanted.drain_s < math.inf:
        raise UserError("--drain-s must not be negative")
    for name in _POSITIVE:
        opt.positive(f"--{name.replace('_', '-')}", getattr(wanted, name))
    for option, path, kind in (
        ("--record", wanted.record, ".jsonl"),
        ("--record-schedule", wanted.record_schedule, ".csv"),
    ):
        if path is not None and not path.endswith(kind):
            raise UserError(f"{option} writes {kind}: name its file so")
    if not 0 < wanted.load_share <= 1:
        raise UserError(f"--load-share is from 0 to 1, not {wanted.load_share:g}")
    if not 0 <= wanted.trace_share <= 1:
        raise UserError(f"--trace-share is from 0 to 1, not {wanted.trace_share:g}")
    if wanted.trace is None and wanted.trace_share != tracing.SHARE:
        raise UserError("--trace-share is of traces: give --trace URL")
    if bool(wanted.tls_cert) != bool(wanted.tls_key):
        raise UserError("TLS needs both --tls-cert and --tls-key")
    if wanted.tls_client_ca and not wanted.tls_cert:
        raise UserError("--tls-client-ca is of TLS: give --tls-cert and --tls-key")
    if wanted.grpc_uds and wanted.grpc_port < 0:
        raise UserError("--grpc-uds is of gRPC: leave out --grpc-port -1")
    files.check_target("--json", wanted.json_file)


def _start_logging(level: str) -> None:
    number = getattr(logging, level.upper(), None)
    if not isinstance(number, int):
        raise UserError(f"--log-level is info, warning or error, not {level!r}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log_line.Formatter())
    logging.basicConfig(level=number, handlers=[handler])
