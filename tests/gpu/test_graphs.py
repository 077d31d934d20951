"""Every kernel's launch is captured in a CUDA graph, waits for nothing, and replays to the same values."""

import warnings

import pytest
import torch

from launches import all_launches

pytestmark = pytest.mark.gpu


def tensors(result: object) -> list[torch.Tensor]:
    return [one for one in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(one)]


@pytest.mark.parametrize("name", all_launches())
def test_a_captured_launch_gives_what_it_gave(name: str) -> None:
    torch.manual_seed(0)
    launch = all_launches()[name]("cuda")
    launch()
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode calls itself a prototype
        torch.cuda.set_sync_debug_mode("error")
        expected = [one.clone() for one in tensors(launch())]
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tensors(launch())
    for one in found:
        one.zero_()
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
