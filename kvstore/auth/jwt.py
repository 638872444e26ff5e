"""JSON Web Tokens: a signed statement of who somebody is, which a member believes without remembering it.

    --auth-token jwt,pub-key=FILE,priv-key=FILE,sign-method=METHOD,ttl=DURATION

The claims are etcd's: username, revision (of the auth table, when it was signed) and exp. The one algorithm of the
settings is the only one that is accepted: neither "none" nor a public key taken for an HMAC's secret (RFC 8725).
With a public key alone tokens can be checked and not be issued.
"""

from typing import Any, Final, final

import jwt
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from kvstore.auth.settings import JwtOptions
from kvstore.auth.table import Identity
from kvstore.errors import VERIFY_ONLY

KNOWN_MAX: Final = 4096  # tokens whose signature need not be checked again


@final
class JwtTokens:
    """Raises ValueError (with a text for an operator) when the keys cannot be used, OSError when they are not there."""

    def __init__(self, options: JwtOptions) -> None:
        self._method = options.sign_method
        self._ttl = options.ttl
        self._sign_key, self._check_key = _keys(options)
        self._known: dict[str, tuple[Identity, float]] = {}  # by token: who, until when (wall clock)
        if self._sign_key is not None:
            self._try_keys()

    def __repr__(self) -> str:
        return f"JwtTokens({self._method})"

    def issue(self, who: Identity, now: float) -> str:
        """now: seconds since 1970. Raises KvError."""
        if self._sign_key is None:
            raise VERIFY_ONLY.fresh()
        claims = {"username": who.user, "revision": who.revision, "exp": int(now + self._ttl)}
        return jwt.encode(claims, self._sign_key, algorithm=self._method)

    def check(self, token: str, now: float) -> Identity | None:
        """Whose it is; None: it cannot be believed."""
        known = self._known.get(token)
        if known is None:
            known = self._checked(token)
            if known is None:
                return None
            if len(self._known) >= KNOWN_MAX:
                self._known.clear()
            self._known[token] = known
        who, expires = known
        return who if now < expires else None

    def _checked(self, token: str) -> tuple[Identity, float] | None:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._check_key,
                algorithms=[self._method],
                # The time is passed in, so it is looked at above.
                options={"verify_exp": False, "verify_aud": False, "require": ["exp"]},
            )
        except (jwt.PyJWTError, ValueError):
            return None
        user, revision, expires = claims.get("username"), claims.get("revision"), claims.get("exp")
        if not isinstance(user, str) or type(revision) is not int or not isinstance(expires, int | float):
            return None
        return (Identity(user, revision), float(expires)) if 0 < revision < 2**64 else None

    def _try_keys(self) -> None:
        """Find out now and not at the first login."""
        try:
            token = self.issue(Identity("x", 1), 0.0)
        except (jwt.PyJWTError, TypeError, ValueError) as error:
            raise ValueError(f"the private key does not fit {self._method}: {error}") from None
        if self._checked(token) is None:
            raise ValueError("public and private key do not belong together")


def _keys(options: JwtOptions) -> tuple[Any, Any]:
    """(to sign with, or None; to check with)."""
    pub = options.pub_key.read_bytes() if options.pub_key is not None else None
    priv = options.priv_key.read_bytes() if options.priv_key is not None else None
    if options.sign_method.startswith("HS"):
        if not priv:
            raise ValueError(f"{options.sign_method} needs priv-key, a file with the secret")
        return priv, priv
    if priv is None and pub is None:
        raise ValueError(f"{options.sign_method} needs priv-key, or pub-key to check tokens only")
    try:
        sign_key = load_pem_private_key(priv, None) if priv is not None else None
        check_key = load_pem_public_key(pub) if pub is not None else sign_key.public_key()  # type: ignore[union-attr]
    except (ValueError, TypeError) as error:
        raise ValueError(f"not a key in PEM: {error}") from None
    return sign_key, check_key
