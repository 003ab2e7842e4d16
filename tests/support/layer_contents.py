"""What the layers of an image in a layout hold, by Python's own tar reader."""

import io
import json
import tarfile
from pathlib import Path

from tests.support.layouts import blob_path, read_layout_names


def layer_names(layout: Path, image: str) -> list[list[str]]:
    """Return the names of the members of each layer, gzip or plain, the lowest first."""
    manifest = json.loads(blob_path(layout, read_layout_names(layout)[image]["digest"]).read_bytes())
    found = []
    for layer in manifest["layers"]:
        content = blob_path(layout, layer["digest"]).read_bytes()
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            found.append(tar.getnames())
    return found
