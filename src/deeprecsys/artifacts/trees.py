"""Rankers of trees, by their own libraries: converters change scores.

One input, `features` [N, F] in the library's own type, in which a value may be missing (NaN); one
output, `scores`. A library gets one thread a call, so that each worker is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import Array, Found, Tensor, damaged, needed, reason
from deeprecsys.core import UserError

FEATURES, SCORES = "features", "scores"


class _Trees:
    """A form made of `predict`, which maps features [N, F] to scores [N] or [N, K]."""

    name = ""
    datatype = "FP32"

    def _open(self, features: int, predict: Callable[[Array], Any]) -> None:
        self._predict = predict
        self.found = Found((Tensor(FEATURES, self.datatype, (None, features)),), nan=True)

    def bind(self, names: Sequence[str]) -> None:
        pass

    def enter_thread(self) -> None:
        pass

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        return {SCORES: np.asarray(self._predict(inputs[0]))}


class LightGBM(_Trees):
    """Thresholds are of double precision, and so are features and scores."""

    name = "lightgbm"
    datatype = "FP64"

    def __init__(self, path: Path, trust: bool = False) -> None:
        try:
            import lightgbm
        except ModuleNotFoundError as error:
            raise needed("lightgbm", "trees", path) from error
        try:
            booster: Any = lightgbm.Booster(model_str=_in_order(path))
        except Exception as error:
            raise damaged(path, "LightGBM model", error) from error
        self._open(
            booster.num_feature(), partial(booster.predict, num_threads=1, validate_features=False)
        )


def _in_order(path: Path) -> str:
    """The file's text as LightGBM reads it more safely: without `tree_sizes`, by which it reads
    trees in several threads and ends the process at one that is damaged (in order it raises), and
    without the parameters of its training, of which damaged ones crash it. ValueError where trees
    are missing, which in order it would not notice."""
    text = path.read_text(encoding="utf-8")
    head, _, trees = text.partition("\ntree_sizes=")
    sizes, _, rest = trees.partition("\n")
    whole, end, _ = rest.partition("\nend of trees")
    found = len(re.findall(r"^Tree=", whole, re.MULTILINE))
    if found != len(sizes.split()) or not end:
        raise ValueError(f"it holds {found} of {len(sizes.split())} trees")
    for number, tree in enumerate(re.split(r"^Tree=", whole, flags=re.MULTILINE)[1:]):
        _check_tree(number, tree)
    return f"{head}\n{whole}{end}\n"


def _check_tree(number: int, text: str) -> None:
    """ValueError where a node or a leaf has not one parent: LightGBM would never find a leaf, or
    look for it outside the tree."""
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    leaves = int(fields["num_leaves"])
    sides = [fields.get(f"{side}_child", "").split() for side in ("left", "right")]
    children = sorted(int(child) for side in sides for child in side)
    apart = len(sides[0]) == len(sides[1])
    if not apart or children != [*range(-leaves, 0), *range(1, leaves - 1)][: 2 * leaves - 2]:
        raise ValueError(f"tree {number} is damaged")


class XGBoost(_Trees):
    name = "xgboost"

    def __init__(self, path: Path, trust: bool = False) -> None:
        try:
            import xgboost
        except ModuleNotFoundError as error:
            raise needed("xgboost", "trees", path) from error
        try:
            booster: Any = xgboost.Booster({"nthread": 1}, model_file=str(path))
        except Exception as error:
            raise UserError(
                f"{path} is no XGBoost model that can be read, or is cut off: {reason(error)}"
            ) from error
        booster.set_param({"nthread": 1})
        self._open(
            booster.num_features(), partial(booster.inplace_predict, validate_features=False)
        )


class CatBoost(_Trees):
    """Raw scores: of a classifier, logits."""

    name = "catboost"

    def __init__(self, path: Path, trust: bool = False) -> None:
        try:
            import catboost
        except ModuleNotFoundError as error:
            raise needed("catboost", "trees", path) from error
        try:
            model: Any = catboost.CatBoost().load_model(str(path))
        except Exception as error:
            raise damaged(path, "CatBoost model", error) from error
        kinds = ("cat", "text", "embedding")
        if any(getattr(model, f"get_{kind}_feature_indices")() for kind in kinds):
            raise UserError(
                f"{path} has features that are no numbers (categories, texts): a request's "
                "features are one array of numbers"
            )
        self._open(len(model.feature_names_), partial(model.predict, thread_count=1))


__all__ = ["CatBoost", "LightGBM", "XGBoost"]
