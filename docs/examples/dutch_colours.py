"""Data for the worked example: colours in Dutch. `python docs/examples/dutch_colours.py runs/dutch`

Writes train.jsonl, 200 rows, and eval.jsonl, 40 rows of the same colours in other wordings.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLOURS = {
    "red": "rood",
    "blue": "blauw",
    "green": "groen",
    "yellow": "geel",
    "black": "zwart",
    "white": "wit",
    "brown": "bruin",
    "grey": "grijs",
    "purple": "paars",
    "orange": "oranje",
}
TRAIN = (
    "What is {} in Dutch?",
    "What is the Dutch word for {}?",
    "Say {} in Dutch.",
    "Translate {} to Dutch.",
    "Translate the colour {} into Dutch.",
    "How do you say {} in Dutch?",
    "Tell me the Dutch word for {}.",
    "What do the Dutch call {}?",
    "{} in Dutch?",
    "Dutch for {}?",
    "Give me {} in Dutch.",
    "In Dutch, what is {}?",
    "Please translate {} to Dutch.",
    "What is the colour {} called in Dutch?",
    "Which Dutch word means {}?",
    "Do you know {} in Dutch?",
    "Can you say {} in Dutch?",
    "Name the colour {} in Dutch.",
    "I need the Dutch word for {}.",
    "what's {} in dutch",
)
EVAL = (
    "Please say {} in Dutch.",
    "How do I say {} in Dutch?",
    "Give me the Dutch word for {}.",
    "Please tell me what {} is in Dutch.",
)


def rows(wordings: tuple[str, ...]) -> list[dict[str, str]]:
    """Every colour in every wording."""
    return [
        {"prompt": wording.format(english), "completion": f"{english.capitalize()} is {dutch} in Dutch."}
        for wording in wordings
        for english, dutch in COLOURS.items()
    ]


def main(folder: Path) -> None:
    """Writes the two files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, wordings in (("train.jsonl", TRAIN), ("eval.jsonl", EVAL)):
        lines = "".join(json.dumps(row) + "\n" for row in rows(wordings))
        (folder / name).write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
