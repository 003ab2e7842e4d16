"""Certificates of the loopback host, and of its clients, made anew by openssl so that no key is kept in the project."""

import shutil
import ssl
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.peers import require_peer

# Written out whole, because a certificate must not depend on the machine's openssl.cnf.
_REQUEST = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = {name}
[extensions]
{extensions}
subjectKeyIdentifier = hash
"""
_NAMES = ("registry", "storage", "tokens", "mirror", "proxy")
_HOSTS = ",".join(("subjectAltName = DNS:localhost,IP:127.0.0.1", *(f"DNS:{name}.test" for name in _NAMES)))
_AUTHORITY = "basicConstraints = critical,CA:TRUE\nkeyUsage = critical,digitalSignature,keyCertSign"
_LEAF = "basicConstraints = critical,CA:FALSE\nkeyUsage = critical,digitalSignature\nauthorityKeyIdentifier = keyid"


@dataclass(frozen=True, kw_only=True)
class ClientCertificate:
    """What a client proves itself with: a certificate in ``chain``, and its ``key``."""

    chain: Path
    key: Path
    name: str


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A certificate for 127.0.0.1, localhost and the ``.test`` names of tests.

    Attributes:
        chain: The certificate; one that is self-signed is its own authority: what a client must trust.
        key: Its private key.
        authorities: A folder with nothing but the authority as ``ca.crt``, as ``--src-cert-dir`` wants it.
        client_authority: Whose client certificates its server asks for; a client without any is let in by a
            scripted server.
        client: What :meth:`client_context` proves itself with.
    """

    chain: Path
    key: Path
    authorities: Path
    client_authority: Path | None = None
    client: ClientCertificate | None = None

    def server_context(self) -> ssl.SSLContext:
        """Return a context that presents this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        if self.client_authority is not None:
            context.load_verify_locations(self.client_authority)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts this certificate and no other."""
        context = ssl.create_default_context(cafile=str(self.authorities / "ca.crt"))
        if self.client is not None:
            context.load_cert_chain(self.client.chain, self.client.key)
        return context


@dataclass(frozen=True, kw_only=True)
class Authority:
    """An authority of a house of its own, which vouches for servers and clients."""

    certificate: Path
    key: Path

    def for_server(self, *, clients: "Authority | None" = None, client: ClientCertificate | None = None) -> Certificate:
        """Return a certificate for a server, which asks for those that ``clients`` has made."""
        folder = self.certificate.parent
        extensions = f"{_HOSTS}\n{_LEAF}\nextendedKeyUsage = serverAuth"
        chain, key = _make(folder / "server", "minibox test server", extensions, self)
        made = Certificate(chain=chain, key=key, authorities=folder / "authorities")
        made.authorities.mkdir(exist_ok=True)
        shutil.copy(self.certificate, made.authorities / "ca.crt")
        return replace(made, client_authority=clients.certificate if clients else None, client=client)

    def for_client(self, name: str) -> ClientCertificate:
        """Return a certificate for a client of this name."""
        chain, key = _make(self.certificate.parent / name, name, f"{_LEAF}\nextendedKeyUsage = clientAuth", self)
        return ClientCertificate(chain=chain, key=key, name=name)


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate in ``folder``, valid for a day; skips or fails like :func:`require_peer` without openssl."""
    authorities = folder / "authorities"
    authorities.mkdir(parents=True, exist_ok=True)
    extensions = f"{_HOSTS}\n{_AUTHORITY}\nextendedKeyUsage = serverAuth"
    chain, key = _make(folder / "server", "minibox test", extensions, None)
    return Certificate(chain=chain.rename(authorities / "ca.crt"), key=key, authorities=authorities)


def make_authority(folder: Path) -> Authority:
    """Make an authority in ``folder``, valid for a day; skips or fails like :func:`require_peer` without openssl."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = _make(folder / "authority", f"minibox test {folder.name}", _AUTHORITY, None)
    return Authority(certificate=certificate, key=key)


def write_certificates(
    folder: Path, host: str, *, authority: Path | None = None, client: ClientCertificate | None = None
) -> Path:
    """Write what Docker and Podman would know of a host into ``folder/host``, and return that."""
    place = folder / host
    place.mkdir(parents=True, exist_ok=True)
    if authority is not None:
        shutil.copy(authority, place / "ca.crt")
    if client is not None:
        shutil.copy(client.chain, place / "client.cert")
        shutil.copy(client.key, place / "client.key")
    return place


def _make(stem: Path, name: str, extensions: str, authority: Authority | None) -> tuple[Path, Path]:
    """Make a certificate that ``authority``, or itself, vouches for; return it and its key."""
    request, chain, key = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("cnf", "crt", "key"))
    request.write_text(_REQUEST.format(name=name, extensions=extensions))
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-config", request, "-keyout", key, "-out", chain)
    signed = ("-CA", authority.certificate, "-CAkey", authority.key) if authority else ()
    command = [require_peer("openssl"), "req", "-x509", *curve, "-days", "1", *files, *signed]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return chain, key
