"""Programs that end by reaching the end of their main thread: with pools of threads, and with threads that live on."""

import sys
import time
from pathlib import Path

import pytest

from netcomm import Delivery, DeliveryState
from tests.integration.helpers import (
    DEADLINE_S,
    FAST,
    Program,
    SnakemqConnector,
    SnakemqListener,
    record,
    refusing_place,
)

RECEIVER_WITH_A_POOL = """
import logging, sys
from concurrent.futures import ThreadPoolExecutor
from netcomm import SnakemqListener

logging.basicConfig()
pool = ThreadPoolExecutor(2)

def work(data):
    sys.stdout.write(data.decode() + "\\n")  # in one piece, beside another thread's

niess = SnakemqListener("niess", "127.0.0.1", int(sys.argv[1]))
if sys.argv[2] == "on_recv":
    niess.on_recv.add(lambda ident, data: pool.submit(work, data))
else:
    niess.on_message.add(lambda ident, message: pool.submit(work, message.data))
niess.start()
sys.stdin.readline()
pool.submit(sys.stdin.readline)  # the pool is still at work when the main thread has ended
"""


@pytest.mark.parametrize("callback", ["on_recv", "on_message"])
def test_what_the_pool_of_a_program_that_ends_does_not_take_is_left_to_the_next_process(callback: str) -> None:
    with refusing_place() as place:
        port = place[1]
    processed: list[str] = []
    deliveries: list[Delivery] = []
    with SnakemqConnector("bob", "127.0.0.1", port, limits=FAST) as bob:

        def send() -> None:
            deliveries.append(bob.send("niess", b"%d" % len(deliveries)))

        with Program(RECEIVER_WITH_A_POOL, port, callback) as program:
            assert bob.wait_connected("niess", DEADLINE_S)
            for _ in range(100):
                send()
            program.tell("let the main thread end")
            until = time.monotonic() + DEADLINE_S
            while "hands over no more messages" not in program.errors:
                assert time.monotonic() < until
                send()
                deliveries[-1].wait(0.01)
            for _ in range(100):
                send()
            program.tell("let the pool end")
            assert program.wait() == 0
            processed += program.rest()
            assert program.errors.count("RuntimeError: cannot schedule new futures") == 1
        assert all(delivery.state is not DeliveryState.DELIVERED for delivery in deliveries[-100:])
        with Program(RECEIVER_WITH_A_POOL, port, callback) as program:
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
            bob.terminate()
            program.tell("let the main thread end")
            program.tell("let the pool end")
            assert program.wait() == 0
            processed += program.rest()
    assert {int(line) for line in processed} == set(range(len(deliveries)))


LIVES_ON = """
import logging, sys, threading
from netcomm import SnakemqListener

logging.basicConfig()

def live_on():
    threading.main_thread().join()
    print("main has ended", flush=True)
    sys.stdin.readline()
    niess.terminate()

niess = SnakemqListener("niess", "127.0.0.1", 0)
niess.on_recv.add(lambda ident, data: print(data.decode(), flush=True))
niess.start()
print(niess.address[1], flush=True)
threading.Thread(target=live_on).start()
"""


def test_a_program_that_lives_on_in_another_thread_goes_on_receiving() -> None:
    with Program(LIVES_ON) as program:
        port = int(program.line())
        assert program.line() == "main has ended"
        with SnakemqConnector("bob", "127.0.0.1", port) as bob:
            for number in range(10):
                assert bob.send("niess", b"%d" % number).wait(DEADLINE_S)
                assert program.line() == str(number)
        program.tell("end")
        assert program.wait() == 0
        assert program.errors == ""


RAISES_WHILE_IT_LIVES_ON = LIVES_ON.replace("print(data.decode(), flush=True)", "1 / 0")


def test_a_callback_that_raises_after_the_main_threads_end_leaves_its_message_to_the_next_process() -> None:
    with Program(RAISES_WHILE_IT_LIVES_ON) as program:
        port = int(program.line())
        assert program.line() == "main has ended"
        with SnakemqConnector("bob", "127.0.0.1", port, limits=FAST) as bob:
            deliveries = bob.send_many("niess", [b"1", b"2", b"3"])
            assert not deliveries[0].wait(0.2)
            program.tell("end")
            assert program.wait() == 0
            assert program.errors.count("ZeroDivisionError: ") == 1
            with SnakemqListener("niess", "127.0.0.1", port) as niess:
                received = record(niess.on_message)
                assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
                assert [(message.data, message.redelivered) for _, message in received.calls] == [
                    (b"1", True),
                    (b"2", True),
                    (b"3", True),
                ]


WORKER = """
import multiprocessing, sys
from netcomm import SnakemqConnector

def work(port):
    bob = SnakemqConnector("bob", "127.0.0.1", port)
    bob.start()
    bob.wait_connected("niess", 20)
    bob.send_many("niess", [b"%d" % number for number in range(100)])

if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[2]).Process(target=work, args=(int(sys.argv[1]),))
    worker.start()
    worker.join()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_what_a_worker_of_multiprocessing_has_sent_is_delivered_before_it_ends(method: str, tmp_path: Path) -> None:
    path = tmp_path / "worker.py"  # a file: forkserver and spawn import it
    path.write_text(WORKER)
    with SnakemqListener("niess", "127.0.0.1", 0) as niess:
        received = record(niess.on_recv)
        run = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
        with Program(run, path, niess.address[1], method) as program:
            assert program.wait() == 0
        assert [data for _, data in received.wait(100)] == [b"%d" % number for number in range(100)]


FORKED_AT_THE_END = """
import os, sys, threading
from netcomm import SnakemqListener

def live_on():
    threading.main_thread().join()
    try:
        child = os.fork()
    except RuntimeError as error:
        print(error, flush=True)
        return
    if child == 0:
        niess = SnakemqListener("niess", "127.0.0.1", 0)
        niess.on_recv.add(lambda ident, data: 1 / 0)
        niess.start()
        print(niess.address[1], flush=True)
        sys.stdin.readline()
        niess.terminate(1)
        os._exit(0)
    os.waitpid(child, 0)

threading.Thread(target=live_on).start()
"""


def test_a_child_that_is_forked_while_its_parent_ends_is_not_ending() -> None:
    with Program(FORKED_AT_THE_END) as program:
        line = program.line()
        if line == "can't fork at interpreter shutdown":
            assert sys.version_info[:2] == (3, 12)  # there is no such child there
            return
        with SnakemqConnector("bob", "127.0.0.1", int(line)) as bob:
            deliveries = bob.send_many("niess", [b"1", b"2", b"3"])
            assert all(delivery.wait(DEADLINE_S) for delivery in deliveries)
        program.tell("end")
        assert program.wait() == 0


WAITS = """
import sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from netcomm import Limits, QueueFull, SnakemqConnector
from netcomm.runtime import process

process.EXIT_S = 0.1
bob = SnakemqConnector("bob", "127.0.0.1", int(sys.argv[1]), limits=Limits(max_queued_messages=1))
bob.start()
delivery = bob.send("niess", b"never delivered")

def send():
    try:
        bob.send("niess", b"for which there is no room", timeout=timeout)
    except QueueFull:
        return False

timeout = None if sys.argv[2] == "pool" else 1.0
wait = {
    "Delivery.wait": lambda: delivery.wait(timeout),
    "flush": lambda: bob.flush(timeout),
    "wait_connected": lambda: bob.wait_connected("niess", timeout),
    "send": send,
}[sys.argv[3]]

def timed():
    if sys.argv[2] == "thread":
        threading.main_thread().join()
    started = time.monotonic()
    result = wait()
    print(result, "in time" if time.monotonic() - started >= 1.0 else "cut", flush=True)

if sys.argv[2] == "pool":
    ThreadPoolExecutor(1).submit(timed)
else:
    threading.Thread(target=timed).start()
"""


@pytest.mark.parametrize("call", ["Delivery.wait", "flush", "wait_connected", "send"])
def test_a_wait_in_a_pool_does_not_keep_a_program_from_ending(call: str) -> None:
    with refusing_place() as place, Program(WAITS, place[1], "pool", call) as program:
        assert program.line() == "False cut"
        assert program.wait() == 0


@pytest.mark.parametrize("call", ["Delivery.wait", "flush", "wait_connected", "send"])
def test_a_wait_in_a_thread_that_lives_on_is_not_cut(call: str) -> None:
    with refusing_place() as place, Program(WAITS, place[1], "thread", call) as program:
        assert program.line() == "False in time"
        assert program.wait() == 0
