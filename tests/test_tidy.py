"""The project's rules that a machine can check: layers, sizes, docstrings, leftovers.

Each rule is a function from a source file to complaints, so that it can be shown to bite on a bad snippet as well
as to hold on the tree. A complaint says what to do; an exception to a rule stands beside it with its reason.
"""

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("raft", "kvstore", "tests", "bench", "docs", "proto")
GENERATED = re.compile(r"/pb/\w+_pb2(_grpc)?\.pyi?$")


@dataclass(frozen=True)
class Layer:
    """What may not be imported where. `only` is a list of files that may, each for the reason beside it."""

    where: str  # a path prefix
    banned: frozenset[str]  # module prefixes
    why: str
    only: tuple[str, ...] = ()


def banned(*modules: str) -> frozenset[str]:
    return frozenset(modules)


LAYERS = [
    Layer("raft/", banned("kvstore"), "raft is a library of its own: it replicates bytes and knows no keys"),
    Layer(
        "raft/core/",
        banned(
            *("asyncio", "time", "random", "threading", "logging", "os", "sys", "socket"),
            *("grpc", "google", "structlog", "raft.pb"),
        ),
        "the core is a function of its inputs: no clock, no chance, no IO, no log",
    ),
    Layer("raft/core/", banned("raft.node", "raft.transport", "raft.codec"), "imports point down only"),
    Layer(
        "raft/",
        banned("raft.pb"),
        "the wire format of the peers is known in one place: use raft.codec",
        only=("raft/codec.py", "raft/transport/snapshot_codec.py"),
    ),
    Layer(
        "raft/",
        banned("grpc"),
        "gRPC is one transport among others",
        only=("raft/transport/grpc.py", "raft/transport/grpc_snapshots.py"),
    ),
    Layer(
        "raft/",
        banned("time", "random", "threading", "concurrent"),
        "clock, chance and threads come through Runtime, so that a simulation can replace them",
        only=(
            "raft/runtime.py",
            "raft/failpoints.py",  # a stall that is asked for is one of the real process
            "raft/storage/segmented.py",  # a lock: save() and compact() may run in the executor's threads
            "raft/testing/sim/rng.py",  # seeded streams of a simulation
        ),
    ),
    Layer(
        "kvstore/",
        banned("raft"),
        "only kvstore/server and what assembles the process know that there is a log",
        only=(
            "kvstore/server/",
            "kvstore/app.py",
            "kvstore/debug/",  # prints logs
            "kvstore/failpoints.py",  # the mechanism is raft's; it has nothing to do with a log
        ),
    ),
    Layer("kvstore/", banned("raft.pb", "raft.codec"), "the wire format of the peers is raft's own"),
    Layer(
        "kvstore/bbolt/",
        banned("asyncio", "grpc", "google", "kvstore.errors", "kvstore.mvcc", "kvstore.pb", "kvstore.snapshot"),
        "bbolt is a library of its own: it knows pages, and nothing of etcd",
    ),
    Layer(
        "kvstore/snapshot/",
        banned("grpc", "kvstore.server", "kvstore.services"),
        "a snapshot file is made from a store and its tables, and becomes them again; the log is not in it",
    ),
    Layer("kvstore/mvcc/", banned("grpc", "kvstore.state", "kvstore.server"), "mvcc is a store: it knows no network"),
    Layer(
        "kvstore/lease/",
        banned("asyncio", "time", "random", "grpc", "kvstore.state", "kvstore.server"),
        "the lessor is told the time, and says what is due",
    ),
    Layer(
        "kvstore/auth/",
        banned("asyncio", "time", "random", "threading", "grpc", "kvstore.state", "kvstore.server", "kvstore.rpc"),
        "who may do what is a function of the state; tokens are told the time",
    ),
    Layer("kvstore/state/", banned("grpc", "kvstore.server", "asyncio"), "apply is a function of the entries"),
    Layer(
        "kvstore/",
        banned("rocksdict"),
        "what lies in RocksDB is known to the store and to the code that writes into its batches",
        only=("kvstore/mvcc/", "kvstore/state/"),
    ),
    Layer(
        "kvstore/",
        banned("grpc", "ngh2"),
        "gRPC is used through kvstore.rpc, so that another front can take its place",
        only=(
            "kvstore/rpc/",
            "kvstore/client/",  # names the errors and channels of the stubs that it is written against
            "kvstore/local.py",  # catches the error of the stub that it asks for a member's state
        ),
    ),
    Layer("kvstore/rpc/", banned("kvstore.server", "kvstore.state", "kvstore.mvcc"), "rpc knows nothing of keys"),
    Layer(
        "kvstore/client/",
        banned("kvstore.server", "kvstore.state", "kvstore.mvcc", "kvstore.services", "kvstore.app"),
        "the client talks to a server by the wire only",
    ),
    Layer(
        "kvstore/kvctl/",
        banned("kvstore.server", "kvstore.state", "kvstore.mvcc", "kvstore.services", "kvstore.app", "grpc"),
        "kvctl does what any user of the client can do",
    ),
    *(
        Layer(
            folder,
            banned("time", "random", "threading", "concurrent"),
            "no local clock, chance or thread may decide what every member must decide alike",
            only=(
                "kvstore/mvcc/slices.py",  # the clock only says when to let the loop run, never what is done
            ),
        )
        for folder in ("kvstore/mvcc/", "kvstore/state/")
    ),
    Layer("raft/", banned("tests", "bench"), "what is shipped does not need what is not"),
    Layer("kvstore/", banned("tests", "bench"), "what is shipped does not need what is not"),
]

LINES_MAX = 500
LONG_FILES: dict[str, str] = {  # path: why splitting it would hide the way
    "tests/raft/test_node.py": "the fakes that all of its tests use stand above them",
}

FUNCTION_LINES_MAX = 70
LONG_FUNCTIONS: dict[str, str] = {}  # path:name: why it reads better whole

ENTRY_POINTS = {
    "raft": "the library's users import its modules",
    "kvstore/__main__.py": "python -m kvstore",
    "kvstore/cli.py": "the script `kvstore`",
    "kvstore/etcd.py": "the script `kvstore-etcd`",
    "kvstore/kvctl/main.py": "the script `kvctl`",
}

# Put together here, so that this file does not contain what it looks for.
LEFTOVER = re.compile("|".join(["TO" + "DO", "FIX" + "ME", r"\bX" + "XX\\b"]))
MACHINE = re.compile(r"/(?:" + "|".join(["wo" + "rk", "fa" + "rm", "ho" + r"me/\w+"]) + r")/")


class Source:
    """One file: its path from the root, its text, its syntax tree."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self.tree = ast.parse(text)


@functools.cache
def sources() -> list[Source]:
    """Every Python file of ours that is not generated."""
    files = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
    paths = [file.relative_to(ROOT).as_posix() for file in files]
    return [Source(path, (ROOT / path).read_text()) for path in paths if not GENERATED.search(path)]


def imports(source: Source) -> list[tuple[int, str]]:
    """Every module that the file imports, anywhere in it, with its line. `from a import b` may mean a.b."""
    found = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = source.path.removesuffix(".py").split("/")
            start = ".".join(package[: -node.level]) + "." if node.level else ""
            module = f"{start}{node.module or ''}".rstrip(".")
            found += [(node.lineno, module)] + [(node.lineno, f"{module}.{alias.name}") for alias in node.names]
    return found


def inside(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def layers(source: Source) -> list[str]:
    complaints = set()
    for layer in LAYERS:
        if not source.path.startswith(layer.where) or source.path.startswith(layer.only or "\0"):
            continue
        complaints |= {
            f"{source.path}:{line} imports {prefix}: {layer.why}"
            for line, module in imports(source)
            for prefix in layer.banned
            if inside(module, prefix)
        }
    return sorted(complaints)


def leftovers(source: Source) -> list[str]:
    return [
        f"{source.path}:{number} {found[0]}: do it or file an issue; a stub does not land"
        for number, line in enumerate(source.text.splitlines(), 1)
        if (found := LEFTOVER.search(line))
    ]


def machine_paths(source: Source) -> list[str]:
    return [
        f"{source.path}:{number} {found[0]}: a path of somebody's machine"
        for number, line in enumerate(source.text.splitlines(), 1)
        if (found := MACHINE.search(line))
    ]


def docstrings(source: Source) -> list[str]:
    if not source.text.strip() or ast.get_docstring(source.tree):
        return []
    if source.path.startswith("kvstore/kvctl/commands/"):
        return []  # one verb, one file: the function's docstring is the help text that users read
    return [f"{source.path} has no docstring: say in a line or more what the module is for"]


def swallowed(source: Source) -> list[str]:
    return [
        f"{source.path}:{node.lineno} swallows every exception: name the expected ones"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
        and all(isinstance(statement, ast.Pass) for statement in node.body)
    ]


def shared_errors(source: Source) -> list[str]:
    """An exception that lives for ever gathers the frames of every raise, and what they hold."""

    def is_shared(raised: ast.expr) -> bool:
        if isinstance(raised, ast.IfExp):
            return is_shared(raised.body) or is_shared(raised.orelse)
        name = raised.id if isinstance(raised, ast.Name) else getattr(raised, "attr", "")
        return str(name).isupper()

    return [
        f"{source.path}:{node.lineno} raises an error of a table itself: raise its fresh()"
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Raise) and node.exc is not None and is_shared(node.exc)
    ]


def file_length(source: Source) -> list[str]:
    count = len(source.text.splitlines())
    if count <= LINES_MAX or source.path in LONG_FILES:
        return []
    return [f"{source.path} has {count} lines, over {LINES_MAX}: split it by topic, or say in LONG_FILES why not"]


def function_length(source: Source) -> list[str]:
    complaints = []
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            count = node.end_lineno - node.lineno + 1
            if count > FUNCTION_LINES_MAX and f"{source.path}:{node.name}" not in LONG_FUNCTIONS:
                complaints.append(
                    f"{source.path}:{node.lineno} {node.name} has {count} lines, over {FUNCTION_LINES_MAX}: "
                    "split it, or say in LONG_FUNCTIONS why not"
                )
    return complaints


RULES = [layers, leftovers, machine_paths, docstrings, swallowed, shared_errors, file_length, function_length]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule: object) -> None:
    assert callable(rule)
    complaints = [complaint for source in sources() for complaint in rule(source)]
    assert not complaints, "\n" + "\n".join(complaints)


def dead_modules(files: list[Source]) -> list[str]:
    """Modules of kvstore that nothing of kvstore imports and that no script starts."""
    used = {module for source in files if source.path.startswith("kvstore/") for _, module in imports(source)}
    # `kvstore/kvctl/main.py` lists its commands; a name that is imported from a package is that package's module.
    return [
        f"{source.path} is imported by nothing: remove it or use it"
        for source in files
        if source.path.startswith("kvstore/")
        and not source.path.endswith("__init__.py")
        and source.path not in ENTRY_POINTS
        and source.path.removesuffix(".py").replace("/", ".") not in used
    ]


def test_no_dead_modules() -> None:
    complaints = dead_modules(sources())
    assert not complaints, "\n" + "\n".join(complaints)


@pytest.mark.parametrize("name", ["LONG_FILES", "LONG_FUNCTIONS"])
def test_exceptions_are_still_needed(name: str) -> None:
    paths = {source.path for source in sources()}
    gone = [key for key in globals()[name] if key.split(":")[0] not in paths]
    assert not gone, f"{name} names what is not there: {gone}"


def test_layer_exceptions_exist() -> None:
    gone = [path for layer in LAYERS for path in layer.only if not (ROOT / path).exists()]
    assert not gone, f"exceptions for what is not there: {gone}"


BAD = [
    (layers, "raft/node.py", "import kvstore.errors"),
    (layers, "raft/core/step.py", "import time"),
    (layers, "raft/core/step.py", "def f():\n    from asyncio import sleep"),
    (layers, "raft/core/step.py", "from raft.pb import peer_pb2"),
    (layers, "raft/node.py", "from raft.pb import peer_pb2"),
    (layers, "raft/node.py", "from . import pb"),
    (layers, "raft/node.py", "import grpc.aio"),
    (layers, "raft/node.py", "import random"),
    (layers, "kvstore/mvcc/store.py", "from raft.types import Index"),
    (layers, "kvstore/services/kv.py", "import raft"),
    (layers, "kvstore/services/kv.py", "import grpc"),
    (layers, "kvstore/state/applier.py", "import time"),
    (layers, "kvstore/lease/lessor.py", "import time"),
    (layers, "kvstore/state/applier.py", "from kvstore.server.server import KvServer"),
    (layers, "kvstore/kvctl/main.py", "from kvstore.mvcc.store import MvccStore"),
    (layers, "kvstore/server/server.py", "import rocksdict"),
    (layers, "kvstore/app.py", "import tests.e2e.cluster"),
    (leftovers, "raft/node.py", "# " + "TO" + "DO later"),
    (machine_paths, "raft/node.py", "PATH = '/" + "work/main'"),
    (docstrings, "raft/node.py", "x = 1"),
    (swallowed, "raft/node.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (swallowed, "raft/node.py", "try:\n    f()\nexcept:\n    pass"),
    (shared_errors, "raft/node.py", "raise TIMEOUT from None"),
    (shared_errors, "raft/node.py", "raise errors.TIMEOUT"),
    (shared_errors, "raft/node.py", "raise TIMEOUT if late else error"),
    (file_length, "raft/node.py", "x = 1\n" * (LINES_MAX + 1)),
    (function_length, "raft/node.py", "def f():\n" + "    x = 1\n" * FUNCTION_LINES_MAX),
]


@pytest.mark.parametrize(("rule", "path", "text"), BAD, ids=lambda value: getattr(value, "__name__", None))
def test_rule_bites(rule: object, path: str, text: str) -> None:
    assert callable(rule)
    assert rule(Source(path, text))


def test_dead_module_rule_bites() -> None:
    files = [
        Source("kvstore/cli.py", "import kvstore.used"),
        Source("kvstore/used.py", ""),
        Source("kvstore/dead.py", ""),
    ]
    assert len(dead_modules(files)) == 1


def test_rules_let_good_code_pass() -> None:
    good = Source("raft/core/step.py", '"""Steps."""\n\nfrom raft.core import roles\nfrom raft.types import Index\n')
    assert [complaint for rule in RULES for complaint in rule(good)] == []
