"""Users' own models against what they are made of: `python benchmarks/own_models.py --only trees`.

Everything in turns with what it is compared to, on the same two workers. Rows are printed as they
come, under the machine's name; nothing is kept.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import deeprecsys as drs
from deeprecsys.artifacts import OwnModel, open_model
from deeprecsys.core import SLA, Inputs, Policy, UserError
from deeprecsys.engine import Engine
from deeprecsys.models import load_model
from rows import HEADER, Row, asked, provenance
from served import Bare, posted, served
from turns import compare, said

WORKERS = 2
# Batch size and target: ncf's own 5 ms are missed for a neighbour's sake, at any rate.
_ZOO = {"ncf": (256, SLA(0.02)), "dlrm-rmc3": (128, SLA(0.1))}
_TURNS, _TURN_S = 5, 2.0
_AHEAD = 8  # queries in an engine at once
_OPENINGS = 5
# Opens a model, for queries; gives what asks the query of that number, and waits for the answer.
_Opened = Callable[[OwnModel, Sequence[Inputs]], AbstractContextManager[Callable[[int], Any]]]


def zoo() -> Iterator[Row]:
    """The same network as a file and as the zoo's own: kept busy, and by capacity."""
    for name, (batch_size, sla) in _ZOO.items():
        what = f"capacity, {name} as TorchScript by path / as the zoo's own, at {sla}"
        model = load_model(name)
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            own = exported(model, Path(folder))
            systems = {
                "own": stack.enter_context(Engine(own, WORKERS)),
                "zoo": stack.enter_context(Engine(model, WORKERS, "torchscript")),
            }
            queries, policy = _queries(own, 32), Policy(batch_size)
            yield _ratio_row(
                f"{name} as TorchScript by path / as the zoo's own, items/s", 0.97,
                partial(_through, systems["own"], queries, policy),
                partial(_through, systems["zoo"], queries, policy),
            )  # fmt: skip
            try:
                rates, ratios = compare(
                    systems, sla, batch_size, search_s=14.0, round_s=2.0, most_s=40.0
                )
            except UserError as error:  # the machine is too busy
                yield Row(what, str(error), "at least 0.97", None)
                continue
        ratio = ratios["zoo"]
        yield Row(
            what,
            f"{said(ratio)} ({rates['own']:,.0f} and {rates['zoo']:,.0f} queries/s)",
            "at least 0.97",
            None if ratio is None else ratio.ratio >= 0.97,
        )
        del model, own, systems


def onnx() -> Iterator[Row]:
    """`wnd`, whole queries; directly: one session of one thread a run, called in two threads."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = load_model("wnd")
        own = _onnx_of(model, folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(folder / "wnd.onnx"), options)
        queries = _queries(own, 64)
        with Engine(own, WORKERS) as engine:
            yield _ratio_row(
                "ONNX `wnd` by path / onnxruntime in two threads, whole queries, items/s", 0.95,
                lambda: _through(engine, queries, Policy(4096)),
                lambda: _in_threads(lambda query: session.run(None, dict(query)), queries),
            )  # fmt: skip


def trees() -> Iterator[Row]:
    """500 trees of 63 leaves over 40 features."""
    import lightgbm

    rng = np.random.default_rng(0)
    features = rng.standard_normal((4_000, 40))
    labels = features[:, 0] * features[:, 1] + rng.standard_normal(len(features))
    params = {"num_leaves": 63, "min_data_in_leaf": 5, "num_threads": WORKERS, "verbose": -1}
    booster = lightgbm.train(params, lightgbm.Dataset(features, labels), 500)
    rows = {"features": rng.standard_normal((8_192, 40))}
    with tempfile.TemporaryDirectory() as folder:
        booster.save_model(Path(folder) / "ranker.txt")
        directly = lightgbm.Booster(model_file=Path(folder) / "ranker.txt")
        own = open_model(Path(folder) / "ranker.txt")

        def predict() -> float:
            return _rate(lambda: directly.predict(rows["features"], num_threads=WORKERS), 8_192)

        with Engine(own, WORKERS) as engine:
            yield _ratio_row(
                "LightGBM, 500 × 63 × 40, two workers / one `predict` of two threads, rows/s", 0.9,
                lambda: _through(engine, [rows], Policy(1024)), predict,
            )  # fmt: skip


def opening() -> Iterator[Row]:
    """A table of 400 MB under a small network."""

    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(800_000, 128)
            self.top = torch.nn.Linear(128, 1)

        def forward(self, item: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.top(self.table(item[:, 0])))

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _save(Large().eval(), folder / "large.pt", torch.zeros(2, 1, dtype=torch.int64))
        toml = '[inputs.item]\ndatatype = "INT64"\nshape = [1]\nids = 800000\n'
        (folder / "model.toml").write_text(toml)
        began = time.perf_counter()
        model = open_model(folder)
        seconds = time.perf_counter() - began
        megabytes = model.memory_bytes / 1e6
    yield Row(
        f"opening with every check, TorchScript of {megabytes:.0f} MB",
        f"{seconds:.1f} s", "at most 10 s", seconds <= 10,
    )  # fmt: skip


def warm() -> Iterator[Row]:
    """The first hundred queries after ready against the next, one at a time; several openings, in
    this process and through a server of its own, over HTTP."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "torchscript").mkdir()
        (folder / "onnx").mkdir()
        forms = {
            "TorchScript `ncf`": exported(load_model("ncf"), folder / "torchscript"),
            "ONNX `wnd`": _onnx_of(load_model("wnd"), folder / "onnx"),
        }
        for what, model in forms.items():
            queries = _queries(model, 200)
            for where, opened in {"in process": _in_process, "over HTTP": _over_http}.items():
                yield _warm_row(f"{what}, {where}", model, queries, opened)


def _warm_row(what: str, model: OwnModel, queries: Sequence[Inputs], opened: _Opened) -> Row:
    sizes = [_size(model, query) for query in queries]
    ratios, firsts = list[float](), list[float]()
    for _ in range(_OPENINGS):
        with opened(model, queries) as ask:
            seconds = [_seconds(partial(ask, at)) for at in range(len(queries))]
        per_item = [took / n for took, n in zip(seconds, sizes, strict=True)]
        first, then = (statistics.median(part) for part in (per_item[:100], per_item[100:]))
        ratios.append(first / then)
        firsts.append(first)
    ratio = statistics.median(ratios)
    return Row(
        f"{what}: time an item, first hundred queries after ready / the next hundred",
        f"{ratio:.3f} [{min(ratios):.3f}, {max(ratios):.3f}], {_OPENINGS} openings "
        f"({statistics.median(firsts) * 1e6:.2f} µs an item)",
        "at most 1.05", ratio <= 1.05,
    )  # fmt: skip


@contextmanager
def _in_process(model: OwnModel, queries: Sequence[Inputs]) -> Iterator[Callable[[int], Any]]:
    with Engine(model, WORKERS) as engine:
        yield lambda at: engine.submit(queries[at]).result()


@contextmanager
def _over_http(model: OwnModel, queries: Sequence[Inputs]) -> Iterator[Callable[[int], Any]]:
    """Bodies are made beforehand; the first query that is asked is the server's first."""
    folder = model.path.parent
    messages = [posted(folder.name, dict(query)) for query in queries]
    with served(str(folder), "--sla-ms", "1000") as host, Bare(host.http_port) as http:
        yield lambda at: _answered(http.ask(*messages[at]))


def _answered(answer: tuple[int, bytes]) -> None:
    if answer[0] != 200:
        raise RuntimeError(answer[1].decode(errors="replace"))


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def compiled() -> Iterator[Row]:
    """AOTInductor: items/s of two workers over one, where a package can be compiled here."""
    what = "AOTInductor, two workers / one, items/s"
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        try:
            own = _compiled(folder)
        except Exception as error:
            yield Row(what, f"skipped: {str(error).splitlines()[0][:120]}", "said", None)
            return
        compiling_s = time.perf_counter() - began
        query = own.example(4096, np.random.default_rng(0))
        with Engine(own, 1) as one, Engine(own, 2) as two:
            rates = [_through(engine, [query], Policy(512)) for engine in (one, two)]
        measured = f"{rates[1] / rates[0]:.2f} (compiled and opened in {compiling_s:.0f} s)"
        yield Row(what, measured, "said", None)
        differ = _served_differs(own, folder)
        yield Row(
            "AOTInductor, scores through serve / the package called: largest relative difference",
            f"{differ:.1e}", "at most 1e-6", differ <= 1e-6,
        )  # fmt: skip


def _served_differs(own: OwnModel, folder: Path) -> float:
    query = {"x": own.example(100, np.random.default_rng(1))["x"]}
    package = torch._inductor.aoti_load_package(str(own.path))
    directly = package(torch.from_numpy(query["x"])).numpy().reshape(-1)
    with served(str(folder), "--trust", "--sla-ms", "1000") as host, Bare(host.http_port) as http:
        status, said = http.ask(*posted(folder.name, query))
    if status != 200:
        raise RuntimeError(said.decode(errors="replace"))
    found = np.array(json.loads(said)["outputs"][0]["data"], np.float32)
    return float((np.abs(found - directly) / np.abs(directly)).max())


def _compiled(folder: Path) -> OwnModel:
    module = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
    rows = torch.export.Dim("rows", min=1, max=4096)
    program = torch.export.export(module.eval(), (torch.zeros(7, 64),), dynamic_shapes=({0: rows},))
    torch._inductor.aoti_compile_and_package(program, package_path=str(folder / "mlp.pt2"))
    (folder / "model.toml").write_text('[inputs.x]\ndatatype = "FP32"\nshape = [64]\n')
    return open_model(folder, trust=True)


def exported(model: Any, folder: Path) -> OwnModel:
    """A model of the zoo as a user has hers: a traced file, and what TorchScript does not say."""
    given = model.example(7, np.random.default_rng(0))
    tensors = [torch.from_numpy(given[spec.name]) for spec in model.inputs]
    _save(model.module, folder / f"{model.name}.pt", tensors)
    (folder / "model.toml").write_text(_toml(model, typed=True))
    return open_model(folder)


def _onnx_of(model: Any, folder: Path) -> OwnModel:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model.module

        def forward(self, *inputs: torch.Tensor) -> Any:
            return self.model(list(inputs))

    given = model.example(7, np.random.default_rng(0))
    tensors = tuple(torch.from_numpy(given[spec.name]) for spec in model.inputs)
    rows = torch.export.Dim("rows", min=1, max=8192)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Flat().eval(), tensors, str(folder / f"{model.name}.onnx"), verbose=False,
            input_names=[spec.name for spec in model.inputs], output_names=["scores"],
            dynamic_shapes=(tuple({0: rows} for _ in tensors),),
        )  # fmt: skip
    (folder / "model.toml").write_text(_toml(model, typed=False))
    return open_model(folder)


def _toml(model: Any, *, typed: bool) -> str:
    lines: list[str] = []
    for spec in model.inputs:
        lines += [f"[inputs.{spec.name}]"]
        lines += [f'datatype = "{spec.datatype}"', f"shape = {list(spec.shape)}"] if typed else []
        lines += [f"ids = {spec.rows}"] if spec.rows is not None else []
    return "\n".join(lines)


def _save(module: Any, path: Path, given: Any) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.jit.trace(module, (given,), check_trace=False).save(str(path))  # type: ignore[no-untyped-call]


def _queries(model: OwnModel, count: int) -> list[Inputs]:
    """Of sizes by the production law."""
    rng = np.random.default_rng(1)
    sizes = drs.Workload().sample_sizes(count)
    return [model.example(int(n), rng) for n in sizes]


def _size(model: OwnModel, query: Inputs) -> int:
    return model.check(query)


def _ratio_row(
    what: str, least: float, own: Callable[[], float], direct: Callable[[], float]
) -> Row:
    """Both in turns; the median of the turns' ratios."""
    own(), direct()
    rates = [(own(), direct()) for _ in range(_TURNS)]
    ratios = sorted(a / b for a, b in rates)
    ratio = statistics.median(ratios)
    mine, theirs = (statistics.median(column) for column in zip(*rates, strict=True))
    return Row(
        what, f"{ratio:.3f} [{ratios[0]:.3f}, {ratios[-1]:.3f}] ({mine:,.0f} and {theirs:,.0f})",
        f"at least {least}", ratio >= least,
    )  # fmt: skip


def _through(engine: Engine, queries: Sequence[Inputs], policy: Policy) -> float:
    """Items per second with some queries always in the engine."""
    model: Any = engine.model
    sizes = [model.check(query) for query in queries]
    inside: list[tuple[Future[Any], int]] = []
    items, sent, began = 0, 0, time.perf_counter()
    while time.perf_counter() < began + _TURN_S or inside:
        while len(inside) < _AHEAD and time.perf_counter() < began + _TURN_S:
            at = sent % len(queries)
            inside.append((engine.submit(queries[at], policy), sizes[at]))
            sent += 1
        done, size = inside.pop(0)
        done.result()
        items += size
    return items / (time.perf_counter() - began)


def _in_threads(run: Callable[[Inputs], Any], queries: Sequence[Inputs]) -> float:
    sizes = [len(next(iter(query.values()))) for query in queries]

    def work(worker: int) -> int:
        at, items, until = worker, 0, time.perf_counter() + _TURN_S
        while time.perf_counter() < until:
            run(queries[at % len(queries)])
            items += sizes[at % len(queries)]
            at += WORKERS
        return items

    began = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as pool:
        items = sum(pool.map(work, range(WORKERS)))
    return items / (time.perf_counter() - began)


def _rate(call: Callable[[], Any], items: int) -> float:
    began = time.perf_counter()
    call()
    return items / (time.perf_counter() - began)


def main() -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    parts = [opening, trees, onnx, warm, compiled, zoo]
    chosen = asked(parts, __doc__).parse_args().only
    print(provenance("python benchmarks/own_models.py"), HEADER, sep="", end="", flush=True)
    for part in parts:
        if part.__name__ in chosen:
            for row in part():
                print(row, end="", flush=True)


if __name__ == "__main__":
    main()
