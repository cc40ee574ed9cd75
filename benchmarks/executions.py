"""What each execution is worth on this machine: `python benchmarks/executions.py` writes
docs/executions.md.

Of each model: how much faster than exact fp32 a request is, each at its best batch size, in turns
and with all workers busy; for `din` and `dien`, whose queries bring their user's inputs once, also
over the same queries with these inputs repeated for every candidate. The perceptrons alone at a
batch of 256 over the bare matrix products of their shapes, in the type that won. And the memory of
the tables.

Each model's figures are kept in --parts, and the document is of all that are there: so a run of
some models replaces theirs alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deeprecsys.analysis.statistics import ratio_interval
from deeprecsys.core import EXACT, Execution, repeat_inputs
from deeprecsys.engine import topology
from deeprecsys.engine.calibrate import on_cores
from deeprecsys.engine.executions import BATCH_SIZES, survey, visit
from deeprecsys.engine.pool import draw_pool
from deeprecsys.executions import executed, parts
from deeprecsys.executions.layers import _FEW, is_chain
from deeprecsys.models import NAMES, Model, load_model
from deeprecsys.runtimes import make_runtime

ROOT = Path(__file__).parents[1]
OF_USER = ("din", "dien")
# Half of the tables, of the largest: beside them come a copy in fp16 and one in int8.
SCALE = 0.5
MATRIX_ITEMS, TURNS, TURN_S = 256, 6, 0.15
LEAST_ROUNDS = 6  # for an interval


def main() -> None:
    asked = _arguments()
    workers = topology.usable_cores()[: asked.workers]
    asked.parts.mkdir(parents=True, exist_ok=True)
    for name in [] if asked.page else asked.models:
        found = of_model(name, workers, asked)
        (asked.parts / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        print(
            f"{name}: {found['rows'][0]['execution']} {found['rows'][0]['ratio']:.2f}", flush=True
        )
    found = [json.loads(path.read_text()) for name in NAMES
             if (path := asked.parts / f"{name}.json").is_file()]  # fmt: skip
    asked.out.write_text(page(found))


def of_model(name: str, cores: Any, asked: argparse.Namespace) -> dict[str, Any]:
    """What the document says of it."""
    model = load_model(name, scale=asked.scale, seed=asked.seed, query_inputs=name in OF_USER)
    rows = survey(model, cores, budget_s=asked.seconds).rows()
    best = next(Execution.parse(row["execution"]) for row in rows if not row["why"])
    layers = replace(EXACT, layers=best.layers, packed=best.packed)
    spec = model.spec
    return {
        "model": name,
        "scale": asked.scale,
        "seed": asked.seed,
        "query_inputs": model.query_inputs,
        "workers": len(cores),
        "machine": topology.machine(),
        "versions": topology.versions(),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
        "tables": {kind: spec.table_bytes(1.0, kind) for kind in ("fp32", "fp16", "int8")},
        "repeated": once_over_repeated(model, best, cores) if name in OF_USER else None,
        "matrix": {str(layers): matrix_part(model, layers, cores),
                   "exact": matrix_part(model, EXACT, cores)},
    }  # fmt: skip


def once_over_repeated(model: Model, best: Execution, cores: Any) -> dict[str, Any]:
    """Ratios over exact fp32 of queries that repeat their user's inputs: the same queries with them
    once, exact and in the best execution. At the batch size at which each is best."""
    pool = draw_pool(model, "zipf:0.92", max(BATCH_SIZES), topology.last_level_cache_bytes())
    offsets = [k * pool.items // 8 for k in range(8)]
    windows = [pool.window(at, pool.span) for at in offsets]
    wide = [repeat_inputs(model.inputs, window, pool.span) for window in windows]
    scores = np.empty((pool.span, model.tasks), np.float32)
    exact, once = make_runtime("torchscript", model), Execution(user="query")
    forms: dict[str, tuple[Any, Any]] = {
        "repeated": (exact, [exact.prepare(w, scores) for w in wide])
    }
    for execution in dict.fromkeys((EXACT, once, best)):
        runtime = make_runtime("torchscript", executed(model, execution))
        forms[str(execution)] = runtime, [runtime.prepare(w, scores) for w in windows]
    seen: dict[str, dict[int, list[float]]] = {n: {b: [] for b in BATCH_SIZES[:3]} for n in forms}
    for turn in range(TURNS):
        for name in list(forms)[:: 1 if turn % 2 == 0 else -1]:
            for size in seen[name]:
                seen[name][size].append(visit(*forms[name], pool.span, cores, size, TURN_S) / size)
    at_best = {name: np.array(min(by.values(), key=np.median)) for name, by in seen.items()}
    return {name: ratio_interval(np.log(at_best["repeated"] / at_best[name])) for name in forms}


def matrix_part(model: Model, execution: Execution, cores: Any) -> dict[str, float]:
    """Seconds of the perceptrons on batches of MATRIX_ITEMS, and of the bare products of the same
    shapes, inputs and weights being of the type already; the fastest that PyTorch has."""
    made = executed(model, execution)
    chains = [name for name, part in parts(model.module) if is_chain(part)]
    inputs, layers = _seen(model, chains)
    ours = [_traced(made.module.get_submodule(name), inputs[name]) for name in chains]
    shapes = [(len(x), layer.in_features, layer.out_features) for layer, x in layers]
    bare = _bare(shapes, execution)
    times = {"ours": lambda: [f(inputs[n]) for f, n in zip(ours, chains, strict=True)], **bare}
    seconds = _side_by_side(times, cores)
    return {
        "ours_s": seconds.pop("ours"),
        "bare_s": min(seconds.values()),
        "flops": float(sum(2 * n * a * b for n, a, b in shapes)),
    }


def _seen(model: Model, chains: list[str]) -> tuple[dict[str, Any], list[tuple[Any, Any]]]:
    """Inputs of the chains, and every linear layer in them with its own."""
    inputs: dict[str, Any] = {}
    layers: list[tuple[Any, Any]] = []

    def look(name: str) -> Callable[..., None]:
        return lambda _, x: inputs.update({name: x[0].clone()})

    hooks = [model.module.get_submodule(n).register_forward_pre_hook(look(n)) for n in chains]
    every = [m for n in chains for m in model.module.get_submodule(n).modules()
             if isinstance(m, torch.nn.Linear)]  # fmt: skip
    hooks += [m.register_forward_pre_hook(
        lambda m, x: layers.append((m, x[0].flatten(0, -2)))) for m in every]  # fmt: skip
    rows = repeat_inputs(
        model.inputs, model.example(MATRIX_ITEMS, np.random.default_rng(0)), MATRIX_ITEMS
    )
    with torch.inference_mode():
        model.module([torch.from_numpy(a) for a in rows.values()])
    for hook in hooks:
        hook.remove()
    return inputs, layers


def _traced(module: Any, x: Any) -> Any:
    with torch.no_grad():
        return torch.jit.freeze(torch.jit.trace(module.eval(), (x.clone(),), check_trace=False))


def _bare(shapes: list[tuple[int, int, int]], execution: Execution) -> dict[str, Callable[[], Any]]:
    if execution.layers == "int8":
        # Small layers are fp32 there as well.
        wide = [shape for shape in shapes if shape[1] * shape[2] >= _FEW]
        few = _bare([shape for shape in shapes if shape not in wide], EXACT)["mm"]
        quantize, ops = torch.quantize_per_tensor, torch.ops.quantized
        made = [
            (quantize(torch.rand(n, a), 1 / 127, 0, torch.quint8),
             ops.linear_prepack(quantize(torch.rand(b, a), 1 / 127, 0, torch.qint8), torch.rand(b)))
            for n, a, b in wide
        ]  # fmt: skip
        return {"fbgemm": lambda: [few(), *(ops.linear(x, w, 1.0, 0) for x, w in made)]}
    dtype = torch.bfloat16 if execution.layers == "bf16" else torch.float32
    pairs = [(torch.rand(n, a).to(dtype), torch.rand(b, a).to(dtype)) for n, a, b in shapes]
    found = {"mm": lambda: [torch.mm(x, w.t()) for x, w in pairs]}
    if execution.packed:
        ops = torch.ops.mkldnn
        packed = [(x, ops._reorder_linear_weight(w)) for x, w in pairs]
        found["packed"] = lambda: [
            ops._linear_pointwise(x, w, None, "none", [], "") for x, w in packed
        ]
    return found


def _side_by_side(work: dict[str, Callable[[], Any]], cores: Any) -> dict[str, float]:
    """Median seconds of each on all cores, in turns."""
    seen: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(TURNS):
        for name, run in work.items():
            seen[name] += on_cores(cores, lambda: torch.set_num_threads(1), _timing(run))
    return {name: float(np.median(times)) for name, times in seen.items()}


def _timing(run: Callable[[], Any]) -> Callable[[int], float]:
    def timed(_: int) -> float:
        times: list[float] = []
        with torch.inference_mode():
            until = time.perf_counter() + TURN_S
            while len(times) < 3 or time.perf_counter() < until:
                began = time.perf_counter()
                run()
                times.append(time.perf_counter() - began)
        return float(np.median(times))

    return timed


def page(found: list[dict[str, Any]]) -> str:
    """The document."""
    first = found[0]
    cpu = first["machine"]["cpu"]
    dates = sorted({one["date"] for one in found})
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    heads = ["model", "execution", "ratio [95 %]", "batch size",
             *(f"ms at {size}" for size in BATCH_SIZES)]  # fmt: skip
    return "\n".join([
        "# Executions", "",
        f"Written by `make bench-executions` on {', '.join(dates)}, on {cpu}, "
        f"{first['machine']['simd']}, {first['workers']} workers, all busy;",
        f"{versions}.",
        f"Tables at scale {first['scale']:g}, seed {first['seed']}, look-ups zipf:0.92. {WHAT}", "",
        *_table(["model", "fastest", "ratio [95 %]", "fastest of exact arithmetic", "ratio [95 %]"],
                [_best(one) for one in found]), "",
        *_won(found), "",
        *(["What could not be made here:", "", *[f"- {why}" for why in refused], ""]
          if (refused := list(_refused(found).values())) else []),
        "## Every execution", "", EVERY, "",
        *_table(heads, [row for one in found for row in _rows(one)]), "",
        "## The user's inputs once, over the same repeated", "", REPEATED, "",
        *_table(["model", "form", "ratio [95 %]"], [
            [one["model"], name, _ratio(*ratio)] for one in found if one["repeated"]
            for name, ratio in one["repeated"].items() if name != "repeated"
        ]), "",
        f"## The matrix part at batch {MATRIX_ITEMS}", "", MATRIX, "",
        *_table(["model", "layers", "GFLOP/s of the part", "of the bare products", "ratio"], [
            [one["model"], name, *_matrix(m)] for one in found for name, m in one["matrix"].items()
        ]), "",
        "## Memory of the tables", "", "Of full-size models, GB.", "",
        *_table(["model", "fp32", "fp16", "int8"], [
            [one["model"], *(f"{one['tables'][k] / 1e9:.2f}" for k in ("fp32", "fp16", "int8"))]
            for one in found
        ]), "",
    ])  # fmt: skip


WHAT = """\
A ratio is
exact fp32's time a candidate over the execution's, each at its best batch size, in turns: the
median of the paired rounds, and the order statistics around it. It is of requests, not of
capacities within a target, which `tune` measures, and says nothing of the scores: that is what the
guard of `tune --accuracy` is for."""
EVERY = """\
What is far behind after two rounds takes no more turns, and has no interval. `user=query` is of a
query of the mean size, cut into requests of the batch size."""
REPEATED = """\
Time a candidate of queries that repeat their user's inputs, exact fp32, over that of the same
queries with them once: exact, with what belongs to the user computed once a query, and in the best
execution. Batch sizes 16 to 256."""
MATRIX = """\
The perceptrons of the model in its best type and in fp32, casts and activations included, over the
bare products of the same shapes with inputs and weights in that type already, on all workers. In
int8 the bare product is fbgemm's (of small layers, which stay fp32, fp32's), and the part also
quantises its inputs."""


def _rows(one: dict[str, Any]) -> list[list[str]]:
    return [
        [one["model"], row["execution"], _of(row),
         str(row["best_batch"]), *(f"{1e3 * s:.3g}" for s in row["seconds"].values())]
        for row in one["rows"] if not row["why"]
    ]  # fmt: skip


def _won(found: list[dict[str, Any]]) -> list[str]:
    """In which type of layers the models are fastest."""
    by_type: dict[str, list[str]] = {}
    for one in found:
        best = Execution.parse(next(row["execution"] for row in one["rows"] if not row["why"]))
        by_type.setdefault(best.layers, []).append(one["model"])
    return [
        f"Fastest with layers in {kind}: {', '.join(names)}." for kind, names in by_type.items()
    ]


def _best(one: dict[str, Any]) -> list[str]:
    able = [row for row in one["rows"] if not row["why"]]
    exact = [row for row in able if Execution.parse(row["execution"]).exact]
    return [one["model"], *(x for row in (able[0], exact[0]) for x in (row["execution"], _of(row)))]


def _of(row: dict[str, Any]) -> str:
    if row["execution"] == "exact" or row.get("rounds", LEAST_ROUNDS) < LEAST_ROUNDS:
        return f"{row['ratio']:.2f}"
    return _ratio(row["ratio"], *row["interval"])


def _refused(found: list[dict[str, Any]]) -> dict[str, str]:
    """By execution; the reason of the first model."""
    return {row["execution"]: row["why"] for one in reversed(found) for row in one["rows"]
            if row["why"]}  # fmt: skip


def _ratio(ratio: float, lo: float, hi: float) -> str:
    return f"**{ratio:.2f}** [{lo:.2f}, {hi:.2f}]"


def _matrix(found: dict[str, float]) -> list[str]:
    ours, bare = (found["flops"] / found[name] / 1e9 for name in ("ours_s", "bare_s"))
    return [f"{ours:.0f}", f"{bare:.0f}", f"{ours / bare:.2f}"]


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(NAMES), metavar="MODEL")
    parser.add_argument("--page", action="store_true", help="write what is in --parts, and no more")
    parser.add_argument("--seconds", type=float, default=60.0, help="turns of each model")
    parser.add_argument("--scale", type=float, default=SCALE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--parts", type=Path, default=ROOT / "runs" / "executions")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "executions.md")
    return parser.parse_args()


if __name__ == "__main__":
    main()
