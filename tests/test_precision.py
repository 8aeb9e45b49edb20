"Gradients in half precision are finite numbers, and near those in float32"
import pytest
import torch
from torch import nn
from learner_from_scratch.callbacks import Callback,Learner,MixedPrecision
from learner_from_scratch.learner import DataLoaders
from learner_from_scratch.loss import cross_entropy
from learner_from_scratch.modules import AdaptivePool,ConvLayer,Linear,Sequential
from learner_from_scratch.norm import BatchNorm2d
from learner_from_scratch.resnet import resnet18,small_resnet

def normed():
    return Sequential(ConvLayer(3,8,stride=2), BatchNorm2d(8), AdaptivePool(), Linear(8,2))

def theirs():
    conv = nn.Conv2d(3,8,3,stride=2), nn.BatchNorm2d(8), nn.ReLU()
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8,2))

class Grads(Callback):
    def after_backward(self):
        self.grads = torch.cat([p.grad.flatten() for p in self.model.parameters()])

def grads(make, side, *cbs):
    "All gradients of one batch as a vector"
    torch.manual_seed(0)
    batch = torch.randn(16,3,side,side),torch.arange(16)%2
    got = Grads()
    Learner(make(), DataLoaders([batch],[]), cross_entropy, .1, [got,*cbs]).fit(1)
    return got.grads

# the last convolutions of the first two give 1×1; that of the third one has 1×1 to begin with
@pytest.mark.parametrize('make,side', [
    (lambda: resnet18(2),32), (lambda: small_resnet(2),16), (lambda: small_resnet(2),8),
    (normed,8), (theirs,8)])
def test_near_float32(make, side):
    full,half = grads(make, side),grads(make, side, MixedPrecision())
    assert half.isfinite().all() and not torch.equal(full, half)
    assert torch.cosine_similarity(full, half, dim=0) > .8
    assert half.norm().item()==pytest.approx(full.norm().item(), rel=.1)
