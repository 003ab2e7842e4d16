"""What stands beside a root filesystem in ``base_layers/``: whose it is, and of what it was made."""

import attrs

from minibox_store.codec.strict import dump, load_object, structure
from minibox_store.digest import Digest
from minibox_store.limits import MAX_BASE_LAYER_BYTES
from minibox_store.values import Value


@attrs.frozen(kw_only=True, repr=False)
class BaseLayer(Value):
    """Whose root filesystem a tree is: the name it was pulled under, and what was unpacked into it."""

    name: str
    manifest_digest: Digest
    config_digest: Digest


def decode_base_layer(content: bytes, document: str = "base layer") -> BaseLayer:
    """Return what ``base_layers/<image_tag>.json`` says; fields that are not known are ignored.

    Raises:
        InvalidDocument: when it is none.
    """
    return structure(load_object(content, document, MAX_BASE_LAYER_BYTES), BaseLayer, document)


def encode_base_layer(layer: BaseLayer) -> bytes:
    """Return the bytes of ``base_layers/<image_tag>.json``. Equal values give equal bytes."""
    return dump(
        {
            "name": layer.name,
            "manifest_digest": str(layer.manifest_digest),
            "config_digest": str(layer.config_digest),
        }
    )
