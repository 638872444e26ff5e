"""Certificates for tests: an authority, what it signed, and another authority that nobody believes.

    certificates.ca                          # believed by both ends
    certificates.server.cert, .server.key    # for 127.0.0.1, ::1 and localhost; good for both ends
    certificates.client.cert, .client.key
    certificates.other_ca, certificates.other
    certificates.renew_server()              # the same files, another certificate

All are EC keys, so a set takes milliseconds. The fixture `certificates` (tests/conftest.py) makes one set per session.
"""

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = datetime.timedelta(days=30)
NAMES = [
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
]


@dataclass(frozen=True)
class Pair:
    """PEM files."""

    cert: Path
    key: Path

    @property
    def serial(self) -> int:
        """Of the certificate in the file."""
        return serial_of(self.cert.read_text())


def serial_of(pem: str) -> int:
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


class Authority:
    """Signs. `path` is its certificate."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        self.path = folder / f"{name}.pem"
        authority = (
            _builder(self._name, self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.path.write_bytes(_pem(authority))

    def sign(self, name: str, file: str = "", names: Sequence[x509.GeneralName] = NAMES) -> Pair:
        """A certificate that is good for both ends of a connection.

        name: its common name. names: its alternative ones; this machine's loopback names. file: of what the files are
        called; written last the certificate, so that whoever waits for a change of it finds both.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(name), self._name, key.public_key()).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pair = Pair(self._folder / f"{file or name}.crt", self._folder / f"{file or name}.key")
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        _replace(pair.key, private)
        _replace(pair.cert, _pem(certificate))
        return pair

    def revoke(self, pairs: tuple[Pair, ...]) -> Path:
        """A list that names those and no others; it takes the place of the last one."""
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._name).last_update(now)
        builder = builder.next_update(now + VALID)
        for pair in pairs:
            one = x509.RevokedCertificateBuilder().serial_number(pair.serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(one)
        path = self.path.with_suffix(".crl")
        _replace(path, builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return path


class Certificates:
    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder, "ca")
        self.other_authority = Authority(folder, "other-ca")
        self.ca = self.authority.path
        self.other_ca = self.other_authority.path
        self.server = self.authority.sign("server")
        self.client = self.authority.sign("client")
        self.other = self.other_authority.sign("other")

    def revoke(self, *pairs: Pair) -> Path:
        """The authority's list of revoked certificates. For a set of one's own."""
        return self.authority.revoke(pairs)

    def renew_server(self) -> None:
        """Takes the place of `server` on the disk. For a set of one's own: the session's is shared."""
        self.authority.sign("server")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + VALID)
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _replace(path: Path, content: bytes) -> None:
    """At once: a reader finds the old file or this one."""
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)
