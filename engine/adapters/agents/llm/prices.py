"""What tokens cost: the operator's own file before the published prices that come with the extra.

A price belongs to a model at a provider. The same name at an address that nobody has prices for costs an unknown
amount, which is None and never 0.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

from engine.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ModelPrices"]

_KEYS: Final = ("input", "output", "host")
_MILLION: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class _Price:
    input: float
    output: float
    host: str | None


class ModelPrices:
    """A ``PriceTable``.

    Args:
        path: a TOML file with a table a model, in US dollars per million tokens, whose ``host`` says at which
            endpoint the price holds; without one it holds at any::

                ["gpt-4o"]
                input = 2.5
                output = 10.0
                host = "api.openai.com"

            None for the published prices alone.

    Raises:
        ConfigurationError: the file can't be read, or is not of this form.
    """

    def __init__(self, path: Path | None) -> None:
        self._own = {} if path is None else _read(path)

    def cost_of(self, model: str, base_url: str | None, input_tokens: int, output_tokens: int) -> float | None:
        """Return US dollars for the tokens, or None when the price is unknown.

        The first use of a published price loads them, which takes a while: not for an event loop.
        """
        own = self._own.get(model)
        if own is not None and own.host in (None, _host_of(base_url)):
            return (own.input * input_tokens + own.output * output_tokens) / _MILLION
        return _published(model, base_url, input_tokens, output_tokens)


def _published(model: str, base_url: str | None, input_tokens: int, output_tokens: int) -> float | None:
    try:
        import genai_prices
    except ModuleNotFoundError:
        # Without the extra no model is called here, so that there is nothing to price.
        return None
    usage = genai_prices.Usage(input_tokens=input_tokens, output_tokens=output_tokens)
    try:
        if base_url is None:
            price = genai_prices.calc_price(usage, model, provider_id="openai")
        else:
            price = genai_prices.calc_price(usage, model, provider_api_url=base_url)
    except LookupError:
        return None
    return float(price.total_price)


def _host_of(base_url: str | None) -> str:
    return "api.openai.com" if base_url is None else (urlsplit(base_url).hostname or "")


def _read(path: Path) -> dict[str, _Price]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _broken(path, f"can't be read: {error.strerror}") from error
    except ValueError as error:
        raise _broken(path, f"is no TOML: {error}") from error
    return {model: _price(path, model, table) for model, table in tables.items()}


def _price(path: Path, model: str, given: object) -> _Price:
    if not isinstance(given, dict):
        raise _broken(path, f'has {model!r:.100} outside of a table; write ["{model:.100}"] above its prices')
    table = cast("dict[str, object]", given)
    for key in table:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise _broken(path, f"has the unknown key {key!r:.100} for {model!r:.100}{hint}")
    host = table.get("host")
    if host is not None and not isinstance(host, str):
        raise _broken(path, f"has a host for {model!r:.100} that is no text")
    return _Price(_dollars(path, model, table, "input"), _dollars(path, model, table, "output"), host)


def _dollars(path: Path, model: str, table: dict[str, object], key: str) -> float:
    value = table.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise _broken(path, f"needs {key} for {model!r:.100}: US dollars per million tokens, 0 or more")
    return float(value)


def _broken(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(f"The file of the setting `prices_file` ({path}) {what}", {"setting": "prices_file"})
