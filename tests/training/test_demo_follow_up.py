"""Questions in the middle of a conversation: what comes before is whole, short, and has nothing to do with them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

from dgemma_jax.prompt.template import ChatTemplate
from dgemma_jax.prompt.tokenizer import Tokenizer
from dgemma_jax.training.demo import follow_up
from dgemma_jax.training.demo.architecture import demo_config
from dgemma_jax.training.demo.example import Example, Split
from dgemma_jax.training.demo.render import demo_row
from dgemma_jax.training.demo.run import BUCKETS
from tools.paths import DEMO


def drawn(split: Split, count: int = 300) -> list[Example]:
    rng = Random(5)
    return [follow_up.draw(rng, split, index % 2 == 1) for index in range(count)]


def asked(example: Example) -> str:
    return repr(example.prompt)


def test_a_seed_fixes_the_draws() -> None:
    assert [asked(example) for example in drawn("train", 20)] == [asked(example) for example in drawn("train", 20)]


def test_one_to_three_whole_exchanges_come_before_the_question() -> None:
    for example in drawn("train"):
        roles = [message["role"] for message in example.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 4 <= len(roles) <= 8
        assert all(message["content"] and "reasoning" not in message for message in example.prompt)
        assert ("reasoning" in example.expected) == example.thinking


def test_answers_are_short_and_there_is_one_picture_at_most() -> None:
    found = Counter()
    for example in drawn("train"):
        answers = [message.get("content") or "" for message in example.messages if message["role"] == "assistant"]
        assert max(map(len, answers)) <= follow_up.SHORT
        found[len(example.media)] += 1
        found["call"] += bool(example.expected.get("tool_calls"))
    assert {0, 1, "call"} == found.keys() and min(found.values()) > 10


def test_no_test_conversation_is_trained_on() -> None:
    assert not {asked(example) for example in drawn("train", 1000)} & {asked(example) for example in drawn("test")}


def test_every_row_fits_a_batch() -> None:
    tokenizer, template = Tokenizer.from_folder(Path(DEMO)), ChatTemplate.from_folder(Path(DEMO))
    config = demo_config(tokenizer)
    for example in drawn("train"):
        row = demo_row(example, tokenizer, template, config)
        assert any(bucket.holds(row, config.canvas_length) for bucket in BUCKETS)
