"""Names of people: a list of common ones, and made-up ones of mostly two syllables, split into train and test.

Made-up names teach copying: no list of names can be learned by heart when most names are new.
"""

from random import Random

from dgemma_jax.training.demo.example import Split
from dgemma_jax.training.demo.wording import held_out

_TRAIN = """Ada Adam Ahmed Alan Alex Alice Amir Amy Ana Andrew Anna Ben Bob Carl Carlos Chen Clara David Diana Eddie
    Elena Emil Emma Eric Eva Felix Fiona Frank Fred George Grace Hana Hans Henry Ian Ines Ivan Jack James Jane Jan
    Jim Joe John Jonas Julia Kai Karl Kate Kim Lars Laura Lea Leo Linda Lisa Lucy Luis Maria Mark Marta Mary Max Mia
    Mike Mina Nadia Nick Nina Noah Nora Olga Omar Oscar Paul Peter Petra Rune Rosa Sam Sara Sofia Steve Susan Tim
    Tom Vera Victor Wei Yuki Zoe"""
_TEST = "Agnes Boris Cora Denis Elsa Greta Hugo Irma Jakob Lena Milo Otto Pia Ralf Selma Tara Uma"
TRAIN_NAMES = tuple(_TRAIN.split())
TEST_NAMES = tuple(_TEST.split())

_ONSETS = ("b", "d", "f", "g", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z", "br", "tr", "st", "ch")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "", "n", "r", "l", "s", "m")


def _made_up(rng: Random) -> str:
    syllables = 3 if rng.random() < 0.2 else 2
    letters = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return (letters + rng.choice(_CODAS)).capitalize()


def draw_name(rng: Random, split: Split) -> str:
    """A name of the split: half from the list, half made up; sometimes typed in lower case."""
    if rng.random() < 0.5:
        name = rng.choice(TRAIN_NAMES if split == "train" else TEST_NAMES)
    else:
        name = _made_up(rng)
        while name in TRAIN_NAMES or name in TEST_NAMES or held_out(f"name {name}", 10) != (split == "test"):
            name = _made_up(rng)
    return name.lower() if rng.random() < 0.04 else name
