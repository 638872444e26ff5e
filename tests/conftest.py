"""What every test shares: how much hypothesis tries, whose turn it is in a parallel run, and certificates."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
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


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-timeout's: waiting counts for nothing
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with _turn(item.config, alone=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _turn(config: pytest.Config, alone: bool) -> Iterator[None]:
    """In a parallel run (pytest -n) a test marked `alone` waits for the others, and they for it."""
    if "PYTEST_XDIST_WORKER" not in os.environ or config.cache is None:
        yield
        return
    folder = config.cache.mkdir("turns")
    with (folder / "queue").open("w") as queue, (folder / "turn").open("w") as turn:
        # Who waits to be alone holds the queue: else the others would hand the turn to each other for ever.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> "Certificates":
    """One set for all tests: not to be changed."""
    from tests.certificates import Certificates

    return Certificates(tmp_path_factory.mktemp("certificates"))
