"""Mixed precision as in the AMP recipe, on whatever device there is."""
import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
use_amp = True
amp_dtype = torch.float16 if device == "cuda" else torch.bfloat16

digits = load_digits()
x = torch.tensor(digits.data, dtype=torch.float32, device=device) / 16
y = torch.tensor(digits.target, device=device)


def make_model(in_size, out_size, num_layers):
    layers = []
    for _ in range(num_layers - 1):
        layers.append(nn.Linear(in_size, in_size))
        layers.append(nn.ReLU())
    layers.append(nn.Linear(in_size, out_size))
    return nn.Sequential(*layers).to(device)


net = make_model(64, 10, 3)
loss_fn = nn.CrossEntropyLoss()
opt = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
scaler = torch.amp.GradScaler(device, enabled=use_amp and amp_dtype == torch.float16)

for epoch in range(10):
    for idx in torch.randperm(len(x), device=device).split(64):
        with torch.autocast(device_type=device, dtype=amp_dtype, enabled=use_amp):
            output = net(x[idx])
            assert not use_amp or output.dtype is amp_dtype
            loss = loss_fn(output, y[idx])
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm=1.0)
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    print(f"epoch {epoch} loss {loss.item():.4f} scale {scaler.get_scale()}")
