"""`netcomm.storage`: how a URL finds its plug-in. What storages do is in their contract's tests."""

from importlib.metadata import EntryPoint
from typing import Self

import pytest

from netcomm import storage_url
from netcomm.errors import ConfigurationError, NetcommError, StorageLocked
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.storage import Append, StoredMessage
from netcomm.storage_url import open_storage


class Plugin(MemoryQueueStorage):
    """A storage that remembers how it was opened."""

    url = ""
    read_only = False

    @classmethod
    def from_url(cls, url: str, read_only: bool = False) -> Self:
        if "locked" in url:
            raise StorageLocked("another has it")
        opened = cls()
        opened.url, opened.read_only = url, read_only
        return opened


class Variant(Plugin):
    pass


def not_a_class() -> None:
    pass


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {
        "plug": f"{__name__}:Plugin",
        "plug+variant": f"{__name__}:Variant",
        "missing": "no_such_module_of_anybody:Storage",
        "nameless": f"{__name__}:NoSuchName",
        "function": f"{__name__}:not_a_class",
        "other": "builtins:dict",
    }
    points = [EntryPoint(name, value, storage_url.ENTRY_POINT_GROUP) for name, value in places.items()]
    monkeypatch.setattr(storage_url, "_entry_points", lambda: points)


@pytest.mark.parametrize("read_only", [False, True])
def test_the_scheme_chooses_the_plug_in_which_gets_the_whole_url(read_only: bool) -> None:
    opened = open_storage("plug://user@host/place?option=1", read_only)
    assert type(opened) is Plugin
    assert opened.url == "plug://user@host/place?option=1"
    assert opened.read_only is read_only


def test_a_variant_of_a_scheme_is_for_the_plug_in_of_the_scheme() -> None:
    assert type(open_storage("plug+srv://host")) is Plugin


def test_a_variant_that_has_a_plug_in_of_its_own_is_for_that() -> None:
    assert type(open_storage("plug+variant://host")) is Variant


@pytest.mark.parametrize("url", ["memory:", "memory://"])
def test_the_memory_storage_needs_no_plug_in(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_url, "_entry_points", list)
    opened = open_storage(url)
    assert type(opened) is MemoryQueueStorage
    assert opened.streams() == []


def test_two_memory_storages_have_nothing_in_common() -> None:
    one, other = open_storage("memory:"), open_storage("memory:")
    one.append([Append("b", 1, [StoredMessage(0, bytes(16), b"", 0.0, None)])])
    assert other.streams() == []
    assert one.store_id != other.store_id


def test_a_memory_storage_has_no_place() -> None:
    with pytest.raises(ConfigurationError, match="names one"):
        open_storage("memory:///queue.db")


def test_a_scheme_that_is_not_installed_tells_which_are() -> None:
    with pytest.raises(ConfigurationError, match=r"'redis'.*function, memory, missing, nameless, other, plug"):
        open_storage("redis://host")


@pytest.mark.parametrize("url", ["", "queue.db", "/var/lib/queue.db"])
def test_a_url_has_a_scheme(url: str) -> None:
    with pytest.raises(ConfigurationError, match="scheme"):
        open_storage(url)


@pytest.mark.parametrize("url", [None, 5, b"memory:"])
def test_a_url_is_a_str(url: object) -> None:
    with pytest.raises(ConfigurationError, match=type(url).__name__):
        open_storage(url)  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", ["missing", "nameless"])
def test_a_plug_in_that_can_not_be_loaded_is_named(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{scheme}' .* can't be loaded") as caught:
        open_storage(f"{scheme}://host")
    assert isinstance(caught.value.__cause__, ImportError | AttributeError)


@pytest.mark.parametrize("scheme", ["function", "other"])
def test_a_plug_in_is_a_class_of_storages(scheme: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a QueueStorage"):
        open_storage(f"{scheme}://host")


def test_what_a_plug_in_raises_gets_through() -> None:
    with pytest.raises(StorageLocked, match="another has it"):
        open_storage("plug://locked")


def test_every_error_of_opening_is_one_of_netcomm() -> None:
    for url in ("", "redis:", "missing:", "function:", "memory:x", "plug:locked"):
        with pytest.raises(NetcommError):
            open_storage(url)


def test_a_stored_message_expires_its_ttl_after_it_was_sent() -> None:
    assert StoredMessage(0, bytes(16), b"", 100.0, 5.0).expires_at == 105.0
    assert StoredMessage(0, bytes(16), b"", 100.0, None).expires_at is None
