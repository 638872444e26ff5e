"""Runs a script of etcdctl commands on a cluster and writes down what came out.

A script line is one of
    $ COMMAND            run etcdctl with these arguments
    & NAME COMMAND       start it, and go on when its watches stand (one, or one per line of input)
    ? NAME N             wait until it has printed N lines
    @ NAME N             the same, then stop it
    @ NAME exit          wait until it has ended by itself
    ~ COMMAND            run it again until the answer does not depend on how long ago something else was done
    ^ N                  let member mN lead; nothing is written
    + NAME               start a member that was added, on {m4} and {peer4}, and wait until it has told its name
    < TEXT               a line of standard input for the command above; {x*1000} is a thousand times x
    # TEXT               a comment
{m1} {m2} {m3} are client URLs, {all} all three joined with commas, {peer1}... peer URLs, {id1}... member ids; 4 and 5
are for members that are added, {new} is the id of the last one; {lease1}... are the leases that were granted; {tmp} is
a folder for files. Commands go to m1 unless they say otherwise.

The transcript is the script with `| ` before each line of stdout, `! ` before each of stderr and `= N` for an exit
code that is not 0. What differs from run to run (ids, terms, sizes, times, ports, hashes) becomes a name in <>.
Members are listed by id, and that of an added one follows from the time; so they are put in the order of their names.
"""

import json
import os
import re
import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from tests.conformance.gate import Gate
from tests.ports import free_ports

TIMEOUT = 60  # seconds; far above what any command takes, so that a hang is an error and not a stuck suite
LINES_TIMEOUT = 20  # seconds for a watch to print what it should
NOT_ENOUGH_LINES = -1  # the exit code written for a watch that did not
AGAIN = ("unhealthy cluster", "in sync with leader", "member ID already exist")  # for so long is `~` tried again
AGAIN_SECONDS = 30
ADDED_MAX = 2  # members that a script may add at once


class Cluster(Protocol):
    client_urls: list[str]
    peer_urls: list[str]
    version: str

    def join(self, name: str, client_url: str, peer_url: str) -> None:
        """Start a member that was added; the cluster stops it."""


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
            self.name_id(number, name)
        self.ids = {f"{{id{number}}}": f"{ids[f'<m{number}>']:x}" for number in range(1, len(cluster.peer_urls) + 1)}
        self._version = cluster.version
        self._hashes: dict[str, str] = {}
        self.leases: dict[str, str] = {}  # {lease1} -> id in hexadecimal

    def name_lease(self, stdout: str) -> None:
        """What a grant has printed, in whatever format."""
        found = re.search(r'lease ([0-9a-f]{16}) granted|"ID" ?: ?(\d+)', stdout)
        if found:
            number = int(found[1], 16) if found[1] else int(found[2])
            name = f"lease{len(self.leases) + 1}"
            self.leases[f"{{{name}}}"] = f"{number:016x}"
            self._names += [(str(number), f"<{name}>"), (f"{number:016x}", f"<{name}>")]

    def name(self, value: str, name: str) -> None:
        """From now on."""
        self._names.append((value, name))

    def name_id(self, number: int, name: str) -> None:
        self._names += [(str(number), name), (f"{number:x}", name)]

    def line(self, text: str, command: str) -> str:
        text = re.sub(r"\b(Member|cluster) +(?=[0-9a-f])", r"\1 ", text)  # ids are padded there
        for value, name in self._names:
            text = text.replace(value, name)
        text = re.sub(r'("?\b(?:raft_?term|RaftTerm)"? ?: ?)\d+', r"\1<term>", text, flags=re.IGNORECASE)
        text = re.sub(
            r'("?\b(?:raft_?(?:applied_?)?index|dbSize(?:InUse)?)"? ?: ?)\d+', r"\1<n>", text, flags=re.IGNORECASE
        )
        text = re.sub(r'("?Leader"? ?: ?)<m\d>', r"\1<leader>", text, flags=re.IGNORECASE)
        text = without_times(text)
        text = re.sub(rf"\b{re.escape(self._version)}\b", "<version>", text)
        if "endpoint status" in command:
            # version, size, leader, learner, term, index, applied index
            text = re.sub(r"<version>(\W+)[\d.]+ [kM]?B(\W+)(?:true|false)\b", r"<version>\1<n>\2<is leader>", text)
            text = re.sub(r"((?:true|false)\W+)\d+(\W+)\d+(\W+)\d+", r"\1<term>\2<n>\3<n>", text)
        if "timetolive" in command:
            text = re.sub(r'(remaining\(|"ttl":|"TTL" : )\d+', r"\1<seconds>", text)
            text = re.sub(r"(?<=keys\(\[).*(?=\]\))", lambda keys: " ".join(sorted(keys[0].split())), text)
        if "snapshot status" in command:
            # revision and format are compared; what else is in a file, and so its hash and size, is each server's own
            text = re.sub(r'("(?:totalKey|totalSize|Keys|Size|hash)" ?: ?)\d+', r"\1<n>", text, flags=re.IGNORECASE)
            text = re.sub(r"[0-9a-f]+(\W+\d+\W+)\d+(\W+)[\d.]+ [kM]?B", r"<hash>\1<n>\2<n>", text)
        if "hashkv" in command:
            text = re.sub(r'((?:"?hash"? ?: ?)|<client\d>[, |]+)(\d+)', self._hash, text, flags=re.IGNORECASE)
        if text.startswith(("|", "+")) and text.endswith(("|", "+")):
            text = re.sub(r"-+", "-", re.sub(r" +", " ", text))  # a table's widths follow from the values
        return text

    def _hash(self, match: re.Match[str]) -> str:
        # Each store has a hash function of its own; that two of them agree, or not, is what must be seen.
        name = self._hashes.setdefault(match[2], f"<hash{len(self._hashes) + 1}>")
        return f"{match[1]}{name}"


def without_times(text: str) -> str:
    """How long something took, as Go prints it; seconds without a fraction are somebody's TTL."""
    return re.sub(r"(?<=took = )[\d.]+s|\b\d+\.\d+s\b|\b\d+(?:\.\d+)?[mµn]s\b", "<time>", text)


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
        logins = sum(argument.startswith("--user") for argument in arguments)  # a message of their own, sent first
        self._gate.wait_frames(logins + max(1, len(stdin)))

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
        self._scratch = tempfile.TemporaryDirectory()
        self._normaliser.name(self._scratch.name, "<tmp>")
        self._new = ""  # the id of the member added last, in hexadecimal
        ports = free_ports(2 * ADDED_MAX)
        self._clients = [f"http://127.0.0.1:{port}" for port in ports[:ADDED_MAX]]
        self._peers = [f"http://127.0.0.1:{port}" for port in ports[ADDED_MAX:]]
        for number, (client, peer) in enumerate(zip(self._clients, self._peers, strict=True), 4):
            self._normaliser.name(client, f"<client{number}>")
            self._normaliser.name(peer, f"<peer{number}>")
        self._background: dict[str, tuple[str, Background]] = {}

    def play(self, script: str) -> str:
        """The transcript of a script."""
        out: list[str] = []
        try:
            for line, stdin in statements(script):
                out += [line, *(f"< {one}" for one in stdin)]
                verb, _, rest = line.partition(" ")
                match verb:
                    case "$" | "~":
                        out += self._run(rest, stdin, again=verb == "~")
                    case "^":
                        self._lead(f"{{id{rest}}}")
                    case "+":
                        self._join(rest)
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

    def _run(self, command: str, stdin: list[str], again: bool = False) -> list[str]:
        stdin = [self._placed(line) for line in stdin]
        text = "".join(re.sub(r"\{(.)\*(\d+)\}", lambda m: m[1] * int(m[2]), f"{line}\n") for line in stdin)
        arguments = self._arguments(command)
        deadline = time.monotonic() + AGAIN_SECONDS
        while True:
            done = run_etcdctl(self._etcdctl, arguments, self._cluster.client_urls[0], text)
            if command.startswith("etcdctl lease grant"):
                self._normaliser.name_lease(done.stdout)
            if not again or time.monotonic() > deadline or not any(reason in done.stderr for reason in AGAIN):
                break
            time.sleep(0.2)
        added = re.search(r"Member +([0-9a-f]+) added", done.stdout) or re.search(r'"member":\{"ID":(\d+)', done.stdout)
        if added is not None:
            number = int(added[1], 16 if "Member" in added[0] else 10)
            self._new = f"{number:x}"
            self._normaliser.name_id(number, "<new>")
        return self._written(command, done.stdout.splitlines(), done.stderr, done.returncode)

    def _placed(self, text: str) -> str:
        """With what stands for the names in {}."""
        urls = self._cluster.client_urls
        clients, peers = [*urls, *self._clients], [*self._cluster.peer_urls, *self._peers]
        places = {f"{{m{number}}}": url for number, url in enumerate(clients, 1)} | {"{all}": ",".join(urls)}
        places |= {f"{{peer{number}}}": url for number, url in enumerate(peers, 1)}
        places |= self._normaliser.ids | {"{new}": self._new, "{tmp}": self._scratch.name}
        for place, value in (places | self._normaliser.leases).items():
            text = text.replace(place, value)
        return text

    def _arguments(self, command: str) -> list[str]:
        arguments = shlex.split(self._placed(command))
        assert arguments[0] == "etcdctl", f"a script runs etcdctl only: {command}"
        return arguments[1:]

    def _written(self, command: str, stdout: list[str], stderr: str, code: int) -> list[str]:
        # The Go client logs its retries as JSON lines, how many there are depends on timing; snapshots log with a time.
        errors = [line for line in stderr.splitlines() if not re.match(r'\{"level":|\d{4}-\d\d-\d\dT', line)]
        if "NAME:" in stdout:
            stdout = ["<usage>"]  # etcdctl's help: not ours to check, nor to keep here
        if command.startswith("etcdctl member"):
            stdout = self._by_name(stdout)
        line: Callable[[str], str] = lambda text: self._normaliser.line(text, command)  # noqa: E731
        out = [f"| {line(text)}" for text in stdout] + [f"! {line(text)}" for text in errors]
        return [*out, f"= {code}"] if code else out

    def _by_name(self, stdout: list[str]) -> list[str]:
        """Members in the order of their names, however their ids are."""
        named: Callable[[str], str] = lambda text: self._normaliser.line(text, "")  # noqa: E731
        if len(stdout) == 1 and stdout[0].startswith("{"):
            answer = json.loads(stdout[0])
            answer["members"].sort(key=lambda member: named(str(member["ID"])))
            return [json.dumps(answer, separators=(",", ":"))]
        rows = [at for at, text in enumerate(stdout) if re.match(r"(\| +)?[0-9a-f]+(,| +\|)", text)]
        ordered = sorted([stdout[at] for at in rows], key=named)
        for at, text in zip(rows, ordered, strict=True):
            stdout[at] = text
        cluster = re.compile(r'(ETCD_INITIAL_CLUSTER=")([^"]*)(")')
        return [cluster.sub(lambda m: m[1] + ",".join(sorted(m[2].split(","))) + m[3], text) for text in stdout]

    def _lead(self, place: str) -> None:
        everybody = ",".join(self._cluster.client_urls)
        done = run_etcdctl(self._etcdctl, ["move-leader", self._normaliser.ids[place]], everybody)
        assert done.returncode == 0, done.stderr

    def _revision(self, endpoint: str = "") -> int:
        """The newest one that a member has; 0 when it does not answer."""
        command = ["endpoint", "status", "-w", "json"]
        done = run_etcdctl(self._etcdctl, command, endpoint or self._cluster.client_urls[0])
        return int(json.loads(done.stdout)[0]["Status"]["header"]["revision"]) if done.returncode == 0 else 0

    def _join(self, name: str) -> None:
        self._cluster.join(name, self._clients[0], self._peers[0])
        deadline = time.monotonic() + TIMEOUT
        while True:
            listed = run_etcdctl(self._etcdctl, ["member", "list"], self._cluster.client_urls[0]).stdout
            if f", started, {name}, " in listed and self._revision(self._clients[0]) == self._revision():
                return
            assert time.monotonic() < deadline, f"{name} does not join:\n{listed}"
            time.sleep(0.1)


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
