"""The operations of a decoder over a paged KV cache: their meaning in PyTorch, and Triton kernels for GPUs.

What a decoder and a sampler call is in `reference` and in `gpu`, and they are handed one of the two.
"""
