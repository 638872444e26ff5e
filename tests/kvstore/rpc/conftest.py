"""Fixtures of the conformance suite: `ends` for each pair of fronts (pairs.py)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.kvstore.rpc.certificates import Authority
from tests.kvstore.rpc.ends import Ends, Files
from tests.kvstore.rpc.pairs import GRPCIO, LOOPS, NGHTTP2, PAIRS, Pair, is_default
from tests.kvstore.rpc.services import Front


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "also_tls: of the conformance suite's default pairs, run over TLS too")


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    fixtures = getattr(item, "fixturenames", ())
    return LOOPS if "pair" in fixtures else {"uvloop": LOOPS["uvloop"]}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pair" in metafunc.fixturenames:
        metafunc.parametrize("pair", PAIRS, ids=str, indirect=True)


def pytest_itemcollected(item: pytest.Item) -> None:
    callspec = getattr(item, "callspec", None)
    pair = callspec.params.get("pair") if callspec is not None else None
    if isinstance(pair, Pair):
        loop = next(name for name in LOOPS if name in callspec.id)
        if not is_default(pair, loop, item.get_closest_marker("also_tls") is not None):
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """Handlers fail here on purpose, and structlog's own rendering of a traceback takes a second."""
    before = structlog.get_config()
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*before["processors"][:-1], renderer])
    yield
    structlog.configure(**before)


@pytest.fixture
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.param
    if found.missing is not None:
        pytest.skip(found.missing)
    return found


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder: Path = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder, "authority")
    return Files(
        authority.ca_file, authority.issue("server"), authority.issue("client"), Authority(folder, "other").issue("x")
    )


@pytest.fixture
async def ends(pair: Pair, files: Files) -> AsyncIterator[Ends]:
    ends = Ends(pair, files)
    yield ends
    await ends.close()


@pytest.fixture
async def raw(files: Files) -> AsyncIterator[Callable[..., Awaitable[Front]]]:
    """Makes servers of the nghttp2 front for peers by hand (raw.py); each must still serve when the test is over."""
    pair = Pair(NGHTTP2, GRPCIO, tls=False)
    if pair.missing is not None:
        pytest.skip(pair.missing)
    made: list[Front] = []
    ends = Ends(pair, files)

    async def make(**options: Any) -> Front:
        front = Front(ends, **options)
        await ends.start_rpc(front.server)
        front.channel = ends.rpc_channel()
        front.port = ends.port
        made.append(front)
        return front

    yield make
    for front in made:
        assert await front.ask(b"alive", wait_for_ready=True) == b"alive"
    await ends.close()
