"""Files of settings: ``baton.toml`` and Temporal's own ``temporal.toml``, read and taken apart, judged elsewhere."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["read_toml", "table", "temporal_profile"]


def read_toml(path: Path) -> dict[str, object] | None:
    """Return a file's content, or None when there is no such file.

    Raises:
        ConfigurationError: it can't be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no valid TOML: {error}", {"path": str(path)}) from error
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {error.strerror}", {"path": str(path)}) from error


def temporal_profile(environ: Mapping[str, str]) -> tuple[Path | None, Mapping[str, object]]:
    """Return ``temporal.toml`` and its profile in use, found as Temporal's own tools find them; no file: no profile."""
    named = environ.get("TEMPORAL_CONFIG_FILE")
    path = Path(named) if named else _temporal_default_file(environ)
    document = None if path is None else read_toml(path)
    if path is None or document is None:
        return None, {}
    return path, table(table(document, "profile"), environ.get("TEMPORAL_PROFILE") or "default")


def table(document: Mapping[str, object], key: str) -> dict[str, object]:
    """Return the table below a key of a TOML document; an empty one where there is none."""
    value = document.get(key)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _temporal_default_file(environ: Mapping[str, str]) -> Path | None:
    home = environ.get("HOME")
    if sys.platform == "darwin":
        base = Path(home) / "Library" / "Application Support" if home else None
    elif environ.get("XDG_CONFIG_HOME"):
        base = Path(environ["XDG_CONFIG_HOME"])
    else:
        base = Path(home) / ".config" if home else None
    return None if base is None else base / "temporalio" / "temporal.toml"
