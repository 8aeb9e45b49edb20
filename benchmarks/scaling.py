"Training speed of one process and of two, with the same number of threads in all"
import json,os,subprocess,sys,time
from learner_from_scratch.all import *
from torch import distributed as dist

class Items:
    "Images in memory: what is measured is computing and averaging, not reading"
    def __init__(self, n, size):
        self.x = torch.rand(n, size, size, 3, generator=torch.manual_seed(0))
        self.y = torch.arange(n)%10
    def __len__(self): return len(self.y)
    def batch(self, idxs): return self.x[idxs],self.y[idxs]

class Timer(Callback):
    def before_fit(self): self.secs = []
    def before_epoch(self): self.start = time.perf_counter()
    def after_epoch(self):
        if self.model.training: self.secs.append(time.perf_counter()-self.start)

class OwnLoss(DistributedCB):
    "Each rank keeps the loss of its own share, so that they meet once a step"
    def after_loss(self):
        if self.model.training: self.own = len(self.batch[1])

class HalfTheBytes(DistributedCB):
    "Gradients travel as bfloat16"
    def pack(self, b): return super().pack(b).bfloat16()

class Apart(OwnLoss):
    "Each rank steps for itself: they don't meet before the end of the epoch"
    def after_backward(self): self.own = 0

class Wait(Apart):
    "Ranks wait for each other once a step, and send one number"
    def after_backward(self):
        dist.all_reduce(torch.ones(1))
        super().after_backward()

ways = dict(usual=DistributedCB, during=OverlapCB, one_meeting=OwnLoss, bfloat16=HalfTheBytes,
            wait=Wait, apart=Apart)

def train(cb, n, bs, size, epochs):
    "Images of all ranks a second, in the fastest epoch, with the callback `cb`"
    timer = Timer()
    dl = Shard(DataLoader(Items(n, size), bs//num_distrib(), shuffle=True))
    cbs = [SetupLearnerCB('cpu'), cb(), timer]
    Learner(simple_cnn(), DataLoaders(dl, []), cross_entropy, 0.01, cbs).fit(epochs+1)
    return n/min(timer.secs[1:]) # the first epoch warms up; others can only slow it down

def rank_main(*args):
    "What each process does: train in each of the ways in turn, and print the speeds"
    names = ways if num_distrib()>1 else ['usual']
    with distrib_ctx():
        speeds = {k: train(ways[k], *args) for k in names}
        if rank_distrib()==0: print(json.dumps(speeds))

def speeds(procs, threads, args):
    "Images a second of each way, trained by `procs` processes with `threads` threads in all"
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    where = ['--local-addr', '127.0.0.1', '--nproc-per-node', str(procs)]
    cmd = [*torchrun, *where, __file__, *args]
    env = dict(os.environ, OMP_NUM_THREADS=str(threads//procs))
    return json.loads(subprocess.check_output(cmd, env=env, text=True, timeout=600))

@call_parse
def main(
    threads:int=2*max(1, defaults.cpus//2), # Threads in all, an even number
    images:int=1280, # How many
    bs:int=128, # Images a step, of all processes together
    size:int=64, # Side of the images
    epochs:int=6, # Measured in each run
    runs:int=5, # Runs of each kind, in turn
    out:str=None, # JSON file to write
):
    "Compare 1 and 2 processes with the same total number of threads"
    if 'RANK' in os.environ: return rank_main(images, bs, size, epochs)
    if threads<2 or threads%2: sys.exit(f'threads must be even, at least 2, got {threads}')
    args = f'--images {images} --bs {bs} --size {size} --epochs {epochs}'.split()
    pairs = [[speeds(procs, threads, args) for procs in (1,2)] for _ in range(runs)]
    one = max(a['usual'] for a,_ in pairs)
    two = {k: max(b[k] for _,b in pairs) for k in ways}
    res = dict(threads=threads, bs=bs, size=size,
               images_per_s={'1': round(one), '2': round(two['usual'])},
               ratio=round(two['usual']/one, 3),
               ratios=[round(b['usual']/a['usual'], 3) for a,b in pairs],
               ways={k: round(v/one, 3) for k,v in two.items()})
    print(res)
    if out: Path(out).write_text(json.dumps(res, indent=1)+'\n')
