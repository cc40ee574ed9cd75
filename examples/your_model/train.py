"""Two rankers of films, trained in seconds, and saved in the four forms they are served in.

    python examples/your_model/train.py my_model

leaves a folder a form, my_model/torchscript, exported, onnx and lightgbm: the artifact,
`model.toml` with what the artifact cannot say, and `samples.jsonl`, recorded queries and labels.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import lightgbm
import numpy as np
import torch
from movielens import CANDIDATES, FEATURES, ITEMS, USERS, Query, queries
from torch import Tensor, nn

WIDTH, PASSES, QUERIES_A_STEP = 16, 4, 16
RECORDED = 100  # queries

# What none of these files says: whose an input is, and which ids are valid.
TOML = f"""\
target = {{sla_ms = 50}}
sizes = "fixed:{CANDIDATES}"

[inputs.user]
scope = "query"
ids = {USERS}

[inputs.history]
scope = "query"
ids = {ITEMS}
padding = 0

[inputs.item]
ids = {ITEMS}

[outputs]
kind = "probability"
"""
# Trees have no ids.
LIGHTGBM_TOML = f"""\
target = {{sla_ms = 50}}
sizes = "fixed:{CANDIDATES}"
"""


class Ranker(nn.Module):
    """Attends from a candidate to what its user liked before, as DIN does."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(USERS, WIDTH)
        self.items = nn.Embedding(ITEMS, WIDTH)
        self.bias = nn.Embedding(ITEMS, 1)
        for table in (self.users, self.items, self.bias):
            nn.init.normal_(table.weight, std=0.1)
        self.top = nn.Sequential(nn.Linear(3 * WIDTH, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user: Tensor, history: Tensor, item: Tensor) -> Tensor:
        """user [N, 1], history [N, H], or one row of each; item [N, 1]; probability [N, 1]."""
        film = self.items(item)  # [N, 1, W]
        past = self.items(history)  # [N, H, W]
        weight = torch.sigmoid((film * past).sum(2, keepdim=True)) * (history > 0).unsqueeze(2)
        liked = (weight * past).sum(1)  # [N, W]
        film = film.squeeze(1)
        crossed = torch.cat([film * self.users(user).squeeze(1), film * liked, film], 1)
        return torch.sigmoid(self.top(crossed) + self.bias(item).squeeze(1))


def trained_network(train: list[Query]) -> Ranker:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ranker, rng = Ranker(), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(ranker.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(PASSES):
        for some in np.array_split(rng.permutation(len(train)), len(train) // QUERIES_A_STEP):
            loss = torch.stack([_loss(ranker, train[i]) for i in some]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return ranker.eval()


def _loss(ranker: Ranker, query: Query) -> Tensor:
    label = torch.from_numpy(query.label).float()[:, None]
    return nn.functional.binary_cross_entropy(ranker(*_tensors(query)), label)


def _tensors(query: Query) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, (query.user, query.history, query.item)))


def trained_trees(train: list[Query]) -> lightgbm.Booster:
    data = lightgbm.Dataset(
        np.concatenate([query.features for query in train]),
        np.concatenate([query.label for query in train]),
        group=[len(query.label) for query in train],
        feature_name=list(FEATURES),
    )
    settings = {
        "objective": "lambdarank", "num_leaves": 31, "learning_rate": 0.05, "num_threads": 1,
        "seed": 0, "deterministic": True, "verbose": -1,
    }  # fmt: skip
    return lightgbm.train(settings, data, num_boost_round=60)


def save_torchscript(ranker: Ranker, query: Query, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 2.11, and still what many serve
        torch.jit.trace(ranker, _tensors(query)).save(str(path))


def save_exported(ranker: Ranker, query: Query, path: Path) -> None:
    program = torch.export.export(ranker, _rows(query), dynamic_shapes=_any_number())
    torch.export.save(program, path)


def save_onnx(ranker: Ranker, query: Query, path: Path) -> None:
    torch.onnx.export(
        ranker, _rows(query), str(path), dynamo=True, verbose=False, external_data=False,
        input_names=["user", "history", "item"], output_names=["score"],
        dynamic_shapes=_any_number(),
    )  # fmt: skip


def _rows(query: Query) -> tuple[Tensor, ...]:
    """A graph has one free dimension, candidates; so it gets the user's row once for each."""
    return tuple(rows.expand(len(query.item), -1).contiguous() for rows in _tensors(query))


def _any_number() -> tuple[dict[int, torch.export.Dim], ...]:
    return ({0: torch.export.Dim("candidates", min=1)},) * 3


def record(test: list[Query], inputs: tuple[str, ...], folder: Path) -> None:
    """One query a line."""
    with (folder / "samples.jsonl").open("w") as file:
        for query in test[:RECORDED]:
            row = {name: getattr(query, name).tolist() for name in inputs}
            file.write(json.dumps(row | {"labels": query.label.tolist()}) + "\n")


def main(out: Path) -> None:
    train, test = queries()
    ranker, trees = trained_network(train), trained_trees(train)
    for form, save, name in (
        ("torchscript", save_torchscript, "ranker.pt"),
        ("exported", save_exported, "ranker.pt2"),
        ("onnx", save_onnx, "ranker.onnx"),
    ):
        folder = _folder(out / form, TOML)
        save(ranker, train[0], folder / name)
        record(test, ("user", "history", "item"), folder)
    folder = _folder(out / "lightgbm", LIGHTGBM_TOML)
    trees.save_model(folder / "ranker.txt")
    record(test, ("features",), folder)


def _folder(folder: Path, toml: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(toml)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "my_model"))
