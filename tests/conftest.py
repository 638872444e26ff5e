"""What every test shares: how much hypothesis tries, and certificates."""

import signal
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.certificates import Certificates

# No deadline: a time limit per example fails on a busy machine and finds nothing.
settings.register_profile("default", deadline=None)
settings.register_profile("thorough", deadline=None, max_examples=2000)  # make test-all
settings.load_profile("default")

# A shell without job control makes its background jobs ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> "Certificates":
    """One set for all tests: not to be changed."""
    from tests.certificates import Certificates

    return Certificates(tmp_path_factory.mktemp("certificates"))
