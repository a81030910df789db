"""Robustness: how far a change of the input can move the output, bounded from above."""

from rankwise.robust.certificate import certified_accuracy as certified_accuracy
from rankwise.robust.certificate import certified_radius as certified_radius
from rankwise.robust.certificate import enclosing_radius as enclosing_radius
from rankwise.robust.layers import constant as constant
from rankwise.robust.layers import slopes_up_to as slopes_up_to
from rankwise.robust.lipschitz import lipschitz_bound as lipschitz_bound
from rankwise.robust.lipschitz import product_bound as product_bound
from rankwise.robust.spread import Ball as Ball
from rankwise.robust.walk import LAYERS as LAYERS

__all__ = [
    "LAYERS",
    "Ball",
    "certified_accuracy",
    "certified_radius",
    "constant",
    "enclosing_radius",
    "lipschitz_bound",
    "product_bound",
    "slopes_up_to",
]
