"""`open_storage`: finds the plug-in for the URL of a storage, among those that are installed."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from netcomm.errors import ConfigurationError
from netcomm.memory_storage import MemoryQueueStorage
from netcomm.storage import QueueStorage

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINT_GROUP = "netcomm.storage"


def open_storage(url: str, read_only: bool = False) -> QueueStorage:
    """Open the storage that a URL names, as its owner, or for a look.

    url: its scheme chooses the plug-in: `sqlite:///queue.db` (relative), `sqlite:////var/lib/queue.db` (absolute),
        `mongodb://localhost:27017/netcomm`, `memory:`, or that of any plug-in that is installed.
    read_only: see `QueueStorage.from_url`.

    Raises ConfigurationError for a URL that can't be used, or a plug-in that is not installed or is broken; the text
    lists the schemes that are installed. Raises StorageLocked, StorageUnavailable, StorageCorrupt as the plug-in does.
    """
    if not isinstance(url, str):
        raise ConfigurationError(f"a storage must be a URL or a QueueStorage, not {type(url).__name__}")
    scheme, colon, _ = url.partition(":")
    if not colon:
        raise ConfigurationError(f"a storage URL has a scheme, as in 'sqlite:///queue.db'; {url!r} has none")
    plugin = MemoryQueueStorage if scheme == "memory" else _load_plugin(scheme)
    return plugin.from_url(url, read_only)


def _load_plugin(scheme: str) -> type[QueueStorage]:
    # A plug-in may serve variants of its scheme: mongodb+srv:// is mongodb's.
    installed = {point.name: point for point in _entry_points()}
    point = installed.get(scheme) or installed.get(scheme.partition("+")[0])
    if point is None:
        raise ConfigurationError(
            f"no storage plug-in for {scheme!r}; installed are: {', '.join(sorted({'memory', *installed}))}"
        )
    try:
        plugin = point.load()
    except Exception as error:
        raise ConfigurationError(f"the storage plug-in {scheme!r} ({point.value}) can't be loaded: {error}") from error
    if not (isinstance(plugin, type) and issubclass(plugin, QueueStorage)):
        raise ConfigurationError(f"the storage plug-in {scheme!r} ({point.value}) is not a QueueStorage")
    return plugin


def _entry_points() -> Iterable["EntryPoint"]:
    from importlib.metadata import entry_points  # slow to import, and most programs need it once, or not at all

    return entry_points(group=ENTRY_POINT_GROUP)
