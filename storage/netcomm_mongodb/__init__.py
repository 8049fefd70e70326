"""Queue storage in a MongoDB database: netcomm's plug-in for URLs that begin with `mongodb://` or `mongodb+srv://`.

One database holds one storage for each prefix of collection names. The document `head` is the storage: every change is
one update of it. So a change happens as a whole or not at all, however many streams and logs it concerns, without a
multi-document transaction. The rooms, each of which imports only rooms above it:

- `errors`: pymongo's errors as netcomm's.
- `documents`: what the documents look like; `host_documents`: those of a host.
- `connection`: the client, and the collections by name. `bulk`, `parts`: many documents at once, and large payloads.
- `head`: the document `head`, its journal, and who owns the storage. `head_record`: what it looks like. `host_part`:
  what it has for a host, and how a step is made.
- `inserter`: inserting documents where debris may be.
- `lease`: for how long the storage stays locked after a crash, and the thread that renews that.
- `messages`: appending messages, and removing them. `message_reader`: reading them.
- `garbage`: deleting messages, and work that is put off: removing them, and compacting the journal.
- `rows`: inserting the rows of a host's logs, and removing them. `row_reader`: reading them.
- `steps`: what a host's steps change. `sweeper`: what of that is put off.
- `owner`: becoming the owner, and giving the storage up.
- `storage`: `MongoQueueStorage`.

Reads and writes go to the primary; writes wait until a majority has them in its journal, whatever the URL says.
The server must update a single document atomically, which every MongoDB does. FerretDB 1 does not: two owners that
take a storage from each other within the same millisecond could both succeed there. It will do for tests.
"""

from netcomm_mongodb.storage import MongoQueueStorage

__all__ = ["MongoQueueStorage"]
