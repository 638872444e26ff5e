"""SimLoop: an asyncio event loop in virtual time, and the processes that live on it.

Nothing takes time but what says so: the loop runs what is ready and then jumps to the next timer. It is deterministic:
one thread, timers of one moment in the order in which they were made, threads replaced by delays.

All members share the loop, and each is a Process of it. Whatever a process starts carries its context, by which the
loop knows whose it is:

    kill     nothing of the process runs any more, not even a `finally`: like kill -9
    pause    what becomes ready waits until the process is resumed: like SIGSTOP; time passes meanwhile
    busy     the same for a while: how a blocking call (an fsync on the loop) holds up the process
    clock    each process has its own rate; loop.time(), and so every timer, follows it
"""

import asyncio
import contextvars
from asyncio.base_events import BaseEventLoop
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Final, final

SECOND: Final = 1_000_000_000  # all times are nanoseconds
MILLISECOND: Final = 1_000_000
TURNS_MAX: Final = 100_000  # in one moment: whatever needs more does not come to an end

_PROCESS: contextvars.ContextVar["Process"] = contextvars.ContextVar("process")


class Stuck(Exception):
    """Nothing will ever happen again, or something happens for ever in no time."""


@final
class Process:
    """One life of something that can be killed. The root process, the world itself, never is."""

    def __init__(self, loop: "SimLoop", name: str, begins_at: int = 0) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.busy_until = 0
        self.thread_delay: Callable[[], int] = lambda: 0  # how long work given to a thread takes
        self._loop = loop
        self._rate = 1.0
        self._base = (loop.now, begins_at)  # true time and the process's own at the same moment
        self._held: list[Any] = []  # ready, while it is paused
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)

    def clock(self) -> int:
        """Its own monotonic nanoseconds. Work that holds up the process is seen to have taken its time."""
        true, own = self._base
        return own + int((max(self._loop.now, self.busy_until) - true) * self._rate)

    def true_time(self, own_time: int) -> int:
        true, own = self._base
        return true + int((own_time - own) / self._rate)

    def set_rate(self, rate: float) -> None:
        """Timers that are set already stay where they are."""
        self._base = (self._loop.now, self.clock())
        self._rate = rate

    def kill(self) -> None:
        self.alive = False
        self._loop.buried += self._held
        self._held = []

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        held, self._held = self._held, []
        for handle in held:
            self._loop.again(handle, self._loop.now)

    def hold(self, handle: Any) -> None:
        self._held.append(handle)

    def be_busy(self, span: int) -> None:
        self.busy_until = max(self._loop.now, self.busy_until) + span

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """A task of this process. That it ends with an error is an error."""
        task: asyncio.Task[Any] = self._loop.create_task(coroutine, context=self.context.copy())
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and task.exception() is not None:
            self._loop.errors.append((self, {"message": "a task ended", "exception": task.exception()}))

    def call_soon(self, callback: Callable[..., object], *args: Any) -> asyncio.Handle:
        return self._loop.call_soon(callback, *args, context=self.context)


@final
class _Handle(asyncio.Handle):
    __slots__ = ("process",)


@final
class _Timer(asyncio.TimerHandle):
    __slots__ = ("process",)


@final
class SimLoop(BaseEventLoop):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.turns = 0  # handles run
        self._turns_before = 0  # ... before this moment
        self.buried: list[Any] = []  # what dead processes left: kept, so that nothing of it is finalised meanwhile
        self.errors: list[tuple[Process, dict[str, Any]]] = []
        self.every_task: list[asyncio.Task[Any]] = []
        self._heap: list[tuple[int, int, Any]] = []
        self._made = 0
        self.root = Process(self, "world")
        self.current = self.root
        self.in_thread = False  # what runs now was given to a thread
        self.set_task_factory(_make_task)
        self.set_exception_handler(_note_error)

    # What asyncio asks

    def time(self) -> float:
        return self.current.clock() / SECOND

    def call_soon(
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        process = self.current if context is None else context.get(_PROCESS, self.root)
        handle = _Handle(callback, args, self, process.context if context is None else context)
        handle.process = process
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """`when`: of the clock of the process that calls."""
        return self.at(self.current.true_time(int(when * SECOND)), callback, *args, context=context)

    def at(
        self, time: int, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """`time`: true nanoseconds."""
        process = self.current if context is None else context.get(_PROCESS, self.root)
        handle = _Timer(time / SECOND, callback, args, self, process.context if context is None else context)
        handle.process = process
        self.again(handle, time)
        return handle

    def again(self, handle: Any, time: int) -> None:
        self._made += 1
        heappush(self._heap, (max(time, self.now), self._made, handle))

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        """A thread: its work happens at one moment of its time, its owner learns of the end later."""
        process = self.current
        done: asyncio.Future[Any] = self.create_future()
        delay = process.thread_delay()
        self.at(self.now + delay // 2, self._work, done, func, args, delay - delay // 2)
        return done

    def _work(self, done: "asyncio.Future[Any]", func: Callable[..., Any], args: Any, delay: int) -> None:
        self.in_thread = True
        try:
            result, error = func(*args), None
        except Exception as raised:
            result, error = None, raised
        finally:
            self.in_thread = False
        self.at(self.now + delay, _finish, done, result, error)

    async def shutdown_asyncgens(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # The loop

    def _run_once(self) -> None:
        heap, ready = self._heap, self._ready
        while not ready:
            if not heap:
                raise Stuck(f"nothing is left to happen at {self.now / SECOND:.3f} s")
            if heap[0][0] > self.now:
                self.now, self._turns_before = heap[0][0], self.turns
            while heap and heap[0][0] <= self.now:
                handle = heappop(heap)[2]
                if not handle._cancelled:
                    ready.append(handle)
        if self.turns - self._turns_before > TURNS_MAX:
            raise Stuck(f"{ready[0]!r} goes on and on at {self.now / SECOND:.3f} s")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle.process
            if not process.alive:
                self.buried.append(handle)
            elif process.paused:
                process.hold(handle)
            elif process.busy_until > self.now:
                self.again(handle, process.busy_until)
            else:
                self.turns += 1
                self.current = process
                handle._run()
                self.current = self.root

    def bury(self) -> None:
        """The end of the world: end every coroutine here and now, so that none speaks up later."""
        for task in self.every_task:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            if not task.done():
                coroutine = task.get_coro()
                for _ in range(8):  # a coroutine may wait once more on its way out
                    try:
                        coroutine.close()  # type: ignore[union-attr]
                        break
                    except (RuntimeError, ValueError):
                        continue
        for task in self.every_task:
            if task.done() and not task.cancelled():
                task.exception()
        self.every_task.clear()
        self.buried.clear()
        self._heap.clear()
        self._ready.clear()
        self.close()


def _make_task(loop: Any, coroutine: Any, context: contextvars.Context | None = None) -> "asyncio.Task[Any]":
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, context=context)
    loop.every_task.append(task)
    return task


def _note_error(loop: Any, context: dict[str, Any]) -> None:
    loop.errors.append((loop.current, context))


def _finish(done: "asyncio.Future[Any]", result: Any, error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(result)
    else:
        done.set_exception(error)
