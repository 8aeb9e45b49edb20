"Metrics over the whole set, those of others too, on two ranks too; logs; what a notebook keeps"
import json,os,subprocess,sys
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fastcore.basics import noop
from fastcore.foundation import L
from torch import nn
from learner_from_scratch.callbacks import Callback,Learner
from learner_from_scratch.checkpoint import Checkpoint,SaveBest,load_weights
from learner_from_scratch.data import DataLoader
from learner_from_scratch.inference import Task
from learner_from_scratch.labels import Images
from learner_from_scratch.learner import DataLoaders,set_lr
from learner_from_scratch.loss import cross_entropy
from learner_from_scratch.metrics import (
    EarlyStopping,TensorBoard,WholeSet,from_sklearn,per_class,to_probs)
from learner_from_scratch.modules import Linear
from learner_from_scratch.recorder import Mean,Recorder,accuracy,lower_is_better
from learner_from_scratch.regularize import EMA
from learner_from_scratch.tasks import Numbers,numbers,several_labels

root = Path(__file__).parent.parent
torch.manual_seed(42)
scores = torch.randn(205,5)
targs = (scores + 2*torch.randn(205,5)).argmax(1)

class Scores(nn.Module):
    "Answers what it is asked, so the batches are the scores"
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1))
    def forward(self, x): return x*self.w

def batches(scores, targs, bs=20): return [*zip(scores.split(bs), targs.split(bs))]

def row(*metrics, scores=scores, targs=targs, loss=cross_entropy):
    "The metrics in the table, of a training with `scores` as predictions"
    rec = Recorder(*metrics)
    rec.show = noop
    dls = DataLoaders([], batches(scores, targs))
    Learner(Scores(), dls, loss, 0., rec).fit(1)
    return rec.rows[0][3:-1]

# --- those of others ---
def test_scikit_learn():
    "Precision, recall, F1, top-k, AUC and RMSE, unchanged"
    sk = pytest.importorskip('sklearn.metrics')
    y,pred,probs = targs.numpy(),scores.argmax(1).numpy(),scores.softmax(1).numpy()
    averaged = sk.precision_score,sk.recall_score,sk.f1_score
    want = [f(y, pred, average='macro') for f in averaged]
    got = row(*[from_sklearn(f, average='macro') for f in averaged])
    assert got==pytest.approx(want)
    auc = from_sklearn(sk.roc_auc_score, of=to_probs, multi_class='ovr')
    top = from_sklearn(sk.top_k_accuracy_score, of=to_probs, k=2, name='top2')
    want = [sk.roc_auc_score(y, probs, multi_class='ovr'),
            sk.top_k_accuracy_score(y, probs, k=2)]
    assert row(auc, top)==pytest.approx(want)
    two,y = scores[:,:2],targs%2
    auc = from_sklearn(sk.roc_auc_score, of=lambda o: to_probs(o)[:,1])
    want = sk.roc_auc_score(y, two.softmax(1)[:,1])
    assert row(auc, scores=two, targs=y)==pytest.approx([want])

@pytest.mark.parametrize('how', [noop, partial, WholeSet])
def test_bare_scikit_learn(how):
    "It takes the targets first"
    sk = pytest.importorskip('sklearn.metrics')
    for f in sk.r2_score,sk.f1_score:
        with pytest.raises(TypeError, match=f'from_sklearn.{f.__name__}'): row(how(f))
def test_scorers():
    "They ask models of scikit-learn, and have no name"
    sk = pytest.importorskip('sklearn.metrics')
    scorer = sk.make_scorer(sk.f1_score, average='macro')
    for f in Recorder,from_sklearn,WholeSet:
        with pytest.raises(TypeError, match='make_scorer.f1_score.*give from_sklearn its f'):
            f(scorer)

def test_repr_of_numbers():
    "They are no classes"
    pair = Numbers('x','y'),(1,2),'2 numbers (x, y)'
    for task,y,told in (numbers,3,'1 numbers (number 1)'),pair:
        ds = Images([Path('a.png')], lambda fn: y, task=task)
        assert told in repr(ds)

def test_numbers():
    "Targets that are numbers"
    sk = pytest.importorskip('sklearn.metrics')
    x,y = scores[:,:1],scores[:,1:2]
    rmse = from_sklearn(sk.root_mean_squared_error, of=noop)
    mse = lambda preds,yb: ((preds-yb)**2).mean()
    want = ((x-y)**2).mean().sqrt().item()
    assert row(rmse, scores=x, targs=y, loss=mse)==pytest.approx([want])
    assert lower_is_better(rmse.__name__)

@pytest.mark.parametrize('n', [1,3])
def test_numbers_by_default(n):
    "They are compared as they are, and not by the place of the largest"
    sk = pytest.importorskip('sklearn.metrics')
    x,y = scores[:,:n],scores[:,-n:]
    fs = sk.root_mean_squared_error,sk.r2_score
    mse = lambda preds,yb: ((preds-yb)**2).mean()
    got = row(*map(from_sklearn, fs), scores=x, targs=y, loss=mse)
    assert got==pytest.approx([f(y.numpy(), x.numpy()) for f in fs])

def test_probabilities_by_default():
    "Of the second of two classes, and of all of more"
    sk = pytest.importorskip('sklearn.metrics')
    x,y = scores[:,:2],targs%2
    fs = sk.roc_auc_score,sk.average_precision_score,sk.log_loss,sk.brier_score_loss
    want = [f(y, x.softmax(1)[:,1]) for f in fs] + [sk.f1_score(y, x.argmax(1))]
    got = row(*map(from_sklearn, [*fs,sk.f1_score]), scores=x, targs=y)
    assert got==pytest.approx(want)
    probs = scores.softmax(1).numpy()
    fs = partial(sk.roc_auc_score, multi_class='ovr'),sk.log_loss,sk.top_k_accuracy_score
    assert row(*map(from_sklearn, fs))==pytest.approx([f(targs.numpy(), probs) for f in fs])

def test_several_labels_by_default():
    "Each is a yes or no"
    sk = pytest.importorskip('sklearn.metrics')
    there = (scores+torch.randn(205,5)>0).float()
    f1 = partial(sk.f1_score, average='macro')
    want = [f1(there, scores>0), sk.roc_auc_score(there, scores.sigmoid())]
    got = row(from_sklearn(f1), from_sklearn(sk.roc_auc_score), targs=there,
              loss=several_labels.loss)
    assert got==pytest.approx(want)

def test_torchmetrics(request):
    if find_spec('torchvision'): request.getfixturevalue('torchvision') # it is imported
    tm = pytest.importorskip('torchmetrics')
    kinds = dict(task='multiclass', num_classes=5)
    f1 = tm.F1Score(**kinds, average='macro')
    for f in f1,tm.AUROC(**kinds),tm.ConfusionMatrix(**kinds):
        want = f(scores, targs)
        f.reset()
        if want.numel()>1:
            with pytest.raises(TypeError, match='not a number'): row(f)
        else:
            for o in f,WholeSet(f): assert row(o)==pytest.approx([want.item()])

def test_torchmetrics_of_other_tasks(request):
    "Several labels and numbers, and scikit-learn says the same"
    if find_spec('torchvision'): request.getfixturevalue('torchvision') # it is imported
    tm,sk = pytest.importorskip('torchmetrics'),pytest.importorskip('sklearn.metrics')
    there = (scores+torch.randn(205,5)>0).float()
    f1 = tm.F1Score('multilabel', num_labels=5, average='macro')
    got = row(f1, targs=there, loss=several_labels.loss)
    assert got==pytest.approx([sk.f1_score(there.numpy(), scores.numpy()>0, average='macro')])
    wants = scores+torch.randn(205,5)
    got = row(tm.MeanSquaredError(), targs=wants, loss=numbers.loss)
    assert got==pytest.approx([(scores-wants).square().mean().item()], rel=1e-4)

class Theirs:
    "What an object of torchmetrics does with targets"
    def __init__(self, floats=False): self.floats = floats
    def update(self, preds, targs):
        if targs.is_floating_point()!=self.floats: raise ValueError(f'{targs.dtype}')
        self.sum = (preds*targs).sum()
    def compute(self): return self.sum
    def reset(self): self.sum = 0
    def __call__(self, preds, targs):
        self.update(preds, targs)
        return self.compute()

def test_answers_are_integers_for_torchmetrics():
    "And numbers are not"
    there = (scores>0).float()
    bce = several_labels.loss
    for f in Theirs(),WholeSet(Theirs()):
        got = row(f, targs=there, loss=bce)
        assert got==pytest.approx([(scores*there).sum().item()])
    assert row(Theirs(floats=True), targs=there/2, loss=bce)==pytest.approx([got[0]/2])

@pytest.mark.parametrize('name', ['MeanSquaredError','RMSE','MAE','cross_entropy'])
def test_lowest_is_kept(name, tmp_path):
    "The first of three epochs that get worse, whatever the name's capitals"
    values = iter([1.,2.,3.])
    def metric(preds, targs): return next(values)
    metric.__name__ = name
    stop,best = EarlyStopping(name, restore_best=True),SaveBest(tmp_path/'best', name)
    batch = [(scores,targs)]
    learn = Learner(Scores(), DataLoaders(batch, batch), cross_entropy, .1,
                    [Recorder(metric), stop, best])
    learn.fit(3)
    saved,meta = load_weights(tmp_path/'best')
    assert (meta['epoch'],stop.best)==(0,1.)
    assert torch.equal(learn.model.w, saved['w'])

def test_report_is_scikit_learns():
    sk = pytest.importorskip('sklearn.metrics')
    some = scores.clone()
    some[:,3] -= 100   # never named
    how = dict(output_dict=True, zero_division=0)
    report = sk.classification_report(targs, some.argmax(1), **how)
    for i,o in enumerate(per_class(some, targs, 'abcde')):
        want = [report[str(i)][k] for k in ('precision','recall','f1-score','support')]
        assert [o[k] for k in ('precision','recall','f1','count')]==pytest.approx(want)

def test_report_of_several_labels():
    sk = pytest.importorskip('sklearn.metrics')
    probs,there = scores.sigmoid(),(scores+torch.randn(205,5)>0).float()
    how = dict(output_dict=True, zero_division=0)
    report = sk.classification_report(there, probs>.5, **how)
    for i,o in enumerate(per_class(probs, there, 'abcde')):
        want = [report[str(i)][k] for k in ('precision','recall','f1-score','support')]
        assert [o[k] for k in ('precision','recall','f1','count')]==pytest.approx(want)

class Batches(list):
    "Batches that know their task"
    def __init__(self, task, *batches):
        super().__init__(batches)
        self.task = task

@pytest.mark.parametrize('task,names', [
    (numbers, ['mean_absolute_error']), (several_labels, ['right_answers','all_right'])])
@pytest.mark.parametrize('metrics', [None,[]])
def test_metrics_of_the_task(task, names, metrics):
    "Without a table, `validate` takes those that fit the targets"
    dl = Batches(task, (scores,(scores>0).float()))
    learn = Learner(Scores(), DataLoaders(dl, dl), task.loss, .1)
    assert list(learn.validate(metrics=metrics))==['valid_loss',*names]

# --- on two ranks ---
job = '''
import sys
from learner_from_scratch.all import *
from learner_from_scratch.metrics import *
torch.manual_seed(42)
x = torch.randn(81,6)
class Items:
    def __len__(self): return 81
    def __getitem__(self, i): return x[i],x[i,:3].argmax()
@WholeSet
def counted(preds, targs): return len(targs)
@WholeSet
def median(preds, targs): return preds.max(1)[0].median()
with distrib_ctx(60):
    dl = Shard(DataLoader(Items(), 16//num_distrib()))
    rec = Recorder(accuracy, counted, median)
    torch.manual_seed(0)
    cbs = [SetupLearnerCB('cpu', noop), rec, DistributedCB()]
    learn = Learner(Linear(6,3), DataLoaders(dl, dl), cross_entropy, .1, cbs)
    learn.fit(2)
    asked = learn.validate()
name = f'{sys.argv[1]}/{rank_distrib()}of{num_distrib()}'
torch.save([[o[1:-1] for o in rec.rows],asked], name)
'''

def test_on_two_ranks(tmp_path):
    "The last batch is a single item: rank 1 has none of it"
    (tmp_path/'job.py').write_text(job)
    env = {**os.environ, 'PYTHONPATH':str(root), 'OMP_NUM_THREADS':'1'}
    if sys.platform in ('linux','darwin'):
        env['GLOO_SOCKET_IFNAME'] = 'lo' if sys.platform=='linux' else 'lo0'
    torchrun = ['-m', 'torch.distributed.run', '--standalone', '--local-addr', '127.0.0.1',
                '--nproc-per-node', '2']
    for how in [],torchrun:
        cmd = [sys.executable, *how, str(tmp_path/'job.py'), str(tmp_path)]
        p = subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=120)
        assert p.returncode==0, p.stderr
    one,*two = [torch.load(tmp_path/o) for o in ('0of1','0of2','1of2')]
    assert [o[3] for o in one[0]]==[81,81]
    for rows,asked in two:
        for a,b in zip(rows, one[0]): assert a==pytest.approx(b, abs=1e-5)
        assert asked==pytest.approx(one[1], abs=1e-5)

# --- logs, and fits that go on ---
class Kill(Callback):
    order = 50
    def __init__(self, epoch): self.at = epoch
    def before_epoch(self):
        if self.epoch==self.at: raise KeyboardInterrupt

def fit(folder, n=6, kill=None, cbs=(), resume=False, lr=.1, seed=0):
    torch.manual_seed(42)
    x = torch.randn(60,6)
    dls = DataLoaders(batches(x, x[:,:3].argmax(1)), batches(x[:30], x[:30,:3].argmax(1)))
    torch.manual_seed(seed)
    rec = Recorder(WholeSet(accuracy), jsonl=folder/'log.jsonl')
    cbs = [rec, Checkpoint(folder/'ckpt', resume=resume), *cbs]
    learn = Learner(Linear(6,3), dls, cross_entropy, lr, cbs)
    with suppress(KeyboardInterrupt): learn.fit(n, cbs=L(kill).map(Kill))
    return learn

def test_jsonl_of_a_fit_that_goes_on(tmp_path):
    "Each epoch once, with the numbers of a fit that was never killed"
    def lines(folder):
        return [json.loads(o) for o in (folder/'log.jsonl').read_text().splitlines()]
    fit(tmp_path/'a', kill=3)
    assert [o['epoch'] for o in lines(tmp_path/'a')]==[0,1,2]
    fit(tmp_path/'a', resume=True, seed=1)
    fit(tmp_path/'b')
    a,b = [[{**o, 'time':0} for o in lines(tmp_path/d)] for d in 'ab']
    assert a==b and [o['epoch'] for o in a]==[*range(6)]
    assert sorted(o.name for o in (tmp_path/'a').iterdir())==['ckpt','log.jsonl']

def test_best_of_a_fit_that_goes_on(tmp_path):
    "The best epoch was before it was killed"
    def stop(): return EarlyStopping(patience=9, restore_best=True)
    class Worse(Callback):
        def before_epoch(self):
            if self.epoch==1: set_lr(self.opt, -1.)
    calm = fit(tmp_path/'a', cbs=[stop(),Worse()])
    fit(tmp_path/'b', kill=3, cbs=[stop(),Worse()])
    learn = fit(tmp_path/'b', resume=True, cbs=[stop(),Worse()], seed=1)
    losses = [o['valid_loss'] for o in learn.recorder.dicts()]
    assert losses.index(min(losses))==0 and len(losses)==6
    assert learn.validate()['valid_loss']==pytest.approx(losses[0])
    sd = learn.model.state_dict()
    for k,v in calm.model.state_dict().items(): assert torch.equal(v, sd[k])

@pytest.mark.parametrize('ema_first', [True,False])
def test_best_average(ema_first, tmp_path):
    "With `EMA`, the best weights are an average that was validated, and not the last one"
    class Worse(Callback):
        def before_epoch(self):
            if self.epoch==2: set_lr(self.opt, -1.)
    cbs = [EMA(.9), EarlyStopping(patience=2, restore_best=True)]
    learn = fit(tmp_path, cbs=[*(cbs if ema_first else cbs[::-1]), Worse()])
    losses = [o['valid_loss'] for o in learn.recorder.dicts()]
    assert len(losses)==losses.index(min(losses))+3
    assert learn.validate()['valid_loss']==pytest.approx(min(losses))

def test_tensorboard(tmp_path):
    "The steps that TensorBoard reads, of a fit that went on too"
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    def log(): return [TensorBoard(tmp_path/'tb')]
    fit(tmp_path, kill=3, cbs=log())
    learn = fit(tmp_path, resume=True, cbs=log(), seed=1)
    read = EventAccumulator(str(tmp_path/'tb'))
    read.Reload()
    assert set(read.Tags()['scalars'])=={'train_loss','valid_loss','accuracy','time'}
    got = [(o.step,o.value) for o in read.Scalars('valid_loss')]
    want = [(o['epoch'],pytest.approx(o['valid_loss'])) for o in learn.recorder.dicts()]
    assert got==want

def test_tensorboard_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(ImportError, match='please `pip install tensorboard`'):
        fit(tmp_path, cbs=[TensorBoard(tmp_path/'tb')])

# --- a saved notebook ---
cell = '''
import time,torch
from learner_from_scratch.all import *
class Slow(list):
    def __iter__(self):
        for o in super().__iter__(): time.sleep(.03); yield o
x = torch.rand(20,8,1)
dl = Slow((o,2*o+1) for o in x)
mse = lambda preds,yb: ((preds-yb)**2).mean()
learn = Learner(Linear(1,1), DataLoaders(dl, dl[:5]), mse, 0.1, Recorder(mse))
'''

def in_notebook(folder, *codes):
    "The outputs of each of the cells `codes`, and of each update the cell and what it shows"
    nbclient = pytest.importorskip('nbclient')
    from nbformat.v4 import new_code_cell,new_notebook
    nb = new_notebook(cells=[new_code_cell(o) for o in codes])
    bars = []
    class Client(nbclient.NotebookClient):
        def process_message(self, msg, *args):
            cell = msg['parent_header'].get('msg_id')
            if msg['msg_type']=='update_display_data': bars.append((cell,str(msg['content'])))
            return super().process_message(msg, *args)
    Client(nb, timeout=120, resources={'metadata': {'path': str(folder)}}).execute()
    return [o.outputs for o in nb.cells],bars

def test_nothing_is_left_in_a_notebook(tmp_path):
    "One table, without a bar, and one line; no empty outputs"
    (_,outs),bars = in_notebook(tmp_path, cell, 'learn.fit(3)')
    assert [o['output_type'] for o in outs]==['stream','display_data'], outs
    assert '<progress' not in str(outs[1])
    assert any('<progress' in o for _,o in bars)

bare = '''
from learner_from_scratch.fetch import _CellBar
learn = Learner(Linear(1,1), DataLoaders(dl, dl[:5]), mse, 0.1)
_CellBar.wait = '''

def test_a_quick_cell_has_no_bar(tmp_path):
    "Without a table, a fit that is over before a bar is due leaves no output at all"
    (_,outs),bars = in_notebook(tmp_path, cell, bare+'100\nlearn.fit(1)')
    assert (outs,bars)==([],[])

def test_a_bar_after_quick_items(tmp_path):
    "It comes as soon as it is due, and not at the end"
    loop = 'for i in bar(range(26)): time.sleep(0 if i<6 else .1)'
    (_,outs),bars = in_notebook(tmp_path, cell, f'{bare}.5\n{loop}')
    assert len(bars)>=4 and len(outs)==1

def test_bars_without_a_table(tmp_path):
    "All of a slow cell share one output, at last a time; the next cell has another"
    more = 'learn.fit(1)\nfor o in bar(Slow(range(5))): pass'
    now = f'{bare}0\n'
    ours = f'from learner_from_scratch.learner import Learner\n{now}learn.fit(3)'
    codes = now+'learn.fit(2)', now+'learn.fit(3)', now+more, ours
    (_,*outs),bars = in_notebook(tmp_path, cell, *codes)
    words = [[p['data']['text/html'][:11] for p in o] for o in outs]
    assert words==[['Worked for ']]*4, outs
    assert len({cell for cell,o in bars if '<progress' in o})==4

def in_cleanup(e): return any('clean-up' in o for o in e.__notes__)

def test_restored_by_its_own_fit_alone(capsys):
    "A fit that fails at its start doesn't bring back the weights of the one before"
    batch = [(scores,targs)]
    stop = EarlyStopping(restore_best=True)
    learn = Learner(Scores(), DataLoaders(batch, batch), cross_entropy, .1, Recorder())
    learn.fit(2, cbs=stop)
    with torch.no_grad(): learn.model.w.fill_(7.)
    with pytest.raises(ValueError, match='must be one of') as e:
        learn.fit(1, cbs=[stop, SaveBest('x', 'typo')])
    assert learn.model.w.item()==7 and not in_cleanup(e.value)
    learn.remove_cb(Recorder)
    with pytest.raises(ValueError, match='no table') as e:
        learn.fit(1, cbs=EarlyStopping(restore_best=True))
    assert not in_cleanup(e.value)

class Parts(Task):
    "Three numbers an image, and no metrics"
    def activation(self, preds): return preds

def test_no_metrics():
    class Items(L): task = Parts()
    ds = Items((torch.randn(5),torch.randn(3)) for _ in range(8))
    dl = DataLoader(ds, 4)
    def loss(preds, yb): return (preds-yb).square().mean()
    learn = Learner(nn.Linear(5,3), DataLoaders(dl, dl), loss, .1)
    assert list(learn.validate())==['valid_loss']
    rec = Recorder(None)
    rec.show = noop
    learn.fit(1, cbs=rec)
    assert rec.names==['epoch','train_loss','valid_loss','time'] and len(rec.rows[0])==4

def test_partial_of_scikit_learn():
    sk = pytest.importorskip('sklearn.metrics')
    f1 = from_sklearn(partial(sk.f1_score, average='macro'))
    assert f1.__name__=='f1_score'
    assert row(f1)==pytest.approx([sk.f1_score(targs, scores.argmax(1), average='macro')])

def test_mean_of_16_bits():
    "Its sum has 32"
    m = Mean()
    for _ in range(1000): m.add(torch.tensor(3., dtype=torch.float16), 64)
    assert m.value==3
