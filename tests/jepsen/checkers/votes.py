"""Elections, from what members have traced (--raft-trace) and what is on their disks when all is over.

one leader        in each term
one vote          of each member in each term, its own candidacy included, whatever it was restarted in between
remembered        who voted in a term and has entries of it on its disk, has the vote there too: it was saved before
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from raft.storage.dump import LogImage

VOTED, CANDIDATE, LEADER = "voted for n", "became candidate", "became leader"


@dataclass
class Voter:
    name: str
    trace: Iterable[str]  # lines
    log: LogImage | None = None


def check_votes(voters: list[Voter]) -> list[str]:
    complaints: list[str] = []
    leaders: dict[int, set[str]] = defaultdict(set)
    for voter in voters:
        votes: dict[tuple[str, int], set[str]] = defaultdict(set)  # by who gave them, and the term
        node = ""
        for line in voter.trace:
            event = json.loads(line)
            node, term, fact = event["node"], event["term"], event["fact"]
            if fact == LEADER:
                leaders[term].add(node)
            elif fact == CANDIDATE:
                votes[node, term].add(node)
            elif fact.startswith(VOTED):
                votes[node, term].add(fact.removeprefix(VOTED))
        for (_, term), given in sorted(votes.items()):
            if len(given) > 1:
                complaints.append(f"{voter.name} voted in term {term} for {sorted(given)}")
        if voter.log is not None:  # of whom it was at last: one that was replaced is another
            complaints += _forgotten(voter.name, votes.get((node, voter.log.last_term), set()), voter.log)
    for term, nodes in sorted(leaders.items()):
        if len(nodes) > 1:
            complaints.append(f"term {term} was led by {sorted(nodes)}")
    return complaints if leaders else [*complaints, "nobody has ever led"]


def _forgotten(name: str, given: set[str], log: LogImage) -> list[str]:
    """given: its votes in the term of its last entry."""
    state = log.hard_state
    if state.term < log.last_term:
        return [f"{name} has entries of term {log.last_term} on its disk, and remembers term {state.term}"]
    if state.term == log.last_term and given and f"{state.vote:x}" not in given:
        return [f"{name} voted in term {state.term} for {sorted(given)}, and remembers {state.vote:x}"]
    return []
