"""All experts as two dense products: every token through every expert, unchosen ones weighted zero.

No control flow, differentiable; E/X times the useful arithmetic. The plain twin of the other backends, and the quickest
where there are few experts.

On a CPU products of bfloat16 read the weights as they lie: XLA's CPU backend would turn all of `down` around first, in
some versions widen all weights too, and is then slow at what lies between the products. In float32 turning costs little
and the plain products are quicker, as they are for training together with their gradients.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dgemma_jax.model.mlp import gelu
from dgemma_jax.model.parameter import einsum
from dgemma_jax.model.quantized import Quantized
from dgemma_jax.model.router import Routing

ExpertProduct = Callable[[jax.Array, jax.Array], jax.Array]


def all_experts(x_AD: jax.Array, routing: Routing, gate_up_EFD: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """Weighted sum over the chosen experts of each token: [A, D]. Gate rows come first in `gate_up_EFD`."""
    (A, D), E = x_AD.shape, gate_up_EFD.shape[0]
    weight_AE = jnp.zeros((A, E), jnp.float32).at[jnp.arange(A)[:, None], routing.expert_AX].set(routing.weight_AX)
    if isinstance(gate_up_EFD, Quantized) and isinstance(down_EDF, Quantized):
        return _one_by_one(x_AD, weight_AE, gate_up_EFD, down_EDF)
    plain = x_AD.dtype != jnp.bfloat16 or jax.default_backend() != "cpu"
    made, summed = (made_plainly, summed_plainly) if plain else (made_where_it_lies, summed_where_it_lies)
    # A plain matrix product: XLA's CPU backend sums products over two axes in another order for few rows than for many,
    # and a canvas must not notice that others are in the batch.
    gate_up_AEF = made(x_AD, gate_up_EFD.reshape(-1, D)).reshape(A, E, -1)
    gate_AEF, up_AEF = jnp.split(gate_up_AEF, 2, axis=-1)
    hidden_AEF = (gelu(gate_AEF) * up_AEF).astype(jnp.float32) * weight_AE[..., None]
    return summed(hidden_AEF.astype(x_AD.dtype), down_EDF)


def made_plainly(x_AD: jax.Array, weight_YD: jax.Array) -> jax.Array:
    """What the outputs of all experts make of each token: [A, Y]."""
    return einsum("ad,yd->ay", x_AD, weight_YD)


def summed_plainly(hidden_AEF: jax.Array, down_EDF: jax.Array) -> jax.Array:
    """The way back down, summed over the experts: [A, D]."""
    down_DY = jnp.swapaxes(down_EDF, 0, 1).reshape(down_EDF.shape[1], -1)
    return einsum("ay,dy->ad", hidden_AEF.reshape(len(hidden_AEF), -1), down_DY)


def _or_where_differentiated(quick: ExpertProduct, plain: ExpertProduct) -> ExpertProduct:
    """`quick`; where gradients are taken `plain`, which is equal to it but for the order of sums."""
    function = jax.custom_vjp(quick)
    function.defvjp(functools.partial(jax.vjp, plain), lambda back, change: back(change))
    return function


# Products whose result is float32: for those XLA's CPU backend reads bfloat16 as it lies.
def _made(x_AD: jax.Array, weight_YD: jax.Array) -> jax.Array:
    return jnp.einsum("ad,yd->ay", x_AD, weight_YD, preferred_element_type=jnp.float32).astype(x_AD.dtype)


def _summed(hidden_AEF: jax.Array, down_EDF: jax.Array) -> jax.Array:
    y_EAD = jnp.einsum("aef,edf->ead", hidden_AEF, down_EDF, preferred_element_type=jnp.float32)
    # The product comes to an end first, and the sum is written out: both as one are up to three times slower.
    y_EAD = jax.lax.optimization_barrier(y_EAD)
    return sum((y_EAD[expert] for expert in range(1, len(y_EAD))), start=y_EAD[0]).astype(hidden_AEF.dtype)


made_where_it_lies = _or_where_differentiated(_made, made_plainly)
summed_where_it_lies = _or_where_differentiated(_summed, summed_plainly)


def _one_by_one(x_AD: jax.Array, weight_AE: jax.Array, gate_up_EFD: Quantized, down_EDF: Quantized) -> jax.Array:
    """The same for quantised weights, of which one expert's at a time are widened."""

    def add(y_AD: jax.Array, expert: tuple[jax.Array, Quantized, Quantized]) -> tuple[jax.Array, None]:
        weight_A, gate_up_FD, down_DF = expert
        gate_AF, up_AF = jnp.split(einsum("ad,fd->af", x_AD, gate_up_FD), 2, axis=-1)
        out_AD = einsum("af,df->ad", gelu(gate_AF) * up_AF, down_DF)
        return y_AD + out_AD.astype(jnp.float32) * weight_A[:, None], None

    start_AD = jnp.zeros(x_AD.shape, jnp.float32)
    return jax.lax.scan(add, start_AD, (weight_AE.T, gate_up_EFD, down_EDF))[0].astype(x_AD.dtype)
