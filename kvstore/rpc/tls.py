"""TLS of both ends: which files, and what they become for each front.

Files are read again when they change, so certificates are renewed without a restart.
"""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ALPN: Final = ("h2", "http/1.1")
RELOAD_SECONDS: Final = 1.0  # how often a server looks whether its files have changed


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """cert_file, key_file: PEM; client_ca_file: whose clients' certificates are believed; client_auth: each client
    must show one."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    client_auth: bool = False
    minimum: ssl.TLSVersion = field(default=ssl.TLSVersion.TLSv1_2)

    def files(self) -> list[Path]:
        return [path for path in (self.cert_file, self.key_file, self.client_ca_file) if path is not None]

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Differs when a file does."""
        stats = [os.stat(path) for path in self.files()]
        return tuple([(stat.st_mtime_ns, stat.st_ino) for stat in stats])

    def context(self) -> ssl.SSLContext:
        """Raises OSError or ssl.SSLError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = self.minimum
        context.set_alpn_protocols(list(ALPN))
        self.load(context)
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Into a context that may be in use: connections made from then on show and believe what the files hold."""
        context.load_cert_chain(self.cert_file, self.key_file)
        if self.client_ca_file is not None:
            context.load_verify_locations(self.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED if self.client_auth else ssl.CERT_OPTIONAL

    def grpc_credentials(self) -> Any:
        import grpc

        pair = (self.key_file.read_bytes(), self.cert_file.read_bytes())
        authority = self.client_ca_file.read_bytes() if self.client_ca_file is not None else None
        return grpc.ssl_server_credentials([pair], authority, self.client_auth)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTls:
    """ca_file: whose servers are believed (None: the system's); cert_file, key_file: what we show of ourselves;
    server_name: the name the certificate must have, when it is not the target's host; verify: off for tests by hand."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    verify: bool = True

    def context(self) -> ssl.SSLContext:
        """Raises OSError or ssl.SSLError."""
        context = ssl.create_default_context(cafile=self.ca_file)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if self.cert_file is not None:
            context.load_cert_chain(self.cert_file, self.key_file)
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def grpc_credentials(self) -> Any:
        """Raises ValueError without `verify`."""
        import grpc

        if not self.verify:
            raise ValueError("grpcio always checks a server's certificate: only the nghttp2 front can leave that out")
        read = [
            path.read_bytes() if path is not None else None for path in (self.ca_file, self.key_file, self.cert_file)
        ]
        return grpc.ssl_channel_credentials(*read)


def tls_for(target: str, tls: ChannelTls | None) -> ChannelTls | None:
    """What a channel to the target needs: the scheme decides, and where there is none, whether TLS was asked for."""
    if target.startswith("https://"):
        return tls or ChannelTls()
    return None if "://" in target else tls
