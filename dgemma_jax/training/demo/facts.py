"""Small true facts: sounds, colours, opposites, days, months, seasons, legs, sides, planets, and some more."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.fact_table import Facts, after, before, both_ways, pairs
from dgemma_jax.training.demo.wording import Wordings, vary

FAMILY = "facts"

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
SEASONS = ("spring", "summer", "autumn", "winter")
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

SOUNDS = Facts(
    wordings=Wordings(
        train=(
            "What sound does {x} make?",
            "What does {x} say?",
            "Which sound does {x} make?",
            "What noise does {x} make?",
            "Tell me what {x} says.",
            "What is the sound of {x}?",
            "How does {x} sound?",
        ),
        test=("Which noise does {x} make?", "Tell me the sound of {x}.", "Tell me what sound {x} makes."),
    ),
    sentence="{x} says {y}.",
    pairs=pairs(
        "a cow: moo, a dog: woof, a cat: meow, a sheep: baa, a duck: quack, a pig: oink, a horse: neigh, "
        "an owl: hoot, a bee: buzz, a snake: hiss, a lion: roar, a frog: croak"
    ),
)
COLOURS = Facts(
    wordings=Wordings(
        train=(
            "What colour is {x}?",
            "What color is {x}?",
            "Which colour is {x}?",
            "What is the colour of {x}?",
            "What is the color of {x}?",
            "Tell me the colour of {x}.",
            "Which colour does {x} have?",
        ),
        test=("Which color is {x}?", "Tell me the color of {x}.", "What colour does {x} have?"),
    ),
    sentence="{x} is {y}.",
    pairs=pairs(
        "the sky: blue, grass: green, snow: white, a lemon: yellow, coal: black, a tomato: red, milk: white, "
        "a banana: yellow, blood: red, a carrot: orange, chocolate: brown, a frog: green, an elephant: grey"
    ),
)
MIXTURES = Facts(
    wordings=Wordings(
        train=(
            "What colour do {x} make?",
            "What do {x} make?",
            "Which colour do you get from {x}?",
            "What colour is a mix of {x}?",
            "What colour do I get if I mix {x}?",
            "Mix {x}.",
        ),
        test=("Which colour do {x} make?", "What do I get if I mix {x}?", "What colour do you get from {x}?"),
    ),
    sentence="{x} make {y}.",
    pairs=pairs(
        "red and blue: purple, blue and yellow: green, red and yellow: orange, red and white: pink, "
        "black and white: grey"
    ),
)
OPPOSITES = Facts(
    wordings=Wordings(
        train=(
            "What is the opposite of {x}?",
            "Tell me the opposite of {x}.",
            "Which word is the opposite of {x}?",
            "What is the contrary of {x}?",
            "The opposite of {x}?",
            "Name the opposite of {x}.",
            "Give me the opposite of {x}.",
        ),
        test=(
            "What word is the opposite of {x}?",
            "Tell me what the opposite of {x} is.",
            "Which is the opposite of {x}?",
        ),
    ),
    sentence="The opposite of {x} is {y}.",
    pairs=both_ways(
        pairs(
            "hot: cold, big: small, up: down, day: night, fast: slow, open: closed, left: right, happy: sad, wet: dry, "
            "high: low, full: empty, good: bad, black: white, early: late, rich: poor"
        )
    ),
)
LEGS = Facts(
    wordings=Wordings(
        train=(
            "How many legs does {x} have?",
            "How many legs has {x}?",
            "What number of legs does {x} have?",
            "Tell me how many legs {x} has.",
            "On how many legs does {x} walk?",
            "Do you know how many legs {x} has?",
        ),
        test=("Can you tell me how many legs {x} has?", "What is the number of legs of {x}?"),
    ),
    sentence="{x} has {y} legs.",
    pairs=pairs(
        "a dog: four, a cat: four, a horse: four, a cow: four, a bird: two, a duck: two, a spider: eight, an ant: six, "
        "a bee: six, a sheep: four, a lion: four"
    ),
)
SIDES = Facts(
    wordings=Wordings(
        train=(
            "How many sides does {x} have?",
            "How many sides has {x}?",
            "What number of sides does {x} have?",
            "Tell me how many sides {x} has.",
            "Do you know how many sides {x} has?",
        ),
        test=("Can you tell me how many sides {x} has?", "What is the number of sides of {x}?"),
    ),
    sentence="{x} has {y} sides.",
    pairs=pairs(
        "a triangle: three, a square: four, a rectangle: four, a pentagon: five, a hexagon: six, an octagon: eight"
    ),
)
YOUNG = Facts(
    wordings=Wordings(
        train=(
            "What is a young {x} called?",
            "What is a baby {x} called?",
            "What do you call a young {x}?",
            "What do you call a baby {x}?",
            "Tell me the name of a young {x}.",
        ),
        test=(
            "What is the name of a young {x}?",
            "Tell me what a baby {x} is called.",
            "Tell me the name of a baby {x}.",
        ),
    ),
    sentence="A young {x} is called a {y}.",
    pairs=pairs("dog: puppy, cat: kitten, cow: calf, sheep: lamb, horse: foal, duck: duckling"),
)
PLANET_ORDER = Facts(
    wordings=Wordings(
        train=(
            "Which planet is the {x} from the Sun?",
            "Which is the {x} planet from the Sun?",
            "What is the {x} planet?",
            "Name the {x} planet from the Sun.",
            "Tell me the {x} planet from the Sun.",
            "What is the {x} planet from the Sun?",
        ),
        test=("Which planet is {x} from the Sun?", "What planet is the {x} from the Sun?", "Tell me the {x} planet."),
    ),
    sentence="{y} is the {x} planet from the Sun.",
    pairs=tuple(zip(ORDINALS, PLANETS, strict=True)),
)
PLANET_WITH = Facts(
    wordings=Wordings(
        train=(
            "Which planet is the {x} planet?",
            "What is the name of the {x} planet?",
            "Which planet is called the {x} planet?",
            "Tell me which planet is the {x} planet.",
            "Name the {x} planet of the Sun.",
        ),
        test=("Which one is the {x} planet?", "Do you know which planet is the {x} planet?"),
    ),
    sentence="{y} is the {x} planet.",
    pairs=pairs("largest: Jupiter, biggest: Jupiter, smallest: Mercury, red: Mars, hottest: Venus"),
)
COUNTS = Facts(
    wordings=Wordings(
        train=(
            "How many {x}?",
            "Tell me how many {x}.",
            "Do you know how many {x}?",
            "Can you tell me how many {x}?",
            "What do you think, how many {x}?",
        ),
        test=("I want to know how many {x}.", "Say how many {x}."),
    ),
    sentence="There are {y}.",
    pairs=pairs(
        "days are in a week: seven, months are in a year: twelve, hours are in a day: twenty-four, "
        "minutes are in an hour: sixty, seasons are in a year: four, planets are in the solar system: eight"
    ),
)
MAKERS = Facts(
    wordings=Wordings(
        train=(
            "What do {x} make?",
            "What is made by {x}?",
            "Tell me what {x} make.",
            "Which thing do {x} make?",
            "What can {x} make?",
        ),
        test=("Do you know what {x} make?", "Which things do {x} make?"),
    ),
    sentence="{x} make {y}.",
    pairs=pairs("bees: honey, spiders: webs, bakers: bread, cows: milk"),
)
MOST = Facts(
    wordings=Wordings(
        train=(
            "What is the {x}?",
            "Which is the {x}?",
            "Name the {x}.",
            "Tell me the {x}.",
            "Do you know the {x}?",
            "What is the name of the {x}?",
        ),
        test=("Can you name the {x}?", "Tell me what the {x} is.", "Do you know what the {x} is?"),
    ),
    sentence="The {x} is the {y}.",
    pairs=pairs(
        "largest ocean: Pacific, tallest animal: giraffe, fastest land animal: cheetah, largest land animal: elephant, "
        "star of our solar system: Sun"
    ),
)

GROUPS: tuple[Facts, ...] = (
    SOUNDS,
    COLOURS,
    MIXTURES,
    OPPOSITES,
    after("day", DAYS),
    before("day", DAYS),
    after("month", MONTHS),
    before("month", MONTHS),
    after("season", SEASONS),
    before("season", SEASONS),
    LEGS,
    SIDES,
    YOUNG,
    PLANET_ORDER,
    PLANET_WITH,
    COUNTS,
    MAKERS,
    MOST,
)
_COUNTS = [len(group.pairs) for group in GROUPS]


def draw_question(rng: Random, split: Split) -> tuple[str, str, str]:
    """A question, its answer in a sentence, and in one word."""
    (group,) = rng.choices(GROUPS, weights=_COUNTS)
    return group.draw(rng, split)


def draw(rng: Random, split: Split) -> Example:
    """A question about a small fact and its answer."""
    question, answer, _ = draw_question(rng, split)
    return ask(FAMILY, vary(rng, question), answer)
