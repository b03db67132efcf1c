"""How much an image looks like the real ones, whatever it was asked to show: our stand-in for SD3's "aesthetics"."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmdit_jax.errors import UserError

_RIDGE = 0.05


@dataclass(frozen=True)
class Realism:
    """A normal distribution of the judge's image features, fitted to real images."""

    mean: np.ndarray
    """float64 [features]."""
    precision: np.ndarray
    """Inverse covariance, float64 [features, features]."""

    @classmethod
    def fit(cls, features: np.ndarray) -> Realism:
        """From the features of real images [N, F].

        The covariance is shrunk towards its mean variance by 5 %: directions in which the real images hardly differ
        would else decide everything.

        Raises:
            UserError: fewer images than features.
        """
        count, width = features.shape
        if count <= width:
            raise UserError(f"images={count}: expected more than the {width} features to know what real ones look like")
        wide = features.astype(np.float64)
        covariance = np.cov(wide, rowvar=False)
        shrunk = (1 - _RIDGE) * covariance + _RIDGE * np.trace(covariance) / width * np.eye(width)
        return cls(wide.mean(axis=0), np.linalg.inv(shrunk))

    def score(self, features: np.ndarray) -> np.ndarray:
        """Minus the squared Mahalanobis distance to the real images, float64 [N]: higher is more like them."""
        away = features.astype(np.float64) - self.mean
        return -np.einsum("nf,fg,ng->n", away, self.precision, away)
