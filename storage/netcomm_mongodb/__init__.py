"""The queue storage of netcomm in a MongoDB database, for URLs that begin with `mongodb://` or `mongodb+srv://`."""

from netcomm_mongodb.storage import MongoQueueStorage

__all__ = ["MongoQueueStorage"]
