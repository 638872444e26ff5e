"""What a case is made of, and the stand-ins in it for what only a play of it knows.

A case names revisions relative to the revision it starts at, and ids that a server picks by the order in which
they come: `BASE + n`, `LEASE + n`, `MEMBER + n`. `Names` puts the numbers of one side for them when a message is
sent, also in the keys of locks, which hold a lease's id in hex; and puts them back in what that side answers. So a
case means the same whenever it is played, on whatever side, and the answers of two sides can be compared as they are.
"""

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb.v3election_pb2 import CampaignRequest
from kvstore.pb.v3lock_pb2 import LockRequest

BASE: Final = 1 << 40
LEASE: Final = 1 << 44  # LEASE + n in a grant, a lock or a campaign: the server picks one, call it that
UNNAMED: Final = LEASE + 99  # the last that a server picked without a name in the case
MEMBER: Final = 1 << 45  # the member asked; MEMBER + n: added with PEER_URLS[n - 1]
LEADER: Final = 1 << 46  # the revision of the last campaign that was won
OWN_PEER_URL: Final = "http://own-peer:1"
OWN_CLIENT_URL: Final = "http://own-client:1"
TOKEN: Final = "a token"
MINORS: Final = {"<lowest>": -2, "<lower>": -1, "<own>": 0, "<higher>": 1}  # relative to that of a side's cluster
PEER_URLS: Final = [f"http://peer-{number}:7" for number in range(1, 13)]  # of members that are added

SYNC: Final = "Sync"  # wait until every watch has got what it is owed
EXPIRE: Final = "Expire"  # wait until a lease is gone on both sides
WATCH: Final = "Watch"
T = TypeVar("T")
_plays = itertools.count()


@dataclass(frozen=True)
class Step:
    """One thing to do on both sides. `call` is the name of an RPC, or SYNC, or EXPIRE.

    `client` is the connection; `user` whose token goes with it: the last that Authenticate gave to that name, or one
    that nobody ever got for "?".
    """

    call: str
    message: Message
    client: int = 0
    user: str = ""
    metadata: tuple[tuple[str, str], ...] = ()


Case = list[Step]


class Draw:
    """Choices that follow from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick(self, choices: list[T]) -> T:
        return self._random.choice(choices)

    def enum(self, numbers: list[int]) -> Any:
        """Numbers of an enum, known to it or not."""
        return self.pick(numbers)

    def number(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def weighted(self, choices: dict[str, float]) -> str:
        return self._random.choices(list(choices), list(choices.values()))[0]

    def revision(self) -> int:
        """Around the case's own revisions; sometimes long ago, far away or none at all."""
        if self.chance(0.1):
            return self.pick([1, -1, 0, 2, (1 << 63) - 1, -(1 << 63)])
        return BASE + self.pick([-3, -1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 10, 12, 15, 30])


class Names:
    """The numbers of one side in one play of a case."""

    def __init__(self, base: int, member_id: int = 0, peer_url: str = "", client_url: str = "") -> None:
        self.base = base
        self._numbers: dict[int, int] = {}  # stand-in -> this side's
        self._stand_ins: dict[int, int] = {}
        self._strings: dict[str, str] = {}  # this side's -> stand-in
        self._urls: dict[str, str] = {}  # stand-in -> this side's
        if member_id:
            self.learn(MEMBER, member_id)
            # An id is a hash of URLs and seconds: what was removed in this second could not come again.
            play = next(_plays)
            fresh = {url: f"http://127.{play >> 8 & 255}.{play & 255}.{n}:7" for n, url in enumerate(PEER_URLS, 1)}
            self._urls = {**fresh, OWN_PEER_URL: peer_url}
            self._strings = {client_url: OWN_CLIENT_URL, **{own: url for url, own in self._urls.items()}}
        self._tokens: dict[str, str] = {}  # user -> the last token
        self.auth_is_on = False
        self.auth_base = 0  # the revision of auth that the case starts at: nothing brings it back
        self.minor = 0  # of the cluster's version

    def learn(self, stand_in: int, number: int) -> None:
        self._numbers[stand_in] = number
        self._stand_ins[number] = stand_in

    def learn_leader(self, revision: int) -> None:
        self._numbers[LEADER] = revision

    def learn_token(self, user: str, token: str) -> None:
        self._tokens[user] = token
        self._strings[token] = TOKEN

    def metadata(self, step: Step) -> tuple[tuple[str, str], ...]:
        if not self.auth_is_on:
            return step.metadata  # see "token" in known.py
        token = "nobody.1" if step.user == "?" else self._tokens.get(step.user, "")
        return (*step.metadata, ("token", token)) if token else step.metadata

    def sent(self, message: Message) -> Message:
        """A copy with this side's numbers. A lease that is to be picked, and has not been yet, is 0."""
        copy = self._rewritten(message, self._number, self._sent_key, self._sent_string)
        if isinstance(copy, pb.LeaseGrantRequest) and LEASE <= copy.ID < MEMBER:
            copy.ID = 0
        elif isinstance(copy, (LockRequest, CampaignRequest)) and LEASE <= copy.lease < MEMBER:
            copy.lease = 0
        return copy

    def seen(self, message: Message) -> Message:
        """A copy of an answer with the case's stand-ins."""
        return self._rewritten(message, self._stand_in, self._seen_key, self._seen_string)

    def _sent_string(self, text: str) -> str:
        for version, distance in MINORS.items():
            text = text.replace(version, f"3.{self.minor + distance}")
        return self._urls.get(text, text)

    def _seen_string(self, text: str) -> str:
        """Alarms of Status name members in decimal."""
        found = self._strings.get(text, text)
        return re.sub(r"[0-9]{15,20}", lambda number: str(self._stand_in(int(number[0]))), found)

    def _number(self, number: int) -> int:
        if BASE // 2 < number < 2 * BASE:
            return number - BASE + self.base
        return self._numbers.get(number, number)

    def _stand_in(self, number: int) -> int:
        return self._stand_ins.get(number, number)

    def _sent_key(self, key: bytes) -> bytes:
        return self._replaced(key, self._numbers) if b"/" in key else key

    def _seen_key(self, key: bytes) -> bytes:
        return self._replaced(key, self._stand_ins) if b"/" in key else key

    def _replaced(self, key: bytes, numbers: dict[int, int]) -> bytes:
        def other(found: re.Match[bytes]) -> bytes:
            number = int(found[0], 16)
            return b"%x" % numbers[number] if number in numbers else found[0]

        return re.sub(rb"[0-9a-f]{12,16}", other, key) if numbers and len(key) < 1000 else key

    def _rewritten(
        self,
        message: Message,
        number: Callable[[int], int],
        key: Callable[[bytes], bytes],
        string: Callable[[str], str],
    ) -> Message:
        copy = type(message)()
        copy.CopyFrom(message)
        rewrite(
            copy,
            {
                FieldDescriptor.TYPE_INT64: number,
                FieldDescriptor.TYPE_UINT64: number,
                FieldDescriptor.TYPE_BYTES: key,
                FieldDescriptor.TYPE_STRING: string,
            },
        )
        return copy


def rewrite(message: Message, rules: dict[int, Callable[[Any], Any]]) -> None:
    """Replace every scalar of the types that have a rule, at all depths."""
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if field.is_repeated else [value]:
                rewrite(child, rules)
        elif (rule := rules.get(field.type)) is None:
            continue
        elif field.is_repeated:
            value[:] = [rule(one) for one in value]
        else:
            new = rule(value)
            if new != value:
                setattr(message, field.name, new)


def sync() -> Step:
    return Step(SYNC, pb.WatchProgressRequest())
