"""A method is a row: which divergence, which checkpoint teaches each stage, how a sequence's two losses are weighed.

    loss of a sequence = w · mean_positions D(teacher, student) + (1 − w) · mean_positions CE(gold)

    name       divergence D     schedule: who teaches stage i       weighting: w
    sft        none             nobody                              0
    td         KL(p‖q)          the best checkpoint                 α, a constant
    rkl        KL(q‖p)          the best checkpoint                 α
    taid       KL(mix_t‖q)      the best checkpoint                 α
    jsd        JSD_β(p, q)      the best checkpoint                 α
    cd         KL(p‖q)          checkpoint i                        α
    scd        KL(p‖q)          argmin_j KL(best‖j) + KL(q‖j)       α
    reach      KL(p‖q)          argmin_j KL(best‖j) + KL(j‖q)       α
    …+aw                                                            σ(log L_S/L_T) of the sequence
    …+hard-aw                                                       0, ½ or 1 by the same weight

`hard-aw` alone is `td+hard-aw`. Sources: SCD §5.2, AW §6, hard AW Fig. 2, CD §3 of arXiv 2601.10114; TAID arXiv
2501.16937; JSD as in GKD, arXiv 2306.13649; `reach` is ours. Each cell is a key of a table: DIVERGENCES, SCHEDULES,
WEIGHTINGS.
"""

from dataclasses import dataclass, replace

from cache_builder.errors import ConfigError
from cache_builder.targets.divergences import DIVERGENCES
from trainer.methods.schedules import SCHEDULES
from trainer.methods.weighting import WEIGHTINGS


@dataclass(frozen=True)
class Method:
    """One row of the table above."""

    name: str
    divergence: str | None
    """A key of DIVERGENCES, or None for plain fine-tuning."""
    schedule: str
    """A key of SCHEDULES."""
    weighting: str = "constant"
    """A key of WEIGHTINGS."""


BASES = {
    row.name: row
    for row in (
        Method("sft", None, "none"),
        Method("td", "forward_kl", "best"),
        Method("rkl", "reverse_kl", "best"),
        Method("taid", "taid", "best"),
        Method("jsd", "jsd", "best"),
        Method("cd", "forward_kl", "in-order"),
        Method("scd", "forward_kl", "scheduled"),
        Method("reach", "forward_kl", "reachable"),
    )
}
_ADAPTIVE = [key for key, row in WEIGHTINGS.items() if row.adaptive]
_ENDINGS = " or ".join(f"+{key}" for key in _ADAPTIVE)
METHOD_NAMES = f"one of {', '.join(BASES)}, any of them but sft followed by {_ENDINGS}, or hard-aw"
"""Which names there are, for people."""


def get_method(name: str) -> Method:
    """Return the method that a name such as "scd+aw" stands for.

    Raises:
        ConfigError: there is no such method, or its row names a key that a table does not have.
    """
    base, _, weighting = ("td", "", "hard-aw") if name == "hard-aw" else name.partition("+")
    if (
        base not in BASES
        or ("+" in name and weighting not in _ADAPTIVE)
        or (weighting and BASES[base].divergence is None)
    ):
        raise ConfigError(f"method {name!r} is not known; expected {METHOD_NAMES}")
    method = replace(BASES[base], name=name, weighting=weighting) if weighting else BASES[base]
    _check_row(method)
    return method


def _check_row(method: Method) -> None:
    """Refuse a row with a key that its table does not have: it would only fail when the cache has been built."""
    for what, key, table in (
        ("divergence", method.divergence, DIVERGENCES),
        ("schedule", method.schedule, SCHEDULES),
        ("weighting", method.weighting, WEIGHTINGS),
    ):
        if key is not None and key not in table:
            raise ConfigError(f"method {method.name!r} names the {what} {key!r}; known are {', '.join(table)}")
