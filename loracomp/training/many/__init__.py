"""Many adapters at once: one frozen base, one batch in which each sample belongs to one adapter.

The denoiser runs once for the samples of all adapters. Where a single run adds its update to a layer,
this adds to each sample the update of its own adapter, by one batched product over stacked factors
(after Punica, arXiv:2310.18547, and mLoRA, arXiv:2312.02515, which do it for language models). Each result
is that of a run alone with the same data and seed.
"""
