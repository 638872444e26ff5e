"""What members are run in, and which this machine has."""

from __future__ import annotations

from tests.jepsen.containers import Containers
from tests.jepsen.network import Network
from tests.jepsen.probe import BACKENDS as NEEDS
from tests.jepsen.probe import missing

BACKENDS: dict[str, type[Network]] = {one.backend: one for one in (Containers, Network)}  # the first is preferred
AUTO = "auto"


def choose(wanted: str, found: dict[str, str]) -> str | None:
    """The one that is wanted, or the first that can run; None: none can. What cannot is named."""
    for backend in BACKENDS if wanted == AUTO else [wanted]:
        why = missing(NEEDS[backend], found)
        if not why:
            print(f"backend   {backend}", flush=True)
            return backend
        print(f"SKIPPED   backend {backend}: {why}", flush=True)
    return None


def capabilities(backend: str, found: dict[str, str]) -> dict[str, str]:
    """What the probe has found, less what cannot be done with this backend."""
    lacks = {name: why for name, why in BACKENDS[backend].lacks.items() if not found[name]}
    return found | lacks
