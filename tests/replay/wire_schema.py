"""The wire's JSON schema, pinned: fields are only ever added, because histories are read by every later release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from engine.domain import messages

PINNED = Path(__file__).parent / "wire_schema.json"
_WORDS = ("description", "default", "title")


def wire_models() -> dict[str, type[BaseModel]]:
    """Every message of ``engine.domain.messages`` by name."""
    public = {name: getattr(messages, name) for name in messages.__all__}
    return {name: found for name, found in public.items() if isinstance(found, type) and issubclass(found, BaseModel)}


def current_schema() -> dict[str, Any]:
    """Schema of every message and of every model inside one: properties, required ones, enumerations."""
    models: dict[str, Any] = {}
    for name, model in wire_models().items():
        schema = model.model_json_schema(mode="validation")
        models.update(schema.pop("$defs", {}))
        models[name] = schema
    return {name: _bare(models[name]) for name in sorted(models)}


def read_pinned() -> dict[str, Any]:
    """The schema as it was when histories were last recorded."""
    return json.loads(PINNED.read_text(encoding="utf-8"))


def write_pinned() -> list[str]:
    """Pin what is now; return what histories recorded before hold that would be lost, which a release forbids."""
    current = current_schema()
    faults = incompatibilities(read_pinned(), current) if PINNED.exists() else []
    PINNED.write_text(json.dumps(current, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return faults


def incompatibilities(pinned: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """Say what an old history holds that the current models would refuse or lose; empty when nothing."""
    faults: list[str] = []
    for name, old in pinned.items():
        new = current.get(name)
        if new is None:
            faults.append(f"{name} is gone")
            continue
        for field, kind in old.get("properties", {}).items():
            if field not in new.get("properties", {}):
                faults.append(f"{name}.{field} is gone")
            elif new["properties"][field] != kind:
                faults.append(f"{name}.{field} was {json.dumps(kind)}, is {json.dumps(new['properties'][field])}")
        faults += [
            f"{name}.{field} became required"
            for field in new.get("required", [])
            if field not in old.get("required", [])
        ]
        faults += [f"{name} lost the value {value}" for value in old.get("enum", []) if value not in new["enum"]]
        if new.get("additionalProperties", True) is False:
            faults.append(f"{name} refuses unknown keys")
    return faults


def _bare(value: Any) -> Any:
    """Without words for people and defaults, which may change; a property may well be called ``title``."""
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if not isinstance(value, dict):
        return value
    bare = {key: _bare(item) for key, item in value.items() if key not in _WORDS and key != "properties"}
    if "properties" in value:
        bare["properties"] = {name: _bare(item) for name, item in value["properties"].items()}
    return bare
