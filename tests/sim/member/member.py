"""Member: one member of the cluster, its data directory and its lives.

A life is what kvstore/app.py makes of a process: open the data directory, KvServer, services, start. Around it stand
the simulated log files, rows, transport and front. Whatever ends the process (`wait_failed`) kills this life.
"""

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

from kvstore.config import ServerConfig
from kvstore.mvcc.store import StoreOptions
from kvstore.server.bootstrap import BootstrapError, OpenMember, first_members, open_member
from kvstore.server.server import KvServer
from kvstore.services import Services, register
from raft.errors import StorageError
from raft.runtime import Runtime
from raft.storage.segmented import SegmentedStorage
from raft.testing.disk import Fate, PowerCut, SimFileSystem
from raft.transport.grpc import PeerIdentity
from raft.types import Entry, Role
from tests.sim.member.engine import MemoryEngine, RowsOnDisk, checkpoint_at
from tests.sim.member.front import Link, SimRpc
from tests.sim.member.loop import SECOND, Process
from tests.sim.member.network import SimLeaderCalls, SimTransport

if TYPE_CHECKING:
    from tests.sim.member.world import World

WALL: Final = 1_700_000_000 * SECOND
_LOG: Final = Path("log")
SMALL: Final = {
    "response_bytes_max": 300,
    "stream_bytes_max": 600,
    "stream_bytes_resume": 200,
    "deliveries_max": 3,
    "recent_bytes_max": 500,
    "recent_events_max": 5,
    "catch_up_bytes": 300,
    "catch_up_revisions": 4,
}  # of the watch hub


@final
class Member:
    def __init__(self, world: "World", number: int, joins: "list[Member] | None" = None) -> None:
        """joins: the members of the running cluster, when it is not one of the first."""
        options = world.options
        self.world = world
        self.name = f"m{number}"
        self.url = f"http://{self.name}:2380"
        self.boots = 0
        self.process: Process | None = None  # None while it is down
        self.server: KvServer | None = None
        self.link: Link | None = None
        self.serves = False
        self.slow_until = 0
        self.fail_next = False  # the next save fails
        self.cut_next = 0  # so many calls into the next save the power goes
        self.wall_offset = 0
        self.rng = options.stream(self.name)
        self._path = world.path / self.name
        self._files = SimFileSystem(options.stream(f"{self.name} files"))
        self._rows = RowsOnDisk()
        self._open: OpenMember | None = None
        self._services: Services | None = None
        names = [f"m{one}" for one in range(1, options.members + 1)]
        if joins is not None:
            names = [self.name, *[member.name for member in joins]]
        self.config = ServerConfig(
            name=self.name,
            data_dir=self._path,
            listen_peer_urls=(self.url,),
            initial_advertise_peer_urls=(self.url,),
            advertise_client_urls=(f"http://{self.name}:2379",),
            initial_cluster=tuple((name, (f"http://{name}:2380",)) for name in names),
            initial_cluster_given=True,
            initial_cluster_state="new" if joins is None else "existing",
            max_learners=2,
            heartbeat_interval=options.heartbeat_ms,
            election_timeout=options.election_ms,
            pre_vote=options.pre_vote,
            snapshot_count=options.snapshot_count,
            snapshot_catchup_entries=options.catchup_entries,
            snapshot_catchup_bytes=options.catchup_bytes,
            sync=options.sync,
            watch_progress_notify_interval=options.progress_seconds,
        )
        # 0: known once it has joined.
        self.id = next(one.id for one in first_members(self.config) if one.name == self.name) if joins is None else 0

    # Life

    def start(self) -> None:
        """A new process on the same data directory."""
        assert self.process is None
        world = self.world
        self.boots += 1
        process = Process(world.loop, f"{self.name}.{self.boots}", self.rng.below(1000 * SECOND))
        process.thread_delay = self._thread_delay
        if world.options.clock_error and not world.calm:
            process.set_rate(1 + world.options.clock_error * (2 * self.rng.random() - 1))
        self.process = process
        self.link = Link(world, process)
        process.call_soon(process.spawn, self._live(process))

    async def _live(self, process: Process) -> None:
        world = self.world
        try:
            self._open = await open_member(
                self.config,
                self._open_log,
                StoreOptions(
                    slice_ns=world.options.slice_steps,
                    clock=self._slice_clock(),
                    engine=self._open_rows,
                    peek=self._peek_rows,
                    count_walked_min=2,
                    large_bytes=world.options.large_bytes,
                ),
                lambda: self.rng.below(2**62) | 1,
            )
            identity = self._open.identity
            self.id = identity.member_id
            transport = SimTransport(
                world.network, process, PeerIdentity(identity.cluster_id, identity.member_id, identity.instance)
            )
            server = KvServer(
                self.config,
                self._open,
                transport,  # type: ignore[arg-type]
                Runtime(clock=process.clock, rng=self.rng),
                lambda: WALL + process.clock() + self.wall_offset,
                make_leader_calls=lambda server: SimLeaderCalls(server, world.network, transport),
            )
            if world.options.small_watches:
                server.hub.limits = replace(server.hub.limits, **SMALL)
            self.server = server
            world.observe(self, server)
            rpc = SimRpc(world)
            self._services = register(rpc, server)
            self._services.start()
            process.spawn(self._watch_failure(process, server))
            await server.start()
            assert self.link is not None
            self.link.rpc = rpc
            self.serves = True
            world.note(self, "serves", f"applied {server.store.applied_index}")
        except (StorageError, PowerCut) as error:
            self._failed(process, error)
        except BootstrapError as error:
            self._failed(process, error)

    async def _watch_failure(self, process: Process, server: KvServer) -> None:
        self._failed(process, await server.wait_failed())

    def _failed(self, process: Process, error: BaseException) -> None:
        """The process ends itself: nothing more leaves it."""
        process.alive = False
        self.world.loop.at(self.world.loop.now, self._died, process, error, context=self.world.loop.root.context)

    def _died(self, process: Process, error: BaseException) -> None:
        if self.process is process:
            self.world.member_failed(self, error)

    def kill(self, power: bool) -> None:
        """kill -9; with `power`, the machine's power is gone."""
        process = self.process
        assert process is not None
        process.kill()
        if power:
            self._files.power_cut(self.rng.choice([Fate.LOST, Fate.KEPT, Fate.TORN, Fate.TORN]))
        else:
            self._files.kill()
        self._rows.crash(self.rng)
        self._gone(power)

    def _gone(self, power: bool) -> None:
        assert self.link is not None
        assert self.process is not None
        self.world.network.died(self.process, self.id, power)
        self.link.died()
        if self._open is not None:
            with contextlib.suppress(OSError):
                self._open.release()
        self._open = self.server = self.process = self._services = None
        self.serves = False
        self.fail_next = False
        self.cut_next = 0

    async def stop(self) -> None:
        """SIGTERM, as kvstore/app.py serves it. Runs as a task of the process."""
        server, opened, services, process = self.server, self._open, self._services, self.process
        assert server is not None
        assert opened is not None
        assert services is not None
        assert self.link is not None
        await server.hand_over()
        self.serves = False
        self.link.rpc = None
        for stream in list(self.link.streams):
            stream.close()
        await services.stop()
        await server.stop()
        opened.store.close()
        if self.process is process:
            self.world.loop.at(self.world.loop.now, self._stopped, process, context=self.world.loop.root.context)

    def _stopped(self, process: Process) -> None:
        if self.process is process:
            process.kill()
            self._files.kill()
            self._gone(power=False)
            self.world.member_stopped(self)

    # What it stands on

    def _open_log(self, path: Path) -> SegmentedStorage:
        options = self.world.options
        log = SegmentedStorage(
            _LOG, segment_bytes=options.segment_bytes, cache_bytes=options.cache_bytes, file_system=self._files
        )
        save, process = log.save, self.process
        assert process is not None

        def timed_save(hard_state: Any, entries: list[Entry], must_sync: bool) -> None:
            if self.fail_next:
                self.fail_next = False
                self._files.failures[self._files.calls + 1 + self.rng.below(2)] = OSError(5, "injected")
            if self.cut_next:
                self._files.crash_at = self._files.calls + self.cut_next
                self.cut_next = 0
            try:
                save(hard_state, entries, must_sync)
            except PowerCut:
                process.alive = False  # in the middle of a call: nothing that follows leaves the machine
                self.world.loop.at(self.world.loop.now, self._power_gone, process, context=self.world.loop.root.context)
                raise
            if must_sync and not self.world.loop.in_thread:
                process.be_busy(self._sync_time())

        log.save = timed_save  # type: ignore[method-assign]
        return log

    def _power_gone(self, process: Process) -> None:
        if self.process is process:
            self.world.power_gone(self)

    def _open_rows(self, path: Path) -> Any:
        assert self.process is not None
        return MemoryEngine(path, self._rows.at(path), self.process)

    def _peek_rows(self, path: Path) -> Any:
        assert self.process is not None
        return MemoryEngine(path, checkpoint_at(path), self.process)

    def _sync_time(self) -> int:
        mean = self.world.options.sync_delay
        if self.slow_until > self.world.loop.now:
            mean = max(20 * mean, self.world.options.election_timeout // 8)
        return self.rng.exponential(mean)

    def _thread_delay(self) -> int:
        return self._sync_time() + self.rng.exponential(self.world.options.thread_delay) // 8

    def _slice_clock(self) -> Any:
        steps = 0

        def clock() -> int:
            nonlocal steps
            steps += 1
            return steps

        return clock

    # What others see

    @property
    def leads(self) -> bool:
        return self.server is not None and self.server.node._raw is not None and self.role is Role.LEADER

    @property
    def term(self) -> int:
        assert self.server is not None
        assert self.server.node._raw is not None
        return self.server.node._raw.term

    @property
    def role(self) -> Role:
        assert self.server is not None
        assert self.server.node._raw is not None
        return self.server.node._raw.role

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        assert self.process is not None
        return self.process.spawn(coroutine)
