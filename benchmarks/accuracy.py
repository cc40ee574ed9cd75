"""How far scores move in each execution: the tables of docs/accuracy.md.

    python benchmarks/accuracy.py --only zoo
    python benchmarks/accuracy.py --only own --folder my_model
    python benchmarks/accuracy.py --only noise --folder my_model

`zoo`: drift of the published models, by the guard itself. `own`: AUC and NDCG@10 of the rankers
that examples/your_model/train.py has left in a folder, by their recorded labels. `noise`: what
drift of a size does to both. A row is printed as soon as it is known.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy import special

from deeprecsys.analysis.drift import Drift, drift
from deeprecsys.artifacts import open_model
from deeprecsys.core import EXACT, Execution
from deeprecsys.experiments.guarding import Guarded, guarded
from deeprecsys.models import NAMES, load_model
from deeprecsys.workload import Workload
from rows import provenance

SCALE, LEVELS = 0.01, ("exact", "99.9", "99")
ZOO = [Execution.parse(said) for said in
       ("packed", "rows=fp16", "rows=int8", "layers=bf16", "layers=int8")]  # fmt: skip
OWN = [EXACT, *ZOO, *(Execution.parse(f"rows=fp16,layers={type}") for type in ("bf16", "int8"))]

NOISE, DRAWS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32), 50


def zoo(models: list[str]) -> None:
    print("| model | execution | p99.9 / spread | largest | mean shift | rank, mean and lowest "
          "decile | ten best | fifty best | within |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name in models:
        began = time.perf_counter()
        found = guarded(load_model(name, scale=SCALE), ZOO, Workload())
        seconds = time.perf_counter() - began
        for one in found:
            print(f"| `{name}` | `{one.execution}` | {_moved(one.drift) or one.why} |"
                  f" {_within(one)} |")  # fmt: skip
        known = next(one.drift for one in found if one.drift)
        print(f"<!-- {name}: {known.candidates:,} candidates, {known.queries} queries, fp32 itself "
              f"is off by {known.own_error:.1e}, {seconds:.0f} s -->", flush=True)  # fmt: skip


def own(folder: Path) -> None:
    print("| model | execution | AUC | of the exact | NDCG@10 | of the exact | ten best | within |")
    print("|---|---|---|---|---|---|---|---|")
    for path in sorted(folder.iterdir()):
        model = open_model(path)
        for one in guarded(model, OWN if model.rewritable else [EXACT], Workload()):
            print(f"| `{path.name}` | `{one.execution}` | {_judged(one)} | {_within(one)} |")


def noise(folder: Path) -> None:
    """What so much drift does to AUC and NDCG@10: why the bounds are where they are. Noise on the
    logits, as narrow arithmetic makes it, of the exported ranker; means and lowest of draws."""
    model = open_model(folder / "exported")
    exact = [model.reference(query) for query in model.recorded]
    labels = [np.asarray(row["labels"]) for row in model.samples.rows]
    rng = np.random.default_rng(0)
    print("| noise | p99.9 / spread | ten best | AUC, mean, lowest | NDCG@10, mean, lowest |")
    print("|---|---|---|---|---|")
    for sigma in NOISE:
        found = []
        for _ in range(DRAWS):
            other = [special.logit(s) + sigma * rng.standard_normal(s.shape) for s in exact]
            found.append(drift(exact, [special.expit(s) for s in other], labels))
        auc, ndcg = ([getattr(one.quality, f"{name}_ratio") for one in found]
                     for name in ("auc", "ndcg10"))  # fmt: skip
        print(f"| {sigma:g} | {np.mean([one.relative for one in found]):.3f} | "
              f"{np.mean([one.top10 for one in found]):.4f} | {np.mean(auc):.6f}, {min(auc):.6f} | "
              f"{np.mean(ndcg):.5f}, {min(ndcg):.5f} |")  # fmt: skip


def _moved(drift: Drift | None) -> str:
    if drift is None:
        return ""
    return (
        f"{drift.relative:.2g} | {drift.largest:.2g} | {drift.shift:.1g} | "
        f"{drift.rank_correlation:.5f}, {drift.rank_lowest:.5f} | {drift.top10:.4f} | "
        f"{drift.top50:.4f}"
    )


def _judged(one: Guarded) -> str:
    if one.drift is None or (told := one.drift.quality) is None:
        return f"{one.why} | | | | "
    return (
        f"{told.auc * told.auc_ratio:.6f} | {told.auc_ratio:.6f} | "
        f"{told.ndcg10 * told.ndcg10_ratio:.6f} | {told.ndcg10_ratio:.6f} | {one.drift.top10:.4f}"
    )


def _within(one: Guarded) -> str:
    """The strictest level that admits it."""
    return "" if one.drift is None else next((x for x in LEVELS if not one.why_not(x)), "any")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("zoo", "own", "noise"), default="zoo")
    parser.add_argument("--folder", type=Path, default=Path("my_model"))
    parser.add_argument("--models", nargs="*", default=list(NAMES))
    given = parser.parse_args()
    command = f"python benchmarks/accuracy.py --only {given.only}"
    print(provenance(command), flush=True)
    if given.only == "zoo":
        zoo(given.models)
    else:
        {"own": own, "noise": noise}[given.only](given.folder)


if __name__ == "__main__":
    main()
