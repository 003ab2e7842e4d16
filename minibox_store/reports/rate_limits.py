"""How much of its service a registry grants, in its own words: a value for whoever plans pulls."""

import attrs

from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class RateLimit(Value):
    """What a registry said of its limit with one answer. None is what it did not say; nothing of it is checked.

    Attributes:
        limit: how many requests it grants in a window. Docker Hub counts each GET of a manifest, and no HEAD.
        remaining: how many of them are left.
        window_seconds: how long a window is.
        reset_seconds: how long after the answer the count begins anew.
        source: whom it counts: an address or an account, as it calls them.
    """

    limit: int | None = None
    remaining: int | None = None
    window_seconds: float | None = None
    reset_seconds: float | None = None
    source: str | None = None

    @property
    def wait_seconds(self) -> float | None:
        """How long it may take until something is granted again; None where something is left, or nobody knows.

        >>> RateLimit(limit=100, remaining=0, window_seconds=21600.0).wait_seconds
        21600.0
        """
        if self.remaining != 0:
            return None
        return self.window_seconds if self.reset_seconds is None else self.reset_seconds
