"""Settings of the whole test suite."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long one example takes says more of what else the machine does than of the code: `make bench` measures time.
settings.register_profile(
    "project", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def away_from_the_credentials_of_this_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Let no test, and no program that one starts, find the credentials of whoever runs them."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"):
            patch.setenv(name, os.fspath(home))
        patch.setenv("DOCKER_CONFIG", os.fspath(home / ".docker"))
        proxies = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
        for name in ("REGISTRY_AUTH_FILE", "SSL_CERT_FILE", "SSL_CERT_DIR", "MINIBOX_REGISTRIES", *proxies):
            patch.delenv(name, raising=False)
        yield home


@pytest.fixture(scope="session")
def lock_of_the_run() -> Iterator[int]:
    """What all processes of this run lock: an open folder."""
    opened = os.open(Path(__file__).parent, os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


@pytest.fixture(autouse=True)
def machine_in_turn(request: pytest.FixtureRequest, lock_of_the_run: int) -> Iterator[None]:
    """Let no other test run while one does that is marked ``alone``: what it mounts is a doubt to whoever prunes."""
    is_alone = request.node.get_closest_marker("alone") is not None
    fcntl.flock(lock_of_the_run, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
    yield
    fcntl.flock(lock_of_the_run, fcntl.LOCK_UN)
