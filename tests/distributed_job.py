"What `test_distributed.py` starts, on one process or several: `distributed_job.py FOLDER [what happens to rank 1 in the tenth step]`"
import os,signal,sys,time
from learner_from_scratch.all import *

class Items:
    "Random small images, a little brighter in class 1"
    def __init__(self, n, seed): self.x,self.y = torch.rand(n,8,8,3, generator=torch.manual_seed(seed)),torch.arange(n)%2
    def __len__(self): return len(self.y)
    def __getitem__(self, i): return self.x[i]+0.3*self.y[i],self.y[i]

class Tenth(Callback):
    def __init__(self, act): self.act = act
    def before_batch(self):
        if (rank_distrib(),self.epoch,self.act,self.model.training)==(1,1,'vnan',False): self.learner.batch = self.batch[0]*float('nan'),self.batch[1]
        if not (self.model.training and (rank_distrib(),self.epoch,self.num)==(1,1,3)): return
        if self.act=='nan': self.learner.batch = self.batch[0]*float('nan'),self.batch[1]
        elif self.act and self.act!='vnan': os.kill(os.getpid(), signal.Signals[self.act])

folder,act = Path(sys.argv[1]),first(sys.argv[2:])
folder.mkdir(exist_ok=True)
torch.set_num_threads(1)
torch.manual_seed(42+rank_distrib())   # the other ranks have other weights and another order, until they are told
bs = 16//num_distrib()
dls = DataLoaders(Shard(DataLoader(Items(81,1), bs, shuffle=True)), Shard(DataLoader(Items(33,2), bs)))
name = f'{rank_distrib()}of{num_distrib()}'
def learner(act, *cbs):
    cbs = [SetupLearnerCB('cpu'), Recorder(csv=folder/f'{name}.csv'), OneCycle(0.1), TerminateOnNaN(), DistributedCB(8 if act=='SIGSTOP' else 60, mb=0.1), Tenth(act), *cbs]
    return Learner(simple_cnn(2), dls, cross_entropy, 0.1, cbs, opt_func=partial(SGD, wd=0.01))

learn = learner(act, Checkpoint(folder/f'{num_distrib()}', every=2, resume=True))
learn.fit(5)
rec = learn.cbs[1]
res = dict(weights=learn.model.state_dict(), rows=[o[:-1] for o in rec.rows], losses=[float(o) for o in rec.losses])
if not act:
    torch.manual_seed(142+rank_distrib())
    learn = learner(None, GradientAccumulation(5))   # the sixth batch, a single item, is a step of its own
    learn.fit(3)
    res['accumulated'] = dict(weights=learn.model.state_dict(), rows=[o[:-1] for o in learn.cbs[1].rows])
if not act:
    for n,resume in (1,False),(1,False),(2,True):   # the end of a fit is still being saved when the next one begins
        time.sleep(.1*rank_distrib())
        learn = learner(None, Checkpoint(folder/f'again{num_distrib()}', resume=resume))
        learn.fit(n)
    res['again'] = [o[0] for o in learn.cbs[1].rows]
if not act and num_distrib()>1:
    learn = learner('nan')
    learn.fit(5)
    res['nan'] = learn.epoch,learn.num
    learn = learner('vnan')
    learn.fit(5)
    res['vnan'] = learn.epoch,len(learn.cbs[1].rows)
torch.save(res, folder/f'{name}.pt')
