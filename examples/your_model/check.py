"""Is what a server answers what the artifact says?

    python examples/your_model/check.py my_model/onnx http://127.0.0.1:8000

asks both the recorded queries, and prints the AUC and the NDCG@10 of both by the recorded labels.
Knows nothing of deeprecsys: the artifact is run by its own library, the server is asked by an
unmodified `tritonclient`.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ask = Callable[[dict[str, Array]], Array]  # inputs by name -> scores [N]


def artifact(folder: Path) -> Ask:
    """Run by its own library."""
    (file,) = folder.glob("ranker.*")
    if file.suffix in (".pt", ".pt2"):
        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old = file.suffix == ".pt"
            module = torch.jit.load(str(file)) if old else torch.export.load(file).module()

        def ask(given: dict[str, Array]) -> Array:
            tensors = [torch.from_numpy(array) for array in every(given).values()]
            return module(*tensors).detach().numpy().ravel()

        return ask
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        return lambda given: session.run(None, every(given))[0].ravel()
    import lightgbm

    booster = lightgbm.Booster(model_file=file)
    return lambda given: booster.predict(given["features"])


def every(given: dict[str, Array]) -> dict[str, Array]:
    """With the user's row once for each candidate: the server does that by itself."""
    n = max(map(len, given.values()))
    return {name: np.repeat(a, n, 0) if len(a) == 1 else a for name, a in given.items()}


@contextmanager
def server(url: str, model: str) -> Iterator[Ask]:
    import tritonclient.http as triton

    def ask(given: dict[str, Array]) -> Array:
        inputs = []
        for name, array in given.items():
            inputs.append(triton.InferInput(name, list(array.shape), types[name]))
            inputs[-1].set_data_from_numpy(array)
        return client.infer(model, inputs).as_numpy(output).ravel()

    with triton.InferenceServerClient(url.removeprefix("http://")) as client:
        said = client.get_model_metadata(model)
        types = {one["name"]: one["datatype"] for one in said["inputs"]}
        output = said["outputs"][0]["name"]
        yield ask


def recorded(folder: Path) -> Iterator[tuple[dict[str, Array], Array]]:
    """Inputs by name and labels [N] of each query. Whole numbers are ids, others features."""
    with (folder / "samples.jsonl").open() as file:
        for line in file:
            row = {name: np.array(values) for name, values in json.loads(line).items()}
            labels = row.pop("labels")
            yield row, labels


def answers(ask: Ask, queries: list[tuple[dict[str, Array], Array]]) -> list[tuple[Array, Array]]:
    """Scores and labels of each query."""
    return [(ask(given), labels) for given, labels in queries]


def quality(answered: list[tuple[Array, Array]]) -> tuple[float, float]:
    """AUC over all candidates and mean NDCG@10 of the queries, of scores and labels of each."""
    scores, labels = (np.concatenate(column) for column in zip(*answered, strict=True))
    return auc(scores, labels), float(np.mean([ndcg(*one) for one in answered]))


def auc(scores: Array, labels: Array) -> float:
    """How often one that was liked is before one that was not; a tie is half."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    liked = int(labels.sum())
    wins = rank[labels == 1].sum() - liked * (liked + 1) / 2
    return float(wins / (liked * (len(labels) - liked)))


def ndcg(scores: Array, labels: Array, top: int = 10) -> float:
    gain = 1 / np.log2(np.arange(2, min(top, len(labels)) + 2))
    best = np.argsort(-scores, kind="stable")[:top]
    return float(gain @ labels[best] / gain[: labels.sum()].sum())


def main(folder: Path, url: str) -> int:
    queries = list(recorded(folder))
    direct = answers(artifact(folder), queries)
    with server(url, folder.name) as ask:
        served = answers(ask, queries)
    for who, answered in (("artifact", direct), ("server", served)):
        print("{}: AUC {:.6f}, NDCG@10 {:.6f}".format(who, *quality(answered)))
    apart = max(np.abs(a - b).max() for (a, _), (b, _) in zip(direct, served, strict=True))
    print(f"{len(queries)} queries; scores differ by {apart:.1e} at most")
    return 0 if np.allclose(quality(direct), quality(served), rtol=1e-6) else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
