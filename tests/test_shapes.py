"The drawn shapes are worth learning: only their outline tells them apart, no sum over pixels"
import pytest,torch
from learner_from_scratch.fetch import draw_shapes
from learner_from_scratch.modules import Module,Linear,simple_cnn
from learner_from_scratch.runs import folder_learner

class LinearModel(Module):
    "One weight for each pixel and class"
    def __init__(self, n_out):
        super().__init__()
        self.l = Linear(64*64*3, n_out)
    def forward(self, x): return self.l(x.flatten(1))

@pytest.fixture(scope='module')
def best_accuracy(tmp_path_factory):
    path = draw_shapes(tmp_path_factory.mktemp('data')/'shapes', 3000, 750)
    def _best(model, lr):
        learn = folder_learner(path, lr=lr, opt='sgd', aug='none')
        learn.model = model
        learn.fit_one_cycle(8)
        return max(o[3] for o in learn.recorder.rows)
    return _best

def test_cnn_is_clearly_better_than_a_linear_model(best_accuracy):
    torch.manual_seed(42)
    cnn,linear = best_accuracy(simple_cnn(), .1),best_accuracy(LinearModel(10), .001)
    assert cnn > .55, cnn
    assert .12 < linear < cnn-.2, (linear, cnn)
