"""What a MODEL is: a published one by its name, or a user's own by the path of its file or folder.

Both answer the same to the options and the verbs; neither is loaded before it must be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deeprecsys.core import EXACT, SLA, Execution, Servable, UserError

if TYPE_CHECKING:
    from deeprecsys.artifacts import OwnModel


@dataclass(frozen=True)
class Published:
    name: str
    scale: float = 1.0
    variant: str = "paper"
    seed: int = 0
    query_inputs: bool = False
    execution: Execution = EXACT

    def check(self) -> None:
        """UserError for what cannot be loaded."""
        self.spec.check_scale(self.scale)
        if self.query_inputs:
            self.spec.check_of_user()
        if self.execution.user == "query" and not self.query_inputs:
            raise UserError(
                f"{self.name} has each candidate bring its user's inputs: "
                f"{'add --query-inputs, or ' if self.of_user else ''}leave user=query out"
            )

    @cached_property
    def spec(self) -> Any:
        from deeprecsys.models import get_spec

        return get_spec(self.name, self.variant)

    @property
    def target(self) -> SLA:
        return self.spec.target  # type: ignore[no-any-return]

    @property
    def whole(self) -> bool:
        """Its queries are never cut."""
        return False

    @property
    def most_items(self) -> None:
        """Of one request: any."""
        return None

    @property
    def sizes(self) -> None:
        """The paper's."""
        return None

    @property
    def memory_bytes(self) -> int:
        return self.spec.memory_bytes(self.scale, self.execution.rows)  # type: ignore[no-any-return]

    @property
    def of_user(self) -> bool:
        return bool(self.spec.of_user)

    @property
    def about(self) -> Mapping[str, Any]:
        """What profiles and summaries say of it, beside its name."""
        said = {name: getattr(self, name) for name in ("variant", "scale", "query_inputs")}
        return said | {"execution": str(self.execution)}

    def load(self) -> Servable:
        """Its tables are in memory as the execution has them, and never otherwise.

        UserError where there is too little memory, or this machine cannot execute it so.
        """
        from deeprecsys.executions import executed
        from deeprecsys.models import load_model

        loaded = load_model(
            self.name,
            scale=self.scale,
            seed=self.seed,
            variant=self.variant,
            query_inputs=self.query_inputs,
            rows=self.execution.rows,
        )
        return executed(loaded, self.execution)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Own:
    """Opened once, when it is first asked something."""

    path: str
    trust: bool = False
    execution: Execution = EXACT
    of_user = False

    def check(self) -> None:
        """UserError for what cannot be opened, or not executed so."""
        _ = self._opened

    @cached_property
    def _opened(self) -> OwnModel:
        from deeprecsys.artifacts import open_model
        from deeprecsys.executions import executed

        opened = open_model(self.path, trust=self.trust)
        return executed(opened, self.execution)  # type: ignore[no-any-return]

    @property
    def name(self) -> str:
        return self._opened.name

    @property
    def target(self) -> SLA | None:
        return self._opened.target

    @property
    def whole(self) -> bool:
        return self._opened.whole

    @property
    def most_items(self) -> int | None:
        return self._opened.most_items

    @property
    def sizes(self) -> str | None:
        return self._opened.sizes

    @property
    def memory_bytes(self) -> int:
        return self._opened.memory_bytes

    @property
    def about(self) -> Mapping[str, Any]:
        return {**self._opened.about, "execution": str(self.execution)}

    def load(self) -> Servable:
        return self._opened


def which(
    text: str,
    *,
    trust: bool = False,
    scale: float = 1.0,
    variant: str = "paper",
    seed: int = 0,
    query_inputs: bool = False,
    execution: Execution = EXACT,
) -> Published | Own:
    """UserError for options of published models with a path."""
    from deeprecsys.artifacts import is_path
    from deeprecsys.models import NAMES

    if text in NAMES or not is_path(text):
        return Published(text, scale, variant, seed, query_inputs, execution)
    if scale != 1.0 or variant != "paper":
        raise UserError("--scale and --variant are of the published models: leave them out")
    return Own(text, trust, execution)
