"""Greetings: hello, how are you, thanks, goodbye."""

from random import Random

from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.wording import Wordings, vary

FAMILY = "greetings"

GREETINGS: tuple[tuple[str, Wordings], ...] = (
    (
        "Hello! How can I help you?",
        Wordings(
            train=(
                "Hello!",
                "Hi",
                "Hi!",
                "Hello",
                "Hey!",
                "Hello there!",
                "Hi there!",
                "Hey there!",
                "Greetings!",
                "Good day!",
                "Hello, DGemma!",
                "Hi, DGemma!",
                "Hello, model!",
                "Howdy!",
                "Hello, hello!",
                "Hi, nice to see you!",
                "Hello, is anybody there?",
            ),
            test=(
                "Hello again!",
                "Oh, hi!",
                "Well, hello there!",
                "Hey, DGemma!",
                "Hey, nice to see you!",
                "Hi, hello!",
                "Hey, hello!",
                "Hello, my friend!",
                "Hi, model!",
            ),
        ),
    ),
    (
        "I am fine, thank you.",
        Wordings(
            train=(
                "How are you?",
                "How are you doing?",
                "How are you today?",
                "Hello, how are you?",
                "Hi, how are you?",
                "Hi, how are you doing?",
                "How is it going?",
                "How do you feel?",
                "Are you well?",
                "What is up?",
                "How are things?",
            ),
            test=(
                "Hey, how are you?",
                "Hello, how is it going?",
                "How are you doing today?",
                "How do you feel today?",
                "Hey, how are you doing?",
                "Hello, how are things?",
            ),
        ),
    ),
    (
        "You are welcome!",
        Wordings(
            train=(
                "Thanks!",
                "Thank you!",
                "Thank you very much!",
                "Thanks a lot!",
                "Many thanks!",
                "Thanks for your help!",
                "Thank you for the answer.",
                "Great, thanks!",
                "Thank you so much!",
                "Okay, thank you.",
            ),
            test=(
                "Thanks very much!",
                "Great, thank you!",
                "Thank you for your help!",
                "Okay, thanks a lot.",
                "Thanks so much!",
                "Thanks for the answer.",
                "Great, thanks a lot!",
            ),
        ),
    ),
    (
        "Goodbye! Have a nice day.",
        Wordings(
            train=(
                "Bye!",
                "Goodbye!",
                "Bye bye!",
                "See you!",
                "See you later!",
                "See you tomorrow!",
                "Bye for now!",
                "I have to go. Bye!",
                "Farewell!",
                "Thanks, bye!",
                "Have a nice day!",
                "Take care!",
            ),
            test=(
                "Okay, bye!",
                "Okay, goodbye!",
                "Thanks, goodbye!",
                "Goodbye, see you tomorrow!",
                "Goodbye for now!",
                "I have to go. Goodbye!",
                "Bye, see you later!",
            ),
        ),
    ),
    (
        "Good morning! How can I help you?",
        Wordings(
            train=(
                "Good morning!",
                "Good morning to you!",
                "Hello, good morning!",
                "Good morning, DGemma!",
                "Morning!",
            ),
            test=("Hi, good morning!", "Good morning, model!", "A good morning to you!"),
        ),
    ),
    (
        "Good evening! How can I help you?",
        Wordings(
            train=("Good evening!", "Good evening to you!", "Hello, good evening!", "Good evening, DGemma!"),
            test=("Hi, good evening!", "Good evening, model!", "A good evening to you!"),
        ),
    ),
    (
        "Good night! Sleep well.",
        Wordings(
            train=("Good night!", "Good night to you!", "Good night, DGemma!", "I am going to bed. Good night!"),
            test=("A good night to you!", "Good night, model!", "Okay, good night!"),
        ),
    ),
    (
        "Nice to meet you too!",
        Wordings(
            train=("Nice to meet you!", "It is nice to meet you.", "Hello, nice to meet you!", "Pleased to meet you!"),
            test=("Hi, nice to meet you!", "I am pleased to meet you!", "Hey, nice to meet you!"),
        ),
    ),
)
_COUNTS = [len(wordings.train) for _, wordings in GREETINGS]


def draw(rng: Random, split: Split) -> Example:
    """A greeting and its reply."""
    ((answer, wordings),) = rng.choices(GREETINGS, weights=_COUNTS)
    return ask(FAMILY, vary(rng, wordings.draw(rng, split), polite=False), answer)
