"""Real processes with authentication on: restarts, snapshots, new members, failover, certificates, secrets.

S-61, S-63, S-75; CVE-2018-16886.
"""

import json
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvstore.client import Client, ClientError
from kvstore.client.errors import InvalidRequest, PermissionDenied
from kvstore.pb import rpc_pb2 as pb
from kvstore.pb import rpc_pb2_grpc
from kvstore.rpc import FRONTS, ChannelTls
from tests.certificates import Certificates
from tests.e2e.cluster import Cluster, Member, wait_for
from tests.e2e.test_snapshots import FLAGS
from tests.e2e.test_tls import flags_of, front_exists, tool

MakeCluster = Callable[..., Cluster]
ROOT, ANN, VALUE = "canary-root-password", "canary-ann-password", "canary-value"


async def set_up(cluster: Cluster) -> None:
    """root, and ann who may do everything under a/."""
    async with Client(cluster.endpoints) as client:
        await client.auth.user_add("root", ROOT)
        await client.auth.role_add("root")
        await client.auth.user_grant_role("root", "root")
        await client.auth.user_add("ann", ANN)
        await client.auth.role_add("own")
        await client.auth.role_grant_permission("own", "readwrite", "a/", prefix=True)
        await client.auth.user_grant_role("ann", "own")
        await client.auth.enable()


def root(cluster: Cluster, *members: Member) -> Client:
    return Client([member.client_url for member in members] or cluster.endpoints, user="root", password=ROOT)


def ann(*members: Member) -> Client:
    return Client([member.client_url for member in members], user="ann", password=ANN)


def token_of(member: Member, user: str, password: str) -> str:
    request = pb.AuthenticateRequest(name=user, password=password)
    token: str = rpc_pb2_grpc.AuthStub(member.channel).Authenticate(request, timeout=10).token
    return token


def put(member: Member, token: str, key: bytes = b"a/1") -> str:
    """ "", or why not."""
    request = pb.PutRequest(key=key, value=VALUE.encode())
    try:
        rpc_pb2_grpc.KVStub(member.channel).Put(request, metadata=(("token", token),), timeout=10)
    except grpc.RpcError as error:
        return str(error.details())
    return ""


async def test_what_a_member_missed_binds_it(make_cluster: MakeCluster) -> None:
    """S-61: granted, away, revoked, a snapshot, back: it enforces the revocation; so do a new member and a restart.

    S-63: a simple token is good at every member at once, and at none that has lost it.
    S-75: all of it at the debug level, and no secret in any log.
    """
    cluster = make_cluster(3, flags=[*FLAGS, "--log-level=debug"])
    first, second, third = cluster.members
    cluster.start()
    await set_up(cluster)
    tokens = [token_of(member, "ann", ANN) for member in cluster.members]
    for token in tokens:
        for member in cluster.members:
            assert put(member, token) == ""
    async with ann(first) as client:
        lease = await client.lease_grant(3600)
        await client.put("a/leased", "x", lease=lease.id)
    third.kill()
    async with root(cluster, first, second) as client:
        await client.auth.user_revoke_role("ann", "own")
        for number in range(200):
            await client.put(f"load/{number % 20}", VALUE * 80)
    third.start()
    third.wait_ready()
    wait_for(lambda: "installed" in third.log(), "the state of a snapshot is in place")
    async with ann(third) as client:
        with pytest.raises(PermissionDenied):
            await client.get("a/1", serializable=True)
        with pytest.raises(PermissionDenied):
            await client.lease_revoke(lease.id)
    assert put(third, tokens[2]) == "etcdserver: invalid auth token"
    async with root(cluster, third) as client:
        assert (await client.lease_time_to_live(lease.id, keys=True)).keys == (b"a/leased",)
    await _a_new_member_asks_too(cluster)
    for member in cluster.members:
        member.stop()
        member.start()
    for member in cluster.members:
        member.wait_ready()
        assert put(member, tokens[0]) == "etcdserver: invalid auth token"
        async with root(cluster, member) as client:
            assert (await client.auth.user_list()).names == ("ann", "root")
    hashes = _no_secret_in_logs(cluster, tokens)
    assert hashes


async def _a_new_member_asks_too(cluster: Cluster) -> None:
    """etcd#14571."""
    token = token_of(cluster.members[0], "root", ROOT)
    channel = grpc.intercept_channel(cluster.members[0].channel, _Token(token))
    cluster.members_stub = lambda: rpc_pb2_grpc.ClusterStub(channel)  # type: ignore[method-assign,assignment]
    fourth = cluster.add_member()
    fourth.start()
    fourth.wait_ready()
    async with Client([fourth.client_url]) as client:
        with pytest.raises(InvalidRequest, match="user name is empty"):
            await client.get("a/1", serializable=True)
    async with root(cluster, fourth) as client:
        assert (await client.get("a/leased")).value == b"x"
    async with ann(fourth) as client:
        with pytest.raises(PermissionDenied):
            await client.put("a/1", "x")


class _Token(grpc.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    def __init__(self, token: str) -> None:
        self._token = token

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details._replace(metadata=(("token", self._token),)), request)


def _no_secret_in_logs(cluster: Cluster, tokens: list[str]) -> int:
    """S-75. Returns how many lines were looked at."""
    lines = 0
    for member in cluster.members:
        text = member.log_path.read_text()
        lines += len(text.splitlines())
        for secret in (ROOT, ANN, VALUE, "$2b$", *tokens, *(token.partition(".")[0] for token in tokens)):
            assert secret not in text, f"{member.name}: {secret}"
    return lines


async def test_a_jwt_outlives_the_member_that_signed_it(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """S-63: across failover; and a change of anybody's rights makes it old for keys."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"canary-key that is long enough for HS256")
    cluster = make_cluster(3, flags=[f"--auth-token=jwt,priv-key={secret},sign-method=HS256,ttl=5m"])
    cluster.start()
    await set_up(cluster)
    leader = cluster.members[0]
    token = token_of(leader, "ann", ANN)
    leader.kill()
    others = cluster.members[1:]
    for member in others:
        wait_for(lambda member=member: put(member, token) == "", "a write without the signer")  # type: ignore[misc]
    assert put(others[0], token, b"b") == "etcdserver: permission denied"
    assert put(others[0], token[:-1] + ("A" if token[-1] != "A" else "B")) == "etcdserver: invalid auth token"
    async with root(cluster, *others) as client:
        await client.auth.role_add("another")
        await client.auth.role_add("and-another")  # with the token of before: administration does not ask
    assert put(others[0], token) == "etcdserver: revision of auth store is old"
    async with ann(*others) as client:
        await client.put("a/1", "x")


@pytest.mark.parametrize("rpc", FRONTS)
async def test_a_certificate_names_its_user(make_cluster: MakeCluster, tmp_path: Path, rpc: str) -> None:
    if not front_exists(rpc):
        pytest.skip(f"{rpc} cannot be loaded")
    folder = tmp_path / "certificates"
    folder.mkdir()
    own = Certificates(folder)
    cluster = make_cluster(1, tls=own, flags=flags_of(rpc))
    cluster.start()
    member = cluster.members[0]
    tls = ChannelTls(ca_file=own.ca, cert_file=own.client.cert, key_file=own.client.key)
    root_pair = own.authority.sign("root")
    root_tls = ChannelTls(ca_file=own.ca, cert_file=root_pair.cert, key_file=root_pair.key)
    async with Client(cluster.endpoints, tls=root_tls) as client:
        await client.auth.user_add("root", None)
        await client.auth.user_grant_role("root", "root")
        await client.auth.user_add("client", None)
        await client.auth.role_add("own")
        await client.auth.role_grant_permission("own", "readwrite", "a/", prefix=True)
        await client.auth.user_grant_role("client", "own")
        await client.auth.enable()
        assert (await client.auth.user_list()).names == ("client", "root")
    async with Client(cluster.endpoints, tls=tls) as client:
        await client.put("a/1", "x")
        async with client.watch("a/", prefix=True) as watch:
            await client.put("a/2", "x")
            assert (await anext(aiter(watch))).events
        for refused in (client.put("b", "x"), client.auth.user_list()):
            with pytest.raises(PermissionDenied):
                await refused
        with pytest.raises(ClientError, match="no password user"):
            async with Client(cluster.endpoints, tls=tls, user="client", password="x") as other:
                await other.get("a/1")
    shown = [f"--cacert={own.ca}", f"--cert={own.client.cert}", f"--key={own.client.key}"]
    assert tool("etcdctl", f"--endpoints={member.client_url}", *shown, "get", "a/1").stdout == "a/1\nx\n"
    # Lock asks in its caller's name.
    locked = tool("etcdctl", f"--endpoints={member.client_url}", *shown, "lock", "a/lock", "true")
    assert locked.returncode == 0, locked.stderr
    nobody = own.authority.sign("nobody")
    async with Client(
        cluster.endpoints, tls=ChannelTls(ca_file=own.ca, cert_file=nobody.cert, key_file=nobody.key)
    ) as client:
        with pytest.raises(PermissionDenied):
            await client.member_list()
    if rpc == "nghttp2":
        _the_gateway_takes_no_certificate(member, own, root_pair)


def _the_gateway_takes_no_certificate(member: Member, own: Certificates, pair: Any) -> None:
    """CVE-2018-16886: whose certificate is it that comes with a request over HTTP? Not even root's."""
    context = ssl.create_default_context(cafile=own.ca)
    context.load_cert_chain(pair.cert, pair.key)
    body = json.dumps({"key": b64encode(b"a/1").decode()}).encode()
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{member.client_url}/v3/kv/range", data=body, context=context, timeout=10)
    assert json.load(caught.value)["error"] == "etcdserver: user name is empty"


async def test_without_client_cert_auth_a_name_is_no_proof(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """A CA alone asks for certificates, as in etcd; that they name users has to be asked for."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    own = Certificates(folder)
    cluster = make_cluster(1, tls=own)
    member = cluster.members[0]
    member.arguments.remove("--client-cert-auth")
    cluster.start()
    root_pair = own.authority.sign("root")
    tls = ChannelTls(ca_file=own.ca, cert_file=root_pair.cert, key_file=root_pair.key)
    async with Client(cluster.endpoints, tls=tls) as client:
        await client.auth.user_add("root", ROOT)
        await client.auth.user_grant_role("root", "root")
        await client.auth.enable()
        with pytest.raises(InvalidRequest, match="user name is empty"):
            await client.get("a/1")


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("--auth-token=jwt,priv-key=/missing,sign-method=HS256", "/missing cannot be read"),
        ("--auth-token=jwt,sign-method=RS256", "needs priv-key"),
        ("--auth-token=jwt,priv-key={file},sign-method=ES256", "not a key in PEM"),
        ("--auth-token=jwt,sign-method=none", "one of RS256"),
        ("--auth-token=other", "neither simple nor jwt"),
        ("--bcrypt-cost=3", "not in 4..31"),
        ("--auth-token-ttl=0", "not in 1.."),
    ],
)
def test_settings_that_make_no_sense_start_nothing(tmp_path: Path, flag: str, text: str) -> None:
    file = tmp_path / "file"
    file.write_text("no key")
    member = Member("m1", tmp_path, 1, 2)
    member.arguments = [f"--data-dir={tmp_path / 'data'}", flag.format(file=file)]
    member.start()
    assert member.wait_exit() in (1, 2)
    assert text in member.log()
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("metadata", ["token", "authorization"])
async def test_over_json(make_cluster: MakeCluster, metadata: str) -> None:
    """S-62 by way of the gateway: the same refusals, with the token in its place."""
    cluster = make_cluster(1)
    cluster.start()
    member = cluster.members[0]
    await set_up(cluster)

    def ask(path: str, token: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": token if metadata == "token" else f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{member.client_url}{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def key(text: str) -> str:
        return b64encode(text.encode()).decode()

    status, answer = ask("/v3/auth/authenticate", "", {"name": "ann", "password": ANN})
    assert status == 200
    token = answer["token"]
    for path, sent, body, wanted in (
        ("/v3/kv/put", "", {"key": key("a/1")}, (400, "user name is empty")),
        ("/v3/kv/put", "nonsense.1", {"key": key("a/1")}, (401, "invalid auth token")),
        ("/v3/kv/put", token, {"key": key("b")}, (403, "permission denied")),
        ("/v3/kv/put", token, {"key": key("a/1"), "value": key("x")}, (200, "")),
        ("/v3/kv/range", token, {"key": key("a/1"), "range_end": key("\0")}, (403, "permission denied")),
        ("/v3/kv/range", token, {"key": key("a/1")}, (200, "")),
        ("/v3/auth/user/list", token, {}, (403, "permission denied")),
        ("/v3/lock/lock", token, {"name": key("b")}, (500, "permission denied")),
        ("/v3/lock/lock", token, {"name": key("a/l")}, (200, "")),
        ("/v3/lease/leases", "", {}, (400, "user name is empty")),
        ("/v3/cluster/member/list", "", {}, (400, "user name is empty")),
    ):
        status, answer = ask(path, sent, body)
        assert (status, answer.get("error", "").removeprefix("etcdserver: ")) == wanted, (path, sent, body)
