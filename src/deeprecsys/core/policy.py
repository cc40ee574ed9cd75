"""What is wanted and what is tuned: `SLA`, `Execution` and `Policy`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, Self

from deeprecsys.core.values import UserError


@dataclass(frozen=True, slots=True)
class SLA:
    """A percentile and a latency: `SLA(0.100, 95)` reads p95 <= 100 ms."""

    latency_s: float
    percentile: float = 95.0

    def __post_init__(self) -> None:
        if not (self.latency_s > 0 and math.isfinite(self.latency_s)):
            raise UserError(f"SLA latency must be positive, not {self.latency_s * 1e3:g} ms")
        if not 0 < self.percentile < 100:
            raise UserError(f"percentile must lie between 0 and 100, not {self.percentile:g}")

    def __str__(self) -> str:
        return f"p{self.percentile:g} ≤ {self.latency_s * 1e3:g} ms"


@dataclass(frozen=True, slots=True)
class Execution:
    """How a request is executed. The default is exact: fp32 throughout, as the model was made.

    rows: type of the embedding rows; "int8" with a scale and an offset a row.
    layers: type of the matrix products; "int8" with ranges of the activations from examples.
    packed: the layers' weights are reordered once, and what follows them is fused.
    user: what belongs to the user is computed once a "request", or once a "query" for all of them.
    kept: layers, by name, that stay as they were made.

    As text, a comma between what is not as usual: "rows=fp16,layers=bf16,packed"; "exact".
    """

    rows: Literal["fp32", "fp16", "int8"] = "fp32"
    layers: Literal["fp32", "bf16", "int8"] = "fp32"
    packed: bool = False
    user: Literal["request", "query"] = "request"
    kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(sorted(self.kept, key=str)))
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise UserError(
                    f"an execution's {name} are {' or '.join(known)}, not {getattr(self, name)!r}"
                )
        if not isinstance(self.packed, bool):
            raise UserError(f"packed must be true or false, not {self.packed!r}")
        if not all(isinstance(name, str) and name for name in self.kept):
            raise UserError(f"kept must be names of layers, not {list(self.kept)!r}")

    @property
    def exact(self) -> bool:
        """The same arithmetic as the model's own, but for the order of its sums."""
        return self.rows == self.layers == "fp32"

    def to_dict(self) -> dict[str, Any]:
        """What is not as usual."""
        usual = Execution()
        return {
            name: list(value) if name == "kept" else value
            for name, value in asdict(self).items()
            if value != getattr(usual, name)
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        """UserError for what it does not know, or what is of another kind."""
        known = {f.name for f in fields(cls)}
        if not isinstance(raw, Mapping):
            raise UserError(
                f"an execution must be an object of {', '.join(sorted(known))}, not {raw!r}"
            )
        if unknown := sorted(set(raw) - known):
            raise UserError(
                f"unknown field of an execution: {', '.join(unknown)}; "
                f"known: {', '.join(sorted(known))}"
            )
        said: dict[str, Any] = {**raw}
        if "kept" in said:
            if not isinstance(said["kept"], list | tuple):
                raise UserError(f"kept must be names of layers, not {said['kept']!r}")
            said["kept"] = tuple(said["kept"])
        return cls(**said)

    @classmethod
    def parse(cls, text: str) -> Self:
        """UserError for what it cannot read."""
        said: dict[str, Any] = {}
        for part in text.split(",") if text != "exact" else ():
            name, equals, value = part.strip().partition("=")
            if name == "packed" and not equals:
                said[name] = True
            elif name in _KNOWN and equals:
                said[name] = value
            elif name == "kept" and value:
                said[name] = value.split("+")
            else:
                raise UserError(
                    f"cannot read the execution {text!r}: say exact, or "
                    "rows=fp16|int8, layers=bf16|int8, packed, user=query, commas between"
                )
        return cls.from_dict(said)

    def __str__(self) -> str:
        said = [
            "packed" if name == "packed" else
            f"kept={'+'.join(value)}" if name == "kept" else f"{name}={value}"
            for name, value in self.to_dict().items()
        ]  # fmt: skip
        return ",".join(said) or "exact"


_KNOWN: Mapping[str, tuple[str, ...]] = {
    "rows": ("fp32", "fp16", "int8"),
    "layers": ("fp32", "bf16", "int8"),
    "user": ("request", "query"),
}
EXACT = Execution()


@dataclass(frozen=True, slots=True)
class Policy:
    """What is tuned. Every field has a default; unknown fields are rejected by `from_dict`.

    batch_size: static, the most items a request may hold; adaptive, what it reaches for at least.
    offload_threshold: queries of at least this many items go whole to the accelerator
        (None: none does).
    adaptive: a free worker takes max(batch_size, queued items / idle workers), of several
        queries if need be.
    most_items: of a request that joins queries, of an adaptive policy or on an accelerator.
    offload_backlog: a query stays on the cores while every accelerator has more items than this
        to do already (None: however many).
    workers: only so many of the workers take requests (None: all).
    execution: how the cores execute a request.
    """

    batch_size: int = 128
    offload_threshold: int | None = None
    adaptive: bool = False
    most_items: int = 1024
    offload_backlog: int | None = None
    workers: int | None = None
    execution: Execution = EXACT

    def __post_init__(self) -> None:
        for name in ("batch_size", "most_items", "offload_threshold", "offload_backlog", "workers"):
            value = getattr(self, name)
            if value is None and name not in ("batch_size", "most_items"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"{name} must be a whole number of at least 1, not {value!r}")
        if not isinstance(self.adaptive, bool):
            raise UserError(f"adaptive must be true or false, not {self.adaptive!r}")
        if self.adaptive and self.most_items < self.batch_size:
            raise UserError(
                f"an adaptive policy takes at least {self.batch_size} items, and at most "
                f"{self.most_items}: raise most_items"
            )

    def to_dict(self) -> dict[str, Any]:
        """Batch size and threshold always; of the others, what is not as usual."""
        usual = Policy()
        said = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value.to_dict() if name == "execution" else value
            for name, value in said.items()
            if name in ("batch_size", "offload_threshold") or value != getattr(usual, name)
        }

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}
        if unknown := sorted(set(raw) - known):
            raise UserError(
                f"unknown policy field {', '.join(unknown)}; known: {', '.join(sorted(known))}"
            )
        said = dict(raw)
        if "execution" in said:
            said["execution"] = Execution.from_dict(said["execution"])
        return cls(**said)

    def to_json(self) -> str:
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        return cls.from_dict(json.loads(text))

    def uncut(self, size: int) -> Policy:
        """The same for a query that must not be cut."""
        if size <= self.batch_size and not self.adaptive:
            return self
        return replace(self, batch_size=max(size, self.batch_size), adaptive=False)

    def __str__(self) -> str:
        more = f", offload ≥ {self.offload_threshold}" if self.offload_threshold else ""
        if self.offload_backlog:
            more += f" unless {self.offload_backlog} wait"
        if self.workers:
            more += f", {self.workers} workers"
        if self.execution != EXACT:
            more += f", {self.execution}"
        if self.adaptive:
            return f"adaptive, {self.batch_size} to {self.most_items} items{more}"
        return f"batch size {self.batch_size}{more}"
