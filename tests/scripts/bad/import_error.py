import torch
from torch import nn

import a_package_that_nobody_has

model = a_package_that_nobody_has.wrap(nn.Linear(3, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(100):
    loss = model(torch.randn(4, 3)).mean()
    loss.backward()
    optimizer.step()
