"""bcrypt, off the loop: it is made to take long (50 ms at the default cost) and lets go of the GIL meanwhile.

A few threads and a bounded queue before them: whoever floods a member with logins makes other logins wait or fail, and
nothing else. A login of somebody who is not there takes as long as one with a wrong password.
"""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar, final

from kvstore.errors import PASSWORD_TOO_LONG, STOPPED, TOO_MANY_REQUESTS

THREADS: Final = 2
WAITING_MAX: Final = 64  # with those under way
BYTES_MAX: Final = 72  # bcrypt takes no more into account

T = TypeVar("T")


@final
class Passwords:
    def __init__(self, cost: int) -> None:
        self._cost = cost
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="bcrypt")
        self._waiting = 0
        self._nobodys = b""  # a hash that no password fits
        self._stopped = False

    async def hash(self, password: str) -> str:
        """As requests carry it: base64 of the bcrypt string. Raises KvError."""
        raw = password.encode()
        if len(raw) > BYTES_MAX:
            raise PASSWORD_TOO_LONG.fresh()
        return b64encode(await self.run(lambda: self._hash(raw))).decode()

    async def fits(self, password: str, hashed: bytes) -> bool:
        """hashed: a bcrypt string; empty: of nobody. Raises KvError."""
        return await self.run(lambda: self._fits(password.encode()[:BYTES_MAX], hashed))

    # In a thread, which also imports bcrypt when the first password comes

    def _hash(self, password: bytes) -> bytes:
        import bcrypt

        return bcrypt.hashpw(password, bcrypt.gensalt(self._cost))

    def _fits(self, password: bytes, hashed: bytes) -> bool:
        import bcrypt

        if not hashed:
            self._nobodys = self._nobodys or self._hash(b"")
            bcrypt.checkpw(password, self._nobodys)
            return False
        try:
            return bcrypt.checkpw(password, hashed)
        except ValueError:
            return False  # what is stored is no bcrypt string: nobody logs in by it

    async def run(self, work: Callable[[], T]) -> T:
        """In a thread. Raises KvError when too many wait already."""
        if self._stopped:
            raise STOPPED.fresh()
        if self._waiting >= WAITING_MAX:
            raise TOO_MANY_REQUESTS.fresh()
        self._waiting += 1
        done = asyncio.get_running_loop().run_in_executor(self._threads, work)
        # Whoever gives up waiting leaves its work behind, and that counts until it is done.
        done.add_done_callback(self._done)
        return await asyncio.shield(done)

    def _done(self, done: "asyncio.Future[T]") -> None:
        self._waiting -= 1
        if not done.cancelled():
            done.exception()  # looked at: its owner may be gone

    def stop(self) -> None:
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
