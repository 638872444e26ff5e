"""A slice of the fuzzers; `python -m tests.fuzz` goes on with other seeds. A finding becomes a test beside these."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from tests.fuzz.peer import PeerPort
from tests.fuzz.ports import PORTS
from tests.fuzz.target import Target, fuzz, running_target

SECONDS = 10.0


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running_target(tmp_path_factory.mktemp("fuzz")) as target:
        yield target


@pytest.mark.parametrize("name", PORTS)
def test_a_port_survives_anything(target: Target, name: str) -> None:
    port = PORTS[name](target)
    print(f"{name}: {fuzz(target, port.inputs(), port.send, 1, SECONDS)} executions")
    port.close()


def test_a_member_that_dies_is_a_finding(tmp_path: Path) -> None:
    with running_target(tmp_path) as target:

        def deadly(value: object) -> None:
            if isinstance(value, int) and value > 20:
                target.member.kill()

        with pytest.raises(AssertionError, match="has ended"):
            fuzz(target, st.integers(0, 1000), deadly, 1, 5.0)


def test_a_forwarded_keep_alive_of_no_lease_is_answered(target: Target) -> None:
    """Found on the members' port: the leader answered when the last of no leases was renewed, so never."""
    port = PeerPort(target, target.cluster.wait_leader())
    port.send(("/kvstore.v1.Leader/KeepAliveLeases", [b""], port.identity()))
    port.close()
