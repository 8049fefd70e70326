"""What is to happen: which pieces are sent, and when it is time for a fault."""

import json
import os
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

# A file is one message, unless it is larger than this; then it is several.
_PIECE_BYTES = 4 * 1024 * 1024
_FAULTS = 3
_FILE = "plan.json"

Key = tuple[str, int]


class DemoError(Exception):
    """The demo could not be carried through; the text says why."""


class NothingToSend(DemoError):
    """There is no file to be sent, or one can't be read."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message carries: a file, or a part of one.

    name: of the file, relative to the folder that is sent.
    path: where to read it.
    offset, size: the part, in bytes.
    """

    name: str
    path: str
    offset: int
    size: int

    @property
    def key(self) -> Key:
        """The name and the offset, which together name the piece."""
        return self.name, self.offset


def standard_library() -> Path:
    """Where the running Python keeps its own library."""
    return Path(sysconfig.get_path("stdlib"))


def make(path: Path | None) -> list[Piece]:
    """The pieces of a file, or of all files in a folder; of the standard library's sources where it is None.

    Raises NothingToSend.
    """
    try:
        if path is None:
            root = standard_library()
            paths = _walk(root, suffix=".py", without={"site-packages", "dist-packages"})
        elif path.is_dir():
            root = path
            paths = _walk(root)
        elif path.is_file():
            root = path.parent
            paths = [path]
        else:
            raise NothingToSend(f"{path} is neither a file nor a folder")
        pieces = [piece for path in paths for piece in _pieces(path, root)]
    except OSError as error:
        raise NothingToSend(f"can't read {error.filename}: {error.strerror}") from error
    if not pieces:
        raise NothingToSend(f"there is no file in {root}")
    return pieces


def _walk(root: Path, suffix: str = "", without: frozenset[str] | set[str] = frozenset()) -> list[Path]:
    def fail(error: OSError) -> None:
        raise error

    found = []
    for folder, folders, names in os.walk(root, onerror=fail):
        folders[:] = sorted(set(folders) - without)
        paths = (Path(folder, name) for name in sorted(names) if name.endswith(suffix))
        found += [path for path in paths if path.is_file()]  # no pipe, and no link that leads nowhere
    return found


def _pieces(path: Path, root: Path) -> list[Piece]:
    with path.open("rb") as file:  # now, so that what can't be read is found before anything is sent
        size = os.fstat(file.fileno()).st_size
    name = path.relative_to(root).as_posix()
    offsets = range(0, max(size, 1), _PIECE_BYTES)
    return [Piece(name, str(path.absolute()), offset, min(_PIECE_BYTES, size - offset)) for offset in offsets]


def fault_turns(pieces: int) -> list[tuple[int, int]]:
    """When it is time for each of the faults.

    Of each fault, two numbers of pieces: before the first one, the connector says that it is time; before the second
    one, it waits until the fault is over. In between it goes on sending. So no fault comes before its turn, and
    something is left for the last one.
    """
    return [
        (pieces * (2 * fault + 1) // (2 * _FAULTS), min(pieces * (fault + 1) // _FAULTS, pieces - 1))
        for fault in range(_FAULTS)
    ]


def save(pieces: list[Piece], folder: Path) -> None:
    """Write the pieces to the folder that the processes share."""
    (folder / _FILE).write_text(json.dumps([asdict(piece) for piece in pieces]))


def load(folder: Path) -> list[Piece]:
    """Read the pieces from the folder that the processes share."""
    return [Piece(**entry) for entry in json.loads((folder / _FILE).read_text())]
