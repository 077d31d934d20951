"""Kernels in Triton's interpreter, and checkpoints that many tests share, each made once a session.

transformers is imported by the fixtures alone: tests that need none also run where it is not installed.
"""

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from checkpoints import Oracle


def pytest_configure(config: pytest.Config) -> None:
    """Without a GPU kernels run in Triton's interpreter. It must be asked for before anything, such as
    transformers, imports triton, whose own functions are compiled or interpreted from then on.
    """
    if config.option.markexpr != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"


settings.register_profile("here", deadline=None)  # a busy machine may take long over an example
settings.load_profile("here")


@pytest.fixture(scope="session")
def gqa(tmp_path_factory: pytest.TempPathFactory) -> "Oracle":
    """14 query heads and 2 KV heads, the head untied."""
    from checkpoints import GQA, save_llama

    return save_llama(tmp_path_factory.mktemp("gqa"), **GQA)


@pytest.fixture(scope="session")
def mha(tmp_path_factory: pytest.TempPathFactory) -> "Oracle":
    """7 query and 7 KV heads, the head tied, biases everywhere."""
    from checkpoints import MHA_TIED_BIASED, save_llama

    return save_llama(tmp_path_factory.mktemp("mha"), **MHA_TIED_BIASED)
