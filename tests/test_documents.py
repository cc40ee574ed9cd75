"""What the documents say holds: their Python runs, their commands parse, what they name exists."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import typer

from deeprecsys.cli.main import app

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/results.md"])
LIVING = [d for d in DOCUMENTS if d.name != "results.md"]  # results are of the day they name
FILES = [
    path.relative_to(ROOT)
    for room in ("src", "tests", "benchmarks", "examples", "docs")
    for path in (ROOT / room).rglob("*")
    if "__pycache__" not in path.parts
]
VERBS = typer.main.get_command(app)


@pytest.mark.engine
def test_the_example_of_the_readme_runs(capsys):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(examples) > 1
    brief = re.sub(r"budget_s=\d+", "budget_s=2", "\n".join(examples))
    exec(compile(brief, "README.md", "exec"), {})
    meets, rate_qps, best = capsys.readouterr().out.split(maxsplit=2)
    # What a shared machine answers in these few seconds is its own affair.
    assert meets in ("True", "False", "None")
    assert float(rate_qps) >= 0
    assert best.strip() == "None" or best.startswith("batch size")


def told(which=LIVING, *, blocks=True, inline=True):
    """(document, line of a code block or piece of code within a sentence)."""
    fence = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    for document in which:
        text = document.read_text()
        for language, block in fence.findall(text):
            shown = blocks and language != "python"
            yield from ((document.name, line) for line in block.splitlines() if shown)
        for code in re.findall(r"`([^`]+)`", fence.sub("", text)):
            yield from [(document.name, " ".join(code.split()))] * inline


COMMANDS = sorted(
    {line for _, line in told() if line.startswith("deeprecsys ") and "VERB" not in line}
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_of_a_document_parses(line):
    _, verb, *arguments = shlex.split(line, comments=True)
    command = VERBS.commands[verb]
    if arguments:  # else it is a verb's name
        with command.make_context(verb, arguments) as context:  # raises for what it does not know
            assert context.info_name == verb


def test_many_commands_are_shown():
    assert len(COMMANDS) > 20


def options():
    known = {"--help", "--hypothesis-profile"} | {
        name
        for verb in VERBS.commands.values()
        for p in verb.params
        for name in p.opts + p.secondary_opts
    }
    for path in ROOT.glob("benchmarks/*.py"):
        known |= set(re.findall(r'"(--[a-z-]+)"', path.read_text()))
    return known


def test_every_option_that_a_document_names_exists():
    known = options()
    for document, code in told():
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", code):
            assert option in known, f"{document} names {option}"


def named_files():
    return {
        (document, name)
        for document, code in told(blocks=False)
        for name in re.findall(r"(?<![\w.…>/-])[\w/.-]+\.py\b", code)
    }


def test_every_module_that_a_document_names_exists():
    assert len(named_files()) > 20
    for document, name in sorted(named_files()):
        end = Path(name).parts
        assert any(path.parts[-len(end) :] == end for path in FILES), f"{document} names {name}"


def test_every_part_of_a_benchmark_that_a_document_names_exists():
    for document, code in told(DOCUMENTS):
        for script, parts in re.findall(r"(benchmarks/\w+\.py) --only ([\w ]+)", code):
            source = "".join(path.read_text() for path in ROOT.glob("benchmarks/*.py"))
            for part in parts.split():
                assert f"def {part}(" in source, f"{document} names {part} of {script}"


def test_every_target_of_make_that_a_document_names_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document, code in told():
        for target in re.findall(r"^make ([\w-]+)", code):
            assert target in targets, f"{document} names make {target}"


def definitions():
    """module or class -> what it defines, of the whole package."""
    found = {}
    for path in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(path.read_text())
        found.setdefault(path.parent.name, set()).add(path.stem)
        module = path.parent.name if path.stem == "__init__" else path.stem
        for name, body in [
            (module, tree.body),
            *((n.name, n.body) for n in tree.body if isinstance(n, ast.ClassDef)),
        ]:
            found.setdefault(name, set()).update(names(body))
    return found


def names(body):
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        yield from (t.id for t in targets if isinstance(t, ast.Name))
        yield from (
            a.asname or a.name for a in getattr(node, "names", []) if isinstance(a, ast.alias)
        )


def test_every_function_and_class_that_a_document_names_exists():
    known = definitions()
    shown = "".join(
        re.findall(r"```python\n(.*?)```", "".join(map(Path.read_text, DOCUMENTS)), re.S)
    )
    for variable in re.findall(r"^ *(\w+) = |as (\w+):", shown, re.MULTILINE):
        known.pop("".join(variable), None)
    for document, code in told(blocks=False):
        for owner, member in re.findall(r"(?<![\w./-])(\w+)\.(\w+)(?=\(|$| )", code):
            if owner in known and member not in ("py", "md", "json", "jsonl", "toml"):
                assert member in known[owner], f"{document} names {owner}.{member}"


def test_the_layers_of_architecture_are_the_rooms():
    table = re.findall(
        r"^\| [\d.]+ \|(.*?)\|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE
    )
    told = set(re.findall(r"`(\w+)/`", " ".join(table)))
    rooms = {path.parent.name for path in (ROOT / "src/deeprecsys").glob("*/__init__.py")}
    assert told == rooms


def test_every_file_that_a_document_links_to_exists():
    for document in DOCUMENTS:
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
