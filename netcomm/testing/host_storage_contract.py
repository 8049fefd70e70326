"""`HostStorageContract`: what every `HostStorage` must do, as pytest tests; those of `QueueStorageContract` among them.

A plug-in's tests subclass it as they would `QueueStorageContract`. It needs pytest.
"""
# ruff: noqa: D102 - the tests' names say what must be true

import threading
from collections.abc import Callable
from typing import cast

import pytest

from netcomm.errors import ConfigurationError, StorageError
from netcomm.host_storage import HostLog, HostPosition, HostRow, HostStep, HostStorage, PositionKey
from netcomm.message import Stream
from netcomm.storage import Append, Position
from netcomm.testing.host_steps import (
    BAD_STEPS,
    BUS,
    EVERYTHING,
    KEY,
    NAMES,
    NOW,
    PLACE,
    STEPS,
    all_rows,
    everything,
    numbers,
    renamed,
    row,
    rows,
    some_of_everything,
    streams,
)
from netcomm.testing.storage_contract import Open, QueueStorageContract, message, messages, needs_place, seqs

_THREADS = 6
_COMMITS = 10
_DEADLINE_S = 60.0

_LOOKS: dict[str, Callable[[HostStorage], object]] = {
    "logs": lambda storage: storage.logs(),
    "rows": lambda storage: storage.rows("tasks", 0, EVERYTHING, EVERYTHING),
    "marks": lambda storage: storage.marks(),
    "documents": lambda storage: storage.documents(),
    "host_positions": lambda storage: storage.host_positions(),
}


_STREAM_CHANGES: list[Callable[[HostStorage], object]] = [
    lambda storage: storage.delete("bob", [0], stream=BUS),
    lambda storage: storage.delete_below("bob", 1, stream=BUS),
    lambda storage: storage.mark_sent("bob", 1, stream=BUS),
    lambda storage: storage.renew("bob", 1, stream=BUS),
]


class HostStorageContract(QueueStorageContract):
    """The tests. A subclass is named `Test…`, and has `open_storage`, as that of `QueueStorageContract`."""

    @pytest.fixture
    def host(self, opens: Open) -> HostStorage:
        """The storage, empty."""
        return cast(HostStorage, opens())

    @pytest.fixture
    def opens_host(self, opens: Open) -> Callable[..., HostStorage]:
        """Opens the storage at the test's place."""
        return cast(Callable[..., HostStorage], opens)

    # -- Logs -------------------------------------------------------------------------------------------------

    def test_a_new_storage_keeps_nothing_for_a_host(self, host: HostStorage) -> None:
        assert everything(host) == ({}, {}, {}, {}, {})
        assert host.rows("tasks", 0, 10, 10) == []

    def test_rows_are_read_as_they_were_appended(self, host: HostStorage) -> None:
        appended = [
            HostRow(0, b"", b"", 0.0),
            HostRow(1, bytes(range(256)), bytes(range(255, -1, -1)), 1_700_000_000.123456, b"state"),
            HostRow(2, b"x" * 100_000, b"y" * 1000, NOW, bytes(range(256))),
            HostRow(3, b"", b"only an envelope", 0.1),
        ]
        host.commit([HostStep(appended={"tasks": appended[:1]})])
        host.commit([HostStep(appended={"tasks": appended[1:]})])
        assert all_rows(host, "tasks") == appended

    def test_numbers_may_leave_gaps_and_be_large(self, host: HostStorage) -> None:
        appended = rows(3, 4, 1000, 2**40, 2**41 + 5, 2**63 - 2)
        host.commit([HostStep(appended={"tasks": appended[:2]})])
        host.commit([HostStep(appended={"tasks": appended[2:]})])
        assert all_rows(host, "tasks") == appended
        assert [found.number for found in host.rows("tasks", 5, 2, EVERYTHING)] == [1000, 2**40]
        assert host.logs()["tasks"].next_number == 2**63 - 1
        host.commit([HostStep(deleted={"tasks": [(4, 2**41)]})])
        assert numbers(host, "tasks") == [3, 2**41 + 5, 2**63 - 2]

    def test_a_read_of_rows_has_limits(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": [row(number, b"x" * 60, b"y" * 40) for number in range(5)]})])
        counts = {0: 1, 1: 1, 100: 1, 101: 2, 200: 2, 250: 3, 10**6: 5}
        assert {limit: len(host.rows("tasks", 0, EVERYTHING, limit)) for limit in counts} == counts
        assert [found.number for found in host.rows("tasks", 2, 2, EVERYTHING)] == [2, 3]
        assert host.rows("tasks", 5, 2, EVERYTHING) == []

    def test_logs_are_summed_up(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": [row(3, b"abc", b"de"), row(4, b""), row(7, b"f", state=b"long")]})])
        host.commit([HostStep(next_numbers={"empty": 9})])
        assert host.logs() == {
            "tasks": HostLog(8, 3, 6, 3, NOW + 3, NOW + 7),
            "empty": HostLog(9, 0, 0, None, None, None),
        }
        host.commit([HostStep(deleted={"tasks": [(3, 4)]})])
        assert host.logs()["tasks"] == HostLog(8, 2, 1, 4, NOW + 4, NOW + 7)
        host.commit([HostStep(deleted={"tasks": [(0, 100)]})])
        assert host.logs()["tasks"] == HostLog(8, 0, 0, None, None, None)

    def test_a_log_begins_with_an_append_of_nothing(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": []}), HostStep(next_numbers={"other": 0})])
        assert host.logs() == dict.fromkeys(["tasks", "other"], HostLog(0, 0, 0, None, None, None))

    def test_the_next_number_only_rises(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": rows(5)})])
        host.commit([HostStep(next_numbers={"tasks": 3})])
        assert host.logs()["tasks"].next_number == 6
        host.commit([HostStep(next_numbers={"tasks": 2**62})])
        assert host.logs()["tasks"].next_number == 2**62
        host.commit([HostStep(appended={"tasks": rows(2**62)})])
        assert numbers(host, "tasks") == [5, 2**62]

    def test_rows_are_deleted_one_by_one_and_in_ranges(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": rows(*range(20)), "other": rows(*range(20))})])
        host.commit([HostStep(deleted={"tasks": [(7, 8), (0, 3), (2, 5), (18, 500), (7, 7), (300, 200), (-5, 1)]})])
        assert numbers(host, "tasks") == [5, 6, *range(8, 18)]
        assert numbers(host, "other") == list(range(20))
        host.commit([HostStep(deleted={"tasks": [(number, number + 1) for number in range(5, 18, 2)]})])
        assert numbers(host, "tasks") == [6, *range(8, 18, 2)]
        assert host.logs()["tasks"] == HostLog(20, 6, 24, 6, NOW + 6, NOW + 16)

    def test_what_is_not_there_is_not_deleted_changed_or_begun(self, host: HostStorage) -> None:
        host.commit([some_of_everything])
        before = everything(host)
        host.commit(
            [
                HostStep(dropped=["nobody's"], deleted={"none": [(0, 2**63)]}, changed={"no": {1: b"x"}}),
                HostStep(deleted={"tasks": [(5, 9), (2**62, 2**63)]}, changed={"tasks": {5: b"x", 2**62: b"y"}}),
                HostStep(marks={"nobody's": None}, documents={"nobody's": None}, positions={("kim", BUS): None}),
                HostStep(),
            ]
        )
        host.commit([])
        assert everything(host) == before

    def test_the_state_of_rows_changes(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": [row(0), row(1, b"x" * 50_000, b"envelope", b"old"), row(2)]})])
        before = host.logs()
        host.commit([HostStep(changed={"tasks": {0: b"first", 1: b"a longer state"}})])
        host.commit([HostStep(changed={"tasks": {0: b""}})])
        assert all_rows(host, "tasks") == [row(0), row(1, b"x" * 50_000, b"envelope", b"a longer state"), row(2)]
        assert host.logs() == before

    def test_a_dropped_log_begins_anew(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": rows(*range(100)), "other": rows(1)}, next_numbers={"empty": 4})])
        host.commit([HostStep(dropped=["tasks", "empty"])])
        assert host.logs().keys() == {"other"}
        assert all_rows(host, "tasks") == []
        host.commit([HostStep(appended={"tasks": rows(7)})])
        assert host.logs()["tasks"] == HostLog(8, 1, 4, 7, NOW + 7, NOW + 7)
        host.commit([HostStep(dropped=["tasks"], appended={"tasks": rows(2)})])
        assert all_rows(host, "tasks") == rows(2)

    def test_many_logs_with_many_rows(self, host: HostStorage) -> None:
        for number in range(50):
            host.commit([HostStep(appended={f"log {number}": rows(*range(number, number + 40))})])
        host.commit([HostStep(deleted={f"log {number}": [(0, number + 20)] for number in range(50)})])
        found = host.logs()
        assert {name: (log.next_number, log.count, log.first_number) for name, log in found.items()} == {
            f"log {number}": (number + 40, 20, number + 20) for number in range(50)
        }
        assert all(numbers(host, f"log {number}") == list(range(number + 20, number + 40)) for number in range(50))

    def test_names_are_kept_as_they_are(self, host: HostStorage) -> None:
        for place, name in enumerate(NAMES):
            host.commit(
                [
                    HostStep(
                        appended={name: rows(place, place + 1, place + 2)},
                        marks={name: place},
                        documents={name: name.encode()},
                        positions={(name, BUS): HostPosition(place, place, NOW)} if len(name) <= 255 else {},
                    ),
                    HostStep(deleted={name: [(place + 1, place + 2)]}, changed={name: {place: name.encode()}}),
                ]
            )
        assert {name: log.next_number for name, log in host.logs().items()} == {
            name: place + 3 for place, name in enumerate(NAMES)
        }
        assert [all_rows(host, name) for name in NAMES] == [
            [row(place, state=name.encode()), row(place + 2)] for place, name in enumerate(NAMES)
        ]
        assert host.marks() == {name: place for place, name in enumerate(NAMES)}
        assert host.documents() == {name: name.encode() for name in NAMES}
        assert {ident: position.epoch for (ident, _), position in host.host_positions().items()} == {
            name: place for place, name in enumerate(NAMES) if len(name) <= 255
        }

    # -- Marks, documents, positions --------------------------------------------------------------------------

    def test_marks_only_rise(self, host: HostStorage) -> None:
        host.commit([HostStep(marks={"a": 5, "b": 0, "c": 2**63 - 2})])
        host.commit([HostStep(marks={"a": 4, "b": 2}), HostStep(marks={"b": 1})])
        assert host.marks() == {"a": 5, "b": 2, "c": 2**63 - 2}
        host.commit([HostStep(marks={"a": None})])
        assert host.marks() == {"b": 2, "c": 2**63 - 2}
        host.commit([HostStep(marks={"b": None}), HostStep(marks={"b": 1})])
        assert host.marks() == {"b": 1, "c": 2**63 - 2}

    @pytest.mark.parametrize("content", [b"", b"\0", bytes(range(256)), bytes(range(250)) * 4000], ids=len)
    def test_documents_are_kept_as_they_are(self, host: HostStorage, content: bytes) -> None:
        host.commit([HostStep(documents={"a": content, "b": b"other"})])
        assert host.documents() == {"a": content, "b": b"other"}
        host.commit([HostStep(documents={"a": b"new", "b": None, "c": content})])
        assert host.documents() == {"a": b"new", "c": content}

    def test_host_positions_reach_up_to_64_bits(self, host: HostStorage) -> None:
        some = [0, 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
        positions: dict[PositionKey, HostPosition] = {
            (f"{number}", stream): HostPosition(number, 2**64 - 1 - number, 0.1)
            for number in some
            for stream in (Stream.BULK, Stream.BUS_VOLATILE, Stream.BUS_DURABLE)
        }
        host.commit([HostStep(positions=positions)])
        assert host.host_positions() == positions
        assert all(type(stream) is Stream for _, stream in host.host_positions())

    def test_a_host_position_takes_the_place_of_the_earlier_one(self, host: HostStorage) -> None:
        other = "bob", BUS
        host.commit([HostStep(positions={KEY: PLACE, other: HostPosition(1, 10, NOW)})])
        host.commit([HostStep(positions={KEY: HostPosition(9, 1, NOW + 1)})])
        assert host.host_positions() == {KEY: HostPosition(9, 1, NOW + 1), other: HostPosition(1, 10, NOW)}
        host.commit([HostStep(positions={other: None})])
        assert host.host_positions() == {KEY: HostPosition(9, 1, NOW + 1)}

    def test_host_positions_are_not_those_of_plain_durable_streams(self, host: HostStorage) -> None:
        host.commit([HostStep(positions={KEY: PLACE, ("bob", BUS): PLACE})])
        host.store_positions({"bob": Position(7, 8)})
        assert host.positions() == {"bob": Position(7, 8)}
        assert host.host_positions() == {KEY: PLACE, ("bob", BUS): PLACE}

    # -- Steps ------------------------------------------------------------------------------------------------

    def test_the_parts_of_a_step_are_made_in_order(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": rows(0, 1)})])
        host.commit(
            [
                HostStep(
                    dropped=["tasks"],
                    next_numbers={"tasks": 10},
                    appended={"tasks": rows(10, 11, 12)},
                    changed={"tasks": {10: b"a", 11: b"b"}},
                    deleted={"tasks": [(11, 12)]},
                )
            ]
        )
        assert all_rows(host, "tasks") == [row(10, state=b"a"), row(12)]

    def test_steps_that_are_made_together_leave_what_they_leave_one_by_one(self, host: HostStorage) -> None:
        steps = [
            HostStep(appended={"{}": rows(0, 1, 2)}),
            HostStep(changed={"{}": {0: b"x", 1: b"y"}}, deleted={"{}": [(2, 3)]}),
            HostStep(appended={"{}": rows(3, 4)}, marks={"{}": 9}, documents={"{}": b"1"}),
            HostStep(deleted={"{}": [(0, 1), (4, 5)]}, marks={"{}": 3}, documents={"{}": None}),
            HostStep(changed={"{}": {0: b"gone", 3: b"z"}}, documents={"{}": b"2"}, next_numbers={"{}": 8}),
            HostStep(positions={("{}", BUS): PLACE}),
            HostStep(positions={("{}", BUS): None}),
            HostStep(appended={"{}": rows(9)}, positions={("{}", BUS): HostPosition(5, 6, NOW)}),
        ]
        host.commit([renamed(step, "together") for step in steps])
        for step in steps:
            host.commit([renamed(step, "one by one")])
        assert (
            all_rows(host, "together")
            == all_rows(host, "one by one")
            == [row(1, state=b"y"), row(3, state=b"z"), row(9)]
        )
        assert host.logs()["together"] == host.logs()["one by one"]
        assert host.marks() == {"together": 9, "one by one": 9}
        assert host.documents() == {"together": b"2", "one by one": b"2"}
        assert set(host.host_positions().values()) == {HostPosition(5, 6, NOW)}

    def test_a_log_that_is_dropped_among_other_steps(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"tasks": rows(0, 1), "other": rows(0)})])
        host.commit(
            [
                HostStep(appended={"tasks": rows(2)}, deleted={"tasks": [(0, 1)]}),
                HostStep(dropped=["tasks"]),
                HostStep(appended={"tasks": rows(0, 1)}),
                HostStep(deleted={"tasks": [(1, 2)]}),
                HostStep(dropped=["other"]),
            ]
        )
        assert host.logs() == {"tasks": HostLog(2, 1, 4, 0, NOW, NOW)}

    @pytest.mark.parametrize("last", BAD_STEPS.values(), ids=BAD_STEPS)
    def test_of_steps_of_which_one_fails_none_is_made(self, host: HostStorage, last: HostStep) -> None:
        host.commit([some_of_everything])
        before = everything(host)
        with pytest.raises(ConfigurationError):
            host.commit([*STEPS.values(), last])
        assert everything(host) == before
        host.commit([HostStep(appended={"tasks": rows(5)})])
        assert numbers(host, "tasks") == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
    def test_a_step_that_is_committed_again_changes_nothing(self, host: HostStorage, step: HostStep) -> None:
        host.commit([some_of_everything])
        before = everything(host)
        host.commit([step])
        after = everything(host)
        assert after != before
        host.commit([step])
        assert everything(host) == after

    def test_rows_are_committed_again_together_with_later_ones(self, host: HostStorage) -> None:
        first = HostStep(appended={"tasks": [row(number, b"%d" % number) for number in range(10)]})
        second = HostStep(appended={"tasks": [row(10, b"10")]}, deleted={"tasks": [(3, 4)]})
        host.commit([first])
        host.commit([first, second])
        assert all_rows(host, "tasks") == [row(number, b"%d" % number) for number in range(11) if number != 3]
        assert host.logs()["tasks"] == HostLog(11, 10, 11, 0, NOW, NOW + 10)

    def test_a_queue_of_work(self, host: HostStorage) -> None:
        for first in range(0, 500, 50):
            pushed = HostStep(
                appended={"tasks": rows(*range(first, first + 50))},
                positions={("bob", BUS): HostPosition(1, first + 50, NOW)},
            )
            acked = [(number, number + 1) for number in range(first, first + 50, 2)]
            host.commit([pushed, HostStep(deleted={"tasks": acked}, marks={"tasks": first + 50})])
        assert numbers(host, "tasks") == list(range(1, 500, 2))
        assert host.logs()["tasks"] == HostLog(500, 250, 1000, 1, NOW + 1, NOW + 499)
        assert host.marks() == {"tasks": 500}
        assert host.host_positions() == {("bob", BUS): HostPosition(1, 500, NOW)}

    def test_open_transfers_and_graves_fit_in(self, host: HostStorage) -> None:
        """What files and the audit will keep: nothing of it needs another kind of thing."""
        hashes = [bytes([number]) * 32 for number in range(8)]
        host.commit(
            [
                HostStep(
                    documents={"file/0f": b"film.mkv"},
                    next_numbers={"file/0f": 0},
                    appended={"file/0f": [HostRow(number, block, b"", NOW) for number, block in enumerate(hashes)]},
                )
            ]
        )
        # A grave is a range of seqs: its number is that of its first one.
        graves = [HostRow(seq, (below - seq).to_bytes(8), b"expired", NOW) for seq, below in [(3, 4), (10, 50)]]
        host.commit([HostStep(appended={"graves/bob/1/7": graves})])
        assert [found.data for found in all_rows(host, "file/0f")] == hashes
        assert all_rows(host, "graves/bob/1/7") == graves
        host.commit([HostStep(documents={"file/0f": None}, dropped=["file/0f"])])
        assert host.documents() == {}
        assert host.logs().keys() == {"graves/bob/1/7"}

    # -- Durable streams by number ----------------------------------------------------------------------------

    def test_two_durable_streams_to_one_receiver_have_nothing_in_common(self, host: HostStorage) -> None:
        host.append([Append("bob", 1, [message(0, b"plain", ttl=1.0), *messages(1)])])
        host.append([Append("bob", 2, [message(0, b"bus", ttl=2.0), *messages(1, 2)], BUS)])
        assert [found.data for found in host.read("bob", 0, 1, 1)] == [b"plain"]
        assert [found.data for found in host.read("bob", 0, 1, 1, stream=BUS)] == [b"bus"]
        assert seqs(host.read("bob", 1, 9, 99, stream=BUS)) == [1, 2]
        assert seqs(host.expired("bob", 0, NOW + 1, 9)[0]) == [0]
        assert host.expired("bob", 0, NOW + 1, 9, stream=BUS) == ([], NOW + 2)
        host.mark_sent("bob", 1, stream=BUS)
        host.renew("bob", 9)
        host.delete("bob", [1], stream=BUS)
        found = streams(host)
        assert found.keys() == {("bob", Stream.DURABLE), ("bob", BUS)}
        plain, bus = found["bob", Stream.DURABLE], found["bob", BUS]
        assert (plain.epoch, plain.next_seq, plain.sent_below, plain.count) == (9, 2, 2, 2)
        assert (bus.epoch, bus.next_seq, bus.sent_below, bus.count) == (2, 3, 1, 2)
        host.renew("bob", 8, stream=BUS)
        host.mark_sent("bob", 0)
        assert (streams(host)["bob", BUS].epoch, streams(host)["bob", BUS].sent_below) == (8, 3)
        assert streams(host)["bob", Stream.DURABLE].sent_below == 0
        host.delete("bob", [0, 1])
        assert host.read("bob", 0, 9, 99) == []
        assert seqs(host.read("bob", 0, 9, 99, stream=BUS)) == [0, 2]

    def test_an_append_to_several_streams_of_one_receiver(self, host: HostStorage) -> None:
        host.append(
            [Append("bob", 1, messages(0, 1)), Append("bob", 2, messages(0), BUS), Append("bob", 1, messages(2))]
        )
        assert seqs(host.read("bob", 0, 9, 99)) == [0, 1, 2]
        assert seqs(host.read("bob", 0, 9, 99, stream=BUS)) == [0]
        host.append([Append("bob", 2, messages(1), BUS)])
        assert seqs(host.read("bob", 0, 9, 99, stream=BUS)) == [0, 1]

    def test_a_stream_that_does_not_exist_is_empty_also_if_the_receiver_has_another(self, host: HostStorage) -> None:
        host.append([Append("bob", 1, messages(0, 1))])
        before = streams(host)
        host.delete("bob", [0], stream=BUS)
        host.delete_below("bob", 2, stream=BUS)
        host.mark_sent("bob", 1, stream=BUS)
        host.renew("bob", 5, stream=BUS)
        assert host.read("bob", 0, 9, 99, stream=BUS) == []
        assert host.expired("bob", 0, NOW, 9, stream=BUS) == ([], None)
        assert streams(host) == before

    def test_logs_are_no_streams(self, host: HostStorage) -> None:
        host.commit([HostStep(appended={"bob": rows(0, 1)})])
        assert host.streams() == []
        host.append([Append("bob", 1, messages(5)), Append("bob", 2, messages(7), BUS)])
        host.commit([HostStep(dropped=["bob"])])
        assert seqs(host.read("bob", 0, 9, 99)) == [5]
        assert seqs(host.read("bob", 0, 9, 99, stream=BUS)) == [7]
        assert host.logs() == {}

    # -- Threads and life -------------------------------------------------------------------------------------

    def test_threads_commit_and_append_at_once(self, host: HostStorage) -> None:
        barrier = threading.Barrier(_THREADS)
        failures: list[BaseException] = []

        def work(number: int) -> None:
            name = f"own {number}"
            try:
                barrier.wait(_DEADLINE_S)
                for place in range(_COMMITS):
                    position = HostPosition(number, place, NOW)
                    host.commit([HostStep(appended={name: rows(place)}, positions={(name, BUS): position})])
                    host.append([Append(name, number, messages(place))])
                    assert numbers(host, name) == list(range(place + 1))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_DEADLINE_S)
        assert not any(thread.is_alive() for thread in threads)
        assert failures == []
        for number in range(_THREADS):
            assert all_rows(host, f"own {number}") == rows(*range(_COMMITS))
        assert host.host_positions() == {
            (f"own {number}", BUS): HostPosition(number, _COMMITS - 1, NOW) for number in range(_THREADS)
        }

    def test_a_closed_storage_keeps_nothing_for_a_host(self, host: HostStorage) -> None:
        host.close()
        raised = set()
        uses = _LOOKS | {"commit": lambda storage: storage.commit([some_of_everything])}
        for name, use in uses.items():
            try:
                use(host)
            except StorageError:
                raised.add(name)
        assert raised == uses.keys()

    @needs_place
    def test_what_a_host_keeps_is_there_when_it_is_opened_again(
        self, host: HostStorage, opens_host: Callable[..., HostStorage]
    ) -> None:
        large = row(6, bytes(range(250)) * 4000, b"e" * 5000, b"s")
        host.commit([some_of_everything, HostStep(appended={"tasks": [large]}, deleted={"tasks": [(0, 2)]})])
        host.commit([HostStep(changed={"tasks": {3: b"twice"}}, dropped=["none"], next_numbers={"empty": 2**40})])
        host.append([Append("bob", 1, messages(0)), Append("bob", 2, messages(0, 1), BUS)])
        host.mark_sent("bob", 1, stream=BUS)
        host.delete_below("bob", 1, stream=BUS)
        before, before_streams = everything(host), streams(host)
        host.close()
        for _ in range(2):
            again = opens_host()
            assert everything(again) == before
            after = streams(again)
            assert after.keys() == before_streams.keys()
            assert after["bob", Stream.DURABLE] == before_streams["bob", Stream.DURABLE]
            assert (after["bob", BUS].sent_below, after["bob", BUS].count) == (1, 1)
            assert all_rows(again, "tasks")[-1] == large
            again.close()

    @needs_place
    def test_the_counter_outlives_the_rows(self, host: HostStorage, opens_host: Callable[..., HostStorage]) -> None:
        host.commit([HostStep(appended={"tasks": rows(*range(50))})])
        host.commit([HostStep(deleted={"tasks": [(0, 50)]})])
        host.commit([HostStep(appended={"short": rows(0, 1, 2)}, deleted={"short": [(0, 3)]})])
        host.close()
        again = opens_host()
        assert again.logs() == {
            "tasks": HostLog(50, 0, 0, None, None, None),
            "short": HostLog(3, 0, 0, None, None, None),
        }

    @needs_place
    def test_a_look_sees_what_a_host_keeps(self, host: HostStorage, opens_host: Callable[..., HostStorage]) -> None:
        host.commit([some_of_everything])
        host.append([Append("bob", 2, messages(0, 1), BUS)])
        look = opens_host(read_only=True)
        assert everything(look) == everything(host)
        assert streams(look) == streams(host)
        assert seqs(look.read("bob", 0, 9, 99, stream=BUS)) == [0, 1]
        assert look.expired("bob", 0, NOW, 9, stream=BUS) == ([], None)
        host.commit(list(STEPS.values()))
        assert everything(look) == everything(host)

    @needs_place
    def test_a_look_commits_nothing(self, host: HostStorage, opens_host: Callable[..., HostStorage]) -> None:
        host.commit([some_of_everything])
        host.append([Append("bob", 2, messages(0, 1), BUS)])
        before, before_streams = everything(host), streams(host)
        with opens_host(read_only=True) as look:
            for step in STEPS.values():
                with pytest.raises(StorageError):
                    look.commit([step])
            for change in _STREAM_CHANGES:
                with pytest.raises(StorageError):
                    change(look)
        assert everything(host) == before
        assert streams(host) == before_streams
