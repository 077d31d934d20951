"""Log-probabilities for the rows that asked for them.

Shapes: S sampled rows of a step, L those that asked, V vocabulary, K likeliest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from headway.core.limits import BOUNDS
from headway.core.request import Logprob

# As many are looked up for every row that asks for any, so that which of several tied tokens are reported
# does not depend on what the others in the batch asked for.
MAX_LOGPROBS = int(BOUNDS["logprobs"].max)


@dataclass(frozen=True, kw_only=True)
class Logprobs:
    """What a step found, on the device, for `places` of the batch; `nums` likeliest tokens are wanted."""

    places: tuple[int, ...]
    nums: tuple[int, ...]
    chosen_L: Tensor  # float32
    likeliest_LK: Tensor  # float32
    likeliest_ids_LK: Tensor  # int64

    def to_host(self, token_ids: Sequence[int]) -> dict[int, tuple[Logprob, ...]]:
        """By place: the chosen token, then the likeliest, ties by id (the chosen may be among them again).

        token_ids: what the whole batch sampled. Waits for the device.
        """
        chosen = zip((token_ids[place] for place in self.places), self.chosen_L.tolist(), strict=True)
        likeliest = zip(self.likeliest_ids_LK.tolist(), self.likeliest_LK.tolist(), strict=True)
        table = zip(self.places, self.nums, chosen, likeliest, strict=True)
        return {place: _ranked(first, *others, num) for place, num, first, others in table}


def _ranked(chosen: tuple[int, float], ids: list[int], values: list[float], num: int) -> tuple[Logprob, ...]:
    likeliest = sorted(zip(ids, values, strict=True), key=lambda pair: (-pair[1], pair[0]))[:num]
    return tuple(Logprob(token_id=token, logprob=value) for token, value in (chosen, *likeliest))


@dataclass(frozen=True, kw_only=True)
class LogprobRows:
    """The rows of a batch that asked: their places, also on the device (int64), and for how many tokens."""

    places: tuple[int, ...]
    nums: tuple[int, ...]
    places_L: Tensor

    def read(self, logits_SV: Tensor, ops: ModuleType) -> Tensor:
        """float32 [L, V], natural logarithms. A NaN logit counts as -inf, as it does in `sample`."""
        logprobs_LV: Tensor = ops.log_softmax(logits_SV, self.places_L)
        return logprobs_LV

    def report(self, logprobs_LV: Tensor, tokens_S: Tensor) -> Logprobs:
        """What `read` gave, for the tokens that were then sampled and the likeliest ones."""
        tokens_L = tokens_S.index_select(0, self.places_L)
        likeliest_LK, ids_LK = logprobs_LV.topk(min(MAX_LOGPROBS, logprobs_LV.shape[-1]))
        return Logprobs(
            places=self.places,
            nums=self.nums,
            chosen_L=logprobs_LV.gather(-1, tokens_L[:, None])[:, 0],
            likeliest_LK=likeliest_LK,
            likeliest_ids_LK=ids_LK,
        )
