"""How a member joins a running cluster: --initial-cluster-state=existing with an empty data directory.

Somebody has added it before (`kvctl member add`), so the cluster knows its peer URLs and has given it an id.
It asks the others of --initial-cluster who belongs to the cluster, and finds itself by its peer URLs. From
the answer it takes its id, the cluster's, and the rows that every store of this cluster began with; then it
starts with an empty log, and the leader brings the rest.

A member whose row says that it has started before has lost its data directory, and must not come back under
this id: it would have forgotten its votes and what it acknowledged.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from kvstore.config import ServerConfig
from kvstore.errors import KvError
from kvstore.pb.peer_pb2 import MemberView
from kvstore.server.leader_calls import ChannelFactory, ask_members
from kvstore.server.peers import Told
from kvstore.state.cluster import Member

log = structlog.get_logger(__name__)

ANSWER_SECONDS: Final = 2.0  # one member's
ROUNDS: Final = 3  # of asking all, a second apart: they may be starting just now


class JoinRefused(Exception):
    """This process cannot join. The text says why, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """What a member that joins has to know."""

    cluster_id: int
    member_id: int
    first: list[Member]  # whom the cluster began with
    told: Told


async def ask_to_join(config: ServerConfig, channel_factory: ChannelFactory) -> Joining:
    """Raises JoinRefused."""
    urls = _others(config)
    if not urls:
        raise JoinRefused(
            "--initial-cluster-state=existing needs --initial-cluster with this member and those that it joins"
        )
    for attempt in range(ROUNDS):
        answers = await _ask(urls, channel_factory)
        if answers:
            return _joining(config, answers)
        log.warning("no member answers yet", urls=urls)
        if attempt + 1 < ROUNDS:
            await asyncio.sleep(1)
    raise JoinRefused(
        f"none of {', '.join(urls)} answers, which --initial-cluster names as members of the running cluster; "
        "start them or correct it"
    )


async def hear(config: ServerConfig, cluster_id: int, channel_factory: ChannelFactory) -> Told | None:
    """What the others of --initial-cluster say, if they say something: for a start far behind them."""
    answers = [answer for answer in await _ask(_others(config), channel_factory) if answer.cluster_id == cluster_id]
    return Told(max(answers, key=_index)) if answers else None


def _others(config: ServerConfig) -> list[str]:
    own = config.initial_advertise_peer_urls
    return [url for _, urls in config.initial_cluster for url in urls if url not in own]


async def _ask(urls: list[str], channel_factory: ChannelFactory) -> list[MemberView]:
    async def one(url: str) -> MemberView | None:
        try:
            view = MemberView.FromString(await ask_members(url, ANSWER_SECONDS, channel_factory))
            Told(view)  # whatever cannot be true is no answer
        except (KvError, DecodeError, ValueError) as error:
            log.debug("no answer about the members", url=url, reason=str(error))
            return None
        return view

    answers = await asyncio.gather(*[one(url) for url in urls])
    return [answer for answer in answers if answer is not None]


def _index(answer: MemberView) -> int:
    return answer.index


def _joining(config: ServerConfig, answers: list[MemberView]) -> Joining:
    clusters = {answer.cluster_id for answer in answers}
    if len(clusters) > 1:
        raise JoinRefused(
            f"--initial-cluster names members of different clusters: {', '.join(f'{one:x}' for one in clusters)}"
        )
    newest = max(answers, key=_index)
    urls = sorted(config.initial_advertise_peer_urls)
    own = next((row for row in newest.members if sorted(row.member.peerURLs) == urls), None)
    if own is None:
        known = "; ".join(
            f"{row.member.name or f'{row.member.ID:x}'}={','.join(row.member.peerURLs)}" for row in newest.members
        )
        raise JoinRefused(
            f"no member of cluster {newest.cluster_id:x} has the peer URL {','.join(urls)}; its members are {known}. "
            f"Add this one first (kvctl member add {config.name} --peer-urls={','.join(urls)}), or correct "
            "--initial-advertise-peer-urls"
        )
    if own.instance:
        raise JoinRefused(
            f"member {own.member.ID:x} ({own.member.name}) has started before, from another data directory: what it "
            "had acknowledged is lost, so it must stay out. Put the old directory back; or remove this member and "
            f"add it again: kvctl member remove {own.member.ID:x}, then kvctl member add"
        )
    return Joining(
        cluster_id=newest.cluster_id,
        member_id=own.member.ID,
        first=[Member.of(one) for one in newest.first],
        told=Told(newest),
    )
