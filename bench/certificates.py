"""A certificate authority for one run, and the certificate that every member and client shows on 127.0.0.1."""

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAYS = 2


class Certificates:
    """Files in a folder, the flags that name them, and the client's context."""

    def __init__(self, folder: Path) -> None:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = _signed("bench CA", authority_key, "bench CA", authority_key, authority=True)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _signed("member", key, "bench CA", authority_key)
        files = {"trusted-ca-file": folder / "ca.pem", "cert-file": folder / "member.pem"}
        files["key-file"] = folder / "member.key"
        files["trusted-ca-file"].write_bytes(authority.public_bytes(serialization.Encoding.PEM))
        files["cert-file"].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        files["key-file"].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        self.flags = [f"--{prefix}{name}={path}" for prefix in ("", "peer-") for name, path in files.items()]
        self.context = ssl.create_default_context(cafile=str(files["trusted-ca-file"]))
        self.context.load_cert_chain(files["cert-file"], files["key-file"])  # etcd asks for one where a CA is named
        self.context.set_alpn_protocols(["h2"])


def _signed(
    name: str, key: ec.EllipticCurvePrivateKey, by: str, by_key: ec.EllipticCurvePrivateKey, *, authority: bool = False
) -> x509.Certificate:
    began = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    alternatives: list[x509.GeneralName] = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    ]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, by)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(began)
        .not_valid_after(began + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(by_key, hashes.SHA256())
    )
