"""An artifact under mosec, for `peers.py`: `python benchmarks/mosec_server.py ncf.pt --port 8000`.

Knows nothing of deeprecsys: a traced file, the model.toml beside it, and mosec's own options. A
query is its tensors' bytes one after another, in that file's order; an answer is float32 scores.
Two processes of one thread each, a query a batch.
"""

from __future__ import annotations

import math
import sys
import tomllib
import warnings
from pathlib import Path
from typing import Any

import torch
from mosec import Server, Worker

_DTYPES = {"FP32": torch.float32, "INT32": torch.int32, "INT64": torch.int64}
_WARM = (7, 100, 500)  # candidates: TorchScript compiles while it runs its first queries


class Ranker(Worker):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        warnings.filterwarnings("ignore", "IPC data")  # a line for each length of a long query
        torch.set_num_threads(1)
        path = Path(sys.argv[1])
        loaded = torch.jit.load(str(path)).eval()  # type: ignore[no-untyped-call]
        self.module: Any = torch.jit.freeze(loaded)
        inputs = tomllib.loads(path.with_name("model.toml").read_text())["inputs"].values()
        self.inputs = [(_DTYPES[one["datatype"]], tuple(one["shape"])) for one in inputs]
        self.row_bytes = sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.inputs)
        for n in (*_WARM, *_WARM):
            self.forward(self.deserialize(bytearray(n * self.row_bytes)))

    def deserialize(self, data: bytes | bytearray) -> list[torch.Tensor]:
        """Views of what came: no copy."""
        n, at = len(data) // self.row_bytes, 0
        tensors = list[torch.Tensor]()
        for dtype, shape in self.inputs:
            count = n * math.prod(shape)
            tensor = torch.frombuffer(data, dtype=dtype, count=count, offset=at)
            tensors.append(tensor.view(n, *shape))
            at += count * dtype.itemsize
        return tensors

    def forward(self, data: list[torch.Tensor]) -> torch.Tensor:
        with torch.inference_mode():
            scores: torch.Tensor = self.module(data)
            return scores

    def serialize(self, data: torch.Tensor) -> bytes:
        return data.numpy().tobytes()


if __name__ == "__main__":
    server = Server()  # type: ignore[no-untyped-call]
    server.append_worker(Ranker, num=2, max_batch_size=1)
    server.run()  # type: ignore[no-untyped-call]
