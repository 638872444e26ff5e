"""Which folder the state is in: one file decides, and whatever it does not name is removed."""

from pathlib import Path

import pytest

from kvstore.server.state_folders import FolderError, StateFolders


def found(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_new_directory_begins_with_state_0(tmp_path: Path) -> None:
    folders = StateFolders(tmp_path)
    assert folders.find() == tmp_path / "state-0"
    assert (tmp_path / "CURRENT").read_text() == "1 state-0\n"
    assert folders.installed_index == 0
    assert not folders.current.exists()  # the store makes it


def test_a_directory_without_current_keeps_its_state(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "row").touch()
    assert StateFolders(tmp_path).find() == tmp_path / "state-0"
    assert found(tmp_path) == ["CURRENT", "state-0"]
    assert (tmp_path / "state-0" / "row").exists()


def test_a_kill_before_the_old_folder_was_renamed_harms_nothing(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "CURRENT").write_text("1 state-0\n")
    assert StateFolders(tmp_path).find() == tmp_path / "state-0"
    assert found(tmp_path) == ["CURRENT", "state-0"]


def test_another_state_counts_once_current_names_it(tmp_path: Path) -> None:
    folders = StateFolders(tmp_path)
    folders.find().mkdir()
    folders.state(120).mkdir()
    again = StateFolders(tmp_path)
    assert again.find() == tmp_path / "state-0"
    folders.swing(120)
    assert (folders.current, folders.installed_index) == (tmp_path / "state-120", 120)
    again = StateFolders(tmp_path)
    assert again.find() == tmp_path / "state-120"
    assert again.installed_index == 120


def test_orphans_are_what_snapshots_make_and_nothing_else(tmp_path: Path) -> None:
    folders = StateFolders(tmp_path)
    folders.find().mkdir()
    folders.state(7).mkdir()
    folders.swing(7)
    kept = ["CURRENT", "LOCK", "log", "member.json", "state-7", "state-backup", "states"]
    for name in ("log", "state-9", "state-12.part", "snapshot-3", "snapshot-4.tmp", "state-backup", "states"):
        (tmp_path / name).mkdir()
    for name in ("LOCK", "member.json", "CURRENT.new"):
        (tmp_path / name).touch()
    (tmp_path / "state-9" / "row").touch()
    folders.remove_orphans()
    assert found(tmp_path) == kept


@pytest.mark.parametrize("text", ["", "1", "1 state-", "1 state-007", "1 ../state-1", "1 log", "\0\0\0\0", "state-0"])
def test_a_damaged_current_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "CURRENT").write_text(text)
    with pytest.raises(FolderError, match="is damaged"):
        StateFolders(tmp_path).find()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "CURRENT").write_text("2 state-0 and more\n")
    with pytest.raises(FolderError, match="has format 2, this version knows 1"):
        StateFolders(tmp_path).find()


def test_states_without_current_are_damage_and_stay(tmp_path: Path) -> None:
    """CURRENT is made before the first of them, so somebody has removed it: which one counted cannot be guessed."""
    (tmp_path / "state-0").mkdir()
    (tmp_path / "state-31").mkdir()
    with pytest.raises(FolderError, match="has state-0, state-31 but no CURRENT"):
        StateFolders(tmp_path).find()
    assert found(tmp_path) == ["state-0", "state-31"]
