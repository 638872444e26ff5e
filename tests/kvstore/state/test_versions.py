"""The cluster version and downgrades: etcd's rules and texts, as an etcd 3.5.1 has them one version lower."""

from pathlib import Path

import pytest

from kvstore import errors
from kvstore.errors import KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.command_pb2 import ClusterVersion
from kvstore.state.versions import Versions, parse_minor, read_versions
from tests.kvstore.state.support import State, response

VALIDATE, ENABLE, CANCEL = (pb.DowngradeRequest.DowngradeAction.values())[:3]


@pytest.fixture
async def state(tmp_path: Path) -> State:
    state = State(tmp_path / "s")
    await state.apply(ClusterVersion(version="3.6.0"))
    return state


async def ask(state: State, action: int, version: str = "") -> str | KvError:
    request = pb.DowngradeRequest(action=action, version=version)  # type: ignore[arg-type]
    (result,) = await state.apply(request)
    if isinstance(result, KvError):
        return result
    answer = response(request, result)
    assert isinstance(answer, pb.DowngradeResponse)
    return answer.version


@pytest.mark.parametrize("version", ["3.5", "3.5.0", "3.5.9", "03.5", "3.5.0-rc.1", "3.5.0+x", "3.5.0-rc.1+x"])
async def test_versions_to_go_to(state: State, version: str) -> None:
    assert await ask(state, VALIDATE, version) == "3.6"
    state.close()


@pytest.mark.parametrize(
    "version", ["", "3", "x", "v3.5", "3.5.0.0", " 3.5", "3.5+x", "3.5-rc", "3.5.", "3.५", "9" * 30]
)
async def test_what_is_no_version(state: State, version: str) -> None:
    assert await ask(state, VALIDATE, version) == errors.WRONG_DOWNGRADE_FORMAT
    state.close()


async def test_a_downgrade_from_its_beginning_to_its_end(state: State) -> None:
    for version in ("3.6", "3.4", "3.7", "2.5"):
        assert await ask(state, VALIDATE, version) == errors.INVALID_DOWNGRADE_TARGET
        assert await ask(state, ENABLE, version) == errors.INVALID_DOWNGRADE_TARGET
    assert await ask(state, CANCEL) == errors.NO_INFLIGHT_DOWNGRADE
    assert await ask(state, CANCEL, "x") == errors.NO_INFLIGHT_DOWNGRADE
    assert await ask(state, 5, "3.5") == errors.UNKNOWN_METHOD
    assert read_versions(state.store.get) == Versions((3, 6), None)
    assert await ask(state, ENABLE, "3.5") == "3.6"
    assert await ask(state, ENABLE, "3.5") == errors.DOWNGRADE_IN_PROCESS
    assert await ask(state, VALIDATE, "3.5.0") == errors.DOWNGRADE_IN_PROCESS
    assert await ask(state, VALIDATE, "3.6") == errors.INVALID_DOWNGRADE_TARGET
    # Only now may the leader lower the cluster's version, and to nothing else.
    for wanted, becomes in (("3.4.0", (3, 6)), ("3.7.0", (3, 6)), ("3.5.0", (3, 5)), ("3.6.0", (3, 5))):
        await state.apply(ClusterVersion(version=wanted))
        assert read_versions(state.store.get) == Versions(becomes, (3, 5))
    assert await ask(state, CANCEL) == "3.5"
    await state.apply(ClusterVersion(version="3.6.0"))
    assert read_versions(state.store.get) == Versions((3, 6), None)
    state.close()


async def test_the_cluster_version_only_grows(tmp_path: Path) -> None:
    state = State(tmp_path / "s")
    assert await ask(state, VALIDATE, "3.5") == errors.CLUSTER_VERSION_UNAVAILABLE
    for wanted, becomes in (
        ("nonsense", None),
        ("3.5.0", (3, 5)),
        ("3.4.9", (3, 5)),
        ("3.10.1", (3, 10)),
        ("3.9", (3, 10)),
    ):
        await state.apply(ClusterVersion(version=wanted))
        assert read_versions(state.store.get).cluster == becomes
    state.close()


def test_minor() -> None:
    assert parse_minor("3.6.12") == (3, 6)
    assert parse_minor("3.6.x") is None
