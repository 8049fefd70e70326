"""`netcomm.runtime.manual_dispatcher`: items are handled where the program asks for it, and by nobody else."""

import logging
import select
import threading
from collections.abc import Iterator

import pytest

from netcomm import AlreadyDispatching, LifecycleError
from netcomm.runtime.manual_dispatcher import OVERDUE_S, ManualDispatcher

DEADLINE_S = 10


class Scene:
    """A dispatcher of numbers, each of which counts as itself, and its clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("netcomm.runtime.manual_dispatcher.clocks.now", lambda: self.now)
        self.handled: list[int] = []
        self.dispatcher: ManualDispatcher[int] = ManualDispatcher("d", lambda item: item)
        self.dispatcher.start(self.handle, lambda: False)

    def handle(self, item: int) -> int:
        self.handled.append(item)
        return item

    def warn(self, at: float) -> None:
        """What the loop does when it is due."""
        due = self.dispatcher.overdue_at
        assert due == pytest.approx(at)
        self.now = at
        self.dispatcher.warn(at)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    made = Scene(monkeypatch)
    yield made
    made.dispatcher.close()


def readable(dispatcher: ManualDispatcher[int]) -> bool:
    return bool(select.select([dispatcher], [], [], 0)[0])


def test_what_waits_at_the_beginning_is_handled_and_what_comes_meanwhile_is_not(scene: Scene) -> None:
    dispatcher = scene.dispatcher

    def handle(item: int) -> int:
        if item < 10:
            dispatcher.put(item + 10)
        return scene.handle(item)

    dispatcher.start(handle, lambda: False)
    for item in (1, 2, 3):
        dispatcher.put(item)
    assert dispatcher.dispatch(0.0) == 6
    assert scene.handled == [1, 2, 3]
    assert readable(dispatcher)
    assert dispatcher.dispatch(0.0) == 36
    assert scene.handled == [1, 2, 3, 11, 12, 13]
    assert not readable(dispatcher)


def test_the_descriptor_is_readable_while_something_waits(scene: Scene) -> None:
    assert not readable(scene.dispatcher)
    scene.dispatcher.put(1)
    scene.dispatcher.put(2)
    assert readable(scene.dispatcher)
    assert readable(scene.dispatcher)
    scene.dispatcher.dispatch(0.0)
    assert not readable(scene.dispatcher)
    scene.dispatcher.put(3)
    assert readable(scene.dispatcher)


def test_dispatch_waits_for_something_to_come(scene: Scene) -> None:
    threading.Timer(0.05, scene.dispatcher.put, (1,)).start()
    assert scene.dispatcher.dispatch(None) == 1
    assert scene.dispatcher.dispatch(0.01) == 0


def test_dispatch_waits_on_where_what_has_come_is_nothing_for_callbacks(scene: Scene) -> None:
    scene.dispatcher.put(0)
    threading.Timer(0.05, scene.dispatcher.put, (1,)).start()
    assert scene.dispatcher.dispatch(None) == 1
    assert scene.handled == [0, 1]


def test_the_end_lets_dispatch_return_with_what_was_put_before(scene: Scene) -> None:
    threading.Timer(0.05, scene.dispatcher.stop).start()
    assert scene.dispatcher.dispatch(None) == 0
    scene.dispatcher.put(1)
    scene.dispatcher.close()
    assert scene.dispatcher.dispatch(None) == 1
    with pytest.raises(LifecycleError):
        scene.dispatcher.fileno()


def test_the_descriptor_is_readable_from_the_end_on(scene: Scene) -> None:
    scene.dispatcher.stop()
    assert scene.dispatcher.dispatch(0.0) == 0
    assert readable(scene.dispatcher)


def test_dispatch_does_not_run_in_itself_and_not_twice_at_once(scene: Scene) -> None:
    entered, leave = threading.Event(), threading.Event()
    refused: list[str] = []

    def handle(item: int) -> int:
        assert scene.dispatcher.is_current()
        try:
            scene.dispatcher.dispatch(0.0)
        except AlreadyDispatching as error:
            refused.append(str(error))
        entered.set()
        leave.wait(DEADLINE_S)
        return 1

    scene.dispatcher.start(handle, lambda: False)
    scene.dispatcher.put(1)
    thread = threading.Thread(target=scene.dispatcher.dispatch, args=(0.0,))
    thread.start()
    assert entered.wait(DEADLINE_S)
    with pytest.raises(AlreadyDispatching, match="another thread"):
        scene.dispatcher.dispatch(0.0)
    assert not scene.dispatcher.is_current()
    assert scene.dispatcher.goes_on_meanwhile()
    leave.set()
    thread.join(DEADLINE_S)
    assert len(refused) == 1
    assert "in a callback" in refused[0]
    assert scene.dispatcher.dispatch(0.0) == 0
    assert not scene.dispatcher.goes_on_meanwhile()


def test_what_was_interrupted_is_handled_again_and_keeps_its_place(scene: Scene) -> None:
    def interrupt(item: int) -> int:
        raise KeyboardInterrupt

    scene.dispatcher.start(interrupt, lambda: False)
    scene.dispatcher.put(1)
    scene.dispatcher.put(2)
    with pytest.raises(KeyboardInterrupt):
        scene.dispatcher.dispatch(0.0)
    assert readable(scene.dispatcher)
    scene.dispatcher.start(scene.handle, lambda: False)
    assert scene.dispatcher.dispatch(0.0) == 3
    assert scene.handled == [1, 2]


def test_an_item_that_fails_is_logged_and_the_next_is_handled(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    def handle(item: int) -> int:
        if item == 1:
            raise ValueError("boom")
        return scene.handle(item)

    scene.dispatcher.start(handle, lambda: False)
    for item in (1, 2):
        scene.dispatcher.put(item)
    assert scene.dispatcher.dispatch(0.0) == 2
    (record,) = caplog.records
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)


def test_a_warning_tells_once_of_what_waits_until_dispatch_is_called(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = scene.dispatcher
    dispatcher.put(1)
    scene.now = 103.0
    dispatcher.put(2)
    scene.warn(100.0 + OVERDUE_S)
    assert [record.getMessage() for record in caplog.records] == [
        "'d': 3 messages and events wait for dispatch() since 5 s"
    ]
    dispatcher.put(4)
    assert dispatcher.overdue_at is None
    scene.now = 110.0
    assert dispatcher.dispatch(0.0) == 7
    dispatcher.put(8)
    scene.warn(110.0 + OVERDUE_S)
    assert len(caplog.records) == 2
    assert caplog.records[1].levelno == logging.WARNING


def test_there_is_no_warning_while_dispatch_is_called(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    dispatcher = scene.dispatcher
    dispatcher.put(1)
    scene.now = 103.0
    dispatcher.dispatch(0.0)
    scene.now = 104.0
    dispatcher.put(1)
    scene.warn(100.0 + OVERDUE_S)
    scene.now = 108.0
    dispatcher.dispatch(0.0)
    scene.warn(104.0 + OVERDUE_S)
    assert dispatcher.overdue_at is None  # nothing waits: the loop may sleep
    assert not caplog.records
