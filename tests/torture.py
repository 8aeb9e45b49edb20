"""Faults on purpose, at random, for as long as you like: `make torture`

Each function with `@kind` does some attempts from a seed and counts them by name. It raises
an error when something is lost, wrong or left behind. `main` runs all, each in a process of
its own, so that one that hangs or crashes is counted, too.
"""
import argparse,builtins,errno,gc,hashlib,io,json,os,random,resource,shutil,signal,socket,sys
import tempfile,time,zipfile
from collections import Counter
from contextlib import contextmanager,redirect_stdout
from itertools import cycle
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image
from forked import ctx,python
from learner_from_scratch.all import *

kinds,starters = {},set()
def kind(f):
    kinds[f.__name__] = f
    return f

def starts(f):
    "A kind that starts processes itself, and so runs in that of `main`"
    starters.add(f.__name__)
    return kind(f)

def nothing_left(*folders):
    left = [o.name for d in folders for o in d.iterdir() if o.suffix in ('.part','.old')]
    assert not left, f'left: {left}'

def autocast_on():
    "Is it on for the processor? PyTorch 2.3 has another name for the question"
    try: return torch.is_autocast_enabled('cpu')
    except TypeError: return torch.is_autocast_cpu_enabled()

# --- a hang is a rest, and not a time: the machine may have other things to do ---
def busy(pid):
    "Seconds of processor time that a process has used; elsewhere than on Linux, of the clock"
    if not Path('/proc/self/stat').exists(): return time.monotonic()
    try: text = Path(f'/proc/{pid}/stat').read_text()
    except OSError: return 0
    ticks = text.rsplit(')', 1)[1].split()[11:13]
    return sum(map(int, ticks))/os.sysconf('SC_CLK_TCK')

def wait_for(ps, idle=120, most=900):
    "Wait until `ps` have ended; who rests for `idle` seconds, or works for `most`, is killed"
    was,since,start = None,time.monotonic(),sum(busy(p.pid) for p in ps)
    while any(p.is_alive() for p in ps):
        ps[0].join(.02)
        now = sum(busy(p.pid) for p in ps)
        if now!=was: was,since = now,time.monotonic()
        if time.monotonic()-since > idle or now-start > most:
            for p in ps: p.kill()
    for p in ps: p.join()

# --- Ctrl-C in a fit ---
class Log(Callback):
    "Counts batches, passes and fits that were begun, and those that were cleaned up"
    def __init__(self, order): self.order,self.begun,self.over = order,[0]*3,[0]*3
    def before_fit(self): self.begun[0] += 1
    def before_epoch(self): self.begun[1] += 1
    def before_batch(self): self.begun[2] += 1
    def cleanup_fit(self): self.over[0] += 1
    def cleanup_epoch(self): self.over[1] += 1
    def cleanup_batch(self): self.over[2] += 1

class Half(Callback):
    "Ends the second pass in its middle"
    def after_batch(self):
        if self.epoch==1 and self.num==1: raise CancelEpochException

class Fits:
    "A fit of two epochs in half precision, again and again; what is wrong then is an error"
    def __init__(self, *cbs):
        torch.set_num_threads(1)
        torch.manual_seed(0)
        x,y = torch.randn(12,3,4,4),torch.arange(12)%2
        ds = [*zip(x,y)]
        dls = DataLoaders(DataLoader(ds, 4, shuffle=True, n_workers=0),
                          DataLoader(ds, 6, n_workers=0))
        model = Sequential(ConvLayer(3,4,stride=2), AdaptivePool(), Linear(4,2))
        # the clean-ups come in the order of the callbacks: one of the logs is at each end
        self.own = [Log(-100), MixedPrecision(), GradientAccumulation(2),
                    TerminateOnNaN(), Half()]
        self.learn = Learner(model, dls, cross_entropy, .1, self.own)
        self.cbs,self.start = cbs,{k:p.clone() for k,p in model.state_dict().items()}
        self.lost = []
        self.next_fit()
        self.want = self.weights()

    def weights(self): return {k:p.clone() for k,p in self.learn.model.state_dict().items()}

    def prepare(self):
        self.logs = self.own[0],Log(100)
        self.logs[0].__init__(-100)
        self.learn.model.load_state_dict(self.start)
        torch.manual_seed(1)

    def fit(self): self.learn.fit(2, cbs=[OneCycle(.1), self.logs[1], *self.cbs])

    def next_fit(self):
        self.prepare()
        self.fit()

    def check(self):
        "Is all as if there had been no fit?"
        cb = self.learn.cbs
        assert [*cb]==self.own, f'callbacks of an interrupted fit stay: {cb}'
        assert not autocast_on(), 'autocast is on'
        assert torch.is_grad_enabled(), 'gradients are off'
        assert not torch.overrides._get_current_function_mode_stack(), 'a mode is on'
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, 'another handler'
        assert not self.lost, f'lost: {self.lost}'
        a,b = self.logs
        assert a.over==b.over, f'half a clean-up: {a.over} {b.over}'
        # who is interrupted just before it begins is cleaned up all the same
        ok = all(n-m in (0,1) for n,m in zip(a.over, a.begun))
        assert ok, f'{a.begun} fits, passes and batches, {a.over} clean-ups'

    def interrupted(self, interrupt):
        "Did Ctrl-C come, as `interrupt(self.fit)` wants it? And was all well afterwards?"
        hit = False
        self.prepare()
        sys.unraisablehook = lambda o: self.lost.append(repr(o.exc_value))
        try: fired = interrupt(self.fit)
        except KeyboardInterrupt: hit = fired = True
        sys.unraisablehook = sys.__unraisablehook__
        assert hit or not fired, 'an interrupt was lost'
        self.check()
        return hit

    def next_is_right(self):
        self.next_fit()
        now = self.weights()
        assert all(torch.equal(now[k], v) for k,v in self.want.items()), 'the next fit is wrong'

def at_call(n):
    "Something that presses Ctrl-C at the `n`-th call that a function makes, or return from C"
    def interrupt(f):
        left = n
        def profile(frame, event, arg):
            nonlocal left
            if event not in ('call','c_return'): return
            left -= 1
            if left: return
            sys.setprofile(None)
            signal.raise_signal(signal.SIGINT)
        try:
            sys.setprofile(profile)
            f()
        finally: sys.setprofile(None)
        return left<=0
    return interrupt

def n_calls(f):
    "How many instants `at_call` has in `f`"
    n = 0
    def profile(frame, event, arg):
        nonlocal n
        n += event in ('call','c_return')
    sys.setprofile(profile)
    try: f()
    finally: sys.setprofile(None)
    return n

def at_time(secs):
    "Something that presses Ctrl-C after so many seconds"
    def interrupt(f):
        fired = False
        def alarm(*_):
            nonlocal fired
            fired = True
            signal.raise_signal(signal.SIGINT)
        before = signal.signal(signal.SIGALRM, alarm)
        try:
            signal.setitimer(signal.ITIMER_REAL, max(secs, 1e-6))
            f()
            signal.setitimer(signal.ITIMER_REAL, 0)
            return fired
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    return interrupt

@kind
def interrupt_at_calls(rng, n=300):
    "Ctrl-C at random calls of a fit, and at each of 100 calls in a row"
    fits = Fits()
    total = n_calls(fits.fit)
    first_,hits = rng.randrange(1, total+1),0
    places = [*range(first_, first_+100), *rng.choices(range(1,total+1), k=n-100)]
    for i,o in enumerate(places):
        hits += fits.interrupted(at_call(o))
        if i%10==0: fits.next_is_right()
    return {'Ctrl-C at a call of a fit': hits}

@kind
def interrupt_at_times(rng, n=300):
    "Ctrl-C at random instants of a fit"
    fits = Fits()
    secs = seconds(fits.fit)
    hits = 0
    for i in range(n):
        hits += fits.interrupted(at_time(rng.uniform(0, secs)))
        if i%10==0: fits.next_is_right()
    return {'Ctrl-C at a random instant of a fit': hits}

# --- Ctrl-C in a save ---
def saves(path):
    "By name: something that writes a file, how to tell that it is whole, and the file"
    model = Linear(100,10)
    rec = Recorder()
    rec.rows = [[i,.1,.2,.3,1.] for i in range(20)]
    def csv_ok(fn): assert len(fn.read_text().splitlines())==21
    def save_checkpoint():
        cb = Checkpoint(path)
        x = torch.ones(4,100)
        dls = DataLoaders([(x,torch.zeros(4,10))],[])
        learn = Learner(model, dls, lambda a,b: (a-b).square().mean(), .1, cb)
        learn.opt = SGD(model.parameters(), .1)
        cb.start = rng_state()
        for o in cb.files(): o.unlink()
        cb.save(1, 0)
    return dict(
        whole=(lambda: _write(path/'a', 10), _check_sum, path/'a'),
        save_model=(lambda: save_model(model, path/'m'), load_weights, path/'m'),
        to_csv=(lambda: rec.to_csv(path/'t.csv'), csv_ok, path/'t.csv'),
        Checkpoint=(save_checkpoint, load_checkpoint, path/'00000001.ckpt'))

def _write(fn, n):
    "A file of `n` blocks of random numbers, with their sum"
    data = os.urandom(n*1000)
    with whole(fn) as tmp, open(tmp, 'wb') as f:
        f.write(hashlib.sha256(data).digest())
        for i in range(n): f.write(data[i*1000:(i+1)*1000])

def _check_sum(fn):
    data = fn.read_bytes()
    assert data and hashlib.sha256(data[32:]).digest()==data[:32], f'{fn.name} is not whole'

@kind
def interrupt_saves(rng, n=20):
    "Ctrl-C at random calls of a save: the file is whole, nothing is left beside the next one"
    res = Counter()
    with tempfile.TemporaryDirectory() as d:
        for name,(save,check,fn) in saves(Path(d)).items():
            save()
            total = n_calls(save)
            for _ in range(n):
                if name!='Checkpoint': assert fn.exists()
                try: fired = at_call(rng.randrange(1, total+1))(save)
                except KeyboardInterrupt: res[f'Ctrl-C in a save: {name}'] += 1
                else: assert not fired, 'an interrupt was lost'
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
                if fn.exists(): check(fn)
                else: assert name=='Checkpoint', f'{name} lost its file'
                gc.collect()
                save()
                check(fn)
                nothing_left(Path(d))
    return res

# --- kill -9 of several ranks ---
def free_port():
    with socket.create_server(('127.0.0.1',0)) as s: return s.getsockname()[1]

def rank_fit(path, out, seed, rank, n, port, acc, mixed, every):
    "One rank's part of a fit of 3 epochs of 4 batches; it writes to `out` what it came to"
    with open(out/f'{rank}.log', 'w') as f:
        for fd in (1,2): os.dup2(f.fileno(), fd)
    lo = 'lo' if sys.platform=='linux' else 'lo0'
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(n), LOCAL_RANK=str(rank),
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), GLOO_SOCKET_IFNAME=lo)
    torch.set_num_threads(1)
    torch.manual_seed(7)
    x,y = torch.randn(42,3,6,6),torch.arange(42)%3
    ds = [*zip(x,y)]
    bs = 12//n
    train = DataLoader(ds, bs, shuffle=True, n_workers=0)
    valid = DataLoader(ds[:15], bs, n_workers=0)
    for f in (torch.manual_seed,np.random.seed,random.seed): f(seed+rank)
    model = Sequential(ConvLayer(3,8,stride=2), AdaptivePool(), Linear(8,3))
    with distrib_ctx(600):
        cbs = [DistributedCB(), Recorder(), OneCycle(.3), SaveBest(path/'best.safetensors'),
               Checkpoint(path, every=every, resume=True)]
        if acc>1: cbs.append(GradientAccumulation(acc))
        if mixed: cbs.append(MixedPrecision())
        dls = DataLoaders(Shard(train), Shard(valid))
        learn = Learner(model, dls, cross_entropy, .3, cbs)
        learn.fit(3)
    rows = [o[:-1] for o in learn.recorder.rows]
    best = min(rows, key=lambda o: o[2])[0]
    _,meta = load_weights(path/'best.safetensors') if rank==0 else ({},{'epoch':best})
    assert meta['epoch']==best, f'best is epoch {best} in the table, {meta["epoch"]} was saved'
    h = hashlib.sha256(repr([rows, [float(o) for o in learn.recorder.losses]]).encode())
    for k,p in model.state_dict().items(): h.update(k.encode() + p.numpy().tobytes())
    if rank==0: h.update((path/'best.safetensors').read_bytes())
    with whole(out/f'{rank}') as tmp: tmp.write_text(h.hexdigest())

class Job:
    "`n` ranks that fit together, each in a process of its own"
    def __init__(self, path, out, seed, n, *how, target=rank_fit):
        for o in (path,out): o.mkdir(exist_ok=True)
        self.out,port = out,free_port()
        args = [(path, out, seed, rank, n, port, *how) for rank in range(n)]
        self.ps = [ctx.Process(target=target, args=o) for o in args]
        for p in self.ps: p.start()

    def end(self):
        "What the ranks came to"
        wait_for(self.ps)
        codes = [p.exitcode for p in self.ps]
        logs = [o.read_text().splitlines() or [''] for o in sorted(self.out.glob('*.log'))]
        said = [o[-1] for o in logs]
        assert codes==[0]*len(codes), f'the ranks ended with {codes} and {said}'
        return [(self.out/f'{i}').read_text() for i in range(len(self.ps))]

    def until(self, cond):
        "Wait until `cond()`, or for the end"
        late = time.monotonic()+600
        while not cond() and any(p.is_alive() for p in self.ps):
            assert time.monotonic()<late, 'nothing happens'
            time.sleep(.001)

    def kill(self, first_=0, pause=0):
        "Kill one, and after `pause` seconds all others; were they all done?"
        self.ps[first_].kill()
        time.sleep(pause)
        for p in self.ps: p.kill()
        for p in self.ps: p.join()
        return all(p.exitcode==0 for p in self.ps)

combinations = [(n,acc,mixed,every) for n in (1,2,3) for acc in (1,3)
                for mixed in (False,True) for every in (1,None)]

def in_words(n, acc, mixed, every):
    "What `combinations` has"
    steps = f'steps of {acc} batches' if acc>1 else 'steps of 1 batch'
    kind = 'bfloat16' if mixed else 'float32'
    return f'{n} rank{"s"*(n>1)}, {steps}, {kind}, saved each {"batch" if every else "epoch"}'

def kill_ranks(rng, combs, n=2):
    "Kill jobs at random moments; each goes on to the very same end"
    res = Counter()
    for comb in combs:
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            want = Job(d/'ref', d/'ref_out', 0, *comb).end()
            n_saves = 15 if comb[-1] else 3
            for i in range(n):
                while True:
                    path = d/f'{i}_{rng.random()}'
                    job,stop = Job(path, d/'out', 0, *comb),rng.randrange(n_saves)
                    job.until(lambda: not stop or last(path)>=stop)
                    time.sleep(rng.uniform(0, .02 if stop else .5))
                    if not job.kill(rng.randrange(comb[0]), rng.uniform(0, .03)): break
                begun = any(path.glob('*.ckpt'))
                got = Job(path, d/f'out{i}', 5 if begun else 0, *comb).end()
                assert got==want, f'another training after kill -9: {comb}'
                nothing_left(path)
                res[f'kill -9: {in_words(*comb)}'] += 1
    return res

turns = cycle(combinations)

@starts
def kill_jobs(rng, n=2):
    "The next two of the combinations of ranks, accumulation, half precision and saving"
    return kill_ranks(rng, [next(turns) for _ in range(n)])

# --- two fits, one folder ---
def _trains(path, n):
    "A fit of `n` short epochs, with checkpoints in `path`"
    torch.set_num_threads(1)
    batches = [(torch.ones(4,2),torch.arange(4)%2)]*2
    dls,cbs = DataLoaders(batches, batches),Checkpoint(path, every=1, resume=True)
    learn = Learner(Linear(2,2), dls, cross_entropy, .1, cbs)
    with quiet(): learn.fit(n)

def last(path):
    "The number of the last checkpoint"
    return max([int(o.stem) for o in path.glob('*.ckpt')], default=0)

@starts
def one_of_two(rng, n=5):
    "Of two fits in one folder the second is refused; after kill -9 another one goes on"
    with tempfile.TemporaryDirectory() as d:
        for i in range(n):
            path = Path(d)/f'{i}'
            job = Job(path, Path(d)/'out', 10**9, 1, target=_trains_on)
            stop = rng.randrange(20)
            job.until(lambda: last(path)>stop)
            before = last(path)
            for _ in range(3):
                try: _trains(path, 1)
                except ValueError as e: assert 'another training' in str(e), e
                else: raise AssertionError('two fits in one folder')
            assert last(path)>=before and job.ps[0].is_alive()
            job.kill()
            epoch = load_checkpoint(sorted(path.glob('*.ckpt'))[-1])['epoch']
            for j in range(1,3): _trains(path, epoch+j)
            nothing_left(path)
    return {'two fits in one folder': 3*n}

def _trains_on(path, out, n, *_): _trains(path, n)

# --- files that somebody has changed ---
def nested(n):
    res = []
    for _ in range(n): res = [res]
    return res

def strange(rng, old):
    "Something else in the place of `old`"
    huge = torch.zeros(1).expand(2**40)
    pool = [None, True, -1, 2, 2**70, 10**400, 1e308, float('nan'), 1j, '', 'x'*99, '../up',
            b'x', [], {}, [[1]], [['x']], {'a':1}, (), nested(100), torch.zeros(0),
            torch.zeros(()), huge, {1:huge}, torch.zeros(2, dtype=torch.complex64),
            torch.zeros(3,3), torch.ones(5056, dtype=torch.uint8), torch.eye(2).to_sparse(),
            torch.float32, torch.Size([2]), torch.zeros(1, device='meta')]
    if isinstance(old, torch.Tensor):
        pool += [old.to(torch.int8), old.to(torch.complex64), old.flatten(), old[None]]
        pool.append(old.double()/0)
        pool += [torch.zeros(1, dtype=old.dtype).expand(old.shape or (2**40,))]*3
    if isinstance(old, (list,tuple)):
        pool += [type(old)([*old, *old]), type(old)(old[:-1]), list(old), tuple(old)]
    if isinstance(old, dict):
        pool += [{**old, 'csv':'evil.csv'}, dict(list(old.items())[1:])]
        pool.append({str(k)+'_':v for k,v in old.items()})
    if isinstance(old, (int,float)): pool += [old+1, -old-1, old*2**40, str(old)]
    return rng.choice(pool)

def fields(o, path=()):
    "The paths to all that is in `o`; of a long list, to the first item and the last one"
    keys = ()
    if isinstance(o, dict): keys = [*o]
    if isinstance(o, (list,tuple)): keys = range(len(o)) if len(o)<9 else (0, len(o)-1)
    res = [path]
    for k in keys: res += fields(o[k], (*path,k))
    return res

def changed(o, path, f):
    "`o` with `f(old)` in the place of what is at `path`"
    if not path: return f(o)
    k,*rest = path
    new = changed(o[k], rest, f)
    if isinstance(o, dict): return {**o, k:new}
    return type(o)([*o[:k], new, *o[k+1:]])

def mutated(rng, o):
    "`o` with something strange in one place"
    return changed(o, rng.choice(fields(o)), partial(strange, rng))

class Smallest:
    "A fit on 3 batches whose checkpoints are quick to make"
    def __init__(self, path, adam=False):
        torch.manual_seed(0)
        self.path,self.adam = path,adam
        self.batches = [(torch.randn(4,3),torch.arange(4)%2) for _ in range(3)]
        self.fit(path/f'good{adam:d}', 1)
        files = sorted((path/f'good{adam:d}').glob('*.ckpt'))
        self.good = [load_checkpoint(o) for o in files] # in an epoch, and at its end

    def fit(self, folder, n, csv=None):
        model = Sequential(Linear(3,4), Linear(4,2))
        best = SaveBest(folder/'best.safetensors')
        cbs = [GradientAccumulation(2), Recorder(csv=csv), best, OneCycle(.1),
               EarlyStopping(restore_best=True), EMA(), ActivationStats(bins=3),
               Checkpoint(folder, every=2, resume=True, n=3)]
        dls = DataLoaders(self.batches, self.batches[:1])
        opt_func = torch.optim.AdamW if self.adam else SGD
        self.learn = Learner(model, dls, cross_entropy, .1, cbs, opt_func)
        self.learn.fit(n)

def peak():
    "The most memory that this process ever had, in MB"
    unit = 2**10 if sys.platform=='linux' else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/unit

def told(f, name):
    "`f()` ends well, or with one ValueError that has `name` in it; did it end well?"
    before = peak()
    try: f()
    except ValueError as e: assert name in str(e), f'an error without {name}: {e}'
    else: return True
    finally: assert peak()-before<500, 'a file took half a gigabyte'
    return False

def contents(d):
    files = [o for o in d.rglob('*') if o.is_file()]
    return {o:(o.stat().st_mtime_ns, o.stat().st_size) for o in files}

def resumed(small, state, d):
    "Go on from `state` in the folder `d`/run; nothing else in `d` changes"
    run = d/'run'
    for o in contents(run): o.unlink()
    torch.save(state, run/'00000001.ckpt')
    before = {k:v for k,v in contents(d).items() if k.parent!=run}
    ok = told(lambda: small.fit(run, 2), '00000001.ckpt')
    after = {k:v for k,v in contents(d).items() if k.parent!=run}
    assert before==after, 'something outside of the folder was changed'
    return ok

@contextmanager
def quiet():
    with open(os.devnull, 'w') as f, redirect_stdout(f): yield

@contextmanager
def place():
    "A folder to work in, for a time"
    here = os.getcwd()
    with tempfile.TemporaryDirectory() as d:
        os.chdir(d)
        try: yield Path(d)
        finally: os.chdir(here)

@kind
def changed_checkpoints(rng, n=100):
    "A good checkpoint with something strange in it: told in one line, or harmless"
    res = Counter()
    with place() as d, quiet():
        (d/'run').mkdir()
        small = Smallest(d, adam=rng.random()<.5)
        for _ in range(n):
            state = mutated(rng, rng.choice(small.good))
            ok = resumed(small, state, d)
            res[f'a changed checkpoint: {"harmless" if ok else "refused"}'] += 1
    return res

def damaged(rng, data):
    "Bytes of a file, cut off or with one of them changed"
    i = rng.randrange(len(data))
    return rng.choice([data[:i], data[:i]+bytes([data[i]^(1<<rng.randrange(8))])+data[i+1:]])

def refused_in_one_line(f, name):
    "Does the command `f` end with one line that has `name` in it? Or does it end well?"
    memory = peak()
    try: f()
    except SystemExit as e: line = str(e.code)
    else: return False
    finally: assert peak()-memory<500, 'a file took half a gigabyte'
    assert name in line and line.isprintable(), f'not one line with the name: {line}'
    return True

class Run:
    "A small run of `lfs_train` in `d`, which can go on from its first epoch"
    def __init__(self, d):
        from learner_from_scratch import cli,runs
        self.d,self.runs,self.train = d,runs,cli.lfs_train
        draw_shapes(d/'shapes', 20, 10, 16)
        self.resume()
        first_,last_ = sorted((d/'run/checkpoints').glob('*.ckpt'))
        self.files = first_,d/'run/settings.json'
        self.good = {o:o.read_bytes() for o in contents(d/'run') if o!=last_}
        self.state = load_checkpoint(first_)

    def resume(self):
        args = dict(epochs=2, size=8, bs=10, out=self.d/'run', resume=True)
        with mock.patch.object(self.runs, 'save_results', noop): # pictures take their time
            self.train(str(self.d/'shapes'), **args)

    def refused(self, fn, data):
        "Is it refused to go on with `data` in the file `fn`? Nothing else in `d` changes"
        for o in contents(self.d/'run'): o.unlink()
        for o in self.good: o.write_bytes(self.good[o])
        fn.write_bytes(data)
        def others():
            files = contents(self.d)
            return {k:v for k,v in files.items() if self.d/'run' not in k.parents}
        before = others()
        res = refused_in_one_line(self.resume, self.d.name)
        assert before==others(), 'something outside of the folder was changed'
        return res

def as_bytes(state):
    res = io.BytesIO()
    torch.save(state, res)
    return res.getvalue()

@kind
def changed_runs(rng, n=50):
    "`lfs_train --resume` after a change in a checkpoint or the settings"
    res = Counter()
    with place() as d, quiet():
        run = Run(d)
        for _ in range(n):
            fn = rng.choice(run.files)
            if rng.random()<.2: data = damaged(rng, run.good[fn])
            elif fn.suffix=='.ckpt': data = as_bytes(mutated(rng, run.state))
            else:
                new = mutated(rng, json.loads(run.good[fn]))
                data = json.dumps(new, default=str).encode()
            how = 'refused' if run.refused(fn, data) else 'harmless'
            res[f'lfs_train --resume, changed files: {how}'] += 1
    return res

@kind
def changed_models(rng, n=100):
    "A model file with something strange in its header: `lfs_predict` tells it, or predicts"
    from learner_from_scratch import cli
    res = Counter()
    with place() as d, quiet():
        Predictor(simple_cnn(2), ['a','b'], 8).save(d/'good')
        Image.new('RGB', (9,9)).save(d/'im.png')
        cli.lfs_predict([str(d/'good'), str(d/'im.png')]) # as it is, it isn't refused
        data = (d/'good').read_bytes()
        size = int.from_bytes(data[:8], 'little')
        header,rest = json.loads(data[8:8+size]),data[8+size:]
        for _ in range(n):
            (d/'bad').write_bytes(changed_header(rng, header, rest))
            before = contents(d)
            def predict(): cli.lfs_predict([str(d/'bad'), str(d/'im.png')])
            bad = refused_in_one_line(predict, 'bad')
            assert before==contents(d), 'a file was changed'
            res[f'a changed model: {"refused" if bad else "predicts"}'] += 1
    return res

def changed_header(rng, header, rest):
    "The bytes of a model file with one change"
    h = json.loads(json.dumps(header))
    k = rng.choice([*h])
    if k=='__metadata__':
        meta = json.loads(h[k]['meta'])
        text = json.dumps(mutated(rng, meta), default=str)
        h[k]['meta'] = rng.choice([text, text, text, text[:-1], '['*10**5, 7])
    else:
        field = rng.choice([*h[k]])
        dtypes = 'F64','I8','BOOL','F16','BF16','F8_E4M3','U16','C64','x',3
        sizes = [0],[2**62,2],[-1],[],[h[k]['shape']],'x',[2**31]*3
        new = dict(dtype=dtypes, shape=sizes, data_offsets=[[0,0],[0,2**63],[5,2],[-4,0],'x'])
        h[k][field] = rng.choice(new[field])
        if rng.random()<.1: h[rng.choice(['5.w','x','__metadata__'])] = h.pop(k)
    text = json.dumps(h).encode()
    n = rng.choice([len(text)]*8 + [0, 2**63, len(text)-1, len(text)+9])
    return n.to_bytes(8, 'little') + text + rng.choice([rest]*8 + [b'', rest[:-1], rest+b'x'])

# --- a disk that fails ---
mkdir = os.mkdir

class Failing:
    "In this block the `n`-th call of `names` that touches a file fails, as on a full disk"
    def __init__(self, n, code=errno.ENOSPC): self.left,self.code = n,code
    def step(self):
        self.left -= 1
        if self.left==0: raise OSError(self.code, os.strerror(self.code))
    def before(self, f):
        def _f(path, *args, **kwargs):
            # nobody cares for an error of `mkdir` for a folder that is there
            if f is not mkdir or not os.path.isdir(path): self.step()
            return f(path, *args, **kwargs)
        return _f
    def open(self, f):
        def _f(file, mode='r', *args, **kwargs):
            res = f(file, mode, *args, **kwargs)
            return Writer(res, self) if set(mode)&set('wax+') else res
        return _f
    def __enter__(self):
        self.patches = [mock.patch.object(os, o, self.before(getattr(os, o)))
                        for o in ('fsync','replace','rename','mkdir')]
        self.patches += [mock.patch.object(m, 'open', self.open(open)) for m in (builtins,io)]
        for o in self.patches: o.start()
        return self
    def __exit__(self, *exc):
        for o in self.patches: o.stop()

class Writer:
    "A file whose writes are counted by a `Failing`"
    def __init__(self, file, disk): self.file,self.disk = file,disk
    def __getattr__(self, k): return getattr(self.file, k)
    def fileno(self): raise io.UnsupportedOperation
    def __iter__(self): return iter(self.file)
    def __enter__(self): return self
    def __exit__(self, *exc): self.file.close()
    def write(self, data):
        self.disk.step()
        return self.file.write(data)

def shapes_ok(d): assert len([*d.rglob('*.JPEG')])==14

def all_saves(d):
    def draw(): return draw_shapes(d/'s', 10, 4, 8)
    return {**saves(d), 'draw_shapes': (draw, shapes_ok, d/'s')}

def fails_at(n, name, d):
    "Let the `n`-th step of the disk fail in a save: the old file stays; did it come to that?"
    save,check,fn = all_saves(d)[name]
    once = name in ('draw_shapes','Checkpoint')
    if once: before = None
    else:
        save()
        before = fn.read_bytes()
    with Failing(n) as disk:
        try: save()
        except OSError as e: assert e.errno==errno.ENOSPC, f'another error: {e!r}'
        else: assert disk.left>0, f'{name} does not tell that step {n} failed'
    if fn.exists(): check(fn)
    # the last step, to the folder's list of names, comes when the new file is in its place
    else: assert once, f'{name} lost its file'
    nothing_left(d)
    failed = disk.left<=0
    save()
    check(fn)
    if fn.is_dir(): shutil.rmtree(fn)
    return failed

@kind
def failing_disk(rng):
    "Every step of every save fails once"
    res = Counter()
    with tempfile.TemporaryDirectory() as d:
        for name in all_saves(Path(d)):
            n = 1
            while fails_at(n, name, Path(d)):
                res[f'a failing disk: {name}'] += 1
                n += 1
    return res

@kind
def full_disk(rng, n=20):
    "No file may have more than some bytes: told in one line, the old file is kept"
    res = Counter()
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        for name,(save,check,fn) in saves(d).items():
            save()
            size = fn.stat().st_size
            for _ in range(n):
                old = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (rng.randrange(size), old[1]))
                try: save()
                except OSError as e: assert e.errno==errno.EFBIG, f'another error: {e!r}'
                else: raise AssertionError(f'{name} does not tell that the disk is full')
                finally: resource.setrlimit(resource.RLIMIT_FSIZE, old)
                if name!='Checkpoint': check(fn)
                nothing_left(d)
                res[f'a full disk: {name}'] += 1
    return res

# --- two of everything at once ---
def _writes(d, name, secs):
    "Write the same file again and again"
    save,_,fn = saves(d)[name] if name in saves(d) else (lambda: Smallest(d), 0, 0)
    end = time.monotonic()+secs
    with quiet():
        while time.monotonic()<end: save()

def _makes(d):
    "Draw shapes, and unpack an archive"
    draw_shapes(d/'s', 10, 4, 8)
    untar_data((d/'arch.zip').as_uri(), archive=d/'a', data=d/'b')

def _start(f, *args):
    p = ctx.Process(target=f, args=args)
    p.start()
    return p

def _join(ps):
    wait_for(ps)
    codes = [p.exitcode for p in ps]
    assert codes==[0]*len(ps), f'processes ended with {codes}'

@starts
def two_at_once(rng, secs=1):
    "Several processes write the same file, draw the same shapes, unpack the same archive"
    res = Counter()
    with tempfile.TemporaryDirectory() as d:
        for name,(save,check,fn) in list(saves(Path(d)).items())[:3]:
            save()
            ps = [_start(_writes, Path(d), name, secs) for _ in range(3)]
            while any(p.is_alive() for p in ps):
                check(fn)
                res[f'read while three write: {name}'] += 1
            _join(ps)
            nothing_left(Path(d))
    with tempfile.TemporaryDirectory() as d:
        d = Path(d)
        with zipfile.ZipFile(d/'arch.zip', 'w') as z:
            for i in range(20): z.writestr(f'top/{i}', 'x'*i)
        _join([_start(_makes, d) for _ in range(3)])
        shapes_ok(d/'s')
        assert sorted(len(o.read_bytes()) for o in (d/'b'/'arch').iterdir())==[*range(20)]
        nothing_left(d, d/'a', d/'b')
        res['three at once: draw_shapes and untar_data'] += 1
    return res

# --- ranks that do not fit together ---
differences = 'lr','epochs','data','batches','weights','callbacks'

def rank_differs(path, out, seed, rank, n, port, what):
    "A fit in which rank 1 has another `what`; the error goes to `out`"
    lo = 'lo' if sys.platform=='linux' else 'lo0'
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(n), LOCAL_RANK=str(rank),
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), GLOO_SOCKET_IFNAME=lo)
    torch.set_num_threads(1)
    def other(k): return what==k and rank==1
    x,y = torch.ones(24,3),torch.arange(24)%2
    ds = [*zip(x, y)][:12 if other('batches') else 22 if other('data') else 24]
    train,valid = [Shard(DataLoader(ds, 4)) for _ in range(2)]
    model = Linear(3, 3 if other('weights') else 2)
    with distrib_ctx(600):
        cbs = [DistributedCB()] + [GradientClip()]*other('callbacks')
        lr = .2 if other('lr') else .1
        learn = Learner(model, DataLoaders(train, valid), cross_entropy, lr, cbs)
        try: learn.fit(2 if other('epochs') else 1)
        except ValueError as e: (out/f'{rank}').write_text(str(e))

@starts
def different_ranks(rng, names=differences):
    "Two ranks with one setting that differs are told so at the start"
    for what in names:
        with tempfile.TemporaryDirectory() as d:
            d = Path(d)
            for o in Job(d, d/'out', 0, 2, what, target=rank_differs).end():
                assert o.startswith(f'rank 1 has other {what} than rank 0'), o
    return {'ranks that differ': len(names)}

# --- Ctrl-C in a loader ---
def n_workers():
    import multiprocessing
    return len(sys._current_frames()) + len(multiprocessing.active_children())

def pass_over(dl, rng, secs, n):
    "Interrupt `n` passes over `dl`; how many interrupts were lost, how many workers stayed"
    lost,res = [],Counter()
    def read():
        for b in dl: pass
    read()
    before = n_workers()
    for _ in range(n):
        hit = False
        sys.unraisablehook = lambda o: lost.append(o.exc_type)
        try: fired = at_time(rng.uniform(0, secs))(read)
        except KeyboardInterrupt: hit = fired = True
        gc.collect()
        sys.unraisablehook = sys.__unraisablehook__
        res['interrupts'] += fired
        res['lost'] += fired and not hit
        end = time.monotonic()+20
        while n_workers()>before and time.monotonic()<end: time.sleep(.01)
        if n_workers()>before: res['workers left'] += 1
        before = n_workers()
    return res

def seconds(f):
    "How long `f()` takes when nothing is in its way"
    res = []
    for _ in range(5):
        start = time.perf_counter()
        f()
        res.append(time.perf_counter()-start)
    return min(res)

@kind
def loader(rng, n=1000):
    "Ctrl-C at random instants of a pass of our loader"
    ds = [(torch.ones(3),torch.ones(()))]*24
    dl = DataLoader(ds, 4, n_workers=2)
    res = pass_over(dl, rng, seconds(lambda: list(dl)), n)
    assert not res['lost'] and not res['workers left'], f'{dict(res)}'
    return {'Ctrl-C in a pass of the loader': res['interrupts']}

# --- all of it ---
script = '''
import gc,json,random,sys
sys.path.insert(0, sys.argv[1])
import torture
gc.freeze() # the modules stay: no need to look through them each time
res = torture.kinds[sys.argv[2]](random.Random(int(sys.argv[3])))
sys.stderr.flush()
print(json.dumps(res))'''

def attempt(name, seed):
    "The counts of a kind with this seed, and an error if there is one"
    try:
        if name in starters: return kinds[name](random.Random(seed)),None
        with tempfile.TemporaryFile('w+') as f:
            p = python(script, Path(__file__).parent, name, seed, out=f.fileno())
            wait_for([p.process])
            p.communicate()
            f.seek(0)
            said = f.read().strip().splitlines() or ['']
        if p.returncode==0: return json.loads(said[-1]),None
        return {},f'ended with {p.returncode}: {said[-1]}'
    except Exception as e: return {},repr(e)

def torture(minutes, only=None, seed=None, save=noop):
    "Run the kinds in turn, until the time is over; `save` the results after each round"
    rng = random.Random(seed)
    attempts,failures = Counter(),[]
    start,rounds = time.monotonic(),0
    while time.monotonic()-start < minutes*60 or not rounds:
        for name in only or kinds:
            s = rng.randrange(2**32)
            counts,error = attempt(name, s)
            attempts.update(counts)
            if error: failures.append(dict(kind=name, seed=s, error=error))
            print(f'{name} {s}: {error or sum(counts.values())}', flush=True)
        rounds += 1
        took = round((time.monotonic()-start)/60, 1)
        res = dict(minutes=took, rounds=rounds, attempts=dict(sorted(attempts.items())),
                   failures=failures)
        save(res)
    return res

def main():
    p = argparse.ArgumentParser('torture', description=__doc__)
    p.add_argument('--minutes', type=float, default=10, help='how long; one round at least')
    p.add_argument('--only', nargs='*', choices=list(kinds), help='these; writes no file')
    p.add_argument('--seed', type=int, help='for the seeds of all attempts')
    out = Path(__file__).parent.parent/'benchmarks/torture.json'
    p.add_argument('--out', type=Path, default=out)
    args = p.parse_args()
    # a shell ignores Ctrl-C for what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    def save(res):
        with whole(args.out) as f: f.write_text(json.dumps(res, indent=1)+'\n')
    res = torture(args.minutes, args.only, args.seed, noop if args.only else save)
    print(json.dumps(res, indent=1))
    sys.exit(bool(res['failures']))

if __name__=='__main__':
    from torture import main # processes find its functions in the module of this name
    main()
