"""What attention and sampling compute, in plain PyTorch. Triton kernels will stand here beside it."""
