"""Federated training in low rank: messages in, messages out, no transport inside."""

from rankwise.federated import cost as cost
from rankwise.federated.bounds import Bounds as Bounds
from rankwise.federated.client import Client as Client
from rankwise.federated.correction import FullCorrection as FullCorrection
from rankwise.federated.correction import NoCorrection as NoCorrection
from rankwise.federated.correction import SimplifiedCorrection as SimplifiedCorrection
from rankwise.federated.engine import run as run
from rankwise.federated.factor_average import FactorAverage as FactorAverage
from rankwise.federated.fedavg import FedAvg as FedAvg
from rankwise.federated.fedlrt import FeDLRT as FeDLRT
from rankwise.federated.message import Arrays as Arrays
from rankwise.federated.message import Failure as Failure
from rankwise.federated.message import Reply as Reply
from rankwise.federated.message import Request as Request
from rankwise.federated.record import Event as Event
from rankwise.federated.record import RoundRecord as RoundRecord
from rankwise.federated.round import Round as Round
from rankwise.federated.samples import Samples as Samples
from rankwise.federated.server import Server as Server
from rankwise.federated.server_step import MeanStep as MeanStep
from rankwise.federated.server_step import SpectralStep as SpectralStep
