"""Names of people: a list of common ones, and made-up ones of mostly two syllables, split into train and test.

Made-up names teach copying: no list of names can be learned by heart when most names are new. Some of those that
training draws have syllables of many more kinds than those of the test.
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

_ANY_ONSET = """b c d f g h j k l m n p q r s t v w x y z bl br ch cl cr dr fl fr gh gl gr kn ph pl pr qu sc sh sk sl
    sm sn sp st str sw th tr tw wh wr zh"""
_ANY_VOWEL = "a a e e i i o o u u ai au ay ea ee ei eu ia ie io oa oo ou ua ue ui"
_ANY_CODA = "b ck d f g h k l ll lt m mp n nd ng nk nt p r rd rk rn rt s sh sk ss st t th v x y z zz"
_WILD_ONSETS, _WILD_VOWELS, _WILD_CODAS = (tuple(parts.split()) for parts in (_ANY_ONSET, _ANY_VOWEL, _ANY_CODA))


def _made_up(rng: Random) -> str:
    syllables = 3 if rng.random() < 0.2 else 2
    letters = "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables))
    return (letters + rng.choice(_CODAS)).capitalize()


def _wild(rng: Random) -> str:
    return wild_word(rng).capitalize()


def wild_word(rng: Random) -> str:
    """Two or three syllables of almost any kind, in lower case, of at most eight letters; it may begin with a vowel."""
    word = _wild_syllable(rng, "" if rng.random() < 0.25 else rng.choice(_WILD_ONSETS))
    for _ in range(1 if rng.random() < 0.7 else 2):
        word += _wild_syllable(rng, rng.choice(_WILD_ONSETS))
    return word if len(word) <= 8 else wild_word(rng)


def _wild_syllable(rng: Random, onset: str) -> str:
    return onset + rng.choice(_WILD_VOWELS) + (rng.choice(_WILD_CODAS) if rng.random() < 0.35 else "")


def draw_name(rng: Random, split: Split) -> str:
    """A name of the split: half from the list, half made up, in training some of them wild; some in lower case."""
    if rng.random() < 0.5:
        name = rng.choice(TRAIN_NAMES if split == "train" else TEST_NAMES)
    else:
        make = _wild if split == "train" and rng.random() < 0.4 else _made_up
        name = make(rng)
        while name in TRAIN_NAMES or name in TEST_NAMES or held_out(f"name {name}", 10) != (split == "test"):
            name = make(rng)
    return name.lower() if rng.random() < 0.04 else name
