"""`Log`: the library's loggers, which nothing raises through.

A program's filter or handler may raise (a full disk, a closed file, a context that is missing). `logging` lets what a
filter raises through to the caller, and a handler of the program's own may do so too. In the library the caller is a
loop or a thread that others depend on, often half-way through a step. So what is raised ends here, and goes to stderr.
"""

import logging
import sys
import threading
import traceback
from typing import Any


class Log:
    """A logger by its name, with the methods of `logging.Logger` that the library uses.

    All methods may be called from any thread. They raise nothing but KeyboardInterrupt, on the main thread.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def log(self, level: int, text: str, *args: object, exc_info: Any = None) -> None:
        """Log a text, with its arguments, as `logging.Logger.log` does."""
        self._log(level, text, args, exc_info)

    def debug(self, text: str, *args: object) -> None:
        """Log what helps to find a fault."""
        self._log(logging.DEBUG, text, args)

    def info(self, text: str, *args: object) -> None:
        """Log what happens as it should."""
        self._log(logging.INFO, text, args)

    def warning(self, text: str, *args: object, exc_info: Any = None) -> None:
        """Log what somebody should look at."""
        self._log(logging.WARNING, text, args, exc_info)

    def error(self, text: str, *args: object, exc_info: Any = None) -> None:
        """Log what has failed."""
        self._log(logging.ERROR, text, args, exc_info)

    def exception(self, text: str, *args: object) -> None:
        """Log what has failed, with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, text, args, True)

    def critical(self, text: str, *args: object, exc_info: Any = None) -> None:
        """Log what has ended a peer."""
        self._log(logging.CRITICAL, text, args, exc_info)

    def _log(self, level: int, text: str, args: tuple[object, ...], exc_info: Any = None) -> None:
        try:
            self._logger.log(level, text, *args, exc_info=exc_info, stacklevel=3)
        except BaseException as error:  # SystemExit, too: the thread belongs to the library, not to the handler
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise
            _tell_of_failure()


def _tell_of_failure() -> None:
    """Tell of the exception that is being handled on stderr, where `logging` tells of its own failures."""
    if logging.raiseExceptions and sys.stderr is not None:
        try:
            sys.stderr.write(f"--- A log handler or filter raised ---\n{traceback.format_exc()}")
        except Exception:  # stderr is closed: nobody is left to be told
            pass
