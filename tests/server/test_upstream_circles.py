"""Daemons that have each other behind them: what none of them has is not found, and none waits for itself."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from minibox_store import Store
from tests.server.clients import client_of
from tests.support.answers import Answer, Request, registry_error
from tests.support.daemon import Daemon, running_daemon
from tests.support.distribution import DistributionClient
from tests.support.images import build_image
from tests.support.layouts import blob_path, write_layout
from tests.support.scripted_registry import ScriptedRegistry, manifest_target, serve_image

IMAGE = build_image(salt="circle")
OTHER = "minibox-0123456789abcdef"
ABSENT = manifest_target("team/app", "absent")
MISSING = registry_error(404, "MANIFEST_UNKNOWN")


def test_two_daemons_before_each_other_say_of_what_neither_has_that_it_is_not_there(tmp_path: Path) -> None:
    rules, lost = tmp_path / "registries.toml", IMAGE.layer_digests[0]
    rules.write_text("")
    for own, other in (("one", "two"), ("two", "one")):
        write_layout(tmp_path / own / "data", {f"{other}.example/team/app:1": IMAGE})
        blob_path(tmp_path / own / "data", lost).unlink()

    def environment(upstream: str) -> dict[str, str]:
        return {"MINIBOX_UPSTREAM": upstream, "MINIBOX_REGISTRIES": str(rules)}

    def ask(question: tuple[Daemon, str]) -> int:
        return DistributionClient(host=question[0].host).get(f"/v2/team/app/{question[1]}").status

    with (
        running_daemon(tmp_path / "one", environment=environment("two.example")) as one,
        running_daemon(tmp_path / "two", environment=environment("one.example")) as two,
    ):
        moved = ('[[registry]]\nprefix = "{}.example"\nlocation = "{}"\n'.format(*each) for each in _hosts(one, two))
        rules.write_text("".join(moved))
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(ask, [(one, "manifests/absent"), (two, "manifests/absent")] * 2)) == [404] * 4
        assert [ask((each, f"blobs/{lost}")) for each in (one, two)] == [404, 404]


def _hosts(one: Daemon, two: Daemon) -> tuple[tuple[str, str], ...]:
    return ("one", one.host), ("two", two.host)


def test_what_another_daemon_asks_for_does_not_wait_for_what_waits_for_that_one(tmp_path: Path) -> None:
    with ScriptedRegistry() as other:
        environment = {"MINIBOX_UPSTREAM": other.host}
        with running_daemon(tmp_path, environment=environment) as daemon:
            inner = DistributionClient(host=daemon.host, headers={"Via": f"1.1 {OTHER}"})

            def asking_back(_: Request) -> Answer:
                """Answer as a daemon whose own client has asked for the same, and which waits for that."""
                other.expect("GET", ABSENT, MISSING, requires={"Via": f"1.1 {OTHER}, {_pseudonym(other)}"})
                assert inner.get(ABSENT).status == 404
                return MISSING

            other.expect("GET", ABSENT, asking_back)
            assert DistributionClient(host=daemon.host).get(ABSENT).status == 404


def _pseudonym(upstream: ScriptedRegistry) -> str:
    """Return how the daemon named itself to its upstream first."""
    named = upstream.requests[0].header("Via")
    assert named is not None
    return named


def test_the_upstream_is_told_of_each_daemon_and_of_nobody_else(tmp_path: Path) -> None:
    headers = {"Via": f"1.0 proxy (Via 1.1 {OTHER}), 1.1 {OTHER} , 1.1 minibox-x, HTTP/2 {OTHER}"}
    with ScriptedRegistry() as upstream, client_of(tmp_path, upstream=upstream.host, headers=headers) as client:
        serve_image(upstream, "team/app", "1", IMAGE)
        assert client.get(manifest_target("team/app", "1")).status_code == 200
        told = {request.header("Via") for request in upstream.requests}
    assert len(told) == 1
    assert told.pop() == f"1.1 {OTHER}, {_pseudonym(upstream).rpartition(', ')[2]}"
    assert Store(tmp_path).get(f"{upstream.host}/team/app:1")


@pytest.mark.parametrize(("count", "asked"), [(15, 1), (16, 0)])
def test_nothing_is_brought_for_who_comes_by_many_daemons(tmp_path: Path, count: int, asked: int) -> None:
    headers = {"Via": ",".join(f"1.1 minibox-{number:016x}" for number in range(count))}
    with ScriptedRegistry() as upstream, client_of(tmp_path, upstream=upstream.host, headers=headers) as client:
        upstream.allow("GET", ABSENT, MISSING)
        assert client.get(ABSENT).status_code == 404
        assert upstream.count("GET", ABSENT) == asked
