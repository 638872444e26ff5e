"""One member as a process: start, serve, stop, and die at once when it must.

    settings -> data directory -> node -> replay -> clients' port -> published -> "ready to serve client requests"

The clients' port opens once everything that is known to be committed is applied again, with or without a
quorum: serializable reads need none. "ready" is said when this member's publication has gone through the
log, so a quorum is there.

Exit codes: 0 after SIGTERM or SIGINT, 1 when this process cannot go on. The first signal hands leadership
over, lets calls under way finish and makes the state durable; a second one ends the process at once.

After an error of the disk or of apply nothing may be answered any more: nobody knows what is stored. So
one line is logged and the process ends with os._exit, past every handler that could still send.
"""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from kvstore import logs
from kvstore.config import ServerConfig
from kvstore.failpoints import FailpointError, arm_all
from kvstore.tls import channel_tls, make_certificates, server_tls, tls_problem

if TYPE_CHECKING:
    from kvstore.admin import AdminSocket
    from kvstore.gateway.ports import HttpPorts
    from kvstore.lag import LoopLag
    from kvstore.rpc.base import RpcServer
    from kvstore.server.server import KvServer
    from raft.core.ports import Tracer

STOP_GRACE_SECONDS: Final = 2.0  # for calls under way; watches are cut
STREAMS_MAX: Final = 2**31 - 1  # what HTTP/2 can say; etcd's default, which is more, means "no limit"
FAILED: Final = 1
DISK_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


def run(config: ServerConfig) -> int:
    """Until the process is told to stop. Returns the exit code."""
    os.umask(0o077)
    logs.set_up(config.log_level, config.log_format)
    import structlog

    from kvstore.server.bootstrap import BootstrapError

    log = structlog.get_logger("kvstore")
    for note in config.notes:
        log.warning(note)
    try:
        arm_all(config.failpoints)
    except FailpointError as error:
        log.error(f"--failpoints: {error}")
        return FAILED
    if config.failpoints:
        log.warning("failpoints are armed: this member will fail on purpose", failpoints=config.failpoints)
    problem = _auth_problem(config)
    if problem:
        log.error(problem)
        return FAILED
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_serve(config))
    except BootstrapError as error:
        log.error(str(error))
    except OSError as error:
        log.error(error.strerror or str(error))
    except Exception:  # top of the process
        log.exception("this member ends because of a bug")
    return FAILED


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    """uvloop's where it is installed: it halves what a socket costs."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


async def _serve(config: ServerConfig) -> int:
    import structlog

    from kvstore.lag import LoopLag, wants_lag
    from kvstore.mvcc.engine import Engine
    from kvstore.mvcc.store import StoreError, StoreOptions
    from kvstore.rpc import make_peer_channel, make_peer_server
    from kvstore.server.bootstrap import open_member
    from kvstore.server.server import KvServer
    from kvstore.services import register
    from raft.transport.grpc import GrpcTransport, PeerIdentity

    log = structlog.get_logger("kvstore")
    stopping = _on_signals()
    lag = LoopLag() if wants_lag() or config.admin_socket is not None else None
    front = await _check_front(config)
    peer_channel = partial(make_peer_channel, front=front, tls=channel_tls(config.peer_tls))
    store_options = StoreOptions(engine=partial(Engine, on_unreadable=die))
    member = await open_member(config, store_options=store_options, channel_factory=peer_channel)
    identity = member.identity
    log.info(
        "starting",
        name=identity.name,
        member=f"{identity.member_id:x}",
        cluster=f"{identity.cluster_id:x}",
        boot=identity.boot,
        applied=member.store.applied_index,
        rpc=front,
    )
    transport = GrpcTransport(
        PeerIdentity(identity.cluster_id, identity.member_id, identity.instance),
        list(config.listen_peer_urls),
        server_factory=partial(make_peer_server, front=front, tls=server_tls(config.peer_tls)),
        channel_factory=peer_channel,
    )
    server = KvServer(config, member, transport, tracer=_raft_tracer(config))
    rpc, http = _make_ports(config, server, front)
    services = register(rpc, server)
    services.start()
    admin = await _open_admin(config, server, lag)
    starting = asyncio.create_task(_start(config, server, rpc, http))
    await _until_stopped(server, starting, stopping)
    starting.cancel()
    log.info("stopping")
    await server.hand_over()
    await asyncio.gather(rpc.stop(STOP_GRACE_SECONDS), http.stop(STOP_GRACE_SECONDS))
    await services.stop()
    try:
        await server.stop()
    except (OSError, StoreError) as error:
        die(error)
    member.store.close()
    member.release()
    if admin is not None:
        await admin.close()
    if lag is not None:
        lag.close()
    log.info("stopped")
    return 0


async def _until_stopped(server: "KvServer", starting: "asyncio.Task[None]", stopping: asyncio.Event) -> None:
    """Until a signal has come. A member that fails, or cannot start, dies here."""
    failed = asyncio.create_task(server.wait_failed())
    stop = asyncio.create_task(stopping.wait())
    await asyncio.wait([failed, stop, starting], return_when=asyncio.FIRST_COMPLETED)
    if not failed.done() and not stop.done():
        error = starting.exception()
        if error is not None:
            die(error)
        await asyncio.wait([failed, stop], return_when=asyncio.FIRST_COMPLETED)
    if failed.done():
        die(failed.result())


def _make_ports(config: ServerConfig, server: "KvServer", front: str) -> "tuple[RpcServer, HttpPorts]":
    """What clients connect to; not listening yet."""
    from kvstore.gateway.ports import HttpPorts
    from kvstore.rpc import ServerOptions, make_server

    tls = server_tls(config.client_tls)
    options = ServerOptions(
        max_request_bytes=config.max_request_bytes,
        max_concurrent_streams=min(config.max_concurrent_streams, STREAMS_MAX),
        tls=tls,
        measure_calls=config.measure_calls,
    )
    rpc = make_server(options, front)
    http = HttpPorts(config, server, tls, rpc.local)
    rpc.http1 = http.shared
    return rpc, http


async def _start(config: ServerConfig, server: "KvServer", rpc: "RpcServer", http: "HttpPorts") -> None:
    """From a closed port to the line that scripts wait for."""
    import structlog

    log = structlog.get_logger("kvstore")
    metrics_urls = await http.start_metrics()
    await server.start()
    urls = await rpc.start(list(config.listen_client_urls))
    http_urls = await http.start_clients()
    others = {"http_urls": http_urls, "metrics_urls": metrics_urls}
    log.info(
        "listening",
        client_urls=urls,
        peer_urls=server.transport.listening,
        **{name: found for name, found in others.items() if found},
    )
    await server.published.wait()
    # What lives until now lives for ever: the collector need not walk it, nor come as often.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    _trim()
    log.info("ready to serve client requests", client_urls=urls)


def _trim() -> None:
    """What the start has used and freed goes back to the system; only glibc keeps it, and only it has this call."""
    import ctypes

    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def _check_front(config: ServerConfig) -> str:
    """Which gRPC carries this member; all that can be known to be wrong before the data directory is made: a wrong
    address is no reason to leave one behind."""
    import structlog

    from kvstore.rpc import choose_front, default_front
    from kvstore.rpc.address import can_listen, host_port
    from kvstore.server.bootstrap import BootstrapError

    if config.rpc:
        choose_front(config.rpc)
    front = default_front()
    if front == "grpcio" and not config.listen_client_http_urls:
        structlog.get_logger("kvstore").info(
            "--rpc=grpcio serves no HTTP/1.1 (/health, /version, /metrics) on the clients' port: "
            "--listen-client-http-urls gives it one"
        )
    for urls in (
        config.listen_peer_urls,
        config.listen_client_urls,
        config.listen_client_http_urls,
        config.listen_metrics_urls,
    ):
        for url in urls:
            await can_listen(host_port(url))
    problem = tls_problem(config, front)
    if problem:
        raise BootstrapError(problem)
    make_certificates(config)
    return front


def _auth_problem(config: ServerConfig) -> str:
    """Why the keys of --auth-token cannot be used; "" when they can."""
    from kvstore.server.auth import jwt_tokens

    try:
        jwt_tokens(config.auth.jwt)
    except OSError as error:
        return f"--auth-token: {error.filename} cannot be read: {error.strerror}"
    except ValueError as error:
        return f"--auth-token: {error}"
    return ""


async def _open_admin(config: ServerConfig, server: "KvServer", lag: "LoopLag | None") -> "AdminSocket | None":
    if config.admin_socket is None or lag is None:
        return None
    from kvstore.admin import AdminSocket

    admin = AdminSocket(config.admin_socket, server, lag)
    await admin.start()
    return admin


def _raft_tracer(config: ServerConfig) -> "Tracer | None":
    """What `kvctl debug trace` prints. Each line reaches the kernel at once, so that a crash does not take it along."""
    if config.raft_trace is None:
        return None
    from raft.trace import JsonlTracer

    return JsonlTracer(config.raft_trace.open("a", buffering=1).write, time.monotonic_ns)


def _on_signals() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second one ends the process."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _signalled, stopping)
    return stopping


def _signalled(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        logs.flush()
        os._exit(FAILED)
    stopping.set()


def die(error: BaseException) -> NoReturn:
    """Say why, once, and be gone before anything else is sent."""
    import structlog

    structlog.get_logger("kvstore").critical(
        "this member cannot go on", reason=explain(error), error=type(error).__name__
    )
    logs.flush()
    os._exit(FAILED)


def explain(error: BaseException) -> str:
    """One line for an operator, with what to do next. What is damaged, or the store's, tells that itself."""
    from raft.errors import StorageError

    text = " ".join(str(error).split()) or repr(error)
    if type(error) is StorageError or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
        return f"the disk failed: {text}; free space or replace it, then start this member again"
    return text
