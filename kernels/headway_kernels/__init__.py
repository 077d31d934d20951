"""The operations of a decoder over a paged KV cache: their meaning in PyTorch, and Triton kernels for GPUs.

`reference` and `gpu` have the same functions; whoever computes is handed one of the two.
"""
