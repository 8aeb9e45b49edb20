"""The rows of the race, one after the other, each training in a process of its own

A training is written down as soon as it is done, and not done again. T is measured at the
start of each call, because seconds mean nothing on another machine.
"""
import json,os,platform,random,re,subprocess,sys,time
from contextlib import nullcontext
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

import contestants,torch
import torch.nn.functional as F
from fastcore.script import call_parse,store_true
from learner_from_scratch.cache import reuse_memory
from learner_from_scratch.data import get_image_files,grandparent_split
from learner_from_scratch.fetch import book_data,whole
from learner_from_scratch.folders import random_split
from learner_from_scratch.race import (has_bf16,race,race_asides,race_bounds,race_budgets,
                                       race_steps)
from torch.optim.lr_scheduler import OneCycleLR

here = Path(__file__).resolve().parent
recipes = {**race_steps(), **race_asides(), **race_budgets()}
# trained with three seeds; all other rows have one
many_seeds = {list(race_steps())[-1], *race_bounds} - {'long'}

# --- one training: accuracy, seconds and parameters ---
def n_params(model): return sum(p.numel() for p in model.parameters())

def images(path, held_out, quick):
    "Files to train on and to validate with"
    train,valid = grandparent_split(get_image_files(path))
    if held_out: train,valid = random_split(train, 0.2)
    if quick: train,valid = [o[::len(o)//50+1] for o in (train.sorted(),valid.sorted())]
    return train,valid

def unit(path, n_epochs):
    "T: the chapter's training as a plain PyTorch loop"
    accs = []
    contestants.report = lambda acc: accs.append(acc)
    start = time.perf_counter()
    *_,fit = contestants.pytorch(path)
    fit(n_epochs)
    secs = time.perf_counter()-start
    return dict(accuracy=accs[-1], secs=secs, params=n_params(contestants.cnn()))

class Shifted(contestants.Items):
    "Images that are mirrored and shifted at random"
    def __init__(self, fns, pad=8):
        super().__init__(fns)
        self.pad = pad
    def __getitem__(self, i):
        x,y = super().__getitem__(i)
        if random.random()<.5: x = x.flip(1)
        x = F.pad(x.permute(2,0,1), [self.pad]*4, mode='reflect').permute(1,2,0)
        h,w = [random.randrange(2*self.pad+1) for _ in range(2)]
        return x[h:h+contestants.size,w:w+contestants.size],y

def torchvision(path, n_epochs, lr=3e-3, bs=64):
    "A plain loop with torchvision's ResNet-18: AdamW, one cycle, flips and shifts, bfloat16"
    contestants.torchvision()
    from torchvision.models import resnet18
    start = time.perf_counter()
    files = [contestants.files(path, o) for o in ('train','val')]
    workers = dict(num_workers=contestants.n_workers, persistent_workers=True)
    train = torch.utils.data.DataLoader(Shifted(files[0]), bs, shuffle=True, **workers)
    valid = torch.utils.data.DataLoader(contestants.Items(files[1]), 256, **workers)
    model = resnet18(num_classes=10)
    opt = torch.optim.AdamW(model.parameters(), lr, weight_decay=.05)
    sched = OneCycleLR(opt, lr, epochs=n_epochs, steps_per_epoch=len(train), pct_start=.25)
    bf16 = torch.autocast('cpu', torch.bfloat16) if has_bf16('cpu') else nullcontext()
    for _ in range(n_epochs):
        model.train()
        for xb,yb in train:
            with bf16: preds = model(contestants.prep(xb))
            F.cross_entropy(preds.float(), yb, label_smoothing=.1).backward()
            opt.step()
            opt.zero_grad()
            sched.step()
    model.eval()
    def right(flip):
        "Share of the images that are told, if `flip` with their mirror images"
        res = []
        for xb,yb in valid:
            probs = model(contestants.prep(xb)).softmax(1)
            if flip: probs += model(contestants.prep(xb.flip(2))).softmax(1)
            res.append(probs.argmax(1)==yb)
        return torch.cat(res).float().mean().item()
    with torch.no_grad(): acc = right(False)
    secs = time.perf_counter()-start
    with torch.no_grad(): tta = right(True)
    return dict(accuracy=acc, tta=tta, secs=secs, params=n_params(model))

def fastai(path, n_epochs, lr=5e-3, bs=64):
    "fastai's `Learner` with its `xresnet18`, augmentation, label smoothing and one cycle"
    contestants.torchvision()
    from fastai.vision import all as fv
    start = time.perf_counter()
    size = contestants.size
    tfms = fv.aug_transforms(size=size, min_scale=.35)
    stats = fv.Normalize.from_stats(contestants.mean, contestants.std)
    dls = fv.ImageDataLoaders.from_folder(
        path, valid='val', bs=bs, val_bs=256, num_workers=contestants.n_workers, device='cpu',
        item_tfms=fv.Resize(size*5//4, 'squish'), batch_tfms=[*tfms,stats])
    learn = fv.Learner(dls, fv.xresnet18(n_out=dls.c),
                       fv.LabelSmoothingCrossEntropy(), metrics=fv.accuracy)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(n_epochs, lr)
    acc = learn.recorder.values[-1][-1]
    secs = time.perf_counter()-start
    with learn.no_bar(), learn.no_logging(): tta = fv.accuracy(*learn.tta()).item()
    return dict(accuracy=acc, tta=tta, secs=secs, params=n_params(learn.model))

# rows of others: the function, and epochs that take about 1 T and 12 T
others = {'fastai at 1 T':(fastai,1), 'fastai at 12 T':(fastai,10),
          'torchvision at 1 T':(torchvision,2), 'torchvision at 12 T':(torchvision,19)}

def train(name, path, seed, held_out, quick):
    "One training of the row `name`"
    torch.manual_seed(seed)
    random.seed(seed)
    if name=='T': return unit(path, 1 if quick else 8)
    if name in others:
        f,n_epochs = others[name]
        return f(path, 1 if quick else n_epochs)
    recipe = recipes[name]
    if quick: recipe = replace(recipe, epochs=1, bs=32)
    reuse_memory()
    return race(recipe, *images(path, held_out, quick), seed)

# --- all of them ---
def described(name):
    "What the row is made of, as text: if that has changed, its trainings are old"
    if name=='T': return 'the chapter in plain PyTorch'
    if name in others: return f'{others[name][1]} epochs'
    return re.sub(' at 0x[0-9a-f]+', '', repr(recipes[name]))

def about(path, held_out, quick):
    "What all the rows of a file have in common"
    return dict(data=Path(path).name, held_out=held_out, quick=quick)

def machine():
    "What trains"
    return dict(cpus=os.cpu_count(), simd=torch.backends.cpu.get_cpu_capability(),
                bf16=has_bf16('cpu'), threads=torch.get_num_threads(),
                system=platform.system())

def load(fname, common):
    "What is in `fname`; it must have been found in the same way"
    if not fname.exists(): return dict(common, rows={})
    res = json.loads(fname.read_text())
    for k,v in common.items():
        if res[k]==v: continue
        sys.exit(f'{fname} is about {k} {res[k]}, not {v}: choose another --fname')
    return res

def save(fname, res):
    "Write `res`, whole or not at all"
    with whole(fname) as tmp: tmp.write_text(json.dumps(res, indent=1)+'\n')

def run(*args):
    "The result of one training, in a process of its own"
    cmd = [sys.executable, __file__, 'train', json.dumps(args)]
    out = subprocess.run(cmd, stdout=subprocess.PIPE, text=True, check=True).stdout
    res = json.loads(out.splitlines()[-1])
    return {k: float(f'{v:.4g}') if isinstance(v, float) else v for k,v in res.items()}

def origin():
    "When, where, with which code and with which versions a training was done"
    git = 'git','describe','--always','--dirty'
    commit = subprocess.run(git, cwd=here, capture_output=True, text=True).stdout.strip()
    versions = {o: version(o) for o in ('torch','fastai','torchvision') if find_spec(o)}
    return dict(date=time.strftime('%Y-%m-%d'), commit=commit, versions=versions,
                machine=machine())

def new_row(name): return dict(what=described(name), runs=[])

def missing(name, row, seeds):
    "The seeds of `row` that were not trained yet"
    return range(len(row['runs']), seeds if name in many_seeds else 1)

def add_run(res, fname, name, seed, where, common):
    "Train once, and write it down"
    print(name, 'seed', seed, flush=True)
    path,held_out,quick = where
    got = run(name, path, seed, held_out, quick)
    res['rows'][name]['runs'].append(dict(seed=seed, **got, **common))
    save(fname, res)
    print(f'  accuracy {got["accuracy"]:.4f} in {got["secs"]:.0f} s', flush=True)
    return got

def missed(rows):
    "A line for each row whose mean accuracy is under the bound of the page"
    res = []
    for k,bound in race_bounds.items():
        if not rows.get(k, {}).get('runs'): continue
        acc = mean(o['accuracy'] for o in rows[k]['runs'])
        if acc<bound: res.append(f'{k}: accuracy {acc:.4f} is under {bound}')
    return res

if __name__=='__main__' and sys.argv[1:2]==['train']:
    print(json.dumps(train(*json.loads(sys.argv[2]))))
    sys.exit()

@call_parse
def main(
    path:str=None, # Folder with `train` and `val`; else Imagenette or drawn shapes
    only:str='', # Names of rows, with commas between; all by default
    seeds:int=3, # Trainings of the last step and of each row with a budget in T
    again:store_true=False, # Train these rows anew, even if they are there
    held_out:store_true=False, # Validate with a fifth of the training images instead
    quick:store_true=False, # One epoch on a few images, to see that all works
    fname:str=None, # Where the figures go; by default `research.json` beside this file
):
    "Train the rows of the race one by one, and write down each training when it is done"
    path = str(path or book_data())
    kind = '_held_out'*held_out + '_quick'*quick
    fname = Path(fname or here/f'research{kind}.json')
    known = [*recipes] if held_out else [*recipes, *others]
    names = [o.strip() for o in only.split(',')] if only else known
    unknown = set(names)-set(known)
    if unknown: sys.exit(f'no row {unknown.pop()!r}: there are {", ".join(known)}')
    res = load(fname, about(path, held_out, quick))
    rows = res['rows']
    for name in names:
        row = rows.get(name)
        if again or row is None or row['what']!=described(name): rows[name] = new_row(name)
    if again: rows.pop('T', None)
    todo = [(name,seed) for name in names for seed in missing(name, rows[name], seeds)]
    where = path,held_out,quick
    common = origin()
    if todo and not held_out:
        rows.setdefault('T', new_row('T'))
        common['T'] = add_run(res, fname, 'T', 0, where, common)['secs']
    if not todo: print(f'{fname} has all of these trainings: --again repeats them')
    for name,seed in todo: add_run(res, fname, name, seed, where, common)
    bad = [] if quick or held_out else missed({k: rows[k] for k in names})
    if bad: sys.exit('\n'.join(bad))
