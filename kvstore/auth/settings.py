"""How a member knows callers: --auth-token, --auth-token-ttl, --bcrypt-cost, --client-cert-auth."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

SIGN_METHODS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "EdDSA"),
)
TTL_SECONDS: Final = 300.0
_NAMES: Final = ("pub-key", "priv-key", "sign-method", "ttl")
_UNITS: Final = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class JwtOptions(NamedTuple):
    sign_method: str
    pub_key: Path | None
    priv_key: Path | None
    ttl: float  # seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthSettings:
    jwt: JwtOptions | None = None  # None: simple tokens
    token_ttl: int = 300  # seconds without use, of a simple token
    bcrypt_cost: int = 10
    by_certificate: bool = False  # a client's certificate names its user


def parse_auth_token(text: str) -> JwtOptions | None:
    """None: simple tokens. Raises ValueError with a text for an operator."""
    kind, *pairs = text.split(",")
    options: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or name not in _NAMES or name in options:
            raise ValueError(f"{pair!r}: want each of {', '.join(_NAMES)} at most once, as name=value")
        options[name] = value
    if kind in ("simple", ""):
        if options:
            raise ValueError("simple takes no options")
        return None
    if kind != "jwt":
        raise ValueError(f"{kind!r} is neither simple nor jwt")
    method = options.get("sign-method", "")
    if method not in SIGN_METHODS:
        raise ValueError(f"sign-method={method}: one of {', '.join(SIGN_METHODS)} is needed")
    return JwtOptions(
        method, _path(options.get("pub-key")), _path(options.get("priv-key")), _seconds(options.get("ttl"))
    )


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _seconds(text: str | None) -> float:
    if text is None:
        return TTL_SECONDS
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise ValueError(f"ttl={text}: a duration such as 5m is needed")
    return seconds
