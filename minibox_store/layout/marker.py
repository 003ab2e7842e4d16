"""What is wrong with ``oci-layout``, and how it is written anew: it says one thing, which every store says.

One of another version is no damage: it is left alone, and so is all that it stands for.
"""

import re

import attrs

from minibox_store import _files, _moving, _signatures
from minibox_store.codec import decode_layout_marker, encode_layout_marker
from minibox_store.errors import InvalidDocument, StoreDamaged
from minibox_store.layout.layout import Layout
from minibox_store.layout.replacing import FILE_MODE
from minibox_store.layout.setting_aside import keep_aside
from minibox_store.reports.store import Finding, FindingKind, MendedBlob, UnmendedBlob
from minibox_store.values import Value

_NAME = "oci-layout"
_ORIGIN = "what every layout says"
_OTHER_VERSION = "it may be of a version that this library does not know"
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*", re.ASCII)


@attrs.frozen(kw_only=True, repr=False)
class MarkerRepair(Value):
    """What was done about ``oci-layout``: nothing, where it is as it should be."""

    mended: tuple[MendedBlob, ...] = ()
    unmended: tuple[UnmendedBlob, ...] = ()


def find_marker_damage(layout: Layout) -> tuple[Finding, ...]:
    """Return what is wrong with ``oci-layout``, if anything is. One that is missing comes with the next change."""
    try:
        layout.has_marker()
    except StoreDamaged as damage:
        found = _signatures.signature(layout.paths.marker)
        kind: FindingKind = "unreadable" if found is None or found.is_regular else "not a file"
        return (Finding(kind=kind, path=_NAME, digest=None, problem=damage.problem),)
    except PermissionError as error:
        return (Finding(kind="unreadable", path=_NAME, digest=None, problem=str(error)),)
    return ()


def mend_marker(layout: Layout) -> MarkerRepair:
    """Write ``oci-layout`` anew where it is damaged, under the store lock; what was there is kept aside."""
    if not find_marker_damage(layout):
        return MarkerRepair()
    layout.prepare_folders()
    layout.has_hard_links()  # tried by a transaction's lock, for which nobody asks who holds the store lock
    with layout.store_lock("mending oci-layout"):
        for finding in find_marker_damage(layout):
            if _is_of_other_version(layout):
                return MarkerRepair(
                    unmended=(UnmendedBlob(finding=finding, kept_aside=None, problems=(_OTHER_VERSION,)),)
                )
            with _files.replacing_file(layout.paths.marker, mode=FILE_MODE, durable=layout.durable) as opened:
                _moving.write_all(opened, encode_layout_marker())
                keep_aside(layout, layout.paths.marker, _NAME)
            return MarkerRepair(mended=(MendedBlob(finding=finding, origin=_ORIGIN),))
    return MarkerRepair()  # somebody has mended it meanwhile


def _is_of_other_version(layout: Layout) -> bool:
    try:
        content = _files.read_whole(layout.paths.marker, layout.limits.error_bytes)
        version = decode_layout_marker(content, any_version=True).image_layout_version
    except InvalidDocument:
        return False
    except PermissionError:
        return True
    except OSError as error:
        if error.errno not in _files.DAMAGE:
            raise
        return False
    return _VERSION.fullmatch(version) is not None
