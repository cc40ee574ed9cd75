"""`deeprecsys VERB …`: the verbs, and what becomes of errors.

Exit codes: 0 done; 1 the work was done and the answer is no; 2 the request was wrong, with one
line that says what and how to mend it; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

import typer

from deeprecsys.cli import (
    bench,
    compare,
    doctor,
    inspect,
    load,
    models,
    output,
    plan,
    profile,
    report,
    serve,
    simulate,
    tune,
)
from deeprecsys.core import UserError

app = typer.Typer(
    name="deeprecsys",
    help="Find the most recommendation queries per second this machine serves within a "
    "tail-latency target.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verb in (
    inspect,
    models,
    profile,
    bench,
    tune,
    simulate,
    plan,
    serve,
    load,
    compare,
    report,
    doctor,
):
    app.command(name=verb.NAME, help=verb.HELP)(verb.run)


def main(arguments: Sequence[str] | None = None) -> None:
    output.reserve_streams()
    sys.exit(call(sys.argv[1:] if arguments is None else list(arguments)))


def call(arguments: Sequence[str]) -> int:
    """Runs one command; its exit code."""
    with output.steady() as out:
        code = _run(arguments)
        out.flush()
        return code if out.error is None else _unprinted(code, out.error, arguments)


def _unprinted(code: int, error: Exception, arguments: Sequence[str]) -> int:
    """The exit code where standard output could not be written; whoever closed a pipe knows."""
    why = getattr(error, "strerror", None) or str(error)
    if code == 2:  # which has had its line
        return code
    if "--json=-" in arguments or ("--json", "-") in pairwise(arguments):
        return _wrong(f"the JSON could not be written to standard output: {why}; use --json FILE")
    if not isinstance(error, BrokenPipeError):
        print(f"deeprecsys: standard output could not be written: {why}", file=sys.stderr)
    return code


def _run(arguments: Sequence[str]) -> int:
    command = typer.main.get_command(app)
    try:
        code = command.main(args=list(arguments), prog_name="deeprecsys", standalone_mode=False)
    except UserError as error:
        return _wrong(str(error))
    except KeyboardInterrupt:
        print("deeprecsys: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())  # type: ignore[attr-defined]
            return 2
        if hasattr(error, "format_message"):  # the parser's own: unknown option, missing value
            return _wrong(f"{error.format_message()} Try: deeprecsys --help")
        if type(error).__name__ == "Abort":
            return 130
        raise
    return code if isinstance(code, int) else 0


def _wrong(message: str) -> int:
    print(f"deeprecsys: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
