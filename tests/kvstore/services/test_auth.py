"""The Auth service on one member: logging in and its bounds, tokens that arrive early, secrets. S-63, S-75."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import bcrypt
import grpc.aio
import pytest
import structlog

from kvstore import errors
from kvstore.auth import tokens
from kvstore.auth.changes import TokenChange
from kvstore.auth.settings import AuthSettings
from kvstore.auth.table import Identity
from kvstore.errors import Code, KvError
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Permission, UserAddOptions
from kvstore.pb.history_pb2 import ReadHistoryRequest
from kvstore.pb.history_pb2_grpc import HistoryStub
from kvstore.pb.rpc_pb2_grpc import AuthStub, KVStub, LeaseStub, WatchStub
from kvstore.rpc import make_channel
from kvstore.rpc.base import Stream
from kvstore.server import auth as auth_module
from kvstore.server import passwords as passwords_module
from kvstore.server.auth import Auth
from kvstore.server.passwords import Passwords
from kvstore.services.kv import LONG_READS_MAX
from kvstore.state.command import Op
from tests.kvstore.services.member import FakeServer, RunningMember

SECRETS = ("canary-password", "canary-value", "canary-new-password")


class Peer:
    def __init__(self, member: RunningMember, channel: Any) -> None:
        self.member = member
        self.server = member.server
        self.history: Any = HistoryStub(channel)
        self.auth: Any = AuthStub(channel)
        self.kv: Any = KVStub(channel)
        self.watch: Any = WatchStub(channel)
        self.lease: Any = LeaseStub(channel)
        self.token = ""

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("token", self.token),) if self.token else ()

    async def set_up(self) -> None:
        """root and ann, who may do everything to [k, l)."""
        await self.auth.UserAdd(pb.AuthUserAddRequest(name="root", password=SECRETS[0]))
        await self.auth.UserGrantRole(pb.AuthUserGrantRoleRequest(user="root", role="root"))
        await self.auth.UserAdd(pb.AuthUserAddRequest(name="ann", password=SECRETS[0]))
        await self.auth.RoleAdd(pb.AuthRoleAddRequest(name="own"))
        perm = Permission(permType=Permission.READWRITE, key=b"k", range_end=b"l")
        await self.auth.RoleGrantPermission(pb.AuthRoleGrantPermissionRequest(name="own", perm=perm))
        await self.auth.UserGrantRole(pb.AuthUserGrantRoleRequest(user="ann", role="own"))
        await self.auth.AuthEnable(pb.AuthEnableRequest())
        self.token = await self.log_in("root")

    async def log_in(self, user: str, password: str = SECRETS[0]) -> str:
        return str((await self.auth.Authenticate(pb.AuthenticateRequest(name=user, password=password))).token)


async def refused(call: Any) -> KvError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return KvError(Code(caught.value.code().value[0]), caught.value.details() or "")


@pytest.fixture
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    async with RunningMember(tmp_path / "state") as member:
        channel = make_channel(member.url)
        peer = Peer(member, channel)
        await peer.set_up()
        yield peer
        await channel.close()


async def test_who_cannot_log_in(peer: Peer) -> None:
    carl = pb.AuthUserAddRequest(name="carl", options=UserAddOptions(no_password=True))
    await peer.auth.UserAdd(carl, metadata=peer.metadata)
    for user, password, error in (
        ("ann", "wrong", errors.AUTH_FAILED),
        ("ann", "", errors.AUTH_FAILED),
        ("ann", "x" * 100, errors.AUTH_FAILED),
        ("nobody", SECRETS[0], errors.AUTH_FAILED),
        ("", SECRETS[0], errors.AUTH_FAILED),
        ("carl", SECRETS[0], errors.NO_PASSWORD_USER),
    ):
        assert await refused(peer.log_in(user, password)) == error, user
    await peer.auth.AuthDisable(pb.AuthDisableRequest(), metadata=peer.metadata)
    assert await refused(peer.log_in("ann")) == errors.AUTH_NOT_ENABLED


async def test_a_password_of_more_than_bcrypt_takes_is_refused(peer: Peer) -> None:
    long = pb.AuthUserAddRequest(name="eve", password="x" * 73)
    assert await refused(peer.auth.UserAdd(long, metadata=peer.metadata)) == errors.PASSWORD_TOO_LONG
    await peer.auth.UserAdd(pb.AuthUserAddRequest(name="eve", password="x" * 72), metadata=peer.metadata)
    assert await peer.log_in("eve", "x" * 72)


async def test_a_hash_that_a_client_sends_is_not_taken(peer: Peer) -> None:
    sent = pb.AuthUserAddRequest(name="eve", password="mine", hashedPassword="aGFzaA==")
    await peer.auth.UserAdd(sent, metadata=peer.metadata)
    assert await peer.log_in("eve", "mine")
    # Nor kept, where there is none to take its place.
    sent = pb.AuthUserAddRequest(
        name="carl", password="canary-1", hashedPassword="canary-2", options=UserAddOptions(no_password=True)
    )
    await peer.auth.UserAdd(sent, metadata=peer.metadata)
    assert b"canary" not in peer.server.proposed[-1].raw


async def test_a_login_costs_the_loop_nothing_and_waits_in_a_bounded_queue(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords_module, "WAITING_MAX", 4)
    results = await asyncio.gather(*(peer.log_in("ann") for _ in range(40)), return_exceptions=True)
    refusals = [one for one in results if isinstance(one, grpc.aio.AioRpcError)]
    assert {(one.code(), one.details()) for one in refusals} == {
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.TOO_MANY_REQUESTS.message)
    }
    assert 4 <= len(results) - len(refusals) < 40
    assert await peer.log_in("ann")


async def test_nobody_is_told_by_the_time_that_a_user_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda password, hashed: checked.append(hashed) or True)
    passwords = Passwords(4)
    assert not await passwords.fits("x", b"")
    assert len(checked) == 1
    assert checked[0].startswith(b"$2b$04$")
    passwords.stop()


async def test_a_password_that_changes_while_it_is_checked(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-63, TOCTOU: the old password fits, and before the log knows it there is a new one."""
    fits = Passwords.fits
    changed = False

    async def slow(self: Passwords, password: str, hashed: bytes) -> bool:
        nonlocal changed
        found = await fits(self, password, hashed)
        if not changed:
            changed = True
            request = pb.AuthUserChangePasswordRequest(name="ann", password=SECRETS[2])
            await peer.auth.UserChangePassword(request, metadata=peer.metadata)
        return found

    monkeypatch.setattr(Passwords, "fits", slow)
    assert await refused(peer.log_in("ann")) == errors.AUTH_FAILED
    assert await peer.log_in("ann", SECRETS[2])


async def test_users_that_change_without_end_do_not_hold_a_login_for_ever(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stale(self: Auth, who: Identity) -> str:
        raise errors.AUTH_OLD_REVISION.fresh()

    monkeypatch.setattr(Auth, "_token_for", stale)
    assert await refused(peer.log_in("ann")) == errors.AUTH_OLD_REVISION


async def test_a_new_password_and_a_deletion_end_tokens(peer: Peer) -> None:
    get = pb.RangeRequest(key=b"k")
    ann = (("token", await peer.log_in("ann")),)
    await peer.kv.Range(get, metadata=ann)
    password = pb.AuthUserChangePasswordRequest(name="ann", password=SECRETS[2])
    await peer.auth.UserChangePassword(password, metadata=peer.metadata)
    assert await refused(peer.kv.Range(get, metadata=ann)) == errors.INVALID_AUTH_TOKEN
    ann = (("token", await peer.log_in("ann", SECRETS[2])),)
    await peer.kv.Range(get, metadata=ann)
    await peer.auth.UserDelete(pb.AuthUserDeleteRequest(name="ann"), metadata=peer.metadata)
    assert await refused(peer.kv.Range(get, metadata=ann)) == errors.INVALID_AUTH_TOKEN


async def test_a_password_that_is_changed_to_an_empty_one_is_none(peer: Peer) -> None:
    """As etcd 3.5: nobody can log in as that user, with nothing either."""
    await peer.auth.UserChangePassword(pb.AuthUserChangePasswordRequest(name="ann"), metadata=peer.metadata)
    assert await refused(peer.log_in("ann", "")) == errors.AUTH_FAILED
    assert await refused(peer.log_in("ann")) == errors.AUTH_FAILED


async def test_what_is_wrong_with_a_request_is_told_before_who_asks(peer: Peer) -> None:
    """As etcd; and what is wrong by the state is not told to a stranger."""
    many = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(key=b"%d" % n)) for n in range(200)])
    assert await refused(peer.kv.Put(pb.PutRequest())) == errors.KEY_NOT_PROVIDED
    assert await refused(peer.kv.Txn(many)) == errors.TOO_MANY_OPS
    assert await refused(peer.kv.Range(pb.RangeRequest(key=b"k", revision=1 << 40))) == errors.USER_EMPTY


async def test_tokens_do_not_outlive_what_a_snapshot_or_a_restart_hides(peer: Peer) -> None:
    peer.server.auth.forget()  # both call it
    assert await refused(peer.kv.Range(pb.RangeRequest(key=b"k"), metadata=peer.metadata)) == errors.INVALID_AUTH_TOKEN


async def test_how_a_token_may_come(peer: Peer) -> None:
    get = pb.RangeRequest(key=b"k")
    for metadata in (
        (("token", peer.token),),
        (("authorization", peer.token),),
        (("authorization", f"Bearer {peer.token}"),),
    ):
        await peer.kv.Range(get, metadata=metadata)


# -- what is revoked while a read is on its way --------------------------------------------------------


async def revoke(peer: Peer) -> None:
    request = pb.AuthUserRevokeRoleRequest(name="ann", role="own")
    await peer.auth.UserRevokeRole(request, metadata=peer.metadata)


async def test_a_read_that_waits_for_its_turn_is_decided_when_it_has_it(peer: Peer) -> None:
    ann = (("token", await peer.log_in("ann")),)
    semaphore = peer.member._services._kv._long_reads
    for _ in range(LONG_READS_MAX):
        await semaphore.acquire()
    get = pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"k"))])
    reading = asyncio.ensure_future(peer.kv.Txn(get, metadata=ann))
    while not peer.member._services._kv._tasks:  # as long as the call takes to come
        await asyncio.sleep(0.001)
    await revoke(peer)
    semaphore.release()
    assert await refused(reading) == errors.PERMISSION_DENIED


@pytest.mark.parametrize("call", ["Range", "RangeStream", "Read"])
async def test_a_read_is_decided_behind_its_barrier(peer: Peer, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The front lets it pass, by a state that is older than the one that is read."""
    ann = (("token", await peer.log_in("ann")),)
    server, linearizable, when = peer.server, peer.server.linearizable, peer.server.when_linearizable

    async def revoked_first() -> None:
        monkeypatch.setattr(server, "linearizable", linearizable)
        await revoke(peer)
        await linearizable()

    def when_revoked(done: Any, reads: int) -> None:
        monkeypatch.setattr(server, "when_linearizable", when)
        asyncio.ensure_future(revoke(peer)).add_done_callback(lambda _: when(done, reads))

    monkeypatch.setattr(server, "linearizable", revoked_first)
    monkeypatch.setattr(server, "when_linearizable", when_revoked)
    if call == "Range":
        reading = peer.kv.Range(pb.RangeRequest(key=b"k"), metadata=ann)
    elif call == "RangeStream":
        reading = anext(aiter(peer.kv.RangeStream(pb.RangeRequest(key=b"k"), metadata=ann)))
    else:
        reading = anext(aiter(peer.history.Read(ReadHistoryRequest(key=b"k"), metadata=ann)))
    assert await refused(reading) == errors.PERMISSION_DENIED


# -- a token that came earlier than the entry that makes it one ---------------------------------------


def early_token(server: FakeServer) -> tuple[str, TokenChange]:
    """Of the next entry."""
    random_part = tokens.draw()
    change = TokenChange("root", tokens.digest(random_part), server.store.last_entry_time)
    return f"{random_part}.{server.store.applied_index + 1}", change


async def apply_one(server: FakeServer) -> None:
    await server.propose_one(Op.AUTH_ROLE_ADD, pb.AuthRoleAddRequest(name="x").SerializeToString(), "root")


async def test_a_member_that_is_behind_waits_for_a_token(peer: Peer) -> None:
    """Unary calls of both kinds, and streams: the issuer has told the client before this member has heard of it."""
    server = peer.server
    token, change = early_token(server)
    metadata = (("token", token),)

    async def one_watch() -> Any:
        async def requests() -> AsyncIterator[pb.WatchRequest]:
            yield pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k"))
            await asyncio.sleep(3600)

        stream = peer.watch.Watch(requests(), metadata=metadata)
        async for answer in stream:
            stream.cancel()
            return answer

    calls = [
        asyncio.ensure_future(call)
        for call in (
            peer.kv.Range(pb.RangeRequest(key=b"k"), metadata=metadata),
            peer.auth.UserList(pb.AuthUserListRequest(), metadata=metadata),
            one_watch(),
        )
    ]
    done, _ = await asyncio.wait(calls, timeout=0.2)
    assert not done
    server.auth.changed([change])
    await apply_one(server)
    _, users, watch = await asyncio.wait_for(asyncio.gather(*calls), 10)
    assert list(users.users) == ["ann", "root"]
    assert (watch.created, watch.canceled) == (True, False)


async def test_a_token_from_the_future_waits_in_vain_and_in_bounds(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    get = pb.RangeRequest(key=b"k")
    metadata = (("token", f"nonsense.{2**60}"),)
    monkeypatch.setattr(auth_module, "TOKEN_WAIT_SECONDS", 0.1)
    assert await refused(peer.kv.Range(get, metadata=metadata)) == errors.INVALID_AUTH_TOKEN
    monkeypatch.setattr(auth_module, "TOKEN_WAIT_SECONDS", 3600)
    monkeypatch.setattr(auth_module, "WAITING_MAX", 3)
    first = [asyncio.ensure_future(peer.kv.Range(get, metadata=metadata)) for _ in range(3)]
    while peer.server.auth._waiting < 3:  # as long as the calls take to come
        await asyncio.sleep(0.005)
    assert await refused(peer.kv.Range(get, metadata=metadata)) == errors.INVALID_AUTH_TOKEN
    for call in first:
        call.cancel()


class Held(Stream):
    """A stream that nobody is behind."""

    def __init__(self, token: str) -> None:
        self._token = token
        self.error: KvError | None = None

    metadata = property(lambda self: {"token": self._token})
    peer = "p"
    queued_bytes = 0

    def send(self, messages: list[bytes]) -> None: ...

    def close(self, error: KvError | None = None) -> None:
        self.error = error


async def test_an_early_stream_keeps_what_it_is_told_and_no_more(peer: Peer) -> None:
    token, _ = early_token(peer.server)
    opened: list[Any] = []
    heard: list[Any] = []

    class Handler:
        def __init__(self, stream: Stream) -> None:
            opened.append(stream)

        def received(self, messages: list[bytes]) -> None:
            heard.extend(messages)

        def drained(self) -> None:
            heard.append("drained")

        def half_closed(self) -> None:
            heard.append("half closed")

        def closed(self) -> None:
            heard.append("closed")

    stream, flood, gone = Held(token), Held(token), Held(token)
    handler = peer.server.auth.open(stream, Handler)
    flooded = peer.server.auth.open(flood, Handler)
    peer.server.auth.open(gone, Handler).closed()
    handler.received([b"1"])
    handler.received([b"2"])
    handler.half_closed()
    flooded.received([b""] * (auth_module.HELD_MESSAGES_MAX + 1))
    flooded.closed()
    assert flood.error == errors.INVALID_AUTH_TOKEN
    assert not opened
    await apply_one(peer.server)
    while not opened:  # one step of a task
        await asyncio.sleep(0.001)
    assert opened == [stream]
    assert heard == [b"1", b"2", "half closed"]
    handler.received([b"3"])
    handler.drained()
    handler.closed()
    assert heard[3:] == [b"3", "drained", "closed"]


# -- a client's bytes are nobody else's word ----------------------------------------------------------


async def test_a_client_cannot_revoke_as_the_leader(peer: Peer) -> None:
    """An encoded LeaseRevokeRequest with one field more would read as the leader's own, which nobody is asked about."""
    granted = await peer.lease.LeaseGrant(pb.LeaseGrantRequest(TTL=100), metadata=peer.metadata)
    await peer.kv.Put(pb.PutRequest(key=b"zz", lease=granted.ID), metadata=peer.metadata)
    forged = pb.LeaseRevokeRequest.FromString(
        pb.LeaseRevokeRequest(ID=granted.ID).SerializeToString() + b"\x10" + bytes([peer.server.raft_term])
    )
    ann = (("token", await peer.log_in("ann")),)
    assert await refused(peer.lease.LeaseRevoke(forged, metadata=ann)) == errors.PERMISSION_DENIED
    assert peer.server.store.get_latest(b"zz") is not None


async def test_a_keep_alive_is_checked_each_time(peer: Peer) -> None:
    granted = await peer.lease.LeaseGrant(pb.LeaseGrantRequest(TTL=100), metadata=peer.metadata)
    ann = (("token", await peer.log_in("ann")),)
    wanted: asyncio.Queue[int] = asyncio.Queue()

    async def requests() -> AsyncIterator[pb.LeaseKeepAliveRequest]:
        while True:
            yield pb.LeaseKeepAliveRequest(ID=await wanted.get())

    stream = peer.lease.LeaseKeepAlive(requests(), metadata=ann)
    wanted.put_nowait(granted.ID)
    assert (await anext(aiter(stream))).TTL == 100
    await peer.kv.Put(pb.PutRequest(key=b"zz", lease=granted.ID), metadata=peer.metadata)
    wanted.put_nowait(granted.ID)
    assert await refused(anext(aiter(stream))) == errors.PERMISSION_DENIED


# -- S-75 ---------------------------------------------------------------------------------------------


async def test_no_secret_is_in_a_log_line_or_a_repr(
    peer: Peer, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """At debug level, of what goes well and what does not."""
    caplog.set_level(logging.DEBUG)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG))
    seen: list[str] = []
    ann = await peer.log_in("ann")
    await peer.kv.Put(pb.PutRequest(key=b"k", value=SECRETS[1].encode()), metadata=(("token", ann),))
    await refused(peer.log_in("ann", SECRETS[2]))
    await refused(peer.kv.Range(pb.RangeRequest(key=b"k"), metadata=(("token", "canary-token.1"),)))
    password = pb.AuthUserChangePasswordRequest(name="ann", password=SECRETS[2])
    await peer.auth.UserChangePassword(password, metadata=peer.metadata)
    server = peer.server
    hashes = [user.password.decode() for user in server.store.auth.users.values()]
    for thing in (
        *(server.store.auth, server.auth, server.auth.passwords, server.auth._simple, server.store),
        *server.proposed,
        *(Identity("ann", 1), AuthSettings()),
    ):
        seen.append(repr(thing))
    # What is in the log is what members send each other and keep on disks.
    in_log = b"".join(proposal.raw for proposal in server.proposed)
    text = "\n".join([*seen, caplog.text, *capsys.readouterr()])
    for secret in (SECRETS[0], SECRETS[2], "canary-token", ann, ann.partition(".")[0], peer.token, *hashes):
        assert secret not in text, secret
        if secret not in hashes:
            assert secret.encode() not in in_log, secret
    assert SECRETS[1] not in text
