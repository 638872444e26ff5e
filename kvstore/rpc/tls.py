"""TLS of both ends: which files, and what they become for each front.

Files are read again when they change, so certificates are renewed, and revoked, without a restart.
"""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import structlog

from kvstore.rpc.admission import Admission, Allowed, read_revoked

log = structlog.get_logger(__name__)

ALPN: Final = ("h2", "http/1.1")
RELOAD_SECONDS: Final = 1.0  # how often a server looks whether its files have changed


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsVersions:
    """What both ends may agree on. ciphers: OpenSSL's names, of TLS 1.2; empty: OpenSSL's choice."""

    minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
    ciphers: tuple[str, ...] = ()

    @property
    def is_default(self) -> bool:
        return self == TlsVersions()

    def apply(self, context: ssl.SSLContext) -> None:
        context.minimum_version = self.minimum
        context.maximum_version = self.maximum
        if self.ciphers:
            context.set_ciphers(":".join(self.ciphers))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTls:
    """cert_file, key_file: PEM; client_ca_file: whose clients' certificates are believed; client_auth: each client
    must show one; crl_file: which of them are revoked; allowed: what they must be called; of_its_address: a
    certificate must be of the machine that shows it."""

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    client_auth: bool = False
    crl_file: Path | None = None
    allowed: Allowed = field(default_factory=Allowed)
    of_its_address: bool = False
    versions: TlsVersions = field(default_factory=TlsVersions)

    def files(self) -> list[Path]:
        found = (self.cert_file, self.key_file, self.client_ca_file, self.crl_file)
        return [path for path in found if path is not None]

    def stamp(self) -> tuple[tuple[int, int], ...]:
        """Differs when a file does."""
        stats = [os.stat(path) for path in self.files()]
        return tuple([(stat.st_mtime_ns, stat.st_ino) for stat in stats])

    def context(self, protocols: tuple[str, ...] = ALPN) -> ssl.SSLContext:
        """Raises OSError or ssl.SSLError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.versions.apply(context)
        context.set_alpn_protocols(list(protocols))
        self.load(context)
        return context

    def load(self, context: ssl.SSLContext) -> None:
        """Into a context that may be in use: connections made from then on show and believe what the files hold."""
        context.load_cert_chain(self.cert_file, self.key_file)
        if self.client_ca_file is not None:
            context.load_verify_locations(self.client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED if self.client_auth else ssl.CERT_OPTIONAL

    def revoked(self) -> frozenset[int]:
        """Raises OSError or ValueError."""
        return read_revoked(self.crl_file) if self.crl_file is not None else frozenset()

    def beyond_grpcio(self) -> str:
        """What of it grpcio's server does not know; "" when it knows all."""
        if self.crl_file is not None:
            return "a list of revoked certificates"
        if self.allowed != Allowed():
            return "allowed names of certificates"
        if self.of_its_address:
            return "check of a peer's address (--peer-skip-client-san-verification leaves it out)"
        return "" if self.versions.is_default else "versions of TLS and cipher suites"

    def grpc_credentials(self) -> Any:
        """Its files are looked at again with each handshake, and taken up when they belong together."""
        import grpc

        stamp = self.stamp()

        def renewed() -> Any:
            nonlocal stamp
            try:
                found = self.stamp()
                if found == stamp:
                    return None
                self.context()  # a pair that does not belong together must not replace one that does
                configuration = self._grpc_configuration()
            except (OSError, ssl.SSLError) as error:
                log.warning("new certificates cannot be read: the old ones stay", reason=str(error))
                return None
            stamp = found
            return configuration

        return grpc.dynamic_ssl_server_credentials(self._grpc_configuration(), renewed, self.client_auth)

    def _grpc_configuration(self) -> Any:
        import grpc

        pair = (self.key_file.read_bytes(), self.cert_file.read_bytes())
        authority = self.client_ca_file.read_bytes() if self.client_ca_file is not None else None
        return grpc.ssl_server_certificate_configuration([pair], authority)


@final
class LiveTls:
    """A server's TLS as its files are now. `context` and `admission` stay the same objects."""

    def __init__(self, tls: ServerTls, protocols: tuple[str, ...] = ALPN) -> None:
        """Raises OSError, ssl.SSLError or ValueError."""
        self.tls = tls
        self._stamp = tls.stamp()
        self._told = ""
        self.context = tls.context(protocols)
        self.admission = Admission(tls.allowed, tls.revoked(), of_its_address=tls.of_its_address)

    def refresh(self) -> None:
        """Take up what has changed; what cannot be used is told once, and what was used stays."""
        try:
            found = self.tls.stamp()
            if found == self._stamp:
                return
            self.tls.context()  # a pair that does not belong together must not replace half of one that does
            revoked = self.tls.revoked()
            self.tls.load(self.context)
        except (OSError, ssl.SSLError, ValueError) as error:
            if str(error) != self._told:
                self._told = str(error)
                log.warning("new certificates cannot be read: the old ones stay", reason=self._told)
            return
        self.admission.revoked = revoked
        self._stamp, self._told = found, ""
        log.info("certificates read again", certificate=str(self.tls.cert_file))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTls:
    """ca_file: whose servers are believed (None: the system's); cert_file, key_file: what we show of ourselves;
    server_name: the name the certificate must have, when it is not the target's host; allowed: what else it must be
    called; verify: off for tests by hand, and among members that have made their certificates themselves."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    server_name: str | None = None
    verify: bool = True
    allowed: Allowed = field(default_factory=Allowed)
    versions: TlsVersions = field(default_factory=TlsVersions)

    def context(self) -> ssl.SSLContext:
        """Raises OSError or ssl.SSLError."""
        context = ssl.create_default_context(cafile=self.ca_file)
        self.versions.apply(context)
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
