"""What a demo model must be able to do, and how that is measured.

A skill is right answers to held-out questions of its families: exact match of the text and of the tool calls, sampled
as the server samples. How the answer is written counts as well: a thought exactly where thinking is on.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from dgemma_jax.pretrained import Model
from dgemma_jax.prompt.parse import Content, Reasoning, ResponseParser, ToolCall, opens_thought
from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo.batching import answer_all
from dgemma_jax.training.demo.example import Example
from dgemma_jax.training.demo.mix import FAMILIES, test_examples
from dgemma_jax.training.demo.render import demo_row

LEAST_EARLY = 0.9
"""The least share, of every skill, of canvases that stopped before the limit. All answers must be well-formed."""


@dataclasses.dataclass(frozen=True)
class Skill:
    """Families that are scored together, with thinking on or off, and the least share of right answers.

    With thinking on, as many thoughts must be the right ones.
    """

    families: tuple[str, ...]
    least: float
    thinking: bool = False


SKILLS: dict[str, Skill] = {
    "conversation": Skill(("greetings", "identity", "capitals", "facts"), 0.95),
    "arithmetic": Skill(("arithmetic",), 0.98),
    "two_digits": Skill(("two_digits",), 0.85, thinking=True),
    "tool_call": Skill(("tool_call",), 0.95),
    "two_calls": Skill(("two_calls",), 0.90),
    "tool_result": Skill(("tool_result",), 0.95),
    "no_call": Skill(("no_call",), 0.95),
    "memory": Skill(("memory",), 0.95),
    "json": Skill(("json_text",), 0.95),
    "lists": Skill(("lists",), 0.90),
    "image_colour": Skill(("image_colour",), 0.95),
    "image_shape": Skill(("image_shape",), 0.90),
    "image_count": Skill(("image_count",), 0.85),
    "image_position": Skill(("image_position",), 0.85),
    "image_pair": Skill(("image_pair",), 0.85),
    "video": Skill(("video_motion", "video_first"), 0.85),
    "system": Skill(("system",), 0.90),
    "follow_up": Skill(("follow_up",), 0.85),
    "outside": Skill(("outside",), 0.90),
    "thinking": Skill(tuple(FAMILIES), 0.85, thinking=True),
}
"""The promises of the model card. "thinking" asks a little of everything with thinking on."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A reply as a client sees it. Calls are (name, arguments as JSON text)."""

    thought: str
    content: str
    calls: tuple[tuple[str, str], ...]
    ended: bool


@dataclasses.dataclass(frozen=True)
class Score:
    """Results over some examples. `steps` per canvas; an early stop is one before the limit, None where not told.

    `formed`: how many ended by themselves, with a thought exactly where thinking was on, and with an answer.
    `thoughts`: how many have the thought that leads to the answer, or rightly none.
    `unparsed`: how many answers that should be JSON are none.
    """

    right: int
    formed: int
    thoughts: int
    count: int
    steps: float
    early: float | None
    unparsed: int
    wrong: tuple[tuple[str, str, str], ...]

    @property
    def share(self) -> float:
        return self.right / self.count


def shortfalls(skill: Skill, score: Score, least: float | None = None) -> list[str]:
    """What is less than promised, in words; `least`: the share of right answers in place of the skill's own."""
    least = skill.least if least is None else least
    found = {
        "right": (score.share, least),
        "formed": (score.formed / score.count, 1.0),
        "right thoughts": (score.thoughts / score.count, least),
        "early stops": (1.0 if score.early is None else score.early, LEAST_EARLY),
        "JSON that parses": (1 - score.unparsed / score.count, 1.0),
    }
    return [f"{name} {share:.3f} (wanted {wanted})" for name, (share, wanted) in found.items() if share < wanted]


def skill_examples(skill: Skill, count: int, seed: int) -> list[Example]:
    """At least `count` held-out conversations, as many of each of the skill's families."""
    each = -(-count // len(skill.families))
    return [e for name in skill.families for e in test_examples(name, each, seed, thinking=skill.thinking)]


def score(model: Model, template: ChatTemplate, examples: Sequence[Example]) -> Score:
    """Asks every example. `wrong` holds question, expected and found.

    Raises:
        ValueError: a checkpoint without a tokenizer.
    """
    if model.tokenizer is None:
        raise ValueError("the checkpoint holds no tokenizer; scoring needs one")
    rows = [demo_row(example, model.tokenizer, template, model.config) for example in examples]
    answers = answer_all(model, rows)
    replies = [
        read_reply(model.tokenizer, row.prompt, answered.tokens) for row, answered in zip(rows, answers, strict=True)
    ]
    steps = [taken for answered in answers for taken in answered.steps]
    early = sum(taken < model.generation.max_denoising_steps for taken in steps) / len(steps)
    return grade(examples, replies, sum(steps) / len(steps), early)


def grade(examples: Sequence[Example], replies: Sequence[Reply], steps: float, early: float | None) -> Score:
    """The replies to the examples; `steps` and `early` of them all."""
    pairs = list(zip(examples, replies, strict=True))
    wrong = tuple(
        (question(example), expected(example), found(reply))
        for example, reply in pairs
        if found(reply) != expected(example)
    )
    return Score(
        right=len(pairs) - len(wrong),
        formed=sum(is_formed(reply, example.thinking) for example, reply in pairs),
        thoughts=sum(reply.thought == example.expected.get("reasoning", "") for example, reply in pairs),
        count=len(pairs),
        steps=steps,
        early=early,
        unparsed=sum(example.family == "json_text" and not _is_json(reply.content) for example, reply in pairs),
        wrong=wrong,
    )


def read_reply(tokenizer: Tokenizer, prompt: Sequence[int], tokens: Sequence[int]) -> Reply:
    """Generated tokens as thought, text and calls."""
    parser = ResponseParser(tokenizer, starts_in_thought=opens_thought(tokenizer, prompt))
    pieces = parser.push(tokens)
    ended = parser.ended
    pieces = [*pieces, *parser.finish()]
    return Reply(
        thought="".join(piece.text for piece in pieces if isinstance(piece, Reasoning)),
        content="".join(piece.text for piece in pieces if isinstance(piece, Content)),
        calls=tuple((piece.name, piece.arguments) for piece in pieces if isinstance(piece, ToolCall)),
        ended=ended,
    )


def is_formed(reply: Reply, thinking: bool) -> bool:
    """A thought exactly where it is wanted, an answer, and an end."""
    return bool(reply.thought) == thinking and bool(reply.content or reply.calls) and reply.ended


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def question(example: Example) -> str:
    """What is asked last, as text."""
    content = example.prompt[-1].get("content") or ""
    return content if isinstance(content, str) else " ".join(part.get("text", "<medium>") for part in content)


def expected(example: Example) -> str:
    """The right answer, text and calls, as one text to compare."""
    calls = example.expected.get("tool_calls") or ()
    return _written(example.expected.get("content") or "", [(c["function"]["name"], _text(c)) for c in calls])


def found(reply: Reply) -> str:
    """A reply in the form of `expected`."""
    return _written(reply.content, reply.calls)


def _text(call: dict[str, Any]) -> str:
    return json.dumps(call["function"]["arguments"], ensure_ascii=False)


def _written(content: str, calls: Sequence[tuple[str, str]]) -> str:
    return " | ".join([*([content] if content else []), *(f"{name} {arguments}" for name, arguments in calls)])
