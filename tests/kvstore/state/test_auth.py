"""Authorisation in apply: by the state that the request meets, alike on every member, and durable with it."""

from base64 import b64encode
from pathlib import Path
from random import Random
from typing import Any

import pytest
from google.protobuf.message import Message

from kvstore import errors
from kvstore.auth.changes import TokenChange
from kvstore.auth.table import AuthTable
from kvstore.errors import KvError
from kvstore.mvcc.hash import hash_kv
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.auth_pb2 import Permission
from kvstore.pb.command_pb2 import Authenticate, LeaseRevoke, Request
from kvstore.state import applier as applier_module
from kvstore.state import auth
from kvstore.state.applier import Applier, Result
from kvstore.state.command import Op, encode_batch, encode_request
from tests.kvstore.state.support import MEMBER, Entry, State, state_hash

HASHED = b64encode(b"$2b$04$hash").decode()
READWRITE = Permission.READWRITE
_OPS = {descriptor.message_type.name: Op(descriptor.number) for descriptor in Request.DESCRIPTOR.oneofs[0].fields}


def op_of(message: Message) -> Op:
    return Op.LEASE_REVOKE if isinstance(message, pb.LeaseRevokeRequest) else _OPS[message.DESCRIPTOR.name]


class Members:
    """One store, and who asks."""

    def __init__(self, path: Path) -> None:
        self.state = State(path)
        self.tokens: list[TokenChange] = []
        self.state.applier = Applier(self.state.store, MEMBER, 1, self.state.sinks, token_sink=self.tokens.extend)

    @property
    def table(self) -> AuthTable:
        return self.state.store.auth

    async def ask(self, *requests: Message, user: str = "", revision: int | None = None) -> list[Result]:
        """All in one entry. revision None: the newest there is."""
        state = self.state
        wrapped = []
        for request in requests:
            state.sequence += 1
            at = self.table.revision if revision is None else revision
            wrapped.append(
                encode_request(op_of(request), request.SerializeToString(), MEMBER, 1, state.sequence, user, at)
            )
        index = state.store.applied_index + 1
        await state.feed([Entry(index, encode_batch(1000 + index, wrapped))])
        first = state.sequence - len(requests) + 1
        return [state.sinks.answers[first + at] for at in range(len(requests))]

    async def must(self, *requests: Message, user: str = "") -> None:
        for result in await self.ask(*requests, user=user):
            assert not isinstance(result, KvError), result

    async def refused(self, request: Message, user: str, revision: int | None = None) -> KvError | None:
        [result] = await self.ask(request, user=user, revision=revision)
        return result if isinstance(result, KvError) else None


def permission(role: str, key: bytes, range_end: bytes = b"", kind: Any = READWRITE) -> Message:
    return pb.AuthRoleGrantPermissionRequest(name=role, perm=Permission(permType=kind, key=key, range_end=range_end))


def setup() -> list[Message]:
    """root; ann may write and read [a, n) and read r; bob is nobody's. Authentication goes on with the last one."""
    return [
        pb.AuthUserAddRequest(name="root", hashedPassword=HASHED),
        pb.AuthUserGrantRoleRequest(user="root", role="root"),
        pb.AuthRoleAddRequest(name="web"),
        permission("web", b"a", b"n"),
        permission("web", b"r", kind=Permission.READ),
        permission("web", b"w", kind=Permission.WRITE),
        pb.AuthUserAddRequest(name="ann", hashedPassword=HASHED),
        pb.AuthUserGrantRoleRequest(user="ann", role="web"),
        pb.AuthUserAddRequest(name="bob", hashedPassword=HASHED),
        pb.AuthEnableRequest(),
    ]


@pytest.fixture
async def members(tmp_path: Path) -> Any:
    found = Members(tmp_path / "state")
    await found.must(*setup())
    assert found.table.enabled
    yield found
    found.state.close()


def test_every_request_declares_who_may_ask() -> None:
    """A type of request without a rule is refused, so nobody forgets one unseen."""
    assert {field.name for field in Request.DESCRIPTOR.oneofs[0].fields} == set(auth._RULES)


async def test_an_undeclared_request_is_refused(members: Members, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(auth._RULES, "compaction")
    assert await members.refused(pb.CompactionRequest(revision=1), "root") == errors.PERMISSION_DENIED


async def test_enabling_counts_from_the_next_request_of_the_same_entry_on(tmp_path: Path) -> None:
    members = Members(tmp_path / "state")
    put = pb.PutRequest(key=b"k", value=b"v")
    results = await members.ask(put, *setup(), put, put, revision=0)
    assert not isinstance(results[0], KvError)
    assert results[-2:] == [errors.USER_EMPTY, errors.USER_EMPTY]
    results = await members.ask(put, pb.AuthDisableRequest(), put, user="root")
    assert [isinstance(one, KvError) for one in results] == [False, False, False]
    members.state.close()


async def test_who_asks_and_since_when(members: Members) -> None:
    put = pb.PutRequest(key=b"b")
    revision = members.table.revision
    assert await members.refused(put, "ann") is None
    assert await members.refused(put, "") == errors.USER_EMPTY
    assert await members.refused(put, "ann", 0) == errors.USER_EMPTY
    assert await members.refused(put, "ann", revision - 1) == errors.AUTH_OLD_REVISION
    assert await members.refused(put, "nobody") == errors.PERMISSION_DENIED
    assert await members.refused(put, "bob") == errors.PERMISSION_DENIED
    assert await members.refused(put, "root", revision - 1) == errors.AUTH_OLD_REVISION
    # Administration does not ask for the newest revision (etcd).
    assert await members.refused(pb.AuthRoleAddRequest(name="x"), "root", 1) is None


async def test_what_changes_between_the_front_and_apply_is_seen(members: Members) -> None:
    """The front of a member that is behind lets it pass; the log does not."""
    revision = members.table.revision
    await members.must(pb.AuthUserRevokeRoleRequest(name="ann", role="web"), user="root")
    assert await members.refused(pb.PutRequest(key=b"b"), "ann", revision) == errors.AUTH_OLD_REVISION
    assert await members.refused(pb.PutRequest(key=b"b"), "ann") == errors.PERMISSION_DENIED


async def test_leases_bind_whom_their_keys_bind(members: Members) -> None:
    """CVE-2026-44283: attaching to, and ending, a lease touches its keys. In every nesting."""
    await members.must(pb.LeaseGrantRequest(ID=7, TTL=100), user="ann")
    await members.must(pb.PutRequest(key=b"z", lease=7), user="root")
    put = pb.PutRequest(key=b"b", lease=7)
    op = pb.RequestOp(request_put=put)
    nested = pb.TxnRequest(failure=[pb.RequestOp(request_txn=pb.TxnRequest(success=[op]))])
    for request in (put, pb.TxnRequest(success=[op]), nested, pb.LeaseRevokeRequest(ID=7)):
        assert await members.refused(request, "ann") == errors.PERMISSION_DENIED, request
    # The key has left the lease: it is in nobody's way any more.
    await members.must(pb.LeaseGrantRequest(ID=8, TTL=100), pb.PutRequest(key=b"z", lease=8), user="root")
    assert await members.refused(pb.LeaseRevokeRequest(ID=8), "ann") == errors.PERMISSION_DENIED
    await members.must(pb.PutRequest(key=b"z"), user="root")
    assert await members.refused(pb.LeaseRevokeRequest(ID=8), "ann") is None


async def test_the_leaders_revoke_needs_nobody(members: Members) -> None:
    await members.must(pb.LeaseGrantRequest(ID=7, TTL=100), pb.PutRequest(key=b"z", lease=7), user="root")
    await members.must(LeaseRevoke(ids=[7], term=1))
    assert members.state.store.get_latest(b"z") is None


async def test_a_login_counts_only_for_the_state_it_was_checked_on(members: Members) -> None:
    """S-63: a password that changes while it is checked."""
    revision = members.table.revision
    login = Authenticate(user="ann", token=b"t")
    await members.must(
        pb.AuthUserChangePasswordRequest(name="ann", hashedPassword=b64encode(b"other").decode()), user="root"
    )
    assert await members.refused(login, "", revision) == errors.AUTH_OLD_REVISION
    assert members.tokens == [TokenChange("ann")]
    assert await members.refused(login, "", members.table.revision) is None
    assert members.tokens[1:] == [TokenChange("ann", b"t", members.state.store.last_entry_time)]
    assert await members.refused(Authenticate(user="nobody"), "", members.table.revision) == errors.AUTH_FAILED
    await members.must(pb.AuthDisableRequest(), user="root")
    assert await members.refused(login, "", members.table.revision) == errors.AUTH_NOT_ENABLED


async def test_users_come_back_with_the_store_and_hash_to_nothing(tmp_path: Path) -> None:
    """S-61: what a restart reads is what apply left; and the hash of the keys knows nothing of it."""
    members = Members(tmp_path / "state")
    with members.state.store.view() as view:
        before = await hash_kv(view, 0)
    await members.must(*setup())
    with members.state.store.view() as view:
        assert await hash_kv(view, 0) == before
    table = members.table
    await members.state.store.flush()
    members.state.close()
    again = Members(tmp_path / "state")
    again.state.sequence = 100
    assert (again.table.enabled, again.table.revision) == (True, table.revision)
    assert again.table.users == table.users
    assert again.table.roles == table.roles
    assert await again.refused(pb.PutRequest(key=b"b"), "ann") is None
    assert await again.refused(pb.PutRequest(key=b"z"), "ann") == errors.PERMISSION_DENIED
    again.state.close()


# -- determinism -------------------------------------------------------------------------------------

USERS, ROLES, KEYS = ["root", "ann", "bob", ""], ["web", "ops", "root"], [b"a", b"b", b"c", b"d"]


def a_request(rng: Random) -> Message:
    user, role, key = rng.choice(USERS[:3]), rng.choice(ROLES), rng.choice(KEYS)
    put = pb.PutRequest(
        key=key, value=b"%d" % rng.randrange(9), lease=rng.choice([0, 0, 7]), prev_kv=rng.random() < 0.3
    )
    end = rng.choice([b"", b"\0", b"c", b"e"])
    ops = [
        pb.RequestOp(request_put=put),
        pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end)),
        pb.RequestOp(request_range=pb.RangeRequest(key=key, range_end=end)),
    ]
    nested = pb.RequestOp(request_txn=pb.TxnRequest(success=[rng.choice(ops)], failure=[rng.choice(ops)]))
    compare = pb.Compare(key=key, target=pb.Compare.VERSION, result=pb.Compare.GREATER)
    return rng.choice(
        [
            *[pb.PutRequest(key=key, value=b"v"), put] * 4,
            pb.DeleteRangeRequest(key=key, range_end=end),
            *[pb.TxnRequest(compare=[compare], success=[rng.choice(ops)], failure=[nested])] * 3,
            pb.LeaseGrantRequest(ID=7, TTL=100),
            pb.LeaseRevokeRequest(ID=7),
            pb.AuthUserAddRequest(name=user, hashedPassword=HASHED),
            pb.AuthUserDeleteRequest(name=user),
            pb.AuthUserGrantRoleRequest(user=user, role=role),
            pb.AuthUserRevokeRoleRequest(name=user, role=role),
            pb.AuthRoleAddRequest(name=role),
            pb.AuthRoleDeleteRequest(role=role),
            permission(role, key, end, rng.choice([Permission.READ, Permission.WRITE, READWRITE])),
            pb.AuthRoleRevokePermissionRequest(role=role, key=key, range_end=end),
            pb.AuthUserChangePasswordRequest(name=user, hashedPassword=HASHED),
            Authenticate(user=user, token=b"t%d" % rng.randrange(99)),
            rng.choice([pb.AuthEnableRequest(), pb.AuthDisableRequest()]),
        ]
    )


def make_entries(rng: Random, count: int) -> list[Entry]:
    first = setup()
    head = [
        encode_request(op_of(one), one.SerializeToString(), MEMBER, 1, at, "root", 10**6)
        for at, one in enumerate(first, 1)
    ]
    entries, sequence, revision = [Entry(1, encode_batch(1000, head))], len(first), 10
    for index in range(2, count + 2):
        wrapped = []
        for _ in range(rng.choice([1, 2, 8])):
            sequence += 1
            # Mostly root, of about the newest revision: else nothing would ever happen.
            user = rng.choice(["root", "root", *USERS])
            at = rng.choice([0, 5, revision, 10**6, 10**6])
            request = a_request(rng)
            wrapped.append(encode_request(op_of(request), request.SerializeToString(), MEMBER, 1, sequence, user, at))
            revision += rng.random() < 0.3
        entries.append(Entry(index, encode_batch(1000 + index, wrapped)))
    return entries


@pytest.mark.parametrize("seed", range(4))
async def test_members_agree_at_every_index(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the entries come together, and across a restart in the middle."""
    entries = make_entries(Random(seed), 80)
    outcomes = []
    for which, size in enumerate((1, 7, 1000)):
        monkeypatch.setattr(applier_module, "GROUP_BYTES", [1, 2000, 1 << 30][which])
        path = tmp_path / str(which)
        state, hashes, answers = State(path), {}, {}
        at, restarted = 0, which != 1
        while at < len(entries):
            await state.feed(entries[at : at + size])
            at = min(at + size, len(entries))
            hashes[at] = state_hash(state.store)
            answers.update(state.sinks.answers)
            if at > len(entries) // 2 and not restarted:
                restarted = True
                await state.store.flush()
                state.close()
                state = State(path)
        state.close()
        outcomes.append((hashes, answers))
    (hashes, answers), *others = outcomes
    for other_hashes, other_answers in others:
        assert other_answers == answers
        assert {at: hashes[at] for at in other_hashes} == other_hashes
    kinds = {str(one) if isinstance(one, KvError) else "done" for one in answers.values()}
    assert {"done", "etcdserver: permission denied", "etcdserver: revision of auth store is old"} <= kinds, kinds
