"""Split sequences into those that the teacher and those that the student fits better, and weigh both sides.

difference_n  = L_t − L_s                      > 0 student-favored (SFS), < 0 teacher-favored (TFS)
advantage     = Σ_SFS (L_t − L_s) / n          what the student wins
deficit       = Σ_TFS (L_s − L_t) / n          what it loses
R(f_s) − R(f_t) = deficit − advantage          the identity behind Theorem 4, §4:
                                               the student beats its teacher where advantage > deficit
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Subdomains:
    """Both sides of one comparison; risks and parts are means over all n sequences, in the unit of the losses."""

    n: int
    student_favored: int
    teacher_favored: int
    student_risk: float
    teacher_risk: float
    advantage: float
    deficit: float

    @property
    def gap(self) -> float:
        """R(f_s) − R(f_t), from the risks themselves."""
        return self.student_risk - self.teacher_risk

    @property
    def margin(self) -> float:
        """By how much the student's advantage exceeds its deficit; Theorem 4's condition is that this is positive."""
        return self.advantage - self.deficit

    @property
    def identity_error(self) -> float:
        """|R(f_s) − R(f_t) − (deficit − advantage)|: rounding, and nothing else."""
        return abs(self.gap - (self.deficit - self.advantage))

    @property
    def student_share(self) -> float:
        return self.student_favored / self.n

    @property
    def teacher_share(self) -> float:
        return self.teacher_favored / self.n


def compare(student_n: np.ndarray, teacher_n: np.ndarray) -> Subdomains:
    """Compare two models' losses, one per sequence and in the same order; ties are on neither side."""
    difference_n = np.asarray(teacher_n, np.float64) - np.asarray(student_n, np.float64)
    n = len(difference_n)
    return Subdomains(
        n=n,
        student_favored=int((difference_n > 0).sum()),
        teacher_favored=int((difference_n < 0).sum()),
        student_risk=float(np.mean(student_n)),
        teacher_risk=float(np.mean(teacher_n)),
        advantage=float(difference_n[difference_n > 0].sum() / n),
        deficit=float(-difference_n[difference_n < 0].sum() / n),
    )
