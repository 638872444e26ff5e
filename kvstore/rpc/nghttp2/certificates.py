"""What gRPC's servers tell about the certificate of a client."""

import asyncio
from collections.abc import Mapping


def auth_context(transport: asyncio.Transport | None) -> Mapping[str, list[bytes]]:
    """By gRPC's names, from the client's verified certificate; empty without TLS."""
    if transport is None or transport.get_extra_info("ssl_object") is None:
        return {}
    certificate = transport.get_extra_info("peercert") or {}
    found: dict[str, list[bytes]] = {"transport_security_type": [b"ssl"]}
    for entry in certificate.get("subject", ()):
        for name, value in entry:
            if name == "commonName":
                found.setdefault("x509_common_name", []).append(value.encode())
    for _, value in certificate.get("subjectAltName", ()):
        found.setdefault("x509_subject_alternative_name", []).append(value.encode())
    return found
