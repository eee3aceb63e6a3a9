"""NCE: the negative conditional entropy of the targets given the source model's most probable class.

Tran, Nguyen & Hassner, 2019, arXiv 1908.08142: -H(Y | Z) = Σ_{y,z} P(y, z) log(P(y, z) / P(z)) over the empirical joint
distribution of two labellings of the same examples. Where we differ: the paper has two labelled tasks; as Nguyen et al.
(arXiv 2002.12462) do, the source label of an example is the class that the source model finds most probable.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from warmstart.scores import CLASSES, Evidence, Kind, Need

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Nce:
    """How well the source model's most probable class tells the target.

    Needs:
        Weights that came with a classifier; one class per example. Many more examples than source classes: each class
        that is named once tells its one target perfectly.

    Relations:
        `leep` uses all probabilities and not only the largest.

    Cost:
        N · Z comparisons for Z source classes, a few milliseconds.
    """

    needs: ClassVar[tuple[Need, ...]] = ("source_probabilities",)
    kinds: ClassVar[tuple[Kind, ...]] = CLASSES
    cost: ClassVar[str] = "N · Z comparisons for Z source classes"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the mean over examples, -H(Y | Z)."""
        return float(self.per_example(evidence).mean())

    def per_example(self, evidence: Evidence, *, seed: int = 0) -> np.ndarray:
        """Return log P(y_i | z_i)."""
        import numpy as np

        assert evidence.source_probabilities is not None
        named, labels = np.unique(evidence.source_probabilities.argmax(axis=1), return_inverse=True)
        joint = np.zeros((int(evidence.targets.max()) + 1, len(named)))
        np.add.at(joint, (evidence.targets, labels), 1.0)
        return np.log(joint[evidence.targets, labels] / joint.sum(axis=0)[labels])


PLUGIN = Nce
