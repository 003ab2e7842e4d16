"""Images that share layers, as those of one project do: what one name needs, other names need too."""

from collections.abc import Iterator

from tests.support.images import BuiltImage, build_image, build_index, random_layer

# From a few blocks to more than one read and one write of the library take at once.
_LAYER_SIZES_BYTES = (2048, 4096, 8192, 16_384, 65_536, 262_144, 1_310_720)
_LAYERS = 3


def build_family(
    count: int = 12, *, salt: str = "", with_indexes: bool = True, own_layer_bytes: int = 0
) -> list[BuiltImage]:
    """Return so many different images over seven layers, three for each.

    Args:
        count: How many.
        salt: Makes them others; the seven layers stay.
        with_indexes: Whether every fourth is an index of two platforms, one of which is an image of its own too.
        own_layer_bytes: The size of a fourth layer that no other image has; 0 for none.
    """
    return list(_iter_family(count, salt, with_indexes, own_layer_bytes))


def _iter_family(count: int, salt: str, with_indexes: bool, own_layer_bytes: int) -> Iterator[BuiltImage]:
    layers = [random_layer(size_bytes, salt="family") for size_bytes in _LAYER_SIZES_BYTES]
    last: BuiltImage | None = None
    for number in range(count):
        chosen = [layers[(number + step * step) % len(layers)] for step in range(_LAYERS)]
        if own_layer_bytes:
            chosen.append(random_layer(own_layer_bytes, salt=f"{salt}/{number}"))
        image = build_image(chosen, salt=f"{salt}/{number}")
        if with_indexes and number % 4 == 3 and last is not None:
            arm64 = build_image(chosen, salt=f"{salt}/{number}", platform="linux/arm64")
            yield build_index([last, arm64])
        else:
            yield image
        last = image
