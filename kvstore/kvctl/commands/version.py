from importlib.metadata import version as installed

from kvstore.kvctl.formats import write
from kvstore.kvctl.session import Session

API_VERSION = "3.6"


async def version(_: Session) -> None:
    """Print the version of kvctl, and of etcd's API that it speaks."""
    write(f"kvctl version: {installed('kvstore')}")
    write(f"API version: {API_VERSION}")
