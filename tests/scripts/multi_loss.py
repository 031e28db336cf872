"""Multi-task learning: a shared trunk, three losses, two backward calls a step, learned uncertainty weights."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_diabetes


class MultiTask(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(9, 48), nn.LeakyReLU(0.1), nn.BatchNorm1d(48), nn.Linear(48, 24), nn.Tanh())
        self.progression = nn.Linear(24, 1)
        self.sex = nn.Linear(24, 1)
        self.decoder = nn.Linear(24, 9)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        features = self.trunk(x)
        return {
            "progression": self.progression(features).squeeze(1),
            "sex": self.sex(features).squeeze(1),
            "reconstruction": self.decoder(features),
        }


def weighted(loss, log_var):
    return torch.exp(-log_var) * loss + log_var


torch.manual_seed(0)
X, target = load_diabetes(return_X_y=True)
X = torch.tensor(X).float() * 21
sex = (X[:, 1] > 0).float()
X = torch.cat([X[:, :1], X[:, 2:]], dim=1)
target = torch.tensor(target).float()
target = (target - target.mean()) / target.std()

model = MultiTask()
optimizer = torch.optim.AdamW(
    [{"params": [p for n, p in model.named_parameters() if n != "log_vars"]},
     {"params": [model.log_vars], "lr": 1e-2, "weight_decay": 0.0}],
    lr=2e-3,
)

for epoch in range(20):
    for rows in torch.randperm(len(X)).split(40)[:-1]:
        out = model(X[rows])
        regression = F.mse_loss(out["progression"], target[rows])
        classification = F.binary_cross_entropy_with_logits(out["sex"], sex[rows])
        reconstruction = F.l1_loss(out["reconstruction"], X[rows])

        optimizer.zero_grad()
        (weighted(regression, model.log_vars[0]) + weighted(classification, model.log_vars[1])).backward(retain_graph=True)
        (0.1 * reconstruction).backward()
        optimizer.step()
    print(f"epoch {epoch:2d}  regression {regression.item():.3f}  classification {classification.item():.3f}"
          f"  reconstruction {reconstruction.item():.3f}  weights {model.log_vars.exp().tolist()}")
