"""What stands beside attention in a layer: one MLP, or experts of which each token takes a few.

Shape suffixes: T tokens of the step, K experts a token, E experts, H hidden size, I MLP size of this rank.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType

import torch.nn.functional as F  # noqa: N812 (as everywhere)
from torch import Tensor

from headway.model.linear import wide
from headway.model.spec import Activation, DecoderSpec


class Mlp:
    """params: the layer's tensors. The bias of `down` is added before ranks are summed: rank 0 has it."""

    def __init__(self, spec: DecoderSpec, params: Mapping[str, Tensor], ops: ModuleType) -> None:
        name = "gate_up" if spec.gated else "up"
        self._up, self._up_bias = wide(params[f"{name}.weight"]), params.get(f"{name}.bias")
        self._down, self._down_bias = params["down.weight"], params.get("down.bias")
        self._activation = activation(spec, ops)
        self._ops = ops

    def __call__(self, x_TH: Tensor, beside_TH: Tensor | None = None) -> Tensor:
        """This rank's part of the sum over ranks -> [T, H]; `beside_TH` is added to it."""
        x_TI = self._activation(self._ops.linear(x_TH, self._up, self._up_bias))
        out_TH: Tensor = self._ops.linear(x_TI, self._down, self._down_bias, beside_TH)
        return out_TH


class ExpertMlp:
    """Experts whose columns are shared over ranks; the router is whole on every rank."""

    def __init__(self, spec: DecoderSpec, params: Mapping[str, Tensor], ops: ModuleType) -> None:
        assert spec.experts is not None
        self._ops = ops
        self._top_k = spec.experts.top_k
        self._route = partial(ops.route, top_k=self._top_k, renormalise=spec.experts.renormalise)
        self._router_EH, self._router_bias_E = params["router.weight"], params.get("router.bias")
        self._experts = {
            "gate_up_E2IH": params["experts.gate_up.weight"],
            "gate_up_bias_E2I": params.get("experts.gate_up.bias"),
            "down_EHI": params["experts.down.weight"],
            "down_bias_EH": params.get("experts.down.bias"),
            "activation": activation(spec, ops),
        }

    def __call__(self, x_TH: Tensor, beside_TH: Tensor | None = None) -> Tensor:
        """This rank's part of the sum over ranks -> [T, H]; `beside_TH` is added to it."""
        weights_TK, experts_TK = self._route(F.linear(x_TH, self._router_EH, self._router_bias_E))
        out_TH: Tensor = self._ops.moe(x_TH, weights_TK=weights_TK, experts_TK=experts_TK, **self._experts)
        return out_TH if beside_TH is None else out_TH + beside_TH

    def step_sizes(self, most: int) -> tuple[int, ...]:
        """Numbers of tokens, up to `most`, that between them take every kernel of the experts."""
        weights = {name: self._experts[name] for name in ("gate_up_E2IH", "down_EHI")}
        sizes: tuple[int, ...] = self._ops.moe_sizes(most, top_k=self._top_k, **weights)
        return sizes


def activation(spec: DecoderSpec, ops: ModuleType) -> Callable[[Tensor], Tensor]:
    """From what the first projection gives, [T, 2 * I] if gated or [T, I], to [T, I]."""
    gated: dict[Activation, Callable[[Tensor], Tensor]] = {
        Activation.SILU: ops.silu_mul,
        Activation.GELU: ops.gelu_mul,
        Activation.GELU_TANH: partial(ops.gelu_mul, approximate="tanh"),
        Activation.CLAMPED_SILU: partial(ops.clamped_silu_mul, clamp=spec.clamp, alpha=spec.alpha),
    }
    plain: dict[Activation, Callable[[Tensor], Tensor]] = {
        Activation.SILU: F.silu,
        Activation.GELU: F.gelu,
        Activation.GELU_TANH: partial(F.gelu, approximate="tanh"),
    }
    return (gated if spec.gated else plain)[spec.activation]
