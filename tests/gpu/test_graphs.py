"""Every kernel's launch is captured in a CUDA graph, waits for nothing, and replays to the same values."""

import pytest
import torch

from launches import all_launches
from waiting import without_waiting

pytestmark = pytest.mark.gpu


def tensors(result: object) -> list[torch.Tensor]:
    return [one for one in (result if isinstance(result, tuple) else (result,)) if torch.is_tensor(one)]


@pytest.mark.parametrize("name", all_launches())
def test_a_captured_launch_gives_what_it_gave(name: str) -> None:
    torch.manual_seed(0)
    launch = all_launches()[name]("cuda")
    launch()
    torch.cuda.synchronize()
    eager = tensors(without_waiting(launch))
    expected = [one.clone() for one in eager]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tensors(launch())
    for one, other in zip(found, eager, strict=True):
        if one.data_ptr() != other.data_ptr():  # else it is an argument, handed back
            one.zero_()
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
