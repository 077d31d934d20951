"""Writing keys and values, with norm and rotation, in Triton's interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from headway_kernels import reference
from headway_kernels.kv_write import kv_write
from kv_write_checks import EPS, check_kv_write, cos_sin

NORMS = [None, torch.float16, torch.float32]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [None, 2, 24, 64])
def test_every_rotation_with_and_without_a_norm(
    rotated: int | None, interleaved: bool, norm: torch.dtype | None
) -> None:
    check_kv_write(kv_write, 3, (5, 2), 64, rotated, interleaved=interleaved, norm=norm, dtype=torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("head_dim", "rotated"), [(6, 6), (7, 2), (33, 32), (80, 80), (96, 24), (128, 128), (192, 192), (256, 64)]
)
def test_every_head_size(head_dim: int, rotated: int, dtype: torch.dtype) -> None:
    check_kv_write(kv_write, 2, (3, 1), head_dim, rotated, norm=dtype, dtype=dtype)
    check_kv_write(kv_write, 2, (3, 1), head_dim, rotated, interleaved=True, dtype=dtype)


@pytest.mark.parametrize("heads", [(1, 1), (7, 7), (14, 2), (71, 1)], ids=str)
def test_any_number_of_heads(heads: tuple[int, int]) -> None:
    check_kv_write(kv_write, 2, heads, 64, 64, norm=torch.float32, dtype=torch.float16)


@pytest.mark.parametrize("page_size", [1, 5, 16])
@pytest.mark.parametrize("num_tokens", [0, 1, 19])
def test_any_number_of_tokens_goes_to_pages_of_any_size(num_tokens: int, page_size: int) -> None:
    check_kv_write(kv_write, num_tokens, (4, 2), 16, 16, page_size=page_size)


def run(q: Tensor, k: Tensor, v: Tensor, **norm: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(queries, keys, values) of four tokens as they are written, turned by the same angles in every call."""
    torch.manual_seed(1)
    cos, sin = cos_sin(4, q.shape[2])
    k_pool, v_pool = (torch.zeros(1, k.shape[1], 4, k.shape[2], dtype=q.dtype) for _ in range(2))
    slots = torch.arange(4)
    turned = kv_write(q, k, v, cos_TR=cos, sin_TR=sin, slots_T=slots, k_pool=k_pool, v_pool=v_pool, **norm)
    return turned, k_pool[0].transpose(0, 1), v_pool[0].transpose(0, 1)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of what is not chosen
def test_values_are_copied_whatever_they_are() -> None:
    """Turned by an angle of zero they would not be: infinity times zero is NaN."""
    q, k, v = torch.randn(4, 2, 8), torch.randn(4, 1, 8), torch.randn(4, 1, 8)
    v[0, 0], v[1, 0, ::3] = torch.inf, torch.nan
    written = run(q, k, v, q_norm_D=torch.ones(8), k_norm_D=torch.ones(8), eps=EPS)
    assert torch.equal(written[2].nan_to_num(7.0), v.nan_to_num(7.0))
    assert bool(written[0].isfinite().all())
    assert bool(written[1].isfinite().all())


def test_the_norm_is_rounded_before_the_rotation() -> None:
    """So it makes no difference whether a model's norm is fused. Sums in another order may tip a tie."""
    q, k, v = torch.randn(4, 6, 64).half(), torch.randn(4, 2, 64).half(), torch.randn(4, 2, 64).half()
    weight = 1 + torch.randn(64) / 3
    normed = [reference.rms_norm(x, weight, EPS)[0] for x in (q, k)]
    fused = run(q, k, v, q_norm_D=weight, k_norm_D=weight, eps=EPS)
    for one, other in zip(fused, run(*normed, v), strict=True):
        assert float((one != other).float().mean()) < 0.01


def arguments() -> dict[str, Any]:
    cos, sin = cos_sin(3, 8)
    return {
        "q_TQD": torch.zeros(3, 4, 8),
        "k_TGD": torch.zeros(3, 2, 8),
        "v_TGD": torch.zeros(3, 2, 8),
        "cos_TR": cos,
        "sin_TR": sin,
        "slots_T": torch.arange(3),
        "k_pool": torch.zeros(5, 2, 16, 8),
        "v_pool": torch.zeros(5, 2, 16, 8),
        "q_norm_D": torch.ones(8),
        "k_norm_D": torch.ones(8),
    }


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("q_TQD", torch.zeros(3, 4, 8, dtype=torch.float64), "q must be .* float, .* got torch.float64"),
        ("q_TQD", torch.zeros(3, 8, 4).mT, r"q must be .* dense, got .* strides \[32, 1, 4\]"),
        ("k_TGD", torch.zeros(3, 3, 8), r"k must be torch.float32 \[3, 2, 8\] .* got .* \[3, 3, 8\]"),
        ("v_TGD", torch.zeros(3, 2, 8).half(), "v must be torch.float32 .* got torch.float16"),
        ("cos_TR", torch.zeros(3, 7), "cos must be of an even number of values, 8 at most"),
        ("cos_TR", torch.zeros(3, 10), "cos must be of an even number of values, 8 at most"),
        ("cos_TR", torch.zeros(3, 8).bfloat16(), "cos must be torch.float32 .* got torch.bfloat16"),
        ("sin_TR", torch.zeros(2, 8), r"sin must be torch.float32 \[3, 8\]"),
        ("sin_TR", None, "cos and sin must be given together"),
        ("k_norm_D", None, "q_norm and k_norm must be given together"),
        ("k_norm_D", torch.ones(8).half(), "k_norm must be torch.float32"),
        ("q_norm_D", torch.ones(16)[::2], r"q_norm must be .* dense, got .* strides \[2\]"),
        ("slots_T", torch.arange(3).int(), r"slots must be torch.int64 \[3\] .* got torch.int32"),
        ("k_pool", torch.zeros(5, 2, 16), r"k_pool must be \[pages, kv_heads, page_size, 8\]"),
        ("v_pool", torch.zeros(5, 2, 8, 8), r"v_pool must be torch.float32 \[5, 2, 16, 8\]"),
        ("out_TQD", torch.zeros(3, 5, 8), r"out must be torch.float32 \[3, 4, 8\]"),
        ("out_TQD", torch.zeros(3, 5, 8)[:, :4], "out must be contiguous"),
        ("out_TQD", torch.zeros(3, 4, 8, device="meta"), "out must be .* on cpu, .* got .* on meta"),
    ],
)
def test_an_argument_that_does_not_fit_is_named(name: str, value: Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=f"kv_write: {message}"):
        kv_write(**arguments() | {name: value})


@pytest.mark.parametrize(
    ("slots", "message"),
    [([0, 1, 80], r"slots\[2\] must be from 0 to 79, got 80"), ([5, 1, 5], r"slots\[2\] must differ")],
)
def test_slots_are_looked_at_where_that_is_asked_for(slots: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=f"kv_write: {message}"):
        kv_write(**arguments() | {"slots_T": torch.tensor(slots)}, check_values=True)
