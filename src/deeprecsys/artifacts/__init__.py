"""Users' own models: a file or a folder as a model that can be tuned and served.

`open_model` finds the artifact, reads what it says (`FORMS`, one file a form) and what is declared
beside it (`declared.py`, `samples.py`), holds both against each other (`derived.py`), and asks the
artifact itself whether its queries may be cut (`legality.py`). Knows no engine and no server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from deeprecsys.artifacts.check import OwnCheck
from deeprecsys.artifacts.declared import FILE, Declared, read_declared
from deeprecsys.artifacts.derived import Derived, Fact, derive
from deeprecsys.artifacts.form import Form, damaged
from deeprecsys.artifacts.model import ModelFailed, OwnModel, Tried
from deeprecsys.artifacts.samples import Samples, find_samples, read_samples
from deeprecsys.core import SLA, Inputs, OutputSpec, UserError
from deeprecsys.workload import parse_sizes
from deeprecsys.workload.sizes import law_of as law_of_sizes


@dataclass(frozen=True, slots=True)
class Kind:
    """module, opener: where a form is; the opener takes the path, and whether it is trusted. mark:
    what the beginning of such a file has, where its suffix is used by others too."""

    module: str
    opener: str
    mark: bytes = b""

    def open(self, path: Path, trust: bool) -> Form:
        module = import_module(f"deeprecsys.artifacts.{self.module}")
        try:
            return getattr(module, self.opener)(path, trust)  # type: ignore[no-any-return]
        except UserError:
            raise
        except Exception as error:  # archives and libraries raise whatever they like
            raise damaged(path, "model", error) from error

    def is_of(self, path: Path) -> bool:
        """Of a file in a folder, which may be anything."""
        if not self.mark:
            return True
        with path.open("rb") as file:
            return self.mark in file.read(4096)


_TORCHSCRIPT = Kind("torchscript", "TorchScript")
_XGBOOST = Kind("trees", "XGBoost", mark=b"learner")
# By suffix. Add a form: a file here, a line.
FORMS: dict[str, Kind] = {
    ".pt": _TORCHSCRIPT, ".pth": _TORCHSCRIPT, ".ts": _TORCHSCRIPT, ".torchscript": _TORCHSCRIPT,
    ".onnx": Kind("onnx", "Onnx"),
    ".txt": Kind("trees", "LightGBM", mark=b"num_tree_per_iteration"),
    ".json": _XGBOOST, ".ubj": _XGBOOST,
    ".cbm": Kind("trees", "CatBoost"),
    ".pt2": Kind("exported", "open_pt2"),
    ".py": Kind("python_class", "PythonClass"),
}  # fmt: skip
_PICKLES = (".pkl", ".pickle", ".joblib", ".ckpt")
_SCORES = ("score", "scores", "logit", "logits", "prob", "probs", "probability", "prediction")


@dataclass(frozen=True, slots=True)
class Looked:
    """What is known of an artifact before it is run."""

    name: str
    path: Path
    form: Form
    declared: Declared
    samples: Samples | None
    derived: Derived


def is_path(text: str) -> bool:
    """A file or a folder, and not the name of a published model."""
    return "/" in text or "\\" in text or Path(text).suffix != "" or Path(text).exists()


def open_model(path: str | Path, *, trust: bool = False) -> OwnModel:
    """A user's own model, as `load_model` gives a published one.

    trust: forms that run foreign code (a Python file, a compiled package) are opened. Raises
    UserError, in one line, for what cannot be opened, contradicts itself or lacks something.
    """
    return finished(look(path, trust=trust))


def look(path: str | Path, *, trust: bool = False) -> Looked:
    """Opens the artifact and reads what lies beside it; runs nothing."""
    try:
        return _looked(Path(path), trust)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}") from error


def _looked(given: Path, trust: bool) -> Looked:
    folder = given if given.is_dir() else given.parent
    beside = given.is_dir() or _only_artifact(given)
    file = folder / FILE
    declared = read_declared(file) if beside and file.is_file() else _own_file(given)
    artifact = _artifact(given, declared)
    recorded = find_samples(folder) if beside else None
    samples = read_samples(recorded) if recorded else None
    form = _kind(artifact).open(artifact, trust)
    derived = derive(artifact, form.found, declared, samples)
    form.bind([spec.name for spec in derived.inputs])
    name = declared.name or (given.resolve().name if given.is_dir() else artifact.stem)
    return Looked(name, artifact, form, declared, samples, derived)


def finished(looked: Looked) -> OwnModel:
    """Tries the artifact out. UserError where something is missing."""
    from deeprecsys.artifacts.legality import try_out

    derived, declared, found = looked.derived, looked.declared, looked.form.found
    if derived.missing:
        first, more = derived.missing[0], len(derived.missing) - 1
        others = f"; {more} more: deeprecsys inspect {looked.path}" if more else ""
        raise UserError(f"{looked.path} does not say of {first.where} {first.what}{others}")
    recorded = looked.samples.queries(derived.inputs) if looked.samples else []
    as_told = OwnCheck(looked.name, derived.inputs, nan=found.nan)
    sizes = _recorded_sizes(looked.samples, recorded, as_told)  # before they are run
    tried = try_out(looked.path, looked.form, derived, recorded, found.least, found.most)
    score, how = _score(looked.path, tried, declared)
    target = declared.target
    law, drawn = _sizes(looked, sizes)
    model = OwnModel(
        looked.name, looked.path, looked.form, derived, tried, looked.samples, score,
        tuple(declared.outputs.tasks or ()), declared.outputs.kind,
        SLA(target.sla_ms / 1e3, target.percentile) if target else None, law,
        (*derived.facts, *tried.facts, how, *_meant(score, declared), drawn), found.nan, recorded,
    )  # fmt: skip
    _recorded_sizes(looked.samples, recorded, model.check)
    return model


def _recorded_sizes(
    samples: Samples | None, recorded: Sequence[Inputs], check: OwnCheck
) -> list[int]:
    """Candidates of each query; UserError, naming the row, where one is none of the model's."""
    if samples is None:
        return []
    sizes = list[int]()
    for number, query in enumerate(recorded, 1):
        try:
            sizes.append(check(query))
        except UserError as error:
            raise UserError(f"{samples.path} row {number}: {error}") from None
    if not any(sizes):
        raise UserError(f"{samples.path} has no candidates")
    return sizes


def _sizes(looked: Looked, recorded: Sequence[int]) -> tuple[str | None, Fact]:
    """The law of query sizes: declared, else as recorded, else nobody's (None)."""
    declared = looked.declared.sizes
    if declared is not None:
        return declared, Fact("queries", f"sizes {declared}", "declared")
    if recorded:
        law = law_of_sizes(recorded)
        return law, Fact("queries", f"sizes as recorded: {parse_sizes(law).ends}", "recorded")
    return None, Fact("queries", "sizes production", "assumed")


def _artifact(given: Path, declared: Declared) -> Path:
    """The file (or the folder's one) that holds the model."""
    if given.is_file():
        return given
    if given.is_symlink() and not given.is_dir():
        raise UserError(f"{given} is a link to nothing")
    if not given.is_dir():
        raise UserError(f"{given} is no file" if given.exists() else f"no file or folder {given}")
    if declared.model is not None:
        if not (given / declared.model).is_file():
            raise UserError(f"{given / FILE} names {declared.model}, which is no file there")
        return given / declared.model
    found = _models(given)
    if not found:
        pickles = [p for p in given.iterdir() if p.suffix.lower() in _PICKLES]
        if pickles:
            return pickles[0]
        broken = [p.name for p in given.iterdir() if p.is_symlink() and not p.exists()]
        links = f"; a link to nothing: {', '.join(broken)}" if broken else ""
        raise UserError(f"{given} holds no model: known are {', '.join(FORMS)}{links}")
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise UserError(f'{given} has several models, {names}: say model = "..." in {FILE}')
    return found[0]


def _only_artifact(file: Path) -> bool:
    """A file alone in its folder has the model.toml that lies beside it."""
    if not (file.parent / FILE).is_file():
        return True
    declared = read_declared(file.parent / FILE)
    others = _models(file.parent)
    return declared.model == file.name or (declared.model is None and len(others) <= 1)


def _models(folder: Path) -> list[Path]:
    """What in a folder is a model."""
    known = [p for p in folder.iterdir() if p.suffix.lower() in FORMS and p.is_file()]
    return sorted(p for p in known if FORMS[p.suffix.lower()].is_of(p))


def _own_file(given: Path) -> Declared:
    """`ranker.toml` beside `ranker.pt`, where several models share a folder."""
    own = given.with_suffix(".toml")
    if given.is_file() and own.is_file():
        return read_declared(own)
    return Declared()


def _kind(path: Path) -> Kind:
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        raise UserError(
            f"{path} is a pickle, which runs code as it is loaded: save it as TorchScript, ONNX or "
            "in the library's own format"
        )
    if suffix not in FORMS:
        raise UserError(f"{path} is of no known form; known: {', '.join(FORMS)}")
    return FORMS[suffix]


def _score(path: Path, tried: Tried, declared: Declared) -> tuple[str, Fact]:
    """Which output is the score, and how that is known."""
    names = [output.name for output in tried.outputs]
    said = declared.outputs.score
    if said is not None:
        if said not in names:
            raise UserError(f"{FILE}: no output {said!r}; {path.name} has {', '.join(names)}")
        _check_tasks(_output(tried, said), declared)
        return said, Fact(f"output {said}", "is the score", "declared")
    likely = [name for name in names if name.lower() in _SCORES]
    name = names[0] if len(names) == 1 else likely[0] if likely else names[0]
    _check_tasks(_output(tried, name), declared)
    kind: Any = "found" if len(names) == 1 else "assumed"
    return name, Fact(f"output {name}", "is the score", kind)


def _meant(score: str, declared: Declared) -> list[Fact]:
    """What the score is, and of which tasks."""
    said = declared.outputs
    what = [f"is a {said.kind}"] if said.kind else []
    what += [f"of tasks {', '.join(said.tasks)}"] if said.tasks else []
    return [Fact(f"output {score}", one, "declared") for one in what]


def _output(tried: Tried, name: str) -> OutputSpec:
    return next(output for output in tried.outputs if output.name == name)


def _check_tasks(output: OutputSpec, declared: Declared) -> None:
    tasks = declared.outputs.tasks
    if tasks is not None and len(tasks) != output.columns:
        raise UserError(
            f"{FILE} names {len(tasks)} tasks, and output {output.name} has {output.columns}"
        )


__all__ = [
    "FORMS",
    "Fact",
    "Looked",
    "ModelFailed",
    "OwnModel",
    "finished",
    "is_path",
    "look",
    "open_model",
]
