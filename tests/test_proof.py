"""What 91_proof goes on to: networks within networks, the books a module keeps, both Learners
beside a plain loop, and mistakes that must not pass"""
import inspect,math
from functools import partial

import pytest,torch
import torch.nn.functional as F
from hypothesis import Phase,given,settings,strategies as st
from torch import nn,tensor
from learner_from_scratch import callbacks as everyday, learner as chapter
from learner_from_scratch import proof
from learner_from_scratch.data import DataLoader
from learner_from_scratch.modules import *
from learner_from_scratch.loss import cross_entropy,log_softmax,logsumexp,nll
from learner_from_scratch.learner import SGD,DataLoaders
from learner_from_scratch.proof import floats,shake,torch_conv,twin

cases = settings(max_examples=50, deadline=None, derandomize=True)
first_failure = settings(cases, phases=[Phase.generate]) # it needn't be the smallest
few,side,yes_no = st.integers(1,5),st.integers(3,8),st.booleans()
apart,same = (partial(o, tol=256) for o in (proof.apart,proof.same))

@pytest.fixture(autouse=True, scope='module')
def exact():
    "Float64, where a mistake can't be taken for rounding; one thread, as all is small"
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    with floats(torch.float64): yield
    torch.set_num_threads(n)

# Each claim is about a piece, and a wrong one can be put in its place

def claim(**draws):
    "A test of `f` on drawn arguments, of the piece that is its first one"
    def deco(f):
        def run(piece, how=cases):
            @how
            @given(seed=few, **draws)
            def check(seed, **kwargs):
                torch.manual_seed(seed)
                f(piece, **kwargs)
            check()
        return run
    return deco

@claim(bs=few, ni=few, nf=few, h=side, w=side, stride=few, bias=yes_no, act=yes_no)
def conv_is_right(piece, bs, ni, nf, h, w, stride, bias, act):
    ours,theirs = piece(ni, nf, stride, bias, act),torch_conv(ni, nf, stride, bias, act)
    same(*twin(shake(ours), theirs), torch.randn(bs,ni,h,w))

@claim(bs=few, ni=st.integers(1,100), nf=few)
def linear_is_right(piece, bs, ni, nf):
    same(*twin(shake(piece(ni,nf)), nn.Linear(ni,nf)), torch.randn(bs,ni))

@claim(bs=few, nf=few, h=side, w=side)
def pool_is_right(piece, bs, nf, h, w):
    theirs = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    same(piece(), theirs, torch.randn(bs,nf,h,w))

scores = st.lists(st.floats(-1e4,1e4), min_size=12, max_size=12)
shapes = st.sampled_from([(1,12),(2,6),(4,3),(12,1)])
@claim(x=scores, shape=shapes)
def log_softmax_is_right(piece, x, shape):
    same(piece, partial(F.log_softmax, dim=-1), tensor(x).view(shape))

def loss_is_right(theirs, prep=lambda x: x):
    @claim(bs=st.integers(1,30), n=st.integers(1,12), scale=st.sampled_from([1e-3,1,100,1e4]))
    def run(piece, bs, n, scale):
        x,yb = prep((torch.randn(bs,n)*scale).clamp(-1e4,1e4)),torch.randint(n, (bs,))
        same(lambda x: piece(x, yb), lambda x: theirs(x, yb), x)
    return run
ce_is_right = loss_is_right(F.cross_entropy)
def log_probs(x): return -x.abs() # never above 0
nll_is_right = loss_is_right(F.nll_loss, log_probs)

@claim(n=few, lr=st.floats(0,.5), wd=st.floats(0,.5), steps=few)
def sgd_is_right(piece, n, lr, wd, steps):
    p,t = torch.randn(2,n)
    def descend(opt_func):
        a,unused = nn.Parameter(p.clone()),nn.Parameter(p.clone())
        opt = opt_func([a,unused])
        for _ in range(steps):
            ((a-t)**2).sum().backward()
            opt.step(); opt.zero_grad()
        return torch.stack([a.data,unused.data])
    theirs = partial(torch.optim.SGD, lr=lr, weight_decay=wd)
    apart(descend(partial(piece, lr=lr, wd=wd)), descend(theirs))

right = [(conv_is_right,ConvLayer), (linear_is_right,Linear), (pool_is_right,AdaptivePool),
         (log_softmax_is_right,log_softmax), (nll_is_right,nll), (ce_is_right,cross_entropy),
         (sgd_is_right,SGD)]

@pytest.mark.parametrize('claim,piece', right, ids=[o.__name__ for _,o in right])
def test_right(claim, piece): claim(piece)

# Mistakes

class NoStride(ConvLayer):
    def __init__(self, ni, nf, stride, bias, act): super().__init__(ni, nf, 1, bias, act)
class AlwaysAct(ConvLayer):
    def forward(self, x): return super().forward(x).relu()
class NoBias(ConvLayer):
    def forward(self, x):
        x = F.conv2d(x, self.w, None if self.b is None else 0*self.b, self.stride, 1)
        return x.relu() if self.act else x
class Mirrored(ConvLayer):
    def forward(self, x):
        x = F.conv2d(x, self.w.flip(-1), self.b, self.stride, 1)
        return x.relu() if self.act else x
class Leaky(ConvLayer):
    def forward(self, x):
        x = F.conv2d(x, self.w, self.b, self.stride, 1)
        return F.leaky_relu(x, 1e-6) if self.act else x
class Detached(Linear):
    def forward(self, x): return x.detach()@self.w.t() + self.b + 0*x.sum()
class Forgetful(Linear):
    def forward(self, x): return x@self.w.t() + 0*self.b
class ChannelPool(AdaptivePool):
    def forward(self, x): return x.mean((1,2))
class SumPool(AdaptivePool):
    def forward(self, x): return x.sum((2,3))
class MaxPool(AdaptivePool):
    def forward(self, x): return x.amax((2,3))

def naive(x): return x - x.exp().sum(-1, keepdim=True).log()
def shifted_late(x): return x - logsumexp(x)[...,None]
def wrong_axis(x): return F.log_softmax(x, 0)
def summed(x, yb): return nll(x, yb)*len(yb)
def plus(x, yb): return -nll(x, yb)
def off_by_one(x, yb): return nll(x, (yb+1)%x.shape[-1])
def twice(x, yb): return nll(log_softmax(x).exp(), yb)
def smoothed(x, yb): return F.cross_entropy(x, yb, label_smoothing=1e-6)

class NoDecay(SGD):
    def __init__(self, params, lr, wd): super().__init__(params, lr)
class PushesOut(SGD):
    def __init__(self, params, lr, wd): super().__init__(params, lr, -wd)
class KeepsGrads(SGD):
    def zero_grad(self): pass

class Stepwise(SGD):
    "Right, and told so that each part of a step can be got wrong"
    def step(self):
        for g in self.param_groups:
            for p in g['params']: self.update(p, p.grad, g['lr'], g['weight_decay'])
    def update(self, p, grad, lr, wd):
        if grad is not None: p.data -= (grad + p.data*wd)*lr
class DecaysWhole(Stepwise):
    def update(self, p, grad, lr, wd):
        if grad is not None: p.data -= grad*lr + p.data*wd
class DecaysAfter(Stepwise):
    def update(self, p, grad, lr, wd):
        if grad is not None: p.data -= grad*lr; p.data *= 1-lr*wd
class DecaysAll(Stepwise):
    def update(self, p, grad, lr, wd):
        p.data -= (p.data*wd + (0 if grad is None else grad))*lr

mistakes = {conv_is_right: [NoStride,AlwaysAct,NoBias,Mirrored,Leaky],
            linear_is_right: [Detached,Forgetful],
            pool_is_right: [ChannelPool,SumPool,MaxPool],
            log_softmax_is_right: [naive,shifted_late,wrong_axis],
            nll_is_right: [summed,plus,off_by_one],
            ce_is_right: [twice,smoothed],
            sgd_is_right: [NoDecay,PushesOut,DecaysWhole,DecaysAfter,DecaysAll,KeepsGrads]}
wrong = [(claim,o) for claim,os in mistakes.items() for o in os]

@pytest.mark.parametrize('claim,piece', wrong, ids=[o.__name__ for _,o in wrong])
def test_caught(claim, piece):
    with pytest.raises(AssertionError): claim(piece, first_failure)

def test_stepwise(): sgd_is_right(Stepwise)

# Networks within networks

leaf = st.tuples(few, yes_no, yes_no)
tree = st.recursive(leaf, lambda o: st.lists(o, min_size=1, max_size=3), max_leaves=6)

def grow(t, ni):
    "Ours, PyTorch's, and the channels that come out, of a tree of `(nf, bias, act)`"
    if isinstance(t, tuple):
        nf,*how = t
        return ConvLayer(ni, nf, 1, *how),torch_conv(ni, nf, 1, *how),nf
    ours,theirs = [],[]
    for o in t:
        a,b,ni = grow(o, ni)
        ours.append(a)
        theirs.append(b)
    return Sequential(*ours),nn.Sequential(*theirs),ni

@cases
@given(seed=few, tree=tree, ni=few, side=side)
def test_nested(seed, tree, ni, side):
    torch.manual_seed(seed)
    ours,theirs,_ = grow(tree, ni)
    same(*twin(shake(ours), theirs), torch.randn(2,ni,side,side))

# The books

index,name = st.integers(0,3),st.sampled_from('abc')
what = st.sampled_from(['parameter','tensor','none',0,1,2,3])
@cases
@given(st.lists(st.tuples(index, name, what), max_size=20))
def test_books(moves):
    "Attributes come, go and change their kind; at the end both know the same parameters"
    ours,theirs = [Module() for _ in range(4)],[nn.Module() for _ in range(4)]
    for i,k,what in moves:
        if isinstance(what, int):
            if what<=i: continue # no cycles
            a,b = ours[what],theirs[what]
        else:
            x = torch.zeros(2)
            a = dict(parameter=Parameter(x), tensor=x, none=None)[what]
            b = nn.Parameter(a.data) if what=='parameter' else a
            # PyTorch doesn't allow all changes of kind
            if hasattr(theirs[i], k): delattr(theirs[i], k)
        setattr(ours[i], k, a)
        if isinstance(b, nn.Module) and k in theirs[i]._parameters: delattr(theirs[i], k)
        setattr(theirs[i], k, b)
    a,b = ours[0].parameters(),list(theirs[0].parameters())
    assert {o.data_ptr() for o in a} == {o.data_ptr() for o in b}
    assert len(a) == len(b)

# Batches

@cases
@given(seed=few, n=st.integers(1,60), bs=st.integers(1,20), n_workers=st.integers(0,3))
def test_shuffled(seed, n, bs, n_workers):
    "In each pass every item comes once, in a new order that the seed decides"
    ds = torch.utils.data.TensorDataset(torch.arange(n), -torch.arange(n))
    dl = DataLoader(ds, bs, shuffle=True, n_workers=n_workers)
    torch.manual_seed(seed)
    xs = [torch.cat([xb for xb,yb in dl if torch.equal(xb, -yb)]) for _ in range(3)]
    assert len(dl) == math.ceil(n/bs)
    assert all(x.sort()[0].tolist()==list(range(n)) for x in xs)
    assert n<10 or not torch.equal(xs[0], xs[1])
    torch.manual_seed(seed)
    assert torch.equal(torch.cat([xb for xb,_ in dl]), xs[0])

# Both Learners beside a plain loop, with all of torch.optim that needs gradients only

both = pytest.mark.parametrize('lib', [chapter,everyday], ids=['chapter','everyday'])

def test_two_learners():
    "The everyday Learner is another class, and the chapter's is what its page shows"
    assert issubclass(everyday.Learner, chapter.Learner)
    assert everyday.Learner is not chapter.Learner
    for f in filter(inspect.isfunction, vars(chapter.Learner).values()):
        assert f.__module__==chapter.__name__, f

names = 'ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop'.split()
opts = {o: getattr(torch.optim, o) for o in names}
opts['SGD'] = partial(torch.optim.SGD, momentum=.9, nesterov=True, weight_decay=.01)

def net():
    torch.manual_seed(0)
    layers = nn.Linear(4,16),nn.BatchNorm1d(16),nn.ReLU(),nn.Dropout(.2),nn.Linear(16,3)
    return nn.Sequential(*layers)

@both
@pytest.mark.parametrize('opt_func', opts.values(), ids=opts)
def test_same_bits(lib, opt_func):
    "Weights, means and losses are those of a plain loop, whatever is validated"
    torch.manual_seed(1)
    batches = [(torch.randn(8,4),torch.randint(3,(8,))) for _ in range(12)]
    losses = []
    class Losses(lib.Callback):
        def after_batch(self):
            if self.model.training: losses.append(self.loss.item())
    a,b = net(),net()
    dls = DataLoaders(batches,batches[:3])
    torch.manual_seed(2)
    lib.Learner(a, dls, F.cross_entropy, lr=.01, cbs=Losses(), opt_func=opt_func).fit(2)
    torch.manual_seed(2)
    opt,want = opt_func(b.parameters(), lr=.01),[]
    for xb,yb in batches*2:
        loss = F.cross_entropy(b(xb), yb)
        loss.backward()
        opt.step(); opt.zero_grad()
        want.append(loss.item())
    assert losses == want
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    assert all(torch.equal(p, q) for p,q in pairs)

# The comparison itself

def test_apart_says_no():
    "Other shapes, types, and what is no number are never the same"
    a = torch.zeros(3)
    for b in (torch.zeros(3,1), torch.zeros(1), a.float(), a*math.nan, a+math.inf, a+1e-9):
        for x,y in ((a,b),(b,a)):
            with pytest.raises(AssertionError): proof.apart(x, y)

def test_floats_ends():
    "The type of new tensors is the old one again, after an error too"
    old = torch.get_default_dtype()
    with pytest.raises(ValueError), floats(torch.float16):
        assert torch.zeros(1).dtype==torch.float16
        raise ValueError
    assert torch.get_default_dtype()==old
