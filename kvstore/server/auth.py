"""Auth: who calls, and whether that is so. What the front, the services and the gateway ask.

    call --metadata--> identify --> Identity(user, revision) --> Proposal(user, auth_revision) --> decided in apply
                                                             --> table.refuse_read(...)        --> decided at the read

The front asks `Guard` (rpc/base.py) before each handler, while authentication is on: the rules are one table for all
methods (kvstore/auth/methods.py). A token that a member ahead of this one has issued is waited for: its index says
until where this member has to apply. DESIGN.md has what a service must do.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Protocol, final

import structlog
from google.protobuf.message import DecodeError

from kvstore.auth import methods, tokens
from kvstore.auth.changes import TokenChange
from kvstore.auth.settings import AuthSettings, JwtOptions
from kvstore.auth.table import NOBODY, AuthTable, Identity
from kvstore.auth.tokens import SimpleTokens
from kvstore.errors import (
    AUTH_FAILED,
    AUTH_NOT_ENABLED,
    AUTH_OLD_REVISION,
    INVALID_AUTH_TOKEN,
    NO_PASSWORD_USER,
    KvError,
)
from kvstore.mvcc.store import MvccStore
from kvstore.pb.command_pb2 import Authenticate
from kvstore.pb.rpc_pb2 import DeleteRangeRequest, MemberAddRequest, PutRequest, RangeRequest, TxnRequest
from kvstore.rpc.base import Call, Caller, CallHandler, Stream, StreamHandler, StreamHandlerFactory, handle
from kvstore.server.membership import good_peer_urls
from kvstore.server.passwords import Passwords
from kvstore.state.applier import AppliedResult
from kvstore.state.checks import check_delete_range, check_put, check_range, check_txn
from kvstore.state.command import Op
from raft.errors import Stopped

if TYPE_CHECKING:
    from kvstore.auth.jwt import JwtTokens
    from kvstore.config import ServerConfig

log = structlog.get_logger(__name__)

LOGIN_ATTEMPTS: Final = 5  # users and roles may change while a password is checked
WAITING_MAX: Final = 1000  # callers with a token that this member does not know yet
HELD_MESSAGES_MAX: Final = 1000  # of such a stream
TOKEN_WAIT_SECONDS: Final = 5.0  # for this member to come to where a token was issued
BEARER: Final = "Bearer "


_CHECKS: Final[dict[str, Callable[[bytes, int], object]]] = {
    "/etcdserverpb.KV/Range": lambda request, _: check_range(RangeRequest.FromString(request)),
    "/etcdserverpb.KV/RangeStream": lambda request, _: check_range(RangeRequest.FromString(request)),
    "/etcdserverpb.KV/Put": lambda request, _: check_put(PutRequest.FromString(request)),
    "/etcdserverpb.KV/DeleteRange": lambda request, _: check_delete_range(DeleteRangeRequest.FromString(request)),
    "/etcdserverpb.KV/Txn": lambda request, max_ops: check_txn(TxnRequest.FromString(request), max_ops),
    "/etcdserverpb.Cluster/MemberAdd": lambda request, _: good_peer_urls(MemberAddRequest.FromString(request).peerURLs),
}


class AppliedWaiter(Protocol):
    """What Auth needs of a raft.Node."""

    async def wait_applied(self, index: int) -> None: ...


class Host(Protocol):
    """What Auth needs of a KvServer."""

    config: "ServerConfig"
    store: MvccStore
    wall_clock: Callable[[], int]

    @property
    def node(self) -> "AppliedWaiter": ...
    def now(self) -> float: ...
    async def propose_one(self, op: Op, raw: bytes, user: str = "", auth_revision: int = 0) -> AppliedResult: ...


@final
class Auth:
    def __init__(self, host: Host, settings: AuthSettings) -> None:
        """Raises ValueError or OSError when the keys of --auth-token cannot be used."""
        self._host = host
        self._store = host.store
        self._by_certificate = settings.by_certificate
        self._jwt = jwt_tokens(settings.jwt)
        self._simple = SimpleTokens(settings.token_ttl)
        self.passwords = Passwords(settings.bcrypt_cost)
        self._waiting = 0  # callers whose token may be known later
        self._tasks: set[asyncio.Task[None]] = set()  # the loop keeps only weak references to tasks
        self._store.on_swap.append(self.forget)

    @property
    def table(self) -> AuthTable:
        """Of the state that a read would see now."""
        return self._store.auth

    @property
    def is_on(self) -> bool:
        return self._store.auth.enabled

    # Who calls

    def identify(self, caller: Caller) -> Identity:
        """NOBODY while authentication is off, or when the caller does not say. Raises KvError: the token is wrong."""
        table = self.table
        if not table.enabled:
            return NOBODY
        token = _token(caller)
        if token:
            who = self._of_token(token, table)
            if who is None:
                raise INVALID_AUTH_TOKEN.fresh()
            return who
        # etcd's gateway shows its own certificate to its own member (CVE-2018-16886).
        if self._by_certificate and not caller.text("grpcgateway-accept"):
            name = caller.common_name
            return Identity(name, table.revision) if name else NOBODY
        return NOBODY

    def _of_token(self, token: str, table: AuthTable) -> Identity | None:
        if self._jwt is not None:
            return self._jwt.check(token, self._host.wall_clock() / 1e9)
        parts = tokens.split(token)
        if parts is None:
            return None
        user = self._simple.user_of(parts[0], self._host.now(), self._store.last_entry_time)
        return None if user is None else Identity(user, table.revision)

    def is_ahead(self, caller: Caller) -> bool:
        """The caller's token may be one that this member will know once it has applied more."""
        return self._index_of(caller) > self._store.applied_index

    def _index_of(self, caller: Caller) -> int:
        parts = tokens.split(_token(caller)) if self._jwt is None else None
        return parts[1] if parts is not None else 0

    async def caught_up(self, caller: Caller) -> None:
        """Returns when waiting longer for the caller's token makes no sense."""
        if not self.is_on or not self.is_ahead(caller) or self._waiting >= WAITING_MAX:
            return
        self._waiting += 1
        try:
            async with asyncio.timeout(TOKEN_WAIT_SECONDS):
                await self._host.node.wait_applied(self._index_of(caller))
        except (TimeoutError, Stopped):
            return
        finally:
            self._waiting -= 1

    # Guard: what the front asks while `is_on`

    def refusal(self, method: str, caller: Caller, request: bytes) -> KvError | None:
        if methods.METHODS[method] in methods.WITHOUT_TOKEN:
            return None
        try:
            refused = methods.refusal(method, self.table, self.identify(caller), request)
        except KvError as error:
            refused = error
        return None if refused is None else self._fault_of(method, request) or refused

    def _fault_of(self, method: str, request: bytes) -> KvError | None:
        """As in etcd, a request that is refused in any case is refused for what is wrong with itself."""
        check = _CHECKS.get(method)
        try:
            if check is not None:
                check(request, self._host.config.max_txn_ops)
        except KvError as error:
            return error
        except DecodeError:
            pass
        return None

    def admit(self, method: str, calls: list[Call], handler: CallHandler) -> list[Call]:
        admitted = []
        for call in calls:
            if self.is_ahead(call):
                self._start(self._admit_later(method, call, handler))
                continue
            refused = self.refusal(method, call, call.request)
            if refused is None:
                admitted.append(call)
            else:
                call.fail(refused)
        return admitted

    async def _admit_later(self, method: str, call: Call, handler: CallHandler) -> None:
        await self.caught_up(call)
        refused = self.refusal(method, call, call.request)
        if refused is None:
            handle([call], handler)
        else:
            call.fail(refused)

    async def check(self, method: str, caller: Caller, request: bytes) -> None:
        """Raises KvError."""
        await self.caught_up(caller)
        refused = self.refusal(method, caller, request)
        if refused is not None:
            raise refused.fresh()

    def open(self, stream: Stream, factory: StreamHandlerFactory) -> StreamHandler:
        if not self.is_ahead(stream):
            return factory(stream)
        early = _Early(stream, factory)
        self._start(early.begin(self.caught_up(stream)))
        return early

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # Logging in

    async def log_in(self, name: str, password: str) -> str:
        """A token. Raises KvError. Call after a read barrier."""
        for _ in range(LOGIN_ATTEMPTS):
            table = self.table
            if not table.enabled:
                raise AUTH_NOT_ENABLED.fresh()
            user = table.users.get(name)
            if user is not None and user.options.no_password:
                raise NO_PASSWORD_USER.fresh()
            if not await self.passwords.fits(password, b"" if user is None else user.password):
                log.warning("a login failed", user=name)
                raise AUTH_FAILED.fresh()
            try:
                return await self._token_for(Identity(name, table.revision))
            except KvError as error:
                # Something has changed since; it may have been this password.
                if error != AUTH_OLD_REVISION:
                    raise
        raise AUTH_OLD_REVISION.fresh()

    async def _token_for(self, who: Identity) -> str:
        """Apply agrees only while `who.revision` is the newest."""
        random_part = "" if self._jwt is not None else tokens.draw()
        login = Authenticate(user=who.user, token=tokens.digest(random_part) if random_part else b"")
        await self._host.propose_one(Op.AUTHENTICATE, login.SerializeToString(), auth_revision=who.revision)
        jwt = self._jwt
        if jwt is None:
            return f"{random_part}.{self._store.applied_index}"
        now = self._host.wall_clock() / 1e9
        return await self.passwords.run(lambda: jwt.issue(who, now))

    # What apply and the server tell

    def changed(self, changes: list[TokenChange]) -> None:
        self._simple.changed(changes, self._host.now())

    def forget(self) -> None:
        """All simple tokens: what became of them is not known."""
        self._simple.clear()

    async def stop(self) -> None:
        self.passwords.stop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@final
class _Early(StreamHandler):
    """Stands in for a stream's handler until its caller's token must have come."""

    def __init__(self, stream: Stream, factory: StreamHandlerFactory) -> None:
        self._stream = stream
        self._factory = factory
        self._handler: StreamHandler | None = None
        self._held: list[bytes] = []
        self._half_closed = False
        self._closed = False

    async def begin(self, caught_up: Awaitable[None]) -> None:
        await caught_up
        if self._closed:
            return
        handler = self._handler = self._factory(self._stream)
        if self._held:
            handler.received(self._held)
        if self._half_closed:
            handler.half_closed()

    def received(self, messages: list[bytes]) -> None:
        if self._handler is not None:
            self._handler.received(messages)
        elif len(self._held) + len(messages) > HELD_MESSAGES_MAX:
            self._stream.close(INVALID_AUTH_TOKEN)
        else:
            self._held += messages

    def drained(self) -> None:
        if self._handler is not None:
            self._handler.drained()

    def half_closed(self) -> None:
        self._half_closed = True
        if self._handler is not None:
            self._handler.half_closed()

    def closed(self) -> None:
        self._closed = True
        if self._handler is not None:
            self._handler.closed()


def jwt_tokens(options: JwtOptions | None) -> "JwtTokens | None":
    """None where simple tokens are wanted. Raises ValueError or OSError when the keys cannot be used."""
    if options is None:
        return None
    from kvstore.auth.jwt import JwtTokens  # brings cryptography

    return JwtTokens(options)


def _token(caller: Caller) -> str:
    return (caller.text("token") or caller.text("authorization")).removeprefix(BEARER)
