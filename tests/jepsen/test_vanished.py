"""Clients that go while nothing of theirs arrives any more, and never come back."""

import socket
import struct
from pathlib import Path

import pytest

from tests.e2e.cluster import Member, wait_for
from tests.jepsen.checkers.resources import use_of
from tests.jepsen.network import Network
from tests.jepsen.run import make_system
from tests.kvstore.rpc.raw import PING, PREFACE, SETTINGS, frame

GIVEN_UP_SECONDS = 60.0  # a member needs some 20; without a probe the kernel gives up after 15 minutes, or never


def connected(network: Network, member: Member) -> socket.socket:
    """A client of HTTP/2 whose settings the member has answered."""

    def connect() -> socket.socket:
        client = socket.create_connection((network.address[member.name], member.client_port), 5.0)
        client.sendall(PREFACE + frame(SETTINGS))
        assert client.recv(4096)
        return client

    return network.inside("clients", connect)


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("owed", [False, True], ids=["idle", "owed an answer"])
def test_a_vanished_client_is_given_up(netns: dict[str, str], tmp_path: Path, owed: bool) -> None:
    """Found by `set` x `clients-cut`: connections of dead clients stayed open, for 2 hours at worst."""
    with Network(["m1", "clients"]) as network, make_system(network, 1, tmp_path) as system:
        [member] = system.cluster.members
        member.wait_ready()
        before = use_of(member).sockets
        client = connected(network, member)
        wait_for(lambda: use_of(member).sockets > before, "the client's connection")
        if owed:
            network.cut({("m1", "clients")})
            client.sendall(frame(PING, payload=bytes(8)))
        network.cut({("m1", "clients"), ("clients", "m1")})
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, said once
        client.close()
        assert use_of(member).sockets > before
        wait_for(lambda: use_of(member).sockets == before, "the member notices that it is gone", GIVEN_UP_SECONDS)
