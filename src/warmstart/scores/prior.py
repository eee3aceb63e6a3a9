"""The static prior: what published accuracy and size say of weights before they have seen a single example.

Kornblith, Shlens & Le, 2019, arXiv 1805.08974: ImageNet accuracy and accuracy after transfer go together. Every score
that looks at data has to beat this one to be worth its forward pass, and many published ones do not (Chaves et al.,
2024, arXiv 2405.20420). The value is `catalogue.prior`, which says how it is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from warmstart.errors import SourceError
from warmstart.scores import EVERYTHING, Evidence, Kind, Need


@dataclass(frozen=True)
class Prior:
    """Expected transfer value from published accuracy and size; the same for every data set.

    Needs:
        A card with a published accuracy.

    Relations:
        All the others look at data; this is what they are compared with.

    Cost:
        Nothing: no forward pass, no examples.
    """

    needs: ClassVar[tuple[Need, ...]] = ("card",)
    kinds: ClassVar[tuple[Kind, ...]] = EVERYTHING
    cost: ClassVar[str] = "nothing, not even a forward pass"

    def value(self, evidence: Evidence, *, seed: int = 0) -> float:
        """Return the prior of the card.

        Raises:
            SourceError: Nobody published an accuracy of these weights.
        """
        from warmstart import catalogue

        assert evidence.card is not None
        found = catalogue.prior(evidence.card)
        if found is None:
            raise SourceError(
                f"{evidence.card.name} has no published accuracy, so it has no static prior",
                "leave `prior` out, or use a score that looks at data: loo_ridge, logistic, knn",
            )
        return float(found)


PLUGIN = Prior
