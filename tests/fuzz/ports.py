"""What can be fuzzed, by name."""

from collections.abc import Callable
from typing import Protocol

from hypothesis.strategies import SearchStrategy

from tests.fuzz.client import ClientPort
from tests.fuzz.gateway import GatewayPort
from tests.fuzz.peer import PeerPort
from tests.fuzz.target import Target


class Port(Protocol):
    def inputs(self) -> "SearchStrategy[object]": ...

    def send(self, value: object) -> None: ...

    def close(self) -> None: ...


PORTS: dict[str, Callable[[Target], Port]] = {"client": ClientPort, "peer": PeerPort, "gateway": GatewayPort}
