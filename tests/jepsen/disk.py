"""A disk that can be full, hang, die and lose power: an ext4 in a file, mounted where one member keeps its data.

Power goes by ext4's own switch (EXT4_IOC_SHUTDOWN): from then on nothing reaches the file, what was written and not
synced is lost, and the next mount finds what a machine finds after a power cut, its journal half written too. Before
that some pages that nobody has synced are written, so that the end of a log is torn.

The image's name begins with the network's prefix: by it tests.jepsen.guard finds what to unmount.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import struct
import subprocess
from pathlib import Path

from tests.jepsen.network import run

SIZE = 192 << 20
SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH = 2
SYNC_RANGE = 7  # of sync_file_range(2): wait, write, wait
TORN = 0.5  # the part of pages that are written without being asked
TAIL_BYTES = 512 << 10
HANG_SECONDS = 0.3
OLD, NEW = b"synced", b"unsync"


class Disk:
    def __init__(self, image: Path, mountpoint: Path) -> None:
        self.image = image
        self.mountpoint = mountpoint
        self._life = 1
        self._writers: list[subprocess.Popen[bytes]] = []
        self.data = mountpoint / "data"
        self._canary = mountpoint / "canary"
        self._filler = mountpoint / "filler"

    def make(self) -> None:
        with self.image.open("wb") as file:
            file.truncate(SIZE)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(self.image))
        self.mountpoint.mkdir(parents=True)
        self.mount()
        os.chown(self.mountpoint, self.mountpoint.parent.stat().st_uid, -1)  # a member may be of another user
        with self._canary.open("wb") as file:
            file.write(OLD)
            file.flush()
            os.fsync(file.fileno())

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self.image), str(self.mountpoint))

    def unmount(self) -> None:
        run("umount", str(self.mountpoint))

    def revive(self) -> None:
        """After `shut_down`: mounted again, with what had reached the image."""
        self.unmount()
        # Into another file: a mount namespace that somebody made meanwhile may hold on to what is dead.
        dead, self._life = self.image, self._life + 1
        self.image = dead.with_name(f"{dead.name.partition('.')[0]}.{self._life}.img")
        run("cp", "--sparse=always", str(dead), str(self.image))
        dead.unlink()
        self.mount()

    @property
    def free(self) -> int:
        stat = os.statvfs(self.mountpoint)
        return stat.f_bavail * stat.f_frsize

    def fill(self) -> None:
        """To the last block."""
        with contextlib.suppress(FileNotFoundError):
            self._filler.unlink()
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_SYNC, 0o600)
        try:
            size = 1 << 20
            at = 0
            while size >= 1024:
                try:
                    os.posix_fallocate(descriptor, at, size)
                    at += size
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        finally:
            os.close(descriptor)

    def empty(self) -> None:
        self._filler.unlink(missing_ok=True)

    def freeze(self) -> None:
        """Whatever writes waits, unkillable, for `thaw`."""
        run("fsfreeze", "-f", str(self.mountpoint))

    def thaw(self) -> None:
        run("fsfreeze", "-u", str(self.mountpoint))
        while self._writers:
            self._writers.pop().wait()

    def wake(self) -> None:
        """If it is frozen."""
        subprocess.run(["fsfreeze", "-u", str(self.mountpoint)], check=False, stderr=subprocess.DEVNULL)

    def hangs(self) -> bool:
        """Whoever writes waits."""
        writer = subprocess.Popen(["touch", str(self._canary)])
        self._writers.append(writer)
        try:
            writer.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            return True
        return False

    def shut_down(self, rng: random.Random | None = None) -> None:
        """Every write fails from now on, and what was not synced is lost; with `rng`, not all of that is."""
        with self._canary.open("r+b", buffering=0) as file:
            file.write(NEW)
        if rng is not None:
            self._tear(rng)
        descriptor = os.open(self.mountpoint, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
        finally:
            os.close(descriptor)

    def _tear(self, rng: random.Random) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        newest = max(self.data.glob("log/*.log"), default=None)
        if newest is None:
            return
        with newest.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for page in range(max(0, size - TAIL_BYTES) & ~4095, size, 4096):
                if rng.random() < TORN:
                    libc.sync_file_range(file.fileno(), ctypes.c_int64(page), ctypes.c_int64(4096), SYNC_RANGE)

    def lost_what_was_not_synced(self) -> bool:
        """Since the last `shut_down`, once it is mounted again."""
        return self._canary.read_bytes() == OLD
