"A fit that is interrupted, and what `Recorder` shows: to a file, a terminal and a notebook"
import os,re,signal,sys

import pytest
import torch
from forked import python
from PIL import Image
from learner_from_scratch import learner as chapter
from learner_from_scratch.callbacks import (
    Callback,GradientAccumulation,Learner,SetupLearnerCB)
from learner_from_scratch.checkpoint import *
from learner_from_scratch.data import DataLoader
from learner_from_scratch.learner import DataLoaders
from learner_from_scratch.loss import cross_entropy
from learner_from_scratch.metrics import *
from learner_from_scratch.modules import Linear,Sequential,simple_cnn
from learner_from_scratch.recorder import Recorder
from torch.nn import functional as F

line = '''
import time,torch
from learner_from_scratch.all import *
x = torch.rand(20,8,1)
batches = [(o,2*o+1) for o in x]
class Slow(list):
    def __iter__(self):
        for o in super().__iter__(): time.sleep(.01); yield o
mse = lambda preds,yb: ((preds-yb)**2).mean()
def learner(n=15, cbs=None):
    dls = DataLoaders(Slow(batches[:n]), Slow(batches[15:]))
    return Learner(Linear(1,1), dls, mse, 0.1, [Recorder(mse), *L(cbs)])
'''

interrupted = line + '''
class Log(Callback):
    events = []
    def before_batch(self):
        if self.epoch==1: print('go', flush=True)
    def cleanup_batch(self): self.events.append('batch')
    def cleanup_epoch(self): self.events.append('epoch')
    def cleanup_fit(self): self.events.append('fit')
learn = learner(cbs=Log())
try: learn.fit(10_000)
except KeyboardInterrupt: print('\\ninterrupted', ' '.join(Log.events[-3:]))
rec = learn.recorder
assert len(rec.rows)>=1 and len(rec.losses)>=15
learn.remove_cb(Log)
learn.fit(2)
assert len(learn.recorder.rows)==2
assert learn.model.w.isfinite().all() and learn.model.b.isfinite().all()
print('second fit done')
'''

class Idle(Callback):
    def cleanup_fit(self): self.ended = True

def idle(*cbs): return Learner(Linear(1,1), DataLoaders([],[]), F.mse_loss, .1, cbs)

def test_a_class_for_a_callback():
    "An error names it, and takes no callback away"
    cb = Idle()
    learn = idle(cb)
    for bad in Idle,'Idle',[Idle(),None]:
        with pytest.raises(TypeError, match='is no Callback'): learn.fit(1, cbs=bad)
        assert list(learn.cbs)==[cb]
    learn.fit(1, cbs=Idle())
    assert list(learn.cbs)==[cb] and cb.ended

def test_bad_callbacks_of_a_new_learner():
    "They are named, and the class keeps nothing of that learner"
    for bad in None,'Idle',Idle:
        with pytest.raises(TypeError, match='is no Callback'): idle(Idle(), bad)
    assert 'learner' not in vars(Idle)

@pytest.mark.parametrize('kind', [Learner,chapter.Learner])
def test_gradients_of_an_interrupted_fit(kind):
    "They have no part in the next one"
    weights,x = [],torch.rand(8,1)
    for grad in None,torch.ones(1,1):
        torch.manual_seed(0)
        model = Linear(1,1)
        model.w.grad = grad
        kind(model, DataLoaders([(x,2*x)],[]), F.mse_loss, .1).fit(1)
        weights.append(model.w.item())
    assert weights[0]==weights[1]

def test_two_columns_of_one_name():
    "One of them would be lost where the table becomes a dictionary"
    def metric(preds, yb): return 0
    with pytest.raises(ValueError, match='two columns are called metric'):
        Recorder(metric, metric)

def test_its_own_bar(monkeypatch):
    "A bar that somebody has set is there after the fit, too"
    learn = idle(Recorder(lambda preds, yb: 0))
    def own(dl): yield from dl
    learn.bar = own
    learn.fit(1)
    assert learn.bar is own

@pytest.mark.skipif(sys.platform=='win32', reason='Windows has no SIGINT for one process')
def test_ctrl_c():
    p = python(interrupted)
    try:
        while 'go' not in (o := p.stdout.readline()): assert o, p.stderr.read()
        p.send_signal(signal.SIGINT)
        out,err = p.communicate(timeout=200)
    finally: p.kill()
    assert p.returncode==0, err
    assert 'interrupted batch epoch fit' in out and 'second fit done' in out

def test_file(tmp_path):
    "Plain lines only"
    with open(tmp_path/'log.txt', 'w') as f:
        assert python(line+'learner(5).fit(3)', out=f.fileno()).wait(300)==0
    txt = (tmp_path/'log.txt').read_bytes().decode().replace(os.linesep, '\n')
    assert not re.search(r'[^\n -~]', txt), txt
    device,names,*rows = txt.splitlines()
    assert device.startswith('Training on ')
    assert names.split()==['epoch','train_loss','valid_loss','<lambda>','time']
    assert [o.split()[0] for o in rows]==['0','1','2']
    assert {len(o) for o in rows}=={len(names)}

def screen(s):
    "What a terminal shows after the text `s`"
    rows = []
    for o in s.replace('\r\n', '\n').split('\n'):
        row = []
        for part in o.split('\r'): row[:len(part)] = part
        rows.append(''.join(row).rstrip())
    return rows

@pytest.mark.skipif(sys.platform=='win32', reason='Windows has no pty')
@pytest.mark.parametrize('how', ['', ', cbs=Cancel()'])
def test_terminal(how):
    "A bar while it runs, and the table alone afterwards, even if an epoch is cancelled"
    import pty
    cancel = '''
class Cancel(Callback):
    def after_batch(self):
        if self.model.training and self.num==2: raise CancelEpochException
'''
    parent,child = pty.openpty()
    p = python(f'{line}{cancel}learner(5).fit(2{how})', out=child)
    os.close(child)
    out = b''
    try:
        while o := os.read(parent, 4096): out += o
    except OSError: pass  # how Linux says that the other end is closed
    assert p.wait(300)==0, out
    txt = out.decode()
    assert '█' in txt and '%' in txt
    rows = [o for o in screen(txt) if o]
    assert len(rows)==4 and [o.split()[0] for o in rows]==['Training','epoch','0','1'], rows

def test_notebook(tmp_path):
    "One table that grows, and no bar is left, whatever ended the fit"
    nbclient = pytest.importorskip('nbclient')
    from nbformat.v4 import new_code_cell,new_notebook
    stop = '''
class Stop(Callback):
    def after_batch(self):
        if self.epoch==1 and self.num==2: raise KeyboardInterrupt'''
    ends = ['learn.fit(2)', 'try: learn.fit(3, cbs=Stop())\nexcept KeyboardInterrupt: pass']
    cells = [line, stop, 'learn = learner(5); learn.recorder = learn.cbs[0]', *ends]
    nb = new_notebook(cells=[new_code_cell(o) for o in cells])
    where = {'metadata': {'path': str(tmp_path)}}
    nbclient.NotebookClient(nb, timeout=300, resources=where).execute()
    for c,n in zip(nb.cells[3:], (2,1)):
        html = [o.get('data', {}).get('text/html', '') for o in c.outputs]
        html = [re.sub(r'<style.*?</style>', '', h, flags=re.S).strip() for h in html]
        html = [h for h in html if h]
        assert len(html)==1 and '<progress' not in html[0]
        assert html[0].count('<table')==html[0].count('<img')==1
        assert html[0].count('<tr>')==n+1

# --- models with more in them ---
def test_lr_find_leaves_hooks_alone():
    "A hook looks at this network, and not at the copy that the rates are tried on"
    seen,model = [],Linear(1,1)
    model.hook = lambda *_: seen.append(1)
    batches = [(torch.rand(8,1),torch.rand(8,1))]*3
    learn = Learner(model, DataLoaders(batches, []), F.mse_loss, .1)
    learn.lr_find(plot=False)
    assert not seen
    learn.fit(1)
    assert len(seen)==3

def test_deleted_layer_is_gone():
    "From the parameters, from the forward pass and from the file"
    model = Sequential(Linear(1,1))
    model.extra = Linear(1,1)
    assert len(model.parameters())==4
    del model.extra
    assert len(model.parameters())==2 and [*model.state_dict()]==['0.w','0.b']
    with pytest.raises(AttributeError): model.extra

class Tiny:
    "Two grey squares as a data set"
    vocab,size = ['a','b'],4
    y = torch.tensor([0,1])
    def __len__(self): return 2
    def __getitem__(self, i): return torch.full((4,4,3), i/2),self.y[i]

asks = dict(get_preds=lambda learn, d: learn.get_preds(),
            predict=lambda learn, d: learn.predict(Image.new('RGB', (4,4))),
            validate=lambda learn, d: learn.validate(),
            save=lambda learn, d: learn.save(d/'model', 'tiny'))

@pytest.mark.parametrize('ask', asks)
def test_asked_on_the_way(ask, tmp_path):
    "A callback asks the network after each batch, and the training goes on"
    class Asks(Callback):
        steps = 0
        def after_step(self): self.steps += 1
        def after_batch(self):
            if self.model.training: asks[ask](self.learner, tmp_path)
    dl = DataLoader(Tiny(), 1)
    for model in torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48,2)),simple_cnn(2):
        asker = Asks()
        cbs = [SetupLearnerCB('cpu'), asker]
        Learner(model, DataLoaders(dl, dl), cross_entropy, .1, cbs).fit(2)
        assert asker.steps==4 and not model.training

@pytest.mark.parametrize('ask', asks)
def test_asked_between_steps(ask, tmp_path):
    "Gradients that are being accumulated are still there; sums differ in their last bits"
    class Asks(Callback):
        def after_batch(self):
            if self.model.training: asks[ask](self.learner, tmp_path)
    dl,weights = DataLoader(Tiny(), 1),[]
    for cbs in [],[Asks()]:
        torch.manual_seed(0)
        model = simple_cnn(2)
        cbs = [SetupLearnerCB('cpu'), GradientAccumulation(2), *cbs]
        Learner(model, DataLoaders(dl, dl), cross_entropy, .1, cbs).fit(2)
        weights.append(model.state_dict())
    for k,v in weights[0].items(): torch.testing.assert_close(weights[1][k], v, msg=k)

def test_several_outputs():
    "A network may answer with a tuple, if the loss takes one"
    class Two(torch.nn.Linear):
        def forward(self, x): return super().forward(x),x
    class Named(list): vocab = ['a','b']
    items = Named((torch.rand(2),torch.tensor(i%2)) for i in range(8))
    dls = DataLoaders(DataLoader(items, 4), [])
    def loss(preds, yb): return F.cross_entropy(preds[0], yb) + preds[1].mean()
    model = Two(2,2)
    before = model.weight.detach().clone()
    learn = Learner(model, dls, loss, .1, SetupLearnerCB('cpu', tfm=lambda x: x))
    learn.fit(1)
    assert not torch.equal(model.weight, before) and learn.preds[1].shape==(4,2)

@pytest.mark.parametrize('args', [(1,1.2,.1), (0,1.2,1), (1e-6,1,10)])
def test_rates_that_do_not_grow(args):
    dls = DataLoaders([(torch.rand(4,2),torch.arange(4)%2)]*9, [])
    with pytest.raises(ValueError, match='rates grow'):
        Learner(Linear(2,2), dls, cross_entropy, .1).lr_find(*args)

def test_what_is_refused_is_not_kept():
    "`layers` of a `Sequential` can't be assigned: nothing is registered under that name"
    net = Sequential(Linear(2,2))
    with pytest.raises(AttributeError): net.layers = Linear(3,3)
    assert list(net.children)==['0'] and len(net.parameters())==2
