"""Simple tokens, by a clock that the test turns; JWT, by keys that it makes. S-63."""

from pathlib import Path
from typing import Any

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from kvstore.auth import tokens
from kvstore.auth.changes import TokenChange
from kvstore.auth.jwt import JwtTokens
from kvstore.auth.settings import SIGN_METHODS, JwtOptions, parse_auth_token
from kvstore.auth.table import Identity
from kvstore.auth.tokens import SimpleTokens
from kvstore.errors import VERIFY_ONLY, KvError

SECOND = 10**9


def issued(table: SimpleTokens, user: str, now: float = 0.0, time: int = 0) -> str:
    random_part = tokens.draw()
    table.changed([TokenChange(user, tokens.digest(random_part), time)], now)
    return random_part


def test_a_token_lives_for_the_ttl_after_its_last_use() -> None:
    table = SimpleTokens(300)
    token = issued(table, "ann")
    assert table.user_of(token, 299, 0) == "ann"
    assert table.user_of(token, 598, 0) == "ann"
    assert table.user_of(token, 898, 0) is None
    assert table.user_of(token, 0, 0) is None


def test_yesterdays_token_does_not_come_back_with_the_log() -> None:
    """A member that was away applies its entry again; the log's time says how old it is."""
    table = SimpleTokens(300)
    old = issued(table, "ann", time=0)
    new = issued(table, "ann", time=86_400 * SECOND)
    assert table.user_of(old, 1, 86_400 * SECOND) is None
    assert table.user_of(new, 1, 86_400 * SECOND) == "ann"


def test_tokens_end_with_what_they_rest_on() -> None:
    table = SimpleTokens(300)
    ann, bob = issued(table, "ann"), issued(table, "bob")
    table.changed([TokenChange("ann")], 1)
    assert (table.user_of(ann, 1, 0), table.user_of(bob, 1, 0)) == (None, "bob")
    table.changed([TokenChange(None)], 1)
    assert table.user_of(bob, 1, 0) is None


def test_what_nobody_uses_is_forgotten() -> None:
    table = SimpleTokens(300)
    for at in range(1000):
        issued(table, "ann", now=at)
    assert len(table) == 300


def test_neither_table_tells_a_token() -> None:
    table = SimpleTokens(300)
    token = issued(table, "ann")
    assert token not in repr(table)
    assert token not in repr(table.__dict__ if hasattr(table, "__dict__") else table)


@given(st.text(max_size=40))
def test_split_takes_anything(text: str) -> None:
    parts = tokens.split(text)
    assert parts is None or f"{parts[0]}." == text[: len(parts[0]) + 1]


# -- JWT ---------------------------------------------------------------------------------------------


def private_key(method: str) -> Any:
    if method.startswith(("RS", "PS")):
        return rsa.generate_private_key(65537, 2048)
    if method == "EdDSA":
        return Ed25519PrivateKey.generate()
    curves: dict[str, Any] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    return ec.generate_private_key(curves[method])


def options_for(folder: Path, method: str, *, signs: bool = True) -> JwtOptions:
    pub, priv = folder / f"{method}.pub", folder / f"{method}.key"
    if method.startswith("HS"):
        priv.write_bytes(b"a secret of at least thirty-two bytes, or of sixty-four for HS512")
        return JwtOptions(method, None, priv, 300)
    if not priv.exists():
        key = private_key(method)
        priv.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        pub.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return JwtOptions(method, pub, priv if signs else None, 300)


@pytest.mark.parametrize("method", SIGN_METHODS)
def test_what_is_issued_is_believed_until_it_expires(tmp_path: Path, method: str) -> None:
    table = JwtTokens(options_for(tmp_path, method))
    token = table.issue(Identity("ann", 7), 1000.0)
    assert table.check(token, 1000.0) == Identity("ann", 7)
    assert table.check(token, 1299.0) == Identity("ann", 7)
    assert table.check(token, 1300.0) is None
    assert table.check(token[:-4], 1000.0) is None


def test_another_member_believes_it(tmp_path: Path) -> None:
    """S-63: unlike a simple one it is valid wherever the key is."""
    token = JwtTokens(options_for(tmp_path, "ES256")).issue(Identity("ann", 7), 1000.0)
    other = JwtTokens(options_for(tmp_path, "ES256", signs=False))
    assert other.check(token, 1000.0) == Identity("ann", 7)
    with pytest.raises(KvError) as caught:
        other.issue(Identity("ann", 7), 1000.0)
    assert caught.value == VERIFY_ONLY


def test_the_algorithm_is_the_settings(tmp_path: Path) -> None:
    """RFC 8725: neither none, nor a public key as an HMAC's secret, nor another method of the same key."""
    options = options_for(tmp_path, "RS256")
    table = JwtTokens(options)
    claims = {"username": "root", "revision": 9, "exp": 2000}
    assert options.pub_key is not None
    assert options.priv_key is not None
    public, private = options.pub_key.read_bytes(), options.priv_key.read_bytes()
    none = pyjwt.encode(claims, None, algorithm="none")
    import base64
    import hashlib
    import hmac
    import json

    def part(value: bytes) -> bytes:
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    head = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode()) + b"." + part(json.dumps(claims).encode())
    confused = head + b"." + part(hmac.new(public, head, hashlib.sha256).digest())
    for token in (none, confused.decode(), pyjwt.encode(claims, private, algorithm="RS512")):
        assert table.check(token, 1000.0) is None
    assert table.check(pyjwt.encode(claims, private, algorithm="RS256"), 1000.0) == Identity("root", 9)


BAD_CLAIMS: list[dict[str, Any]] = [
    {"revision": 9, "exp": 2000},  # etcd#15676
    {"username": 5, "revision": 9, "exp": 2000},
    {"username": "root", "exp": 2000},
    {"username": "root", "revision": "9", "exp": 2000},
    {"username": "root", "revision": True, "exp": 2000},
    {"username": "root", "revision": 0, "exp": 2000},
    {"username": "root", "revision": -1, "exp": 2000},
    {"username": "root", "revision": 9},
    {"username": "root", "revision": 9, "exp": "soon"},
    {"username": "root", "revision": 9, "exp": None},
]


@pytest.mark.parametrize("claims", BAD_CLAIMS, ids=str)
def test_claims_that_are_missing_or_odd(tmp_path: Path, claims: dict[str, Any]) -> None:
    options = options_for(tmp_path, "HS256")
    assert options.priv_key is not None
    # By hand: the library signs no odd ones.
    token = pyjwt.api_jws.encode(
        __import__("json").dumps(claims).encode(), options.priv_key.read_bytes(), algorithm="HS256"
    )
    assert JwtTokens(options).check(token, 1000.0) is None


@given(st.text(max_size=200))
def test_any_text_is_no_token(text: str) -> None:
    options = JwtOptions("HS256", None, SECRET, 300)
    assert JwtTokens(options).check(text, 0.0) is None


SECRET = Path(__file__)  # as good a secret as any file


def test_keys_that_do_not_fit(tmp_path: Path) -> None:
    ours = options_for(tmp_path, "ES256")
    (tmp_path / "other").mkdir()
    theirs = options_for(tmp_path / "other", "ES256")
    bad = [
        JwtOptions("ES256", theirs.pub_key, ours.priv_key, 300),
        JwtOptions("RS256", None, ours.priv_key, 300),
        JwtOptions("ES256", None, SECRET, 300),
        JwtOptions("ES256", None, None, 300),
        JwtOptions("HS256", None, None, 300),
    ]
    for options in bad:
        with pytest.raises(ValueError, match=r"[a-z]"):
            JwtTokens(options)
    with pytest.raises(FileNotFoundError):
        JwtTokens(JwtOptions("HS256", None, tmp_path / "missing", 300))


@pytest.mark.parametrize(
    "text",
    [
        "other",
        "simple,ttl=5m",
        "jwt",
        "jwt,sign-method=none",
        "jwt,sign-method=RS256,ttl=0s",
        "jwt,sign-method=RS256,ttl=soon",
        "jwt,sign-method=RS256,sign-method=RS256",
        "jwt,sign-method=RS256,key=x",
        "jwt,sign-method",
    ],
)
def test_settings_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        parse_auth_token(text)


def test_settings() -> None:
    assert parse_auth_token("simple") is None
    found = parse_auth_token("jwt,pub-key=/p,priv-key=/q,sign-method=PS384,ttl=1h30m")
    assert found == JwtOptions("PS384", Path("/p"), Path("/q"), 5400)
    assert parse_auth_token("jwt,priv-key=/q,sign-method=HS256") == JwtOptions("HS256", None, Path("/q"), 300)
