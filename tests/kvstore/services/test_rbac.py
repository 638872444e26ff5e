"""S-62: every RPC and every nesting, for every caller, against a model of who may do what (rbac.py).

The same cells against a real etcd 3.5.1, where what it has been mended in since is left out (KNOWN_HOLES).
"""

import asyncio
import subprocess
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from kvstore.auth.jwt import JwtTokens
from kvstore.auth.methods import METHODS, WITHOUT_TOKEN
from kvstore.auth.settings import AuthSettings, JwtOptions
from kvstore.auth.table import Identity
from kvstore.errors import (
    AUTH_NOT_ENABLED,
    AUTH_OLD_REVISION,
    INVALID_AUTH_TOKEN,
    PERMISSION_DENIED,
    USER_EMPTY,
    Code,
    KvError,
)
from kvstore.pb import rpc_pb2 as pb
from kvstore.rpc import FRONTS, make_channel
from tests.conformance.etcd import BIN, wait_healthy
from tests.kvstore.services import rbac
from tests.kvstore.services.member import RunningMember
from tests.kvstore.services.rbac import AUTH, CALLERS, CASES, REFUSALS, Caller, Case, Side, outcome
from tests.ports import free_ports

PASSWORD = "secret"
NOT_SERVED = (Code.UNIMPLEMENTED, "")
TTL = 300.0


class Proofs:
    """How callers prove who they are to one server, over its channel."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.root_token = ""
        self._known: dict[str, str] = {}  # user -> token

    async def as_root(self, stub: Any, rpc: str, request: Any) -> Any:
        try:
            return await self._ask(stub, rpc, request)
        except KvError as error:
            if error not in (INVALID_AUTH_TOKEN, AUTH_OLD_REVISION, USER_EMPTY):
                raise
        try:
            self.root_token = await self.log_in("root")
        except grpc.aio.AioRpcError as error:
            # etcd 3.5.1 looks at tokens while authentication is off too.
            if _error(error) != AUTH_NOT_ENABLED:
                raise
            self.root_token = ""
        return await self._ask(stub, rpc, request)

    async def _ask(self, stub: Any, rpc: str, request: Any) -> Any:
        metadata = (("token", self.root_token),) if self.root_token else ()
        try:
            return await getattr(stub(self.channel), rpc)(request, metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            raise _error(error) from None

    async def log_in(self, user: str) -> str:
        request = pb.AuthenticateRequest(name=user, password=PASSWORD)
        return str((await AUTH(self.channel).Authenticate(request)).token)

    async def of(self, caller: Caller) -> tuple[tuple[str, str], ...] | None:
        """Metadata; None: this server cannot be shown such a proof."""
        if caller.proof == "none":
            return ()
        if caller.proof == "bad":
            return (("token", "abcdefghijklmnop.1"),)
        if caller.proof != "good":
            return None
        if caller.user not in self._known:
            self._known[caller.user] = await self.log_in(caller.user)
        return (("token", self._known[caller.user]),)

    def forget(self) -> None:
        """Authentication was off meanwhile, or much time has gone."""
        self._known.clear()


class Simple(Proofs):
    def __init__(self, channel: Any, server: Any) -> None:
        super().__init__(channel)
        self._server = server

    async def of(self, caller: Caller) -> tuple[tuple[str, str], ...] | None:
        if caller.proof == "expired":
            token = await self.log_in(caller.user)
            self._server.clock += TTL
            self.forget()
            return (("authorization", f"Bearer {token}"),)
        return await super().of(caller)


class Jwt(Proofs):
    def __init__(self, channel: Any, server: Any, tokens: JwtTokens) -> None:
        super().__init__(channel)
        self._server = server
        self._tokens = tokens

    async def of(self, caller: Caller) -> tuple[tuple[str, str], ...] | None:
        revision, now = self._server.store.auth.revision, self._server.clock
        if caller.proof == "expired":
            return (("token", self._tokens.issue(Identity(caller.user, revision), now - TTL)),)
        if caller.proof == "old":
            return (("token", self._tokens.issue(Identity(caller.user, revision - 1), now)),)
        if caller.proof == "good":
            return (("token", self._tokens.issue(Identity(caller.user, revision), now)),)
        return await super().of(caller)


def _error(error: grpc.aio.AioRpcError) -> KvError:
    return KvError(Code(error.code().value[0]), error.details() or "")


async def came_to(case: Case, metadata: Any, side: Side, channel: Any) -> tuple[Code, str] | None:
    """The refusal, or None when the cell was not refused for who asked."""
    try:
        await case.call(channel, metadata, side)
    except grpc.aio.AioRpcError as error:
        found = _error(error)
    except KvError as error:
        found = error
    else:
        return None
    assert found.code is not Code.DEADLINE_EXCEEDED, case.id
    if found.code is Code.UNIMPLEMENTED:
        return NOT_SERVED
    return (found.code, found.message) if found.message in REFUSALS or "permission denied" in found.message else None


async def walk(
    proofs: Proofs,
    cases: list[Case],
    callers: list[Caller] = CALLERS,
    left_out: Any = lambda case, caller: False,
) -> Counter[str]:
    """All cells; every wrong one is told."""
    await rbac.set_up(proofs.as_root, PASSWORD)
    side, is_as_before = Side(proofs.as_root), False
    cells: Counter[str] = Counter()
    wrong = []
    for case in cases:
        for caller in callers:
            if left_out(case, caller):
                continue
            if not is_as_before:
                await rbac.before_cell(side)
                proofs.forget()
            metadata = await proofs.of(caller)
            if metadata is None:
                continue
            found, wanted = await came_to(case, metadata, side, proofs.channel), outcome(case, caller)
            if found == NOT_SERVED:
                cells["not served"] += 1
                continue
            is_as_before = found is not None or not case.changes
            cells["refused" if wanted else "allowed"] += 1
            if found != wanted:
                wrong.append(f"{case.method} {case.name!r}, {caller.name}: {found}, not {wanted}")
    print(f"\nRBAC: {sum(cells.values())} cells, {dict(cells)}, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
    return cells


def test_every_method_has_a_case() -> None:
    assert {case.method for case in CASES} == {method for method in METHODS if "reflection" not in method}


async def test_every_method_that_is_served_is_declared(tmp_path: Path) -> None:
    """Default deny; and a hot stream is one whose messages are checked one by one."""
    member = RunningMember(tmp_path / "state")
    member.server.config.enable_grpc_reflection = True
    async with member:
        served = set(member.local._methods)
        assert served <= set(METHODS), served - set(METHODS)
        streams = {path for path, method in member.local._methods.items() if type(method).__name__ == "_Streams"}
        assert {METHODS[path] for path in streams} <= WITHOUT_TOKEN


@pytest.mark.parametrize("on", [False, True])
async def test_a_method_that_nobody_declared_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on: bool
) -> None:
    undeclared = ["/etcdserverpb.KV/DeleteRange", "/etcdserverpb.Watch/Watch", "/etcdserverpb.Maintenance/Status"]
    for method in undeclared:
        monkeypatch.delitem(METHODS, method)
    async with RunningMember(tmp_path / "state") as member:
        channel = make_channel(member.url)
        proofs = Simple(channel, member.server)
        if on:
            await rbac.set_up(proofs.as_root, PASSWORD)
        for case in [case for case in CASES if case.method in undeclared]:
            side = Side(proofs.as_root)
            metadata = (("token", proofs.root_token),) if on else ()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await case.call(channel, metadata, side)
            assert _error(caught.value) == PERMISSION_DENIED, case.id
        await channel.close()


@pytest.fixture
async def channels() -> AsyncIterator[list[Any]]:
    made: list[Any] = []
    yield made
    for channel in made:
        await channel.close()


def is_sample(case: Case, caller: Caller) -> bool:
    """What is looked at every time: of the callers that differ in their ranges only, some are for other nestings."""
    if not case.nesting:
        return True
    return case.nesting in ("then", "not taken", "three deep") and caller.name not in ("halves", "one key", "from on")


@pytest.mark.long
@pytest.mark.parametrize("front", FRONTS)
async def test_the_whole_matrix(tmp_path: Path, channels: list[Any], front: str) -> None:
    async with RunningMember(tmp_path / "state", front=front) as member:
        channels.append(make_channel(member.url))
        await walk(Simple(channels[0], member.server), CASES)


@pytest.mark.parametrize("kind", ["simple", "jwt"])
async def test_matrix(tmp_path: Path, channels: list[Any], kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret that is long enough for an HMAC with SHA-256")
    options = JwtOptions("HS256", None, secret, TTL)
    settings = AuthSettings(bcrypt_cost=4, jwt=options if kind == "jwt" else None)
    async with RunningMember(tmp_path / "state", auth=settings) as member:
        channels.append(make_channel(member.url))
        if kind == "jwt":
            proofs: Proofs = Jwt(channels[0], member.server, JwtTokens(options))
            # What it proves by; of the others the ranges are the same, whoever has proved them.
            callers = [caller for caller in CALLERS if caller.proof != "good" or caller.name in ("ann", "root")]
        else:
            proofs = Simple(channels[0], member.server)
            callers = CALLERS
        cells = await walk(proofs, CASES, callers, lambda case, caller: not is_sample(case, caller))
        assert cells["allowed"] > 300
        assert cells["refused"] > 1000


# What a real etcd 3.5.1 lets through, or says otherwise; all of it is mended in versions after it.
KNOWN_HOLES = {
    "asks nobody for a token (CVE-2026-33413)": lambda case, caller: (
        not caller.user
        and case.needs not in (rbac.OPEN,)
        and (case.method.startswith(("/etcdserverpb.Lease", "/etcdserverpb.Cluster/MemberList", "/etcdserverpb.Maint")))
    ),
    "compacts, moves leaders, lists and renews leases for everybody": lambda case, caller: case.method.endswith(
        ("/Compact", "/MoveLeader", "/Downgrade", "/LeaseLeases", "/LeaseKeepAlive", "/LeaseTimeToLive", "/Alarm")
    ),
    "says permission denied in other words": lambda case, caller: case.method.startswith("/etcdserverpb.Maint"),
    "does not look into nested txns (CVE-2026-33343)": lambda case, caller: (
        case.method.endswith("/Txn")
        and any(word in case.name for word in ("then then", "else else", "three deep", "nested"))
    ),
    "does not look at prev_kv and leases in a txn (CVE-2026-44283)": lambda case, caller: (
        case.method.endswith("/Txn") and "Put" in case.name and any(word in case.name for word in ("prev_kv", "lease"))
    ),
    "takes a watch from a key on for one of the key (GHSA-xg4h-6gfc-h4m8)": lambda case, caller: (
        case.method.endswith("/Watch") and case.name in ("open end", "everything")
    ),
    "tells the status to root only": lambda case, caller: case.method.endswith("/AuthStatus"),
    "tells nobody's user to nobody": lambda case, caller: case.method.endswith("/UserGet") and case.name == "nobody",
    "has one text for every watch that is refused": lambda case, caller: (
        case.method.endswith("/Watch") and caller.proof != "good"
    ),
    "would have one more member": lambda case, caller: case.method.endswith("/MemberAdd"),
    "ends Observe without a word": lambda case, caller: case.method.endswith("/Observe"),
}


def not_etcds(case: Case) -> bool:
    """Newer than 3.5.1, or ours."""
    return case.method.endswith(("/RangeStream", "/History/Read", "/Health/List")) or "health" in case.method


@pytest.mark.slow
async def test_a_real_etcd_agrees(tmp_path: Path, channels: list[Any]) -> None:
    client, peer = free_ports(2)
    url, peer_url = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
    command = [
        *(str(BIN / "etcd"), f"--data-dir={tmp_path / 'etcd'}", f"--listen-client-urls={url}"),
        *(f"--advertise-client-urls={url}", f"--listen-peer-urls={peer_url}", "--log-level=fatal"),
        *(f"--initial-advertise-peer-urls={peer_url}", f"--initial-cluster=default={peer_url}"),
        *("--bcrypt-cost=4", "--unsafe-no-fsync"),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await asyncio.to_thread(wait_healthy, [url])
        channels.append(make_channel(url))
        cases = [case for case in CASES if not not_etcds(case)]
        cells = await walk(
            Proofs(channels[0]),
            cases,
            left_out=lambda case, caller: any(hole(case, caller) for hole in KNOWN_HOLES.values()),
        )
        assert cells["allowed"] > 100
        assert cells["refused"] > 400
    finally:
        process.kill()
        process.wait()
