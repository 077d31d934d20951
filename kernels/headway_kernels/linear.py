"""A linear layer on a GPU: `gemv` where reading the weight takes the time, cuBLAS elsewhere."""

from torch import Tensor

from headway_kernels import reference
from headway_kernels.gemv import gemv
from headway_kernels.tiles_matmul import worth_gemv


def linear(
    x_TH: Tensor, weight_OH: Tensor, bias_O: Tensor | None = None, residual_TO: Tensor | None = None
) -> Tensor:
    """As `reference.linear`. Which of the two computes it depends on shapes, dtype and layout alone."""
    num_outputs, num_inputs = weight_OH.shape
    dense = weight_OH.stride(1) == 1 and x_TH.stride(1) == 1
    if dense and worth_gemv(len(x_TH), num_outputs, num_inputs, x_TH.dtype):
        return gemv(x_TH, weight_OH, bias_O, residual_TO)
    return reference.linear(x_TH, weight_OH, bias_O, residual_TO)
