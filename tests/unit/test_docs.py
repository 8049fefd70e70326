"""The documents say what is so: their Python blocks run and print what they say, their links lead somewhere.

A page's ```python blocks run as one program, in their order, in a process of their own. `# prints: text` behind a
statement says what that statement prints. A comment in the line above a block changes that:

- `<!-- not run: reason -->`: the block is only compiled.
- `<!-- script: name.py -->`: the block is a program of its own. A page's scripts run at the same time, started in
  their order; each gets an end-of-line on its standard input when the last one has ended.

Port 4002, which the documents use throughout, is replaced by a free one.
"""

import os
import re
import socket
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
TIMEOUT_S = 60.0

BLOCK = re.compile(r"^(?:<!-- (not run|script): ([^\n]+) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PRINTS = re.compile(r"# prints: (.*)$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)#\s]*)(#[^)\s]*)?\)")


@dataclass
class Block:
    """One Python block of a page; `code` has its lines where they are in the page."""

    mark: str
    note: str
    code: str


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match[1] or "", match[2] or "", "\n" * text[: match.start(3)].count("\n") + match[3])
        for match in BLOCK.finditer(text)
    ]
    assert len(found) == len(re.findall("^ *```py", text, re.MULTILINE)), "a block that this test does not see"
    return found


def merged(parts: list[Block]) -> str:
    """One program of several blocks, with the lines of all of them where they are in the page."""
    lines: list[str] = []
    for part in parts:
        lines += part.code.splitlines()[len(lines) :]
    return "\n".join(lines) + "\n"


def environment() -> dict[str, str]:
    # The programs run in a directory of their own: what was relative to this one must not be.
    inherited = os.environ.get("PYTHONPATH")
    if not inherited:
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, inherited.split(os.pathsep)))}


def start(program: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-X", "dev", program.name],
        cwd=program.parent,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def end(process: subprocess.Popen[str]) -> str:
    """Let a program end, and return what it has printed."""
    try:
        output, errors = process.communicate("\n", timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
        pytest.fail(f"still running after {TIMEOUT_S:g} s:\n{output}{errors}")
    assert process.returncode == 0, output + errors
    assert "ResourceWarning" not in errors, errors
    return output


@pytest.fixture(scope="module")
def port() -> str:
    """A port that is free now, and will hardly be given to anyone who does not ask for it by its number."""
    with socket.create_server(("localhost", 0)) as server:
        return str(server.getsockname()[1])


def write(path: Path, code: str, port: str) -> Path:
    path.write_text(re.sub(r"\b4002\b", port, code), encoding="utf-8")
    return path


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_blocks_of_a_page_compile(page: Path) -> None:
    for block in blocks(page):
        compile(block.code, str(page), "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if any(not block.mark for block in blocks(page))], ids=name)
def test_the_blocks_of_a_page_run_and_print_what_they_say(page: Path, tmp_path: Path, port: str) -> None:
    code = merged([block for block in blocks(page) if not block.mark])
    output = end(start(write(tmp_path / f"{page.stem}.py", code, port)))
    # Not in order: a callback's statement runs when something comes in, which may be for one further below.
    assert sorted(output.splitlines()) == sorted(PRINTS.findall(code))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.mark == "script" for block in blocks(page))], ids=name
)
def test_the_scripts_of_a_page_work_together(page: Path, tmp_path: Path, port: str) -> None:
    scripts = [block for block in blocks(page) if block.mark == "script"]
    with ExitStack() as stack:
        processes = []
        for script in scripts:
            process = stack.enter_context(start(write(tmp_path / script.note, script.code, port)))
            stack.callback(process.kill)
            processes.append(process)
        outputs = [end(process) for process in reversed(processes)]
    for script, output in zip(reversed(scripts), outputs, strict=True):
        assert output.splitlines() == PRINTS.findall(script.code), script.note


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in LINK.findall(text):
        if "://" in target:
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor[1:] in anchors(there), target + anchor


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have where Markdown is shown."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
