"""Any other etcd client can be imported beside ours: our descriptors live in a pool of our own.

Another client's generated code registers the same files and packages in protobuf's default pool. Here
such code is made from our own .proto files, with one field more, as protoc writes it and unchanged.
"""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

OTHER_CLIENT = """
import sys

sys.path.insert(0, sys.argv[1])
first, second = sys.argv[2:]
__import__(first)
__import__(second)

from google.protobuf import descriptor_pool
from etcdserverpb import rpc_pb2 as theirs
from kvstore.pb import rpc_pb2 as ours

assert theirs.DESCRIPTOR.pool is descriptor_pool.Default()
assert ours.DESCRIPTOR.pool is not descriptor_pool.Default()
assert theirs.DESCRIPTOR.package == ours.DESCRIPTOR.package == "etcdserverpb"
assert theirs.DESCRIPTOR.name == ours.DESCRIPTOR.name

sent = theirs.PutRequest(key=b"k", value=b"v", of_another_client=7)
got = ours.PutRequest.FromString(sent.SerializeToString())
assert (got.key, got.value) == (b"k", b"v")
assert not hasattr(got, "of_another_client")
answer = ours.RangeResponse(count=3)
answer.kvs.add(key=b"k")
assert theirs.RangeResponse.FromString(answer.SerializeToString()).kvs[0].key == b"k"
print("both work")
"""


@pytest.mark.parametrize(
    "order", [("etcdserverpb.rpc_pb2", "kvstore.pb.rpc_pb2"), ("kvstore.pb.rpc_pb2", "etcdserverpb.rpc_pb2")]
)
def test_another_clients_code_works_beside_ours(tmp_path: Path, order: tuple[str, str]) -> None:
    protos = tmp_path / "proto"
    for name in ("mvccpb/kv.proto", "authpb/auth.proto", "etcdserverpb/rpc.proto"):
        (protos / name).parent.mkdir(parents=True)
        text = (ROOT / "proto" / name).read_text()
        (protos / name).write_text(
            text.replace("message PutRequest {", "message PutRequest {\n  int64 of_another_client = 999;")
        )
    assert "of_another_client" in (protos / "etcdserverpb/rpc.proto").read_text()
    compiled = tmp_path / "other"
    compiled.mkdir()
    names = ["mvccpb/kv.proto", "authpb/auth.proto", "etcdserverpb/rpc.proto"]
    include = [f"-I{protos}", f"-I{files('grpc_tools') / '_proto'}"]
    protoc = [sys.executable, "-m", "grpc_tools.protoc", *include, f"--python_out={compiled}", *names]
    subprocess.run(protoc, check=True, timeout=60)
    done = subprocess.run(
        [sys.executable, "-c", OTHER_CLIENT, str(compiled), *order],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "both work\n", done.stderr
