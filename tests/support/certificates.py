"""A certificate for the loopback host, made anew by openssl so that no key is ever kept in the project."""

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.peers import require_peer

# Written out whole, because a certificate must not depend on the machine's openssl.cnf.
_REQUEST = """\
[req]
prompt = no
distinguished_name = name
x509_extensions = extensions
[name]
CN = minibox test
[extensions]
subjectAltName = DNS:localhost,IP:127.0.0.1
basicConstraints = critical,CA:TRUE
keyUsage = critical,digitalSignature,keyCertSign
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
"""


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1 and localhost.

    Attributes:
        chain: The certificate, which is its own authority: what a client must trust.
        key: Its private key.
        authorities: A folder with nothing but the certificate as ``ca.crt``, as ``--src-cert-dir`` wants it.
    """

    chain: Path
    key: Path
    authorities: Path

    def server_context(self) -> ssl.SSLContext:
        """Return a context that presents this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts this certificate and no other."""
        return ssl.create_default_context(cafile=str(self.chain))


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate in ``folder``, valid for a day; skips or fails like :func:`require_peer` without openssl."""
    openssl = require_peer("openssl")
    authorities = folder / "authorities"
    authorities.mkdir(parents=True, exist_ok=True)
    certificate = Certificate(chain=authorities / "ca.crt", key=folder / "server.key", authorities=authorities)
    request = folder / "request.cnf"
    request.write_text(_REQUEST)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    files = ("-config", request, "-keyout", certificate.key, "-out", certificate.chain)
    subprocess.run([openssl, "req", "-x509", *curve, "-days", "1", *files], check=True, capture_output=True, timeout=30)
    return certificate
