"""ALiBi's slopes equal those of the families that use them."""

import pytest
import torch
from transformers.models.bloom.modeling_bloom import _get_alibi_slopes
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from headway.model.families.alibi import alibi_slopes


@pytest.mark.parametrize("num_heads", [1, 2, 3, 5, 7, 8, 12, 32, 40, 71, 112])
def test_slopes_equal_those_of_transformers_for_any_number_of_heads(num_heads: int) -> None:
    ours = torch.tensor(alibi_slopes(num_heads))
    torch.testing.assert_close(ours, _get_alibi_slopes(num_heads, torch.device("cpu")))
    torch.testing.assert_close(ours, -build_mpt_alibi_tensor(num_heads, 2)[:, 0, 0])


def test_the_largest_bias_is_a_parameter() -> None:
    theirs = -build_mpt_alibi_tensor(6, 2, alibi_bias_max=4)[:, 0, 0]
    torch.testing.assert_close(torch.tensor(alibi_slopes(6, max_bias=4)), theirs)
