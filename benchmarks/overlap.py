"""What it saves to sum gradients while backward runs: two ranks over a slowed loopback

The loopback is one of a network namespace of its own, which `tc` lets carry `mbit` million
bits a second; nobody else's network changes. It needs Linux with `unshare`, `ip` and `tc`.
"""
import json,os,shlex,statistics,subprocess,sys,time
from learner_from_scratch.all import *
from scaling import Items

class Timer(Callback):
    "Seconds of each step"
    order = 100
    def before_fit(self): self.secs = []
    def before_batch(self): self.start = time.perf_counter()
    def after_step(self): self.secs.append(time.perf_counter()-self.start)

def rank_main(small, steps, rounds, mb):
    "What each rank does: train with both callbacks in turn, and print the seconds of a step"
    new,bs,size = (partial(simple_cnn, 10),4,16) if small else (partial(resnet18, 10),16,64)
    secs = dict(after=[], during=[])
    with distrib_ctx():
        dl = Shard(DataLoader(Items(steps*bs*2, size), bs))
        for _ in range(rounds):
            for k,cb in dict(after=DistributedCB, during=OverlapCB).items():
                timer = Timer()
                cbs = [SetupLearnerCB('cpu'), cb(mb=mb), timer]
                Learner(new(), DataLoaders(dl, []), cross_entropy, .01, cbs).fit(1)
                secs[k] += timer.secs[1:] # the first step warms up
        if rank_distrib()==0: print(json.dumps(secs))

def command(mbit, args):
    "Two ranks, in a network of `mbit` million bits a second; 0 leaves it as it is"
    where = '--standalone --local-addr 127.0.0.1 --nproc-per-node 2'.split()
    cmd = [sys.executable, '-m', 'torch.distributed.run', *where, __file__, *args]
    if not mbit: return cmd
    slow = f'tc qdisc add dev lo root tbf rate {mbit}mbit burst 1mb latency 10s'
    script = f'ip link set lo up; {slow}; exec {shlex.join(cmd)}'
    return ['unshare', '-rn', 'sh', '-ec', script]

@call_parse
def main(
    mbit:int=1000, # Million bits a second; 0 for the loopback as it is
    steps:int=6, # Steps of each training, of which the first isn't counted
    rounds:int=3, # Trainings with each callback, in turn
    mb:float=5, # Size of the buckets, in megabytes
    small:store_true=False, # The book's small network, to try it out?
    out:str=None, # JSON file to write
):
    "Compare `DistributedCB` and `OverlapCB`"
    if 'RANK' in os.environ: return rank_main(small, steps, rounds, mb)
    args = f'--steps {steps} --rounds {rounds} --mb {mb}'.split()+['--small']*small
    env = dict(os.environ, OMP_NUM_THREADS='1', GLOO_SOCKET_IFNAME='lo')
    res = subprocess.run(command(mbit, args), env=env, text=True, capture_output=True)
    if res.returncode: sys.exit(f'the two ranks failed:\n{res.stderr[-2000:]}')
    secs = json.loads(res.stdout.splitlines()[-1])
    medians = {k: round(statistics.median(o), 4) for k,o in secs.items()}
    network = 'simple_cnn' if small else 'resnet18'
    saved = 1-medians['during']/medians['after']
    res = dict(network=network, mbit=mbit, mb=mb, seconds=medians, saved=round(saved, 3))
    print(res)
    if out: Path(out).write_text(json.dumps(res, indent=1)+'\n')
