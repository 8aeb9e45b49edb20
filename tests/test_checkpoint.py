"`kill -9` at any moment: the resumed fit ends with the very same weights"
import errno,hashlib,multiprocessing,os,pickle,random,signal,sys,time,zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_from_scratch import fetch
from learner_from_scratch.augment import Augment,flip,jitter
from learner_from_scratch.callbacks import *
from learner_from_scratch.checkpoint import *
from learner_from_scratch.data import DataLoader
from learner_from_scratch.fetch import whole
from learner_from_scratch.learner import CancelFitException,DataLoaders,SGD
from learner_from_scratch.loss import cross_entropy
from learner_from_scratch.modules import *
from learner_from_scratch.norm import BatchNorm2d
from learner_from_scratch.optimizers import Momentum
from learner_from_scratch.recorder import Recorder
from learner_from_scratch.regularize import EMA,MixUp
from torch import nn
from torch.nn import functional as F

posix = pytest.mark.skipif(sys.platform!='linux', reason='needs SIGKILL and a fork server')

class Noise(Callback):
    "Draws from the random generators of Python and NumPy"
    def before_batch(self):
        xb,yb = self.batch
        self.learner.batch = xb + random.random()/9 + np.random.randn()/9, yb

class Average(Callback):
    "A callback that remembers: the moving average of the first weight"
    def before_fit(self): self.avg = 0.
    def after_step(self):
        w = next(iter(self.model.parameters()))
        self.avg = .9*self.avg + .1*w.sum().item()
    def state(self): return self.avg
    def load_state(self, state): self.avg = state

def ours():
    convs = ConvLayer(3,32,stride=2), ConvLayer(32,64,stride=2)
    return Sequential(*convs, AdaptivePool(), Linear(64,10))

def theirs():
    conv = nn.Conv2d(3,32,3,stride=2), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout()
    return nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32,10))

def normed():
    conv = ConvLayer(3,32,stride=2), BatchNorm2d(32)
    return Sequential(*conv, AdaptivePool(), Linear(32,10))

kinds = dict(ours=(SGD,ours), theirs=(torch.optim.AdamW,theirs), normed=(Momentum,normed))

def digest(model, avg):
    h = hashlib.sha256(repr(avg).encode())
    for k,p in model.state_dict().items(): h.update(k.encode() + p.numpy().tobytes())
    return h.hexdigest()

def fit(path, kind, seed=0, out=None):
    "One fit, in a process of its own: 3 epochs of 10 batches, a checkpoint after each batch"
    torch.set_num_threads(1)
    torch.manual_seed(7)
    x,y = torch.randn(80,3,8,8),torch.arange(80)%10
    items = [*zip(x,y)]
    dls = DataLoaders(DataLoader(items, 8, shuffle=True), DataLoader(items, 40))
    for f in (torch.manual_seed,np.random.seed,random.seed): f(seed)
    avg = Average()
    opt_func,make = kinds[kind]
    cbs = [Noise(), OneCycle(.01), avg, GradientAccumulation(2), Recorder(),
           SaveBest(Path(path)/'best.safetensors'), Checkpoint(path, every=1, resume=True)]
    if kind=='normed': cbs += [Augment(flip,jitter), MixUp(), EMA(.9)]
    learn = Learner(make(), dls, cross_entropy, .01, cbs, opt_func)
    learn.fit(3)
    if out: Path(out).write_text(digest(learn.model, avg.avg))

@pytest.fixture(scope='module')
def start():
    "Starts `fit` in a new process; they fork from a server that has imported all already"
    ctx = multiprocessing.get_context('forkserver')
    ctx.set_forkserver_preload(['pytest','torch._dynamo','learner_from_scratch.all',
                                'learner_from_scratch.regularize'])
    def _start(*args, **kwargs):
        p = ctx.Process(target=fit, args=args, kwargs=kwargs)
        p.start()
        return p
    return _start

def wait_for(cond, p, secs=300):
    end = time.monotonic()+secs
    while not cond() and p.is_alive() and time.monotonic()<end: pass

@posix
def test_kill(start, tmp_path):
    """30 kills: 20 some time after a random checkpoint, 10 while a file is being written

    Who was done before doesn't count, nor who had just written the file."""
    rng,want = random.Random(42),{}
    for kind in kinds:
        start(tmp_path/kind, kind, out=tmp_path/f'{kind}.txt').join(300)
        want[kind] = (tmp_path/f'{kind}.txt').read_text()
    epochs,tries = [],0
    while len(epochs)<30:
        tries += 1
        assert tries<300
        i = len(epochs)
        kind,path,out = [*kinds][i%3],tmp_path/f'{tries}',tmp_path/f'{tries}.txt'
        p = start(path, kind)
        n = rng.randrange(1,30)
        if i<20:
            wait_for(lambda: any(int(o.stem)>=n for o in path.glob('*.ckpt')), p)
            time.sleep(rng.uniform(0, .02))
        else: wait_for(lambda: any(path.glob(f'.{n:08}.ckpt.*')), p)
        p.kill()
        p.join(100)
        in_save = any(path.glob('.*.part'))
        if p.exitcode==0 or i>=20 and not in_save: continue
        assert p.exitcode==-signal.SIGKILL
        files = sorted(path.glob('*.ckpt'))
        s = load_checkpoint(files[-1]) if files else {}
        epochs.append((s.get('epoch',0),s.get('num',0)))
        # with a checkpoint, nothing else may matter: the seed is another one
        q = start(path, kind, seed=1 if files else 0, out=out)
        q.join(300)
        assert q.exitcode==0
        assert out.read_text()==want[kind], (kind, epochs[-1])
        assert not any(path.glob('.*.ckpt.*'))
    print(f'{tries} tries, 30 kills; went on at {sorted(epochs)}')
    assert len(set(epochs))>8

def test_flushed_then_renamed(tmp_path, monkeypatch):
    "The order that survives a power cut: data to the disk, new name, name to the disk"
    log = []
    def spy(name, f):
        def _f(*args):
            log.append(name)
            return f(*args)
        return _f
    for name in ('fsync','replace'):
        monkeypatch.setattr(fetch.os, name, spy(name, getattr(os, name)))
    with whole(tmp_path/'a') as tmp: tmp.write_bytes(b'a')
    assert log==['fsync','replace'] + ['fsync']*(os.name=='posix')

def test_full_disk(tmp_path, monkeypatch):
    "A disk that is full when the data are flushed doesn't cost the old file"
    fn = tmp_path/'model.safetensors'
    save_model(Linear(1,1), fn)
    old = fn.read_bytes()
    def full(fd): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(fetch.os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'): save_model(Linear(1,1), fn)
    assert fn.read_bytes()==old and list(tmp_path.iterdir())==[fn]

class Evil:
    def __init__(self, fn): self.fn = fn
    def __reduce__(self): return Path.touch,(Path(self.fn),)

@pytest.mark.parametrize('write', [lambda o,fn: fn.write_bytes(pickle.dumps(o)), torch.save])
def test_code_is_refused(tmp_path, write):
    "The same file, first with `pickle`'s trust and then with ours"
    hacked,fn = tmp_path/'hacked',tmp_path/'evil'
    write(Evil(hacked), fn)
    if write is torch.save: torch.load(fn, weights_only=False)
    else: pickle.loads(fn.read_bytes())
    assert hacked.exists()
    hacked.unlink()
    for load in (load_checkpoint, load_weights, lambda o: load_model(Linear(1,1), o)):
        with pytest.raises(ValueError, match='evil'): load(fn)
    assert not hacked.exists()

@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp('saved')
    fit(path, 'ours')
    return path

def test_every_truncation(saved, tmp_path):
    last = sorted(saved.glob('*.ckpt'))[-1]
    for good,load in ((last,load_checkpoint), (saved/'best.safetensors',load_weights)):
        data,fn = good.read_bytes(),tmp_path/f'cut_{good.name}'
        for n in [*range(0, len(data), len(data)//40), len(data)-1]:
            fn.write_bytes(data[:n])
            with pytest.raises(ValueError, match=fn.name): load(fn)

def equal(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return a.keys()==b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(equal, a, b))
    return a==b or a!=a and b!=b # NaN

def test_compressed(saved, tmp_path):
    "A few bytes of it could fill the memory"
    good = sorted(saved.glob('*.ckpt'))[-1]
    fn = tmp_path/'a'
    with zipfile.ZipFile(good) as a, zipfile.ZipFile(fn, 'w', zipfile.ZIP_DEFLATED) as b:
        for o in a.namelist(): b.writestr(o, a.read(o))
    with pytest.raises(ValueError, match='it is compressed'): load_checkpoint(fn)

def test_other_number_of_ranks(tmp_path):
    "Between two epochs it goes on with them, in the middle of one it can't"
    def fit(n):
        cbs = [Checkpoint(tmp_path, resume=True)]
        dls = DataLoaders([(torch.randn(4,2),torch.arange(4)%3)]*2, [])
        learn = Learner(nn.Linear(2,3), dls, cross_entropy, .1, cbs)
        learn.fit(n)
        return learn
    fit(1)
    fn, = tmp_path.glob('*.ckpt')
    state = load_checkpoint(fn)
    two = dict(state, ranks=state['ranks']*2)
    torch.save(dict(two, num=1), fn)
    with pytest.raises(ValueError, match='epoch of 2 ranks, and here are 1'): fit(2)
    torch.save(two, fn)
    assert fit(2).first_epoch==1

def test_table_of_another_fit():
    rec = Recorder()
    rec.rows,rec.ends = [[0,1.,1.,.5,2.]],[1]
    state = rec.state()
    rec.load_state(state)
    rows,losses = [[0,1.,1.,.5]],['1']
    for bad,why in (dict(rows=rows),'a row of'),(dict(losses=losses),'a loss is no number'):
        with pytest.raises(ValueError, match=why):
            Recorder().load_state(dict(state, kept={**state['kept'], **bad}))
    with pytest.raises(ValueError, match='means that are none'):
        rec.load_state(dict(state, means=[[1.]]*len(state['means'])))

nothing = [lambda: Checkpoint('x', n=0), lambda: GradientAccumulation(0)]
@pytest.mark.parametrize('make', nothing)
def test_less_than_one(make):
    with pytest.raises(ValueError, match='at least 1, got 0'): make()

def test_flipped_bits(saved, tmp_path):
    "Each changed bit of a checkpoint is found, or had no part in what was read"
    good = sorted(saved.glob('*.ckpt'))[-1]
    data,fn,rng,found = good.read_bytes(),tmp_path/'flipped',random.Random(0),0
    want = load_checkpoint(good)
    with zipfile.ZipFile(good) as z:
        values = z.read(next(o for o in z.namelist() if o.endswith('data.pkl')))
    begin = data.index(values)
    for n in range(120):
        i = rng.randrange(len(data)) if n<100 else begin+rng.randrange(len(values))
        fn.write_bytes(data[:i] + bytes([data[i]^(1<<rng.randrange(8))]) + data[i+1:])
        try: got = load_checkpoint(fn)
        except ValueError as e:
            found += 1
            assert 'flipped' in str(e)
        else: assert n<100 and equal(got, want)
    assert found>70

def test_ctrl_c_in_a_batch_saves_nothing(tmp_path):
    "After half a batch there is no state to go on from"
    class Stop(Callback):
        def after_backward(self):
            if self.num==1: raise KeyboardInterrupt
    line = [(torch.ones(4,1),torch.ones(4,1))]*3
    learn = Learner(Linear(1,1), DataLoaders(line,line), F.mse_loss, .1)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(1, cbs=[Stop(), Checkpoint(tmp_path, every=1)])
    files = sorted(tmp_path.glob('*.ckpt'))
    assert [(s['epoch'],s['num']) for s in map(load_checkpoint, files)]==[(0,1)]
    learn.fit(1, cbs=Checkpoint(tmp_path, resume=True))
    files = sorted(tmp_path.glob('*.ckpt'))
    assert [(s['epoch'],s['num']) for s in map(load_checkpoint, files)]==[(0,1),(1,0)]

def test_another_model(saved):
    other = Sequential(Sequential(ConvLayer(3,8)), Linear(8,10))
    learn = Learner(other, DataLoaders([],[]), cross_entropy, .1)
    want = r'missing: 0.0.w.*unexpected: 0.w.*shape: 1.w \(64, 32, 3, 3\) for \(10, 8\)'
    with pytest.raises(ValueError, match=want):
        learn.fit(4, cbs=Checkpoint(saved, resume=True))

@pytest.mark.parametrize('event', ['after_batch','after_epoch'])
def test_no_checkpoint_after_a_failed_clean_up(event, tmp_path):
    "What a callback left half done is no state to go on from"
    class Fails(Callback):
        def fail(self):
            now = self.epoch,self.num,self.model.training
            if now==(1,2,event=='after_batch'): raise KeyboardInterrupt
    setattr(Fails, event, Fails.fail)
    batches = [(torch.rand(4,1),torch.rand(4,1))]*3
    def fit(*cbs):
        cbs = [*cbs, Checkpoint(tmp_path, every=1, resume=True)]
        learn = Learner(Linear(1,1), DataLoaders(batches, batches), F.mse_loss, .1, cbs)
        learn.fit(3)
        return learn
    with pytest.raises(KeyboardInterrupt): fit(Fails())
    last = load_checkpoint(sorted(tmp_path.glob('*.ckpt'))[-1])
    assert (last['epoch'],last['num'])==((1,2) if event=='after_batch' else (1,3))

# --- optimizers of PyTorch ---
names = [k for k,v in vars(torch.optim).items()
         if isinstance(v, type) and k not in ('Optimizer','LBFGS','SparseAdam','Muon')]

class StopAt(Callback):
    "Ctrl-C at the start of an epoch"
    def __init__(self, epoch): self.at = epoch
    def before_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

@pytest.mark.parametrize('name', names)
def test_every_optimizer_goes_on(name, tmp_path):
    "Whatever its numbers are, one of them negative"
    opt_func = getattr(torch.optim, name)
    def run(out, stop=None, resume=False):
        torch.manual_seed(0)
        dl = DataLoader([(torch.randn(3),torch.tensor(i%2)) for i in range(12)], 4)
        cbs = [Checkpoint(out, every=1, resume=resume), StopAt(stop)]
        dls = DataLoaders(dl, [])
        if resume: torch.manual_seed(1) # other weights to begin with
        learn = Learner(nn.Linear(3,2), dls, cross_entropy, .01, cbs, opt_func)
        learn.fit(4)
        return learn.model.weight
    calm = run(tmp_path/'calm')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'cut', stop=2)
    assert torch.equal(run(tmp_path/'cut', resume=True), calm)

class Uncopied(nn.Linear):
    def __deepcopy__(self, memo): raise RuntimeError('no copy of a tensor that has a graph')

def test_model_that_cannot_be_copied(tmp_path):
    "It goes on all the same; only the trial step is left out"
    class Cat(Callback):
        def before_batch(self):
            if (self.epoch,self.num)==(1,2): raise KeyboardInterrupt
    torch.manual_seed(0)
    batches = [(torch.randn(4,2),torch.randint(3, (4,))) for _ in range(4)]
    def fitted(seed, *cbs):
        torch.manual_seed(seed)
        learn = Learner(Uncopied(2,3), DataLoaders(batches, batches), cross_entropy, .1, cbs,
                        torch.optim.Adam)
        try: learn.fit(3)
        except KeyboardInterrupt: pass
        return learn.model.weight
    calm = fitted(1)
    killed = fitted(1, Checkpoint(tmp_path, every=1), Cat())
    assert torch.equal(fitted(2, Checkpoint(tmp_path, every=1, resume=True)), calm)
    assert not torch.equal(killed, calm)

class NotNow(Callback):
    def before_fit(self): raise CancelFitException

def test_cancelled_before_it_began(tmp_path):
    "What was interrupted isn't taken for finished, and no folder is made"
    def fit(path, *cbs):
        batches = [(torch.randn(4,2),torch.arange(4)%3)]*2
        Learner(nn.Linear(2,3), DataLoaders(batches, []), cross_entropy, .1,
                [Checkpoint(path), *cbs]).fit(2)
    with pytest.raises(KeyboardInterrupt): fit(tmp_path/'a', StopAt(1))
    fit(tmp_path/'a', NotNow())
    with pytest.raises(ValueError, match='was interrupted'): fit(tmp_path/'a')
    fit(tmp_path/'b', NotNow())
    assert not (tmp_path/'b').exists()
    fit(tmp_path/'c')
    assert (tmp_path/'c'/'finished').exists()

def test_means_are_of_no_device():
    "What a pass on a GPU has added up goes on there, though a file is read to the CPU"
    rec = Recorder()
    rec.means[0].add(torch.tensor(2.), 4)
    rec.load_state(rec.state())
    assert isinstance(rec.means[0].sum, float) and rec.means[0].value==2

def test_best_in_a_new_folder(tmp_path):
    "It is made at once, and not missed after the first epoch"
    batches = [(torch.randn(4,2),torch.arange(4)%3)]*2
    learn = Learner(nn.Linear(2,3), DataLoaders(batches, batches), cross_entropy, .1)
    files = [tmp_path/o/'x' for o in 'abc']
    learn.fit(1, cbs=[Recorder(csv=files[0], jsonl=files[1]), SaveBest(files[2])])
    assert all(o.stat().st_size for o in files)

def test_a_refused_resume_changes_nothing(tmp_path):
    "A finished fit stays finished if another network can't go on with it"
    batches = [(torch.rand(4,2),torch.rand(4,1))]
    def learner(n):
        dls = DataLoaders(batches, batches)
        return Learner(Sequential(*[Linear(2,2)]*n, Linear(2,1)), dls, F.mse_loss, .1)
    learner(1).fit(1, cbs=Checkpoint(tmp_path))
    with pytest.raises(ValueError, match='of another fit'):
        learner(0).fit(2, cbs=Checkpoint(tmp_path, resume=True))
    learner(0).fit(1, cbs=Checkpoint(tmp_path)) # and not: it was interrupted

def test_best_takes_a_file_first(tmp_path, monkeypatch):
    "The name of a column alone would be a file of that name"
    monkeypatch.chdir(tmp_path)
    batches = [(torch.rand(4,2),torch.rand(4,1))]
    dls = DataLoaders(batches, batches)
    learn = Learner(Linear(2,1), dls, F.mse_loss, .1, Recorder(None))
    with pytest.raises(ValueError, match='give SaveBest the name of a file first'):
        learn.fit(1, cbs=SaveBest('valid_loss'))
    assert not list(tmp_path.iterdir())
