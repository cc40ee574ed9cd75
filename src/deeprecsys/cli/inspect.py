"""`inspect`: what a model of your own says, what is assumed of it, and what is missing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from deeprecsys.cli import folder as files
from deeprecsys.cli import options as opt
from deeprecsys.cli import show
from deeprecsys.core import UserError

if TYPE_CHECKING:
    from deeprecsys.artifacts import Fact, Looked, OwnModel

NAME = "inspect"
HELP = """Say what was found in a model of your own, what is assumed of it, and what is missing.

Exit code 2, with the line to add, where something is missing. --write begins a model.toml; of one
that is there it prints the lines that it lacks.

Example: deeprecsys inspect ./ranker.onnx --write
"""
_COLOURS = {
    "found": "green", "recorded": "green", "declared": "green", "assumed": "yellow",
    "missing": "bold red",
}  # fmt: skip
# By the words of a missing fact: its line, with an example's value.
_ASKED = {
    "datatype": 'datatype = "INT64"',
    "shape": "shape = [1]   # of a candidate's row; [] of [N]",
    "where bags are": 'bounds = "ends"   # or starts, offsets, lengths',
    "valid ids": "ids = 1000   # rows of its table, or [first, last]",
}


def run(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A model's file or folder.")],
    write: Annotated[
        bool, typer.Option("--write", help="Begin a model.toml, or say what to add to it.")
    ] = False,
    publish: Annotated[
        str | None,
        typer.Option(help="Copy it, once it is complete, as the next version of this folder."),
    ] = None,
    trust: opt.Trust = False,
    json_file: opt.JsonFile = None,
) -> int:
    from deeprecsys.artifacts import finished, look, versions

    files.check_target("--json", json_file)
    looked = look(path, trust=trust)
    missing = looked.derived.missing
    model = None if missing else finished(looked)
    facts = looked.derived.facts if model is None else model.facts
    console = show.console(json_file)
    console.print(Text(f"{looked.name}: {looked.form.name}, {looked.path}", style="bold"))
    for fact in facts:
        console.print(_line(fact), soft_wrap=True)
    if write:
        console.print(_written(looked), markup=False, highlight=False, soft_wrap=True)
    files.write_json(json.dumps(_said(looked, model, facts), indent=1), json_file)
    if missing:
        raise UserError(f"{looked.path} does not say of {missing[0].where} {missing[0].what}")
    if publish is not None:
        version = versions.publish(Path(path), Path(publish))
        console.print(Text(f"version {version} of {publish}", style="bold"))
    return 0


def _line(fact: Fact) -> Text:
    style = _COLOURS[fact.kind]
    return Text.assemble((f"{fact.kind:9}", style), f" {fact.where}: ", (fact.what, style))


def _said(looked: Looked, model: OwnModel | None, facts: tuple[Fact, ...]) -> dict[str, Any]:
    said: dict[str, Any] = {
        "model": looked.name,
        "path": str(looked.path),
        "form": looked.form.name,
        "facts": [{"where": f.where, "what": f.what, "kind": f.kind} for f in facts],
    }
    if model is not None:
        said |= {
            "whole": model.whole,
            "most_items": model.most_items,
            "score": model.score,
            "kind": model.kind,
            "tasks": list(model.task_names),
            "memory_bytes": model.memory_bytes,
        }
    return said


def _written(looked: Looked) -> str:
    """Begins a model.toml, in which what only its user knows stands as a comment; one that is there
    is not touched: what to add to it is said."""
    from deeprecsys.artifacts.declared import FILE

    target = looked.path.parent / FILE
    if not target.exists():
        try:
            target.write_text(_toml(looked))
        except OSError as error:
            raise UserError(f"cannot write {target}: {error.strerror}") from error
        return f"written: {target}"
    lines = [line for name in _names(looked) for line in _lacking(looked, name)]
    if not lines:
        return f"{target} is there already, and lacks nothing"
    return "\n".join([f"add to {target}:", *lines])


def _toml(looked: Looked) -> str:
    lines = [
        f"# {looked.path.name}: what it does not say. Take the # off what is true.",
        "# Every key: docs/your-model.md",
        f'# name = "{looked.name}"   # as served',
        "# target = {sla_ms = 50, percentile = 95}",
        '# sizes = "lognormal:5.1,0.6"   # candidates a query; default: as recorded, or production',
    ]
    for name in _names(looked):
        known = [f"{f.what} ({f.kind})" for f in _facts(looked, name) if f.kind != "missing"]
        lines += ["", _table(name), *(f"# {line}" for line in [", ".join(known)] if line)]
        lines += [f"# {line}" for line in _offered(looked, name)]
    return "\n".join([*lines, "", "# [outputs]", '# score = "scores"', '# kind = "logit"', ""])


def _offered(looked: Looked, name: str) -> list[str]:
    """Of an input: what is missing, and what else may be said of its kind."""
    said = " ".join(fact.what for fact in _facts(looked, name))
    lines = _asked(looked, name)
    if "scope candidate" in said:
        lines.append('scope = "query"   # the user\'s: one row may do for all candidates')
    if re.search(r"\bFP\d\d\b", said) and "datatype" not in said:
        return [*lines, 'values = "normal:0,1"   # or uniform:A,B, where none are recorded']
    usual = [_ASKED["valid ids"], "padding = 0   # an id that stands for none"]
    return list(dict.fromkeys([*lines, *usual]))


def _lacking(looked: Looked, name: str) -> list[str]:
    """Of an input: what is missing, to be filled in, under its table."""
    asked = _asked(looked, name)
    return [_table(name), *asked] if asked else []


def _asked(looked: Looked, name: str) -> list[str]:
    missing = [fact.what for fact in _facts(looked, name) if fact.kind == "missing"]
    return [line for word, line in _ASKED.items() if any(word in what for what in missing)]


def _names(looked: Looked) -> list[str]:
    where = [f.where for f in looked.derived.facts if f.where.startswith("input ")]
    return list(dict.fromkeys(one.removeprefix("input ") for one in where))


def _facts(looked: Looked, name: str) -> list[Fact]:
    return [fact for fact in looked.derived.facts if fact.where == f"input {name}"]


def _table(name: str) -> str:
    bare = re.fullmatch(r"[A-Za-z0-9_-]+", name)
    return f"[inputs.{name if bare else json.dumps(name)}]"
