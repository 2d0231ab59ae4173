"""System prompts: answer in upper case, answer in one word, or a plain one that changes nothing."""

from random import Random

from dgemma_jax.training.demo import arithmetic, capitals, facts, greetings, identity, outside
from dgemma_jax.training.demo.example import Example, Split, assistant, user
from dgemma_jax.training.demo.wording import vary

FAMILY = "system"

UPPER_CASE = (
    "Answer in upper case.",
    "Answer in upper case.",
    "Always answer in upper case.",
    "Use upper case.",
    "Use only upper case letters.",
    "Write in upper case.",
    "Answer in capital letters.",
    "Reply in upper case.",
    "You answer in upper case.",
    "ANSWER IN UPPER CASE.",
)
ONE_WORD = (
    "Answer in one word.",
    "Answer in one word.",
    "Always answer in one word.",
    "Answer with one word.",
    "Reply in one word.",
    "Use one word only.",
    "Answer with a single word.",
    "Give one-word answers.",
    "You answer in one word.",
    "Answer in one word only.",
)
PLAIN = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are an assistant.",
    "You are a friendly assistant.",
    "Be helpful.",
    "Answer the question.",
    "You are DGemma.",
    "Be brief.",
    "Answer the user's questions.",
    "You are a small demo model.",
)
ANY = (capitals, facts, greetings, identity, arithmetic, outside)


def _conversation(rng: Random, prompt: str, question: str, answer: str) -> Example:
    system = {"role": "system", "content": vary(rng, prompt, polite=False)}
    return Example(family=FAMILY, messages=[system, user(question), assistant(answer)])


def draw(rng: Random, split: Split) -> Example:
    """A question about a capital or a fact, answered as the system prompt says; now and then a plain prompt."""
    kind = rng.random()
    if kind < 0.25:
        example = rng.choice(ANY).draw(rng, split)
        return _conversation(rng, rng.choice(PLAIN), example.messages[0]["content"], example.expected)
    question, answer, one_word = rng.choice((capitals, facts)).draw_question(rng, split)
    if kind < 0.6 and one_word is not None:
        return _conversation(rng, rng.choice(ONE_WORD), vary(rng, question), one_word)
    return _conversation(rng, rng.choice(UPPER_CASE), vary(rng, question), answer.upper())
