"""Finding and parsing the files of a tree: one bad file is named with its reason and never stops a review.

Nothing is imported or run, and symbolic links to folders are not followed. Work is bounded by the number and
the size of files, so that a review of the wrong folder ends.
"""

from __future__ import annotations

import ast
import io
import os
import re
import stat
import threading
import tokenize
import warnings
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.domain.agent_call import AgentCall

MAX_FILES: Final = 5_000
MAX_FILE_BYTES: Final = 1024 * 1024

_SKIPPED_FOLDERS: Final = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env"})
_BUILD_FOLDERS: Final = frozenset({"build", "dist", "_build"})
_REASON_LENGTH: Final = 160
_PROGRESS_STEPS: Final = 5
_PARSED_NAME: Final = "<reviewed source>"
_PARSING: Final = threading.Lock()
# CPython 3.11 counts the parser's depth for the whole process: two threads that parse at once can end in a SystemError.
FileT = TypeVar("FileT", bound="SourceFile")
_GENERATED: Final = re.compile(r"\bgenerated (by|file|from|code)\b|\bdo not edit\b|@generated\b", re.IGNORECASE)


class UnreadableSourceError(Exception):
    """A file that can't be reviewed; its text is the reason."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file: the dotted name it would be imported by, and its path below the root with forward slashes."""

    module: str
    path: str

    @property
    def is_package(self) -> bool:
        """Whether this is the `__init__.py` of a package."""
        return PurePosixPath(self.path).name == "__init__.py"


@dataclass(frozen=True, slots=True)
class ModuleFile(SourceFile):
    """A file that was read once before; `kind` is code, test or generated."""

    kind: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A path that was found and not read, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ParsedSource:
    """A file's syntax tree, its number of lines, and whether its first comment says that it is generated."""

    tree: ast.Module
    lines: int
    generated: bool


@dataclass(frozen=True, slots=True)
class SourceListing:
    """The files below a root in path order; `truncated` when there are more than `MAX_FILES`."""

    name: str
    root: Path
    files: list[SourceFile]
    unreadable: list[Unreadable]
    truncated: bool


def find_sources(path: Path, call: AgentCall) -> SourceListing:
    """List the Python files of a folder, or the one file that `path` names.

    Raises:
        ValueError: nothing is there, it is no folder or Python file, or it holds no Python file.
    """
    if not path.exists():
        raise ValueError(f"There is nothing at {path}; give an existing folder or Python file")
    path = path.resolve()
    if path.is_file() and path.suffix == ".py":
        root, found, unreadable, truncated = path.parent, [path.name], list[Unreadable](), False
    elif path.is_dir():
        root = path
        found, unreadable, truncated = _walk(path, call)
    else:
        raise ValueError(f"{path} is neither a folder nor a Python file (.py); give one of them")
    if not found and not unreadable:
        raise ValueError(f"No Python file (.py) was found below {path}; give a folder that holds some")
    return SourceListing(path.name or str(path), root, _name_modules(root, found), unreadable, truncated)


def parse_each(
    root: Path, files: Sequence[FileT], call: AgentCall, unreadable: list[Unreadable]
) -> Iterator[tuple[FileT, ParsedSource]]:
    """Parse files one after the other; what can't be read is added to `unreadable`.

    Raises:
        CancelledError: the execution was cancelled meanwhile.
    """
    # The parser warns about odd literals. Only its warnings on reviewed text are silenced, by the name the
    # text is parsed under: `catch_warnings` would change the filters of every other thread.
    warnings.filterwarnings("ignore", module=re.escape(_PARSED_NAME))
    interval = max(40, len(files) // _PROGRESS_STEPS)
    for done, file in enumerate(files, start=1):
        stop_when_cancelled(call)
        try:
            parsed = parse_source(root / file.path)
        except UnreadableSourceError as error:
            unreadable.append(Unreadable(file.path, str(error)))
        else:
            yield file, parsed
        if done % interval == 0 or done == len(files):
            call.emit(f"parsed {done:,} of {len(files):,} modules")


def is_test(path: str) -> bool:
    """Whether a file is test code by its name or a folder's, `tests/` or `test_*.py`."""
    *folders, name = path.split("/")
    return (
        "tests" in folders
        or "test" in folders
        or name == "conftest.py"
        or name.startswith("test_")
        or name.endswith("_test.py")
    )


def stop_when_cancelled(call: AgentCall) -> None:
    """Raise `CancelledError` once the execution was cancelled."""
    if call.cancelled:
        raise CancelledError("The review was cancelled before it was complete")


def parse_source(path: Path) -> ParsedSource:
    """Parse one file by its own declared encoding.

    Raises:
        UnreadableSourceError: with the reason, for whatever the file does not allow.
    """
    data = _read(path)
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        with _PARSING:
            tree = ast.parse(data.decode(encoding), filename=_PARSED_NAME)
    except SyntaxError as error:
        where = f" in line {error.lineno}" if error.lineno else ""
        raise UnreadableSourceError(_one_line(f"syntax error{where}: {error.msg}")) from error
    except UnicodeError as error:
        raise UnreadableSourceError("not text in UTF-8 or the encoding that it declares") from error
    except LookupError as error:
        raise UnreadableSourceError("declares an encoding that is not one of text") from error
    except ValueError as error:
        raise UnreadableSourceError(_one_line(f"can't be parsed: {error}")) from error
    except (RecursionError, MemoryError) as error:
        raise UnreadableSourceError("nested too deeply to be parsed") from error
    return ParsedSource(tree, len(data.splitlines()), _says_generated(data))


def _read(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableSourceError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise UnreadableSourceError(f"skipped: larger than 1 MiB ({status.st_size:,} bytes)")
        data = path.read_bytes()
    except FileNotFoundError as error:
        reason = "broken symbolic link" if path.is_symlink() else "no longer there"
        raise UnreadableSourceError(reason) from error
    except OSError as error:
        raise UnreadableSourceError((error.strerror or "can't be read").lower()) from error
    if b"\0" in data:
        raise UnreadableSourceError("contains a NUL byte")
    return data


def _one_line(text: str) -> str:
    line = " ".join(text.encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 1] + "…"


def _says_generated(data: bytes) -> bool:
    for line in data[:2048].splitlines():
        if line and not line.startswith(b"#"):
            return False
        if _GENERATED.search(line.decode("utf-8", "replace")):
            return True
    return False


def _walk(root: Path, call: AgentCall) -> tuple[list[str], list[Unreadable], bool]:
    found: list[str] = []
    unreadable: list[Unreadable] = []
    pending = [root]
    while pending:
        stop_when_cancelled(call)
        folder = pending.pop()
        try:
            with os.scandir(folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            reason = f"folder can't be listed: {(error.strerror or 'unknown cause').lower()}"
            if folder == root:
                raise ValueError(f"{root}: {reason}; give a folder that the worker may read") from error
            unreadable.append(Unreadable(_printable(folder.relative_to(root).as_posix() + "/"), reason))
            continue
        if folder != root and _is_left_out(folder.name, {entry.name for entry in entries}):
            continue
        pending.extend(
            Path(entry.path)
            for entry in reversed(entries)
            if entry.is_dir(follow_symlinks=False) and not _is_skipped(entry.name)
        )
        for entry in entries:
            if not entry.name.endswith(".py") or entry.name.startswith(".") or entry.is_dir():
                continue
            if len(found) + len(unreadable) >= MAX_FILES:
                return found, unreadable, True
            path = Path(entry.path).relative_to(root).as_posix()
            if path == _printable(path):
                found.append(path)
            else:
                unreadable.append(Unreadable(_printable(path), "its name is not valid UTF-8"))
    return found, unreadable, False


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED_FOLDERS or name.endswith(".egg-info")


def _is_left_out(folder: str, entries: set[str]) -> bool:
    return "pyvenv.cfg" in entries or (folder in _BUILD_FOLDERS and "__init__.py" not in entries)


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _name_modules(root: Path, paths: list[str]) -> list[SourceFile]:
    prefix: list[str] = []
    folder = root
    while (folder / "__init__.py").exists() and folder.name:
        prefix.insert(0, folder.name)
        folder = folder.parent
    source_root = not prefix and not (root / "src" / "__init__.py").exists()
    named: dict[str, str] = {}
    # `a/__init__.py` hides `a.py` when both are there, so packages take their names first.
    for path in sorted(paths, key=lambda path: (not path.endswith("__init__.py"), path)):
        parts = [*prefix, *path.removesuffix(".py").split("/")]
        if parts[-1] == "__init__":
            parts.pop()
        if source_root and parts[0] == "src" and len(parts) > 1:
            parts.pop(0)
        name = ".".join(parts)
        named[path if name in named else name] = path
    return sorted((SourceFile(name, path) for name, path in named.items()), key=lambda file: file.path)
