"Rates of parameter groups in a cycle, a search and a fit that goes on"
from contextlib import suppress
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import (CosineAnnealingLR,CyclicLR,LinearLR,ReduceLROnPlateau,
                                      SequentialLR)
from learner_from_scratch.callbacks import Callback,Learner,OneCycle
from learner_from_scratch.checkpoint import Checkpoint
from learner_from_scratch.finetune import by_names,by_parts,param_names
from learner_from_scratch.learner import DataLoaders,SGD
from learner_from_scratch.loss import cross_entropy
from learner_from_scratch.modules import Linear,Sequential
from learner_from_scratch.inside import lsuv
from learner_from_scratch.optimizers import AdamW,Momentum,Muon,Together,TorchSchedule
from learner_from_scratch.optimizers import by_ndim,no_decay
from learner_from_scratch.recorder import KeepRatios,Recorder

torch.manual_seed(42)
xs = torch.randn(1000,10)
batches = [(o,o[:,:3].argmax(1)) for o in xs.split(25)]
dls = DataLoaders(batches[:30], batches[30:])

def ours():
    torch.manual_seed(0)
    return Sequential(Linear(10,20), Sequential(Linear(20,20), Linear(20,20)), Linear(20,3))

def theirs():
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(20,20), nn.BatchNorm1d(20))
    return nn.Sequential(nn.Linear(10,20), inner, nn.ReLU(), nn.Linear(20,3))

class Rates(Callback):
    "The rates with which each step was made"
    order = 20
    def before_fit(self): self.seen = []
    def after_step(self): self.seen.append([g['lr'] for g in self.opt.param_groups])

class Cat(Callback):
    def after_step(self):
        if (self.epoch,self.num)==(1,6): raise KeyboardInterrupt

def learner(model, opt_func, *cbs):
    return Learner(model, dls, cross_entropy, .02, cbs, opt_func)

@pytest.mark.parametrize('anneal', ['linear','cosine'])
@pytest.mark.parametrize('lr_max', [.05, slice(1e-4,1e-2), [.01,.02,.05]])
def test_cycle_of_groups(lr_max, anneal):
    "Each group has its own cycle: a tenth, its highest rate after a quarter, and down"
    model,rates = ours(),Rates()
    learner(model, by_names(model, '1', '2', div=10), rates).fit_one_cycle(4, lr_max, anneal)
    top = {float: [.0005,.005,.05], slice: [1e-4,1e-3,1e-2], list: lr_max}[type(lr_max)]
    seen = torch.tensor(rates.seen)
    assert seen.shape==(120,3)
    assert torch.allclose(seen[30], torch.tensor(top))
    assert torch.allclose(seen[0], torch.tensor(top)/10)
    assert torch.equal(seen.argmax(0), torch.tensor([30]*3))
    single = Rates()
    learner(ours(), SGD, single).fit_one_cycle(4, top[-1], anneal)
    assert torch.allclose(seen[:,-1:], torch.tensor(single.seen))

@pytest.mark.parametrize('make', [ours,theirs])
@pytest.mark.parametrize('opt_func', [SGD, torch.optim.AdamW, Momentum])
def test_search_with_a_closure(make, opt_func):
    "The same suggestion whether the optimizer asks for the parameters or knows them"
    model = make()
    before = [p.clone() for p in model.parameters()]
    sd = {k: v.clone() for k,v in model.state_dict().items()}
    def closure(params, lr): return opt_func(list(model.parameters()), lr)
    state = torch.get_rng_state()
    res = [learner(model, o).lr_find(plot=False) for o in (opt_func, closure)]
    assert res[0]==res[1]
    assert all(torch.equal(a, b) for a,b in zip(before, model.parameters()))
    assert all(torch.equal(v, model.state_dict()[k]) for k,v in sd.items())
    assert torch.equal(torch.get_rng_state(), state)

def test_search_with_several_optimizers():
    model = ours()
    weights,rest = by_ndim(model.parameters())
    def closure(params, lr): return Together(Muon(weights, lr), AdamW(rest, lr))
    def asks(params, lr):
        a,b = by_ndim(params)
        return Together(Muon(a, lr), AdamW(b, lr))
    a,b = [learner(model, o).lr_find(plot=False) for o in (closure,asks)]
    assert a==b

@pytest.mark.parametrize('model', [ours(), theirs()])
def test_search_of_another_model(model):
    "It would train nothing of this one, and all of the other"
    other = ours()
    before = [p.clone() for p in other.parameters()]
    learn = learner(model, lambda params,lr: SGD(other.parameters(), lr))
    with pytest.raises(ValueError, match='takes parameters that are not those of the model'):
        learn.lr_find()
    assert all(torch.equal(a, b) for a,b in zip(before, other.parameters()))

@pytest.mark.parametrize('make', [ours,theirs])
def test_names(make):
    "As long as the model's parameters, in their order, each once"
    model = make()
    pairs = zip(param_names(model).values(), model.parameters(), strict=True)
    assert all(a is b for a,b in pairs)
    for k,p in param_names(model).items():
        assert torch.equal(model.state_dict()[k], p)

def test_tied_names():
    model = ours()
    model.tied = model.layers[0]
    assert list(param_names(model))[-2:]==['2.w','2.b']
    assert len(param_names(model))==len(model.parameters())

def other_weights(model):
    for p in model.parameters(): p.data.normal_()

def fit(d, model, opt_func, *cbs, resume=False, kill=False, lr_max=None):
    run = Checkpoint(d, every=2, resume=resume)
    if resume: other_weights(model)
    with suppress(KeyboardInterrupt):
        learner(model, opt_func, *cbs, run, *[Cat()]*kill).fit_one_cycle(3, lr_max)
    return torch.cat([p.detach().flatten() for p in model.parameters()])

@pytest.mark.parametrize('lr_max', [None, slice(1e-4,1e-2)])
def test_groups_go_on(tmp_path, lr_max):
    "A killed fit goes on with the rates of its groups, from other weights"
    def part(**kwargs):
        model = ours()
        folder = tmp_path/kwargs.pop('d', 'a')
        return fit(folder, model, by_parts(model), lr_max=lr_max, **kwargs)
    want = part(d='b')
    assert not torch.equal(part(kill=True), want)
    assert torch.equal(part(resume=True), want)

def in_turn(opt):
    two = [LinearLR(opt, total_iters=20), CosineAnnealingLR(opt, T_max=70)]
    return SequentialLR(opt, two, milestones=[20])

def cyclic(opt): # takes a part out of the state that it is given, and is given it twice
    return CyclicLR(opt, base_lr=1e-4, max_lr=1e-2, step_size_up=3, cycle_momentum=False)

@pytest.mark.parametrize('make,every', [(in_turn,2),(cyclic,1)])
def test_their_schedulers_go_on(tmp_path, make, every):
    "Schedulers of PyTorch's, killed and gone on"
    def part(d, resume=False, kill=False):
        model = theirs()
        if resume: other_weights(model)
        cbs = [TorchSchedule(make), Checkpoint(d, every=every, resume=resume), *[Cat()]*kill]
        with suppress(KeyboardInterrupt): learner(model, torch.optim.AdamW, *cbs).fit(3)
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    want = part(tmp_path/'b')
    part(tmp_path/'a', kill=True)
    assert torch.equal(part(tmp_path/'a', resume=True), want)

def test_one_group_as_before():
    "With one group, `KeepRatios` changes no bit"
    def weights(*cbs):
        model = ours()
        learner(model, Momentum, OneCycle(.05), *cbs).fit(2)
        return torch.cat([p.detach().flatten() for p in model.parameters()])
    assert torch.equal(weights(), weights(KeepRatios()))

def test_plateau_of_this_fit():
    "It watches the table of its own fit; a column that isn't there is told at the start"
    plateau = partial(TorchSchedule, partial(ReduceLROnPlateau, patience=0), 'epoch')
    learn = learner(theirs(), torch.optim.SGD)
    learn.fit(1, cbs=Recorder())
    with pytest.raises(ValueError, match='needs a `Recorder`'): learn.fit(1, cbs=plateau())
    before = [p.detach().clone() for p in learn.model.parameters()]
    with pytest.raises(ValueError, match="got 'val_loss'"):
        learn.fit(1, cbs=[Recorder(), plateau('val_loss')])
    assert all(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()))

def test_no_decay_of_a_lone_parameter():
    w = nn.Parameter(torch.ones(3,2))
    opt = AdamW(no_decay([dict(params=w)]), lr=.1)
    w.square().sum().backward()
    opt.step()
    assert (w<1).all()
    with pytest.raises(TypeError, match='in a list'): no_decay(w)

def test_layer_that_is_never_called():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a,self.spare = nn.Linear(3,2),nn.Linear(3,2)
        def forward(self, x): return self.a(x)
    with pytest.raises(ValueError, match='layer spare'): lsuv(Net(), torch.randn(8,3))
