"""`inspect`: what a model of your own says, what is assumed of it, and what is missing."""

from __future__ import annotations

import json
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

Exit code 2, with the line to add, where something is missing. --write begins a model.toml.

Example: deeprecsys inspect ./ranker.onnx --write
"""
_COLOURS = {
    "found": "green", "recorded": "green", "declared": "green", "assumed": "yellow",
    "missing": "bold red",
}  # fmt: skip


def run(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A model's file or folder.")],
    write: Annotated[
        bool, typer.Option("--write", help="Begin a model.toml, to be completed.")
    ] = False,
    trust: opt.Trust = False,
    json_file: opt.JsonFile = None,
) -> int:
    from deeprecsys.artifacts import finished, look

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
        console.print(f"written: {_write(looked)}", markup=False)
    files.write_json(json.dumps(_said(looked, model, facts), indent=1), json_file)
    if missing:
        raise UserError(f"{looked.path} does not say of {missing[0].where} {missing[0].what}")
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
            "memory_bytes": model.memory_bytes,
        }
    return said


def _write(looked: Looked) -> Path:
    """A model.toml with a table for each input; what only its user knows stands there as a comment.

    UserError where there is one.
    """
    from deeprecsys.artifacts.declared import FILE

    target = looked.path.parent / FILE
    if target.exists():
        raise UserError(f"{target} is there already: complete it, or move it away")
    target.write_text(_toml(looked))
    return target


def _toml(looked: Looked) -> str:
    facts = looked.derived.facts
    lines = [
        f"# {looked.path.name}: what it does not say. Take the # off what is true.",
        "# target = {sla_ms = 50, percentile = 95}",
        '# sizes = "lognormal:5.1,0.6"',
    ]
    names = [f.where.removeprefix("input ") for f in facts if f.where.startswith("input ")]
    for name in dict.fromkeys(names):
        mine = [fact for fact in facts if fact.where == f"input {name}"]
        lines += ["", f"[inputs.{json.dumps(name)}]", '# scope = "query"   # the user\'s']
        for fact in mine:
            lines.append(f"# {fact.kind}: {fact.what}")
        if any("datatype" in fact.what for fact in mine if fact.kind == "missing"):
            lines.append('# datatype = "INT64"')
        if any("shape" in fact.what for fact in mine if fact.kind == "missing"):
            lines.append("# shape = [1]")
        lines += ["# ids = 1000   # rows of its table, or [first, last]", "# padding = 0"]
    return "\n".join([*lines, "", "# [outputs]", '# score = "scores"', ""])
