"""The seam behind which a form of artifact lies: what it says of itself, and how it is run.

A form knows its library and its file; nothing of queries, scopes, ids or scores, which `derived.py`
makes of what is found here and what is declared. Add one: a file with a class that is a `Form`, a
line in `FORMS` (`artifacts/__init__.py`), a fixture in the conformance tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from deeprecsys.core import UserError

Array = NDArray[Any]
Shape = tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or an output, as far as the artifact says it.

    datatype: of the Open Inference Protocol. shape: with its leading dimension; None is a dimension
    that may be any. Either is None where the artifact does not say it.
    """

    name: str
    datatype: str | None = None
    shape: Shape | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """inputs: in the order in which `run` takes them; None: any number, in the order in which they
    are declared. outputs: None where only running it tells.

    least, most: candidates that it takes at once, where the artifact says so. nan: a value may be
    missing. text: an input whose type it does not say may be text.
    """

    inputs: tuple[Tensor, ...] | None
    outputs: tuple[Tensor, ...] | None = None
    least: int = 1
    most: int | None = None
    nan: bool = False
    text: bool = False


class Form(Protocol):
    """An opened artifact. `run` is called from several threads at a time."""

    @property
    def name(self) -> str:
        """Of the form: "torchscript", "onnx"; also that of the runtime."""
        ...

    @property
    def found(self) -> Found: ...

    def bind(self, names: Sequence[str]) -> None:
        """The names of the inputs, once they are known, in the order in which `run` takes them."""
        ...

    def enter_thread(self) -> None:
        """Once in each thread, before its first `run`: one core, one worker."""
        ...

    def run(self, inputs: Sequence[Array]) -> Mapping[str, Array]:
        """Outputs by name. Raises whatever its library does."""
        ...


def fixed_rows(inputs: Sequence[Tensor]) -> int | None:
    """The number of candidates that was frozen in: where no leading dimension is free."""
    leading = {tensor.shape[0] for tensor in inputs if tensor.shape}
    if not leading or None in leading:
        return None
    return max(n for n in leading if n is not None)


def needed(library: str, extra: str, path: Path) -> UserError:
    """What to say where a form's library is not installed."""
    return UserError(f"{path} needs {library}: pip install 'deeprecsys[{extra}]'")


def foreign_code(path: Path) -> UserError:
    """What to say of a form that is not trusted."""
    return UserError(
        f"{path} is code, which runs in this process: give --trust (trust=True) if it is yours"
    )


def damaged(path: Path, what: str, error: Exception) -> UserError:
    """What to say of a file that its own library cannot read."""
    return UserError(f"{path} is no {what} that can be read, or is cut off: {reason(error)}")


def reason(error: BaseException) -> str:
    """An exception in one line: a library's last word, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "Error:" in line), lines[0] if lines else "")
    return " ".join((said or type(error).__name__).split())[:300]


__all__ = [
    "Array",
    "Form",
    "Found",
    "Shape",
    "Tensor",
    "damaged",
    "fixed_rows",
    "foreign_code",
    "needed",
    "reason",
]
