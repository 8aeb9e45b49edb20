"Time and memory of all contestants, each in processes of its own, one after the other"
import json,os,platform,subprocess,sys,time
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median

import psutil
from fastcore.script import call_parse

here = Path(__file__).resolve().parent
targets = dict(first=('>=',1.3), later=('>=',8), fit_pytorch=('<=',.35), fit_fastai=('<=',.25), fit_limit=('<=',1.3),
               memory=('<=',1), flat=('<=',1.05), linear=('<=',1.2), bounded=('<=',1.2))

# --- one run ---
def pss(p):
    "MB of process `p` and its children; what they share is counted once"
    n = 0
    for o in [p,*p.children(recursive=True)]:
        with suppress(psutil.Error):
            m = o.memory_full_info()
            n += getattr(m, 'pss', m.uss)/1e6
    return n

def run(what, env=None, **args):
    "Run `what` of `contestants.py`: what it reports of its parts, with the seconds and the peak of memory of each"
    print(what, *args.values(), *(env or {}).items(), flush=True)
    cmd = [sys.executable, here/'contestants.py', what, json.dumps(args)]
    p = psutil.Popen(cmd, env={**os.environ, **(env or {})}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    mem = []
    while p.poll() is None:
        with suppress(psutil.Error): mem.append((time.time(), pss(p)))
        time.sleep(.5)
    out,err = p.communicate()
    if p.returncode: raise RuntimeError(f'{what} {args}:\n{err}')
    parts = [json.loads(o) for o in out.splitlines() if o.startswith('{"t"')]
    for a,b in zip(parts, parts[1:]):
        b['secs'] = b['t']-a['t']
        b['mb'] = max([m for t,m in mem if a['t']<t<=b['t']], default=0)
    return parts[1:],max(m for _,m in mem)

# --- what we want to know ---
def passes(name, path, **kw):
    "Images a second in the first pass and in the later ones"
    ps,peak = run('passes', name=name, path=path, **kw)
    speeds = [o['n']/o['secs'] for o in ps]
    return dict(first=speeds[0], later=median(speeds[1:] or speeds), secs=ps[0]['secs'], peak=peak)

def in_turn(f, names, n):
    "Medians of `n` runs of `f` for each of `names`, all of them in each round: what slows down the machine slows down all"
    rounds = [{k: f(k) for k in names} for _ in range(n)]
    return {k: {o: median(r[k][o] for r in rounds) for o in rounds[0][k]} for k in names}

def fit(name, path, n_epochs, env=None):
    "Seconds and memory of the chapter's run"
    ps,peak = run('fit', env, name=name, path=path, n_epochs=n_epochs)
    return dict(secs=sum(o['secs'] for o in ps), peak=peak, acc=ps[-1]['acc'], epochs=[o['secs'] for o in ps], mb=[o['mb'] for o in ps])

def limits(path):
    "What no loader can beat: decoding, its part in Python, and the arithmetic of an epoch"
    ds,os,cs = [run(o, path=path)[0] for o in ('decode','opening','compute')]
    best = min(ds, key=lambda o: o['secs'])
    return dict(decode=best['n']/best['secs'], decode_secs=best['secs'], opening=os[0]['n']/os[0]['secs'],
                compute_secs=median(o['secs'] for o in cs[1:]))

def workers(path, rounds):
    "Images a second in the first pass of our loader with 1, 2 and 4 threads, and of our dataset in PyTorch's with 2 spawned processes"
    res = in_turn(lambda n: passes('ours', path, n=1, workers=n), (1,2,4), rounds)
    return {k: o['first'] for k,o in res.items()} | dict(spawned=passes('spawned', path, n=2)['later'])

def growth(path):
    "Seconds of a pass through 1, 2 and 4 times the images; the peak with a cache for half of them, with 1 and 10 times as many"
    half = len(list(Path(path).glob('train/*/*'))) * 64*64*3 // 2
    times = {k: passes('ours', path, n=1, k=k)['secs'] for k in (1,2,4)}
    peaks = {k: passes('ours', path, n=1, k=k, cache=half)['peak'] for k in (1,10)}
    return dict(times=times, peaks=peaks)

def passive(path):
    "Seconds of each epoch if threads of PyTorch that wait for each other sleep"
    return {o: fit(o, path, 4, dict(OMP_WAIT_POLICY='PASSIVE'))['epochs'] for o in ('ours','pytorch')}

def ratios(loader, fit, limits, growth):
    "The figures that hold on other machines, too"
    o,t,n = fit['ours'],fit['pytorch'],len(fit['ours']['epochs'])
    secs,peaks = growth['times'],growth['peaks']
    res = dict(first=loader['ours']['first']/loader['pytorch']['later'], later=loader['ours']['later']/loader['pytorch']['later'],
               fit_pytorch=o['secs']/t['secs'], fit_limit=o['secs']/(limits['decode_secs']+n*limits['compute_secs']),
               memory=o['peak']/t['peak'], flat=median(o['mb'][-3:])/max(o['mb'][1],1), linear=secs[4]/secs[1]/4, bounded=peaks[10]/peaks[1])
    return res | (dict(fit_fastai=o['secs']/fit['fastai']['secs']) if 'fastai' in fit else {})

# --- and how it's told ---
def rounded(o):
    "`o` with four digits for each float"
    if isinstance(o, dict): return {k: rounded(v) for k,v in o.items()}
    if isinstance(o, list): return [rounded(v) for v in o]
    return float(f'{o:.4g}') if isinstance(o, float) else o

def show(res):
    "The tables of `res`"
    print(f'\n{"":10}{"first pass":>12}{"later":>10}{"an epoch":>10}{"run":>8}{"peak":>9}{"accuracy":>10}')
    for k,o in res['fit'].items():
        l = res['loader'].get(k, res['loader']['pytorch'])
        print(f'{k:10}{l["first"]:8.0f} i/s{l["later"]:6.0f} i/s{median(o["epochs"]):8.2f} s{o["secs"]:6.1f} s{o["peak"]:6.0f} MB{o["acc"]:10.3f}')
    for k in 'limits','growth': print(f'\n{k}:', json.dumps(res[k]))
    print('\nratios and targets')
    for k,v in res['ratios'].items():
        op,t = targets[k]
        print(f'{k:12}{v:8.3f} {op} {t:<5} {"" if (v>=t if op==">=" else v<=t) else "missed"}')

@call_parse
def main(
    path:Path=None, # Folder with `train` and `val`; Imagenette if it is on disk, else drawn shapes
    epochs:int=8, # Length of the training run
    rounds:int=3, # How often passes are measured
    fname:Path=here/'results.json', # Where the figures go
):
    "Measure loaders and training runs side by side, print the table and write the figures"
    find = [sys.executable, '-c', 'import torch; from learner_from_scratch.data import book_data; print(torch.backends.cpu.get_cpu_capability()); print(book_data())']
    simd,found = subprocess.check_output(find, text=True).split('\n')[:2] # not here: what we import, a contestant would share
    path = str(path or found)
    names = [o for o in ('notes','pytorch','lightning','fastai','ours') if o in ('notes','pytorch','ours') or find_spec(o)]
    libs = {o: version(o) for o in ('torch','pillow','lightning','fastai') if find_spec('PIL' if o=='pillow' else o)}
    commit = subprocess.run(['git','describe','--always','--dirty'], cwd=here, capture_output=True, text=True).stdout.strip()
    res = dict(data=Path(path).name, date=time.strftime('%Y-%m-%d'), commit=commit, machine=dict(cpus=os.cpu_count(), simd=simd, system=platform.system(), python=platform.python_version()), versions=libs)
    res['limits'] = limits(path) # first, as it leaves all files in the system's memory
    res['loader'] = in_turn(lambda o: passes(o, path), [o for o in names if o!='lightning'], rounds) # which uses PyTorch's
    res['workers'] = workers(path, rounds)
    res['fit'] = {o: fit(o, path, epochs) for o in names}
    res['passive'] = passive(path)
    res['growth'] = growth(path)
    res['ratios'] = ratios(*[res[o] for o in ('loader','fit','limits','growth')])
    res['targets'] = targets
    res = rounded(res)
    fname.write_text(json.dumps(res, indent=1)+'\n')
    show(res)
