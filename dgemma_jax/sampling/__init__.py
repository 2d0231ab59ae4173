"""The sampler, cut at its joints: schedule, head, acceptance, stopping, and the loop over denoising steps.

Source: transformers' `generation_diffusion_gemma.py` and "Accelerated sampling from masked diffusion models via
entropy bounded unmasking" (arXiv 2505.24857).
"""
