"""Which of attention's options a launch has: one compile-time constant of its kernel."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Variant:
    """dense: without pages; shares: what has a slot goes to the parts that will be merged; window to lse:
    whether there is such an argument.
    """

    dense: bool = False
    shares: bool = False
    causal: bool = True
    window: bool
    softcap: bool
    sinks: bool
    alibi: bool
    lse: bool
