"""Robustness against adversarial inputs: attacks, and what they show."""

from rankwise.robust.attack import Attack as Attack
from rankwise.robust.auto_attack import AutoAttack as AutoAttack
from rankwise.robust.ball import L2 as L2
from rankwise.robust.ball import Ball as Ball
from rankwise.robust.ball import Linf as Linf
from rankwise.robust.evaluate import Evaluation as Evaluation
from rankwise.robust.evaluate import evaluate as evaluate
from rankwise.robust.fgsm import FGSM as FGSM
from rankwise.robust.fgsm import ScaledFGSM as ScaledFGSM
from rankwise.robust.jitter import Jitter as Jitter
from rankwise.robust.masking import masking_signs as masking_signs
from rankwise.robust.mixup import MixupAttack as MixupAttack
from rankwise.robust.noise import Noise as Noise
from rankwise.robust.normalised import Normalised as Normalised
from rankwise.robust.pgd import PGD as PGD
from rankwise.robust.pgd import IteratedFGSM as IteratedFGSM
