"""word2vec (skip-gram, negative sampling) on the Python documentation, with sparse gradients."""
import collections
import random
import re
from pydoc_data import topics

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

random.seed(0)
np.random.seed(0)
torch.manual_seed(0)

text = " ".join(list(topics.topics.values())[:25]).lower()
words = re.findall(r"[a-z_]+", text)
counts = collections.Counter(words)
vocabulary = [w for w, n in counts.most_common(800)]
index = {w: i for i, w in enumerate(vocabulary)}
corpus = np.array([index[w] for w in words if w in index])
noise = torch.tensor([counts[w] for w in vocabulary], dtype=torch.float).pow(0.75)


class SkipGram(nn.Module):
    def __init__(self, n, dim):
        super().__init__()
        self.center = nn.Embedding(n, dim, sparse=True)
        self.context = nn.Embedding(n, dim, sparse=True)
        nn.init.uniform_(self.center.weight, -0.5 / dim, 0.5 / dim)
        nn.init.zeros_(self.context.weight)

    def forward(self, center, positive, negative):
        c = self.center(center)
        pos = (c * self.context(positive)).sum(1)
        neg = torch.bmm(self.context(negative), c.unsqueeze(2)).squeeze(2)
        return -(F.logsigmoid(pos) + F.logsigmoid(-neg).sum(1)).mean()


model = SkipGram(len(vocabulary), 32)
optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.01)
bag = nn.EmbeddingBag(len(vocabulary), 8, mode="mean", sparse=True)
head = nn.Linear(8, len(vocabulary))
bag_optimizer = torch.optim.SGD(list(bag.parameters()) + list(head.parameters()), lr=0.5)

for step in range(150):
    position = np.random.randint(3, len(corpus) - 3, size=128)
    offset = np.random.choice([-3, -2, -1, 1, 2, 3], size=128)
    center = torch.from_numpy(corpus[position])
    positive = torch.from_numpy(corpus[position + offset])
    negative = torch.multinomial(noise, 128 * 5, replacement=True).view(128, 5)

    optimizer.zero_grad()
    loss = model(center, positive, negative)
    loss.backward()
    optimizer.step()

    # continuous bag of words, beside it
    window = torch.from_numpy(np.stack([corpus[position + o] for o in (-2, -1, 1, 2)], axis=1))
    bag_optimizer.zero_grad()
    cbow = F.cross_entropy(head(bag(window)), center)
    cbow.backward()
    bag_optimizer.step()

    if step % 25 == 0:
        print(f"step {step} skip-gram {loss.item():.4f} cbow {cbow.item():.4f}")

query = model.center.weight[index["function"]]
nearest = F.cosine_similarity(query.unsqueeze(0), model.center.weight).topk(6).indices.tolist()
print("function:", [vocabulary[i] for i in nearest[1:]])
