"""Two processes on loopback train as one does

One that dies, hangs or never comes ends the job with an error, and a new job goes on."""
import os,re,socket,subprocess,sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import python
from torch import nn
from learner_from_scratch.callbacks import Callback,CancelBatchException,Learner
from learner_from_scratch.distributed import (DistributedCB,OverlapCB,_data_facts,
                                              distrib_ctx)
from learner_from_scratch.learner import DataLoaders

root = Path(__file__).parent.parent
job = str(root/'tests/distributed_job.py')
env = {**os.environ, 'PYTHONPATH':str(root), 'OMP_NUM_THREADS':'1', 'MPLBACKEND':'agg'}
if sys.platform in ('linux','darwin'):
    env['GLOO_SOCKET_IFNAME'] = 'lo' if sys.platform=='linux' else 'lo0'
torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
            '--local-addr', '127.0.0.1', '--nproc-per-node', '2']
posix = pytest.mark.skipif(os.name!='posix', reason='signals are those of Unix')

as_rank = """
import ast,os,runpy,sys
_,job,env,*args = sys.argv
os.environ.update(ast.literal_eval(env))
sys.argv = [job,*args]
runpy.run_path(job, run_name='__main__')"""

def run(*cmd):
    return subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=300)

def start(ranks, *args):
    """Start `ranks` of two, without `torchrun`: nobody watches them

    They come from a server that has imported all, so that no one is late."""
    with socket.create_server(('127.0.0.1',0)) as s: port = str(s.getsockname()[1])
    where = {**env, 'MASTER_ADDR':'127.0.0.1', 'MASTER_PORT':port, 'WORLD_SIZE':'2'}
    return [python(as_rank, job, {**where, 'RANK':str(i), 'LOCAL_RANK':str(i)}, *args)
            for i in ranks]

def end(p, timeout=250):
    "Exit code and all that `p` says; the timeout is only for one that hangs"
    try: out = ''.join(p.communicate(timeout=timeout))
    finally: p.kill()
    return p.returncode,out

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "What one process and two ranks saved and printed, and where"
    d = tmp_path_factory.mktemp('trained')
    outs = [run(sys.executable, job, str(d)), run(*torchrun, job, str(d))]
    for o in outs: assert o.returncode==0, o.stderr
    saved = [torch.load(d/f'{o}.pt') for o in ('0of1','0of2','1of2')]
    return *saved, *[o.stdout for o in outs], d

def largest_diff(a, b): return max((a[k]-b[k]).abs().max().item() for k in a)

def test_fit_after_fit(trained):
    one,*two,_,_,_ = trained
    assert [o['again'] for o in (one,*two)]==[[0,1]]*3

def test_weights_of_30_steps(trained):
    "Half the batch each, shuffled; of the last one, a single item, rank 1 gets nothing"
    one,r0,r1,*_ = trained
    assert len(r0['losses'])==30
    assert largest_diff(one['weights'], r0['weights']) < 1e-6
    assert largest_diff(r0['weights'], r1['weights'])==0

def test_metrics_are_those_of_all(trained):
    one,r0,r1,*_ = trained
    for k in 'rows','losses':
        assert (torch.tensor(one[k])-torch.tensor(r0[k])).abs().max() < 1e-5
    assert (r0['rows'],r0['losses'])==(r1['rows'],r1['losses'])

def test_accumulated(trained):
    "A step for 80 items and one for a single item: the same weights and the same table"
    one,r0,r1 = [o['accumulated'] for o in trained[:3]]
    assert largest_diff(one['weights'], r0['weights']) < 1e-6
    assert largest_diff(r0['weights'], r1['weights'])==0
    assert (torch.tensor(one['rows'])-torch.tensor(r0['rows'])).abs().max() < 1e-5

def test_summed_while_backward_runs(trained):
    "The same weights as afterwards, also with an empty share"
    one,r0,r1 = [o['overlap'] for o in trained[:3]]
    assert largest_diff(one['weights'], r0['weights']) < 1e-6
    assert largest_diff(r0['weights'], r1['weights'])==0
    assert (torch.tensor(one['rows'])-torch.tensor(r0['rows'])).abs().max() < 1e-5

class Late(Callback):
    "The first layer is frozen, then trained, then frozen"
    def before_epoch(self):
        for p in self.model[0].parameters():
            p.requires_grad_(self.epoch==1)
            p.grad = None

class LateInBatch(Callback):
    "In the second epoch the first layer is trained but for the first batch, else frozen"
    def before_batch(self):
        for p in self.model[0].parameters():
            p.requires_grad_(self.epoch==1 and self.num>0)
            p.grad = None

@pytest.mark.parametrize('late', [Late,LateInBatch])
@pytest.mark.parametrize('frozen', [True,False])
def test_buckets_hold_what_is_trained(frozen, late):
    "Whatever was trainable when the fit began"
    ws = {}
    class Look(Callback):
        def before_fit(self): self.ws = []
        def after_backward(self):
            ps = {p for p in self.model.parameters() if p.requires_grad}
            if isinstance(cb, OverlapCB): assert {p for b in cb.groups for p in b}==ps
        def after_epoch(self):
            if self.model.training: self.ws.append(self.model[0].weight.detach().clone())
    with distrib_ctx():
        for cb in DistributedCB(),OverlapCB():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3,3), nn.Linear(3,2))
            for p in model[0].parameters(): p.requires_grad_(not frozen)
            dls = DataLoaders([(torch.randn(4,3),torch.arange(4)%2)]*3, [])
            look,opt = Look(),partial(torch.optim.AdamW, weight_decay=.5)
            Learner(model, dls, nn.CrossEntropyLoss(), .1, [cb,look,late()], opt).fit(3)
            ws[type(cb)] = look.ws
    for a,b in zip(*ws.values()): assert torch.allclose(a, b, atol=1e-6)
    a,b,c = ws[OverlapCB]
    assert not torch.equal(a, b) and torch.equal(b, c)

def test_only_rank_0_prints(trained):
    *_,one,two,_ = trained
    untimed = lambda o: re.sub(r' *[\d.]+s\n', '\n', o)
    assert untimed(two).startswith(untimed(one)) and 'valid_loss' in one

def test_only_rank_0_saves(trained):
    "Five epochs of 6 batches, a checkpoint every 2 and at the end; and a table"
    d = trained[-1]
    assert max(o.stem for o in (d/'2').glob('*.ckpt'))=='00000020'
    assert (d/'0of2.csv').exists() and not (d/'1of2.csv').exists()

def test_nan_stops_all_in_the_same_step(trained):
    _,r0,r1,_,two,_ = trained
    assert r0['nan']==r1['nan']==(1,3)
    assert two.count('Stopped: the loss is nan in epoch 1, training batch 3')==1

def test_nan_of_one_rank_in_validation_stops_all(trained):
    _,r0,r1,_,two,_ = trained
    assert r0['vnan']==r1['vnan']==(1,1)
    assert 'Stopped by another rank' in two

@posix
def test_failure_of_one_rank_in_validation(tmp_path):
    "The other one ends with an error, too, and nobody takes the fit for finished"
    for p,why in zip(start([0,1], tmp_path, 'verror'), ('another rank failed','no image')):
        code,out = end(p)
        assert code==1 and why in out, out
    assert list(tmp_path.glob('2/*.ckpt')) and not (tmp_path/'2/finished').exists()

def test_facts_of_any_data_set():
    "Files as texts, targets as a list, or neither"
    class Plain:
        fns,y = ['data/a/1.jpg','data/b/2.jpg'],[0,1]
        def __len__(self): return 2
    one,other = [_data_facts(SimpleNamespace(ds=o)) for o in (Plain(),Plain())]
    assert one==other
    Plain.y = [1,0]
    assert _data_facts(SimpleNamespace(ds=Plain()))!=one
    assert _data_facts([])[0]==0

@posix
def test_killed_and_resumed(trained, tmp_path):
    "`torchrun` ends the job; a new one goes on from rank 0's checkpoint, to the same weights"
    res = run(*torchrun, job, str(tmp_path), 'SIGKILL')
    assert res.returncode and 'SIGKILL' in res.stderr
    assert not [*tmp_path.glob('*.pt')] and [*tmp_path.glob('2/*.ckpt')]
    for code,out in map(end, start([0,1], tmp_path)): assert code==0, out
    calm,mine = [sorted((d/'2').glob('*.ckpt'))[-1].name for d in (trained[-1],tmp_path)]
    assert mine==calm # who begins anew numbers on from where the killed one was
    for i in range(2):
        res = torch.load(tmp_path/f'{i}of2.pt')
        assert largest_diff(res['weights'], trained[1]['weights'])==0
        assert res['rows']==trained[1]['rows']

@posix
def test_stopped_and_never_come(tmp_path):
    "Rank 1 is only silent, or was never there: after the timeout of 8 s rank 0 gives up"
    r0,stopped = start([0,1], tmp_path/'a', 'SIGSTOP')
    alone, = start([0], tmp_path/'b', 'SIGSTOP')
    try:
        for p,event in (r0,'DistributedCB'),(alone,''):
            code,out = end(p)
            assert code==1 and event in out and re.search('[Tt]imed out', out), out
        assert stopped.poll() is None
    finally: stopped.kill(); stopped.communicate()

@pytest.mark.parametrize('kind', ['DistributedCB','OverlapCB'])
def test_branch_of_one_rank(trained, kind):
    "Rank 1 never uses it, and takes the same steps; what nobody uses stays as it was"
    one,r0,r1 = [o['branches'][kind] for o in trained[:3]]
    assert largest_diff(one, r0) < 1e-6 and largest_diff(r0, r1)==0
    begun = trained[0]['branches']['begun']
    for k,v in one.items(): assert torch.equal(v, begun[k])==k.startswith('nobody'), k

def fused(*cbs):
    "Weights of a network with its channels last, after steps of a fused optimizer"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2))
    x = torch.randn(8,3,6,6)
    net(x)
    net.to(memory_format=torch.channels_last)
    dls = DataLoaders([(x,torch.arange(8)%2)]*3, [])
    adam = partial(torch.optim.Adam, fused=True)
    Learner(net, dls, nn.CrossEntropyLoss(), .1, cbs, adam).fit(2)
    return torch.cat([p.detach().flatten() for p in net.parameters()])

@pytest.mark.parametrize('kind', [DistributedCB, OverlapCB])
def test_gradients_lie_in_memory_as_their_parameters(kind):
    "A fused optimizer goes through both by their bytes"
    try: want = fused()
    except RuntimeError as e: pytest.skip(f'PyTorch below 2.4 has none for processors: {e}')
    with distrib_ctx(): got = fused(kind())
    assert torch.allclose(got, want, atol=1e-6)

class Skip(Callback):
    "Batch 0 is cancelled after its loss"
    order = 5
    def after_loss(self):
        if self.model.training and self.num==0: raise CancelBatchException

@pytest.mark.parametrize('kind', [DistributedCB, OverlapCB])
def test_items_of_a_cancelled_batch(kind):
    "They don't count for the next step"
    seen = []
    class Sums(kind):
        def receive(self):
            seen.append(self.sent[0][1][0].item())
            super().receive()
    dls = DataLoaders([(torch.randn(n,3),torch.arange(n)%2) for n in (5,4,3)], [])
    with distrib_ctx():
        Learner(nn.Linear(3,2), dls, nn.CrossEntropyLoss(), .1, [Sums(),Skip()]).fit(1)
    assert seen==[4,3]

@pytest.mark.parametrize('kind', [DistributedCB, OverlapCB])
def test_what_no_rank_uses(kind):
    "It stays as it is, as in one process, whatever the weight decay"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used,self.other = nn.Linear(3,2),nn.Linear(3,2)
        def forward(self, x): return self.used(x)
    torch.manual_seed(0)
    net,dls = Net(),DataLoaders([(torch.randn(4,3),torch.arange(4)%2)]*3, [])
    before = {k: p.detach().clone() for k,p in net.named_parameters()}
    opt = partial(torch.optim.AdamW, weight_decay=.5)
    with distrib_ctx(): Learner(net, dls, nn.CrossEntropyLoss(), .1, kind(), opt).fit(2)
    for k,p in net.named_parameters(): assert torch.equal(p, before[k])==('other' in k)
