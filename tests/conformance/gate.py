"""A TCP relay that tells how many HTTP/2 DATA frames the server has sent.

`etcdctl watch` prints nothing when its watch stands, so a script that writes next would race with it. The server
answers each created watch with one message, and on a connection that carries only watches the count of messages
is the count of watches that stand. Relaying the connection shows that without touching either side.
"""

import contextlib
import socket
import threading

FRAME_HEADER = 9  # length (3 bytes), type, flags, stream (4 bytes); RFC 9113 section 4.1
DATA = 0


class FrameCounter:
    """Counts non-empty DATA frames in one direction of one connection, whatever pieces it arrives in."""

    def __init__(self) -> None:
        self.count = 0
        self._buffer = b""
        self._skip = 0  # bytes of the current frame's payload that have not passed yet

    def feed(self, data: bytes) -> None:
        while data:
            if self._skip:
                passed = min(self._skip, len(data))
                data, self._skip = data[passed:], self._skip - passed
                continue
            missing = FRAME_HEADER - len(self._buffer)
            self._buffer, data = self._buffer + data[:missing], data[missing:]
            if len(self._buffer) == FRAME_HEADER:
                self._skip = int.from_bytes(self._buffer[:3], "big")
                self.count += self._buffer[3] == DATA and self._skip > 0
                self._buffer = b""


class Gate:
    """Relays connections to one member. `wait_frames(n)` returns when n messages have come from it."""

    def __init__(self, target_url: str) -> None:
        host, _, port = target_url.removeprefix("http://").rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._changed = threading.Condition()
        self._counters: list[FrameCounter] = []
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def wait_frames(self, count: int, seconds: float = 20) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: sum(c.count for c in self._counters) >= count, seconds):
                seen = sum(counter.count for counter in self._counters)
                raise TimeoutError(f"{seen} of {count} messages from {self._target} after {seconds:.0f} s")

    def close(self) -> None:
        # shutdown wakes the thread that waits in accept(); close alone would leave it there.
        for one in [self._listener, *self._sockets]:
            with contextlib.suppress(OSError):  # the other side closed it already
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._target)
            except OSError:
                return  # closed
            counter = FrameCounter()
            with self._changed:
                self._counters.append(counter)
                self._sockets += [client, server]
            threading.Thread(target=self._relay, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._relay, args=(server, client, counter), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket, counter: FrameCounter | None) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
                if counter is not None:
                    with self._changed:
                        counter.feed(data)
                        self._changed.notify_all()
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return  # one of both sides is gone; the other notices by itself
