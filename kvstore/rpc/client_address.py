"""Whether a certificate is of the machine that shows it: etcd's question to whoever dials a peers' port.

    neither names nor addresses are in it                              it is let in
    the address that it comes from is one of them                      it is let in
    the system knows the address by one of the names (*.x: any of x)   it is let in
    the system has the address for one of the names                    it is let in

What the system is asked may take it seconds, and it answers in a thread: only the connection waits.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

_THREADS: Final = ThreadPoolExecutor(4, thread_name_prefix="lookup")  # who waits for one is bounded by connections


async def refusal(certificate: Any, host: str) -> str:
    """certificate: as SSLSocket.getpeercert tells it; host: an address. Why it is not let in; "" when it is."""
    alternatives = (certificate or {}).get("subjectAltName", ())
    addresses = [text for kind, text in alternatives if kind == "IP Address"]
    names = [text for kind, text in alternatives if kind == "DNS"]
    if not (addresses or names) or is_among(host, addresses):
        return ""
    if names and await _is_named(host, names):
        return ""
    return f"its certificate is of {', '.join([*map(str.strip, addresses), *names])}, and none of these is {host}"


def is_address(host: str) -> bool:
    return _address(host) is not None


def is_among(host: str, addresses: list[str]) -> bool:
    """Whether one of them is the host's, however it is written."""
    wanted = _address(host)
    return wanted is not None and any(_address(text.strip()) == wanted for text in addresses)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None  # a name, or what a broken certificate holds


async def _is_named(host: str, names: list[str]) -> bool:
    known = await _looked_up(names_of, host)
    endings = tuple(name[1:] for name in names if name.startswith("*."))
    plain = [name for name in names if not name.startswith("*.")]
    if any(name in plain or name.endswith(endings) for name in known):
        return True
    for name in plain:
        if host in await _looked_up(addresses_of, name):
            return True
    return False


async def _looked_up(function: Callable[[str], list[str]], text: str) -> list[str]:
    try:
        return await asyncio.get_running_loop().run_in_executor(_THREADS, function, text)
    except (OSError, ValueError):  # ValueError: no name at all
        return []


def names_of(host: str) -> list[str]:
    name, aliases, _ = socket.gethostbyaddr(host)
    return [found.removesuffix(".") for found in (name, *aliases)]


def addresses_of(name: str) -> list[str]:
    # As bytes, it is asked for as it stands in the certificate.
    return [str(found[4][0]) for found in socket.getaddrinfo(name.encode(), None, type=socket.SOCK_STREAM)]
