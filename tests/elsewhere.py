"""Three of the faults of `torture.py` elsewhere: in fastai, Lightning and PyTorch

`python elsewhere.py` asks those that are installed, by the ways that they document, and
writes benchmarks/elsewhere.json. Ours are asked the same.
"""
import argparse,gc,importlib.util,json,multiprocessing,os,pickle,random,signal,sys
import tempfile,time,warnings
from collections import Counter
from contextlib import contextmanager,redirect_stderr,suppress
from importlib.metadata import version
from pathlib import Path

import torch
from forked import ctx
from learner_from_scratch.all import *
from torch import nn
from torture import at_time,n_workers,quiet,seconds

dists = dict(fastai='fastai', lightning='lightning', torch='torch',
             learner_from_scratch='learner_from_scratch')
libs = [o for o in dists if importlib.util.find_spec(o)]
heavy = {'fastai':'fastai.vision.all', 'lightning':'lightning'}

# --- each library: save and load weights, and go on with a training ---
xs,ys = torch.ones(8,1000),torch.arange(8)%2
def network(): return nn.Sequential(nn.Linear(1000,3000), nn.Linear(3000,2))

class Ours:
    "`save_model` and `load_model`; a fit with `Checkpoint(resume=True)`"
    def __init__(self, d):
        self.model,self.file,self.run = network(),d/'m.safetensors',d/'run'
        self.ckpt = self.run/'00000001.ckpt'
        self.ways = {'load_model':(self.load, self.file),
                     'Checkpoint':(self.go_on, self.ckpt)}
    def save(self): save_model(self.model, self.file)
    def load(self): load_model(self.model, self.file)
    def go_on(self, epochs=2):
        dls = DataLoaders([(xs,ys)], [])
        cbs = Checkpoint(self.run, resume=True) # it reads the last one
        Learner(network(), dls, cross_entropy, .1, cbs).fit(epochs)
    def good(self):
        self.go_on(1)
        last = sorted(self.run.glob('*.ckpt'))[-1]
        return load_checkpoint(last)

class PyTorch:
    "`torch.save` and `torch.load`"
    def __init__(self, d):
        self.model,self.file = network(),d/'m.pt'
        self.ways = {'torch.load':(self.load, self.file)}
    def save(self): torch.save(self.model.state_dict(), self.file)
    def load(self): self.model.load_state_dict(torch.load(self.file))
    def good(self): return self.model.state_dict()

class Fastai:
    "`learn.save`, `learn.load` and `load_learner`"
    def __init__(self, d):
        from fastai.vision import all as fv
        self.fv,self.file,self.export = fv,d/'models/m.pth',d/'export.pkl'
        ds = [*zip(xs, ys)]
        dls = fv.DataLoaders.from_dsets(ds, ds, bs=8, num_workers=0)
        self.learn = fv.Learner(dls, network(), loss_func=nn.CrossEntropyLoss(), path=d)
        self.ways = {'Learner.load':(self.load, self.file),
                     'load_learner':(self.whole, self.export)}
    def save(self): self.learn.save('m')
    def load(self): self.learn.load('m')
    def whole(self): self.fv.load_learner(self.export)
    def good(self):
        self.save()
        return torch.load(self.file)

class Lightning:
    "`Trainer.save_checkpoint`, `load_from_checkpoint` and `Trainer.fit(ckpt_path=)`"
    def __init__(self, d):
        import lightning
        class Lit(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = network()
            def training_step(self, batch, i):
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            def configure_optimizers(self): return torch.optim.SGD(self.parameters(), .1)
        self.Lit,self.L,self.d,self.file = Lit,lightning,d,d/'m.ckpt'
        self.dl = torch.utils.data.DataLoader([*zip(xs, ys)], 8)
        self.ways = {'load_from_checkpoint':(self.load, self.file),
                     'Trainer.fit(ckpt_path)':(self.go_on, self.file)}
        self.trainer = self.fit(1)
    def fit(self, n, **kwargs):
        off = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False,
                   enable_model_summary=False)
        res = self.L.Trainer(accelerator='cpu', max_epochs=n, default_root_dir=self.d, **off)
        res.fit(self.Lit(), self.dl, **kwargs)
        return res
    def save(self): self.trainer.save_checkpoint(self.file)
    def load(self): self.Lit.load_from_checkpoint(self.file)
    def go_on(self): self.fit(2, ckpt_path=self.file)
    def good(self):
        self.save()
        return torch.load(self.file)

classes = dict(learner_from_scratch=Ours, torch=PyTorch, fastai=Fastai, lightning=Lightning)

@contextmanager
def silent():
    "What they print and warn of goes nowhere"
    with quiet(), open(os.devnull, 'w') as f, redirect_stderr(f), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield

# --- a file that acts ---
class Evil:
    "Makes the file `mark` when it is unpickled"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch,(self.mark,)

def evil_files(good, mark):
    "By kind: a function that writes such a file"
    def alone(fn): torch.save(Evil(mark), fn)
    def plain(fn): fn.write_bytes(pickle.dumps(Evil(mark)))
    def within(fn): torch.save({**good, 'more':Evil(mark)}, fn)
    return alone,plain,within

def acts(name):
    "For each way to load a file: how many were tried, and how many did something"
    res = {}
    with tempfile.TemporaryDirectory() as d, silent():
        d = Path(d)
        lib,mark = classes[name](d),d/'mark'
        good = lib.good()
        for way,(load,fn) in lib.ways.items():
            res[way] = Counter(attempts=0, acted=0, refused=0)
            for write in evil_files(good, mark):
                fn.parent.mkdir(exist_ok=True)
                write(fn)
                try: load()
                except Exception: res[way]['refused'] += 1
                res[way]['attempts'] += 1
                res[way]['acted'] += mark.exists()
                mark.unlink(missing_ok=True)
    return res

# --- kill -9 during a save ---
def _saves(name, d):
    "Save again and again; the file `begun` says how long it takes"
    with silent():
        lib = classes[name](d)
        lib.save()
        secs = seconds(lib.save)
        with whole(d/'begun') as f: f.write_text(f'{secs}')
        while True: lib.save()

def killed(name, rng, n):
    "Kill `n` processes that save at a random moment; how many files can't be loaded then?"
    res = Counter(kills=0, broken=0)
    for _ in range(n):
        with tempfile.TemporaryDirectory() as d, silent():
            d = Path(d)
            lib = classes[name](d)
            p = ctx.Process(target=_saves, args=(name, d))
            p.start()
            while not (d/'begun').exists(): time.sleep(.01)
            time.sleep(rng.uniform(0, 3*float((d/'begun').read_text())))
            p.kill()
            p.join()
            try: lib.load()
            except Exception: res['broken'] += 1
            res['kills'] += 1
    return res

# --- Ctrl-C in a loader ---
items = [(torch.ones(3),torch.ones(()))]*24

def loader(name):
    "A loader with two workers"
    if name=='torch': return torch.utils.data.DataLoader(items, 4, num_workers=2)
    if name=='learner_from_scratch': return DataLoader(items, 4, n_workers=2)
    from fastai.data.load import DataLoader as FastaiLoader
    return FastaiLoader(items, bs=4, num_workers=2)

def _passes(name, out, seed, n):
    "Interrupt `n` passes, and tell after each what happened"
    os.setsid()
    # as on Linux in a program that has set nothing; here it would be that of `forked.py`
    multiprocessing.set_start_method('fork', force=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    rng,dl,res,lost = random.Random(seed),loader(name),Counter(),[]
    def read():
        for b in dl: pass
    with silent():
        read()
        secs,before = seconds(read),n_workers()
        while res['interrupts']<n:
            sys.unraisablehook = lambda o: lost.append(o)
            try: how = 'lost' if at_time(rng.uniform(0, secs))(read) else None
            except KeyboardInterrupt: how = 'arrived'
            except Exception: how = 'came as another error'
            gc.collect()
            if how:
                res['interrupts'] += 1
                res[how] += 1
            end = time.monotonic()+20
            while n_workers()>before and time.monotonic()<end: time.sleep(.01)
            res['workers left'] += n_workers()>before
            before = n_workers()
            with whole(out) as f: f.write_text(json.dumps(res))

def interrupted(name, rng, n, patience=60):
    "Ctrl-C in passes of a loader, until there were `n`; one that says nothing hangs"
    total = Counter()
    while total['interrupts']<n:
        with tempfile.TemporaryDirectory() as d:
            out = Path(d)/'out'
            args = name,out,rng.random(),n-total['interrupts']
            p = ctx.Process(target=_passes, args=args)
            p.start()
            last,since = None,time.monotonic()
            while p.is_alive() and time.monotonic()-since < patience:
                p.join(.1)
                now = out.read_text() if out.exists() else None
                if now!=last: last,since = now,time.monotonic()
            hangs = p.is_alive()
            with suppress(ProcessLookupError): os.killpg(p.pid, signal.SIGKILL)
            p.join()
            total.update(json.loads(last or '{}'))
            if hangs: total.update(interrupts=1, hung=1)
            elif p.exitcode: total.update(interrupts=1, crashed=1)
    return total

def main():
    p = argparse.ArgumentParser('elsewhere', description=__doc__)
    p.add_argument('--n', type=int, default=100, help='kills and interrupts of each')
    p.add_argument('--seed', type=int, default=0)
    out = Path(__file__).parent.parent/'benchmarks/elsewhere.json'
    p.add_argument('--out', type=Path, default=out)
    args = p.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    preload = [heavy[o] for o in libs if o in heavy]
    ctx.set_forkserver_preload(['learner_from_scratch.all', *preload])
    rng = random.Random(args.seed)
    res = dict(versions={o:version(dists[o]) for o in libs}, acts={}, killed={}, loaders={})
    for name in libs:
        res['acts'][name] = acts(name)
        res['killed'][name] = killed(name, rng, args.n)
        if name!='lightning': res['loaders'][name] = interrupted(name, rng, args.n)
        print(name, *[o.get(name) for k,o in res.items() if k!='versions'], flush=True)
    with whole(args.out) as f: f.write_text(json.dumps(res, indent=1)+'\n')

if __name__=='__main__':
    from elsewhere import main # processes find its functions in the module of this name
    main()
