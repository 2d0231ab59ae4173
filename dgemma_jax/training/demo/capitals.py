"""Capitals of countries: the capital of a country, the country of a capital, and yes or no."""

from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.wording import Question, ask_question, draw_question, vary, wordings

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
Iran Tehran, Iraq Baghdad, Canada Ottawa, Cuba Havana, Peru Lima, Chile Santiago, Brazil Brasilia, Australia Canberra"""

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

CAPITAL_OF = wordings(
    """What is the capital of {country}? | What is the capital of {country}? | What is the capital of {country}?
    | What is the capital city of {country}? | Tell me the capital of {country}. | The capital of {country}?
    | Which city is the capital of {country}? | Name the capital of {country}. | Capital of {country}?
    | What is the name of the capital of {country}? | Give me the capital of {country}. | capital {country}
    | Do you know the capital of {country}? | Can you tell me the capital of {country}? | {country} capital
    | I want to know the capital of {country}. | What city is the capital of {country}? | The capital of {country} is
    | Tell me what the capital of {country} is. | Can you name the capital of {country}? | {country}'s capital?
    | Which is the capital city of {country}? | Name the capital city of {country}. | Say the capital of {country}.
    | Do you know what the capital of {country} is? | What is {country}'s capital? | {country}'s capital city?
    | Which city is {country}'s capital? | What is the capital called in {country}? | Find the capital of {country}."""
)
COUNTRY_OF = wordings(
    """Which country has the capital {capital}? | {capital} is the capital of which country? | {capital} is the
    capital of what? | What country has the capital {capital}? | Which country's capital is {capital}? | Of which
    country is {capital} the capital? | Name the country with the capital {capital}. | Tell me the country whose
    capital is {capital}. | {capital} is the capital of what country? | Name the country whose capital is {capital}.
    | Tell me which country has the capital {capital}. | What is {capital} the capital of?"""
)
IS_CAPITAL = wordings(
    """Is {capital} the capital of {country}? | Is {capital} the capital city of {country}? | {capital} is the
    capital of {country}, right? | Is the capital of {country} {capital}? | Is it true that {capital} is the capital
    of {country}? | Is {capital} {country}'s capital? | Tell me if {capital} is the capital of {country}. | Is it true
    that the capital of {country} is {capital}? | The capital of {country} is {capital}, right?"""
)


def _called(rng: Random, country: Country) -> str:
    return rng.choice(country.aliases) if country.aliases and rng.random() < 0.5 else country.name


def make(rng: Random) -> Question:
    """A question about a capital and its answer, of either split."""
    country = rng.choice(COUNTRIES)
    kind = rng.random()
    if kind < 0.7:
        text = vary(rng, rng.choice(CAPITAL_OF).format(country=_called(rng, country)))
        one_word = None if " " in country.capital else country.capital
        thought = f"The capital of {country.name}."
        return Question(text, f"The capital of {country.name} is {country.capital}.", thought, one_word)
    if kind < 0.85:
        text = vary(rng, rng.choice(COUNTRY_OF).format(capital=country.capital))
        thought = f"The country with the capital {country.capital}."
        return Question(text, f"{country.capital} is the capital of {country.name}.", thought)
    return _yes_or_no(rng, country)


def _yes_or_no(rng: Random, country: Country) -> Question:
    named = country if rng.random() < 0.5 else rng.choice(COUNTRIES)
    text = vary(rng, rng.choice(IS_CAPITAL).format(capital=named.capital, country=_called(rng, country)))
    capital_is = f"the capital of {country.name} is {country.capital}."
    thought = "T" + capital_is[1:]
    if named is country:
        return Question(text, f"Yes, {country.capital} is the capital of {country.name}.", thought, "Yes")
    return Question(text, f"No, {capital_is}", thought, "No")


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question about a capital and its answer."""
    return ask_question(FAMILY, draw_question(rng, split, make), thinking)
