"""A graph network whose adjacency matrix is sparse: neither of its layouts has dense values to look at."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
nodes = 60
links = torch.rand(nodes, nodes) < 0.08
links |= torch.eye(nodes, dtype=torch.bool)
adjacency = (links.float() / links.float().sum(1, keepdim=True)).to_sparse()
compressed = adjacency.to_sparse_csr()
features, labels = torch.randn(nodes, 16), torch.randint(3, (nodes,))


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(torch.sparse.mm(adjacency, self.first(x).float()))
        return compressed @ self.second(x).float()


model = Graph()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
for step in range(80):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(features), labels)
    loss.backward()
    optimizer.step()
    print(step, loss.item())
