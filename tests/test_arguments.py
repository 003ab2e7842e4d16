"""Arguments of the wrong kind: each is refused in a sentence that names it, and nothing has begun by then."""

import threading
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

import minibox_store
from minibox_store import (
    CertificateFolders,
    Certificates,
    Credentials,
    Descriptor,
    Digest,
    ImageFilter,
    Label,
    Limits,
    MachineCredentials,
    Manifest,
    MemoryImages,
    Mirror,
    Platform,
    Policy,
    Proxies,
    Reference,
    RegistryClient,
    RegistryRule,
    RegistryRules,
    Store,
    TarLimits,
    UnpackLimits,
    copy_image,
    encode_document,
    login,
    parse_digests,
    read_registries_file,
)
from minibox_store.errors import InvalidArgument, InvalidDocument, InvalidInput, RegistryBlocked
from tests.support.images import build_image
from tests.support.registries import quick_client
from tests.support.snapshots import snapshot
from tests.support.sources import memory_of, root_of
from tests.support.stores import open_store, put
from tests.support.upload_registry import UploadRegistry

IMAGE = build_image([{"a": b"a"}])
ROOT = root_of(IMAGE)
TEXT = str(ROOT.digest)
NAN = float("nan")
SECRET = "pass-word-1"
_ODD: dict[str, Any] = {"os": "linux", "architecture": "arm", "variant": 7}
ODD_PLATFORM = Platform(**_ODD)

# What is made, an argument of that, and what it may not be. What else it needs stands in _NEEDED.
VALUES: list[tuple[Any, str, Any]] = [
    *((Credentials, "username", each) for each in ("alice:bob", "\udcff")),
    (Credentials, "password", "\udcff"),
    (MachineCredentials, "environment", 5),
    *((Policy, "max_layers", each) for each in ("5", True, -1)),
    *((RegistryRule, "mirrors", each) for each in ("b.example", ["b.example"], None)),
    *((RegistryRule, "realms", each) for each in ("authserver", [5])),
    *((RegistryRule, "location", each) for each in (5, Path("b.example"))),
    *((RegistryRule, "prefix", each) for each in (5, b"quay.io")),
    (Mirror, "location", None),
    *((RegistryRules, "rules", each) for each in ("quay.io", ["quay.io"], 5)),
    *((RegistryRules, "allowed", each) for each in ("", b"localhost", [None])),
    *((Policy, "require_digest", each) for each in (None, 2, "false")),
    *((Policy, "verify", each) for each in (False, "yes")),
    *((ImageFilter, "reference", each) for each in (b"app", Path("app"), 5)),
    *((ImageFilter, name, each) for name in ("labels", "without_labels") for each in ("keep", ["keep=1"], Label("a"))),
    *((Label, "key", each) for each in (["="], None)),
    *((Label, "value", each) for each in (5, True)),
    *((Limits, "document_bytes", each) for each in ("5", 1e6, True, None, -1, NAN)),
    *((Limits, "pushed_seconds", each) for each in ("5", None, -1, NAN, True)),
    (Limits, "tar", None),
    (TarLimits, "member_bytes", "5"),
    (UnpackLimits, "seconds", NAN),
    (UnpackLimits, "entries", None),
    *((Reference, "digest", each) for each in (TEXT, "")),
    *((Proxies, "no_proxy", each) for each in (None, ["localhost"])),
    *((Certificates, "authorities", each) for each in ("ca.pem", b"ca.pem", [5], [b"ca.pem"], None)),
    *((Certificates, "client", each) for each in ("ab", ("a",), ("a", "b", "c"), ("a", 5))),
    *((MachineCredentials, "program_path", each) for each in ("/usr/bin", [Path("/usr/bin")], None)),
    *((RegistryClient, "certificates", each) for each in ("ca.pem", {"quay.io": "ca.pem"}, Certificates())),
    *((RegistryClient, name, each) for name in ("insecure", "plain_http", "https") for each in (None, b"a", [5])),
    *((RegistryClient, "registries", each) for each in ("quay.io", ["quay.io"], None)),
    *((RegistryClient, "realms", each) for each in ({"quay.io": "authserver"}, {"quay.io": ["a:b"]}, ["quay.io"])),
    *((RegistryClient, "attempts", each) for each in ("5", 0, 1.5, None, True, NAN)),
    *((RegistryClient, f"{name}_seconds", each) for name in ("connect", "silence") for each in ("5", NAN, -1, 1e300)),
    *((RegistryClient, f"{name}_seconds", each) for name in ("back_off", "longest_wait") for each in ("5", NAN, None)),
    *((RegistryClient, "limits", each) for each in (None, UnpackLimits())),
    *((RegistryClient, "ca_file", each) for each in (b"ca.pem", 5)),
    *((Store, "root", each) for each in (None, 5)),
    *((Store, f"{name}_seconds", each) for name in ("lock_timeout", "settle") for each in ("5", None, True)),
    *((Store, "limits", each) for each in (None, UnpackLimits())),
    *((Store, "private_addresses", each) for each in (None, 2, "false")),
]
_NEEDED: dict[Any, dict[str, Any]] = {
    RegistryRule: {"prefix": "quay.io"},
    Credentials: {"username": "alice"},
    Label: {"key": "a"},
    Reference: {"domain": "quay.io", "repository": "a", "tag": "1"},
    Store: {"root": "store"},
}

# A method of the store, an argument of it, and what it may not be.
CALLS: list[tuple[str, str, Any]] = [
    *((name, "on_event", None) for name in ("pull", "push", "fetch", "plan_pull", "load", "save", "import_image")),
    *((name, "on_event", 5) for name in ("verify", "repair", "prune", "unpack", "rootfs")),
    *((name, "cancellation", threading.Event()) for name in ("pull", "push", "fetch", "plan_pull", "load", "save")),
    *((name, "cancellation", False) for name in ("import_image", "verify", "repair", "prune", "unpack", "rootfs")),
    *((name, "client", {"quay.io": SECRET}) for name in ("pull", "push", "fetch", "plan_pull", "repair")),
    *((name, "checked_by", {}) for name in ("pull", "plan_pull", "import_image", "load")),
    *((name, "platform", "linux/amd64") for name in ("inspect", "history", "unpack", "rootfs", "open_files", "mount")),
    *((name, "platform", ODD_PLATFORM) for name in ("pull", "push", "inspect")),
    *((name, "limits", None) for name in ("unpack", "rootfs", "open_files", "mount")),
    *(("pull", "parallel", each) for each in (NAN, 1.5, "3", True, None)),
    *(("push", "parallel", each) for each in (NAN, "3")),
    *(("verify", "parallel", each) for each in ("2", 1.5)),
    *(("repair", "parallel", each) for each in ("2", None)),
    *(("pull", "ranges", each) for each in (NAN, "3")),
    *(("push", "chunk_bytes", each) for each in (NAN, "3")),
    *(("pull", name, each) for name in ("referrers", "unpack") for each in ("false", 2, None)),
    ("push", "referrers", "false"),
    ("load", "complete_from_store", "false"),
    *(("prune", name, each) for name in ("dry_run", "build_cache") for each in ("false", 2, None)),
    *(("prune", "keep_newer_than_seconds", each) for each in ("5", None)),
    *(("repair", "sources", each) for each in ("quay.io", ["quay.io"], None)),
    *(("unpack", "replace", each) for each in ("false", 2)),
    *(("unpack", "policy", each) for each in ("record", None)),
    *(("unpack", "directory", each) for each in (None, b"out")),
    ("mount", "directory", b"out"),
    ("save", "exclude", ""),
    *(("save", "dir_fd", each) for each in (1.5, "5", -1)),
    *((name, "descriptor", each) for name in ("open_blob", "read_document") for each in (None, TEXT, ROOT.digest)),
    *(("open_blob", "offset", each) for each in (None, "5", 1.5, -1)),
    *(("find_blob", "digest", each) for each in (TEXT, None)),
    *(("fetch_part", "digest", each) for each in (TEXT, None)),
    *(("fetch", "via", each) for each in ("daemon", None)),
    *(("referrers", "artifact_type", each) for each in (["application/spdx+json"], b"a")),
    *(("import_image", "source", each) for each in (Path("store"), "store")),
    *(("usage", "most_blobs", each) for each in ("5", 1.5)),
    *(("changes", "since", each) for each in (None, "position")),
    ("find_state", "position", 5),
]
_NAMED = ("inspect", "history", "unpack", "rootfs", "open_files", "mount", "find_blob", "fetch_part", "referrers")
_GIVEN: dict[str, dict[str, Any]] = {
    **{call: {"name": "app:1"} for call in (*_NAMED, "push", "import_image", "save")},
    "open_blob": {"descriptor": ROOT},
    **{call: {"reference": "registry.example.org/app:1"} for call in ("pull", "fetch", "plan_pull")},
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "store", IMAGE, "app:1")
    open_store(tmp_path / "store").save("app:1", "app.tar")
    return open_store(tmp_path / "store")


@pytest.mark.parametrize(("make", "name", "value"), VALUES)
def test_a_value_says_which_argument_is_none(make: Any, name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        make(**{**_NEEDED.get(make, {}), name: value})
    assert caught.value.name == name


@pytest.mark.parametrize(("call", "name", "value"), CALLS)
def test_a_call_says_which_argument_is_none_before_anything_begins(
    store: Store, tmp_path: Path, call: str, name: str, value: Any
) -> None:
    given = dict(_GIVEN.get(call, {}))
    if call in ("unpack", "mount"):
        (tmp_path / "out").mkdir()
        given["directory"] = "out"
    if call in ("load", "save"):
        given["file"] = "app.tar" if call == "load" else "new.tar"
    if call == "import_image":
        given["source"] = memory_of({"app:1": IMAGE})
    before = snapshot(tmp_path)
    with pytest.raises(InvalidArgument, match=f"invalid {name} ") as caught:
        getattr(store, call)(**{**given, name: value})
    assert SECRET not in str(caught.value)
    assert snapshot(tmp_path) == before


def test_rules_and_hosts_that_come_one_by_one_are_kept() -> None:
    one_by_one: Any = (each for each in [RegistryRule(prefix="quay.io", blocked=True)])
    rules = RegistryRules(one_by_one)
    with pytest.raises(RegistryBlocked):
        rules.check(Reference.parse("quay.io/app:1"))
    host = "registry.example.org"
    with UploadRegistry() as registry:
        registry.put("team/app", IMAGE, tag="1")
        hosts: Any = (each for each in [registry.host])
        client = quick_client(insecure=hosts)  # tried with TLS first, and so found to be insecure
        assert minibox_store.tags(f"{registry.host}/team/app", client=client) == ("1",)
    with pytest.raises(InvalidArgument, match="reference 'registry"):
        RegistryClient().open_repository(host)  # type: ignore[arg-type]  # which is what the test is about


def test_nothing_is_sent_with_what_are_no_credentials(tmp_path: Path) -> None:
    odd: list[Any] = [(("alice", SECRET),), {"quay.io": f"alice:{SECRET}"}, f"alice:{SECRET}", Credentials("a", SECRET)]
    for each in odd:
        for make in (RegistryClient, MachineCredentials):
            name = "credentials" if make is RegistryClient else "explicit"
            with pytest.raises(InvalidArgument, match=rf"invalid {name} '\*\*\*'") as caught:
                make(**{name: each})
            assert SECRET not in str(caught.value)
    texts: dict[str, Any] = {"username": None, "password": SECRET.encode(), "identity_token": 5}
    for name, value in texts.items():
        with pytest.raises(InvalidArgument, match=rf"invalid {name} '\*\*\*'"):
            Credentials(**{"username": "alice", name: value})
    with pytest.raises(InvalidArgument, match=r"invalid proxies '\*\*\*'"):
        RegistryClient(proxies=f"http://alice:{SECRET}@proxy")  # type: ignore[arg-type]  # where Proxies belong
    with UploadRegistry() as registry:
        for options in ({"credentials": odd[0]}, {"machine": tmp_path}, {"client": registry.host}):
            given: dict[str, Any] = {"credentials": Credentials("a", "b"), "client": quick_client(), **options}
            with pytest.raises(InvalidArgument, match=f"invalid {next(iter(options))} "):
                login(registry.host, **given)
        for name in ("parallel", "on_event", "cancellation", "client"):
            given = {"client": quick_client(), name: NAN}
            with pytest.raises(InvalidArgument, match=f"invalid {name} "):
                minibox_store.copy(f"{registry.host}/a:1", f"{registry.host}/b:1", **given)
        assert registry.requests == []


def test_what_cannot_be_told_of_events_is_told_before_a_registry_is_asked() -> None:
    client, reference = RegistryClient(), Reference.parse("quay.io/app:1")
    odd: Any = 5
    calls: list[Any] = [
        lambda: client.open_repository(reference, on_event=odd),
        lambda: client.open_origin(reference, on_event=odd),
        lambda: client.open_registry("quay.io", on_event=odd),
    ]
    for call in calls:
        with pytest.raises(InvalidArgument, match="invalid on_event 5"):
            call()
    with pytest.raises(InvalidArgument, match="invalid access 'push'"):
        client.open_origin(reference, access="push")  # type: ignore[arg-type]  # which is what the test is about


def test_a_member_of_an_enumeration_of_numbers_is_a_number(store: Store) -> None:
    class Some(IntEnum):
        TWO = 2

    assert store.verify(parallel=Some.TWO) == ()
    assert Limits(layers=Some.TWO).layers == 2
    assert Policy(max_layers=Some.TWO).max_layers == 2
    assert ImageFilter(keep_last=Some.TWO) == ImageFilter(keep_last=2)


def test_one_name_in_the_place_of_several_is_none() -> None:
    target = MemoryImages()
    odd: dict[str, Any] = {"names": "app:1", "parallel": NAN, "on_event": None, "cancellation": False}
    odd |= {"source": "store", "target": memory_of({}).names, "root": "app:1", "limits": None}
    for name, value in odd.items():
        right = {"source": memory_of({"app:1": IMAGE}), "target": target, "root": ROOT, "names": ["app:1"]}
        given: dict[str, Any] = {**right, name: value}
        with pytest.raises(InvalidArgument, match=f"invalid {name} "):
            copy_image(**given)
    assert (target.names, target.blobs) == ({}, {})
    with pytest.raises(InvalidArgument, match="invalid via "):
        RegistryClient().handing_on("daemon")


@pytest.mark.parametrize("text", [None, 5, b"app", Path("app"), ["app"]])
def test_what_is_no_text_is_no_name_no_reference_and_no_digest(store: Store, text: Any) -> None:
    parsers = (Reference.parse, Digest.parse, Platform.parse, ImageFilter.parse, minibox_store.check_image_name)
    remote = (minibox_store.tags, minibox_store.catalog, minibox_store.delete)
    for read in (*parsers, *remote, store.check_allowed, store.repository):
        with pytest.raises(InvalidInput, match="no text"):
            read(text)
    with pytest.raises(InvalidInput, match="no text"):
        store.tag("app:1", text)
    with pytest.raises(InvalidInput, match="no registry"):
        minibox_store.logout(text)
    with pytest.raises(minibox_store.ImageNotFound, match="not found"):
        store.get(text)
    with store.open_files("app:1") as files, pytest.raises(InvalidArgument, match="invalid path "):
        files.stat(text)


def test_the_text_of_a_digest_is_looked_for_in_no_repository(store: Store) -> None:
    repository, text = store.repository("library/app"), TEXT
    upload = repository.begin_upload()
    calls: list[Any] = [repository.find, repository.hold_blob, repository.find_manifest, repository.referrers]
    calls += [
        repository.delete_manifest,
        repository.delete_blob,
        lambda each: repository.finish_upload(upload.id, each),
    ]
    calls.append(lambda each: repository.put_manifest(IMAGE.blobs[IMAGE.digest], None, digest=each))
    for call in calls:
        with pytest.raises(InvalidArgument, match="invalid digest 'sha256"):
            call(text)
    assert repository.upload(upload.id) == upload  # one with another digest would be gone
    with store.open_archive("app:1") as archive:
        for name, place in {"size_bytes": (0, -1), "offset": (1.5, 1)}.items():
            with pytest.raises(InvalidArgument, match=f"invalid {name} "):
                archive.read(*place)  # type: ignore[arg-type]  # which is what the test is about
    with store.open_files("app:1") as files, pytest.raises(InvalidArgument, match="invalid limit_bytes "):
        files.read_bytes("/a", limit_bytes=None)  # type: ignore[arg-type]  # which is what the test is about
    with pytest.raises(InvalidArgument, match="invalid content "):
        parse_digests(f'["{TEXT}"]')  # type: ignore[arg-type]  # which is what the test is about


@pytest.mark.parametrize("path", [None, 5, b"a"])
def test_what_is_no_path_is_read_nowhere(path: Any) -> None:
    for read in (CertificateFolders, read_registries_file):
        with pytest.raises(InvalidArgument, match="it is no path, or its path is no text"):
            read(path)


def test_a_document_that_nobody_could_read_is_not_made() -> None:
    odd: dict[str, Any] = {"media_type": ROOT.media_type, "digest": ROOT.digest, "size_bytes": "5"}
    for changes, error in (({}, InvalidDocument), ({"size_bytes": 5, "urls": "https://a.example"}, InvalidArgument)):
        config = Descriptor(**{**odd, **changes})
        with pytest.raises(error, match=r"config\.size|invalid urls"):
            encode_document(Manifest(media_type=ROOT.media_type, config=config, layers=()))
