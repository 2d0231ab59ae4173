"""Who may attend to whom. The one place that knows.

Prompt and committed tokens (encoder): causal; in sliding layers at most `window` keys including the token
itself; the soft tokens of one image see each other in both directions, in both kinds of layer and beyond the
window. Canvas tokens (decoder): every canvas token, and of the prefix all tokens in full layers, the last
`window - 1` in sliding layers, the same for every row of the canvas (the window is anchored at the block).

Masks are [B, T, S] booleans, True where the query may see the key. A key position of -1 is an empty cache slot.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dgemma_jax.config import FULL, SLIDING, LayerType
from dgemma_jax.model.text import Masks


def encoder_past(key_position_BS: jax.Array, position_BT: jax.Array, window: int | None) -> jax.Array:
    """Prompt tokens over the cache, which holds only earlier tokens."""
    keys_B1S, queries_BT1 = key_position_BS[:, None], position_BT[..., None]
    visible = jnp.broadcast_to(keys_B1S >= 0, (*position_BT.shape, key_position_BS.shape[1]))
    return visible if window is None else visible & (keys_B1S > queries_BT1 - window)


def encoder_self(T: int, image_block_BT: jax.Array | None, window: int | None) -> jax.Array:
    """Prompt tokens among themselves. `image_block_BT` numbers the image of each soft token, -1 elsewhere."""
    query_T1, key_1T = jnp.arange(T)[:, None], jnp.arange(T)[None]
    visible_TT = key_1T <= query_T1
    if window is not None:
        visible_TT &= key_1T > query_T1 - window
    if image_block_BT is None:
        return visible_TT[None]
    same_image_BTT = (image_block_BT[:, :, None] == image_block_BT[:, None]) & (image_block_BT >= 0)[:, None]
    return visible_TT[None] | same_image_BTT


def canvas_past(key_position_BS: jax.Array, start_B: jax.Array, window: int | None) -> jax.Array:
    """Canvas tokens over the cache; `start_B` is the canvas's first position. [B, 1, S]: the same for all rows."""
    visible_BS = key_position_BS >= 0
    if window is not None:
        visible_BS &= key_position_BS > start_B[:, None] - window
    return visible_BS[:, None]


def filled(key_position_BS: jax.Array) -> jax.Array:
    """Slots that hold a key in the fullest row. They are the first: a ring fills from slot 0 on, then stays full."""
    return jnp.max(jnp.sum(key_position_BS >= 0, axis=1))


def image_blocks(is_soft_BT: jax.Array) -> jax.Array:
    """Numbers runs of soft tokens 0, 1, ... in each row; -1 for every other token."""
    starts_BT = is_soft_BT & ~jnp.pad(is_soft_BT, ((0, 0), (1, 0)))[:, :-1]
    return jnp.where(is_soft_BT, jnp.cumsum(starts_BT, axis=1) - 1, -1)


def encoder_masks(
    key_positions: dict[LayerType, jax.Array] | None,
    position_BT: jax.Array,
    image_block_BT: jax.Array | None,
    window: int,
) -> dict[LayerType, Masks]:
    """Masks of a prefill or commit pass; `key_positions` None where nothing is cached yet."""

    def masks(kind: LayerType, limit: int | None) -> Masks:
        among = encoder_self(position_BT.shape[1], image_block_BT, limit)
        if key_positions is None:
            return Masks(None, among)
        where_BS = key_positions[kind]
        return Masks(encoder_past(where_BS, position_BT, limit), among, filled(where_BS))

    limits: dict[LayerType, int | None] = {SLIDING: window, FULL: None}
    return {kind: masks(kind, limits[kind]) for kind in (limits if key_positions is None else key_positions)}


def canvas_masks(key_positions: dict[LayerType, jax.Array], start_B: jax.Array, window: int) -> dict[LayerType, Masks]:
    """Masks of a denoising step."""
    limits: dict[LayerType, int | None] = {SLIDING: window, FULL: None}
    return {
        kind: Masks(canvas_past(where_BS, start_B, limits[kind]), None, filled(where_BS))
        for kind, where_BS in key_positions.items()
    }


def block_diffusion_masks(
    prefix_B: jax.Array, block_R: jax.Array, copy_R: jax.Array, canvas_length: int, S: int, window: int
) -> dict[LayerType, Masks]:
    """Masks for training on all canvases of a sequence in one pass.

    The queries are R noisy tokens; `block_R` says which canvas each belongs to, `copy_R` which noise copy of it.
    The past is the S clean tokens of prompt and answer. Each canvas sees, as when it is generated, the clean
    tokens strictly before it (the last `window - 1` in sliding layers) and itself; no other canvas and no other
    copy.
    """
    end_BR1 = (prefix_B[:, None] + block_R[None] * canvas_length)[..., None]
    key_11S = jnp.arange(S)[None, None]
    before_BRS = key_11S < end_BR1
    own_1RR = ((block_R[:, None] == block_R[None]) & (copy_R[:, None] == copy_R[None]))[None]
    return {
        SLIDING: Masks(before_BRS & (key_11S > end_BR1 - window), own_1RR),
        FULL: Masks(before_BRS, own_1RR),
    }
