"""`gemv` in Triton's interpreter, and the choice between it and cuBLAS."""

from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from gemv_cases import check
from headway_kernels import gpu, reference, tiles_matmul
from headway_kernels.gemv import gemv
from headway_kernels.tiles_matmul import GemvTiles, gemv_tiles, worth_gemv

VECTOR = GemvTiles(outputs=4, inputs=64)
PRODUCT = GemvTiles(outputs=16, inputs=64, num_stages=2, product=True)
FLOATS = [torch.float32, torch.float16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("num_tokens", [1, 2, 3, 4])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(1, 1), (3, 64), (4, 72), (9, 132), (5, 67)])
def test_few_tokens_on_the_vector_units(
    num_outputs: int, num_inputs: int, num_tokens: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(num_inputs)
    check(gemv, num_tokens, num_outputs, num_inputs, dtype=dtype, tile=VECTOR)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("num_tokens", [1, 5, 16])
@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(1, 1), (16, 64), (17, 136), (33, 67)])
def test_more_tokens_on_the_matrix_units(
    num_outputs: int, num_inputs: int, num_tokens: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(num_inputs)
    check(gemv, num_tokens, num_outputs, num_inputs, dtype=dtype, tile=PRODUCT)


@pytest.mark.parametrize("tile", [VECTOR, PRODUCT], ids=["vector", "product"])
@pytest.mark.parametrize(("bias", "residual"), [(True, False), (False, True), (True, True)])
def test_bias_and_residual(bias: bool, residual: bool, tile: GemvTiles) -> None:
    torch.manual_seed(0)
    check(gemv, 3, 19, 72, dtype=torch.float16, bias=bias, residual=residual, tile=tile)


def test_the_sum_is_rounded_before_the_residual_is_added() -> None:
    """2048 + 1 is 2048 in float16, and 2048 - 2047 is 1: rounded once, it would be 2."""
    x, weight = torch.tensor([[2048.0, 1.0]]).half(), torch.ones(1, 2).half()
    residual = torch.tensor([[-2047.0]]).half()
    assert float(gemv(x, weight, None, residual)) == 1
    assert float(reference.linear(x, weight, None, residual)) == 1


@pytest.mark.parametrize("num_tokens", [1, 4, 5, 16])
def test_the_tiles_that_are_used(num_tokens: int) -> None:
    torch.manual_seed(0)
    check(gemv, num_tokens, 37, 1100, dtype=torch.float16)
    check(gemv, num_tokens, 5, 300, dtype=torch.float32)


@pytest.mark.parametrize("beside", [0, 1, 2, 4])
def test_rows_at_any_distance(beside: int) -> None:
    torch.manual_seed(0)
    check(gemv, 2, 5, 64, dtype=torch.float16, beside=beside, tile=VECTOR)


@pytest.mark.parametrize("tile", [VECTOR, PRODUCT], ids=["vector", "product"])
def test_a_row_does_not_depend_on_the_others(tile: GemvTiles) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 72), torch.randn(9, 72)
    alone = gemv(x, weight, tile=tile)
    x[[0, 1, 3]] = torch.nan
    assert torch.equal(gemv(x, weight, tile=tile)[2], alone[2])


def test_nothing_is_a_size_too() -> None:
    assert gemv(torch.ones(0, 8), torch.ones(3, 8)).shape == (0, 3)
    assert gemv(torch.ones(2, 8), torch.ones(0, 8)).shape == (2, 0)
    assert torch.equal(gemv(torch.ones(2, 0), torch.ones(3, 0), torch.ones(3)), torch.ones(2, 3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_TH": torch.ones(17, 8)}, r"gemv: x_TH must be 16 tokens at most, got torch.float32 \[17, 8\]"),
        ({"x_TH": torch.ones(2, 8, dtype=torch.int32)}, "x_TH must be .*float"),
        ({"x_TH": torch.ones(8, 2).t()}, "x_TH must be .*dense"),
        ({"weight_OH": torch.ones(3, 9)}, r"weight_OH must be \[outputs, 8\], inputs dense, got"),
        ({"weight_OH": torch.ones(8, 3).t()}, "weight_OH must be .*dense"),
        ({"weight_OH": torch.ones(3, 8).half()}, "weight_OH must be torch.float32 on cpu"),
        ({"bias_O": torch.ones(4)}, r"bias_O must be \[3\]"),
        ({"residual_TO": torch.ones(1, 3)}, r"residual_TO must be \[2, 3\]"),
        ({"residual_TO": torch.ones(2, 3).half()}, "residual_TO must be torch.float32"),
        ({"out_TO": torch.ones(3, 2).t()}, "out_TO must be .*dense"),
    ],
)
def test_what_does_not_fit_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gemv(**{"x_TH": torch.ones(2, 8), "weight_OH": torch.ones(3, 8)} | changed)


def test_few_tokens_and_a_large_weight_make_it_worth() -> None:
    assert worth_gemv(1, 4096, 4096, torch.bfloat16)
    assert worth_gemv(1, 42753, 4544, torch.bfloat16)
    assert not worth_gemv(1, 64, 4096, torch.bfloat16)
    assert not worth_gemv(17, 4096, 4096, torch.bfloat16)
    assert not worth_gemv(256, 4096, 4096, torch.bfloat16)


def test_the_table_alone_says_how_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles_matmul, "WORTH_GEMV", ((1 << 20, 2), (1 << 30, 40)))
    assert worth_gemv(2, 1 << 10, 1 << 10, torch.bfloat16)
    assert not worth_gemv(3, 1 << 10, 1 << 10, torch.bfloat16)
    assert worth_gemv(16, 1 << 16, 1 << 14, torch.bfloat16)
    assert not worth_gemv(17, 1 << 16, 1 << 14, torch.bfloat16), "more than the kernel takes"
    assert not worth_gemv(16, 1 << 16, 1 << 14, torch.float32), "products in float32 are slow"


@pytest.mark.parametrize("num_tokens", range(1, 17))
def test_a_thread_has_at_least_four_loads_of_16_bytes(num_tokens: int) -> None:
    for num_outputs in (1, 1024, 4096, 28672, 128256):
        for dtype in (torch.float32, torch.bfloat16):
            tile = gemv_tiles(num_tokens, num_outputs, dtype)
            if tile.product:
                assert tile.num_stages > 1
            else:
                assert tile.outputs * tile.inputs * dtype.itemsize == 4 * 16 * 32 * tile.num_warps


def test_linear_takes_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same to rounding; a transposed weight is left to cuBLAS."""
    torch.manual_seed(0)
    x, weight, bias, residual = (torch.randn(shape) for shape in ((2, 40), (12, 40), (12,), (2, 12)))
    expected = reference.linear(x, weight, bias, residual)
    for table in ((), ((0, 4),)):
        monkeypatch.setattr(tiles_matmul, "WORTH_GEMV", table)
        for one in (weight, weight.t().contiguous().t()):
            torch.testing.assert_close(gpu.linear(x, one, bias, residual), expected)
        torch.testing.assert_close(gpu.linear(x[:0], weight), expected[:0])
