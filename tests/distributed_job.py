"""What `test_distributed.py` starts, on one process or several

`distributed_job.py FOLDER [what happens to rank 1 in the tenth step]`
"""
import os,signal,sys,time
from contextlib import ExitStack
from bright import Items
from learner_from_scratch.all import *
from learner_from_scratch.finetune import GradualUnfreezing
from torch import nn

class Tenth(Callback):
    def __init__(self, act): self.act = act
    def spoil(self): self.learner.batch = self.batch[0]*float('nan'),self.batch[1]
    def before_batch(self):
        if not self.act or rank_distrib()!=1 or self.epoch!=1: return
        if self.act=='vnan':
            if not self.model.training: self.spoil()
        elif self.act=='verror':
            if not self.model.training: raise OSError('no image')
        elif self.model.training and self.num==3:
            if self.act=='nan': self.spoil()
            else: os.kill(os.getpid(), signal.Signals[self.act])

folder,act = Path(sys.argv[1]),first(sys.argv[2:])
folder.mkdir(exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(42+rank_distrib())   # other weights and another order, until rank 0 tells
bs = 16//num_distrib()
dls = DataLoaders(Shard(DataLoader(Items(81,1), bs, shuffle=True)),
                  Shard(DataLoader(Items(33,2), bs)))
name = f'{rank_distrib()}of{num_distrib()}'
def learner(act, *cbs, average=DistributedCB):
    cbs = [SetupLearnerCB('cpu'), Recorder(csv=folder/f'{name}.csv'), OneCycle(0.1),
           TerminateOnNaN(), average(mb=0.1), Tenth(act), *cbs]
    opt_func = partial(SGD, wd=0.01)
    return Learner(simple_cnn(2), dls, cross_entropy, 0.1, cbs, opt_func)

stack = ExitStack()
stack.enter_context(distrib_ctx(8 if act=='SIGSTOP' else 60))
learn = learner(act, Checkpoint(folder/f'{num_distrib()}', every=2, resume=True))
learn.fit(5)
rec = learn.cbs[1]
res = dict(weights=learn.model.state_dict(), rows=[o[:-1] for o in rec.rows],
           losses=[float(o) for o in rec.losses])
if not act:
    torch.manual_seed(142+rank_distrib())
    # the sixth batch, a single item, is a step of its own
    learn = learner(None, GradientAccumulation(5))
    learn.fit(3)
    rows = [o[:-1] for o in learn.recorder.rows]
    res['accumulated'] = dict(weights=learn.model.state_dict(), rows=rows)
if not act:
    torch.manual_seed(42+rank_distrib())
    average = OverlapCB if num_distrib()>1 else DistributedCB
    learn = learner(None, GradualUnfreezing(), average=average)
    learn.fit(5)
    rows = [o[:-1] for o in learn.recorder.rows]
    res['overlap'] = dict(weights=learn.model.state_dict(), rows=rows)
    assert not any(p._post_accumulate_grad_hooks for p in learn.model.parameters())
if not act:
    # the end of a fit is still being saved when the next one begins
    for n,resume in (1,False),(1,False),(2,True):
        time.sleep(.1*rank_distrib())
        learn = learner(None, Checkpoint(folder/f'again{num_distrib()}', resume=resume))
        learn.fit(n)
    res['again'] = [o[0] for o in learn.cbs[1].rows]
class Branches(nn.Module):
    "One branch for all, one for items whose first number is above 0, and one for nobody"
    def __init__(self):
        super().__init__()
        self.every,self.some,self.nobody = [nn.Linear(3,2) for _ in range(3)]
    def forward(self, x):
        res,some = self.every(x),x[:,:1]>0
        return res + some*self.some(x) if some.any() else res

if not act:
    torch.manual_seed(0)
    # rank 0 gets the even ones
    x = torch.rand(32,3)*torch.tensor([1,-1]).repeat(16)[:,None]
    items,net = [*zip(x, torch.arange(32)//2%2)],Branches()
    begun = {k: v.clone() for k,v in net.state_dict().items()}
    res['branches'] = dict(begun=begun)
    for cb in DistributedCB,OverlapCB:
        net.load_state_dict(begun)
        opt_func = partial(torch.optim.AdamW, weight_decay=.5)
        dl = Shard(DataLoader(items, 8//num_distrib()))
        Learner(net, DataLoaders(dl, []), cross_entropy, .01, cb(), opt_func).fit(2)
        res['branches'][cb.__name__] = {k: v.clone() for k,v in net.state_dict().items()}
if not act and num_distrib()>1:
    learn = learner('nan')
    learn.fit(5)
    res['nan'] = learn.epoch,learn.num
    learn = learner('vnan')
    learn.fit(5)
    res['vnan'] = learn.epoch,len(learn.cbs[1].rows)
torch.save(res, folder/f'{name}.pt')
stack.close()
