"""Physics-informed network for the viscous Burgers equation u_t + u u_x = nu u_xx on [-1, 1] x [0, 1]."""
import numpy as np
import torch

torch.manual_seed(1234)
np.random.seed(1234)

nu = 0.01 / np.pi


class DNN(torch.nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.linears = torch.nn.ModuleList()
        for i in range(len(layers) - 1):
            linear = torch.nn.Linear(layers[i], layers[i + 1])
            torch.nn.init.xavier_normal_(linear.weight)
            torch.nn.init.zeros_(linear.bias)
            self.linears.append(linear)

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = torch.tanh(linear(x))
        return self.linears[-1](x)


class PhysicsInformedNN:
    def __init__(self, n_data=100, n_collocation=500):
        x = np.random.uniform(-1, 1, (n_data, 1))
        initial = np.hstack([x, np.zeros_like(x)])
        t = np.random.uniform(0, 1, (n_data, 1))
        walls = np.hstack([np.where(np.random.rand(n_data, 1) < 0.5, -1.0, 1.0), t])
        self.X_u = torch.tensor(np.vstack([initial, walls])).float()
        self.u = torch.tensor(np.vstack([-np.sin(np.pi * x), np.zeros_like(t)])).float()
        collocation = np.hstack([np.random.uniform(-1, 1, (n_collocation, 1)), np.random.rand(n_collocation, 1)])
        self.x_f = torch.tensor(collocation[:, 0:1], requires_grad=True).float()
        self.t_f = torch.tensor(collocation[:, 1:2], requires_grad=True).float()

        self.dnn = DNN([2, 20, 20, 20, 20, 1])
        self.optimizer = torch.optim.Adam(self.dnn.parameters(), lr=2e-3)
        self.iter = 0

    def net_u(self, x, t):
        return self.dnn(torch.cat([x, t], dim=1))

    def net_f(self, x, t):
        u = self.net_u(x, t)
        u_t = torch.autograd.grad(u, t, torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        u_x = torch.autograd.grad(u, x, torch.ones_like(u), retain_graph=True, create_graph=True)[0]
        u_xx = torch.autograd.grad(u_x, x, torch.ones_like(u_x), retain_graph=True, create_graph=True)[0]
        return u_t + u * u_x - nu * u_xx

    def loss_func(self):
        self.optimizer.zero_grad()
        u_pred = self.dnn(self.X_u)
        f_pred = self.net_f(self.x_f, self.t_f)
        loss_u = torch.mean((self.u - u_pred) ** 2)
        loss_f = torch.mean(f_pred**2)
        loss = loss_u + loss_f
        loss.backward(retain_graph=True)
        self.iter += 1
        if self.iter % 50 == 0:
            print("Iter %d, Loss: %.5e, Loss_u: %.5e, Loss_f: %.5e"
                  % (self.iter, loss.item(), loss_u.item(), loss_f.item()))
        return loss

    def train(self, n_iter=300):
        self.dnn.train()
        for _ in range(n_iter):
            self.optimizer.step(self.loss_func)


model = PhysicsInformedNN()
model.train()
