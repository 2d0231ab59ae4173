"""Data files: every form of row, the order of epochs, and refusals that name the line."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from chats import chat, write_rows
from PIL import Image

from dgemma_jax.training.batch_shapes import RowShape, choose_buckets
from dgemma_jax.training.dataset import ChatFormat, DataError, Dataset

TOOL = {"type": "function", "function": {"name": "now", "description": "", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": {"zone": "UTC"}}}


@pytest.fixture(scope="module")
def format_(tiny: Path) -> ChatFormat:
    return ChatFormat.from_folder(tiny)


@pytest.fixture
def read(tmp_path: Path, format_: ChatFormat):
    """Reads rows from a file of their own."""

    def read_rows(*rows, max_length: int = 256) -> Dataset:
        return Dataset.read(write_rows(tmp_path / "chat.jsonl", list(rows)), format_, max_length)

    return read_rows


def png(size: int = 64, colour: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def written(data: Dataset, format_: ChatFormat, number: int = 0) -> tuple[str, str]:
    row = data.row(number)
    return format_.tokenizer.decode(row.prompt), format_.tokenizer.decode(row.answer)


def test_the_answer_is_what_the_template_writes_behind_the_prompt(read, format_) -> None:
    prompt, answer = written(read(chat("Hello", "Hi there.")), format_)
    assert prompt.startswith("<bos><|turn>user\nHello<turn|>\n<|turn>model\n")
    assert answer == "Hi there.<turn|>"


def test_a_marker_in_an_answer_is_learned_as_text(read, format_) -> None:
    data = read(chat("How does a turn end?", "With <turn|> or <|image|>."))
    answer, end = data.row(0).answer[:-1], data.row(0).answer[-1]
    assert format_.tokenizer.decode(answer) == "With <turn|> or <|image|>."
    assert format_.tokenizer.special_ids.isdisjoint(answer)
    assert end == format_.tokenizer.token_id("<turn|>")


def test_prompt_and_completion_are_the_short_form(read, format_) -> None:
    turns = chat("Hello", "Hi there.")["messages"]
    short = {"prompt": "Hello", "completion": "Hi there."}
    data = read({"messages": turns}, short, {"prompt": turns[:1], "completion": turns[1:]})
    assert written(data, format_, 0) == written(data, format_, 1) == written(data, format_, 2)


def test_thinking_is_on_exactly_for_answers_with_a_thought(read, format_) -> None:
    row = chat("Hello", "Hi.")
    row["messages"][1]["reasoning_content"] = "greet"
    data = read(row, chat("Hello", "Hi."), chat("Hello", "Hi.", thinking=True))
    prompts, answers = zip(*(written(data, format_, number) for number in range(3)), strict=True)
    assert ["<|think|>" in prompt for prompt in prompts] == [True, False, True]
    assert answers[0] == "<|channel>thought\ngreet\n<channel|>Hi.<turn|>" and answers[1] == "Hi.<turn|>"


def test_all_makes_a_row_of_every_assistant_turn(read, format_) -> None:
    messages = chat("One", "1")["messages"] + chat("Two", "2")["messages"]
    data = read({"messages": messages, "train": "all"}, {"messages": messages})
    assert [written(data, format_, number)[1] for number in range(len(data))] == ["1<turn|>", "2<turn|>", "2<turn|>"]
    assert data.row(1) == data.row(2)


def test_a_tool_call_ends_where_its_result_would_come(read, format_) -> None:
    question, call = {"role": "user", "content": "Time?"}, {"role": "assistant", "tool_calls": [CALL]}
    result = {"role": "tool", "tool_call_id": "c1", "content": "noon"}
    done = {"role": "assistant", "content": "It is noon."}
    data = read({"messages": [question, call, result, done], "tools": [TOOL], "train": "all"})
    assert written(data, format_, 0)[1].endswith("<|tool_response>") and "call:now" in written(data, format_, 0)[1]
    assert "noon" in written(data, format_, 1)[0] and written(data, format_, 1)[1] == "It is noon.<turn|>"


def test_images_come_from_beside_the_file_and_from_data_urls(read, format_, tmp_path) -> None:
    (tmp_path / "img").mkdir()
    (tmp_path / "img" / "1.png").write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    parts = [{"type": "image", "image": "img/1.png"}, {"type": "image_url", "image_url": {"url": url}}]
    row = read(chat([*parts, {"type": "text", "text": "Same?"}], "Yes.")).row(0)
    assert row.images == 2 and row.prompt.count(format_.config.image_token_id) == 32
    assert row.patches_INP is not None
    np.testing.assert_array_equal(*row.patches_INP)


def test_every_epoch_holds_every_row_in_an_order_of_its_own(read) -> None:
    data = read(*(chat("Say", str(number)) for number in range(10)))
    rows = [data.shuffled(index, seed=3).answer for index in range(20)]
    assert set(rows[:10]) == set(rows[10:]) == {data.row(number).answer for number in range(10)}
    assert rows[:10] != rows[10:]
    assert rows == [data.shuffled(index, seed=3).answer for index in range(20)]
    assert rows != [data.shuffled(index, seed=4).answer for index in range(20)]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ("[]", "wanted an object, found list"),
        ({"text": "x"}, "unknown key text"),
        ({"prompt": "x"}, "wanted either messages, or prompt and completion"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "messages[0].role must be one of"),
        ({"messages": [{"role": "user", "content": "x"}]}, "the last message must be the assistant's"),
        (chat("a", "b", train="first"), 'train must be "last" or "all"'),
        (chat("a", "b", thinking="yes"), "thinking must be true or false"),
        (chat("a", "b", tools={}), "tools must be a list"),
        (chat([{"type": "sound"}], "b"), "messages[0].content[0].type"),
        (chat([{"type": "image", "image": "no.png"}], "b"), "messages[0].content[0]: cannot read"),
        (chat([{"type": "image", "image": "chat.jsonl"}], "b"), "wanted a GIF, JPEG, PNG or WebP"),
        (chat([{"type": "image_url", "image_url": {"url": "https://x/y.png"}}], "b"), "nothing is downloaded"),
        (chat("a" * 300, "b"), "allowed are 256"),
        (chat("a", ""), "messages[1] is to be learned, but has neither content nor tool_calls"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": 5}]}, "must be a list"),
        ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0] has the unknown key mood"),
        ({"messages": [{"role": "assistant", "content": "x", "weight": 0}]}, "messages[0].weight must be 1, found 0"),
    ],
)
def test_a_row_that_cannot_be_used_is_refused_by_its_line(read, row, said: str) -> None:
    with pytest.raises(DataError, match=r"chat\.jsonl: 1 of 2 rows cannot be used") as refusal:
        read(chat("fine", "fine"), "", row)
    assert "- line 3: " in str(refusal.value) and said in str(refusal.value)


def test_all_bad_lines_are_told_at_once_but_no_more_than_twenty(read) -> None:
    with pytest.raises(DataError, match="25 of 26 rows") as refusal:
        read(chat("fine", "fine"), *["{"] * 25)
    assert str(refusal.value).count("- line") == 20 and str(refusal.value).endswith("- and 5 more")


def test_an_empty_file_is_refused(read) -> None:
    with pytest.raises(DataError, match="has no rows"):
        read("")


def test_batch_shapes_hold_every_row_with_little_padding() -> None:
    shapes = [RowShape(length, length // 50 + 1, 0) for length in range(20, 320)]
    buckets = sorted(choose_buckets(shapes, rows=4), key=lambda bucket: bucket.length)
    assert 1 < len(buckets) <= 4 and all(bucket.rows == 4 for bucket in buckets)
    chosen = [next(bucket for bucket in buckets if shape.length <= bucket.length) for shape in shapes]
    assert all(shape.blocks <= bucket.blocks for shape, bucket in zip(shapes, chosen, strict=True))
    assert sum(bucket.length for bucket in chosen) < 1.4 * sum(shape.length for shape in shapes)


def test_lengths_that_hardly_differ_share_one_shape() -> None:
    shapes = [RowShape(100, 1, 0), *[RowShape(length, 1, 0) for length in range(112, 120)]]
    assert [bucket.length for bucket in choose_buckets(shapes, rows=2)] == [128]


def test_rows_with_other_numbers_of_images_have_shapes_of_their_own() -> None:
    shapes = [RowShape(30, 1, images) for images in (0, 0, 1, 2)] + [RowShape(200, 1, 0)]
    found = {(bucket.length, bucket.images) for bucket in choose_buckets(shapes, rows=2)}
    assert found == {(32, 0), (208, 0), (32, 1), (32, 2)}


def test_pixels_are_not_kept_and_other_ones_are_other_data(read, format_, tmp_path: Path) -> None:
    image = {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}]}
    rows = [{"messages": [image, {"role": "assistant", "content": "Red."}]}, chat("Hello", "Hi.")]
    found = []
    for colour in ("red", "blue"):
        (tmp_path / "a.png").write_bytes(png(colour=colour))
        data = read(*rows)
        assert [row is None for row in data._rows] == [True, False]
        found.append(data.sha256())
    assert found[0] != found[1]
