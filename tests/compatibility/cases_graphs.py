"""Graph networks of torch_geometric, on batches of graphs and on one graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import nn
from torch_geometric.data import Batch, Data
from torch_geometric.nn import GCN, GIN, DenseGCNConv, global_add_pool
from torch_geometric.utils import to_dense_adj

from tests.callbacks.tiny import sgd
from tests.compatibility.case import SAMPLES, Case, Fisher

CLASSES, FEATURES, MOST = 3, 4, 6


class Graphs(LightningModule):
    """Classifies whole graphs."""

    def __init__(self):
        super().__init__()
        self.gnn = GIN(FEATURES, 8, num_layers=2, norm="batch_norm", dropout=0.2)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, batch):
        return self.head(global_add_pool(self.gnn(batch.x, batch.edge_index), batch.batch))

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch), batch.y)
        self.log("train_loss", loss, on_epoch=True, batch_size=batch.num_graphs)
        return loss

    def configure_optimizers(self):
        return sgd(self.parameters(), lr=0.01)


def graph(nodes, label):
    edges = torch.randint(nodes, (2, 3 * nodes))
    return Data(x=torch.randn(nodes, FEATURES), edge_index=edges.unique(dim=1), y=torch.tensor([label]))


def graphs():
    return [graph(3 + i % 4, i % CLASSES) for i in range(SAMPLES)]


def graph_loss(module, batch):
    return F.cross_entropy(module(batch), batch.y)


def graphs_and_labels(samples):
    batch = Batch.from_data_list(samples)
    return batch, batch.y


class DenseGraphs(LightningModule):
    """The same on padded graphs: nodes ``[N, V, F]``, adjacency ``[N, V, V]``, mask ``[N, V]``."""

    def __init__(self):
        super().__init__()
        self.conv = DenseGCNConv(FEATURES, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, nodes, adjacency, mask):
        hidden = F.relu(self.conv(nodes, adjacency, mask))
        return self.head((hidden * mask.unsqueeze(-1)).sum(1))

    def training_step(self, batch, batch_idx):
        loss = dense_loss(self, batch)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return sgd(self.parameters(), lr=0.01)


def padded(samples):
    nodes = torch.stack([F.pad(data.x, (0, 0, 0, MOST - len(data.x))) for data in samples])
    adjacency = torch.cat([to_dense_adj(data.edge_index, max_num_nodes=MOST) for data in samples]).to(nodes)
    mask = torch.stack([torch.arange(MOST) < len(data.x) for data in samples])
    return (nodes, adjacency, mask), torch.cat([data.y for data in samples])


def dense_loss(module, batch):
    graphs, labels = batch
    return F.cross_entropy(module(*graphs), labels)


class OneGraph(LightningModule):
    """Classifies the nodes of one graph, of which some are labeled: the batch is the whole graph."""

    def __init__(self):
        super().__init__()
        self.gnn = GCN(FEATURES, 8, num_layers=2, out_channels=CLASSES)

    def training_step(self, data, batch_idx):
        out = self.gnn(data.x, data.edge_index)
        return F.cross_entropy(out[data.train_mask], data.y[data.train_mask])

    def configure_optimizers(self):
        return sgd(self.parameters())


def one_graph():
    data = graph(30, 0)
    data.y, data.train_mask = torch.arange(30) % CLASSES, torch.arange(30) < 20
    return [data] * SAMPLES


def first(samples):
    return samples[0]


CASES = [
    Case(
        "GIN, batches of graphs",
        "torch_geometric",
        Graphs,
        graphs,
        graph_loss,
        Batch.from_data_list,
        Fisher(
            graphs_and_labels,
            refused=r"argument `inputs` to be a tensor, .* but got a DataBatch, which isn't taken apart",
        ),
    ),
    Case(
        "dense GCN, batches of padded graphs",
        "torch_geometric",
        DenseGraphs,
        graphs,
        dense_loss,
        padded,
        Fisher(padded),
    ),
]
REFUSED = [
    Case(
        "node classification on one graph",
        "torch_geometric",
        OneGraph,
        one_graph,
        collate=first,
        refused=r"Data, which can't be split into sub-batches; give `split_fn`",
        why="the nodes of one graph are no separate samples",
    ),
]
