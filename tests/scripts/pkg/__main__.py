import argparse

from . import train

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="pkg")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--lr", type=float, default=3e-3)
    arguments = parser.parse_args()
    train.fit(epochs=arguments.epochs, lr=arguments.lr)
