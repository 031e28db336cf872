"""A wide network with heavy dropout on a small data set, evaluated as it goes."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class DropoutNet(nn.Module):
    def __init__(self, features=30, hidden=192, classes=4):
        super().__init__()
        self.input_dropout = nn.Dropout(0.2)
        self.hidden1 = nn.Linear(features, hidden)
        self.hidden2 = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(hidden, classes)

    def forward(self, x):
        x = F.relu(self.hidden1(self.input_dropout(x)))
        return self.head(self.dropout(F.relu(self.hidden2(self.dropout(x)))))


centres = torch.randn(4, 30)
labels = torch.randint(4, (1200,))
inputs = centres[labels] + 2.0 * torch.randn(1200, 30)
training = DataLoader(TensorDataset(inputs[:960], labels[:960]), batch_size=64, shuffle=True)

model = DropoutNet().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for epoch in range(12):
    model.train()
    for x, label in training:
        loss = F.cross_entropy(model(x.to(device)), label.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        eval_loss = F.cross_entropy(model(inputs[960:].to(device)), labels[960:].to(device))
    print(f"epoch {epoch + 1} loss {loss.item():.4f} eval loss {eval_loss.item():.4f}")
