"""The running daemon against its own description: what schemathesis makes of it is asked, and each answer held to it.

The daemon is watched from below. Whatever it is asked for it may connect to one registry on 127.0.0.1 alone, for the
file that MINIBOX_REGISTRIES names allows no other, and may change nothing but its store and the folder of archives.
"""

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import attrs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from minibox_server.app import create_app
from minibox_server.openapi import describe_api
from minibox_server.settings import Settings
from tests.server.clients import TOKEN
from tests.support.daemon import DAEMON_COMMAND, Daemon, running_daemon
from tests.support.described import Description
from tests.support.images import BuiltImage, build_image, build_index, digest_of, random_layer
from tests.support.layouts import write_layout
from tests.support.traced import changed_paths, connections, traced
from tests.support.trials import DEEP
from tests.support.upload_registry import UploadRegistry

# What is asked for each operation and in each way: with what the description allows, and with what it does not.
EXAMPLES = 200 if DEEP else 3
# It tells until its client goes away, and is tried with its own tests.
ENDLESS = {"/events"}
# Each of these may be the right answer of a daemon that is well: none of what is asked here makes it one.
CHECKS = [
    *(status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance),
    *(allow_header_conformance, unsupported_method),
]
FORMS = ("*/*", "text/plain", "application/json", "application/x-ndjson", "text/event-stream")


def operations() -> list[tuple[str, str]]:
    """Return each described operation: those that look before those that change, and those that remove at last."""
    document: Any = describe_api(create_app(Settings()).state.endpoints, version="0")
    found = [(method, path) for path, methods in document["paths"].items() for method in methods]

    def order(operation: tuple[str, str]) -> int:
        method, path = operation
        if method in ("get", "head"):
            return 0
        return 2 if method == "delete" or path.endswith(("/remove", "/prune", "/repair")) else 1

    return sorted((each for each in found if each[1] not in ENDLESS), key=order)


@attrs.frozen
class Watched:
    """The daemon, and what is known of it.

    Attributes:
        schema: what schemathesis reads from the description.
        description: what each answer is held to besides.
        known: values that mean something to the daemon, by the names of parameters.
        folder: the only one, beside its store, in which it may change anything.
        trace: what it does.
        registry: the only one that it may ask.
    """

    daemon: Daemon
    schema: Any
    description: Description
    known: dict[str, list[str]]
    folder: Path
    trace: Path
    registry: UploadRegistry


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("described")
    image = build_image([random_layer(100_352)])
    images = {f"app:{number}": image for number in range(20)} | {"multi": build_index([image])}
    write_layout(folder / "data", images)
    (folder / "archives").mkdir()
    with UploadRegistry() as registry:
        registry.put("team/app", image, tag="1")
        rules = folder / "registries.toml"
        rules.write_text(f'allowed = ["{registry.host}"]\nprivate_addresses = true\n')
        environment = {
            "MINIBOX_REGISTRIES": str(rules),
            "MINIBOX_ARCHIVE_PREFIXES": str(folder / "archives"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        trace = folder / "trace"
        with running_daemon(
            folder / "home",
            data_root=folder / "data",
            token=TOKEN,
            environment=environment,
            command=traced(DAEMON_COMMAND, trace),
            timeout_seconds=30,
        ) as daemon:
            document = daemon.get("/openapi.json").json()
            schema = schemathesis.openapi.from_dict(document)
            schema.config.update(base_url=f"http://{daemon.host}")
            known = known_values(image, registry, folder / "archives")
            save(daemon, known)
            yield Watched(daemon, schema, Description(document), known, folder, trace, registry)


def known_values(image: BuiltImage, registry: UploadRegistry, archives: Path) -> dict[str, list[str]]:
    blobs = [each["digest"] for each in image.document()["layers"]]
    return {
        "image": ["app:1", "multi", registry.reference("team/app", "1")],
        "path": [str(archives / "known.tar"), str(archives / "other.tar"), str(archives)],
        "name": ["app", "multi"],
        "reference": ["1", image.digest],
        "digest": [*blobs, image.config_digest, digest_of(b"")],
        "platform": ["linux/amd64"],
        "new_name": ["other:1"],
        "file": ["style.css", "main.js"],
    }


def save(daemon: Daemon, known: dict[str, list[str]]) -> None:
    reply = daemon.request("POST", "/images/save", {"image": "app:1", "path": known["path"][0]})
    assert reply.status == 200, reply.text


def make_known(case: Any, watched: Watched, choice: random.Random) -> None:
    """Put values that mean something to the daemon in the places of some that were drawn."""
    known = watched.known
    if "upload" in (case.path_parameters or {}):
        begun = watched.daemon.request("POST", "/v2/app/blobs/uploads/")
        known = {**known, "upload": [begun.headers["location"].rpartition("/")[2]]}
    for part in (case.query, case.path_parameters):
        for name in list(part or {}):
            if name in known and choice.random() < 0.7:
                part[name] = choice.choice(known[name])


@pytest.mark.parametrize(("method", "path"), operations())
def test_every_answer_is_one_that_the_description_allows(watched: Watched, method: str, path: str) -> None:
    operation = watched.schema[path][method.upper()]
    statuses: Counter[int] = Counter()
    # Nothing can be wrong with what has no part that anybody fills in; and HEAD is read as GET is.
    is_fixed = not watched.description.document["paths"][path][method]["parameters"] and "{" not in path
    modes = [GenerationMode.POSITIVE]
    modes += [GenerationMode.NEGATIVE] if not is_fixed and method != "head" else []
    for mode in modes:

        @settings(
            max_examples=1 if method == "head" and not DEEP else EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(
            case=operation.as_strategy(generation_mode=mode), seed=st.integers(0, 2**32), form=st.sampled_from(FORMS)
        )
        def ask(case: Any, seed: int, form: str) -> None:
            make_known(case, watched, random.Random(seed))
            response = call(case, form)
            statuses[response.status_code] += 1
            hold(watched, case, response)

        ask()
    assert statuses, "something was asked"
    assert watched.daemon.exit_status is None


def call(case: Any, form: str) -> Any:
    with requests.Session() as session:
        # Whatever proxies this machine has are none of the daemon's.
        session.trust_env = False
        headers = {**(case.headers or {}), "X-API-Token": TOKEN, "Accept": form}
        return case.call(session=session, headers=headers, timeout=30, allow_redirects=False)


def hold(watched: Watched, case: Any, response: Any) -> None:
    """Hold an answer to the description, by schemathesis and by our own reading of it."""
    request = response.request
    said = f"{request.method} {request.url} {response.status_code} {response.content[:300]!r}"
    assert response.status_code < 500, said
    case.validate_response(response, checks=CHECKS, headers={"X-API-Token": TOKEN})
    headers = [(name, value) for name, values in response.headers.items() for value in values]
    path = unquote(urlsplit(request.url).path)
    watched.description.check(request.method, path, response.status_code, headers, response.content)


@pytest.mark.parametrize("form", ["text/event-stream", "application/x-ndjson"])
def test_what_has_no_end_begins_as_the_description_says(watched: Watched, form: str) -> None:
    for path in ENDLESS:
        with watched.daemon.stream("GET", path, headers={"Accept": form}) as stream:
            assert stream.headers["content-type"].partition(";")[0] == form
            watched.description.check("GET", path, stream.status, stream.headers.items(), b"")


def test_whoever_was_asked_for_nobody_else_was_connected_to_and_nothing_else_was_changed(watched: Watched) -> None:
    for name in ("alpine:3", "127.0.0.2:80/x:1", "[::1]:80/x:1", "169.254.169.254/x:1", "evil.example.com/x:1"):
        refused = watched.daemon.post("/images/pull", image=name)
        assert "[error] pull failed" in refused.text
        assert "Done" not in refused.text
    for path in (
        "/tmp/elsewhere.tar",
        f"{watched.folder}/elsewhere.tar",
        f"{watched.folder}/archives/../elsewhere.tar",
    ):
        assert watched.daemon.request("POST", "/images/save", {"image": "app:1", "path": path}).status == 403
    host, _, port = watched.registry.host.partition(":")
    assert connections(watched.trace) <= {(host, int(port))}
    allowed = (f"{watched.folder}/data/", f"{watched.folder}/archives/", f"{watched.folder}/home/", "/dev/null")
    changed = changed_paths(watched.trace)
    own = (f"{watched.folder}/data", f"{watched.folder}/archives")
    assert [path for path in changed if not path.startswith(allowed) and path not in own] == []
    assert any(path.startswith(allowed[0]) for path in changed)
    assert any(path.startswith(allowed[1]) for path in changed)
    assert connections(watched.trace), "the one that is allowed was asked"


def test_what_is_done_elsewhere_would_be_seen(tmp_path: Path) -> None:
    write_layout(tmp_path / "data", {"app:1": build_image()})
    trace = tmp_path / "trace"
    with running_daemon(
        tmp_path / "home",
        data_root=tmp_path / "data",
        environment={"MINIBOX_ARCHIVE_PREFIXES": str(tmp_path)},
        command=traced(DAEMON_COMMAND, trace),
        timeout_seconds=30,
    ) as daemon:
        daemon.request("POST", "/images/pull", {"image": "127.0.0.2:9/x:1"}, timeout_seconds=60)
        query = {"image": "app:1", "path": str(tmp_path / "elsewhere.tar")}
        assert daemon.request("POST", "/images/save", query).status == 200
    assert ("127.0.0.2", 9) in connections(trace)
    assert str(tmp_path / "elsewhere.tar") in changed_paths(trace)


def test_the_description_that_runs_is_the_one_that_was_read(watched: Watched) -> None:
    described = describe_api(create_app(Settings()).state.endpoints, version="0")
    assert set(watched.description.document["paths"]) == set(json.loads(json.dumps(described))["paths"])
