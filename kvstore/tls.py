"""From the TLS settings of a member to what its ports and channels use."""

import datetime
import ipaddress
import os
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from kvstore.tls_settings import VERSIONS, TlsFiles

if TYPE_CHECKING:
    from cryptography.x509 import GeneralName

    from kvstore.config import ServerConfig
    from kvstore.rpc import ChannelTls, ServerTls
    from kvstore.rpc.tls import TlsVersions

ORGANISATION: Final = "kvstore"
DAYS_PER_YEAR: Final = 365


def server_tls(files: TlsFiles | None) -> "ServerTls | None":
    from kvstore.rpc import ServerTls
    from kvstore.rpc.admission import Allowed

    if files is None:
        return None
    return ServerTls(
        cert_file=files.cert_file,
        key_file=files.key_file,
        client_ca_file=files.ca_file,
        client_auth=files.client_auth,
        crl_file=files.crl_file,
        allowed=Allowed(names=files.allowed_names, hosts=files.allowed_hosts),
        of_its_address=files.of_its_address,
        versions=_versions(files),
    )


def channel_tls(files: TlsFiles | None) -> "ChannelTls | None":
    """What a member shows to its peers, and whom of them it believes: whom it dials must be allowed as well."""
    from kvstore.rpc import ChannelTls
    from kvstore.rpc.admission import Allowed

    if files is None:
        return None
    return ChannelTls(
        ca_file=files.ca_file,
        cert_file=files.dialing_cert_file or files.cert_file,
        key_file=files.dialing_key_file or files.key_file,
        verify=not files.generated_years,
        allowed=Allowed(names=files.allowed_names, hosts=files.allowed_hosts),
        versions=_versions(files),
    )


def _versions(files: TlsFiles) -> "TlsVersions":
    from kvstore.rpc.tls import TlsVersions

    return TlsVersions(
        minimum=VERSIONS[files.minimum],
        maximum=VERSIONS.get(files.maximum, ssl.TLSVersion.MAXIMUM_SUPPORTED),
        ciphers=files.ciphers,
    )


def tls_problem(config: "ServerConfig", front: str) -> str:
    """Why the settings cannot be used; "" when they can. Of the fronts only one would tell."""
    for prefix, files in (("", config.client_tls), ("peer-", config.peer_tls)):
        tls = server_tls(files)
        if tls is None or files is None:
            continue
        beyond = tls.beyond_grpcio() or ("certificates that members make themselves" if files.generated_years else "")
        if front == "grpcio" and beyond:
            return f"--rpc=grpcio knows no {beyond}: leave out that setting of TLS, or take --rpc=nghttp2"
        problem = _file_problem(tls, prefix) if not files.generated_years else ""
        if problem:
            return problem
    return ""


def _file_problem(tls: "ServerTls", prefix: str) -> str:
    for path in tls.files():
        try:
            path.read_bytes()
        except OSError as error:
            return f"{path}, of the TLS settings, cannot be read: {error.strerror}"
    try:
        tls.context()
    except ssl.SSLError as error:
        return (
            f"--{prefix}cert-file, --{prefix}key-file and --{prefix}trusted-ca-file must be PEM files, and key "
            f"and certificate belong together: {error.reason or error}"
        )
    try:
        tls.revoked()
    except ValueError as error:
        return f"--{prefix or 'client-'}crl-file: {tls.crl_file} is no list of revoked certificates: {error}"
    return ""


def make_certificates(config: "ServerConfig") -> None:
    """Those of --auto-tls and --peer-auto-tls, unless there are some from an earlier start. Raises OSError."""
    for files, urls in (
        (config.client_tls, (*config.listen_client_urls, *config.advertise_client_urls)),
        (config.peer_tls, (*config.listen_peer_urls, *config.initial_advertise_peer_urls)),
    ):
        if files is not None and files.generated_years and not (files.cert_file.exists() and files.key_file.exists()):
            _make_certificate(files, sorted({urlsplit(url).hostname or "" for url in urls}))


def _make_certificate(files: TlsFiles, hosts: list[str]) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION)])
    now = datetime.datetime.now(datetime.UTC)
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(days=DAYS_PER_YEAR * files.generated_years))
        .add_extension(x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    files.cert_file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    _write(files.key_file, private)
    _write(files.cert_file, certificate.public_bytes(serialization.Encoding.PEM))


def _alternative(host: str) -> "GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _write(path: Path, content: bytes) -> None:
    """For this user's eyes only."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
