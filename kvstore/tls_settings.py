"""The TLS settings of a member: what belongs together, and what contradicts itself and is refused.

A port that its owner believes to ask for certificates does; so a flag that would have no effect is an error here, with
one line that says which other flag is missing.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstore.ciphers import openssl_names

if TYPE_CHECKING:
    from kvstore.config import _Values

VERSIONS: Final = {"TLS1.2": ssl.TLSVersion.TLSv1_2, "TLS1.3": ssl.TLSVersion.TLSv1_3}
YEARS_MAX: Final = 100
GENERATED: Final = {"": "fixtures/client", "peer-": "fixtures/peer"}  # below the data directory, as etcd has it


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Of the client ports, or of the peers' port. client_auth: who connects must show a certificate of ca_file's."""

    cert_file: Path
    key_file: Path
    ca_file: Path | None = None
    client_auth: bool = False
    crl_file: Path | None = None
    allowed_names: tuple[str, ...] = ()  # a certificate must have one of these common names ...
    allowed_hosts: tuple[str, ...] = ()  # ... or of these host names
    of_its_address: bool = False  # ... and be of the machine that shows it
    dialing_cert_file: Path | None = None  # shown to peers instead of cert_file
    dialing_key_file: Path | None = None
    generated_years: int = 0  # certificate and key are made at the start, for so long; 0: they are the user's
    minimum: str = "TLS1.2"
    maximum: str = ""
    ciphers: tuple[str, ...] = ()  # by OpenSSL's names


def tls_files(
    values: "_Values", prefix: str, listeners: tuple[str, ...], data_dir: Path, notes: list[str]
) -> TlsFiles | None:
    """The files behind the listeners' https:// URLs; prefix: "" or "peer-". Raises SettingsError."""
    cert_flag, key_flag, ca_flag, auth_flag = (
        prefix + name for name in ("cert-file", "key-file", "trusted-ca-file", "client-cert-auth")
    )
    cert, key, ca = (values.path(flag) for flag in (cert_flag, key_flag, ca_flag))
    urls = [(flag, url) for flag in listeners for url in values.urls(flag)]
    secure = [(flag, url) for flag, url in urls if url.startswith("https://")]
    years = _generated_years(values, prefix, has_secure=bool(secure), has_cert=cert is not None, notes=notes)
    if years:
        folder = data_dir / GENERATED[prefix]
        cert, key = folder / "cert.pem", folder / "key.pem"
    if (cert is None) != (key is None):
        given, missing = (cert_flag, key_flag) if key is None else (key_flag, cert_flag)
        raise values.error(given, f"--{missing} is needed too")
    if values.boolean(auth_flag) and ca is None:
        raise values.error(auth_flag, f"--{ca_flag} is needed too: whose certificates are to be believed?")
    if secure and cert is None:
        flag, url = secure[0]
        raise values.error(flag, f"{url}: https:// needs --{cert_flag} and --{key_flag}")
    if ca is not None and not secure:
        raise values.error(
            auth_flag if values.boolean(auth_flag) else ca_flag,
            f"nobody is asked for a certificate at {urls[0][1]}: give --{urls[0][0]} an https:// URL, or leave it out",
        )
    names, hosts, crl = _about_certificates(values, prefix, ca_flag, has_ca=ca is not None)
    minimum, maximum, ciphers = _versions(values)
    dialing = _dialing(values) if prefix else (None, None)
    if cert is None or key is None:
        return None
    # etcd says so too, and goes on.
    notes += [
        f"--{flag}: {url} does not speak TLS, --{cert_flag} has no effect there"
        for flag, url in urls
        if (flag, url) not in secure
    ]
    return TlsFiles(
        cert_file=cert,
        key_file=key,
        ca_file=ca,
        client_auth=ca is not None,
        crl_file=crl,
        allowed_names=names,
        allowed_hosts=hosts,
        of_its_address=prefix != "" and ca is not None and not values.boolean("peer-skip-client-san-verification"),
        dialing_cert_file=dialing[0],
        dialing_key_file=dialing[1],
        generated_years=years,
        minimum=minimum,
        maximum=maximum,
        ciphers=ciphers,
    )


def _generated_years(values: "_Values", prefix: str, *, has_secure: bool, has_cert: bool, notes: list[str]) -> int:
    flag = f"{prefix}auto-tls"
    years = values.integer("self-signed-cert-validity", 1, YEARS_MAX)
    if not values.boolean(flag):
        return 0
    if has_cert:
        notes.append(f"--{flag} has no effect: --{prefix}cert-file is given")
        return 0
    for other in ("trusted-ca-file", "client-cert-auth"):
        if values.given(prefix + other) and values.text(prefix + other) not in ("", "false"):
            raise values.error(
                flag, f"--{prefix}{other} contradicts it: no authority signs a certificate that a member makes itself"
            )
    if not has_secure:
        raise values.error(flag, f"no URL of {'--listen-peer-urls' if prefix else '--listen-client-urls'} is https://")
    return years


def _about_certificates(
    values: "_Values", prefix: str, ca_flag: str, *, has_ca: bool
) -> tuple[tuple[str, ...], tuple[str, ...], Path | None]:
    """What is asked of a certificate that an authority has signed: allowed names, allowed hosts, who is revoked."""
    names_flag, hosts_flag, crl_flag = "peer-cert-allowed-cn", f"{prefix or 'client-'}cert-allowed-hostname", ""
    crl_flag = f"{prefix or 'client-'}crl-file"
    names = values.listed(names_flag) if prefix else ()
    hosts = values.listed(hosts_flag)
    crl = values.path(crl_flag)
    for flag, given in ((names_flag, names), (hosts_flag, hosts), (crl_flag, crl)):
        if given and not has_ca:
            raise values.error(flag, f"--{ca_flag} is needed too: without it nobody is asked for a certificate")
    if names and hosts:
        raise values.error(names_flag, f"--{hosts_flag} contradicts it: one of the two")
    return names, hosts, crl


def _versions(values: "_Values") -> tuple[str, str, tuple[str, ...]]:
    minimum, maximum = values.text("tls-min-version") or "TLS1.2", values.text("tls-max-version")
    for flag, version in (("tls-min-version", minimum), ("tls-max-version", maximum)):
        if version and version not in VERSIONS:
            raise values.error(flag, f"{version!r} is none of {', '.join(VERSIONS)}")
    if maximum and VERSIONS[maximum] < VERSIONS[minimum]:
        raise values.error("tls-max-version", f"{maximum} is below --tls-min-version={minimum}")
    chosen = values.listed("cipher-suites")
    try:
        ciphers = openssl_names(chosen)
    except ValueError as error:
        raise values.error("cipher-suites", f"{str(error)!r} is no cipher suite that is served") from None
    if chosen and minimum == "TLS1.3":
        raise values.error("cipher-suites", "those of TLS1.3 cannot be chosen; leave it out")
    if chosen and not ciphers:
        raise values.error("cipher-suites", "it has no suite of TLS1.2: --tls-min-version=TLS1.3 says that")
    return minimum, maximum, ciphers


def _dialing(values: "_Values") -> tuple[Path | None, Path | None]:
    cert, key = values.path("peer-client-cert-file"), values.path("peer-client-key-file")
    if (cert is None) != (key is None):
        given, missing = ("cert", "key") if key is None else ("key", "cert")
        raise values.error(f"peer-client-{given}-file", f"--peer-client-{missing}-file is needed too")
    return cert, key
