"""TLS settings: what belongs together is taken, what contradicts itself is refused with one line."""

import ssl
from pathlib import Path

import pytest

from kvstore.ciphers import openssl_names
from kvstore.config import SettingsError, resolve
from kvstore.tls import channel_tls, server_tls

CLIENT = {
    "listen-client-urls": "https://localhost:2379",
    "advertise-client-urls": "https://localhost:2379",
    "cert-file": "c",
    "key-file": "k",
}
PEER = {
    "listen-peer-urls": "https://localhost:2380",
    "initial-advertise-peer-urls": "https://localhost:2380",
    "peer-cert-file": "c",
    "peer-key-file": "k",
}
ASKED = CLIENT | {"trusted-ca-file": "a"}
PEER_ASKED = PEER | {"peer-trusted-ca-file": "a"}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (CLIENT | {"client-crl-file": "x"}, "--client-crl-file: --trusted-ca-file is needed too"),
        ({"client-crl-file": "x"}, "--client-crl-file: --trusted-ca-file is needed too"),
        (PEER | {"peer-crl-file": "x"}, "--peer-crl-file: --peer-trusted-ca-file is needed too"),
        (PEER | {"peer-cert-allowed-cn": "m"}, "--peer-cert-allowed-cn: --peer-trusted-ca-file is needed too"),
        (PEER | {"peer-cert-allowed-hostname": "m"}, "--peer-cert-allowed-hostname: --peer-trusted-ca-file is needed"),
        (CLIENT | {"client-cert-allowed-hostname": "m"}, "--client-cert-allowed-hostname: --trusted-ca-file is needed"),
        (
            PEER_ASKED | {"peer-cert-allowed-cn": "m", "peer-cert-allowed-hostname": "h"},
            "--peer-cert-allowed-cn: --peer-cert-allowed-hostname contradicts it",
        ),
        ({"auto-tls": "true"}, "--auto-tls: no URL of --listen-client-urls is https://"),
        ({"peer-auto-tls": "true"}, "--peer-auto-tls: no URL of --listen-peer-urls is https://"),
        (
            {
                "auto-tls": "true",
                "trusted-ca-file": "a",
                "listen-client-urls": "https://a:1",
                "advertise-client-urls": "https://a:1",
            },
            "--auto-tls: --trusted-ca-file contradicts it",
        ),
        ({"self-signed-cert-validity": "0"}, "--self-signed-cert-validity: 0 is not in 1..100"),
        ({"tls-min-version": "TLS1.1"}, "--tls-min-version: 'TLS1.1' is none of TLS1.2, TLS1.3"),
        ({"tls-max-version": "1.3"}, "--tls-max-version: '1.3' is none of TLS1.2, TLS1.3"),
        (
            {"tls-min-version": "TLS1.3", "tls-max-version": "TLS1.2"},
            "--tls-max-version: TLS1.2 is below --tls-min-version=TLS1.3",
        ),
        ({"cipher-suites": "NOPE"}, "--cipher-suites: 'NOPE' is no cipher suite that is served"),
        ({"cipher-suites": "TLS_AES_128_GCM_SHA256"}, "--cipher-suites: it has no suite of TLS1.2"),
        (
            {"cipher-suites": "TLS_RSA_WITH_AES_128_GCM_SHA256", "tls-min-version": "TLS1.3"},
            "--cipher-suites: those of TLS1.3 cannot be chosen",
        ),
        ({"peer-client-cert-file": "x"}, "--peer-client-cert-file: --peer-client-key-file is needed too"),
        ({"peer-client-key-file": "x"}, "--peer-client-key-file: --peer-client-cert-file is needed too"),
    ],
)
def test_what_is_refused(flags: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError) as refused:
        resolve(flags, {})
    assert str(refused.value).startswith(text)


def test_what_becomes_of_them() -> None:
    config = resolve(
        PEER_ASKED
        | ASKED
        | {
            "peer-cert-allowed-cn": "m1, m2",
            "peer-crl-file": "r",
            "client-crl-file": "q",
            "client-cert-allowed-hostname": "h",
            "tls-min-version": "TLS1.3",
            "peer-client-cert-file": "dc",
            "peer-client-key-file": "dk",
        },
        {},
    )
    peer, client = server_tls(config.peer_tls), server_tls(config.client_tls)
    assert peer is not None
    assert client is not None
    assert (peer.allowed.names, peer.allowed.hosts, peer.crl_file) == (("m1", "m2"), (), Path("r"))
    assert (client.allowed.names, client.allowed.hosts, client.crl_file) == ((), ("h",), Path("q"))
    assert peer.versions.minimum == client.versions.minimum == ssl.TLSVersion.TLSv1_3
    dial = channel_tls(config.peer_tls)
    assert dial is not None
    assert (dial.cert_file, dial.key_file, dial.allowed, dial.verify) == (Path("dc"), Path("dk"), peer.allowed, True)
    assert (peer.of_its_address, client.of_its_address) == (True, False)
    assert peer.beyond_grpcio() == "a list of revoked certificates"


@pytest.mark.parametrize(
    "flag", ["peer-skip-client-san-verification", "experimental-peer-skip-client-san-verification"]
)
def test_a_peer_may_come_from_anywhere(flag: str, tmp_path: Path) -> None:
    for given, checked in (("true", False), ("false", True)):
        tls = server_tls(resolve(PEER_ASKED | {flag: given}, {}).peer_tls)
        assert tls is not None
        assert tls.of_its_address is checked
        assert ("--peer-skip-client-san-verification" in tls.beyond_grpcio()) is checked
    file = tmp_path / "etcd.yaml"
    file.write_text(
        "peer-transport-security: {skip-client-san-verification: true}\n"
        "client-transport-security: {skip-client-san-verification: true}\n"
    )
    tls = server_tls(resolve(PEER_ASKED | {"config-file": str(file)}, {}).peer_tls)
    assert tls is not None
    assert not tls.of_its_address


def test_certificates_of_ones_own() -> None:
    urls = {name: text for name, text in (CLIENT | PEER).items() if "file" not in name}
    config = resolve(urls | {"auto-tls": "true", "peer-auto-tls": "true", "data-dir": "d"}, {})
    assert config.client_tls is not None
    assert config.client_tls.cert_file == Path("d/fixtures/client/cert.pem")
    assert config.peer_tls is not None
    assert config.peer_tls.generated_years == 1
    dial = channel_tls(config.peer_tls)
    assert dial is not None
    assert not dial.verify
    config = resolve(CLIENT | {"auto-tls": "true"}, {})
    assert config.client_tls is not None
    assert config.client_tls.generated_years == 0
    assert "--auto-tls has no effect: --cert-file is given" in config.notes


def test_every_suite_is_known_to_openssl() -> None:
    known = {cipher["name"] for cipher in _every_cipher()}
    names = openssl_names(["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_AES_128_GCM_SHA256"])
    assert names == ("ECDHE-RSA-AES128-GCM-SHA256",)
    from kvstore.ciphers import _OPENSSL

    assert set(_OPENSSL.values()) <= known


def _every_cipher() -> list[dict[str, str]]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context.get_ciphers()  # type: ignore[return-value]
