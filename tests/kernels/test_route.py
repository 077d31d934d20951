"""`route` in Triton's interpreter: order, ties, weights, odd numbers of experts, rows that make no sense."""

import pytest
import torch

pytest.importorskip("triton")

from headway_kernels import reference
from headway_kernels.route import route
from moe_checks import check_route


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("renormalise", [False, True])
@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (5, 5), (8, 2), (33, 4), (128, 8), (512, 16)])
def test_the_likeliest_are_chosen(num_experts: int, top_k: int, renormalise: bool) -> None:
    check_route(route, 4 * torch.randn(3, num_experts), top_k=top_k, renormalise=renormalise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_logits_of_16_bits_have_weights_of_32(dtype: torch.dtype) -> None:
    check_route(route, torch.randn(9, 60).to(dtype), top_k=4, renormalise=False)


@pytest.mark.parametrize("renormalise", [False, True])
def test_the_lower_of_two_equal_experts_comes_first(renormalise: bool) -> None:
    logits_TE = torch.randint(-2, 3, (8, 20)).float()
    logits_TE[0] = 0.0
    logits_TE[1, ::2] = -0.0
    check_route(route, logits_TE, top_k=7, renormalise=renormalise)


@pytest.mark.parametrize("scale", [1e-30, 80.0, 1e30])
def test_logits_may_be_tiny_or_huge(scale: float) -> None:
    check_route(route, scale * torch.randn(4, 16), top_k=4, renormalise=False)


def test_experts_of_minus_infinity_come_last_and_weigh_nothing() -> None:
    logits_TE = torch.full((1, 6), -torch.inf)
    logits_TE[0, 3] = 1.0
    weights_TK, experts_TK = route(logits_TE, top_k=3, renormalise=True)
    assert experts_TK.tolist() == [[3, 0, 1]]
    assert weights_TK.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of infinity minus infinity
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_whatever_a_row_holds_its_experts_exist_and_differ(value: float) -> None:
    logits_TE = torch.randn(2, 5)
    logits_TE[0] = value
    weights_TK, experts_TK = route(logits_TE, top_k=5, renormalise=False)
    assert sorted(experts_TK[0].tolist()) == list(range(5))
    assert bool(weights_TK[0].isnan().all())
    assert bool(weights_TK[1].isfinite().all())


@pytest.mark.parametrize("renormalise", [False, True])
def test_one_nan_makes_a_tokens_weights_nan(renormalise: bool) -> None:
    logits_TE = torch.randn(1, 9)
    logits_TE[0, 4] = -torch.nan
    weights_TK, _ = route(logits_TE, top_k=2, renormalise=renormalise)
    assert bool(weights_TK.isnan().all())


def test_renormalised_weights_are_a_softmax_over_the_chosen() -> None:
    logits_TE = torch.randn(5, 12)
    weights_TK, experts_TK = route(logits_TE, top_k=4, renormalise=True)
    torch.testing.assert_close(weights_TK, logits_TE.gather(1, experts_TK).softmax(-1))
    torch.testing.assert_close(
        (weights_TK, experts_TK), reference.route(logits_TE, top_k=4, renormalise=True)
    )


def test_rows_may_be_apart_and_results_given() -> None:
    wide = torch.full((3, 11), torch.nan)
    wide[:, :7] = torch.randn(3, 7)
    weights_TK, experts_TK = torch.full((3, 2), torch.nan), torch.full((3, 2), -1)
    found = route(wide[:, :7], top_k=2, renormalise=False, weights_TK=weights_TK, experts_TK=experts_TK)
    assert found[0] is weights_TK
    assert found[1] is experts_TK
    torch.testing.assert_close(found, reference.route(wide[:, :7], top_k=2, renormalise=False))


def test_no_tokens_have_no_experts() -> None:
    weights_TK, experts_TK = route(torch.zeros(0, 8), top_k=2, renormalise=True)
    assert (weights_TK.shape, experts_TK.shape) == ((0, 2), (0, 2))


def test_what_does_not_fit_is_named() -> None:
    logits = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="route: top_k must be from 1 to 4 experts, got 5"):
        route(logits, top_k=5, renormalise=True)
    with pytest.raises(ValueError, match=r"route: logits must be .* got torch.float64 \[2, 4\]"):
        route(logits.double(), top_k=2, renormalise=True)
    with pytest.raises(ValueError, match=r"route: logits must be .* strides \[1, 2\]"):
        route(torch.zeros(4, 2).mT, top_k=2, renormalise=True)
    with pytest.raises(ValueError, match=r"route: experts must be contiguous torch.int64 \[2, 2\]"):
        route(logits, top_k=2, renormalise=True, experts_TK=torch.zeros(2, 2, dtype=torch.int32))
