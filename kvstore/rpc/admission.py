"""Whose certificate is let in, beyond that an authority signed it: not revoked, and of a name that is allowed.

Looked at when a handshake is done, by every listener and by who dials a peer: a front's own handshake knows nothing
of it. A list of revoked certificates counts by serial number, as etcd counts it, whatever date the list has. At the
peers' port it must also be of the machine that shows it, which may have to be looked up (client_address.py).
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import structlog

from kvstore.rpc import client_address

log = structlog.get_logger(__name__)

PEM_BEGIN: Final = b"-----BEGIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Of these names one must be the certificate's. Both empty: any name is."""

    names: tuple[str, ...] = ()  # common names
    hosts: tuple[str, ...] = ()  # what a server of the certificate could be called

    def refusal(self, certificate: Any) -> str:
        """certificate: as SSLSocket.getpeercert tells it. Why it is not let in; "" when it is."""
        if not (self.names or self.hosts):
            return ""
        if not certificate:
            return "no certificate was shown"
        found = [value for entry in certificate.get("subject", ()) for name, value in entry if name == "commonName"]
        if any(name in self.names for name in found):
            return ""
        if any(_is_named(certificate, host) for host in self.hosts):
            return ""
        shown = ", ".join(found) or "none"
        return f"its certificate (common name: {shown}) has none of the allowed names"


def _is_named(certificate: Any, host: str) -> bool:
    """As a client that dials `host` would look at it (RFC 6125): the alternative names only."""
    alternatives = certificate.get("subjectAltName", ())
    if client_address.is_address(host):
        return client_address.is_among(host, [name for kind, name in alternatives if kind == "IP Address"])
    label, _, rest = host.lower().partition(".")
    wanted = {f"{label}.{rest}" if rest else label, f"*.{rest}"} if rest else {label}
    return any(kind == "DNS" and name.lower() in wanted for kind, name in alternatives)


def read_revoked(file: Path) -> frozenset[int]:
    """Serial numbers. Raises OSError, or ValueError when it is no list of revoked certificates."""
    from cryptography import x509  # takes 8 MB: only who has such a list needs it

    content = file.read_bytes()
    load = x509.load_pem_x509_crl if content.lstrip().startswith(PEM_BEGIN) else x509.load_der_x509_crl
    return frozenset(revoked.serial_number for revoked in load(content))


@final
class Admission:
    """Of one listener. `revoked` is replaced when its file changes."""

    def __init__(self, allowed: Allowed, revoked: frozenset[int], *, of_its_address: bool = False) -> None:
        """of_its_address: whoever has passed `admits` must pass `admits_address` too."""
        self._allowed = allowed
        self.revoked = revoked
        self.of_its_address = of_its_address

    @property
    def is_open(self) -> bool:
        """Whoever has passed the handshake is let in."""
        return not (self.revoked or self._allowed.names or self._allowed.hosts)

    def admits(self, transport: Any) -> bool:
        """Whether the connection may stay. Who is refused is told of: an authority of ours signed the certificate."""
        if self.is_open:
            return True
        reason = self.refusal(transport)
        return _told(transport, reason)

    async def admits_address(self, transport: Any) -> bool:
        """Likewise: whether the certificate is of the machine that has shown it. This may take seconds."""
        return _told(
            transport, await client_address.refusal(_certificate(transport), transport.get_extra_info("peername")[0])
        )

    def refusal(self, transport: Any) -> str:
        """Of a connection whose handshake is done. Why it is not let in; "" when it is."""
        certificate = _certificate(transport)
        if certificate and self.revoked and int(str(certificate["serialNumber"]), 16) in self.revoked:
            return f"its certificate {certificate['serialNumber']} is revoked"
        return self._allowed.refusal(certificate)


def _certificate(transport: Any) -> Any:
    secure: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    return secure.getpeercert() if secure is not None else None


def _told(transport: Any, reason: str) -> bool:
    if reason:
        log.warning("a connection is refused", peer=str(transport.get_extra_info("peername")), reason=reason)
    return not reason
