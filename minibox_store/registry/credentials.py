"""A user and a password, so that printing them by accident tells nobody the password."""

import base64

import attrs


def _masked(_: object) -> str:
    return "***"


@attrs.frozen
class Credentials:
    """What a registry, or its token server, is told about who asks. Neither ``repr`` nor ``str`` shows the password.

    Raises:
        ValueError: on construction, when the user name has a colon, which Basic authentication cannot carry.

    Spec: RFC 7617, section 2.
    """

    username: str
    password: str = attrs.field(repr=_masked)

    def __attrs_post_init__(self) -> None:
        if ":" in self.username:
            raise ValueError("a user name must have no colon")

    @property
    def basic(self) -> str:
        """The Authorization value that carries both, readable by whoever sees it."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")
