"""`Log`: records are written in their order, by a thread of its own, whatever handlers and filters do."""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netcomm import Callback, logs
from netcomm.logs import Log

NAME = "netcomm.test"
DEADLINE_S = 20.0


class Refuses(logging.Filter):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def filter(self, record: logging.LogRecord) -> bool:
        raise self.error


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger(NAME)
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.setLevel(logging.NOTSET)
    for added in list(logger.filters):
        logger.removeFilter(added)


def test_records_are_those_that_logging_would_make(caplog: pytest.LogCaptureFixture, logger: logging.Logger) -> None:
    log = Log(NAME)
    log.debug("%d", 1)
    log.info("%s of %s", "two", "three")
    log.warning("no arguments: 100%")
    log.error("an error", exc_info=ValueError("x"))
    log.log(logging.CRITICAL, "as bad as %r", "it gets")
    try:
        raise KeyError("k")
    except KeyError:
        log.exception("caught")
    log.critical("the end")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "1"),
        ("INFO", "two of three"),
        ("WARNING", "no arguments: 100%"),
        ("ERROR", "an error"),
        ("CRITICAL", "as bad as 'it gets'"),
        ("ERROR", "caught"),
        ("CRITICAL", "the end"),
    ]
    errors = [record.exc_info[0] for record in caplog.records if record.exc_info is not None]
    assert errors == [ValueError, KeyError]
    assert {record.filename for record in caplog.records} == {"test_logs.py"}  # who has logged, and not this room


@pytest.mark.parametrize("error", [KeyError("request_id"), SystemExit(1), GeneratorExit()])
def test_what_a_filter_raises_goes_to_stderr_and_no_further(
    error: BaseException, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    logger.addFilter(Refuses(error))
    Log(NAME).info("a text")
    assert logs.flush(DEADLINE_S)
    told = capsys.readouterr().err
    assert "A log handler or filter raised" in told
    assert type(error).__name__ in told


def test_nothing_is_said_where_logging_is_told_to_say_nothing(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.addFilter(Refuses(KeyError()))
    Log(NAME).info("a text")
    assert logs.flush(DEADLINE_S)
    assert capsys.readouterr().err == ""


def test_a_program_without_stderr_is_not_harmed(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logger.addFilter(Refuses(KeyError()))
    Log(NAME).info("a text")
    assert logs.flush(DEADLINE_S)


class Blocks(logging.Handler):
    """Lets nothing through until it is told to; and notes what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        assert self.go_on.wait(DEADLINE_S)
        self.texts.append(record.getMessage())


@pytest.fixture
def blocks(logger: logging.Logger) -> Iterator[Blocks]:
    handler = Blocks()
    logger.addHandler(handler)
    yield handler
    handler.go_on.set()
    assert logs.flush(DEADLINE_S)
    logger.removeHandler(handler)


def test_a_handler_that_blocks_keeps_nobody_who_logs(blocks: Blocks) -> None:
    log = Log(NAME)
    for number in range(10):
        log.info("%d", number)
    assert blocks.entered.wait(DEADLINE_S)
    assert not logs.flush(0.0)
    log.info("the last")
    blocks.go_on.set()
    assert logs.flush(DEADLINE_S)
    assert blocks.texts == [*map(str, range(10)), "the last"]


def test_no_more_than_so_many_records_wait_and_what_was_dropped_is_told(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_WAITING", 3)
    log = Log(NAME)
    log.info("with the handler")
    assert blocks.entered.wait(DEADLINE_S)
    for number in range(5):
        log.info("%d", number)
    blocks.go_on.set()
    assert logs.flush(DEADLINE_S)
    dropped = "2 records were dropped here: 3 waited for the log's handlers, or there was no memory for them"
    assert blocks.texts[:1] == ["with the handler"]
    assert sorted(blocks.texts[1:]) == ["0", "1", "2", dropped]


def test_callbacks_that_raise_wait_for_a_handler_that_is_slow(blocks: Blocks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the messages that they were called with would fill the memory: each record of a failure keeps one."""
    monkeypatch.setattr(logs, "_MANY", 3)
    monkeypatch.setattr(logs, "_KEEP_UP_S", DEADLINE_S)
    monkeypatch.setattr("netcomm.callbacks.log", Log(NAME))
    callback = Callback("test")
    returned = threading.Event()

    @callback.add
    def fail(data: bytes) -> None:
        raise ValueError

    def call() -> None:
        for _ in range(10):
            callback(b"")
        returned.set()

    thread = threading.Thread(target=call)
    thread.start()
    assert blocks.entered.wait(DEADLINE_S)
    assert not returned.wait(0.1)
    assert logs._queue._entries.qsize() < 10
    blocks.go_on.set()
    assert returned.wait(DEADLINE_S)
    thread.join(DEADLINE_S)
    assert logs.flush(DEADLINE_S)
    assert len(blocks.texts) == 10


def test_where_two_writers_were_started_records_keep_their_order(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = threading.Condition()
    texts: list[str] = []

    class SlowFilter(logging.Filter):
        """The first record takes until another one is written, if one is."""

        def filter(self, record: logging.LogRecord) -> bool:
            with written:
                if record.getMessage() == "1":
                    written.wait_for(lambda: "2" in texts, 0.2)
                texts.append(record.getMessage())
                written.notify_all()
            return False

    logger.addFilter(SlowFilter())
    log = Log(NAME)
    log.info("0")
    assert logs.flush(DEADLINE_S)  # its writer waits for more
    with monkeypatch.context() as planted:
        planted.setattr(logs._queue, "_has_writer", lambda: False)  # as two threads see it that log at once
        log.info("1")
    log.info("2")
    assert logs.flush(DEADLINE_S)
    assert texts == ["0", "1", "2"]


def test_a_handler_may_log_and_wait_and_is_not_waited_for_by_itself(logger: logging.Logger) -> None:
    log = Log(NAME)
    flushed: list[bool] = []

    class Logs(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "first":
                log.info("second")
                flushed.append(logs.flush(DEADLINE_S))

    handler = Logs()
    logger.addHandler(handler)
    log.info("first")
    assert logs.flush(DEADLINE_S)
    assert flushed == [False]
    logger.removeHandler(handler)


def test_a_record_tells_when_and_on_which_thread_it_was_logged(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    before = time.time()
    thread = threading.Thread(target=Log(NAME).warning, args=("text",), name="somebody")
    thread.start()
    thread.join(DEADLINE_S)
    after = time.time()
    (record,) = caplog.records
    assert (record.threadName, record.thread) == ("somebody", thread.ident)
    assert before <= record.created <= after


AT_THE_END = """
import logging, os, sys
from netcomm.logs import Log
logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)
Log("netcomm.test").info("before")
if os.fork() == 0:
    Log("netcomm.test").info("in the child")
    sys.exit()
os.wait()
Log("netcomm.test").info("after")
"""


def test_what_was_logged_is_written_when_the_process_ends_and_once_when_it_forks() -> None:
    result = subprocess.run([sys.executable, "-c", AT_THE_END], capture_output=True, text=True, timeout=60, check=True)
    assert sorted(result.stdout.split("\n")) == ["", "after", "before", "in the child"]


FORKED_IN_WRITE = """
import io, logging, os, signal, sys, threading
from netcomm import logs
from netcomm.logs import Log

class Slow(io.RawIOBase):
    "The first `write` takes until a fork has begun, and then so long that it would be over if nobody waited."

    def __init__(self):
        self.writes, self.forks, self.forked = threading.Event(), threading.Event(), threading.Event()

    def writable(self):
        return True

    def write(self, data):
        if not self.writes.is_set():
            self.writes.set()
            assert self.forks.wait(DEADLINE_S)
            self.forked.wait(0.3)
        return os.write(1, data)

slow = Slow()
os.register_at_fork(before=slow.forks.set, after_in_parent=slow.forked.set)
logs._FORK_S = DEADLINE_S
stream = io.TextIOWrapper(io.BufferedWriter(slow))
logging.basicConfig(format="%(message)s", stream=stream, level=logging.INFO)
log = Log("netcomm.test")
log.info("before")
assert slow.writes.wait(DEADLINE_S)
child = os.fork()
if not child:
    signal.alarm(ALARM_S)
log.info("after" if child else "in the child")
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_fork_comes_between_two_records() -> None:
    """Else the child would have the stream half-written, and locked for ever: Python's end flushes it."""
    script = FORKED_IN_WRITE.replace("DEADLINE_S", str(DEADLINE_S)).replace("ALARM_S", "40")
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script]  # Python warns of forks beside threads
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert sorted(result.stdout.split("\n")) == ["", "after", "before", "in the child"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_handler_that_waits_for_the_thread_that_forks_keeps_it_for_a_moment(
    blocks: Blocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "_FORK_S", 0.2)
    log = Log(NAME)
    log.info("before")
    assert blocks.entered.wait(DEADLINE_S)
    before = time.monotonic()
    exit_of_child(lambda: None)
    assert time.monotonic() - before < DEADLINE_S
    log.info("after")
    blocks.go_on.set()
    assert logs.flush(DEADLINE_S)
    assert blocks.texts == ["before", "after"]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_handler_may_fork_and_its_child_writes_nothing_of_the_parents(
    logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(logs, "_FORK_S", DEADLINE_S)
    log = Log(NAME)
    children: list[int] = []
    took: list[float] = []
    written = tmp_path / "written"

    class Forks(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with written.open("a") as file:
                file.write(f"{record.getMessage()}\n")
            if record.getMessage() == "fork":
                log.info("behind it")
                before = time.monotonic()
                child = os.fork()
                if child:
                    children.append(child)
                    took.append(time.monotonic() - before)

    handler = Forks()
    logger.addHandler(handler)
    log.info("fork")
    assert logs.flush(DEADLINE_S)
    logger.removeHandler(handler)
    os.waitpid(children[0], 0)
    assert took[0] < DEADLINE_S / 2
    assert written.read_text() == "fork\nbehind it\n"


def exit_of_child(action: Callable[[], None]) -> int:
    """Fork, do something in the child, and end it; returns how it has ended, 0 for well."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_many_threads_that_log_and_fork_at_once_lose_nothing(
    logger: logging.Logger, caplog: pytest.LogCaptureFixture
) -> None:
    log = Log(NAME)
    codes: list[int] = []

    def go(number: int) -> None:
        for turn in range(10):
            log.info("%d", 10 * number + turn)
            codes.append(exit_of_child(lambda: None))

    threads = [threading.Thread(target=go, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert codes == [0] * 40
    assert sorted(int(record.getMessage()) for record in caplog.records) == list(range(40))


WITHOUT_THREADS = """
import atexit, logging, sys, threading
from netcomm.logs import Log
logging.basicConfig(format="%(message)s", stream=sys.stdout, level=logging.INFO)
def refuse(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
Log("netcomm.test").info("first")
Log("netcomm.test").info("second")
"""


def test_where_there_is_no_thread_the_end_of_the_process_writes() -> None:
    command = [sys.executable, "-c", WITHOUT_THREADS]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "first\nsecond\n"
