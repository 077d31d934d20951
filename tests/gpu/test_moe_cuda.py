"""`moe` and `route` on a GPU: fresh inputs, poisoned memory, sizes of models, judged against float64.

The kernels are imported by the tests: where there is no GPU, they run in Triton's interpreter elsewhere.
"""

from typing import Any

import pytest
import torch

from headway_kernels import reference
from moe_checks import check_moe, check_route, in_float64, moe_inputs, poisoned_memory

pytestmark = pytest.mark.gpu
GPU: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
QWEN3 = {"num_experts": 128, "top_k": 8, "hidden": 2048, "mlp_size": 768}
MIXTRAL = {"num_experts": 8, "top_k": 2, "hidden": 4096, "mlp_size": 14336}
GPT_OSS = {"num_experts": 32, "top_k": 4, "hidden": 2880, "mlp_size": 2880, "biased": True}
SMALL = {"num_experts": 16, "top_k": 4, "hidden": 512, "mlp_size": 256, "biased": True}


def moe(num_tokens: int, **options: Any) -> None:
    from headway_kernels.gpu import moe

    torch.manual_seed(num_tokens)
    check_moe(moe, num_tokens, **GPU | options)


@pytest.mark.parametrize("num_tokens", [1, 16, 600])
def test_qwen3_moe(num_tokens: int) -> None:
    moe(num_tokens, **QWEN3)


@pytest.mark.parametrize("num_tokens", [2, 200])
def test_mixtral(num_tokens: int) -> None:
    moe(num_tokens, **MIXTRAL)


@pytest.mark.parametrize("num_tokens", [60, 300])
def test_gpt_oss_has_biases(num_tokens: int) -> None:
    moe(num_tokens, **GPT_OSS)


@pytest.mark.parametrize(("mlp_size", "spare"), [(411, 0), (412, 0), (408, 8), (256, 1)])
@pytest.mark.parametrize("num_tokens", [3, 700])
def test_a_ranks_share_may_be_of_any_size(num_tokens: int, mlp_size: int, spare: int) -> None:
    moe(num_tokens, **SMALL | {"mlp_size": mlp_size}, spare=spare)


@pytest.mark.parametrize("num_tokens", [5, 700])
def test_the_hidden_size_may_be_odd(num_tokens: int) -> None:
    moe(num_tokens, **SMALL | {"hidden": 77}, spare=1)


@pytest.mark.parametrize("num_tokens", [3, 700])
def test_float16(num_tokens: int) -> None:
    moe(num_tokens, **SMALL, dtype=torch.float16)


@pytest.mark.parametrize("num_tokens", [40, 3000])
def test_all_tokens_may_choose_the_same_experts(num_tokens: int) -> None:
    moe(num_tokens, **SMALL, popular=4)


def test_results_by_pair_may_be_more_than_the_cache_holds() -> None:
    moe(5000, **SMALL)


def test_float32_stays_float32() -> None:
    """Sums of 512 products in turn: an error of 1e-6 is to be expected, and tf32 would make one of 1e-3."""
    from headway_kernels.gpu import moe

    torch.manual_seed(0)
    x_TH, others = moe_inputs(100, **SMALL, device="cuda")
    with poisoned_memory():
        found = moe(x_TH, **others)
    exact = reference.moe(x_TH.double(), **in_float64(others))
    assert float((found - exact).norm() / exact.norm()) < 5e-6


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(
    ("num_experts", "top_k", "dtype"),
    [
        (8, 2, torch.bfloat16),
        (60, 4, torch.float16),
        (128, 8, torch.bfloat16),
        (128, 8, torch.float32),
        (512, 16, torch.bfloat16),
    ],
)
def test_route(num_experts: int, top_k: int, dtype: torch.dtype, renormalise: bool) -> None:
    from headway_kernels.gpu import route

    torch.manual_seed(top_k)
    for num_tokens in (1, 4096):
        logits_TE = (3 * torch.randn(num_tokens, num_experts, device="cuda")).to(dtype)
        check_route(route, logits_TE, top_k=top_k, renormalise=renormalise)


def test_experts_exist_and_differ_whatever_the_logits_are() -> None:
    from headway_kernels.gpu import route

    logits_TE = torch.randn(4, 128, device="cuda")
    logits_TE[0], logits_TE[1], logits_TE[2] = torch.nan, torch.inf, -torch.inf
    _, experts_TK = route(logits_TE, top_k=8, renormalise=True)
    for row in experts_TK.tolist():
        assert len(set(row)) == 8
        assert 0 <= min(row) <= max(row) < 128


@pytest.mark.parametrize("num_tokens", [4, 200])
def test_a_captured_layer_follows_the_routing(num_tokens: int) -> None:
    from headway_kernels.gpu import moe, route

    torch.manual_seed(0)
    x_TH, others = moe_inputs(num_tokens, **SMALL, **GPU)
    logits_TE = torch.randn(num_tokens, 16, device="cuda")

    def layer() -> torch.Tensor:
        weights_TK, experts_TK = route(logits_TE, top_k=4, renormalise=True)
        return moe(x_TH, **others | {"weights_TK": weights_TK, "experts_TK": experts_TK})

    layer()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out_TH = layer()
    for favourite in (None, 3, 15):
        logits_TE.copy_(torch.randn(num_tokens, 16))
        if favourite is not None:
            logits_TE[:, favourite] += 20
        out_TH.fill_(torch.nan)
        graph.replay()
        assert torch.equal(out_TH, layer())
