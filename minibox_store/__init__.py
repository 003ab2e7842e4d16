"""OCI container images in Python: pull, store, save, load and collect them, every byte verified.

:class:`Store` is the face of it all. The names of this module are the public ones; each is loaded when it is first
used, so that importing the package costs next to nothing.
"""

from typing import TYPE_CHECKING

from minibox_store.lazy import load_name

if TYPE_CHECKING:
    from minibox_store.archive.formats import ArchiveCompression as ArchiveCompression
    from minibox_store.archive.formats import ArchiveFormat as ArchiveFormat
    from minibox_store.archive.offering import OfferedArchive as OfferedArchive
    from minibox_store.cancellation import Cancellation as Cancellation
    from minibox_store.codec import encode_document as encode_document
    from minibox_store.codec.archive_tables import parse_digests as parse_digests
    from minibox_store.copying import EventListener as EventListener
    from minibox_store.copying import copy_image as copy_image
    from minibox_store.digest import Digest as Digest
    from minibox_store.documents import ConfigSummary as ConfigSummary
    from minibox_store.documents import Descriptor as Descriptor
    from minibox_store.documents import Document as Document
    from minibox_store.documents import HistoryEntry as HistoryEntry
    from minibox_store.documents import ImageConfig as ImageConfig
    from minibox_store.documents import Index as Index
    from minibox_store.documents import Manifest as Manifest
    from minibox_store.documents import Referrer as Referrer
    from minibox_store.errors import AuthenticationRefused as AuthenticationRefused
    from minibox_store.errors import BlobNotFound as BlobNotFound
    from minibox_store.errors import Cancelled as Cancelled
    from minibox_store.errors import ContentMismatch as ContentMismatch
    from minibox_store.errors import CredentialHelperFailed as CredentialHelperFailed
    from minibox_store.errors import ImageNotFound as ImageNotFound
    from minibox_store.errors import IncompleteImage as IncompleteImage
    from minibox_store.errors import InvalidArchive as InvalidArchive
    from minibox_store.errors import InvalidArgument as InvalidArgument
    from minibox_store.errors import InvalidDigest as InvalidDigest
    from minibox_store.errors import InvalidDocument as InvalidDocument
    from minibox_store.errors import InvalidFilter as InvalidFilter
    from minibox_store.errors import InvalidInput as InvalidInput
    from minibox_store.errors import InvalidPath as InvalidPath
    from minibox_store.errors import InvalidPlatform as InvalidPlatform
    from minibox_store.errors import InvalidReference as InvalidReference
    from minibox_store.errors import ManifestUnknown as ManifestUnknown
    from minibox_store.errors import MissingLibrary as MissingLibrary
    from minibox_store.errors import NotFound as NotFound
    from minibox_store.errors import NothingToDo as NothingToDo
    from minibox_store.errors import PathNotFound as PathNotFound
    from minibox_store.errors import PlatformNotFound as PlatformNotFound
    from minibox_store.errors import PolicyRefused as PolicyRefused
    from minibox_store.errors import RateLimited as RateLimited
    from minibox_store.errors import RegistryBlocked as RegistryBlocked
    from minibox_store.errors import RegistryError as RegistryError
    from minibox_store.errors import StoreBusy as StoreBusy
    from minibox_store.errors import StoreDamaged as StoreDamaged
    from minibox_store.errors import StoreError as StoreError
    from minibox_store.errors import StoreFull as StoreFull
    from minibox_store.errors import StoreUnavailable as StoreUnavailable
    from minibox_store.events import BlobAdvanced as BlobAdvanced
    from minibox_store.events import BlobPresent as BlobPresent
    from minibox_store.events import BlobRetried as BlobRetried
    from minibox_store.events import BlobsCounted as BlobsCounted
    from minibox_store.events import BlobStarted as BlobStarted
    from minibox_store.events import BlobStored as BlobStored
    from minibox_store.events import ChoosingPlatform as ChoosingPlatform
    from minibox_store.events import Event as Event
    from minibox_store.events import ImageCopied as ImageCopied
    from minibox_store.events import ImagePresent as ImagePresent
    from minibox_store.events import IndexMade as IndexMade
    from minibox_store.events import ManifestChosen as ManifestChosen
    from minibox_store.events import MirrorFailed as MirrorFailed
    from minibox_store.events import NothingToUnpack as NothingToUnpack
    from minibox_store.events import PruneAdvanced as PruneAdvanced
    from minibox_store.events import RateLimitSeen as RateLimitSeen
    from minibox_store.events import ReferrerFound as ReferrerFound
    from minibox_store.events import RegisteringName as RegisteringName
    from minibox_store.events import RegistryWarning as RegistryWarning
    from minibox_store.events import ResolvingName as ResolvingName
    from minibox_store.events import UnpackAdvanced as UnpackAdvanced
    from minibox_store.events import UnpackingLayer as UnpackingLayer
    from minibox_store.events import UsingMirror as UsingMirror
    from minibox_store.events import render_line as render_line
    from minibox_store.face.local_repository import LocalRepository as LocalRepository
    from minibox_store.face.preloading import preload as preload
    from minibox_store.filters import ImageFilter as ImageFilter
    from minibox_store.filters import Label as Label
    from minibox_store.limits import Limits as Limits
    from minibox_store.limits import TarLimits as TarLimits
    from minibox_store.limits import UnpackLimits as UnpackLimits
    from minibox_store.media_types import is_document as is_document
    from minibox_store.media_types import is_index as is_index
    from minibox_store.memory import MemoryImages as MemoryImages
    from minibox_store.offers import OfferedImage as OfferedImage
    from minibox_store.platforms import LINUX_AMD64 as LINUX_AMD64
    from minibox_store.platforms import ArchivePlatformChoice as ArchivePlatformChoice
    from minibox_store.platforms import Platform as Platform
    from minibox_store.platforms import PlatformChoice as PlatformChoice
    from minibox_store.policies import Policy as Policy
    from minibox_store.protocols import BlobSource as BlobSource
    from minibox_store.protocols import BlobStage as BlobStage
    from minibox_store.protocols import BlobStream as BlobStream
    from minibox_store.protocols import FileRange as FileRange
    from minibox_store.protocols import ImageSource as ImageSource
    from minibox_store.protocols import ImageTarget as ImageTarget
    from minibox_store.protocols import ImageWriter as ImageWriter
    from minibox_store.protocols import NamedImages as NamedImages
    from minibox_store.protocols import RangeStream as RangeStream
    from minibox_store.protocols import ReadableFile as ReadableFile
    from minibox_store.protocols import WritableFile as WritableFile
    from minibox_store.reference import Reference as Reference
    from minibox_store.reference import check_image_name as check_image_name
    from minibox_store.registry import CertificateFolders as CertificateFolders
    from minibox_store.registry import Certificates as Certificates
    from minibox_store.registry import CertificatesSource as CertificatesSource
    from minibox_store.registry import Credentials as Credentials
    from minibox_store.registry import CredentialsSource as CredentialsSource
    from minibox_store.registry import MachineCredentials as MachineCredentials
    from minibox_store.registry import MirroredRepository as MirroredRepository
    from minibox_store.registry import Proxies as Proxies
    from minibox_store.registry import RegistryClient as RegistryClient
    from minibox_store.registry import RegistryRepository as RegistryRepository
    from minibox_store.registry import login as login
    from minibox_store.registry import logout as logout
    from minibox_store.registry import read_registries_file as read_registries_file
    from minibox_store.registry_rules import Mirror as Mirror
    from minibox_store.registry_rules import RegistryPlace as RegistryPlace
    from minibox_store.registry_rules import RegistryRule as RegistryRule
    from minibox_store.registry_rules import RegistryRules as RegistryRules
    from minibox_store.remote import catalog as catalog
    from minibox_store.remote import copy as copy
    from minibox_store.remote import delete as delete
    from minibox_store.remote import referrers as referrers
    from minibox_store.remote import tags as tags
    from minibox_store.reports.file_status import FileChange as FileChange
    from minibox_store.reports.file_status import FileChanges as FileChanges
    from minibox_store.reports.file_status import FileKind as FileKind
    from minibox_store.reports.file_status import FileStatus as FileStatus
    from minibox_store.reports.images import Image as Image
    from minibox_store.reports.inspection import ImageDetails as ImageDetails
    from minibox_store.reports.inspection import LayerDetails as LayerDetails
    from minibox_store.reports.inspection import ManifestDetails as ManifestDetails
    from minibox_store.reports.plans import PlannedBlob as PlannedBlob
    from minibox_store.reports.plans import PlannedManifest as PlannedManifest
    from minibox_store.reports.plans import PullPlan as PullPlan
    from minibox_store.reports.pushes import PushedManifest as PushedManifest
    from minibox_store.reports.pushes import StillNeeded as StillNeeded
    from minibox_store.reports.pushes import Upload as Upload
    from minibox_store.reports.pushes import UploadNotFound as UploadNotFound
    from minibox_store.reports.pushes import UploadOutOfOrder as UploadOutOfOrder
    from minibox_store.reports.rate_limits import RateLimit as RateLimit
    from minibox_store.reports.removals import PruneReport as PruneReport
    from minibox_store.reports.removals import Removal as Removal
    from minibox_store.reports.store import BlobUsage as BlobUsage
    from minibox_store.reports.store import Finding as Finding
    from minibox_store.reports.store import FindingKind as FindingKind
    from minibox_store.reports.store import ImageUsage as ImageUsage
    from minibox_store.reports.store import IndexRepair as IndexRepair
    from minibox_store.reports.store import LostName as LostName
    from minibox_store.reports.store import MendedBlob as MendedBlob
    from minibox_store.reports.store import Need as Need
    from minibox_store.reports.store import RepairReport as RepairReport
    from minibox_store.reports.store import StoreInfo as StoreInfo
    from minibox_store.reports.store import StoreUsage as StoreUsage
    from minibox_store.reports.store import UnmendedBlob as UnmendedBlob
    from minibox_store.reports.store_changes import NameChange as NameChange
    from minibox_store.reports.store_changes import StoreChanges as StoreChanges
    from minibox_store.reports.store_changes import StoreState as StoreState
    from minibox_store.reports.unpacked import UnpackPolicy as UnpackPolicy
    from minibox_store.reports.unpacked import UnpackReport as UnpackReport
    from minibox_store.rootfs.files import ImageFiles as ImageFiles
    from minibox_store.rootfs.merged import FileNode as FileNode
    from minibox_store.rootfs.mounting import Mount as Mount
    from minibox_store.sentences import one_line as one_line
    from minibox_store.sentences import one_sentence as one_sentence
    from minibox_store.store import Store as Store

__version__ = "0.1.0"

_MODULES = {
    "archive.formats": ("ArchiveCompression", "ArchiveFormat"),
    "archive.offering": ("OfferedArchive",),
    "cancellation": ("Cancellation",),
    "codec": ("encode_document",),
    "codec.archive_tables": ("parse_digests",),
    "copying": ("EventListener", "copy_image"),
    "digest": ("Digest",),
    "documents": (
        "ConfigSummary",
        "Descriptor",
        "Document",
        "HistoryEntry",
        "ImageConfig",
        "Index",
        "Manifest",
        "Referrer",
    ),
    "errors": (
        "AuthenticationRefused",
        "BlobNotFound",
        "Cancelled",
        "ContentMismatch",
        "CredentialHelperFailed",
        "ImageNotFound",
        "IncompleteImage",
        "InvalidArchive",
        "InvalidArgument",
        "InvalidDigest",
        "InvalidDocument",
        "InvalidFilter",
        "InvalidInput",
        "InvalidPath",
        "InvalidPlatform",
        "InvalidReference",
        "ManifestUnknown",
        "MissingLibrary",
        "NotFound",
        "NothingToDo",
        "PathNotFound",
        "PlatformNotFound",
        "PolicyRefused",
        "RateLimited",
        "RegistryBlocked",
        "RegistryError",
        "StoreBusy",
        "StoreDamaged",
        "StoreError",
        "StoreFull",
        "StoreUnavailable",
    ),
    "events": (
        "BlobAdvanced",
        "BlobPresent",
        "BlobStarted",
        "BlobRetried",
        "BlobStored",
        "BlobsCounted",
        "ChoosingPlatform",
        "Event",
        "ImageCopied",
        "IndexMade",
        "ImagePresent",
        "ManifestChosen",
        "MirrorFailed",
        "NothingToUnpack",
        "PruneAdvanced",
        "RateLimitSeen",
        "ReferrerFound",
        "RegisteringName",
        "RegistryWarning",
        "ResolvingName",
        "UnpackAdvanced",
        "UnpackingLayer",
        "UsingMirror",
        "render_line",
    ),
    "face.local_repository": ("LocalRepository",),
    "face.preloading": ("preload",),
    "filters": ("ImageFilter", "Label"),
    "limits": ("Limits", "TarLimits", "UnpackLimits"),
    "media_types": ("is_document", "is_index"),
    "memory": ("MemoryImages",),
    "offers": ("OfferedImage",),
    "platforms": ("LINUX_AMD64", "ArchivePlatformChoice", "Platform", "PlatformChoice"),
    "policies": ("Policy",),
    "protocols": (
        "BlobSource",
        "BlobStage",
        "BlobStream",
        "FileRange",
        "ImageSource",
        "ImageTarget",
        "ImageWriter",
        "NamedImages",
        "RangeStream",
        "ReadableFile",
        "WritableFile",
    ),
    "reference": ("Reference", "check_image_name"),
    "registry": (
        "CertificateFolders",
        "Certificates",
        "CertificatesSource",
        "Credentials",
        "CredentialsSource",
        "MachineCredentials",
        "MirroredRepository",
        "Proxies",
        "RegistryClient",
        "RegistryRepository",
        "login",
        "logout",
        "read_registries_file",
    ),
    "registry_rules": ("Mirror", "RegistryPlace", "RegistryRule", "RegistryRules"),
    "remote": ("catalog", "copy", "delete", "referrers", "tags"),
    "reports.file_status": ("FileChange", "FileChanges", "FileKind", "FileStatus"),
    "reports.images": ("Image",),
    "reports.inspection": ("ImageDetails", "LayerDetails", "ManifestDetails"),
    "reports.plans": ("PlannedBlob", "PlannedManifest", "PullPlan"),
    "reports.pushes": ("PushedManifest", "StillNeeded", "Upload", "UploadNotFound", "UploadOutOfOrder"),
    "reports.rate_limits": ("RateLimit",),
    "reports.removals": ("PruneReport", "Removal"),
    "reports.store": (
        "BlobUsage",
        "Finding",
        "FindingKind",
        "ImageUsage",
        "IndexRepair",
        "LostName",
        "MendedBlob",
        "Need",
        "RepairReport",
        "StoreInfo",
        "StoreUsage",
        "UnmendedBlob",
    ),
    "reports.store_changes": ("NameChange", "StoreChanges", "StoreState"),
    "reports.unpacked": ("UnpackPolicy", "UnpackReport"),
    "rootfs.files": ("ImageFiles",),
    "rootfs.merged": ("FileNode",),
    "rootfs.mounting": ("Mount",),
    "sentences": ("one_line", "one_sentence"),
    "store": ("Store",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)  # noqa: PLE0605  # a list, made from the one table


def __getattr__(name: str) -> object:
    return load_name(__name__, _HOMES, name)


def __dir__() -> list[str]:
    return __all__
