"""ERK: sparse layers as an Erdos-Renyi graph would have them, and the widths that come closest."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fxprune.errors import PlanError
from fxprune.widths.setting import Choice, Setting, largest, method

Array = NDArray[np.float64]
SWEEPS = 5000  # of the descent, at most


@method
def erk(setting: Setting) -> Choice:
    """The widths whose layer densities come closest to those of an Erdos-Renyi-Kernel network.

    The density of a layer is in proportion to the sum over the product of the sizes of its weight's axes, and at most
    what the widths allow: 1 where nothing may grow. The logs of the groups' shares fit the logs of the densities by
    least squares within the bounds on the widths. One factor on all densities is as large as the limits allow.
    Source: Evci et al., Rigging the Lottery (2020), section 3; its layers are ours, so the classifier is left out.
    Raises PlanError where there are no layers.
    """
    if not setting.layers:
        raise PlanError("method='erk' gives densities to convolutions and linear layers: this network has none")
    names = list(setting.dense)
    dense, least, most = (
        np.array([float(of[n]) for n in names]) for of in (setting.dense, setting.least, setting.most)
    )
    slopes = np.array([[layer.slopes[name] for name in names] for layer in setting.layers])
    wanted = np.array([math.log(sum(layer.shape) / layer.weights) for layer in setting.layers])
    lower, upper = np.log(least / dense), np.log(most / dense)
    highest = slopes @ upper

    def at(factor: float) -> dict[str, float]:
        logs = bounded_least_squares(slopes, np.minimum(wanted + factor, highest), lower, upper)
        return dict(zip(names, np.clip(dense * np.exp(logs), least, most).tolist(), strict=True))

    lowest = float(2 * lower.sum() - wanted.max())  # no layer can be so thin: all groups have their least width
    return Choice(at(largest(setting, at, lowest, float((highest - wanted).max()))))


def bounded_least_squares(matrix: Array, values: Array, lower: Array, upper: Array) -> Array:
    """The x between `lower` and `upper` [columns] that minimises |matrix @ x - values|^2; matrix is [rows, columns].

    Where several do, the one that is near to what the rows would say by themselves.
    Accelerated projected gradient with restarts: Beck and Teboulle (2009); O'Donoghue and Candes (2015).
    """
    step = np.linalg.norm(matrix, 2) ** 2
    found = ahead = np.clip(_apart(matrix, values), lower, upper)
    momentum = 1.0
    for _ in range(SWEEPS if step else 0):
        before, found = found, np.clip(ahead - matrix.T @ (matrix @ ahead - values) / step, lower, upper)
        moved = found - before
        if float(np.abs(moved).max()) < 1e-13:
            break
        if (ahead - found) @ moved > 0:  # the momentum leads uphill
            ahead, momentum = found, 1.0
            continue
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead, momentum = found + (momentum - 1) / faster * moved, faster
    return found


def _apart(matrix: Array, values: Array) -> Array:
    """Each value in equal parts to the columns of its row, and of these the mean of each column; columns that are in no
    row get the mean over the rows."""
    rows = matrix.sum(1)
    parts = values[rows > 0] / rows[rows > 0]
    columns = matrix[rows > 0].sum(0)
    mean = float(parts.mean()) if len(parts) else 0.0
    return np.where(columns > 0, parts @ matrix[rows > 0] / np.where(columns > 0, columns, 1.0), mean)
