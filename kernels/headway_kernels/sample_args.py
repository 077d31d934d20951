"""Checks of arguments that the sampling kernels share."""

import torch
from torch import Tensor

from headway_kernels.launch import DTYPES, mismatch


def check_logits(op: str, logits_SV: Tensor) -> None:
    """Raise ValueError unless the logits are rows, dense, of a float type that the kernels take."""
    if (
        logits_SV.ndim != 2
        or logits_SV.dtype not in DTYPES
        or (logits_SV.shape[1] and logits_SV.stride(1) != 1)
    ):
        raise mismatch(
            op, "logits", "[rows, vocabulary] in a 16- or 32-bit float, vocabulary dense", logits_SV
        )


def check_column(
    op: str, name: str, values_X1: Tensor, num_rows: int, dtype: torch.dtype, like: Tensor
) -> None:
    """Raise ValueError unless there is one value a row: [rows, 1], any stride."""
    if values_X1.shape != (num_rows, 1) or values_X1.dtype != dtype or values_X1.device != like.device:
        raise mismatch(op, name, f"{dtype} [{num_rows}, 1] on {like.device}", values_X1)


def check_vector(op: str, name: str, values_X: Tensor, num_rows: int, like: Tensor) -> None:
    """Raise ValueError unless there is one int64 a row, dense."""
    fits = values_X.shape == (num_rows,) and values_X.dtype == torch.int64 and values_X.is_contiguous()
    if not fits or values_X.device != like.device:
        raise mismatch(op, name, f"int64 [{num_rows}] on {like.device}, dense", values_X)


def check_table(op: str, name: str, table_RV: Tensor, dtype: torch.dtype, like_SV: Tensor) -> None:
    """Raise ValueError unless it is a table over the vocabulary of `like_SV`, dense along it."""
    fits = table_RV.ndim == 2 and table_RV.shape[1] == like_SV.shape[1] and table_RV.stride(1) == 1
    if not fits or table_RV.dtype != dtype or table_RV.device != like_SV.device:
        raise mismatch(op, name, f"{dtype} [rows, {like_SV.shape[1]}] on {like_SV.device}", table_RV)
