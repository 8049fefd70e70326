"""The peer in Go, built once for all tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance import go_peer


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The peer in Go. Without Go, the test is skipped; but not in CI."""
    if shutil.which("go") is None:
        if "CI" in os.environ:
            pytest.fail("the tests of the peer in Go need Go 1.22 or later")
        pytest.skip("no Go")
    place = tmp_path_factory.mktemp("go")
    with pytest.MonkeyPatch.context() as patch:
        if not os.environ.keys() & {"GOCACHE", "XDG_CACHE_HOME", "HOME"}:
            patch.setenv("GOCACHE", str(place / "cache"))
        go_peer.build(go_peer.SOURCES, place / "gopher")
        yield place / "gopher"
