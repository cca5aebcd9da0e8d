"""Records lie in stores as one packed body; columns beside it are only for what queries need.

So a field added to a record needs no migration, and every backend keeps the same bytes.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from engine.domain.definition import FORMAT_VERSION, DefinitionVersion
from engine.errors import StoreError

if TYPE_CHECKING:
    from engine.adapters.codec import Codec

__all__ = ["instant_text", "pack", "unpack", "unpack_definition"]

Record = TypeVar("Record", bound=BaseModel)


def pack(codec: Codec, record: BaseModel) -> bytes:
    """Return the stored form of a record.

    Raises:
        InvalidInputError: it holds something that is no JSON data.
    """
    return codec.encode(record.model_dump(mode="json"))


def unpack(codec: Codec, kind: type[Record], body: bytes) -> Record:
    """Return the record of that kind in ``body``.

    Raises:
        StoreError: the bytes can't be read, or hold something else.
    """
    try:
        return kind.model_validate(codec.decode(body))
    except ValidationError as error:
        # The error's own text repeats the stored values, so only the places are told.
        places = sorted({".".join(map(str, fault["loc"])) for fault in error.errors(include_input=False)})
        raise StoreError(
            f"A stored {kind.__name__} can't be read: wrong or missing {', '.join(places)}. "
            "Restore it from a backup, or upgrade Baton if a newer version wrote it.",
            {"kind": kind.__name__, "places": places},
        ) from error


def unpack_definition(codec: Codec, body: bytes) -> DefinitionVersion:
    """Return the definition's version in ``body``.

    Raises:
        StoreError: as ``unpack``, or a newer Baton saved it in a format that this one does not know.
    """
    version = unpack(codec, DefinitionVersion, body)
    if version.format_version > FORMAT_VERSION:
        raise StoreError(
            f"Workflow {version.definition_id} was saved by a newer version of Baton "
            f"(format {version.format_version}, this one reads up to {FORMAT_VERSION}); upgrade to read it.",
            {"workflow_id": version.definition_id, "format_version": version.format_version},
        )
    return version


def instant_text(instant: datetime) -> str:
    """Return the instant in UTC as ISO text of one fixed width (microseconds), so that text order is time order."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds")
