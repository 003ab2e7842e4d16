"""Whatever several places do, a pull ends in the very image or in one error, and where the last one is honest, well."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from minibox_store import Mirror, RegistryRule, Store
from minibox_store.errors import StoreError
from tests.support.images import build_image
from tests.support.invariants import check_invariants
from tests.support.layouts import read_layout_blobs
from tests.support.registries import quick_client
from tests.support.scripted_registry import ScriptedRegistry, blob_target, manifest_target, redirect
from tests.support.trials import DEEP, trial_count
from tests.test_registry_chaos import FAULTS, Fault, Slowness, honest

IMAGE = build_image([{"a": b"b" * 3000}, {"c": b"d"}])
DEADLINE_SECONDS = 10.0
ATTEMPTS = 3

Script = dict[str, list[Fault]]
SCRIPTS: st.SearchStrategy[Script] = st.fixed_dictionaries(
    {digest: st.lists(FAULTS, max_size=3) for digest in IMAGE.blobs}
)


def serve(registry: ScriptedRegistry, script: Script, slowness: Slowness, ends_well: bool) -> None:
    """List what a place answers: for each blob its faults, and from then on the last of them, or the truth."""
    registry.allow("GET", "/loop", redirect("/loop"))
    for digest, faults in script.items():
        content, media_type = IMAGE.blobs[digest], IMAGE.media_types[digest]
        chosen = [*faults, honest] if ends_well or not faults else faults
        answers = [slowness.noted(fault(content, media_type)) for fault in chosen]
        names = [blob_target("team/app", digest)]
        if digest == IMAGE.digest:
            names = [manifest_target("team/app", name) for name in ("1", digest)]
        for name in names:
            registry.allow("GET", name, *answers)
            registry.allow("GET", f"{name}?x", *answers)


@pytest.mark.timeout(3600 if DEEP else 600)
@settings(max_examples=trial_count(60, 1500))
@given(mirrors=st.lists(st.tuples(SCRIPTS, st.booleans()), min_size=1, max_size=2), home=st.none() | SCRIPTS)
def test_a_pull_from_places_with_any_faults_ends_in_the_image_or_in_one_error(
    mirrors: list[tuple[Script, bool]], home: Script | None
) -> None:
    slowness = Slowness()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        registries = [stack.enter_context(ScriptedRegistry()) for _ in range(len(mirrors) + 1)]
        for registry, (script, ends_well) in zip(registries, mirrors, strict=False):
            serve(registry, script, slowness, ends_well)
        serve(registries[-1], home or {digest: [] for digest in IMAGE.blobs}, slowness, ends_well=False)
        places = tuple(Mirror(location=each.host) for each in registries[:-1])
        client = quick_client(
            registries=[RegistryRule(prefix=registries[-1].host, mirrors=places)],
            attempts=ATTEMPTS,
            back_off_seconds=0.001,
            silence_seconds=2.0,
            longest_wait_seconds=0.5,
        )
        store = Store(folder / "store", durability="none")
        started = time.monotonic()
        failure: StoreError | None = None
        try:
            store.pull(registries[-1].reference("team/app", "1"), client=client)
        except StoreError as error:
            failure = error
        event("the image" if failure is None else type(failure).__name__)
        assert failure is None or home is not None, failure
        assert [str(image.digest) for image in store.images()] == ([IMAGE.digest] if failure is None else [])
        if failure is None:
            assert read_layout_blobs(folder / "store") == IMAGE.blobs
        assert time.monotonic() - started < DEADLINE_SECONDS + slowness.seconds
        assert slowness.answers <= ATTEMPTS * len(IMAGE.blobs) * len(registries)
        check_invariants(folder / "store", leftovers=True)
