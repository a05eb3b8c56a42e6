"""Certificates for tests: a CA of our own, good certificates and bad ones.

Files in a folder that the caller owns. Needs the package ``cryptography``, imported at first use.
"""

from __future__ import annotations

import datetime
import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its private key, as PEM files."""

    cert: Path
    key: Path


@dataclass(frozen=True)
class TlsFiles:
    """What one server and its clients need.

    Attributes:
        ca: The CA that signed both; clients of the server trust it.
        server: What the server shows.
        client: What a client may show.
        mutual: Whether the server refuses clients without a certificate of ``ca``.
        trusted: Whether the server's certificate is one that a client accepts; if not,
            :meth:`EtcdServer.ctl` does not verify it.
    """

    ca: Path
    server: KeyPair
    client: KeyPair
    mutual: bool = False
    trusted: bool = True


class TestCA:
    """A certificate authority in a folder.

    Each instance is another authority, so a second one makes the "wrong CA". Any thread;
    making a certificate takes about a millisecond.

    Attributes:
        ca: Path of the authority's certificate.

    Raises:
        RuntimeError: The package ``cryptography`` is not installed.

    Example:
        >>> authority = TestCA(tmp_path)
        >>> server = EtcdServer(tls=authority.files(expired=True))
    """

    __test__ = False  # pytest collects classes whose name starts with Test

    def __init__(self, directory: str | Path) -> None:
        _require_cryptography()
        from cryptography.hazmat.primitives.asymmetric import ec

        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._numbers = itertools.count(1)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _subject("etcd-core test CA")
        builder = _certificate(self._name, self._name, self._key.public_key(), _validity(False))
        self._own = _sign_ca(builder, self._key)
        self.ca = self._directory / "ca.pem"
        self.ca.write_bytes(_pem(self._own))

    def issue(self, name: str, *, hosts: Sequence[str] = _LOCAL, expired: bool = False) -> KeyPair:
        """Make a certificate that is good for servers and for clients.

        Args:
            name: Common name, which etcd with auth on takes for the user of a client that sends
                no password; empty for none.
            hosts: Host names and addresses it is valid for.
            expired: If true, it ended yesterday.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        builder = _certificate(_subject(name), self._name, key.public_key(), _validity(expired))
        # Both usages: the JSON gateway inside etcd dials its own port with the server's pair.
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(_alternatives(hosts)), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
        )
        stem = f"{next(self._numbers):02d}-{name.replace('/', '_') or 'client'}"
        pair = KeyPair(self._directory / f"{stem}.pem", self._directory / f"{stem}.key")
        pair.key.touch(mode=0o600)
        pair.key.write_bytes(_private_pem(key))
        pair.cert.write_bytes(_pem(builder.sign(self._key, hashes.SHA256())))
        return pair

    def files(
        self, *, mutual: bool = False, hosts: Sequence[str] = _LOCAL, expired: bool = False
    ) -> TlsFiles:
        """Make what a server and its clients need.

        Args:
            mutual: Whether the server asks its clients for a certificate (mTLS).
            hosts: What the server's certificate is valid for.
            expired: If true, the server's certificate ended yesterday.
        """
        return TlsFiles(
            ca=self.ca,
            server=self.issue("server", hosts=hosts, expired=expired),
            # No common name: with auth on etcd would take it for a user, and its JSON gateway
            # refuses a client that has one.
            client=self.issue(""),
            mutual=mutual,
            trusted=not expired and "127.0.0.1" in hosts,
        )


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as exc:
        raise RuntimeError(
            "certificates for tests need the package cryptography: pip install cryptography"
        ) from exc


def _subject(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    parts = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "etcd-core tests")]
    parts += [x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else []
    return x509.Name(parts)


def _validity(expired: bool) -> tuple[datetime.datetime, datetime.datetime]:
    day = datetime.timedelta(days=1)
    # A day in the past: the clocks of two machines, or of a container, need not agree.
    start = datetime.datetime.now(datetime.timezone.utc) - 2 * day
    return start, start + (day if expired else 365 * day)


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    validity: tuple[datetime.datetime, datetime.datetime],
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity[0])
        .not_valid_after(validity[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _sign_ca(builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )


def _alternatives(hosts: Sequence[str]) -> list[x509.GeneralName]:
    from cryptography import x509

    names: list[x509.GeneralName] = []
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    return names


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
