"""A session with one registry: whom it is with, as whom, and, where TLS is only tried, whether it is spoken at all."""

from collections.abc import Callable, Mapping

import attrs

from minibox_store.registry.connections import ConnectionPool
from minibox_store.registry.credentials import Credentials
from minibox_store.registry.failures import LineInterrupted, shows_no_tls
from minibox_store.registry.urls import Origin
from minibox_store.values import Value

FindCredentials = Callable[[Callable[[], None]], Credentials | None]


@attrs.frozen(kw_only=True, repr=False)
class Session(Value):
    """Whom a transport talks to, and as whom: the registry, the scope, and what may see the credentials.

    Credentials are looked for when the registry first asks for them, with what raises once nobody waits any more.
    Every request has the headers, wherever it goes.
    """

    registry: Origin
    scope: str
    find_credentials: FindCredentials
    realms: frozenset[Origin]
    headers: Mapping[str, str]


def meet(
    pool: ConnectionPool, plain: Callable[[], tuple[Session, ConnectionPool]]
) -> tuple[Session, ConnectionPool] | None:
    """See whether a registry with which TLS is only tried speaks it; nothing is sent.

    The connection that was made is the one that is used next.

    Args:
        pool: of the session with TLS; closed where there is none.
        plain: makes the session without.

    Returns:
        The session without TLS and its pool, where the registry is reached by that alone; else None.

    Raises:
        OSError: when it is reached by neither, or by TLS that fails.
    """
    try:
        pool.meet_home()
    except OSError as error:
        if not shows_no_tls(error):
            raise
        session, plain_pool = plain()
        try:
            plain_pool.meet_home()
        except LineInterrupted:
            raise
        except OSError:
            raise error from None  # nobody is there, with TLS or without
        pool.close()
        return session, plain_pool
    return None
