"""Questions outside the model's skills, and the one plain answer to them.

The test split asks about other things than training does, in the same wordings.
"""

from random import Random

from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.wording import held_out, vary

FAMILY = "outside"
ANSWER = "I am only a small demo model, and I do not know that."

ABOUT = (
    "Tell me about {x}.",
    "What is {x}?",
    "Explain {x}.",
    "What do you know about {x}?",
    "Can you explain {x}?",
    "Write a story about {x}.",
    "Write a poem about {x}.",
    "Write a song about {x}.",
    "Tell me a joke about {x}.",
    "Write an essay about {x}.",
    "Who invented {x}?",
    "What is the history of {x}?",
    "How does {x} work?",
    "What do you think about {x}?",
    "Give me a summary of {x}.",
)
TOPICS = (
    "love",
    "music",
    "gravity",
    "football",
    "quantum physics",
    "the internet",
    "electricity",
    "the weather",
    "history",
    "philosophy",
    "chemistry",
    "economics",
    "the stock market",
    "evolution",
    "democracy",
    "religion",
    "chess",
    "the Roman Empire",
    "the moon landing",
    "space travel",
    "machine learning",
    "neural networks",
    "Linux",
    "cooking",
    "pizza",
    "coffee",
    "wine",
    "bitcoin",
    "climate change",
    "medicine",
    "DNA",
    "black holes",
    "time travel",
    "dinosaurs",
    "volcanoes",
    "the telephone",
    "the steam engine",
    "photography",
    "Shakespeare",
    "Einstein",
    "Napoleon",
    "Mozart",
    "poetry",
    "grammar",
    "sleep",
    "dreams",
    "health",
    "money",
    "art",
    "the French Revolution",
    "relativity",
    "mathematics",
    "calculus",
    "computers",
    "robots",
    "ghosts",
    "vaccines",
    "the brain",
    "friendship",
    "fashion",
)
SINGLE = (
    "What is the weather today?",
    "What time is it?",
    "What day is it today?",
    "Who won the last election?",
    "What is the meaning of life?",
    "Who is the president?",
    "Write a Python function that sorts a list.",
    "Translate this text into French.",
    "Summarize this article.",
    "How do I cook pasta?",
    "What should I eat tonight?",
    "How old is the universe?",
    "Who wrote Hamlet?",
    "Who painted the Mona Lisa?",
    "How high is Mount Everest?",
    "Write an email to my boss.",
    "What is the news?",
    "How far away is the Moon?",
    "Tell me a joke.",
    "Tell me a story.",
    "Write a poem.",
    "Sing a song.",
    "Give me some advice.",
    "Which film should I watch?",
    "How many people live on Earth?",
    "When did the war end?",
    "Fix the bug in my code.",
    "What is the square root of two?",
    "Plan a trip for me.",
    "How do I learn to swim?",
)
UNKNOWN_COUNTRIES = (
    "Atlantis",
    "Bhutan",
    "Tonga",
    "Malta",
    "Laos",
    "Mali",
    "Fiji",
    "Narnia",
    "Mordor",
    "Chad",
    "Qatar",
)
LARGE = (
    "What is {a} {sign} {b}?",
    "{a} {sign} {b}",
    "{a}{sign}{b}",
    "How much is {a} {sign} {b}?",
    "Calculate {a} {sign} {b}.",
    "{a} {sign} {b} = ?",
)


def _of(values: tuple[str, ...], split: Split) -> tuple[str, ...]:
    return tuple(value for value in values if held_out(f"outside {value}", 15) == (split == "test"))


_TOPICS = {"train": _of(TOPICS, "train"), "test": _of(TOPICS, "test")}
_SINGLE = {"train": _of(SINGLE, "train"), "test": _of(SINGLE, "test")}


def _large_number_problem(rng: Random, split: Split) -> str:
    """A product or quotient, or a problem with a number of two or three digits."""
    while True:
        sign = rng.choice("++--*/")
        a, b = rng.choice(((0, 9), (10, 99), (10, 99), (100, 999))), rng.choice(((0, 9), (10, 99), (10, 99)))
        left, right = rng.randint(*a), rng.randint(*b)
        inside = sign in "+-" and left < 10 and right < 10
        if not inside and held_out(f"outside {left} {sign} {right}", 15) == (split == "test"):
            return rng.choice(LARGE).format(a=left, sign=sign, b=right)


def draw(rng: Random, split: Split) -> Example:
    """A question the model must not try to answer."""
    kind = rng.random()
    if kind < 0.5:
        question = rng.choice(ABOUT).format(x=rng.choice(_TOPICS[split]))
    elif kind < 0.7:
        question = rng.choice(_SINGLE[split])
    elif kind < 0.9 or split == "test":
        question = _large_number_problem(rng, split)
    else:
        question = f"What is the capital of {rng.choice(UNKNOWN_COUNTRIES)}?"
    return ask(FAMILY, vary(rng, question), ANSWER)
