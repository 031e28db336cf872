"""Binarised weights with a straight-through estimator, and an activation with a backward of its own."""
import torch
import torch.nn as nn
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer


class Binarize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        ctx.save_for_backward(weight)
        scale = weight.abs().mean(dim=1, keepdim=True)
        return weight.sign() * scale

    @staticmethod
    def backward(ctx, grad_output):
        (weight,) = ctx.saved_tensors
        return grad_output * (weight.abs() <= 1).to(grad_output.dtype)


class MemoryEfficientSwish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, i):
        ctx.save_for_backward(i)
        return i * torch.sigmoid(i)

    @staticmethod
    def backward(ctx, grad_output):
        i, = ctx.saved_tensors
        sigmoid_i = torch.sigmoid(i)
        return grad_output * (sigmoid_i * (1 + i * (1 - sigmoid_i)))


class BinaryLinear(nn.Linear):
    def forward(self, input):
        return F.linear(input, Binarize.apply(self.weight), self.bias)


class Swish(nn.Module):
    def forward(self, x):
        return MemoryEfficientSwish.apply(x)


torch.manual_seed(0)
data = load_breast_cancer()
x = torch.tensor(data.data, dtype=torch.float32)
x = (x - x.mean(0)) / x.std(0)
y = torch.tensor(data.target, dtype=torch.float32)

model = nn.Sequential(nn.Linear(30, 64), Swish(), BinaryLinear(64, 64), nn.BatchNorm1d(64), Swish(), nn.Linear(64, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

for epoch in range(30):
    correct = 0
    for idx in torch.randperm(len(x)).split(64):
        if len(idx) < 2:
            continue
        out = model(x[idx]).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(out, y[idx])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        correct += ((out > 0) == (y[idx] > 0.5)).sum().item()
    print("epoch %2d  loss %.4f  accuracy %.3f" % (epoch, loss.item(), correct / len(x)))
