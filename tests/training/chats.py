"""Rows of data files, as the tests write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A row of a data file."""
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


def write_rows(file: Path, rows: list[Any]) -> Path:
    """A data file; text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file
