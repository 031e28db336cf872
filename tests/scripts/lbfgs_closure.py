"""Diabetes progression with a small network, full batch L-BFGS."""
import torch
from sklearn.datasets import load_diabetes

torch.manual_seed(0)

X, y = load_diabetes(return_X_y=True)
X = torch.from_numpy(X).float() * 20
y = torch.from_numpy(y).float().unsqueeze(1)
y = (y - y.mean()) / y.std()
X_train, y_train = X[:352], y[:352]
X_test, y_test = X[352:], y[352:]

net = torch.nn.Sequential(
    torch.nn.Linear(10, 16),
    torch.nn.Tanh(),
    torch.nn.Linear(16, 16),
    torch.nn.Tanh(),
    torch.nn.Linear(16, 1),
)
loss_fn = torch.nn.MSELoss()
weight_decay = 1e-3

optimizer = torch.optim.LBFGS(net.parameters(), lr=1.0, max_iter=4, history_size=10, line_search_fn="strong_wolfe")

evaluations = 0
for it in range(200):

    def closure():
        global evaluations
        evaluations += 1
        optimizer.zero_grad()
        loss = loss_fn(net(X_train), y_train)
        loss = loss + weight_decay * sum(p.square().sum() for p in net.parameters())
        loss.backward()
        return loss

    loss = optimizer.step(closure)
    if it % 10 == 0:
        with torch.no_grad():
            test = loss_fn(net(X_test), y_test)
        print(f"{it:4d}  train {loss.item():.4f}  test {test.item():.4f}  evaluations {evaluations}")
