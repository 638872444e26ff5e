"""Every script does what it says. `make golden` writes the outputs anew; review the diff."""

from pathlib import Path

import pytest

from raft.testing.script import RULE, ScriptError, run_script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    text = path.read_text()
    assert run_script(text) == text


def test_scripts_are_there() -> None:
    assert len(SCRIPTS) >= 15


def test_output_is_replaced_and_ends_at_an_empty_line() -> None:
    text = f"cluster nodes=1\nstatus\n{RULE}\nold output\n\nstate 1\n{RULE}\n"
    status = "n1@0 follower leader=none vote=none commit=0 applied=0 last=0@0"
    assert run_script(text) == f"cluster nodes=1\nstatus\n{RULE}\n{status}\n\nstate 1\n{RULE}\n(empty)\n"


@pytest.mark.parametrize(
    "text",
    [
        "status\n----\n",  # no cluster
        "cluster nodes=1\nfly 1\n----\n",
        "cluster wings=2\n----\n",
        "cluster nodes=1\ntick\n----\n",
        "cluster nodes=1\ntick 7\n----\n",
        "cluster nodes=1\n",  # no output asked for
    ],
)
def test_a_wrong_script_is_an_error(text: str) -> None:
    with pytest.raises(ScriptError):
        run_script(text)
