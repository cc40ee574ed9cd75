"""Rankers of trees, by their own libraries: converters change scores.

One input, `features` [N, F] in the library's own type, in which a value may be missing (NaN); one
output, `scores`. A library gets one thread a call, so that each worker is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import Array, Found, Tensor, damaged, needed, reason
from deeprecsys.core import UserError

FEATURES, SCORES = "features", "scores"


class _Trees:
    """`_predict` maps features [N, F] to scores [N] or [N, K]."""

    name = ""
    datatype = "FP32"

    def _open(self, path: Path, features: int) -> None:
        self.found = Found((Tensor(FEATURES, self.datatype, (None, features)),), nan=True)

    def bind(self, names: Sequence[str]) -> None:
        pass

    def enter_thread(self) -> None:
        pass

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        return {SCORES: np.asarray(self._predict(inputs[0]))}

    def _predict(self, features: Array) -> Any:
        raise NotImplementedError


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
            self._booster: Any = lightgbm.Booster(model_file=str(path))
        except Exception as error:
            raise damaged(path, "LightGBM model", error) from error
        self._open(path, self._booster.num_feature())

    def _predict(self, features: Array) -> Any:
        return self._booster.predict(features, num_threads=1, validate_features=False)


class XGBoost(_Trees):
    name = "xgboost"

    def __init__(self, path: Path, trust: bool = False) -> None:
        try:
            import xgboost
        except ModuleNotFoundError as error:
            raise needed("xgboost", "trees", path) from error
        try:
            self._booster: Any = xgboost.Booster({"nthread": 1}, model_file=str(path))
        except Exception as error:
            raise UserError(
                f"{path} is no XGBoost model that can be read, or is cut off: {reason(error)}"
            ) from error
        self._booster.set_param({"nthread": 1})
        self._open(path, self._booster.num_features())

    def _predict(self, features: Array) -> Any:
        return self._booster.inplace_predict(features, validate_features=False)


class CatBoost(_Trees):
    """Raw scores: of a classifier, logits."""

    name = "catboost"

    def __init__(self, path: Path, trust: bool = False) -> None:
        try:
            import catboost
        except ModuleNotFoundError as error:
            raise needed("catboost", "trees", path) from error
        try:
            self._model: Any = catboost.CatBoost().load_model(str(path))
        except Exception as error:
            raise damaged(path, "CatBoost model", error) from error
        kinds = ("cat", "text", "embedding")
        if any(getattr(self._model, f"get_{kind}_feature_indices")() for kind in kinds):
            raise UserError(
                f"{path} has features that are no numbers (categories, texts): a request's "
                "features are one array of numbers"
            )
        self._open(path, len(self._model.feature_names_))

    def _predict(self, features: Array) -> Any:
        return self._model.predict(features, thread_count=1)


__all__ = ["CatBoost", "LightGBM", "XGBoost"]
