"""What an idle member does not load: each of these takes megabytes, of every member, for as long as it runs."""

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock

from kvstore.gateway.ports import Shared
from tests.ports import free_ports

# Until a certificate, a password, a token or a request over HTTP/1.1 asks for them.
WITHOUT = {
    *("bcrypt", "cryptography", "jwt", "email", "h11", "multiprocessing", "prometheus_client", "starlette", "uvicorn"),
    *("wsproto", "click", "rich", "tenacity", "typer", "yaml", "google.protobuf.json_format"),
    *("grpc_reflection.v1alpha", "kvstore.client", "kvstore.gateway.handovers", "kvstore.kvctl", "kvstore.rpc.grpcio"),
}
PROGRAM = """
import json, sys
from kvstore.entry import serve
code = serve(json.loads(sys.argv[1]))
print(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


class Serving:
    """A member with default settings, in a process that tells at its end what it has loaded."""

    def __init__(self, path: Path) -> None:
        self.client_port, peer_port = free_ports(2)
        client, peer = f"http://127.0.0.1:{self.client_port}", f"http://127.0.0.1:{peer_port}"
        self._flags = {
            "data-dir": str(path / "data"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
        }

    async def __aenter__(self) -> "Serving":
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, json.dumps(self._flags)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert self._process.stderr is not None
        while b"ready to serve client requests" not in (line := await self._process.stderr.readline()):
            assert line, "it ended before it was ready"
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def loaded(self) -> set[str]:
        self._process.send_signal(signal.SIGTERM)
        out, _ = await self._process.communicate()
        return set(json.loads(out))

    async def is_healthy_twice(self) -> bool:
        """Over one connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.client_port)
        for _ in range(2):
            writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
            answer = await reader.readuntil(b"}")
        writer.close()
        return answer.startswith(b"HTTP/1.1 200 OK\r\n") and b'"health":"true"' in answer


async def test_an_idle_member_has_not_loaded_what_nobody_asked_for(tmp_path: Path) -> None:
    async with Serving(tmp_path) as serving:
        loaded = await serving.loaded()
    assert WITHOUT & loaded == set()


async def test_the_first_requests_over_http_are_answered_by_what_they_load(tmp_path: Path) -> None:
    async with Serving(tmp_path) as serving:
        assert all(await asyncio.gather(*(serving.is_healthy_twice() for _ in range(5))))
        assert {"uvicorn", "starlette", "prometheus_client"} <= await serving.loaded()


async def test_what_cannot_be_loaded_leaves_no_connection_waiting() -> None:
    ports: Any = Mock(handovers=AsyncMock(side_effect=ImportError("the installation was changed")))
    shared = Shared(ports)
    first, later = Mock(), Mock()
    first.is_closing.return_value = False
    shared.take(first, b"GET /")
    await shared.stop(0)
    shared.take(later, b"GET /")
    assert first.abort.called
    assert later.abort.called
