"""A screen without a monitor, for tests of programs with windows: it types and clicks, looks, and takes pictures."""

import json
import os
import secrets
import shutil
import struct
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.integration.helpers import wait_until
from tests.integration.processes import WAIT_S

PACKAGES = "xvfb openbox xdotool scrot fonts-dejavu-core python3-tk"
"""What Debian calls all of it."""

# Tk programs answer each other's `send`, if the display demands a cookie. So what a window shows can be asked for from
# outside, and its program is run as it is. One line for each question: a window's title (none: the looker itself), a
# tab, and a Tcl script.
_LOOKER = """
import json, sys, tkinter
root = tkinter.Tk()
root.withdraw()

def ask(title, script):
    if not title:
        return root.tk.eval(script)
    for name in root.winfo_interps():
        try:
            if name != root.tk.call("tk", "appname") and root.tk.call("send", name, "wm title .") == title:
                return root.tk.call("send", name, script)
        except tkinter.TclError:  # it has just ended
            pass

for line in sys.stdin:
    print(json.dumps(ask(*line.rstrip("\\n").split("\\t"))), flush=True)
"""


def python_with_tkinter() -> str | None:
    """A Python that can run the library and show windows: this one, or another that is here."""
    others = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13, 14)]
    for python in (sys.executable, *filter(None, others), "/usr/bin/python3"):
        code = "import sys, tkinter; sys.exit(sys.version_info < (3, 11))"
        if Path(python).exists() and subprocess.run([python, "-c", code], capture_output=True).returncode == 0:
            return python
    return None


class Screen:
    """A display of its own, with a window manager; `with` starts and ends it.

    python: a Python that has tkinter.
    environment: what programs need in theirs to show their windows here.
    """

    WIDTH, HEIGHT = 864, 280

    def __init__(self, folder: Path) -> None:
        """Make it; it skips the test where something is not installed, or, in CI, fails it. folder: for its files."""
        missing = [name for name in ("Xvfb", "openbox", "xdotool", "scrot") if shutil.which(name) is None]
        python = python_with_tkinter()
        if python is None:
            missing.append("a Python from 3.11 on that has tkinter")
        if missing:
            say = pytest.fail if "CI" in os.environ else pytest.skip
            say(f"there is no {', no '.join(missing)}: apt install {PACKAGES}")
        assert python is not None
        self.python = python
        self._folder = folder
        self._stack = ExitStack()
        self.environment = {"XAUTHORITY": str(folder / "cookies"), "LC_ALL": "C.UTF-8"}

    def __enter__(self) -> Self:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        fields = [b"", b"", b"MIT-MAGIC-COOKIE-1", secrets.token_bytes(16)]  # for any host and any display
        cookies = struct.pack(">H", 0xFFFF) + b"".join(struct.pack(">H", len(field)) + field for field in fields)
        Path(self.environment["XAUTHORITY"]).write_bytes(cookies)
        reading, writing = os.pipe()
        with open(reading) as numbers:
            size = f"{self.WIDTH}x{self.HEIGHT}x24"
            options = ["-auth", self.environment["XAUTHORITY"], "-screen", "0", size, "-nolisten", "tcp"]
            try:
                self._run("Xvfb", "-displayfd", str(writing), *options, pass_fds=[writing])
            finally:
                os.close(writing)
            self.environment["DISPLAY"] = f":{int(numbers.readline())}"
        self._run("openbox", "--sm-disable")
        wait_until(lambda: self._xdotool("get_desktop", check=False) != "", "a window manager")
        self._looker = self._run(self.python, "-c", _LOOKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _run(self, *command: str, **options: Any) -> "subprocess.Popen[Any]":
        log = self._stack.enter_context((self._folder / "screen.log").open("ab"))
        options = {"stdout": log, "stderr": log, **options}
        process = subprocess.Popen(command, env={**os.environ, **self.environment}, **options)
        self._stack.enter_context(process)  # waits for its end, and closes its pipes
        self._stack.callback(process.terminate)
        return process

    def _call(self, *command: str | Path, check: bool = True) -> str:
        environment = {**os.environ, **self.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=WAIT_S)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def _xdotool(self, *arguments: str, check: bool = True) -> str:
        return self._call("xdotool", *arguments, check=check)

    def find(self, title: str) -> str:
        """Wait for a window that is shown; returns its number."""
        return self._xdotool("search", "--sync", "--onlyvisible", "--name", f"^{title}$").splitlines()[0]

    def move(self, title: str, x: int, y: int) -> None:
        """Move a window to a place."""
        self._xdotool("windowmove", self.find(title), str(x), str(y))

    def press(self, title: str, *keys: str) -> None:
        """Press keys in a window, which comes to the front."""
        self._xdotool("windowactivate", "--sync", self.find(title), "key", *keys)

    def type(self, title: str, text: str) -> None:
        """Type a text and Return in a window, which comes to the front.

        Only of letters that an American keyboard has: for others, the keyboard is changed behind the program's back,
        which may not know in time.
        """
        self._xdotool("windowactivate", "--sync", self.find(title), "type", "--delay", "1", text)
        self._xdotool("key", "Return")

    def ask(self, title: str, script: str) -> Any:
        """Let the program of a window run a Tcl script, and return what that returns; None without that window."""
        assert self._looker.stdin is not None
        assert self._looker.stdout is not None
        print(f"{title}\t{script}", file=self._looker.stdin, flush=True)
        return json.loads(self._looker.stdout.readline())

    def take_picture(self, path: Path) -> None:
        """Write what is on the screen to a PNG file, in place of what is there."""
        path.unlink(missing_ok=True)
        self._call("scrot", path)

    def count_pixels(self, path: Path, colour: str, left: int, right: int) -> int:
        """How many pixels of a picture have a colour, such as "#00ff00", between two columns of pixels."""
        rows = f"[image create photo -file {{{path}}}] data -from {left} 0 {right} {self.HEIGHT}"
        return int(self.ask("", f"llength [lsearch -all -exact [concat {{*}}[{rows}]] {colour}]"))
