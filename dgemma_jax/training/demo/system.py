"""System prompts: answer in upper case, in one word, in another language, or plain ones that change nothing."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

from dgemma_jax.training.demo import arithmetic, capitals, facts, greetings, identity, outside
from dgemma_jax.training.demo.example import Example, Split, ask
from dgemma_jax.training.demo.mistakes import half_of_training, slipped
from dgemma_jax.training.demo.phrases import LANGUAGES, PHRASES
from dgemma_jax.training.demo.wording import Question, canonical, draw_question, draw_split, vary, wordings

FAMILY = "system"
Draw = Callable[[Random, Split, bool], Example]

_FRAMES = wordings(
    """Answer {how}. | Answer {how}. | Always answer {how}. | Reply {how}. | Always reply {how}. | Respond {how}.
    | Write {how}. | You answer {how}. | You always answer {how}. | Answer the user {how}. | Please answer {how}.
    | Answer all questions {how}. | Answer every question {how}. | Your answers are {how}. | You must answer {how}.
    | Give your answer {how}. | Write your answers {how}. | The answer must be {how}."""
)
_FIRST = ("You are a helpful assistant.", "You are DGemma.", "You are an assistant.", "Be helpful.", "Be friendly.")
UPPER_CASE = wordings(
    """in upper case | in upper case | in uppercase | in capital letters | in capitals | in all caps
    | only in upper case | in upper case letters | in capital letters only"""
)
ONE_WORD = wordings(
    """in one word | in one word | with one word | in a single word | with a single word | in one word only
    | in just one word"""
)
LANGUAGE = wordings("in {x} | in {x} | only in {x} | in {x} only | in the {x} language")
SAY = wordings("Translate into {x}. | Translate to {x}. | Say it in {x}. | Speak {x}. | You speak {x}. | Use {x}.")
PLAIN = wordings(
    """You are a helpful assistant. | You are a helpful assistant. | You are an assistant. | You are DGemma.
    | You are a friendly assistant. | Be helpful. | Answer the question. | Answer the user's questions.
    | You are a small demo model. | You are a helpful AI assistant. | Be friendly. | Help the user. | Be kind.
    | You answer questions. | You are a polite assistant. | You are a chatbot. | Give helpful answers."""
)
ANY = (capitals, facts, greetings, identity, arithmetic, outside)
NOT_ALL_DIGITS = (capitals, facts, greetings, identity, outside)
PRACTISED = (*[capitals] * 5, *[facts] * 10, greetings, *[identity] * 2, outside)
"""What training puts in upper case: most where there is most to spell."""


def _prompt(rng: Random, instruction: str) -> str:
    """A system prompt with `instruction`, sometimes behind a sentence that changes nothing."""
    first = f"{rng.choice(_FIRST)} " if rng.random() < 0.25 else ""
    return vary(rng, first + instruction, polite=False)


def _conversation(prompt: str, question: str, answer: str, thought: str | None, mistake: str | None = None) -> Example:
    asked = ask(FAMILY, question, answer, thought, mistake=mistake)
    return replace(asked, messages=[{"role": "system", "content": prompt}, *asked.messages])


def _plain(rng: Random, split: Split, thinking: bool) -> Example:
    """Any question, answered as ever."""
    asked = rng.choice(ANY).draw(rng, split, thinking)
    return _conversation(
        vary(rng, rng.choice(PLAIN), polite=False),
        asked.prompt[0]["content"],
        asked.expected["content"],
        asked.expected.get("reasoning"),
    )


def _upper_case(rng: Random, split: Split, thinking: bool) -> Example:
    asked = rng.choice(PRACTISED if split == "train" else NOT_ALL_DIGITS).draw(rng, split, False)
    answer = asked.expected["content"].upper()
    prompt = _prompt(rng, rng.choice(_FRAMES).format(how=rng.choice(UPPER_CASE)))
    thought = "The system prompt wants upper case." if thinking else None
    mistake = half_of_training(rng, split, answer, lambda: slipped(rng, answer))
    return _conversation(prompt, asked.prompt[0]["content"], answer, thought, mistake)


def _one_word(rng: Random, split: Split, thinking: bool) -> Example:
    question = Question("", "", "")
    while question.one_word is None:
        question = draw_question(rng, split, rng.choice((capitals, facts)).make)
    prompt = _prompt(rng, rng.choice(_FRAMES).format(how=rng.choice(ONE_WORD)))
    return _conversation(
        prompt, question.text, question.one_word, "The system prompt wants one word." if thinking else None
    )


def _make_translation(rng: Random) -> tuple[str, str, str, str]:
    """A system prompt, a phrase, its translation, and the language."""
    number = rng.randrange(len(LANGUAGES))
    language = LANGUAGES[number]
    how = rng.choice(_FRAMES).format(how=rng.choice(LANGUAGE)) if rng.random() < 0.7 else rng.choice(SAY)
    typed, translations = rng.choice(PHRASES)
    phrase = vary(rng, rng.choice(typed), polite=False)
    return _prompt(rng, how.format(x=language)), phrase, translations[number], language


def _other_language(rng: Random, split: Split, thinking: bool) -> Example:
    """One of the phrases: its combination with the system prompt belongs to the split, the phrase itself to both."""
    drawn = draw_split(rng, split, _make_translation, lambda drawn: canonical(f"{drawn[0]} | {drawn[1]}"))
    prompt, phrase, translation, language = drawn
    return _conversation(prompt, phrase, translation, f"The system prompt wants {language}." if thinking else None)


_KINDS: dict[Split, dict[Draw, int]] = {
    "train": {_other_language: 15, _upper_case: 55, _one_word: 18, _plain: 12},
    "test": {_other_language: 20, _upper_case: 30, _one_word: 30, _plain: 20},
}
"""Upper case takes longest to learn: every word is spelt anew."""


def draw(rng: Random, split: Split, thinking: bool) -> Example:
    """A question answered as the system prompt says; the question is of the split, so the conversation is too."""
    kinds = _KINDS[split]
    (kind,) = rng.choices(list(kinds), weights=list(kinds.values()))
    return kind(rng, split, thinking)
