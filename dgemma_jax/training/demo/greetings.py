"""Greetings: hello, how are you, thanks, goodbye. Composed of something in front, the greeting, and who is greeted."""

from dataclasses import dataclass
from random import Random

from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.wording import Question, ask_question, draw_question, lower_first, vary, wordings

FAMILY = "greetings"

_HELLO = ("Hi", "Hello", "Hey", "Hello there", "Hi there", "Oh", "Well", "Okay", "So")
_THANKS = ("Okay", "Great", "Good", "Perfect", "Very good", "Nice", "Wow", "Ah", "Oh", "All right")
_LEAVING = ("Okay", "Thanks", "Thank you", "Great, thanks", "Well", "So", "All right", "I have to go", "That is all")
_YOU = ("DGemma", "model", "my friend", "little model", "dear model", "computer", "friend")
_MARKS = ("!", "!", "!", "!!", ".", "", "", " :)")


@dataclass(frozen=True, kw_only=True)
class Greeting:
    """One kind of greeting: its wordings, what may stand before and after them, and the reply."""

    said: tuple[str, ...]
    before: tuple[str, ...]
    after: tuple[str, ...] = ()
    reply: str
    thought: str
    marks: tuple[str, ...] = _MARKS


GREETINGS = (
    Greeting(
        said=wordings(
            """Hello | Hello | Hi | Hi | Hey | Hello there | Hi there | Hey there | Greetings | Good day | Howdy | Hiya
            | Hello again | Hi again | Hello hello | Nice to see you | Good to see you | Nice to see you again"""
        ),
        before=("Hi", "Hello", "Hey", "Oh", "Well", "Okay", "Hi there", "Hello there", "Ah"),
        reply="Hello! How can I help you?",
        thought="The user says hello.",
    ),
    Greeting(
        said=wordings(
            """How are you | How are you | How are you doing | How are you today | How are you feeling | How do you feel
            | How is it going | How are things | How do you do | Are you well | Are you fine | How have you been
            | What is up | How is your day | Is everything fine | How are you doing today | How are you now
            | How do you feel today | How is it going today | How was your day"""
        ),
        before=(*_HELLO, "Good morning", "Good evening", "Good day", "And"),
        reply="I am fine, thank you.",
        thought="The user asks how I am.",
        marks=("?", "?", "?", "??", "", " :)"),
    ),
    Greeting(
        said=wordings(
            """Thanks | Thanks | Thank you | Thank you | Thank you very much | Thanks a lot | Many thanks
            | Thanks for your help | Thank you for your help | Thank you for the answer | Thanks for the answer
            | Thank you so much | Thanks so much | Thanks very much | A big thank you | I thank you"""
        ),
        before=_THANKS,
        after=("again",),
        reply="You are welcome!",
        thought="The user says thank you.",
    ),
    Greeting(
        said=wordings(
            """Bye | Bye | Goodbye | Goodbye | Bye bye | See you | See you later | See you soon | See you tomorrow
            | Bye for now | Goodbye for now | Farewell | Have a nice day | Take care | Have a good day | Until later"""
        ),
        before=_LEAVING,
        reply="Goodbye! Have a nice day.",
        thought="The user says goodbye.",
    ),
    *(
        Greeting(
            said=wordings(f"Good {time} | Good {time} | A good {time} | A very good {time}"),
            before=_HELLO,
            after=("to you",),
            reply=f"Good {time}! How can I help you?",
            thought=f"The user says good {time}.",
        )
        for time in ("morning", "afternoon", "evening")
    ),
    Greeting(
        said=wordings("Good night | Good night | A good night | Have a good night | Sleep well | I am going to bed"),
        before=_LEAVING,
        reply="Good night! Sleep well.",
        thought="The user says good night.",
    ),
    Greeting(
        said=wordings(
            """Nice to meet you | It is nice to meet you | Pleased to meet you | I am pleased to meet you
            | Good to meet you | It is good to meet you | Glad to meet you | I am glad to meet you"""
        ),
        before=_HELLO,
        reply="Nice to meet you too!",
        thought="The user is pleased to meet me.",
    ),
)
# Hello is what people say first.
_WEIGHTS = (25, 15, 14, 14, 7, 6, 6, 7, 6)


def make(rng: Random) -> Question:
    """A greeting and its reply, of either split."""
    (greeting,) = rng.choices(GREETINGS, weights=_WEIGHTS)
    text = rng.choice(greeting.said)
    if greeting.after and rng.random() < 0.2:
        text = f"{text} {rng.choice(greeting.after)}"
    if rng.random() < 0.45:
        text = rng.choice(greeting.before) + rng.choice((", ", ", ", ", ", "! ", " ")) + lower_first(text)
    if rng.random() < 0.35:
        text = f"{text}, {rng.choice(_YOU)}"
    text = vary(rng, text + rng.choice(greeting.marks), polite=False)
    return Question(text, greeting.reply, greeting.thought)


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A greeting and its reply."""
    return ask_question(FAMILY, draw_question(rng, split, make), thinking)
