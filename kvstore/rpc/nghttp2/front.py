"""The RPC seam over nghttp2: hot methods are objects of calls.py, generated code runs on the same server."""

from collections.abc import Callable
from functools import partial
from typing import Any, final

from kvstore.errors import STOPPED
from kvstore.rpc.address import can_listen, host_port, is_secure
from kvstore.rpc.base import CallHandler, Gate, RpcServer, StreamHandlerFactory
from kvstore.rpc.counts import Counts
from kvstore.rpc.generated import UnknownMethods, WrappingRegistry
from kvstore.rpc.local import LocalMethods
from kvstore.rpc.nghttp2.calls import CallsMethod, HotStream, StreamMethod
from kvstore.rpc.nghttp2.pages import PageMethod, PageStream
from kvstore.rpc.nghttp2.server import Server
from kvstore.rpc.options import ServerOptions


@final
class Nghttp2Server(RpcServer):
    def __init__(self, options: ServerOptions) -> None:
        self._server = Server(options)
        self._unknown = UnknownMethods()
        self.counts = Counts(measured=options.measure_calls)
        self.counts.received_bytes = lambda: self._server.flusher.received_bytes
        self.counts.sent_bytes = lambda: self._server.flusher.sent_bytes
        self.counts.versions = self._server.versions
        self.local = LocalMethods(self.counts)

    def add_calls(self, method: str, handler: CallHandler) -> None:
        self._unknown.add(method)
        gate = Gate(self, method)
        self._server.add_method(method, CallsMethod(self._server, handler, gate, self.counts.new(method)))
        self.local.add_calls(method, handler, gate)

    def add_stream(self, method: str, factory: StreamHandlerFactory) -> None:
        self._unknown.add(method)
        gate = Gate(self, method)
        self._server.add_method(
            method, StreamMethod(self._server, factory, gate, self.counts.new(method, "bidi_stream"))
        )
        self.local.add_stream(method, factory, gate)

    def add_servicer(self, add_to_server: Callable[[Any, Any], None], servicer: object) -> None:
        registry = WrappingRegistry(self._server, self._unknown.services, partial(Gate, self), self.local)
        add_to_server(servicer, registry)

    async def start(self, urls: list[str]) -> list[str]:
        bound = []
        tls = self._server.options.tls
        for url in urls:
            address = host_port(url)
            if is_secure(url) and tls is None:
                raise ValueError(f"{url}: https:// needs a certificate and its key (http:// does not)")
            await can_listen(address)
            try:
                port = self._server.add_port(address, tls if is_secure(url) else None)
            except RuntimeError as error:
                raise OSError(f"cannot listen on {address}: {error}") from None
            bound.append(f"{url.partition('://')[0]}://{address.rpartition(':')[0]}:{port}")
        self._server.add_generic_rpc_handlers((self._unknown,))
        self._server.http1 = self.http1
        self._server.pages = PageMethod(self.http1.app) if self.http1 is not None else None
        await self._server.start()
        return bound

    async def stop(self, grace: float) -> None:
        # Streams have no end of their own: waiting for them would always take the whole grace.
        for session in list(self._server.sessions):
            for stream in list(session.streams.values()):
                if isinstance(stream, (HotStream, PageStream)):
                    stream.stop(STOPPED)
        await self._server.stop(grace)
