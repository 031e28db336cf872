"""A detector: it sorts its boxes by score, and rounding swaps those that are nearly tied."""

import pytest
import torch
from checked import batches, check, plan, rules
from torch import nn


class Detector(nn.Module):
    """Boxes and scores of 40 places, the 20 best in order."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(8, 64)
        self.norm = nn.LayerNorm(64)
        self.out = nn.Linear(64, 40 * 5)
        with torch.no_grad():
            self.out.weight.mul_(0.3)

    def forward(self, x):
        found = self.out(torch.relu(self.norm(self.hidden(x)))).unflatten(-1, (40, 5))
        return [self.best(each) for each in found]

    def best(self, found):
        scores, order = found[:, 0].sigmoid().topk(20)
        return {"boxes": found[order, 1:], "scores": scores, "labels": order}


class Thresholding(Detector):
    def best(self, found):
        scores = found[:, 0].sigmoid()
        kept = scores > 0.5
        return {"boxes": found[kept, 1:], "scores": scores[kept]}


TYPES = {"hidden": "Linear", "norm": "LayerNorm", "out": "Linear"}


@pytest.mark.parametrize("model", [Detector, Thresholding])
def test_a_detector_in_bfloat16_passes(model):
    torch.manual_seed(0)
    wanted = plan(modules=dict.fromkeys(TYPES, "bfloat16"), types=TYPES)
    report = check(wanted, model, batches(count=3))
    assert report.passed, [f.message for f in report.findings]
    assert not rules(report) & {"PA731", "PA732", "PA733"}
