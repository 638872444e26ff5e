"""Regenerate raft/pb and kvstore/pb from the .proto files (`make proto`).

Two changes are made to what protoc writes: imports point into our packages, and descriptors go to a
pool of our own. Without the second, no other etcd client could be imported in the same process: the
default pool refuses a second definition of `etcdserverpb`.

    python proto/generate.py [OUT]      OUT: where raft/ and kvstore/ lie (default: the project's root)
"""

import re
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "raft": ["raft/v1/peer.proto"],
    "kvstore": [
        "mvccpb/kv.proto",
        "authpb/auth.proto",
        "leasepb/lease.proto",
        "etcdserverpb/rpc.proto",
        "v3lockpb/v3lock.proto",
        "v3electionpb/v3election.proto",
        "kvstore/v1/command.proto",
        "kvstore/v1/history.proto",
        "kvstore/v1/peer.proto",
    ],
}
IMPORT = re.compile(
    r"^(?P<from>from|import) (?P<folder>mvccpb|authpb|etcdserverpb|v3lockpb|v3electionpb|raft[./]v1|kvstore[./]v1)"
    r"(?: import|\.)(?: )?(?P<module>\w+_pb2)(?P<rest>.*)$",
    re.MULTILINE,
)


def rewrite(text: str, package: str) -> str:
    """Point generated imports into `package`.pb and descriptors into its pool."""
    text = IMPORT.sub(lambda m: f"from {package}.pb import {m['module']}{m['rest']}", text)
    text = text.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool",
        f"from {package}.pb import POOL as _POOL",
    )
    return text.replace("_descriptor_pool.Default()", "_POOL")


def generate(out: Path) -> None:
    """Write <out>/<package>/pb/*_pb2*.py and .pyi for both packages."""
    scripts = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as scratch:
        for package, protos in PACKAGES.items():
            temp = Path(scratch) / package
            temp.mkdir()
            status = protoc.main(
                [
                    "protoc",
                    f"-I{ROOT / 'proto'}",
                    f"-I{files('grpc_tools') / '_proto'}",
                    f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
                    f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
                    f"--python_out={temp}",
                    f"--grpc_python_out={temp}",
                    f"--mypy_out=quiet:{temp}",
                    f"--mypy_grpc_out=quiet:{temp}",
                    *protos,
                ]
            )
            if status:
                raise SystemExit(f"protoc failed for {package} with status {status}")
            target = out / package / "pb"
            target.mkdir(parents=True, exist_ok=True)
            for old in target.glob("*_pb2*"):
                old.unlink()
            for made in sorted(temp.rglob("*_pb2*")):
                if "_pb2_grpc" in made.name and "Stub" not in made.read_text():
                    continue  # protoc writes one for each file, also where there is no service
                (target / made.name).write_text(rewrite(made.read_text(), package))
            shutil.rmtree(temp)


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
