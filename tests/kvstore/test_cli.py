"""The command line of `kvstore`, as a user meets it."""

import subprocess
import sys

import pytest

from kvstore.entry import as_ours, known_flags
from kvstore.version import VERSION


def kvstore(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kvstore", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "200"},
    )


def test_version() -> None:
    result = kvstore("version")
    assert result.returncode == 0
    assert result.stdout.splitlines()[0] == f"kvstore {VERSION}"


@pytest.mark.parametrize("command", ["serve", "local", "version"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = kvstore(command, "--help")
    assert result.returncode == 0
    assert f"kvstore {command}" in result.stdout.replace(f"Usage: kvstore {command}", "")


def test_serve_help_lists_the_settings() -> None:
    text = kvstore("serve", "--help").stdout
    for flag in ("--name", "--data-dir", "--initial-cluster", "--snapshot-count", "--election-timeout"):
        assert flag in text
    assert "--cert-file" in text
    assert "--wal-dir" not in text  # not served, so not offered


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["serve", "--snapshot-cont=3"], "--snapshot-count"),
        (["serve", "--cert-file=x"], "--key-file is needed too"),
        (["serve", "--heartbeat-interval=x"], "'x' is not a whole number"),
        (["local", "--size=0"], "--size"),
        (["sevre"], "serve"),
    ],
)
def test_a_wrong_command_line_exits_2_with_a_hint_and_no_traceback(arguments: list[str], text: str) -> None:
    result = kvstore(*arguments)
    assert result.returncode == 2
    assert text in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("-name=a", "--name=a"),
        ("--name=a", "--name=a"),
        ("-name", "--name"),
        ("--pre-vote", "--pre-vote=true"),
        ("-enable-v2", "--enable-v2=true"),
        ("--pre-vote=false", "--pre-vote=false"),
        ("value", "value"),
        ("--unknown", "--unknown"),
        ("-h", "-h"),
    ],
)
def test_flags_are_taken_as_go_programs_take_them(given: str, taken: str) -> None:
    assert as_ours(given) == taken


def test_importing_the_command_line_is_light() -> None:
    """Completion and --help run it at each key press."""
    heavy = ("grpc", "google.protobuf", "rocksdict", "yaml", "asyncio")
    code = f"import sys, kvstore.cli; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "flags"),
    [
        ([], {}),
        (["--name=a", "--data-dir", "/x"], {"name": "a", "data-dir": "/x"}),
        (["--name=a", "--name=b"], {"name": "b"}),
        (["--initial-cluster=a=http://h:1"], {"initial-cluster": "a=http://h:1"}),
        (["--name"], None),
        (["--name", "--data-dir=/x"], None),
        (["--nonsense=1"], None),
        (["--help"], None),
        (["-h"], None),
        (["word"], None),
    ],
)
def test_a_complete_command_line_needs_no_parser(arguments: list[str], flags: dict[str, str] | None) -> None:
    assert known_flags(arguments) == flags


def test_a_member_starts_without_what_paints_help() -> None:
    code = "import sys; from kvstore.entry import serve; print(serve({'election-timeout': 'x'}), "
    code += "[name for name in ('typer', 'rich', 'click') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "2 []"
    code = "import sys; from kvstore.entry import _load_structlog; _load_structlog(); import rich; "
    code += "print('rich.console' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "False"
