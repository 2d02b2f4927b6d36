"""A method is a row: which divergence, which checkpoint teaches each stage, how a sequence's two losses are weighed.

    loss of a sequence = w · mean_positions D(teacher, student) + (1 − w) · mean_positions CE(gold)

    name       divergence D     schedule: who teaches stage i       weighting: w
    sft        none             nobody                              0
    td         KL(p‖q)          the best checkpoint                 α, a constant
    rkl        KL(q‖p)          the best checkpoint                 α
    taid       KL(mix_t‖q)      the best checkpoint                 α
    cd         KL(p‖q)          checkpoint i                        α
    scd        KL(p‖q)          argmin_j KL(best‖j) + KL(q‖j)       α
    …+aw                                                            σ(log L_S/L_T) of the sequence
    …+hard-aw                                                       0, ½ or 1 by the same weight

`hard-aw` alone is `td+hard-aw`. Sources: SCD §5.2, AW §6, hard AW Fig. 2, CD §3 of arXiv 2601.10114; TAID arXiv
2501.16937.
"""

from dataclasses import dataclass, replace
from typing import Literal

from cache_builder.errors import ConfigError

Divergence = Literal["forward_kl", "reverse_kl", "taid"]
Schedule = Literal["none", "best", "in-order", "scheduled"]
Weighting = Literal["constant", "aw", "hard-aw"]


@dataclass(frozen=True)
class Method:
    """One row of the table above."""

    name: str
    divergence: Divergence | None
    schedule: Schedule
    weighting: Weighting = "constant"


BASES = {
    row.name: row
    for row in (
        Method("sft", None, "none"),
        Method("td", "forward_kl", "best"),
        Method("rkl", "reverse_kl", "best"),
        Method("taid", "taid", "best"),
        Method("cd", "forward_kl", "in-order"),
        Method("scd", "forward_kl", "scheduled"),
    )
}
WEIGHTINGS: tuple[Weighting, ...] = ("aw", "hard-aw")


def get_method(name: str) -> Method:
    """Return the method that a name such as "scd+aw" stands for.

    Raises:
        ConfigError: there is no such method.
    """
    base, _, weighting = ("td", "", "hard-aw") if name == "hard-aw" else name.partition("+")
    if base in BASES and not weighting and "+" not in name:
        return BASES[base]
    for known in WEIGHTINGS:
        if weighting == known and base in BASES and base != "sft":
            return replace(BASES[base], name=name, weighting=known)
    raise ConfigError(
        f"method {name!r} is not known; expected one of {', '.join(BASES)}, "
        "any of them but sft followed by +aw or +hard-aw, or hard-aw"
    )
