"""`Log`: what a program's filter or handler raises ends in it."""

import logging
from collections.abc import Iterator

import pytest

from netcomm.logs import Log

NAME = "netcomm.test"


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
    told = capsys.readouterr().err
    assert "A log handler or filter raised" in told
    assert type(error).__name__ in told


def test_nothing_is_said_where_logging_is_told_to_say_nothing(
    logger: logging.Logger, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.addFilter(Refuses(KeyError()))
    Log(NAME).info("a text")
    assert capsys.readouterr().err == ""


def test_a_program_without_stderr_is_not_harmed(logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    logger.addFilter(Refuses(KeyError()))
    Log(NAME).info("a text")


def test_ctrl_c_gets_through(logger: logging.Logger) -> None:
    logger.addFilter(Refuses(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        Log(NAME).info("a text")
