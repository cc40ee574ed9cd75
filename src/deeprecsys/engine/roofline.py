"""Where a model stands under this machine's roofs: arithmetic a byte against arithmetic a second.

After Williams, Waterman and Patterson (CACM 2009), with two memory roofs: streaming, and random
table rows, which is what ranking reads. Everything is of all workers together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

from deeprecsys.core import Limits, Work
from deeprecsys.engine.calibrate import Cores, on_cores

FLOAT_BYTES = 4
WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def roofs(limits: Limits, bf16_flops_per_s: float) -> dict[str, Any]:
    """The machine's part of the figure."""
    found: dict[str, Any] = {"fp32": {"flops_per_s": limits.flops_per_s}}
    if math.isfinite(bf16_flops_per_s):
        found["bf16"] = {"flops_per_s": bf16_flops_per_s, "dash": "dash"}
    return {
        "roofs": found,
        "stream_bytes_per_s": limits.stream_bytes_per_s,
        "random_bytes_per_s": limits.lookups_per_s * limits.lookup_bytes,
    }


def point(
    work: Work, weights: int, batch_size: int, requests_per_s: float, layers: str = "fp32"
) -> dict[str, float]:
    """Of requests of `batch_size` items: rows and inputs an item, and the weights, in the type of
    the layers, once."""
    moved = batch_size * (work.table_bytes + work.input_bytes) + weights * WEIGHT_BYTES[layers]
    flops = batch_size * work.flops
    return {
        "batch_size": batch_size,
        "flops": flops,
        "bytes": moved,
        "flops_per_byte": flops / moved,
        "flops_per_s": flops * requests_per_s,
    }


def contrast(cores: Cores, seconds: float = 1.0) -> dict[str, list[dict[str, float]]]:
    """A convolutional and a recurrent layer as in the paper's figure: what ranking is not.

    The 3 x 3 convolutions of ResNet-50's second stage, and an LSTM of speech models; batch 1.
    """
    import torch

    # 3 x 3, 128 -> 128 channels, 28 x 28, four of them (He et al. 2016, table 1)
    conv = torch.nn.Sequential(*[torch.nn.Conv2d(128, 128, 3, padding=1) for _ in range(4)]).eval()
    conv_flops = 4 * 2 * 9 * 128 * 128 * 28 * 28
    conv_bytes = FLOAT_BYTES * (4 * 9 * 128 * 128 + 8 * 128 * 28 * 28)
    # 1,024 wide, 50 steps
    lstm = torch.nn.LSTM(1024, 1024).eval()
    steps = 50
    lstm_flops = steps * 2 * 8 * 1024 * 1024
    # each step reads all weights: 32 MiB, beyond the second-level cache
    lstm_bytes = FLOAT_BYTES * steps * 8 * 1024 * 1024
    cases = {
        "CNN (ResNet-50, 3×3 of stage 2)": (
            conv, torch.rand(1, 128, 28, 28), conv_flops, conv_bytes),
        "RNN (LSTM 1024)": (lstm, torch.rand(steps, 1, 1024), lstm_flops, lstm_bytes),
    }  # fmt: skip
    return {
        name: [{
            "batch_size": 1, "flops": flops, "bytes": moved, "flops_per_byte": flops / moved,
            "flops_per_s": flops * _requests_per_s(module, inputs, cores, seconds),
        }]
        for name, (module, inputs, flops, moved) in cases.items()
    }  # fmt: skip


def bf16_flops_per_s(cores: Cores, seconds: float = 0.5) -> float:
    """Best rate of a bf16 matrix product, all cores; NaN where PyTorch has none."""
    import torch

    n = 1024
    try:
        layer = torch.nn.Linear(n, n, bias=False).to(torch.bfloat16)
        x = torch.rand(n, n).to(torch.bfloat16)
        return 2.0 * n**3 * _requests_per_s(layer, x, cores, seconds)
    except RuntimeError:
        return math.nan


def _requests_per_s(module: Any, inputs: Any, cores: Cores, seconds: float) -> float:
    """Of all cores side by side, one thread each: the median request's pace."""
    import torch

    def work(_: int) -> float:
        times: list[float] = []
        with torch.inference_mode():
            until = time.perf_counter() + seconds
            while time.perf_counter() < until or len(times) < 5:
                began = time.perf_counter()
                module(inputs)
                times.append(time.perf_counter() - began)
        return 1 / sorted(times)[len(times) // 2]

    paces: Sequence[float] = on_cores(cores, lambda: torch.set_num_threads(1), work)
    return float(sum(paces))
