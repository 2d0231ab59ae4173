"""What `quantization_config` of a config.json may say: FP8 as compressed-tensors publishes it, and nothing else.

It is only checked here: which matrices are FP8, the files themselves say (`checkpoint.compressed`). Activations keep
their type, whatever the file says of them: rounding them too makes a published checkpoint run faster, not better.
"""

from __future__ import annotations

from dgemma_jax.strict_json import Fixed, StrictObject

_METHOD = "compressed-tensors"
_ROOT: Fixed = {
    "format": (("float-quantized",), "8-bit floats are the only compressed weights that are read"),
    "quantization_status": (("compressed",), "the weights must be stored in 8 bits"),
    "kv_cache_scheme": ((None,), "the cache keeps the activations' type"),
    "sparsity_config": ((None, {}), "sparse weights are not read"),
    "transform_config": ((None, {}), "rotated weights are not read"),
}
_GROUP: Fixed = {
    "format": ((None, "float-quantized"), "8-bit floats are the only compressed weights that are read"),
    "output_activations": ((None,), "activations keep their type"),
}
_WEIGHTS: Fixed = {
    "num_bits": ((8,), "8-bit floats are the only compressed weights that are read"),
    "type": (("float",), "8-bit floats are the only compressed weights that are read"),
    "strategy": (("channel",), "each output channel has one scale"),
    "symmetric": ((True,), "there are no zero points"),
    "dynamic": ((False,), "scales are stored"),
    "group_size": ((None,), "each output channel has one scale"),
    "block_structure": ((None,), "each output channel has one scale"),
}
_REQUIRED = ("num_bits", "type", "strategy")
_HARMLESS = frozenset({"ignore", "global_compression_ratio", "version", "targets", "input_activations"})
_HARMLESS_WEIGHTS = frozenset({"actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype"})


def check_quantization(root: StrictObject) -> None:
    """Notes every setting of `quantization_config` that this library would compute otherwise."""
    if not root.has("quantization_config"):
        return
    scheme = root.child("quantization_config")
    scheme.asked.add("quant_method")
    if scheme.values.get("quant_method") != _METHOD:
        found = scheme.values.get("quant_method")
        root.problem("quantization_config.quant_method", f'wanted "{_METHOD}" with FP8 weights, found {found!r}')
        return
    scheme.fixed(_ROOT)
    groups = scheme.child("config_groups")
    for name in groups.values:
        group = groups.child(name)
        group.fixed(_GROUP)
        weights = group.child("weights")
        for key in _REQUIRED:
            if key not in weights.values:
                weights.problem(key, "missing")
        weights.fixed(_WEIGHTS)
        weights.finish(_HARMLESS_WEIGHTS)
        group.finish(_HARMLESS)
    scheme.finish(_HARMLESS)
