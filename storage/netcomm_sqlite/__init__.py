"""Queue storage in one SQLite file: netcomm's plug-in for URLs such as `sqlite:///queue.db`."""

from netcomm_sqlite.storage import Durability, SqliteQueueStorage

__all__ = ["SqliteQueueStorage", "Durability"]
