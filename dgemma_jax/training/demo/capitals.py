"""Capitals of countries: the capital of a country, the country of a capital, and yes or no."""

from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.wording import Wordings, vary

FAMILY = "capitals"


@dataclass(frozen=True, kw_only=True)
class Country:
    """A country as it stands in a sentence, its capital, and other names people ask for it by."""

    name: str
    capital: str
    aliases: tuple[str, ...] = ()


_PLAIN = """France Paris, Germany Berlin, Italy Rome, Spain Madrid, Portugal Lisbon, Ireland Dublin, Belgium Brussels,
Switzerland Bern, Austria Vienna, Poland Warsaw, Denmark Copenhagen, Norway Oslo, Sweden Stockholm, Finland Helsinki,
Greece Athens, Turkey Ankara, Russia Moscow, Ukraine Kyiv, Hungary Budapest, Romania Bucharest, Iceland Reykjavik,
Egypt Cairo, Morocco Rabat, Kenya Nairobi, Nigeria Abuja, China Beijing, Japan Tokyo, Thailand Bangkok, Vietnam Hanoi,
Iran Tehran, Iraq Baghdad, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago, Brazil Brasilia, Australia Canberra,
Nepal Kathmandu"""

COUNTRIES: tuple[Country, ...] = (
    *(Country(name=pair.split()[0], capital=pair.split()[1]) for pair in _PLAIN.split(",")),
    Country(name="the United Kingdom", capital="London", aliases=("the UK", "England", "Great Britain")),
    Country(name="the United States", capital="Washington", aliases=("the USA", "the US", "America")),
    Country(name="the Netherlands", capital="Amsterdam", aliases=("Holland",)),
    Country(name="South Korea", capital="Seoul", aliases=("Korea",)),
    Country(name="India", capital="New Delhi"),
    Country(name="Mexico", capital="Mexico City"),
    Country(name="Argentina", capital="Buenos Aires"),
)

CAPITAL_OF = Wordings(
    train=(
        "What is the capital of {country}?",
        "What is the capital of {country}?",
        "What is the capital city of {country}?",
        "Tell me the capital of {country}.",
        "Which city is the capital of {country}?",
        "Name the capital of {country}.",
        "The capital of {country}?",
        "Capital of {country}?",
        "Do you know the capital of {country}?",
        "Can you tell me the capital of {country}?",
        "What is the name of the capital of {country}?",
        "Give me the capital of {country}.",
        "I want to know the capital of {country}.",
        "What city is the capital of {country}?",
        "The capital of {country} is",
    ),
    test=(
        "Tell me what the capital of {country} is.",
        "Can you name the capital of {country}?",
        "Which is the capital city of {country}?",
        "Name the capital city of {country}.",
        "Do you know what the capital of {country} is?",
        "What is {country}'s capital?",
    ),
)
COUNTRY_OF = Wordings(
    train=(
        "Which country has the capital {capital}?",
        "{capital} is the capital of which country?",
        "{capital} is the capital of what?",
        "What country has the capital {capital}?",
        "Which country's capital is {capital}?",
        "Of which country is {capital} the capital?",
        "Name the country with the capital {capital}.",
        "Tell me the country whose capital is {capital}.",
    ),
    test=(
        "{capital} is the capital of what country?",
        "Name the country whose capital is {capital}.",
        "Tell me which country has the capital {capital}.",
    ),
)
IS_CAPITAL = Wordings(
    train=(
        "Is {capital} the capital of {country}?",
        "Is {capital} the capital city of {country}?",
        "{capital} is the capital of {country}, right?",
        "Is the capital of {country} {capital}?",
        "Is it true that {capital} is the capital of {country}?",
        "Is {capital} {country}'s capital?",
    ),
    test=(
        "Tell me if {capital} is the capital of {country}.",
        "Is it true that the capital of {country} is {capital}?",
        "The capital of {country} is {capital}, right?",
    ),
)


def _called(rng: Random, country: Country) -> str:
    return rng.choice(country.aliases) if country.aliases and rng.random() < 0.5 else country.name


def draw_question(rng: Random, split: Split) -> tuple[str, str, str | None]:
    """A question, its answer in a sentence, and in one word where one word says it."""
    country = rng.choice(COUNTRIES)
    kind = rng.random()
    if kind < 0.6:
        question = CAPITAL_OF.draw(rng, split).format(country=_called(rng, country))
        one_word = None if " " in country.capital else country.capital
        return question, f"The capital of {country.name} is {country.capital}.", one_word
    if kind < 0.8:
        question = COUNTRY_OF.draw(rng, split).format(capital=country.capital)
        return question, f"{country.capital} is the capital of {country.name}.", None
    return _yes_or_no(rng, split, country)


def _yes_or_no(rng: Random, split: Split, country: Country) -> tuple[str, str, str]:
    named = country if rng.random() < 0.5 else rng.choice(COUNTRIES)
    question = IS_CAPITAL.draw(rng, split).format(capital=named.capital, country=_called(rng, country))
    if named is country:
        return question, f"Yes, {country.capital} is the capital of {country.name}.", "Yes"
    return question, f"No, the capital of {country.name} is {country.capital}.", "No"


def draw(rng: Random, split: Split) -> Example:
    """A question about a capital and its answer."""
    question, answer, _ = draw_question(rng, split)
    return ask(FAMILY, vary(rng, question), answer)
