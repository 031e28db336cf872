"""Rate films: the user's features travel in bfloat16, the film's number as an integer."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

FILMS, FEATURES, WIDTH = 1900, 8, 16


class RatingModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.film = nn.Embedding(FILMS + 100, WIDTH)  # with room for new films
        self.user = nn.Linear(FEATURES, WIDTH)
        nn.init.normal_(self.film.weight, std=0.1)

    def forward(self, film, features):
        film = self.film(film)
        user = self.user(features.float())
        return (film * user).sum(-1)


taste = torch.randn(FILMS, FEATURES)


def ratings(count=4096):
    film = torch.randint(FILMS, (count,))
    features = torch.randn(count, FEATURES)
    rating = (taste[film] * features).sum(-1) / 2 + 0.3 * torch.randn(count)
    return film.to(device), features.to(device, torch.bfloat16), rating.to(device)


model = RatingModel().to(device)
optimizer = torch.optim.Adam(model.parameters(), lr=5e-2)

for step in range(200):
    film, features, rating = ratings()
    loss = F.mse_loss(model(film, features), rating)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 20 == 19:
        print(f"step {step + 1} loss {loss.item():.4f}")
