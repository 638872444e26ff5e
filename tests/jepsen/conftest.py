"""What the tests here need of the machine."""

import pytest

from tests.jepsen.probe import NETNS, missing, probe


@pytest.fixture(scope="session")
def netns() -> dict[str, str]:
    """The capabilities; skipped where namespaces cannot be made."""
    found = probe()
    if why := missing(NETNS, found):
        pytest.skip(f"backend netns: {why}")
    return found
