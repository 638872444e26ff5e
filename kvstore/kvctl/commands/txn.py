import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from kvstore.kvctl.printers import write_result
from kvstore.kvctl.session import Session

PROMPTS = ("compares:", "success requests (get, put, del):", "failure requests (get, put, del):")


async def txn(
    session: Session,
    file: Annotated[Path | None, typer.Argument(help="Read from stdin when it is missing or -.")] = None,
    interactive: Annotated[bool, typer.Option("--interactive", "-i", help="Prompt for each part.")] = False,
) -> None:
    """Compare, then do one of two lists of operations, all at one revision.

    The input has three parts, each ended by a blank line: compares, what to do when all hold, what to do else.

    Example:

    printf 'value("job") = "open"\\n\\nput job "in work"\\n\\nget job\\n\\n' | kvctl txn

    Compares: value, version, create, mod or lease, then ("KEY"), then = != < or >, then "VALUE".
    Operations: put, get and del with their options.
    """
    session.no_table("txn")
    from kvstore.kvctl.txn_language import parse

    if file is not None and str(file) != "-":
        lines: Iterator[str] = iter(file.read_text(errors="surrogateescape").splitlines())
    else:
        lines = _stdin(prompt=interactive or sys.stdin.isatty())
    when, then, otherwise = parse(lines)
    async with session.client() as client:
        result = await client.txn(when, then, otherwise)
    write_result(result, session.write_out)


def _stdin(prompt: bool) -> Iterator[str]:
    """Lines as they come; with prompts, the name of each part before its first line."""
    sys.stdin.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    prompts = list(PROMPTS) if prompt else []
    if prompts:
        print(prompts.pop(0), flush=True)
    for line in sys.stdin:
        yield line
        if prompts and not line.strip():
            print(prompts.pop(0), flush=True)
