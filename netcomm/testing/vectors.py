"""The test vectors of docs/protocol.md, read off the page."""

import re
from dataclasses import dataclass

_REPEATED = re.compile(r"([0-9a-f]{2}|\?\?)\*(\d+)")
_STEP = re.compile(r"    (says|hears|cut|again|first|last|probed|open|closed)\b *(.*)")


def block(page: str, name: str) -> str:
    """The text of the one block of this name."""
    (found,) = re.findall(rf"^```{name}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return str(found)


def unhex(text: str) -> bytes:
    """Bytes in hex, with spaces anywhere between them; `61*255` is the byte 61, 255 times."""
    return bytes.fromhex(_repeat(text))


def pattern(text: str) -> re.Pattern[bytes]:
    """What bytes have to look like: as for `unhex`, and `??` is any byte."""
    digits = re.sub(r"\s", "", _repeat(text))
    pairs = [digits[place : place + 2] for place in range(0, len(digits), 2)]
    return re.compile(b"".join(b"." if pair == "??" else re.escape(bytes.fromhex(pair)) for pair in pairs), re.DOTALL)


def _repeat(text: str) -> str:
    return _REPEATED.sub(lambda found: found[1] * int(found[2]), text)


def frames(page: str, name: str) -> list[tuple[str, bytes]]:
    """Of each vector of a block of frames, the line that says what it is, and the packet."""
    found = re.findall(r"^(\S.*)\n((?:[ ]+.*\n)+)", block(page, name), re.MULTILINE)
    return [(head, unhex(body)) for head, body in found]


@dataclass(frozen=True)
class Step:
    """One line of a vector of behaviour, such as says, hears, cut, or open; and what is said or heard."""

    kind: str
    words: tuple[str, ...]


@dataclass(frozen=True)
class Vector:
    """A conversation with one implementation: what is said to it, and what it has to answer.

    name: with the requirement in front.
    """

    name: str
    steps: tuple[Step, ...]


def behaviour(page: str, name: str = "vectors-behaviour") -> list[Vector]:
    """The vectors of behaviour in a block. Raises ValueError for a line that is none of them."""
    found: list[tuple[str, list[Step]]] = []
    for line in block(page, name).splitlines():
        if not line.startswith(" "):
            found.append((line, []))
            continue
        step = _STEP.fullmatch(line)
        if step is None or not found:
            raise ValueError(f"not a step of a vector: {line!r}")
        found[-1][1].append(Step(step[1], tuple(step[2].split())))
    return [Vector(name, tuple(steps)) for name, steps in found]
