"""Which of attention's options a launch has: one compile-time constant of its kernel."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Variant:
    """dense: without pages; shares: results may be parts, to be merged; single: one query a sequence;
    window to lse: whether there is such an argument.
    """

    dense: bool = False
    shares: bool = False
    single: bool = False
    causal: bool = True
    window: bool
    softcap: bool
    sinks: bool
    alibi: bool
    lse: bool
