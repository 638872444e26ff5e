"""A WebSocket client for tests: one connection, text messages, everything blocks.

with WebSocket("127.0.0.1", port, "/v3/watch", ["Bearer", token]) as socket:
    socket.send('{"create_request": {}}')
    socket.receive()        # a text; None when the server has closed
"""

import socket
from types import TracebackType

from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Event, RejectConnection, Request, TextMessage

SECONDS = 20.0


class WebSocket:
    """Raises ConnectionRefusedError with the status when the server does not want to."""

    def __init__(
        self, host: str, port: int, path: str, subprotocols: list[str] | None = None, origin: str | None = None
    ) -> None:
        self._connection = WSConnection(ConnectionType.CLIENT)
        self._socket = socket.create_connection((host, port), timeout=SECONDS)
        self._events: list[Event] = []
        headers = [(b"origin", origin.encode())] if origin is not None else []
        request = Request(host=f"{host}:{port}", target=path, subprotocols=subprotocols or [], extra_headers=headers)
        self._socket.sendall(self._connection.send(request))
        answer = self._next()
        if isinstance(answer, RejectConnection):
            raise ConnectionRefusedError(answer.status_code)
        assert isinstance(answer, AcceptConnection), answer
        self.subprotocol = answer.subprotocol

    def send(self, text: str) -> None:
        self._socket.sendall(self._connection.send(TextMessage(data=text)))

    def receive(self) -> str | None:
        text = ""
        while True:
            event = self._next()
            if event is None or isinstance(event, CloseConnection):
                return None
            if isinstance(event, TextMessage):
                text += event.data
                if event.message_finished:
                    return text

    def _next(self) -> Event | None:
        while not self._events:
            data = self._socket.recv(65536)
            self._connection.receive_data(data or None)
            self._events += list(self._connection.events())
            if not data:
                break
        return self._events.pop(0) if self._events else None

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "WebSocket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
