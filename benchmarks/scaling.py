"Training speed of one process and of two, with the same number of threads in all"
import json,os,subprocess,sys,time
from learner_from_scratch.all import *

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

def rank_main(n, bs, size, epochs):
    "What each process does: train, and print the images of all ranks a second"
    timer = Timer()
    with distrib_ctx():
        dl = Shard(DataLoader(Items(n, size), bs//num_distrib(), shuffle=True))
        cbs = [SetupLearnerCB('cpu'), DistributedCB(), timer]
        Learner(simple_cnn(), DataLoaders(dl, []), cross_entropy, 0.01, cbs).fit(epochs+1)
        secs = min(timer.secs[1:]) # the first epoch warms up; others can only slow it down
        if rank_distrib()==0: print(n/secs)

def speed(procs, threads, args):
    "Images a second, trained by `procs` processes with `threads` threads in all"
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    where = ['--local-addr', '127.0.0.1', '--nproc-per-node', str(procs)]
    cmd = [*torchrun, *where, __file__, *args]
    env = dict(os.environ, OMP_NUM_THREADS=str(threads//procs))
    return float(subprocess.check_output(cmd, env=env, text=True, timeout=600))

@call_parse
def main(
    threads:int=2*max(1, defaults.cpus//2), # Threads in all, an even number
    images:int=2560, # How many
    bs:int=128, # Images a step, of all processes together
    size:int=64, # Side of the images
    epochs:int=3, # Measured in each run
    runs:int=3, # Runs of each kind, in turn
    out:str=None, # JSON file to write
):
    "Compare 1 and 2 processes with the same total number of threads"
    if 'RANK' in os.environ: return rank_main(images, bs, size, epochs)
    if threads%2: sys.exit(f'threads must be even, got {threads}')
    args = f'--images {images} --bs {bs} --size {size} --epochs {epochs}'.split()
    pairs = [[speed(procs, threads, args) for procs in (1,2)] for _ in range(runs)]
    one,two = [max(o) for o in zip(*pairs)]
    ratios = [round(b/a, 3) for a,b in pairs]
    speeds = {'1':round(one), '2':round(two)}
    res = dict(threads=threads, bs=bs, size=size, images_per_s=speeds,
               ratio=round(two/one, 3), ratios=ratios)
    print(f'{threads} threads in all, batches of {bs}: 1 process {one:.0f} images/s, '
          f'2 processes {two:.0f} images/s, ratio {res["ratio"]}')
    if out: Path(out).write_text(json.dumps(res, indent=1)+'\n')
