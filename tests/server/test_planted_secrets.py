"""S28: what was planted as a secret is in no log, no answer and no event of the daemon, whatever goes wrong."""

import base64
import json
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.daemon import Daemon, Reply, running_daemon
from tests.support.homes import auth
from tests.support.images import BuiltImage, build_image
from tests.support.layouts import write_layout
from tests.support.scripted_registry import (
    Answer,
    Request,
    Scripted,
    ScriptedRegistry,
    ScriptedServer,
    TokenServer,
    basic_credentials,
    blob_target,
    document_answer,
    manifest_target,
    redirect,
    registry_error,
    unauthorized,
)

API_TOKEN = "planted-api-token-0123456789"
WRONG_TOKEN = "planted-wrong-token-98765"
PASSWORD = "planted-password-5f2c"
BEARER = "planted-bearer-91ab" + "x" * 400
SIGNATURE = "planted-signature-77de"
PLANTED = [
    *(API_TOKEN, WRONG_TOKEN, PASSWORD, BEARER[:19], SIGNATURE),
    basic_credentials("alice", PASSWORD).partition(" ")[2],
    base64.b64encode(f"any:{API_TOKEN}".encode()).decode(),
    base64.b64encode(f"any:{WRONG_TOKEN}".encode()).decode(),
]
IMAGE = build_image()
# Each form in which an operation answers.
ACCEPTED = ["*/*", "application/json", "application/x-ndjson", "text/event-stream"]


@dataclass
class Scene:
    """A daemon with credentials, the registry that they are for, and all that the daemon has answered."""

    daemon: Daemon
    registry: ScriptedRegistry
    tokens: TokenServer
    storage: ScriptedServer
    answers: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, query: dict[str, str], **headers: str) -> Reply:
        """Ask, and keep the answer."""
        reply = self.daemon.request(method, path, query, headers=headers)
        self.answers.append(f"{reply.headers}\n{reply.body.decode(errors='replace')}")
        return reply

    def pull(self, name: str, accepting: Sequence[str] = ACCEPTED) -> Reply:
        """Pull an image of the registry, in each form; return the last answer."""
        for accepted in accepting:
            reply = self.ask(
                "POST", "/images/pull", {"image": self.registry.reference("team/app", name)}, Accept=accepted
            )
        return reply


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    write_layout(folder / "data", {"app:1": build_image(salt="kept")})
    with ScriptedRegistry() as registry, TokenServer() as tokens, ScriptedServer() as storage:
        write_home(folder, registry.host)
        rules = folder / "registries.toml"
        rules.write_text(f'[[registry]]\nprefix = "{registry.host}"\nrealms = ["{tokens.host}"]\n')
        environment = {"MINIBOX_REGISTRIES": str(rules), "MINIBOX_UNPACK": "0"}
        with running_daemon(folder, token=API_TOKEN, environment=environment) as daemon:
            scene = Scene(daemon, registry, tokens, storage)
            yield scene
            log = daemon.read_log()
    shown = log + "\n".join(scene.answers)
    assert '"POST /images/pull" ' in log
    assert [secret for secret in PLANTED if secret in shown] == []


def write_home(folder: Path, host: str) -> None:
    """Put down what docker's login would leave."""
    (folder / ".docker").mkdir()
    (folder / ".docker" / "config.json").write_text(json.dumps({"auths": {host: auth("alice", PASSWORD)}}))


def echo(request: Request) -> Answer:
    """Refuse, and repeat what was sent."""
    told = f"cannot take {request.header('Authorization')} for {request.target}"
    return registry_error(403, "DENIED", told, headers={"Warning": f'299 - "{told}"'})


def challenge(scene: Scene) -> None:
    """Let the registry want a token for everything, that the token server gives for the password."""
    scene.tokens.allow(
        "GET",
        "/token?service=x&scope=repository%3Ateam%2Fapp%3Apull",
        Answer(body=json.dumps({"token": BEARER}).encode(), headers={"Content-Type": "application/json"}),
        requires={"Authorization": basic_credentials("alice", PASSWORD)},
    )


def listed(scene: Scene, name: str, image: BuiltImage, layer: Scripted) -> None:
    """List an image whose layers are answered by ``layer``."""
    wanted = scene.tokens.challenge(service="x", scope="repository:team/app:pull")
    digests = [str(each["digest"]) for each in image.document()["layers"]]
    targets: dict[str, Scripted] = {}
    for each in (name, image.digest):
        targets[manifest_target("team/app", each)] = document_answer(image)
    config = str(image.document()["config"]["digest"])
    targets[blob_target("team/app", config)] = lambda _: Answer(body=image.blobs[config])
    targets |= {blob_target("team/app", each): layer for each in digests}
    for target, answer in targets.items():
        for method in ("GET", "HEAD"):
            scene.registry.allow(method, target, unauthorized(wanted), forbids=["Authorization"])
            scene.registry.allow(method, target, answer, requires={"Authorization": f"Bearer {BEARER}"})


def test_s28_a_pull_that_goes_well_tells_no_secret(scene: Scene) -> None:
    challenge(scene)
    image = build_image(salt="good")
    [layer, *others] = [str(each["digest"]) for each in image.document()["layers"]]
    signed = f"/blob?X-Amz-Signature={SIGNATURE}"
    listed(scene, "good", image, lambda request: redirect(f"{scene.storage.url}{signed}&of={request.target[-64:]}"))
    for each in (layer, *others):
        scene.storage.allow("GET", f"{signed}&of={each[-64:]}", Answer(body=image.blobs[each]))
    scene.pull("good")
    assert "[pull] Done" in scene.answers[0] or "result" in scene.answers[-1]
    assert any(request.header("Authorization") == f"Bearer {BEARER}" for request in scene.registry.requests)
    assert any(SIGNATURE in request.target for request in scene.storage.requests)


@pytest.mark.parametrize("how", ["repeated", "signed and refused", "signed and nobody there", "signed and cut"])
def test_s28_a_pull_that_fails_tells_no_secret(scene: Scene, how: str) -> None:
    challenge(scene)
    name = how.replace(" ", "-")
    signed = f"/{name}?X-Amz-Signature={SIGNATURE}"
    scene.storage.allow("GET", signed, registry_error(403, "DENIED", f"bad signature {SIGNATURE}"))
    where = f"http://127.0.0.1:1{signed}" if how.endswith("there") else f"{scene.storage.url}{signed}"
    listed(scene, name, build_image(salt=how), echo if how == "repeated" else redirect(where))
    before = len(scene.answers)
    # Where nobody is, it is tried for a while.
    scene.pull(name, ACCEPTED[2:3] if how.endswith("there") else ACCEPTED)
    assert all("error" in answer for answer in scene.answers[before:])


def test_s28_a_refused_or_unknown_image_tells_no_secret(scene: Scene) -> None:
    challenge(scene)
    for target in (manifest_target("team/app", "refused"), manifest_target("team/other", "1")):
        for method in ("GET", "HEAD"):
            scene.registry.allow(method, target, echo)
    scene.pull("refused")
    for image in (
        f"https://alice:{PASSWORD}@{scene.registry.host}/team/app",
        f"alice:{PASSWORD}@{scene.registry.host}/team/app:1",
        f"{scene.registry.host}/team/app:1?X-Amz-Signature={SIGNATURE}",
    ):
        # What a client itself has sent is told to it, and to nobody else.
        reply = scene.daemon.post("/images/pull", image=image)
        assert reply.status == 400


def test_s28_a_push_tells_no_secret(scene: Scene) -> None:
    for path in ("/v2/", "/v2/team/pushed/blobs/uploads/"):
        for method in ("GET", "HEAD", "POST", "PUT"):
            scene.registry.allow(method, path, echo)
    for accepted in ACCEPTED:
        query = {"image": "app:1", "reference": scene.registry.reference("team/pushed", "1")}
        assert scene.ask("POST", "/images/push", query, Accept=accepted).status >= 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {WRONG_TOKEN}"},
        {"Authorization": f"Basic {base64.b64encode(f'any:{WRONG_TOKEN}'.encode()).decode()}"},
        {"Authorization": f"Basic {base64.b64encode(f'any:{API_TOKEN}'.encode()).decode()}"},
        {"Authorization": f"Digest {API_TOKEN}", "Cookie": f"token={API_TOKEN}"},
        {"X-API-Token": WRONG_TOKEN, "Origin": f"http://{WRONG_TOKEN}.example", "Referer": f"http://x/{API_TOKEN}"},
        {"Host": f"{WRONG_TOKEN}.example/"},
    ],
)
def test_s28_a_refusal_repeats_nothing_of_what_was_shown(scene: Scene, headers: dict[str, str]) -> None:
    for path in ("/images", "/v2/", "/v2/app/tags/list", "/metrics", "/events", "/nowhere"):
        for accepted in ACCEPTED[:2]:
            query = {"token": API_TOKEN, "X-Amz-Signature": SIGNATURE}
            reply = scene.daemon.request(
                "GET", path, query, headers={**headers, "Accept": accepted}, with_token=False, timeout_seconds=5
            )
            scene.answers.append(f"{reply.headers}\n{reply.body.decode(errors='replace')}")
            assert reply.status in (200, 401, 403, 404)


def test_s28_bytes_that_are_no_request_are_not_repeated(scene: Scene) -> None:
    for data in (f"GET /{API_TOKEN}", f"{API_TOKEN}\r\n\r\n", f"GET / HTTP/1.1\r\n{API_TOKEN}\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", scene.daemon.port), timeout=5) as connection:
            connection.sendall(data.encode())
            connection.shutdown(socket.SHUT_WR)
            received = b"".join(iter(lambda: connection.recv(65536), b""))
        scene.answers.append(received.decode())
        assert received == b"" or received.startswith(b"HTTP/1.1 4"), received
        assert API_TOKEN.encode() not in received


def test_s28_what_a_client_may_know_of_the_daemon_holds_no_secret(scene: Scene) -> None:
    for path in ("/images", "/system/info", "/system/df", "/metrics", "/openapi.json", "/healthz", "/readyz"):
        reply = scene.ask("GET", path, {})
        assert reply.status == 200, path
        assert API_TOKEN not in reply.text
