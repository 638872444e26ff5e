"""TLS on every port of three processes: who is let in, who is not, and who finds it out."""

import http.client
import ipaddress
import json
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from kvstore.pb import rpc_pb2, rpc_pb2_grpc
from kvstore.rpc import FRONTS
from tests.certificates import Certificates, Pair, serial_of
from tests.e2e.cluster import READY, Cluster, Member, clean_environment, tls_flags, wait_for
from tests.kvstore.client.clusters import BIN
from tests.ports import free_ports

TOOLS = ["etcdctl", "kvctl"]


def front_exists(name: str) -> bool:
    """The nghttp2 front needs its library, and all of its parts."""
    if name == "grpcio":
        return True
    try:
        import kvstore.rpc.nghttp2.channel
        import kvstore.rpc.nghttp2.front
        import kvstore.rpc.nghttp2.server  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest) -> str:
    if not front_exists(request.param):
        pytest.skip(f"{request.param} cannot be loaded")
    return str(request.param)


@pytest.fixture
def own(tmp_path: Path) -> Certificates:
    """A set that a test may change."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    return Certificates(folder)


def flags_of(front: str) -> list[str]:
    """grpcio cannot ask whether a peer's certificate is of its address."""
    return [f"--rpc={front}", *(["--peer-skip-client-san-verification"] if front == "grpcio" else [])]


def tool(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / name), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean_environment(), **environment},
    )


def show(certificates: Certificates, who: str = "client") -> list[str]:
    pair = getattr(certificates, who)
    return [f"--cacert={certificates.ca}", f"--cert={pair.cert}", f"--key={pair.key}"]


def get(url: str, certificates: Certificates, who: str | Pair | None = "client") -> tuple[int, str]:
    """By HTTP/1.1: status and body. Raises OSError."""
    context = ssl.create_default_context(cafile=certificates.ca)
    if who is not None:
        pair = getattr(certificates, who) if isinstance(who, str) else who
        context.load_cert_chain(pair.cert, pair.key)
    try:
        with urllib.request.urlopen(url, context=context, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_three_members_let_in_who_shows_a_certificate(
    front: str, make_cluster: Callable[..., Cluster], certificates: Certificates
) -> None:
    with make_cluster(3, tls=certificates, flags=flags_of(front)) as cluster:
        endpoints = f"--endpoints={','.join(cluster.endpoints)}"
        for name in TOOLS:
            assert tool(name, endpoints, *show(certificates), "put", name, "v").stdout == "OK\n"
            assert tool(name, endpoints, *show(certificates), "get", name).stdout == f"{name}\nv\n"
            health = tool(name, endpoints, *show(certificates), "endpoint", "health", "--cluster")
            assert health.returncode == 0, health
        # Without a scheme the flags are enough; and they are environment variables too.
        bare = f"--endpoints={cluster.members[0].target}"
        pair = certificates.client
        variables = {"ETCDCTL_CACERT": certificates.ca, "ETCDCTL_CERT": pair.cert, "ETCDCTL_KEY": pair.key}
        found = tool("kvctl", bare, "get", "kvctl", **{name: str(value) for name, value in variables.items()})
        assert found.stdout == "kvctl\nv\n", found

        # A leader that goes is replaced: members reach each other over TLS in every direction.
        leader = cluster.wait_leader()
        leader.kill()
        cluster.wait_leader(other_than=leader)
        leader.start()
        leader.wait_ready()
        request = rpc_pb2.RangeRequest(key=b"etcdctl", serializable=True)
        assert wait_for(lambda: cluster.kv(leader).Range(request, timeout=5).kvs, "the restarted member has the key")


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["ca"],
        ["ca", "other"],
        ["other_ca", "client"],
    ],
    ids=["plain", "without a certificate", "certificate of another authority", "believes another authority"],
)
def test_who_is_not_let_in(
    front: str, one_secure: Callable[[str], Member], certificates: Certificates, given: list[str]
) -> None:
    member = one_secure(front)
    flags = []
    for name in given:
        if name.endswith("ca"):
            flags.append(f"--cacert={getattr(certificates, name)}")
        else:
            pair = getattr(certificates, name)
            flags += [f"--cert={pair.cert}", f"--key={pair.key}"]
    endpoint = member.client_url if given else member.client_url.replace("https", "http")
    for name in TOOLS:
        refused = tool(name, f"--endpoints={endpoint}", "--command-timeout=2s", "--dial-timeout=2s", *flags, "get", "x")
        assert refused.returncode != 0, refused
        assert "Traceback" not in refused.stderr
    assert tool("kvctl", f"--endpoints={member.client_url}", *show(certificates), "get", "x").returncode == 0


@pytest.fixture(scope="module")
def one_secure(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, request: pytest.FixtureRequest
) -> Callable[[str], Member]:
    """A running member with the front, the same one for all tests."""
    clusters: dict[str, Cluster] = {}

    def make(front: str) -> Member:
        if front not in clusters:
            cluster = Cluster(1, tmp_path_factory.mktemp(front), tls=certificates, flags=flags_of(front))
            request.addfinalizer(cluster.stop)
            cluster.start()
            clusters[front] = cluster
        return clusters[front].members[0]

    return make


def peers(member: Member) -> set[str]:
    """To whom it has said that it is connected."""
    lines = [json.loads(line) for line in member.log().splitlines() if line.startswith("{")]
    return {line["peer"] for line in lines if line["msg"] == "peer connected"}


def test_a_member_with_a_certificate_of_another_authority_is_not_let_in(
    front: str, make_cluster: Callable[..., Cluster], certificates: Certificates
) -> None:
    cluster = make_cluster(3, tls=certificates, flags=flags_of(front))
    stranger = cluster.members[2]
    theirs = tls_flags(certificates, certificates.server)
    # It believes the others; they must not believe it.
    mine = [flag.replace("/server.", "/other.") if flag.startswith("--peer-") else flag for flag in theirs]
    stranger.arguments = [mine[theirs.index(flag)] if flag in theirs else flag for flag in stranger.arguments]
    for member in cluster.members:
        member.start()
    for member in cluster.members[:2]:
        member.wait_ready()
    leader = cluster.wait_leader()
    assert leader is not stranger
    cluster.kv(leader).Put(rpc_pb2.PutRequest(key=b"k", value=b"v"), timeout=10)
    wait_for(lambda: "has no stream to" in stranger.log(), "the stranger is refused")
    one, two = cluster.members[:2]
    wait_for(lambda: peers(one) and peers(two), "the two are connected")
    assert (peers(one), peers(two), peers(stranger)) == ({two.name}, {one.name}, set())
    assert "ready to serve client requests" not in stranger.log()
    assert stranger.running


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"cert-file": "nowhere.pem"}, "nowhere.pem, of the TLS settings, cannot be read: No such file"),
        ({"cert-file": "{other}"}, "key and certificate belong together"),
        ({"trusted-ca-file": "{key}"}, "must be PEM files"),
    ],
)
def test_unusable_files_are_told_before_a_directory_is_made(
    tmp_path: Path, certificates: Certificates, flags: dict[str, str], text: str
) -> None:
    [port, peer] = free_ports(2)
    member = Member("m1", tmp_path, port, peer, certificates)
    values = {
        "data-dir": str(member.data_dir),
        "listen-client-urls": member.client_url,
        "advertise-client-urls": member.client_url,
        "cert-file": str(certificates.server.cert),
        "key-file": str(certificates.server.key),
        "trusted-ca-file": str(certificates.ca),
        **flags,
    }
    values = {
        flag: value.format(other=certificates.other.cert, key=certificates.server.key) for flag, value in values.items()
    }
    member.arguments = [f"--{flag}={value}" for flag, value in values.items()]
    member.start()
    assert member.wait_exit() == 1
    assert text in member.log()
    assert "Traceback" not in member.log()
    assert not member.data_dir.exists()


def test_http_on_a_port_of_its_own_asks_for_a_certificate_as_well(
    front: str, make_cluster: Callable[..., Cluster], own: Certificates
) -> None:
    own_port, metrics = free_ports(2)
    flags = [
        *flags_of(front),
        f"--listen-client-http-urls=https://127.0.0.1:{own_port}",
        f"--listen-metrics-urls=http://127.0.0.1:{metrics}",
    ]
    with make_cluster(1, tls=own, flags=flags) as cluster:
        url = f"https://127.0.0.1:{own_port}"
        assert get(f"{url}/health", own) == (200, '{"health":"true","reason":""}')
        assert json.loads(get(f"{url}/version", own)[1])["etcdserver"] == "3.6.0"
        for who in (None, "other"):
            with pytest.raises(OSError, match=r".*"):
                get(f"{url}/health", own, who)
        assert "etcd_server_has_leader 1.0" in get(f"http://127.0.0.1:{metrics}/metrics", own)[1]
        assert "does not speak TLS, --cert-file has no effect there" in cluster.members[0].log()

        def serial() -> int:
            shown = ssl.get_server_certificate(("127.0.0.1", own_port))
            return serial_of(shown)

        before = serial()
        own.renew_server()
        wait_for(lambda: serial() not in (before,), "the renewed certificate is shown")
        assert serial() == own.server.serial


def test_a_certificate_shown_at_the_metrics_port_is_of_the_callers_address(
    make_cluster: Callable[..., Cluster], own: Certificates
) -> None:
    """etcd 3.5.1 asks this there, and nowhere else of clients."""
    [metrics] = free_ports(1)
    elsewhere = own.authority.sign("elsewhere", names=[x509.IPAddress(ipaddress.ip_address("10.9.9.9"))])
    nameless = own.authority.sign("nameless", names=[])
    with make_cluster(1, tls=own, flags=[f"--listen-metrics-urls=https://127.0.0.1:{metrics}"]) as cluster:
        url = f"https://127.0.0.1:{metrics}/health"
        for pair in (own.client, nameless):
            assert get(url, own, pair)[0] == 200
        with pytest.raises(OSError, match=r".*"):
            get(url, own, elsewhere)
        assert "its certificate is of 10.9.9.9, and none of these is 127.0.0.1" in cluster.members[0].log()
        assert get(f"{cluster.members[0].client_url}/health", own, elsewhere)[0] == 200


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_http_on_the_port_of_grpc(
    front: str, make_cluster: Callable[..., Cluster], certificates: Certificates, secure: bool
) -> None:
    with make_cluster(1, tls=certificates if secure else None, flags=flags_of(front)) as cluster:
        member = cluster.members[0]
        if front == "grpcio":
            assert "--listen-client-http-urls gives it one" in member.log()
            with pytest.raises((OSError, http.client.HTTPException)):
                get(f"{member.client_url}/health", certificates)
            return
        assert "--listen-client-http-urls" not in member.log()
        put = rpc_pb2.PutRequest(key=b"k", value=b"v")
        cluster.kv().Put(put, timeout=10)
        assert get(f"{member.client_url}/health", certificates) == (200, '{"health":"true","reason":""}')
        assert "etcd_debugging_mvcc_keys_total 1.0" in get(f"{member.client_url}/metrics", certificates)[1]
        if secure:
            with pytest.raises(OSError, match=r".*"):
                get(f"{member.client_url}/health", certificates, None)
        cluster.kv().Put(put, timeout=10)
        assert member.stop() == 0
        assert "Traceback" not in member.log()


def test_kvctl_believes_any_server_when_it_is_told_to(
    one_secure: Callable[[str], Member], certificates: Certificates
) -> None:
    if not front_exists("nghttp2"):
        pytest.skip("grpcio always checks a server's certificate")
    member = one_secure("grpcio")
    pair = certificates.client
    flags = [f"--cert={pair.cert}", f"--key={pair.key}", "--insecure-skip-tls-verify"]
    assert tool("kvctl", f"--endpoints={member.client_url}", *flags, "put", "k", "v").stdout == "OK\n"


def test_a_renewed_certificate_is_shown_without_a_restart(
    front: str, make_cluster: Callable[..., Cluster], own: Certificates
) -> None:
    with make_cluster(1, tls=own, flags=flags_of(front)) as cluster:
        member = cluster.members[0]

        def serial() -> int:
            return serial_of(ssl.get_server_certificate(("127.0.0.1", member.client_port)))

        before = serial()
        stub = rpc_pb2_grpc.KVStub(member.channel)
        stub.Put(rpc_pb2.PutRequest(key=b"k", value=b"1"), timeout=10)
        own.renew_server()
        wait_for(lambda: serial() != before, "the renewed certificate is shown")
        stub.Put(rpc_pb2.PutRequest(key=b"k", value=b"2"), timeout=10)  # connections of before go on
        assert member.running


def test_s74_a_clients_certificate_does_not_speak_raft(
    make_cluster: Callable[..., Cluster], certificates: Certificates
) -> None:
    """The authority is the same one, and has signed it; its name is no member's."""
    with make_cluster(3, tls=certificates, flags=["--peer-cert-allowed-cn=server"]) as cluster:
        member = cluster.wait_leader()

        def let_in(who: str) -> bool:
            pair = getattr(certificates, who)
            context = ssl.create_default_context(cafile=certificates.ca)
            context.load_cert_chain(pair.cert, pair.key)
            context.set_alpn_protocols(["h2"])
            with (
                socket.create_connection(("127.0.0.1", member.peer_port), timeout=10) as plain,
                context.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
                try:
                    return secure.recv(9) != b""  # the server's own SETTINGS
                except OSError:
                    return False

        assert let_in("server")
        assert not let_in("client")
        assert "has none of the allowed names" in member.log()
        cluster.kv(member).Put(rpc_pb2.PutRequest(key=b"k"), timeout=10)


def test_s76_a_certificate_is_revoked_under_traffic(make_cluster: Callable[..., Cluster], own: Certificates) -> None:
    """Members and clients go on; who is on the list of its port cannot connect any more."""
    crl = own.revoke()
    flags = [f"--client-crl-file={crl}", f"--peer-crl-file={crl}"]
    with make_cluster(3, tls=own, flags=flags) as cluster:
        leader = cluster.wait_leader()
        stub = rpc_pb2_grpc.KVStub(leader.channel)
        stub.Put(rpc_pb2.PutRequest(key=b"k", value=b"1"), timeout=10)
        revoked = own.authority.sign("revoked")

        def let_in(pair: Pair) -> bool:
            shown = [f"--cacert={own.ca}", f"--cert={pair.cert}", f"--key={pair.key}", "--command-timeout=5s"]
            return tool("kvctl", f"--endpoints={leader.client_url}", *shown, "get", "k").returncode == 0

        assert let_in(revoked)
        own.revoke(revoked)
        wait_for(lambda: "certificates read again" in leader.log(), "the list is read")
        assert not let_in(revoked)
        assert let_in(own.client)
        stub.Put(rpc_pb2.PutRequest(key=b"k", value=b"2"), timeout=10)
        assert "is revoked" in leader.log()


def test_members_that_make_their_certificates(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(3, flags=["--auto-tls", "--peer-auto-tls", "--self-signed-cert-validity=2"])
    for member in cluster.members:
        member.arguments = [flag.replace("http://", "https://") for flag in member.arguments]
        member.client_url = member.client_url.replace("http://", "https://")
        member.start()
    for member in cluster.members:
        wait_for(lambda member=member: READY in member.log(), "ready")  # type: ignore[misc]
    believe = "--insecure-skip-tls-verify"
    member = cluster.members[0]
    assert tool("kvctl", f"--endpoints={member.client_url}", believe, "put", "k", "v").stdout == "OK\n"
    folder = member.data_dir / "fixtures"
    for kind in ("client", "peer"):
        assert (folder / kind / "key.pem").stat().st_mode & 0o077 == 0
    serial = serial_of((folder / "client" / "cert.pem").read_text())
    member.stop()
    member.start()
    wait_for(lambda: READY in member.log(), "ready again")
    assert serial == serial_of((folder / "client" / "cert.pem").read_text()), "they are kept"
    cluster.stop()


@pytest.mark.parametrize(
    "flag", ["--client-crl-file={crl}", "--tls-min-version=TLS1.3", "--client-cert-allowed-hostname=a"]
)
def test_what_grpcio_does_not_know_is_refused(tmp_path: Path, own: Certificates, flag: str) -> None:
    [port, peer] = free_ports(2)
    member = Member("m1", tmp_path, port, peer, own)
    member.arguments = [
        *("--rpc=grpcio", f"--data-dir={member.data_dir}", f"--listen-client-urls={member.client_url}"),
        *(f"--advertise-client-urls={member.client_url}", f"--cert-file={own.server.cert}"),
        *(f"--key-file={own.server.key}", f"--trusted-ca-file={own.ca}", flag.format(crl=own.revoke())),
    ]
    member.start()
    assert member.wait_exit() == 1
    assert "--rpc=grpcio knows no" in member.log()
    assert "Traceback" not in member.log()
    assert not member.data_dir.exists()
