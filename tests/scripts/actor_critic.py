"""Advantage actor-critic on a cart-pole written here; the critic learns several times for each update of the actor."""

import math
import random

import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical


class CartPole:
    gravity, cart, pole, half_length, force, tau = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)

    def reset(self):
        self.state = self.rng.uniform(-0.05, 0.05, size=4)
        self.age = 0
        return self.state.astype(np.float32)

    def step(self, action):
        x, v, theta, omega = self.state
        push = self.force if action == 1 else -self.force
        total = self.cart + self.pole
        moment = self.pole * self.half_length
        temp = (push + moment * omega**2 * math.sin(theta)) / total
        alpha = (self.gravity * math.sin(theta) - math.cos(theta) * temp) / (
            self.half_length * (4 / 3 - self.pole * math.cos(theta) ** 2 / total)
        )
        acceleration = temp - moment * alpha * math.cos(theta) / total
        self.state = self.state + self.tau * np.array([v, acceleration, omega, alpha])
        self.age += 1
        fallen = abs(self.state[0]) > 2.4 or abs(self.state[2]) > 12 * math.pi / 180
        return self.state.astype(np.float32), 1.0, fallen or self.age >= 200


class Agent:
    def __init__(self):
        self.actor = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2))
        self.critic = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1))
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=5e-3)
        self.critic_optimizer = torch.optim.SGD(self.critic.parameters(), lr=1e-2, momentum=0.9)

    @torch.no_grad()
    def act(self, observation):
        return Categorical(logits=self.actor(torch.from_numpy(observation))).sample().item()

    def update_critic(self, observations, returns, repeats=4):
        for _ in range(repeats):
            value = self.critic(observations).squeeze(-1)
            loss = nn.functional.smooth_l1_loss(value, returns)
            self.critic_optimizer.zero_grad()
            loss.backward()
            self.critic_optimizer.step()
        return loss.item()

    def update_actor(self, observations, actions, returns):
        with torch.no_grad():
            advantage = returns - self.critic(observations).squeeze(-1)
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        policy = Categorical(logits=self.actor(observations))
        loss = -(policy.log_prob(actions) * advantage).mean() - 0.01 * policy.entropy().mean()
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()
        return loss.item()


def episode(env, agent, gamma=0.98):
    observations, actions, rewards = [], [], []
    observation, done = env.reset(), False
    while not done:
        action = agent.act(observation)
        observations.append(observation)
        actions.append(action)
        observation, reward, done = env.step(action)
        rewards.append(reward)
    returns, total = [], 0.0
    for reward in reversed(rewards):
        total = reward + gamma * total
        returns.insert(0, total)
    return np.stack(observations), np.array(actions), np.array(returns, dtype=np.float32) / 10


def main():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    env, agent = CartPole(seed=0), Agent()
    for iteration in range(80):
        rollouts = [episode(env, agent) for _ in range(2)]
        observations, actions, returns = (torch.from_numpy(np.concatenate(part)) for part in zip(*rollouts))
        critic_loss = agent.update_critic(observations, returns)
        actor_loss = agent.update_actor(observations, actions, returns)
        if iteration % 10 == 0:
            print(f"{iteration}: mean length {len(actions) / 2:.1f} actor {actor_loss:.4f} critic {critic_loss:.4f}")


if __name__ == "__main__":
    main()
