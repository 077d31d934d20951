"""Calls that must not wait for a GPU."""

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def without_waiting(call: Callable[[], Result]) -> Result:
    """What `call` returns; RuntimeError if it synchronises with the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            return call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
