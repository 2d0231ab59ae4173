"""Small true facts: sounds, colours, opposites, days, months, seasons, legs, sides, planets, and some more."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.fact_table import Facts, after, before, both_ways, pairs
from dgemma_jax.training.demo.wording import Question, ask_question, draw_question, wordings

FAMILY = "facts"

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = wordings("January|February|March|April|May|June|July|August|September|October|November|December")
SEASONS = ("spring", "summer", "autumn", "winter")
PLANETS = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")

SOUNDS = Facts(
    asked=wordings(
        """What sound does {x} make? | What does {x} say? | Which sound does {x} make? | What noise does {x} make?
        | Tell me what {x} says. | What is the sound of {x}? | How does {x} sound? | Which noise does {x} make?
        | Tell me the sound of {x}. | Tell me what sound {x} makes. | What is the noise of {x}? | How does {x} go?"""
    ),
    thought="The sound of {x}.",
    sentence="{x} says {y}.",
    pairs=pairs(
        """a cow: moo, a dog: woof, a cat: meow, a sheep: baa, a duck: quack, a pig: oink, a horse: neigh,
        an owl: hoot, a bee: buzz, a snake: hiss, a lion: roar, a frog: croak"""
    ),
)
COLOURS = Facts(
    asked=wordings(
        """What colour is {x}? | What color is {x}? | Which colour is {x}? | What is the colour of {x}?
        | What is the color of {x}? | Tell me the colour of {x}. | Which colour does {x} have? | Which color is {x}?
        | Tell me the color of {x}. | What colour does {x} have? | The colour of {x}? | What color does {x} have?"""
    ),
    thought="The colour of {x}.",
    sentence="{x} is {y}.",
    pairs=pairs(
        """the sky: blue, grass: green, snow: white, a lemon: yellow, coal: black, a tomato: red, milk: white,
        a banana: yellow, blood: red, a carrot: orange, chocolate: brown, a frog: green, an elephant: grey"""
    ),
)
MIXTURES = Facts(
    asked=wordings(
        """What colour do {x} make? | What do {x} make? | Which colour do you get from {x}?
        | What colour is a mix of {x}? | What colour do I get if I mix {x}? | Mix {x}. | Which colour do {x} make?
        | What do I get if I mix {x}?
        | What colour do you get from {x}? | What color do {x} make? | What color is a mix of {x}?"""
    ),
    thought="The mix of {x}.",
    sentence="{x} make {y}.",
    pairs=pairs(
        """red and blue: purple, blue and yellow: green, red and yellow: orange, red and white: pink,
        black and white: grey"""
    ),
)
OPPOSITES = Facts(
    asked=wordings(
        """What is the opposite of {x}? | Tell me the opposite of {x}. | Which word is the opposite of {x}?
        | What is the contrary of {x}? | The opposite of {x}? | Name the opposite of {x}. | Give me the opposite of {x}.
        | What word is the opposite of {x}? | Tell me what the opposite of {x} is. | Opposite of {x}?
        | Which is the opposite of {x}? | Do you know the opposite of {x}? | The opposite of {x} is"""
    ),
    thought="The opposite of {x}.",
    sentence="The opposite of {x} is {y}.",
    pairs=both_ways(
        pairs(
            """hot: cold, big: small, up: down, day: night, fast: slow, open: closed, left: right, happy: sad, wet: dry,
            high: low, full: empty, good: bad, black: white, early: late, rich: poor"""
        )
    ),
)
LEGS = Facts(
    asked=wordings(
        """How many legs does {x} have? | How many legs has {x}? | What number of legs does {x} have?
        | Tell me how many legs {x} has. | On how many legs does {x} walk? | Do you know how many legs {x} has?
        | Can you tell me how many legs {x} has? | What is the number of legs of {x}? | How many legs does {x} have?"""
    ),
    thought="The number of legs of {x}.",
    sentence="{x} has {y} legs.",
    pairs=pairs(
        """a dog: four, a cat: four, a horse: four, a cow: four, a bird: two, a duck: two, a spider: eight, an ant: six,
        a bee: six, a sheep: four, a lion: four"""
    ),
)
SIDES = Facts(
    asked=wordings(
        """How many sides does {x} have? | How many sides has {x}? | What number of sides does {x} have?
        | Tell me how many sides {x} has. | Do you know how many sides {x} has? | How many sides are there in {x}?
        | Can you tell me how many sides {x} has? | What is the number of sides of {x}?"""
    ),
    thought="The number of sides of {x}.",
    sentence="{x} has {y} sides.",
    pairs=pairs(
        """a triangle: three, a square: four, a rectangle: four, a pentagon: five, a hexagon: six, an octagon: eight"""
    ),
)
YOUNG = Facts(
    asked=wordings(
        """What is a young {x} called? | What is a baby {x} called? | What do you call a young {x}?
        | What do you call a baby {x}? | Tell me the name of a young {x}. | What is the name of a young {x}?
        | Tell me what a baby {x} is called. | Tell me the name of a baby {x}. | What is a baby {x}?"""
    ),
    thought="The name of a young {x}.",
    sentence="A young {x} is called a {y}.",
    pairs=pairs(
        """dog: puppy, cat: kitten, cow: calf, sheep: lamb, horse: foal, duck: duckling, pig: piglet, goat: kid,
        bear: cub"""
    ),
)
PLANET_ORDER = Facts(
    asked=wordings(
        """Which planet is the {x} from the Sun? | Which is the {x} planet from the Sun? | What is the {x} planet?
        | Name the {x} planet from the Sun. | Tell me the {x} planet from the Sun. | Tell me the {x} planet.
        | What is the {x} planet from the Sun? | Which planet is {x} from the Sun? | Which is the {x} planet?
        | What planet is the {x} from the Sun?"""
    ),
    thought="The {x} planet from the Sun.",
    sentence="{y} is the {x} planet from the Sun.",
    pairs=tuple(zip(ORDINALS, PLANETS, strict=True)),
)
PLANET_WITH = Facts(
    asked=wordings(
        """Which planet is the {x} planet? | What is the name of the {x} planet? | Name the {x} planet of the Sun.
        | Tell me which planet is the {x} planet. | Which planet is called the {x} planet?
        | Which one is the {x} planet? | Do you know which planet is the {x} planet?"""
    ),
    thought="The {x} planet.",
    sentence="{y} is the {x} planet.",
    pairs=pairs("largest: Jupiter, biggest: Jupiter, smallest: Mercury, red: Mars, hottest: Venus"),
)
COUNTS = Facts(
    asked=wordings(
        """How many {x}? | Tell me how many {x}. | Do you know how many {x}? | Can you tell me how many {x}?
        | What do you think, how many {x}? | I want to know how many {x}. | Say how many {x}."""
    ),
    thought="How many {x}?",
    sentence="There are {y}.",
    pairs=pairs(
        """days are in a week: seven, months are in a year: twelve, hours are in a day: twenty-four,
        minutes are in an hour: sixty, seconds are in a minute: sixty, seasons are in a year: four,
        planets are in the solar system: eight, days are in a weekend: two, fingers are on a hand: five"""
    ),
)
MAKERS = Facts(
    asked=wordings(
        """What do {x} make? | What is made by {x}? | Tell me what {x} make. | Which thing do {x} make?
        | What can {x} make? | Do you know what {x} make? | Which things do {x} make? | What are {x} making?"""
    ),
    thought="The things that {x} make.",
    sentence="{x} make {y}.",
    pairs=pairs("bees: honey, spiders: webs, bakers: bread, cows: milk, birds: nests, tailors: clothes"),
)
MOST = Facts(
    asked=wordings(
        """What is the {x}? | Which is the {x}? | Name the {x}. | Tell me the {x}. | Do you know the {x}?
        | What is the name of the {x}? | Can you name the {x}? | Tell me what the {x} is. | The {x}?
        | Do you know what the {x} is?"""
    ),
    thought="The {x}.",
    sentence="The {x} is the {y}.",
    pairs=pairs(
        """largest ocean: Pacific, tallest animal: giraffe, fastest land animal: cheetah,
        largest land animal: elephant, star of our solar system: Sun"""
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


def make(rng: Random) -> Question:
    """A question about a small fact and its answer, of either split."""
    (group,) = rng.choices(GROUPS, weights=_COUNTS)
    return group.make(rng)


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question about a small fact and its answer."""
    return ask_question(FAMILY, draw_question(rng, split, make), thinking)
