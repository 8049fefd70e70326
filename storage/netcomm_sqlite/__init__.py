"""Queue storage in one SQLite file: netcomm's plug-in for URLs such as `sqlite:///queue.db`.

`SqliteQueueStorage.database` is the file as sqlite-utils has it, for those who want to look in. Its schema is made, and
brought up to date, through sqlite-utils too; the hot path runs prepared statements on the same connection.

Each page that a transaction changes costs time, so a message that is stored by itself changes one: that with the last
messages of its stream. The messages have their place in the file by their ids, without another index; and the row of
their stream, with its counter and totals, follows later.

The rooms, from the bottom up; one imports only those before it:

    failures        damage, and failures of SQLite and of the system, in the terms of netcomm
    stream_table    the tables, each with its rows, their checksums, and what is asked of them
    message_table
    position_table
    log_table
    host_table
    loading         whether messages are missing
    schema          what makes a file a queue; migrations; identity
    names           the names of a file, and the one by which it is open
    blocks          blocks of the disk, and the reserve
    forks           what a forked child lets go of
    owner_lock      who owns a file
    file_watch      whether the file and its log still are at their names
    disk_space      blocks for appends, and room on a full disk
    open_file       a connection and its lock: what these two have in common
    look            a queue that is open for reading only
    owned_file      a queue that its owner has open: changes in transactions
    storage         SqliteQueueStorage
"""

from netcomm_sqlite.owned_file import Durability
from netcomm_sqlite.storage import SqliteQueueStorage

__all__ = ["SqliteQueueStorage", "Durability"]
