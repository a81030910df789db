"""What a training step takes, in seconds and bytes, before it is taken."""

from rankwise.cost.machine import Machine as Machine
from rankwise.cost.measure import measure_machine as measure_machine
from rankwise.cost.rate import Rate as Rate
from rankwise.cost.step import StepCost as StepCost
from rankwise.cost.step import StepCosts as StepCosts
from rankwise.cost.step import step_costs as step_costs
