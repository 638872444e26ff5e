"""Users, roles and authentication by kvctl, as etcdctl: the same commands, the same bytes; and the client behind it."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.client import Client
from kvstore.client.errors import ClientError, InvalidRequest, PermissionDenied, WatchCanceled
from tests.kvstore.client.clusters import Cluster
from tests.kvstore.kvctl.processes import Outcome, environment, etcdctl, kvctl, run
from tests.kvstore.kvctl.test_as_etcdctl import steady

BOTH: list[tuple[list[str], bytes]] = [
    (["role", "add", "web"], b""),
    (["role", "grant-permission", "web", "readwrite", "a/", "--prefix"], b""),
    (["role", "grant-permission", "web", "read", "b", "c"], b""),
    (["role", "grant-permission", "web", "write", "d", "--from-key"], b""),
    (["role", "get", "web"], b""),
    (["role", "get", "web", "-w", "json"], b""),
    (["role", "get", "web", "-w", "fields"], b""),
    (["role", "revoke-permission", "web", "d", "--from-key"], b""),
    (["role", "revoke-permission", "web", "b", "c"], b""),
    (["user", "add", "ann:secret"], b""),
    (["user", "add", "dora", "--no-password", "-w", "json"], b""),
    (["user", "list", "-w", "json"], b""),
    (["user", "grant-role", "ann", "web"], b""),
    (["user", "get", "ann", "--detail"], b""),
    (["user", "get", "ann", "-w", "json"], b""),
    (["user", "passwd", "ann", "--interactive=false"], b"other\n"),
    (["user", "add", "root:rootpw"], b""),
    (["auth", "enable"], b""),
    (["--user", "root:rootpw", "auth", "status"], b""),
    (["--user", "root", "--password", "rootpw", "auth", "status", "-w", "json"], b""),
    (["--user", "root:rootpw", "user", "delete", "dora"], b""),
    (["--user", "root:rootpw", "role", "delete", "web"], b""),
    (["--user", "root:rootpw", "auth", "disable"], b""),
]
TIDY = [*(["user", "delete", name] for name in ("ann", "root")), ["role", "delete", "root"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One member of ours."""
    running = Cluster("kvstore", tmp_path_factory.mktemp("auth"), size=1)
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_the_same_as_etcdctl(alone: Cluster) -> None:
    def play(tool: Any) -> list[bytes]:
        outputs = [steady(tool(arguments, stdin).ok()) for arguments, stdin in BOTH]
        for arguments in TIDY:
            kvctl(alone, *arguments).ok()
        # Revisions of users and roles go on from one run to the other.
        return [re.sub(rb'(AuthRevision: |"authRevision":)\d+', rb"\1N", one) for one in outputs]

    def theirs(arguments: list[str], stdin: bytes) -> Outcome:
        return etcdctl(alone, arguments, stdin)

    ours = play(lambda arguments, stdin: kvctl(alone, *arguments, stdin=stdin))
    for (arguments, _), mine, other in zip(BOTH, ours, play(theirs), strict=True):
        assert mine == other, arguments


@pytest.fixture
def guarded(alone: Cluster) -> Iterator[Cluster]:
    """root:rootpw; ann:secret may do everything under a/."""
    for arguments in (
        ["user", "add", "root:rootpw"],
        ["user", "add", "ann:secret"],
        ["role", "add", "own"],
        ["role", "grant-permission", "own", "readwrite", "a/", "--prefix"],
        ["user", "grant-role", "ann", "own"],
        ["auth", "enable"],
    ):
        kvctl(alone, *arguments).ok()
    yield alone
    kvctl(alone, "--user=root:rootpw", "auth", "disable").ok()
    for arguments in (["user", "delete", "root"], ["user", "delete", "ann"], ["role", "delete", "own"]):
        kvctl(alone, *arguments).ok()


def test_tables(guarded: Cluster) -> None:
    def rows(*arguments: str) -> list[list[str]]:
        lines = kvctl(guarded, "--user=root:rootpw", *arguments, "-w", "table").ok().decode().splitlines()
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]

    assert rows("user", "list") == [["USER"], ["ann"], ["root"]]
    assert ["own"] in rows("role", "list")
    assert rows("user", "get", "ann") == [["ROLE"], ["own"]]
    what = [["ROLE", "MAY", "KEY", "RANGE END"], ["own", "readwrite", '"a/"', '"a0"']]
    assert rows("role", "get", "own") == rows("user", "get", "ann", "--detail") == what
    kvctl(guarded, "--user=root:rootpw", "user", "list", "-w", "fields").failed(2, "prints no fields")


def test_failures_say_what_to_do(guarded: Cluster) -> None:
    kvctl(guarded, "get", "a/1").failed(1, "user name is empty", "--user")
    kvctl(guarded, "--user=ann:wrong", "get", "a/1").failed(1, "invalid user ID or password", "--password")
    kvctl(guarded, "--user=ann:secret", "get", "b").failed(1, "permission denied", "kvctl user get")
    kvctl(guarded, "--password=x", "get", "b").failed(2, "--password needs --user")
    kvctl(guarded, "user", "add", ":x").failed(2, "needs a name")
    kvctl(guarded, "user", "add", "eve", "--interactive=false").failed(2, "empty password")
    kvctl(guarded, "role", "grant-permission", "own", "all", "k").failed(2, "no such permission")
    kvctl(guarded, "--user=root:rootpw", "role", "grant-permission", "own", "read", "b", "a").failed(1, "a range ends")


def test_who_one_is_may_stand_in_the_environment(guarded: Cluster, tmp_path: Path) -> None:
    where = f"--endpoints={guarded.endpoints[0]}"
    for more in (
        {"KVCTL_USER": "ann:secret"},
        {"KVCTL_USER": "ann", "KVCTL_PASSWORD": "secret"},
        {"ETCDCTL_USER": "ann:secret"},
    ):
        assert run("kvctl", where, "put", "a/1", "x", **more).ok() == b"OK\n"
    config = tmp_path / "kvctl.yaml"
    config.write_text("user: ann\npassword: secret\n")
    assert run("kvctl", where, f"--config={config}", "get", "a/1", "--print-value-only").ok() == b"x\n"
    assert "secret" not in environment()


# -- the client --------------------------------------------------------------------------------------


async def test_the_client_logs_in_again_when_its_token_is_not_good_any_more(guarded: Cluster) -> None:
    """All three refusals: a token that ended, a revision that has moved on, and none at all. Also of a write."""
    async with (
        Client(guarded.endpoints, user="ann", password="secret") as ann,
        Client(guarded.endpoints, user="root", password="rootpw") as root,
    ):
        await ann.put("a/1", "x")
        before = ann._pool.credentials
        assert before is not None
        token = before.token
        await root.auth.user_change_password("ann", "secret")
        await ann.put("a/1", "y")
        assert before.token != token
        before.token = ""
        assert (await ann.get("a/1")).value == b"y"
        with pytest.raises(PermissionDenied):
            await ann.put("b", "x")
        await root.auth.user_change_password("ann", "new")
        with pytest.raises(InvalidRequest, match="authentication failed"):
            await ann.put("a/1", "z")
        await root.auth.user_change_password("ann", "secret")
        await ann.put("a/1", "z")


async def test_streams_log_in_again(guarded: Cluster) -> None:
    async with (
        Client(guarded.endpoints, user="ann", password="secret") as ann,
        Client(guarded.endpoints, user="root", password="rootpw") as root,
    ):
        async with ann.watch("a/", prefix=True) as watch:
            await root.auth.user_change_password("ann", "secret")  # ends her tokens; the stream goes on
            async with ann.watch("a/2") as second:  # on the same stream: with a token that is not good
                await root.put("a/2", "x")
                assert (await anext(aiter(second))).events[0].kv.value == b"x"
            assert (await anext(aiter(watch))).events[0].kv.key == b"a/2"
        async with ann.watch("b") as refused:
            with pytest.raises(WatchCanceled, match="permission denied"):
                await anext(aiter(refused))
        granted = await ann.lease_grant(60)
        async with ann.lease_keep_alive(granted.id) as kept:
            await root.auth.user_change_password("ann", "secret")
            kept.ask()
            async with asyncio.timeout(20):
                await ann.lease_keep_alive_once(granted.id)
        changes = [change async for change in ann.history("a/", prefix=True)]
        assert changes


async def test_a_client_without_a_need_for_its_password(alone: Cluster) -> None:
    async with Client(alone.endpoints, user="ann", password="whatever") as client:
        await client.put("a/1", "x")
        assert not (await client.auth.status()).enabled


async def test_nobodys_watch_is_its_own_failure(guarded: Cluster) -> None:
    async with Client(guarded.endpoints) as client:
        async with client.watch("a/1") as refused:
            with pytest.raises(WatchCanceled, match="user name is empty"):
                await anext(aiter(refused))
        with pytest.raises(ClientError, match="user name is empty"):
            await client.get("a/1")
    assert "secret" not in repr(Client(guarded.endpoints, user="ann", password="secret")._pool.credentials)
