# One block, applied several times with the same weights (as in ALBERT or a weight-tied DEQ),
# on the wine data.
import torch
import torch.nn as nn
from sklearn.datasets import load_wine
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

torch.manual_seed(42)

X, y = load_wine(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, test_size=0.25, random_state=42, stratify=y)
scaler = StandardScaler().fit(X_train)
X_train = torch.tensor(scaler.transform(X_train), dtype=torch.float32)
X_test = torch.tensor(scaler.transform(X_test), dtype=torch.float32)
y_train, y_test = torch.tensor(y_train), torch.tensor(y_test)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        return x + self.ff(self.norm(x))


class Recurrent(nn.Module):
    def __init__(self, n_in, n_out, width=32):
        super().__init__()
        self.embed = nn.Linear(n_in, width)
        self.block = block = Block(width)
        self.stages = nn.ModuleList([block, block])  # the very same module, under two names
        self.out = nn.Linear(width, n_out)

    def forward(self, x):
        x = self.embed(x)
        x = self.block(x)
        for stage in self.stages:
            x = stage(x)
        return self.out(x)


model = Recurrent(13, 3)
opt = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
loss_fn = nn.CrossEntropyLoss(label_smoothing=0.05)

for epoch in range(60):
    model.train()
    perm = torch.randperm(len(X_train))
    for idx in perm.split(32):
        opt.zero_grad()
        loss = loss_fn(model(X_train[idx]), y_train[idx])
        loss.backward()
        opt.step()
    if epoch % 10 == 0:
        model.eval()
        with torch.no_grad():
            acc = (model(X_test).argmax(1) == y_test).float().mean()
        print("epoch", epoch, "loss", round(loss.item(), 4), "test accuracy", round(acc.item(), 3))
