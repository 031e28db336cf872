"""Everything lives inside functions: nothing at module level survives a call."""
import torch


def make_model(sizes):
    import torch.nn as nn

    def block(a, b):
        return nn.Sequential(nn.Linear(a, b), nn.ELU())

    return nn.Sequential(*[block(a, b) for a, b in zip(sizes[:-2], sizes[1:-1])], nn.Linear(*sizes[-2:]))


def get_data():
    from sklearn.datasets import load_iris

    bunch = load_iris()
    features = torch.tensor(bunch["data"]).float()
    return (features - features.mean(0)) / features.std(0), torch.tensor(bunch["target"])


def run():
    features, target = get_data()
    model = make_model([4, 32, 32, 3])
    optimizer = torch.optim.Adamax(model.parameters(), lr=0.01)

    def step(batch):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(features[batch]), target[batch])
        loss.backward()
        optimizer.step()
        return loss.item()

    history = [step(torch.randint(len(features), (32,))) for _ in range(250)]
    accuracy = (model(features).argmax(-1) == target).double().mean().item()
    return history, accuracy


def main():
    torch.manual_seed(2024)
    history, accuracy = run()
    print("first", history[0], "last", history[-1], "accuracy", accuracy)


main()
