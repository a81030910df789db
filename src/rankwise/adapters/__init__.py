"""Adapters as values: several for one model, switched, added, averaged, rounded.

An `Adapter` is what `adapt_` and training have added to a model: low-rank updates by the names of
layers, and dense parameters that train. Sums are of the products `U S V^T`, never of factors, whose
mean means nothing.
"""

from rankwise.adapters.adapter import Adapter as Adapter
from rankwise.adapters.files import export_lora as export_lora
from rankwise.adapters.files import read as read
from rankwise.adapters.files import write as write
from rankwise.adapters.mean import mean as mean
from rankwise.adapters.switch import put_ as put_
from rankwise.adapters.switch import take as take

__all__ = ["Adapter", "export_lora", "mean", "put_", "read", "take", "write"]
