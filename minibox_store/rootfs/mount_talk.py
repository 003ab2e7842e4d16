"""What a process that mounts an image and the one that serves the mount say to each other, through two pipes.

The one that mounts writes a MountOrder, then, once it was told that the image is opened, the directory, and then keeps
the pipe open for as long as it wants the mount. It is told a line for each step: ``opened DIGEST``, ``mounted``, or
``failed``, with the error behind it. Both run the same code as the same user, and yet it takes no more from what it
reads than errors of this library: the other one reads what a stranger has packed.
"""

import io
import pickle
from typing import IO, Any

import attrs

from minibox_store.errors import StoreError
from minibox_store.values import Value

OPENED = b"opened"
MOUNTED = b"mounted"
FAILED = b"failed"


@attrs.frozen(kw_only=True, repr=False)
class MountOrder(Value):
    """What is to be mounted.

    Attributes:
        parent_pid: of the process that wants the mount, which is not there for longer than that one.
        image: whatever the server's way to open an image takes.
    """

    parent_pid: int
    image: Any


def encode(what: Any) -> bytes:
    """Return what this process tells the server: an order, or a directory."""
    return pickle.dumps(what)


def decode_next(stream: IO[bytes]) -> Any:
    """Return what the process that mounts tells next; it began this one, and is believed.

    Raises:
        EOFError: when it wants the mount no more.
    """
    return pickle.load(stream)


def encode_failure(error: StoreError) -> bytes:
    """Return what stands behind ``failed``."""
    return pickle.dumps(error)


def decode_failure(content: bytes) -> StoreError:
    """Return the error that stands behind ``failed``.

    Raises:
        ValueError: when it is something else.
    """
    try:
        error = _ErrorReader(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError) as problem:
        raise ValueError("it is no error of this library") from problem
    if not isinstance(error, StoreError):
        raise ValueError("it is no error of this library")
    return error


class _ErrorReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == StoreError.__module__:
            found = super().find_class(module, name)
            if isinstance(found, type) and issubclass(found, StoreError):
                return found
        raise pickle.UnpicklingError(f"{module}.{name} is no error of this library")
