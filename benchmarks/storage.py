"""Messages stored per second: netcomm's SQLite storage beside snakeMQ's, in turns, on the same disk.

    python -m benchmarks.storage

Both store messages of 100 bytes. snakeMQ has no batches, so its figure stands beside each of netcomm's. What is printed
is the median of the rounds, and the ratio of the medians.
"""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from time import perf_counter, time

from snakemq.message import FLAG_PERSISTENT, Message
from snakemq.storage.sqlite import SqliteQueuesStorage

from netcomm.storage import Append, StoredMessage
from netcomm_sqlite import SqliteQueueStorage

ROUNDS = 5
ROUND_S = 1.0
DATA = b"x" * 100


def rate(store: Callable[[], int]) -> float:
    """Messages per second; `store` stores some, and returns how many."""
    stored = 0
    started = perf_counter()
    while (seconds := perf_counter() - started) < ROUND_S:
        stored += store()
    return stored / seconds


def netcomm_store(storage: SqliteQueueStorage, seqs: Callable[[], int], size: int) -> int:
    messages = [StoredMessage(seqs(), b"u" * 16, DATA, time(), 60.0) for _ in range(size)]
    storage.append([Append("niess", 1, messages)])
    return size


def snakemq_store(storage: SqliteQueuesStorage) -> int:
    storage.push("niess", Message(DATA, ttl=60, flags=FLAG_PERSISTENT))
    return 1


def main() -> None:
    with tempfile.TemporaryDirectory(dir=".") as folder:
        seqs = count().__next__
        power = SqliteQueueStorage(Path(folder, "power.db"))
        process = SqliteQueueStorage(Path(folder, "process.db"), durability="process")
        snakemq = SqliteQueuesStorage(str(Path(folder, "snakemq.db")))
        contenders: dict[str, Callable[[], int]] = {
            "snakeMQ, one by one": lambda: snakemq_store(snakemq),
            "netcomm, one by one, power": lambda: netcomm_store(power, seqs, 1),
            "netcomm, one by one, process": lambda: netcomm_store(process, seqs, 1),
            "netcomm, batches of 100, power": lambda: netcomm_store(power, seqs, 100),
            "netcomm, batches of 1000, power": lambda: netcomm_store(power, seqs, 1000),
        }
        rates: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, store in contenders.items():
                rates[name].append(rate(store))
        base = median(rates["snakeMQ, one by one"])
        for name, values in rates.items():
            print(f"{name:32} {median(values):10,.0f}/s  {median(values) / base:7.1f} x")
        power.close()
        process.close()
        snakemq.close()


if __name__ == "__main__":
    main()
