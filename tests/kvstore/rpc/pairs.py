"""Which server meets which client: the one list of combinations that the conformance suite runs over.

`make test` runs the pairs of the default front (on uvloop, plain; tests marked `also_tls` over TLS too), the marker
`long` keeps the rest for `make test-all`. A front that is not there is skipped by name, and runs as soon as it is.
"""

import asyncio
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import uvloop

NGHTTP2 = "nghttp2"
GRPCIO = "grpcio"


def _is_here(*modules: str) -> bool:
    if importlib.util.find_spec("kvstore.rpc.nghttp2") is None:
        return False
    return all(importlib.util.find_spec(f"kvstore.rpc.nghttp2.{module}") is not None for module in modules)


SERVER_IS_HERE = _is_here("front", "server")
CHANNEL_IS_HERE = _is_here("channel")

LOOPS: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


@dataclass(frozen=True)
class Pair:
    """Two ends and what is between them."""

    server: str
    client: str
    tls: bool

    def __str__(self) -> str:
        return f"{self.server}-{self.client}-{'tls' if self.tls else 'plain'}"

    @property
    def missing(self) -> str | None:
        """Why this pair cannot be run."""
        if self.server == NGHTTP2 and not SERVER_IS_HERE:
            return f"{self}: the nghttp2 front has no server"
        if self.client == NGHTTP2 and not CHANNEL_IS_HERE:
            return f"{self}: the nghttp2 front has no channel"
        return None


FRONTS = (NGHTTP2, GRPCIO)
PAIRS = [Pair(server, client, tls) for server, client, tls in product(FRONTS, FRONTS, (False, True))]


def is_default(pair: Pair, loop: str, also_tls: bool) -> bool:
    """Whether `make test` runs it: clients of ours and of others at a server of ours."""
    return pair.server == NGHTTP2 and loop == "uvloop" and (also_tls or not pair.tls)
