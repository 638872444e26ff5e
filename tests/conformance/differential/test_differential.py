"""We answer as a real etcd does: random requests to both, answers and watch events compared one by one.

The slice here is seeded; `python -m tests.conformance.differential` goes on with other seeds. What may differ, and
why, is the table of runner.py. A failure prints the seed, the least steps that still differ and both answers: keep
those steps in FOUND, which is played first.
"""

from collections.abc import Iterator

import pytest

from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import v3election_pb2 as pb_election
from kvstore.pb import v3lock_pb2 as pb_lock
from kvstore.pb.auth_pb2 import Permission
from tests.conformance.differential import record
from tests.conformance.differential.cases import BASE, LEASE, MEMBER, SYNC, WATCH, Case, Names, Step
from tests.conformance.differential.coverage import Coverage
from tests.conformance.differential.generator import Generator
from tests.conformance.differential.known import Seen, excuse
from tests.conformance.differential.runner import Pair
from tests.conformance.differential.servers import JUDGES, judge_is_here, running_pair
from tests.conformance.differential.shrink import report, shrink

SEEDS = {("3.5.1", 1): range(60), ("3.4.23", 1): range(60, 100), ("3.5.1", 3): range(100, 130)}  # about 20 s each


def put(key: bytes, value: bytes = b"") -> pb.RequestOp:
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


def delete(key: bytes, range_end: bytes = b"") -> pb.RequestOp:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=range_end))


def nested(*ops: pb.RequestOp) -> pb.RequestOp:
    return pb.RequestOp(request_txn=pb.TxnRequest(success=ops))


def watch(**fields: object) -> Step:
    return Step(WATCH, pb.WatchRequest(create_request=pb.WatchCreateRequest(**fields)))  # type: ignore[arg-type]


END = Step(SYNC, pb.WatchProgressRequest())

SIGNED_IN: Case = [  # ann, who may read and write [b, c)
    *(Step("UserAdd", pb.AuthUserAddRequest(name=name, password=word)) for name, word in (("root", "r"), ("ann", "p"))),
    Step("UserGrantRole", pb.AuthUserGrantRoleRequest(user="root", role="root")),
    Step("RoleAdd", pb.AuthRoleAddRequest(name="b")),
    Step(
        "RoleGrantPermission",
        pb.AuthRoleGrantPermissionRequest(name="b", perm=Permission(permType="READWRITE", key=b"b", range_end=b"c")),
    ),
    Step("UserGrantRole", pb.AuthUserGrantRoleRequest(user="ann", role="b")),
    Step("AuthEnable", pb.AuthEnableRequest()),
    *(
        Step("Authenticate", pb.AuthenticateRequest(name=name, password=word))
        for name, word in (("root", "r"), ("ann", "p"))
    ),
]

FOUND: dict[str, Case] = {
    # An open range end is a plain string in the rule against duplicate keys.
    "delete everything from a key on and put it again": [
        watch(key=b"\0", range_end=b"\0", prev_kv=True),
        Step("Txn", pb.TxnRequest(success=[delete(b"a", b"\0"), put(b"ab")])),
        Step("Txn", pb.TxnRequest(success=[delete(b"a", b"\0"), nested(put(b"ab", b"1"))])),
        END,
    ],
    # The limit takes the first keys, and only these are sorted.
    "sort target without an order, cut by the limit": [
        Step("Put", pb.PutRequest(key=b"b")),
        Step("Put", pb.PutRequest(key=b"a")),
        Step("Range", pb.RangeRequest(key=b"a", range_end=b"\0", limit=1, sort_target=pb.RangeRequest.MOD)),
        Step("Range", pb.RangeRequest(key=b"a", range_end=b"\0", limit=2, sort_target=pb.RangeRequest.MOD)),
    ],
    # The revision is looked at first. (etcd 3.5 is not asked: the expected answer is that of 3.7.)
    "watch of an empty range from a negative revision": [watch(key=b"c", range_end=b"a", start_revision=-1)],
    # A Range of its own would take it for the newest revision.
    "a range at a negative revision in a txn": [
        Step("Range", pb.RangeRequest(key=b"a", revision=-1)),
        Step("Txn", pb.TxnRequest(success=[pb.RequestOp(request_range=pb.RangeRequest(key=b"a", revision=-1))])),
    ],
    # What was before the first event is compacted.
    "prev_kv of a watch from the compact revision": [
        Step("Put", pb.PutRequest(key=b"a", value=b"1")),
        Step("Put", pb.PutRequest(key=b"a", value=b"2")),
        Step("Compact", pb.CompactionRequest(revision=BASE + 2)),
        watch(key=b"a", prev_kv=True, start_revision=BASE + 2),
        END,
    ],
    # prev_kv is of the revision before, not of the change before.
    "put and delete of a key in one revision": [
        watch(key=b"\0", range_end=b"\0", prev_kv=True),
        Step("Txn", pb.TxnRequest(success=[nested(put(b"a", b"1")), nested(delete(b"\0", b"\0"))])),
        Step("Put", pb.PutRequest(key=b"a", value=b"2")),
        Step("Txn", pb.TxnRequest(success=[nested(put(b"a", b"3")), nested(delete(b"a"))])),
        Step("Put", pb.PutRequest(key=b"a", value=b"4")),
        Step("Txn", pb.TxnRequest(success=[delete(b"a", b"\0"), nested(put(b"a", b"5")), nested(delete(b"a"))])),
        watch(key=b"\0", range_end=b"\0", prev_kv=True, start_revision=BASE + 1),
        END,
    ],
    # Raft has yet to forget it, and says how far it is behind.
    "promote a learner that was removed": [
        Step("MemberAdd", pb.MemberAddRequest(peerURLs=["http://peer-1:7"], isLearner=True)),
        Step("MemberRemove", pb.MemberRemoveRequest(ID=MEMBER + 1)),
        Step("MemberPromote", pb.MemberPromoteRequest(ID=MEMBER + 1)),
    ],
    # Its text has a code in etcd's table, and is sent with another.
    "remove the only member": [Step("MemberRemove", pb.MemberRemoveRequest(ID=MEMBER))],
    # Who campaigns again and cannot proclaim its value resigns.
    "a campaign that cannot proclaim lets the next one go on": [
        Step("LeaseGrant", pb.LeaseGrantRequest(ID=1, TTL=100)),
        Step("Put", pb.PutRequest(key=b"l/1267")),
        Step("Campaign", pb_election.CampaignRequest(name=b"l", lease=1)),
        Step("Campaign", pb_election.CampaignRequest(name=b"l", lease=0x1267, value=b"1")),
    ],
    # An alarm is looked at before the request itself.
    "a lease that lives too long, under an alarm": [
        Step("Alarm", pb.AlarmRequest(action=pb.AlarmRequest.ACTIVATE, alarm=pb.CORRUPT)),
        Step("LeaseGrant", pb.LeaseGrantRequest(ID=1, TTL=(1 << 63) - 1)),
    ],
    # It is no password: nobody logs in by an empty one.
    "a password is changed to an empty one": [
        *SIGNED_IN,
        Step("UserChangePassword", pb.AuthUserChangePasswordRequest(name="ann"), user="root"),
        Step("Authenticate", pb.AuthenticateRequest(name="ann")),
        Step("Authenticate", pb.AuthenticateRequest(name="ann", password="p")),
    ],
    # What is wrong with a request itself is told first, also to nobody.
    "wrong requests of callers who may not call": [
        *SIGNED_IN,
        *(
            Step(call, message, user=user)
            for user in ("", "?", "ann")
            for call, message in (
                ("Put", pb.PutRequest()),
                ("Range", pb.RangeRequest()),
                ("DeleteRange", pb.DeleteRangeRequest()),
                ("Txn", pb.TxnRequest(success=[put(b"a"), put(b"a")])),
                ("MemberAdd", pb.MemberAddRequest(peerURLs=["foo"], isLearner=True)),
            )
        ),
    ],
    # Its key is looked for, and not whether the permission reaches as far as the end.
    "ranges that are none, of somebody with one permission": [
        *SIGNED_IN,
        *(
            Step("Range", pb.RangeRequest(key=key, range_end=end), user="ann")
            for key, end in ((b"b", b"a"), (b"b", b"b"), (b"ba", b"b"), (b"c", b"a"), (b"a", b"a"))
        ),
    ],
    # The Go client in etcd, which makes the requests of a recipe, drops the codes.
    "recipes of nobody": [
        *SIGNED_IN,
        *(
            Step(call, message, user=user)
            for user in ("", "?")
            for call, message in (
                ("Lock", pb_lock.LockRequest(name=b"l")),
                ("Unlock", pb_lock.UnlockRequest(key=b"l/1")),
                ("Campaign", pb_election.CampaignRequest(name=b"l")),
                ("Proclaim", pb_election.ProclaimRequest()),
                ("Leader", pb_election.LeaderRequest(name=b"l")),
            )
        ),
    ],
}
OF_ONE_MEMBER = {"promote a learner that was removed", "remove the only member"}


@pytest.fixture(scope="module", params=list(SEEDS), ids=lambda param: f"etcd {param[0]} and {param[1]} of ours")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    judge, members = request.param
    if not judge_is_here(judge):
        pytest.skip(f"etcd {judge} is not installed: {JUDGES[judge]}")
    with running_pair(tmp_path_factory.mktemp("differential"), members, judge) as pair:
        yield pair


@pytest.mark.parametrize("name", FOUND)
def test_what_once_differed(pair: Pair, name: str) -> None:
    if pair.members > 1 and name in OF_ONE_MEMBER:
        pytest.skip("members are compared between clusters of one")
    pair.play(FOUND[name])


def test_random_requests(pair: Pair) -> None:
    for seed in SEEDS[pair.judge, pair.members]:
        found = report(pair, Generator(seed, pair.served, pair.members).case())
        assert not found, f"seed {seed}\n{found}"
    print(pair.coverage.report(pair.judge))


@pytest.mark.parametrize("pair", [("3.5.1", 1)], indirect=True)
def test_a_difference_is_found_and_shrunk(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """That nothing differs says little unless something would be seen: here one side forgets a field."""
    ask = pair.ours.start

    def forgetful(step: Step, names: Names):  # type: ignore[no-untyped-def]
        if isinstance(step.message, pb.PutRequest) and step.message.key == b"b":
            step = Step("Put", pb.PutRequest(key=b"b"))
        return ask(step, names)

    monkeypatch.setattr(pair.ours, "start", forgetful)
    case = [
        Step("Put", pb.PutRequest(key=b"a", value=b"1")),
        Step("Put", pb.PutRequest(key=b"b", value=b"1")),
        Step("Range", pb.RangeRequest(key=b"a", limit=5)),
        Step("Range", pb.RangeRequest(key=b"b", limit=5, revision=BASE + 2)),
    ]
    found = report(pair, case)
    assert "-- etcd" in found
    assert found.count("Step(") == 2, found
    assert "limit" not in found.partition("step")[0], found


def test_the_page_is_made_from_the_results() -> None:
    assert record.PAGE.read_text() == record.page()


def test_texts_are_counted_by_what_follows_the_code() -> None:
    coverage = Coverage()
    for text in (
        *("UNAVAILABLE: etcdserver: no leader", "UNKNOWN: election: no leader"),
        *("UNKNOWN: context deadline exceeded", "RangeResponse {\n}"),
    ):
        coverage.see(text)
    assert dict(coverage.errors) == {
        **{"no leader": 1, "UNKNOWN: election: no leader": 1},
        **{"context deadline exceeded": 1},
    }


@pytest.mark.parametrize(
    ("ours", "row"),
    [
        ('RangeResponse {\nkvs {\nkey: "b"\n}\ncount: 9\n}', "ties"),
        ('RangeResponse {\nkvs {\nkey: "b"\n}\ncount: 8\n}', ""),
        ("RangeResponse {\ncount: 9\n}", ""),
        ("PERMISSION_DENIED: etcdserver: permission denied", ""),
    ],
)
def test_other_keys_behind_a_limit_may_differ_and_nothing_else(ours: str, row: str) -> None:
    message = pb.RangeRequest(key=b"a", limit=1, sort_target=pb.RangeRequest.VALUE)
    etcd = 'RangeResponse {\nkvs {\nkey: "a"\n}\ncount: 9\n}'
    assert excuse("3.5.1", Seen("Range", message, etcd, ours, 0)) == row


def test_the_same_seed_is_the_same_case() -> None:
    assert Generator(7).case() == Generator(7).case()
    assert Generator(7).case() != Generator(8).case()


def test_revisions_are_relative_to_the_start_of_a_case() -> None:
    compare = pb.Compare(key=b"a", mod_revision=BASE + 2)
    request = pb.TxnRequest(compare=[compare], success=[pb.RequestOp(request_range=pb.RangeRequest(revision=7))])
    found = Names(100).sent(request)
    assert isinstance(found, pb.TxnRequest)
    assert found.compare[0].mod_revision == 102
    assert found.success[0].request_range.revision == 7
    assert request.compare[0].mod_revision == BASE + 2


def test_ids_that_a_server_picks_are_the_same_in_every_play() -> None:
    names = Names(100, member_id=5)
    grant = pb.LeaseGrantRequest(ID=LEASE, TTL=7)
    assert names.sent(grant) == pb.LeaseGrantRequest(TTL=7)
    names.learn(LEASE, 0x7ABCDEF012345678)
    assert names.sent(pb.PutRequest(key=b"lock/%x" % LEASE, lease=LEASE)) == pb.PutRequest(
        key=b"lock/7abcdef012345678", lease=0x7ABCDEF012345678
    )
    assert names.seen(pb.DeleteRangeRequest(key=b"lock/7abcdef012345678")).key == b"lock/%x" % LEASE  # type: ignore[attr-defined]
    assert names.seen(pb.MemberRemoveRequest(ID=5)) == pb.MemberRemoveRequest(ID=MEMBER)


def test_shrinking_leaves_what_is_needed() -> None:
    case = [Step("Put", pb.PutRequest(key=b"%d" % number, prev_kv=True)) for number in range(20)]

    def fails(candidate: Case) -> bool:
        keys = [step.message.key for step in candidate if isinstance(step.message, pb.PutRequest)]
        return b"3" in keys and b"17" in keys

    assert shrink(case, fails) == [Step("Put", pb.PutRequest(key=b"3")), Step("Put", pb.PutRequest(key=b"17"))]
