"""Simple tokens: random text that members remember, as etcd's (server/auth/simple_token.go).

    TOKEN  =  random text . log index

A member that has checked a password puts the SHA-256 of the random text into the log, and every member that applies the
entry knows the token from then on. So who reads a log or a snapshot finds no token, and a look-up compares digests of
what a caller sent: its time tells nothing. The index tells a member that is behind until where it must have come.

Tokens are no part of the state: they end when they were not used for the TTL, with a restart, a snapshot, their user's
deletion or new password, and when authentication is switched off. The TTL is measured twice, by the member's clock and
by the log's time, whichever ends first: who catches up with yesterday's log takes up none of yesterday's tokens.
"""

import secrets
from hashlib import sha256
from typing import Final, final

from kvstore.auth.changes import TokenChange

RANDOM_BYTES: Final = 18  # 144 bits, 24 characters


def draw() -> str:
    """A token's random part."""
    return secrets.token_urlsafe(RANDOM_BYTES)


def digest(random_part: str) -> bytes:
    return sha256(random_part.encode()).digest()


def split(token: str) -> tuple[str, int] | None:
    """The random part and the index; None for what is no simple token."""
    random_part, dot, index = token.partition(".")
    if not (random_part and dot and index.isascii() and index.isdigit() and len(index) <= len(str(2**64))):
        return None
    return random_part, int(index)


class _Token:
    __slots__ = ("expires", "log_expires", "user")

    def __init__(self, user: str, expires: float, log_expires: int) -> None:
        self.user = user
        self.expires = expires  # seconds of the member's clock
        self.log_expires = log_expires  # nanoseconds of the log's time


@final
class SimpleTokens:
    """ttl: seconds without use."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._ttl_ns = int(ttl * 1e9)
        self._tokens: dict[bytes, _Token] = {}  # by digest, the one that was used last at the end

    def __len__(self) -> int:
        return len(self._tokens)

    def __repr__(self) -> str:
        return f"SimpleTokens({len(self._tokens)})"

    def changed(self, changes: list[TokenChange], now: float) -> None:
        """What has been applied."""
        for change in changes:
            if change.user is None:
                self._tokens.clear()
            elif change.token:
                self._drop_expired(now)
                self._tokens[change.token] = _Token(change.user, now + self._ttl, change.time + self._ttl_ns)
            else:
                self._tokens = {key: token for key, token in self._tokens.items() if token.user != change.user}

    def user_of(self, random_part: str, now: float, log_time: int) -> str | None:
        """Whose token it is; it lives for another TTL."""
        key = digest(random_part)
        token = self._tokens.pop(key, None)
        if token is None or token.expires <= now or token.log_expires <= log_time:
            return None
        token.expires, token.log_expires = now + self._ttl, log_time + self._ttl_ns
        self._tokens[key] = token
        return token.user

    def clear(self) -> None:
        self._tokens.clear()

    def _drop_expired(self, now: float) -> None:
        while self._tokens:
            oldest = next(iter(self._tokens))
            if self._tokens[oldest].expires > now:
                return
            del self._tokens[oldest]
