"""How near is equal: the one table. A line says why it is not smaller; no line is ever widened."""

# float32 against transformers. Logits reach 20, where float32 steps by 2e-6; the sums of all layers in another order
# make 4e-5 of it at most, on all cases. The reference itself is as far from float64 (`noise` in the goldens).
LOGITS = 1e-4

# Normed numbers of order 1, several layers deep: 2.7e-5 at most.
KEY_VALUES = 5e-5
SOFT_TOKENS = 5e-5

# Our own float32 against itself where only the order of sums changes: another padding, chunk or slot.
REORDERED = 5e-5

# One function on numbers of order 1: a few roundings of 6e-8.
ROUNDING = 1e-5

# bfloat16 against bfloat16: 8 bits each, rounded at different places, move a logit of standard deviation 4 by 0.02 to
# 0.1 in the median. Not the maximum: one rounding in the router changes an expert, and a whole row by several units.
BFLOAT16_MEDIAN = 0.15
# Ours may be no further from float32 than this many times the reference's own distance (median to median).
BFLOAT16_RATIO = 2.0
