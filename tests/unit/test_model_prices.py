"""Prices: the operator's file first, the published ones by provider, and unknown is never 0."""

from __future__ import annotations

import subprocess
import sys

import pytest

from engine.adapters.agents.llm.prices import ModelPrices
from engine.adapters.agents.llm.spending import Spending
from engine.errors import ConfigurationError

OPENAI = "https://api.openai.com/v1"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "prices.toml"


def test_a_published_price_belongs_to_its_provider():
    prices = ModelPrices(None)
    at_openai = prices.cost_of("gpt-4o", None, 1_000_000, 0)
    assert at_openai is not None
    assert at_openai > 0
    assert prices.cost_of("gpt-4o", OPENAI, 1_000_000, 0) == at_openai
    assert prices.cost_of("gpt-4o", "http://127.0.0.1:1234/v1", 1_000_000, 0) is None
    assert prices.cost_of("no-such-model", None, 1_000_000, 0) is None
    assert prices.cost_of("gpt-4o", None, 0, 1_000_000) > at_openai


def test_the_file_comes_first_and_leaves_the_rest(file):
    file.write_text('["gpt-4o"]\ninput = 1\noutput = 3.0\n\n["own/model"]\ninput = 0\noutput = 0\n')
    prices = ModelPrices(file)
    assert prices.cost_of("gpt-4o", None, 2_000_000, 1_000_000) == 5
    assert prices.cost_of("gpt-4o", "http://anywhere/v1", 0, 1_000_000) == 3
    assert prices.cost_of("own/model", "http://x/v1", 10, 10) == 0
    assert prices.cost_of("gpt-4o-mini", None, 1_000_000, 0) == ModelPrices(None).cost_of("gpt-4o-mini", None, 10**6, 0)


def test_a_price_with_a_host_holds_there_only(file):
    file.write_text('["m"]\ninput = 1\noutput = 1\nhost = "models.example"\n')
    prices = ModelPrices(file)
    assert prices.cost_of("m", "https://models.example:8443/v1", 10**6, 0) == 1
    assert prices.cost_of("m", "https://other.example/v1", 10**6, 0) is None
    assert prices.cost_of("m", None, 10**6, 0) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[[", "TOML"),
        ("\xff", "TOML"),
        ("gpt = 5", "table"),
        ('["m"]\ninput = 1\n', "output"),
        ('["m"]\ninput = -1\noutput = 1\n', "input"),
        ('["m"]\ninput = nan\noutput = 1\n', "input"),
        ('["m"]\ninput = true\noutput = 1\n', "input"),
        ('["m"]\ninput = "1"\noutput = 1\n', "input"),
        ('["m"]\ninput = 1\noutput = 1\nhost = 3\n', "host"),
        ('["m"]\ninput = 1\noutput = 1\nhots = "x"\n', "did you mean 'host'"),
    ],
)
def test_a_broken_file_is_refused_at_once(file, text, told):
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigurationError, match=told) as caught:
        ModelPrices(file)
    assert caught.value.details == {"setting": "prices_file"}
    assert str(file) in caught.value.message


def test_a_missing_file_is_refused(file):
    with pytest.raises(ConfigurationError, match="No such file"):
        ModelPrices(file)


def test_without_the_extra_published_prices_are_unknown():
    script = (
        "import sys; sys.modules['genai_prices'] = None\n"
        "from engine.adapters.agents.llm.prices import ModelPrices\n"
        "print(ModelPrices(None).cost_of('gpt-4o', None, 1, 1))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "None"


def test_a_cost_that_is_known_in_part_is_unknown(file):
    file.write_text('["m"]\ninput = 1\noutput = 1\n')
    prices = ModelPrices(file)
    assert Spending().usage(prices, "m", None).cost_usd is None
    assert Spending(requests=2, measured=[(10**6, 0), (0, 10**6)]).usage(prices, "m", None).cost_usd == 2
    assert Spending(requests=2, measured=[(10**6, 0)]).usage(prices, "m", None).cost_usd is None
    assert Spending(requests=2, rejected=1, measured=[(10**6, 0)]).usage(prices, "m", None).cost_usd == 1
