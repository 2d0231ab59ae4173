"""Where the shipped files lie."""

from pathlib import Path

DEMO = Path(__file__).parent.parent / "checkpoints" / "demo"
