"""A user's name and password, and the token that they were good for last.

Every call of a channel carries the token. A server that does not know it any more, or whose users have changed since,
refuses the call before it does anything; so logging in again and asking once more is safe, also for a write. One token
is good at every member.
"""

import asyncio
from typing import Any, Final, final

import grpc.aio

from kvstore.errors import AUTH_NOT_ENABLED, AUTH_OLD_REVISION, INVALID_AUTH_TOKEN, USER_EMPTY, Code, KvError
from kvstore.pb.rpc_pb2 import AuthenticateRequest
from kvstore.pb.rpc_pb2_grpc import AuthStub

LOG_IN_AGAIN: Final = (INVALID_AUTH_TOKEN, AUTH_OLD_REVISION, USER_EMPTY)


@final
class Credentials:
    def __init__(self, user: str, password: str) -> None:
        self._user = user
        self._password = password
        self._lock = asyncio.Lock()
        self.token = ""
        self._is_done = False  # logged in, or told that nobody has to

    def __repr__(self) -> str:
        return f"Credentials({self._user!r})"

    async def log_in(self, channel: Any, timeout: float) -> None:
        """Unless it is done. Raises AioRpcError, which says nothing of the password."""
        async with self._lock:
            if self._is_done:
                return
            stub: Any = AuthStub(channel)
            request = AuthenticateRequest(name=self._user, password=self._password)
            try:
                self.token = (await stub.Authenticate(request, timeout=timeout)).token
            except grpc.aio.AioRpcError as failure:
                if error_of(failure) != AUTH_NOT_ENABLED:
                    raise
                self.token = ""
            self._is_done = True

    def refused(self, error: KvError) -> bool:
        """Whether the token is what the server does not like; then the next `log_in` gets another."""
        if error not in LOG_IN_AGAIN:
            return False
        self._is_done = False
        return True


def error_of(failure: grpc.aio.AioRpcError) -> KvError:
    return KvError(Code(failure.code().value[0]), failure.details() or "")


@final
class TokenChannel:
    """A channel whose calls carry the token."""

    def __init__(self, channel: Any, credentials: Credentials) -> None:
        self.channel = channel
        self._credentials = credentials

    def __getattr__(self, name: str) -> Any:
        return getattr(self.channel, name)

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _WithToken(self.channel.unary_unary(*arguments, **options), self._credentials)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _WithToken(self.channel.unary_stream(*arguments, **options), self._credentials)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _WithToken(self.channel.stream_stream(*arguments, **options), self._credentials)


class _WithToken:
    __slots__ = ("_call", "_credentials")

    def __init__(self, call: Any, credentials: Credentials) -> None:
        self._call = call
        self._credentials = credentials

    def __call__(self, request: Any, *, metadata: Any = None, **options: Any) -> Any:
        token = self._credentials.token
        if token:
            metadata = (*(metadata or ()), ("token", token))
        return self._call(request, metadata=metadata, **options)
