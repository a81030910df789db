"""A node: its share of the images, which stays here."""

from flwr.app import Context
from torch.nn.functional import cross_entropy

from fashion.task import images_of, method, name_of, network
from rankwise.federated import Client, Samples
from rankwise.integrations.flower import client_app
from rankwise.recipes.split import dirichlet_split


def loss(model, x, y):
    return cross_entropy(model(x), y)


def make_client(context: Context) -> Client:
    # A real node reads its own data here; this one takes its part of a public data set.
    partition, clients = int(context.node_config["partition-id"]), context.run_config["clients"]
    images = images_of(context)
    rows = dirichlet_split(images.labels, int(clients), alpha=0.1, seed=0)[partition]
    data = Samples(images.train[rows], images.labels[rows], batch_size=64, seed=partition)
    return Client(name_of(partition), network(images), method(context), loss, data)


app = client_app(make_client)
