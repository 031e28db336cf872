"""Character model of the Zen of Python, input and output embeddings shared (Press & Wolf, 2017)."""

import codecs
import contextlib
import io

import torch
from torch import nn

with contextlib.redirect_stdout(io.StringIO()):
    import this

TEXT = codecs.decode(this.s, "rot13")
VOCABULARY = sorted(set(TEXT))
INDEX = {c: i for i, c in enumerate(VOCABULARY)}


class CharModel(nn.Module):
    def __init__(self, n_tokens: int, width: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.1)
        self.encoder = nn.Embedding(n_tokens, width)
        self.rnn = nn.GRU(width, width, num_layers=1, batch_first=True)
        self.decoder = nn.Linear(width, n_tokens)
        self.decoder.weight = self.encoder.weight
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)

    def forward(self, tokens, hidden=None):
        output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        return self.decoder(self.drop(output)), hidden


@torch.no_grad()
def sample(model, prompt="Beautiful", length=80):
    model.eval()
    tokens = torch.tensor([[INDEX[c] for c in prompt]])
    logits, hidden = model(tokens)
    out = list(prompt)
    for _ in range(length):
        choice = torch.multinomial(logits[0, -1].softmax(-1), 1)
        out.append(VOCABULARY[choice.item()])
        logits, hidden = model(choice.view(1, 1), hidden)
    model.train()
    return "".join(out)


data = torch.tensor([INDEX[c] for c in TEXT])
model = CharModel(len(VOCABULARY), 48)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
criterion = nn.CrossEntropyLoss()
print(f"{len(TEXT)} characters, {sum(p.numel() for p in model.parameters())} parameters")

for step in range(300):
    starts = torch.randint(len(data) - 33, (16,))
    chunk = torch.stack([data[s : s + 33] for s in starts])
    logits, _ = model(chunk[:, :-1])
    loss = criterion(logits.flatten(0, 1), chunk[:, 1:].flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 49:
        print(f"step {step + 1}: loss {loss.item():.3f}  {sample(model)!r}")
