"""TLS: the certificate that the daemon shows, read anew when it is told to, and what it speaks at least."""

import os
import ssl
import stat

from minibox_server.settings import Settings, SettingsError

# Of TLS 1.2 what has forward secrecy and authenticates as it encrypts; those of 1.3 are all so.
_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


def open_context(settings: Settings) -> ssl.SSLContext | None:
    """Return what the daemon speaks TLS with; None where it does not.

    Raises:
        SettingsError: when a file cannot be read, the key is another certificate's, or others may read the key.
    """
    if settings.tls_certificate is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    _load(context, settings)
    return context


def reload_context(context: ssl.SSLContext, settings: Settings) -> None:
    """Let new connections see the certificate that the files hold now; where they are wrong, the old one stays.

    Raises:
        SettingsError: as :func:`open_context`.
    """
    # A key that does not match would be found once the certificate is in place already.
    open_context(settings)
    _load(context, settings)


def _load(context: ssl.SSLContext, settings: Settings) -> None:
    assert settings.tls_certificate is not None
    assert settings.tls_key is not None
    _check_file("MINIBOX_TLS_CERTIFICATE", settings.tls_certificate)
    if _check_file("MINIBOX_TLS_KEY", settings.tls_key) & (stat.S_IROTH | stat.S_IWOTH):
        raise SettingsError(f"MINIBOX_TLS_KEY: everybody on this machine may read {settings.tls_key}; take that away")
    try:
        # An empty password, so that a key which is encrypted is an error, and no question at a terminal.
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (ssl.SSLError, OSError) as error:
        problem = (getattr(error, "reason", None) or "they cannot be read").lower().replace("_", " ")
        raise SettingsError(
            f"MINIBOX_TLS_CERTIFICATE and MINIBOX_TLS_KEY are no certificate and its key: {problem}"
        ) from error


def _check_file(name: str, path: str) -> int:
    """Return the mode of a file that can be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsError(f"{name}: {path} cannot be read: {error.strerror}") from error
    try:
        mode = os.fstat(descriptor).st_mode
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(mode):
        raise SettingsError(f"{name}: {path} is no regular file")
    return mode
