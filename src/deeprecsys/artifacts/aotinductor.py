"""AOTInductor packages (`.pt2` with compiled code): native code, so they need trust.

They have no names and say no types: inputs are those of `model.toml`, in its order. Python's
binding holds the GIL for the whole run (pytorch#197516), so workers wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprecsys.artifacts.form import Array, Found, damaged, foreign_code, needed
from deeprecsys.artifacts.torchscript import named

NAME = "aotinductor"
_RUNNERS = 64  # that may run at once: one would have threads wait for each other (pytorch#134946)


class AotInductor:
    name = NAME

    def __init__(self, path: Path, trust: bool = False) -> None:
        if not trust:
            raise foreign_code(path)
        try:
            from torch._inductor.package.package import load_package
        except ModuleNotFoundError as error:
            raise needed("torch", "torch", path) from error
        try:
            self._run: Any = load_package(str(path), num_runners=_RUNNERS)
        except Exception as error:
            raise damaged(path, "AOTInductor package", error) from error
        self.found = Found(None)

    def bind(self, names: Sequence[str]) -> None:
        pass

    def enter_thread(self) -> None:
        import torch

        torch.set_num_threads(1)
        torch.autograd.grad_mode.set_grad_enabled(False)

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        import torch

        with torch.no_grad():
            answer = self._run(*[torch.from_numpy(np.require(a, None, ["C", "W"])) for a in inputs])
        return {name: tensor.detach().numpy() for name, tensor in named(answer).items()}


__all__ = ["NAME", "AotInductor"]
