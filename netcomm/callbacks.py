"""`Callback`: a list of functions that is called like one function."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from netcomm import logs
from netcomm.logs import Log

log = Log("netcomm.callbacks")

F = TypeVar("F", bound=Callable[..., Any])


class Callback:
    """An ordered list of functions, called one after the other with the same arguments.

    Adding and removing replaces an immutable tuple; a call walks the tuple that it found.
    So a function may add or remove any function, itself too, while the list is being called, and its
    neighbours are neither skipped nor called twice.

    A function that raises does not keep the others from being called: the exception is logged with its
    traceback, and handed to `report`.

    functions: those that are in it now.

    All methods may be called from any thread.
    """

    __slots__ = ("_added", "_catches", "_check", "_lock", "_name", "_removed", "_report", "functions")

    def __init__(
        self,
        name: str = "callback",
        report: Callable[[BaseException], None] | None = None,
        added: Callable[[], None] | None = None,
        check: Callable[[], None] | None = None,
        removed: Callable[[], None] | None = None,
        catches: type[BaseException] = BaseException,
    ) -> None:
        """Make an empty list.

        name: what the log calls it.
        report: called with each exception that one of the functions raised.
        added: called after each `add`.
        check: called before the list is changed; what it raises keeps it from being changed.
        removed: called after each `remove`.
        catches: what of the exceptions of functions is caught; others go on to the caller.
        """
        self._removed = removed
        self._catches = catches
        self._added = added
        self._check = check
        self._name = name
        self._report = report
        self._lock = threading.RLock()  # a finalizer may interrupt its owner, and come here
        self.functions: tuple[Callable[..., Any], ...] = ()

    def add(self, function: F) -> F:
        """Append a function; returns it, so that it serves as a decorator.

        A function that was added twice is called twice. Raises LifecycleError in a forked child, where the list is a
        peer's.
        """
        if self._check is not None:
            self._check()
        while not self._replace(before := self.functions, (*before, function)):
            pass
        if self._added is not None:
            self._added()
        return function

    def remove(self, function: Callable[..., Any]) -> None:
        """Remove the first occurrence of a function.

        Raises ValueError where it is not in the list, and LifecycleError as `add` does.
        """
        if self._check is not None:
            self._check()
        replaced = False
        while not replaced:
            before = self.functions
            try:
                place = before.index(function)  # may run code of the program: __eq__
            except ValueError:
                raise ValueError(f"{function!r} is not in {self._name}") from None
            replaced = self._replace(before, before[:place] + before[place + 1 :])
        if self._removed is not None:
            self._removed()

    def _replace(self, before: tuple[Callable[..., Any], ...], after: tuple[Callable[..., Any], ...]) -> bool:
        """Replace the functions, unless another thread, or a finalizer on this one, has done so; returns whether."""
        with self._lock:
            if self.functions is before:
                self.functions = after
                return True
            return False

    def __call__(self, *args: Any) -> None:
        """Call every function with these arguments."""
        for function in self.functions:
            try:
                function(*args)
            # Everything, SystemExit too: where the thread that calls is the library's, it is not the function's to end.
            except BaseException as error:
                self.failed(function, error)

    def failed(self, function: Callable[..., Any], error: BaseException) -> None:
        """Tell that a function has raised, or raise that again; called while the exception is handled."""
        if not isinstance(error, self._catches):
            raise
        log.exception("%s: %r raised", self._name, function)
        logs.keep_up()
        if self._report is not None:
            self._report(error)

    def __len__(self) -> int:
        return len(self.functions)

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        return iter(self.functions)

    def __repr__(self) -> str:
        return f"<Callback {self._name}: {len(self.functions)} functions>"
