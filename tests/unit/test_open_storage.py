"""`open_storage` finds plug-ins by the scheme of their URLs, and says what is wrong with those it can't use."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from netcomm.errors import ConfigurationError
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.storage_url import open_storage

Install = Callable[..., None]

_PLUGIN = """
from netcomm.memory_storage import MemoryQueueStorage

class Storage(MemoryQueueStorage):
    @classmethod
    def from_url(cls, url, read_only=False):
        storage = cls()
        storage.opened = (url, read_only)
        return storage
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with one module and entry points to it, for the time of the test."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(module: str, source: str | None, **points: str) -> None:
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{scheme.replace('_plus_', '+')} = {target}" for scheme, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[netcomm.storage]", *lines, ""]))
        if source is not None:
            (tmp_path / f"{module}.py").write_text(source)

    return install


def test_the_scheme_chooses_the_plugin(install: Install) -> None:
    install("fake_storage_a", _PLUGIN, fakea="fake_storage_a:Storage")
    storage = open_storage("fakea://host/place?option=1", read_only=True)
    assert type(storage).__module__ == "fake_storage_a"
    assert storage.opened == ("fakea://host/place?option=1", True)  # type: ignore[attr-defined]


def test_a_variant_of_a_scheme_goes_to_the_same_plugin(install: Install) -> None:
    install("fake_storage_b", _PLUGIN, fakeb="fake_storage_b:Storage")
    assert open_storage("fakeb+srv://host").opened == ("fakeb+srv://host", False)  # type: ignore[attr-defined]


def test_a_variant_may_have_a_plugin_of_its_own(install: Install) -> None:
    install("fake_storage_c", _PLUGIN, fakec="fake_storage_c:Storage")
    install("fake_storage_d", _PLUGIN, fakec_plus_tls="fake_storage_d:Storage")
    assert type(open_storage("fakec+tls://host")).__module__ == "fake_storage_d"
    assert type(open_storage("fakec+srv://host")).__module__ == "fake_storage_c"


def test_memory_is_always_there() -> None:
    assert type(open_storage("memory:")) is MemoryQueueStorage
    assert type(open_storage("memory://")) is MemoryQueueStorage
    with pytest.raises(ConfigurationError, match="names one"):
        open_storage("memory://place")


def test_an_unknown_scheme_is_refused_with_a_list_of_what_is_there(install: Install) -> None:
    install("fake_storage_e", _PLUGIN, fakee="fake_storage_e:Storage", fakef="fake_storage_e:Storage")
    with pytest.raises(ConfigurationError) as caught:
        open_storage("nothing://host/place")
    before, _, listed = str(caught.value).partition("installed are: ")
    assert "'nothing'" in before
    assert {"fakee", "fakef", "memory"} <= set(listed.split(", "))
    assert listed.split(", ") == sorted(listed.split(", "))


@pytest.mark.parametrize("url", ["", "queue.db", "/var/lib/queue.db"])
def test_a_url_without_a_scheme_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"has a scheme, as in 'sqlite:///queue\.db'"):
        open_storage(url)


@pytest.mark.parametrize("url", [None, 5, b"memory:", Path("queue.db")])
def test_what_is_no_url_is_refused(url: object) -> None:
    with pytest.raises(ConfigurationError, match=f"not {type(url).__name__}"):
        open_storage(url)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        (None, "fake_broken:Storage", "No module named 'fake_broken'"),
        ("import no_such_library_at_all", "fake_broken:Storage", "No module named 'no_such_library_at_all'"),
        ("raise RuntimeError('wrong phase of the moon')", "fake_broken:Storage", "wrong phase of the moon"),
        ("this is no Python", "fake_broken:Storage", "invalid syntax"),
        (_PLUGIN, "fake_broken:Missing", "Missing"),
        ("class Storage: pass", "fake_broken:Storage", "is not a QueueStorage"),
        (_PLUGIN + "\nstorage = Storage()", "fake_broken:storage", "is not a QueueStorage"),
        (_PLUGIN, "fake_broken", "is not a QueueStorage"),
    ],
)
def test_a_broken_plugin_is_named(
    install: Install, monkeypatch: pytest.MonkeyPatch, source: str | None, target: str, why: str
) -> None:
    monkeypatch.delitem(sys.modules, "fake_broken", raising=False)
    install("fake_broken", source, broken=target)
    with pytest.raises(ConfigurationError) as caught:
        open_storage("broken://host/place")
    text = str(caught.value)
    assert "'broken'" in text
    assert f"({target})" in text
    assert why in text


def test_a_broken_plugin_disturbs_no_other(install: Install) -> None:
    install("fake_storage_g", "raise RuntimeError", fakeg="fake_storage_g:Storage")
    install("fake_storage_h", _PLUGIN, fakeh="fake_storage_h:Storage")
    assert type(open_storage("fakeh:")).__module__ == "fake_storage_h"


def test_the_contract_says_when_pytest_is_missing() -> None:
    """Importing netcomm, and netcomm.testing, needs no pytest; using the contract does."""
    program = """
import sys
sys.modules["pytest"] = None
import netcomm, netcomm.testing
assert netcomm.testing.FaultProxy
try:
    netcomm.testing.QueueStorageContract
except ImportError as error:
    print(error)
try:
    netcomm.testing.Nothing
except AttributeError as error:
    print(error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, check=True)
    contract, nothing = done.stdout.splitlines()
    assert "QueueStorageContract needs pytest" in contract
    assert "'netcomm.testing' has no attribute 'Nothing'" in nothing
