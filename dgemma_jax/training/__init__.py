"""Training by block diffusion: clean sequences are read by the encoder pass, noisy canvases denoised against them.

The objective is that of the published fine-tuning recipes (google-deepmind/gemma's diffusion adapter, NeMo
Automodel, TRL): uniform corruption over the whole vocabulary, cross-entropy over all canvas tokens including the
end-of-sequence fill, next-token loss on the encoder pass, self-conditioning for half of the examples.
"""
