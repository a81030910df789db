"""Networks that small changes of the input do not fool: spectra, attacks, certificates."""

from rankwise.numerics.condition import clipped_about_mean as clipped_about_mean
from rankwise.numerics.condition import (
    clipped_about_root_mean_square as clipped_about_root_mean_square,
)
from rankwise.numerics.condition import nearest_conditioned as nearest_conditioned
from rankwise.optim.conditioning import Conditioning as Conditioning
from rankwise.optim.conditioning import ConditionLimit as ConditionLimit
from rankwise.optim.conditioning import NormLimit as NormLimit
from rankwise.optim.conditioning import OrthonormalCore as OrthonormalCore
from rankwise.optim.conditioning import SpreadPenalty as SpreadPenalty
from rankwise.robust.attack import Attack as Attack
from rankwise.robust.auto_attack import AutoAttack as AutoAttack
from rankwise.robust.ball import L2 as L2
from rankwise.robust.ball import Ball as Ball
from rankwise.robust.ball import Linf as Linf
from rankwise.robust.certificate import certified_accuracy as certified_accuracy
from rankwise.robust.certificate import certified_radius as certified_radius
from rankwise.robust.certificate import enclosing_radius as enclosing_radius
from rankwise.robust.condition_numbers import condition_numbers as condition_numbers
from rankwise.robust.evaluate import Evaluation as Evaluation
from rankwise.robust.evaluate import evaluate as evaluate
from rankwise.robust.fgsm import FGSM as FGSM
from rankwise.robust.fgsm import ScaledFGSM as ScaledFGSM
from rankwise.robust.jitter import Jitter as Jitter
from rankwise.robust.layers import constant as constant
from rankwise.robust.layers import slopes_up_to as slopes_up_to
from rankwise.robust.lipschitz import lipschitz_bound as lipschitz_bound
from rankwise.robust.lipschitz import product_bound as product_bound
from rankwise.robust.masking import masking_signs as masking_signs
from rankwise.robust.mixup import MixupAttack as MixupAttack
from rankwise.robust.noise import Noise as Noise
from rankwise.robust.normalised import Normalised as Normalised
from rankwise.robust.pgd import PGD as PGD
from rankwise.robust.pgd import IteratedFGSM as IteratedFGSM
from rankwise.robust.reachable import Sphere as Sphere
from rankwise.robust.walk import LAYERS as LAYERS
