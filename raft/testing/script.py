"""Scripts: what the core does, as text that people write and review.

A script is a list of blocks: commands, a line of four dashes, and what happened. People write the
commands and the comments, the runner writes the rest; a change of behaviour is a diff.

    # a comment; on top of the file it states the claim
    cluster nodes=3
    campaign 1
    ----
    n1@0 became pre-candidate
    ...

    python -m raft.testing.script FILE...                print what the commands do now
    python -m raft.testing.script --rewrite FOLDER       write it into the files

Commands. A command in parentheses runs silently. Nodes are numbers; time passes only where it is said.

    cluster nodes=3 [learners=1] [leader=1] [election_ticks=10] [pre_vote=no] ... any field of Config
    campaign N            the election timeout of N passes
    tick N [TICKS]        time passes for N          advance TICKS     for all, and everything settles
    propose N TEXT...     one entry for each word    read N            ask for a read round
    transfer N [TO]       hand leadership over
    add N                 start a node with an empty disk
    change N WORDS        change members: +4 joins as a voter (or a learner becomes one), +4l as a learner, -2 leaves
    unreachable N         its driver says that the leader's process is gone
    arrive [HOW]          the oldest snapshot under way is there; broken: it is not; repeat: it will come once more
    work N                one Ready, whole           begin N / save N  its first half (messages leave), then the rest
    deliver [N]           all that is under way arrives (at N only)
    drop [N]              it is lost instead         repeat [N]        it arrives, and will arrive once more
    settle                work and deliver until nothing is left to do
    partition 1,2 3       groups that hear only each other      heal
    crash N / restart N   what was not saved is lost
    compact N [INDEX]     the log is cut up to what every member has, or to INDEX
    status [N]            roles and log pointers     log N             the entries of its log
    state N               what its state machine has applied

Lines: `n1@2 fact` is a trace (node, term), `->` a message that left, `-x` one that the network lost; an
InstallSnapshot stands for the transfer of the whole snapshot.
"""

import sys
from pathlib import Path
from typing import Any, Final, final

from raft.config import Config
from raft.core import describe
from raft.core.ports import Tracer
from raft.errors import RaftError
from raft.messages import Message, ReadIndex, ReadIndexResponse
from raft.ready import Ready
from raft.testing.cluster import Cluster
from raft.types import Configuration, ConfigurationChange, EntryKind, NodeId, Role, Term

RULE: Final = "----"
_SWITCHES: Final = {"yes": True, "no": False}


class ScriptError(Exception):
    """The script cannot be understood."""


@final
class _Lines(Tracer):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def emit(self, node_id: NodeId, term: Term, fact: str) -> None:
        self.lines.append(f"{describe.node(node_id)}@{term} {fact}")


@final
class Runner:
    """Runs the commands of one script against one cluster."""

    def __init__(self) -> None:
        self._out = _Lines()
        self._cluster: Cluster | None = None
        self._contexts: dict[int, int] = {}  # context -> the order in which the script saw it

    def run(self, command: str) -> list[str]:
        """Run one command; returns the lines that it caused."""
        silent = command.startswith("(") and command.endswith(")")
        words = command.strip("()").split()
        start = len(self._out.lines)
        handler = getattr(self, f"_do_{words[0]}", None)
        if handler is None:
            raise ScriptError(f"unknown command: {command}")
        try:
            handler(*words[1:])
        except RaftError as error:
            self._say(f"{type(error).__name__}: {error}")
        except (TypeError, ValueError, LookupError) as error:
            raise ScriptError(f"{command}: {error}") from error
        lines = self._out.lines[start:]
        return [] if silent else lines

    def _say(self, line: str) -> None:
        self._out.lines.append(line)

    @property
    def _running(self) -> Cluster:
        if self._cluster is None:
            raise ScriptError("the first command is `cluster`")
        return self._cluster

    def _do_cluster(self, *settings: str) -> None:
        values = dict(setting.split("=", 1) for setting in settings)
        size = int(values.pop("nodes", "3"))
        learners = int(values.pop("learners", "0"))
        leader = int(values.pop("leader", "0"))
        # Config checks what the script writes; mypy cannot.
        fields: dict[str, Any] = {
            name: _SWITCHES[text] if text in _SWITCHES else int(text) for name, text in values.items()
        }
        config = Config(node_id=1, **fields)
        voters = tuple(range(1, size - learners + 1))
        configuration = Configuration(voters, tuple(range(size - learners + 1, size + 1)))
        self._cluster = Cluster(configuration=configuration, config=config, tracer=self._out)
        self._cluster.on_message = self._message
        self._cluster.on_save = self._saved
        if leader:
            start = len(self._out.lines)
            self._cluster.campaign(leader)
            self._cluster.settle()
            del self._out.lines[start:]

    def _do_campaign(self, node: str) -> None:
        self._running.campaign(int(node))

    def _do_tick(self, node: str, ticks: str = "1") -> None:
        self._running.tick(int(node), int(ticks))

    def _do_advance(self, ticks: str) -> None:
        self._running.advance(int(ticks))

    def _do_propose(self, node: str, *data: str) -> None:
        self._running.propose(int(node), [word.encode() for word in data])

    def _do_read(self, node: str) -> None:
        context = self._running.read(int(node))
        self._say("no leader is known" if context is None else f"read {self._context(context)}")

    def _do_transfer(self, node: str, to: str = "0") -> None:
        self._running.transfer(int(node), int(to))

    def _do_add(self, node: str) -> None:
        self._running.add(int(node))

    def _do_change(self, node: str, *words: str) -> None:
        joining = [word[1:] for word in words if word.startswith("+")]
        change = ConfigurationChange(
            voters=tuple([int(word) for word in joining if not word.endswith("l")]),
            learners=tuple([int(word[:-1]) for word in joining if word.endswith("l")]),
            removed=tuple([int(word[1:]) for word in words if word.startswith("-")]),
        )
        self._running.change(int(node), change)

    def _do_unreachable(self, node: str) -> None:
        self._running.node(int(node)).leader_unreachable()

    def _do_arrive(self, how: str = "") -> None:
        if how == "repeat":
            self._running.transfers.append(self._running.transfers[0])
        self._running.arrive(broken=how == "broken")

    def _do_work(self, node: str) -> None:
        self._running.work(int(node))
        self._report_reads()

    def _do_begin(self, node: str) -> None:
        self._running.begin(int(node))
        self._report_reads()

    def _do_save(self, node: str) -> None:
        self._running.save(int(node))

    def _do_settle(self) -> None:
        self._running.settle()
        self._report_reads()

    def _do_deliver(self, node: str = "0") -> None:
        for message in self._take(int(node)):
            self._running.step(message)

    def _do_repeat(self, node: str = "0") -> None:
        messages = self._take(int(node))
        self._running.network.extend(messages)
        for message in messages:
            self._running.step(message)

    def _do_drop(self, node: str = "0") -> None:
        for message in self._take(int(node)):
            self._say(f"lost: {self._text(message)}")

    def _do_partition(self, *groups: str) -> None:
        self._running.partition(*[[int(node) for node in group.split(",")] for group in groups])

    def _do_heal(self) -> None:
        self._running.heal()

    def _do_crash(self, node: str) -> None:
        self._running.crash(int(node))

    def _do_restart(self, node: str) -> None:
        self._running.restart(int(node))

    def _do_compact(self, node: str, index: str = "") -> None:
        compacted = self._running.compact(int(node), int(index) if index else None)
        self._say(f"{describe.node(int(node))} log starts after {compacted}")

    def _do_state(self, node: str) -> None:
        self._say(" ".join([data.decode() for data in self._running.state(int(node))]) or "(empty)")

    def _do_log(self, node: str) -> None:
        log = self._running.node(int(node)).raft.log
        found = log.entries(log.first_index, log.last_index, 2**62) if log.last_index >= log.first_index else []
        words = [
            f"{e.index}@{e.term}:{e.data.decode() if e.kind is EntryKind.COMMAND else e.kind.name.lower()}"
            for e in found
        ]
        self._say(" ".join(words) or "(empty)")

    def _do_status(self, node: str = "0") -> None:
        for node_id in [int(node)] if int(node) else list(self._running.members):
            if self._running.members[node_id].raw is None:
                self._say(f"{describe.node(node_id)} is down")
                continue
            status = self._running.node(node_id).status()
            self._say(
                f"{describe.node(node_id)}@{status.term} {describe.ROLES[status.role]}"
                f" leader={describe.node(status.leader_id)} vote={describe.node(status.vote)}"
                f" commit={status.commit} applied={status.applied} last={status.last_index}@{status.last_term}"
            )
            if status.configuration != self._running.configuration:
                self._say(f"  {describe.configuration(status.configuration)}")
            if status.role is Role.LEADER:
                for peer, progress in status.progress.items():
                    if peer != node_id:
                        self._say(
                            f"  {describe.node(peer)} {describe.STATES[progress.state]}"
                            f" match={progress.match_index} next={progress.next_index}"
                        )

    def _take(self, to: NodeId) -> list[Message]:
        network = self._running.network
        taken = [message for message in network if to in (0, message.to)]
        network[:] = [message for message in network if to not in (0, message.to)]
        return taken

    def _message(self, message: Message, lost: bool) -> None:
        text = self._text(message)
        self._say(text.replace(" -> ", " -x ", 1) if lost else text)

    def _text(self, message: Message) -> str:
        text = describe.message(message)
        if isinstance(message, (ReadIndex, ReadIndexResponse)):
            text = text.replace(str(message.context), str(self._context(message.context)))
        return text

    def _saved(self, node_id: NodeId, ready: Ready) -> None:
        facts = []
        if ready.snapshot is not None:
            facts.append(f"snapshot {ready.snapshot.index}@{ready.snapshot.term}")
        if ready.hard_state is not None and ready.must_sync:
            facts.append(f"term={ready.hard_state.term} vote={describe.node(ready.hard_state.vote)}")
        if ready.entries:
            facts.append(describe.entries(ready.entries))
        if facts:
            self._say(f"{describe.node(node_id)} saves {' '.join(facts)}")

    def _report_reads(self) -> None:
        for node_id, member in self._running.members.items():
            for context, index in member.reads.items():
                self._say(f"{describe.node(node_id)} read {self._context(context)} may run at {index}")
            member.reads.clear()

    def _context(self, context: int) -> int:
        return self._contexts.setdefault(context, len(self._contexts) + 1)


def run_script(text: str) -> str:
    """The script with its outputs written anew. An output ends at the next empty line."""
    runner = Runner()
    out: list[str] = []
    commands: list[str] = []
    in_output = False
    for line in text.splitlines():
        if in_output and line:
            continue  # what an earlier run wrote
        in_output = False
        out.append(line)
        if line == RULE:
            for command in commands:
                out.extend(runner.run(command))
            commands = []
            in_output = True
        elif line and not line.startswith("#"):
            commands.append(line)
    if commands:
        raise ScriptError(f"no {RULE} after: {commands[0]}")
    return "\n".join(out).rstrip("\n") + "\n"


def main(arguments: list[str]) -> int:
    rewrite = "--rewrite" in arguments
    paths: list[Path] = []
    for name in arguments:
        if name != "--rewrite":
            path = Path(name)
            paths.extend(sorted(path.glob("*.txt")) if path.is_dir() else [path])
    if not paths:
        print(__doc__)
        return 2
    for path in paths:
        text = run_script(path.read_text())
        if rewrite:
            path.write_text(text)
        else:
            print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
