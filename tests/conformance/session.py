"""Runs a script of etcdctl commands on a cluster and writes down what came out.

A script line is one of
    $ COMMAND            run etcdctl with these arguments
    & NAME COMMAND       start it, and go on when its watches stand (one, or one per line of input)
    ? NAME N             wait until it has printed N lines
    @ NAME N             the same, then stop it
    @ NAME exit          wait until it has ended by itself
    < TEXT               a line of standard input for the command above; {x*1000} is a thousand times x
    # TEXT               a comment
{m1} {m2} {m3} are client URLs, {all} all three joined with commas. Commands go to m1 unless they say otherwise.

The transcript is the script with `| ` before each line of stdout, `! ` before each of stderr and `= N` for an exit
code that is not 0. What differs from run to run (ids, terms, sizes, times, ports, hashes) becomes a name in <>.
"""

import json
import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

from tests.conformance.gate import Gate

TIMEOUT = 60  # seconds; far above what any command takes, so that a hang is an error and not a stuck suite
LINES_TIMEOUT = 20  # seconds for a watch to print what it should
NOT_ENOUGH_LINES = -1  # the exit code written for a watch that did not


class Cluster(Protocol):
    client_urls: list[str]
    peer_urls: list[str]
    version: str


class Normaliser:
    """Replaces what may differ between two runs by names that say what it was."""

    def __init__(self, etcdctl: str, cluster: Cluster) -> None:
        text = run_etcdctl(etcdctl, ["member", "list", "-w", "json"], cluster.client_urls[0]).stdout
        members = json.loads(text)
        self._names: list[tuple[str, str]] = []
        for number, (client, peer) in enumerate(zip(cluster.client_urls, cluster.peer_urls, strict=True), 1):
            self._names += [(client, f"<client{number}>"), (client.removeprefix("http://"), f"<client{number}>")]
            self._names += [(peer, f"<peer{number}>")]
        ids = {"<cluster>": members["header"]["cluster_id"]}
        ids |= {f"<{member['name']}>": member["ID"] for member in members["members"]}
        for name, number in ids.items():
            self._names += [(str(number), name), (f"{number:x}", name)]
        self._version = cluster.version
        self._hashes: dict[str, str] = {}

    def line(self, text: str, command: str) -> str:
        for value, name in self._names:
            text = text.replace(value, name)
        text = re.sub(r'("?\b(?:raft_?term|RaftTerm)"? ?: ?)\d+', r"\1<term>", text, flags=re.IGNORECASE)
        text = re.sub(
            r'("?\b(?:raft_?(?:applied_?)?index|dbSize(?:InUse)?)"? ?: ?)\d+', r"\1<n>", text, flags=re.IGNORECASE
        )
        text = re.sub(r'("?Leader"? ?: ?)<m\d>', r"\1<leader>", text, flags=re.IGNORECASE)
        text = re.sub(r"took = [\d.]+[mµn]?s", "took = <time>", text)
        text = re.sub(r"\b\d+\.\d+m?s\b", "<time>", text)
        text = re.sub(rf"\b{re.escape(self._version)}\b", "<version>", text)
        if "endpoint status" in command:
            # version, size, leader, learner, term, index, applied index
            text = re.sub(r"<version>(\W+)[\d.]+ [kM]?B(\W+)(?:true|false)\b", r"<version>\1<n>\2<is leader>", text)
            text = re.sub(r"((?:true|false)\W+)\d+(\W+)\d+(\W+)\d+", r"\1<term>\2<n>\3<n>", text)
        if "hashkv" in command:
            text = re.sub(r'((?:"?hash"? ?: ?)|<client\d>[, |]+)(\d+)', self._hash, text, flags=re.IGNORECASE)
        if text.startswith(("|", "+")) and text.endswith(("|", "+")):
            text = re.sub(r"-+", "-", re.sub(r" +", " ", text))  # a table's widths follow from the values
        return text

    def _hash(self, match: re.Match[str]) -> str:
        # Each store has a hash function of its own; that two of them agree, or not, is what must be seen.
        name = self._hashes.setdefault(match[2], f"<hash{len(self._hashes) + 1}>")
        return f"{match[1]}{name}"


def run_etcdctl(etcdctl: str, arguments: list[str], endpoint: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [etcdctl, *with_endpoint(arguments, endpoint)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env=environment(),
    )


def with_endpoint(arguments: list[str], endpoint: str) -> list[str]:
    """By flag, as etcdctl refuses a flag that an environment variable also sets; first, so that `--` may follow."""
    return arguments if "--endpoints" in arguments else [f"--endpoints={endpoint}", *arguments]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCDCTL_")} | {"ETCDCTL_API": "3"}


class Background:
    """An etcdctl that runs beside the script."""

    def __init__(self, etcdctl: str, arguments: list[str], target_url: str, stdin: list[str]) -> None:
        self._gate = Gate(target_url)
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [etcdctl, *with_endpoint(arguments, self._gate.url)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{line}\n" for line in stdin))
        self.process.stdin.flush()
        self._gate.wait_frames(max(1, len(stdin)))

    def finish(self, lines: int | None) -> tuple[list[str], str, int]:
        """Stdout, stderr and exit code, after so many lines of output, or (None) after its own end."""
        try:
            if lines is None:
                code = self.process.wait(TIMEOUT)
            else:
                came = self.wait_lines(lines)
                self.process.kill()
                self.process.wait()
                code = 0 if came else NOT_ENOUGH_LINES
            self._reader.join()
            assert self.process.stderr is not None
            return self._lines, self.process.stderr.read(), code
        finally:
            self.close()

    def wait_lines(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: len(self._lines) >= count, LINES_TIMEOUT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._gate.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._lines.append(line.rstrip("\n"))
                self._changed.notify_all()


class Session:
    """One cluster, one etcdctl; scripts run on it in order and see each other's data."""

    def __init__(self, etcdctl: str, cluster: Cluster) -> None:
        self._etcdctl = etcdctl
        self._cluster = cluster
        self._normaliser = Normaliser(etcdctl, cluster)
        self._background: dict[str, tuple[str, Background]] = {}

    def play(self, script: str) -> str:
        """The transcript of a script."""
        out: list[str] = []
        try:
            for line, stdin in statements(script):
                out += [line, *(f"< {one}" for one in stdin)]
                verb, _, rest = line.partition(" ")
                match verb:
                    case "$":
                        out += self._run(rest, stdin)
                    case "&":
                        name, _, command = rest.partition(" ")
                        background = Background(
                            self._etcdctl, self._arguments(command), self._cluster.client_urls[0], stdin
                        )
                        self._background[name] = (command, background)
                    case "?":
                        name, count = rest.split()
                        self._background[name][1].wait_lines(int(count))
                    case "@":
                        name, until = rest.split()
                        command, background = self._background.pop(name)
                        result = background.finish(None if until == "exit" else int(until))
                        out += self._written(command, *result)
        finally:
            for _, background in self._background.values():
                background.close()
            self._background.clear()
        return "".join(f"{line}\n".replace(" \n", "\n") for line in out)

    def _run(self, command: str, stdin: list[str]) -> list[str]:
        text = "".join(re.sub(r"\{(.)\*(\d+)\}", lambda m: m[1] * int(m[2]), f"{line}\n") for line in stdin)
        done = run_etcdctl(self._etcdctl, self._arguments(command), self._cluster.client_urls[0], text)
        return self._written(command, done.stdout.splitlines(), done.stderr, done.returncode)

    def _arguments(self, command: str) -> list[str]:
        urls = self._cluster.client_urls
        places = {f"{{m{number}}}": url for number, url in enumerate(urls, 1)} | {"{all}": ",".join(urls)}
        for place, value in places.items():
            command = command.replace(place, value)
        arguments = shlex.split(command)
        assert arguments[0] == "etcdctl", f"a script runs etcdctl only: {command}"
        return arguments[1:]

    def _written(self, command: str, stdout: list[str], stderr: str, code: int) -> list[str]:
        # The Go client logs its retries as JSON lines; how many there are depends on timing.
        errors = [line for line in stderr.splitlines() if not line.startswith('{"level":')]
        if "NAME:" in stdout:
            stdout = ["<usage>"]  # etcdctl's help: not ours to check, nor to keep here
        line: Callable[[str], str] = lambda text: self._normaliser.line(text, command)  # noqa: E731
        out = [f"| {line(text)}" for text in stdout] + [f"! {line(text)}" for text in errors]
        return [*out, f"= {code}"] if code else out


def statements(script: str) -> Iterator[tuple[str, list[str]]]:
    """Each line of a script with the lines of input that belong to it."""
    current: tuple[str, list[str]] | None = None
    for line in script.splitlines():
        if line.startswith("<"):
            assert current is not None, "input before the first command"
            current[1].append(line[2:])
            continue
        if current is not None:
            yield current
        current = (line, [])
    if current is not None:
        yield current
