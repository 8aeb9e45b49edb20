"Time and memory of all contestants, each in processes of its own, one after the other"
import json,os,platform,resource,shutil,subprocess,sys,time
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean,median
from tempfile import TemporaryDirectory,TemporaryFile

import psutil
from fastcore.script import call_parse

here = Path(__file__).resolve().parent

# --- one run ---
def pss(p):
    "MB of process `p` and its children; what they share is counted once"
    n = 0
    for o in [p,*p.children(recursive=True)]:
        with suppress(psutil.Error):
            m = o.memory_full_info()
            n += getattr(m, 'pss', m.uss)/1e6
    return n

def python(name):
    "The Python of a contestant: that of `DECODE_JPEG_PYTHON` or the like, by default this one"
    return os.environ.get(f'{name}_python'.upper(), sys.executable)

def run(what, env=None, **args):
    "What `what` of `contestants.py` reports, with what each took; and the highest peak"
    env = env or {}
    print(what, *args.values(), *env.items(), flush=True)
    py = python(args.get('name'))
    cmd = [py, here/'contestants.py', what, json.dumps(args)]
    mem = []
    # to files, as a pipe that nobody reads would stop the process when it's full
    with TemporaryFile('w+') as out, TemporaryFile('w+') as err:
        p = psutil.Popen(cmd, env={**os.environ, **env}, text=True, stdout=out, stderr=err)
        while p.poll() is None:
            with suppress(psutil.Error): mem.append((time.time(), pss(p)))
            time.sleep(.5)
        for o in out,err: o.seek(0)
        out,err = out.read(),err.read()
    if p.returncode: raise RuntimeError(f'{what} {args}:\n{err}')
    parts = [json.loads(o) for o in out.splitlines() if o.startswith('{"t"')]
    for a,b in zip(parts, parts[1:]):
        b['secs'],b['faults'] = b['t']-a['t'],b['pages']-a['pages']
        b['mb'] = max([m for t,m in mem if a['t']<t<=b['t']], default=0)
    return parts[1:],max(m for _,m in mem)

# --- what we want to know ---
def passes(name, path, **kw):
    "Images a second in the first pass and in the later ones"
    ps,peak = run('passes', name=name, path=path, **kw)
    speeds = [o['n']/o['secs'] for o in ps]
    later = max(speeds[1:] or speeds)
    return dict(first=speeds[0], later=later, secs=ps[0]['secs'], peak=peak)

quiet = subprocess.DEVNULL
cuda_less = 'import contestants\ncontestants.torchvision()\n'
needs = dict(lightning=cuda_less+'import lightning', fastai='import fastai',
             decode_jpeg='import torch,torchvision\ntorch.ops.image.decode_jpeg')

def installed(names):
    "Those of `names` whose library is there, and works"
    def works(name):
        cmd = [python(name), '-c', needs[name]]
        return subprocess.run(cmd, cwd=here, stderr=quiet).returncode==0
    return [o for o in names if o not in needs or works(o)]

def best(k, found):
    "Of the rounds: the highest speed, the median of memory and shares, the least seconds"
    # what else runs on the processors can only make a step slower
    if k in ('first','later','speed'): return max(found)
    return median(found) if k in ('peak','busy') else min(found)

def in_turn(f, names, n):
    "The best of `n` runs of `f` for each of `names`"
    # all of them in each round: what slows down the machine slows down all
    rounds = [{k: f(k) for k in names} for _ in range(n)]
    return {k: {o: best(o, [r[k][o] for r in rounds]) for o in rounds[0][k]} for k in names}

def fit(name, path, n_epochs, env=None, seed=42):
    "Seconds, memory and page faults of the chapter's run, epoch by epoch"
    ps,peak = run('fit', env, name=name, path=path, n_epochs=n_epochs, seed=seed)
    parts = {k: [o[k] for o in ps] for k in ('secs','mb','faults')}
    return dict(parts, peak=peak, acc=ps[-1]['acc'])

def together(runs):
    "Several runs of one contestant as one: each epoch counts with the least of its seconds"
    def each(f, k): return [f(o) for o in zip(*(r[k] for r in runs))]
    epochs = each(min, 'secs')
    return dict(secs=sum(epochs), epochs=epochs, mb=each(median, 'mb'),
                faults=each(median, 'faults'), peak=median(r['peak'] for r in runs),
                accs=[r['acc'] for r in runs])

def fits(names, path, epochs, rounds, env=None):
    "The chapter's run by each contestant, in turn, each round with a seed of its own"
    seeds = range(42, 42+rounds)
    runs = [{k: fit(k, path, epochs, env, seed) for k in names} for seed in seeds]
    return {k: together([r[k] for r in runs]) for k in names}

def decoding(path, fast):
    "Two processes decode all images and throw them away: the better of two passes"
    o = min(run('decode', path=path, fast=fast)[0], key=lambda o: o['secs'])
    return dict(secs=o['secs'], speed=o['n']/o['secs'])

def opening(path):
    "Images a second that are opened, which is Python's part of decoding"
    o, = run('opening', path=path)[0]
    return dict(speed=o['n']/o['secs'])

def computing(path):
    "Seconds that an epoch's arithmetic takes, but for the first"
    return dict(secs=min(o['secs'] for o in run('compute', path=path)[0][1:]))

def limits(path, rounds):
    "What no loader can beat"
    ways = dict(decode=lambda: decoding(path, False), fast=lambda: decoding(path, True),
                opening=lambda: opening(path), compute=lambda: computing(path))
    return in_turn(lambda k: ways[k](), ways, rounds)

def sharing_nothing(path):
    "Images a second that two processes decode with the faster decoder, and throw away"
    ps,peak = run('decode', path=path, fast=True)
    first,later = [o['n']/o['secs'] for o in ps]
    return dict(first=first, later=later, peak=peak)

def first(path, rounds):
    "Images a second of each loader in its first pass and in later ones, and what's possible"
    names = 'notes','pytorch','decode_jpeg','fastai','ours','fast'
    def one(name): return passes(name, path) if name in names else sharing_nothing(path)
    return in_turn(one, [*installed(names),'processes'], rounds)

def again(path, disk, env=None, **kw):
    "Images a second of a run that finds its images in `disk`, and the seconds of its steps"
    steps = run('again', env, path=path, disk=disk, **kw)[0]
    secs = {o['step']: o['secs'] for o in steps}
    return dict(first=steps[-1]['n']/sum(secs.values()), **secs)

def disk(path, rounds):
    "Images a second of a run that finds its images decoded, and the peak of its three passes"
    with TemporaryDirectory() as d:
        built = again(path, d)['search']
        def one(name):
            if name=='pytorch': return passes(name, path, n=2)
            return again(path, d)|dict(peak=passes('fast', path, disk=d)['peak'])
        res = in_turn(one, ('pytorch','again'), rounds)
        res['memory'] = median(passes('fast', path)['peak'] for _ in range(rounds))
        return dict(res, built_secs=built)

# what `contestants.change` makes of it, and the environment
ways = {'as it is':{}, 'a batch at once':{}, 'no checksums':{}, 'one thread for PyTorch':{},
        'memory given back':{}, 'threads that wait asleep':dict(OMP_WAIT_POLICY='PASSIVE')}

def tries(path, rounds):
    "Images a second of a second run that does one thing in another way"
    with TemporaryDirectory() as d:
        again(path, d)
        def one(how): return again(path, d, ways[how], how=how)
        return {k: o['first'] for k,o in in_turn(one, ways, rounds).items()}

def cold(path, rounds):
    "MB/s of images of a file that isn't in memory, and how busy the processors are"
    names = 'disk in order','disk in any order','mapped','each alone','a batch at once'
    with TemporaryDirectory() as d:
        run('cold', path=path, disk=d)
        def one(how):
            o, = run('cold', path=path, disk=d, how=how)[0]
            return dict(speed=o['read']/o['secs'], busy=o['cpu']/o['secs']/os.cpu_count())
        return in_turn(one, names, rounds)

def half(path, rounds):
    "Seconds of an epoch's arithmetic in float32 and in bfloat16, and what convolutions take"
    names = ['float32','MixedPrecision','channels last','network in bfloat16']
    if shutil.which('g++'): names.append('compiled')
    def one(how):
        *epochs,ops = run('half', path=path, how=how)[0]
        return dict(secs=min(o['secs'] for o in epochs), conv=ops['conv'], ops=ops['all'])
    def large(how):
        epochs = run('half', path=path, how=how, n_epochs=2, n_batches=4)[0]
        return dict(secs=min(o['secs'] for o in epochs[:-1]))
    larger = 'ResNet-18 in float32','ResNet-18'
    return in_turn(one, names, rounds)|in_turn(large, larger, rounds)

def workers(path, rounds):
    "Images a second of our dataset: by threads of our loader, by processes of PyTorch's"
    def one(k):
        name,n = k.split()
        return passes(name, path, n=1, workers=int(n))
    names = [f'{name} {n}' for name in ('ours','fast') for n in (1,2,4)]
    res = {k: o['first'] for k,o in in_turn(one, names, rounds).items()}
    return res|dict(spawned=passes('spawned', path, n=2)['later'])

def trainings(path, epochs, rounds):
    "The chapter's run by all who are there"
    names = 'notes','pytorch','lightning','fastai','chapter','ours','fast','once','bf16'
    return fits(installed(names), path, epochs, rounds)

def growth(path, rounds):
    "Seconds of a pass through more images, and peaks with a cache for half of them"
    half = len(list(Path(path).glob('train/*/*'))) * 64*64*3 // 2
    times = in_turn(lambda k: passes('ours', path, n=1, k=k), (1,2,4), rounds)
    peaks = {k: passes('ours', path, n=1, k=k, cache=half)['peak'] for k in (1,10)}
    return dict(times={k: o['secs'] for k,o in times.items()}, peaks=peaks)

def passive(path, rounds):
    "Seconds of each epoch if threads of PyTorch that wait for each other sleep"
    env = dict(OMP_WAIT_POLICY='PASSIVE')
    return {k: o['epochs'] for k,o in fits(('ours','pytorch'), path, 4, rounds, env).items()}

def threads(path, counts=(0,1,2)):
    "Least seconds of an epoch on decoded images, by the threads that make the batches"
    def one(name):
        secs = [o['secs'] for o in run('threads', name=name, path=path, counts=counts)[0]]
        n = len(counts) # the first round decodes
        return {k: min(secs[i+n::n]) for i,k in enumerate(counts)}
    return {k: one(k) for k in ('once','bf16')}

def kept(path, rounds):
    "The run if the memory of freed tensors stays with the process, without our help"
    names = 'MALLOC_TRIM_THRESHOLD_','MALLOC_MMAP_THRESHOLD_'
    env = dict.fromkeys(names, str(2**30))|dict(MALLOC_ARENA_MAX='1')
    return fits(('chapter','pytorch'), path, 4, rounds, env)

def listed(path, n):
    "CPU seconds and memory of a list of files and of two data sets, next to a bare walk"
    o, = run('listing', path=path, n=n)[0]
    secs = o['cpu']
    return dict(n=n, secs=secs, bytes=o['bytes'], labeled=secs['labeled']/secs['bare'])

def start():
    "Seconds until the command has answered, and of imports: the least of five"
    py = sys.executable
    cmds = dict(help=[Path(py).with_name('lfs_train'), '--help'],
                torch=[py, '-c', 'import torch'],
                all=[py, '-c', 'import torch\nfrom learner_from_scratch.all import *'])
    def secs(cmd):
        start = time.perf_counter()
        subprocess.run(cmd, stdout=quiet, check=True)
        return time.perf_counter()-start
    return {k: min(secs(o) for _ in range(5)) for k,o in cmds.items()}

def script(name, folder=None):
    "Run another script of this folder, and return what it writes: to `folder`, or nowhere"
    with TemporaryDirectory() as d:
        out = Path(folder or d)/f'{name}.json'
        subprocess.run([sys.executable, here/f'{name}.py', '--out', out], check=True)
        return json.loads(out.read_text())

def rounded(o):
    "`o` with four digits for each float"
    if isinstance(o, dict): return {k: rounded(v) for k,v in o.items()}
    if isinstance(o, list): return [rounded(v) for v in o]
    return float(f'{o:.4g}') if isinstance(o, float) else o

# --- what we aim at ---
def floor(r, decoder):
    "Seconds of the shortest possible run: one decoding and the arithmetic of all epochs"
    o = r['limits']
    return o[decoder]['secs']+len(r['fit']['ours']['epochs'])*o['compute']['secs']

def points(r):
    "How many points of accuracy bfloat16 loses, over the seeds of the rounds"
    return 100*(mean(r['fit']['once']['accs'])-mean(r['fit']['bf16']['accs']))

def of_disk(r, how):
    "MB/s of one way to read a file that isn't in memory, as a share of what the disk gives"
    return r[how]['speed']/r['disk in any order']['speed']

# name: (bound, what it is, the figure in one run)
targets = dict(
    first=('>=', 2, "first pass with the faster decoder, of torch's warm loader",
           lambda r: r['first']['fast']['first']/r['first']['pytorch']['later']),
    share=('>=', .8, 'the same, of two processes that share nothing',
           lambda r: r['first']['fast']['first']/r['first']['processes']['later']),
    chapter=('>=', 1.3, "the chapter's first pass, of torch's warm loader",
             lambda r: r['first']['ours']['first']/r['first']['pytorch']['later']),
    later=('>=', 8, "later passes, of torch's",
           lambda r: r['first']['ours']['later']/r['first']['pytorch']['later']),
    disk=('>=', 8, "first pass of a second run that decodes nothing, of torch's",
          lambda r: r['disk']['again']['first']/r['disk']['pytorch']['later']),
    disk_memory=('<=', 1.05, 'its peak of memory, of that with decoded images in memory',
                 lambda r: r['disk']['again']['peak']/r['disk']['memory']),
    cold=('>=', .8, 'images of a file that is not in memory, of what the disk gives',
          lambda r: of_disk(r['cold'], 'a batch at once')),
    listing=('<=', 1.5, '100,000 files listed, split and labelled, of a bare walk',
             lambda r: r['files']['secs']['ours']/r['files']['secs']['bare']),
    listing_bytes=('<=', 300, 'bytes a file that this keeps above the paths',
                   lambda r: r['files']['bytes']['ours']-r['files']['bytes']['bare']),
    fit_pytorch=('<=', .35, "our run, of a plain PyTorch loop",
                 lambda r: r['fit']['ours']['secs']/r['fit']['pytorch']['secs']),
    fit_fastai=('<=', .25, "our run, of fastai's",
                lambda r: r['fit']['ours']['secs']/r['fit']['fastai']['secs']),
    fit_limit=('<=', 1.3, 'our run, of one decoding and the arithmetic',
               lambda r: r['fit']['ours']['secs']/floor(r, 'decode')),
    fast_limit=('<=', 1.15, 'the same with the faster decoder, before the first epoch',
                lambda r: r['fit']['once']['secs']/floor(r, 'fast')),
    bf16=('<=', .22, 'the run in bfloat16, of plain PyTorch in float32',
          lambda r: r['fit']['bf16']['secs']/r['fit']['pytorch']['secs']),
    bf16_points=('<=', 1, 'points of accuracy that bfloat16 loses', points),
    half=('<=', .5, "an epoch's arithmetic in bfloat16, of that in float32",
          lambda r: r['half']['MixedPrecision']['secs']/r['half']['float32']['secs']),
    memory=('<=', 1, "peak of our run, of plain PyTorch's",
            lambda r: r['fit']['ours']['peak']/r['fit']['pytorch']['peak']),
    flat=('<=', 1.05, 'memory of the last three epochs, of the second',
          lambda r: median(r['fit']['ours']['mb'][-3:])/max(r['fit']['ours']['mb'][1], 1)),
    linear=('<=', 1.2, 'seconds for four times the images, of four times those for one',
            lambda r: r['growth']['times']['4']/r['growth']['times']['1']/4),
    bounded=('<=', 1.2, 'peak for ten times the images in a small cache, of that for one',
             lambda r: r['growth']['peaks']['10']/r['growth']['peaks']['1']),
    help=('<=', .5, 'seconds of `lfs_train --help`', lambda r: r['start']['help']),
    all=('<=', .5, 'seconds that `all` adds to `import torch`',
         lambda r: r['start']['all']-r['start']['torch']),
    ranks=('>=', .95, 'two ranks of one thread, of one process with two',
           lambda r: r['scaling']['ratio']),
    overlap=('>=', 0, 'share of a step that sums during backward save on a slow network',
             lambda r: r['overlap']['saved']))

def ratios(res):
    "The figures that hold on other machines, too, as far as `res` has what they need"
    out = {}
    for k,(*_,f) in targets.items():
        with suppress(LookupError,TypeError): out[k] = f(res) # of older code, or few epochs
    return out

# a fifth of a difference near 0 says nothing: by how much these may be worse
slack = dict(bf16_points=.5, all=.1, overlap=.05)

def worse(new, old, by=.2):
    "The names of ratios that are worse than those of `old` by more than a fifth, or `slack`"
    def fell(k):
        up = 1 if targets[k][0]=='>=' else -1
        return up*(old[k]-new[k]) > slack.get(k, by*old[k])
    return [k for k in new if k in old and fell(k)]

# --- is the machine quiet? ---
def of_all():
    "Seconds that the processors were busy so far, with this machine or those it shares them with"
    t = psutil.cpu_times()
    return sum(getattr(t, o, 0) for o in 'user nice system irq softirq steal'.split())

def of_ours():
    "Seconds of this process and of those that it has waited for"
    kinds = resource.RUSAGE_SELF,resource.RUSAGE_CHILDREN
    used = [resource.getrusage(o) for o in kinds]
    return sum(o.ru_utime+o.ru_stime for o in used)

def pulse(path):
    "Images a second of always the same pass, and how much of a processor others had meanwhile"
    start,before = time.perf_counter(),of_all()-of_ours()
    o, = run('pulse', path=path)[0]
    others = of_all()-of_ours()-before
    return dict(speed=o['n']/o['secs'], others=others/(time.perf_counter()-start))

def noise(a, b):
    "What two pulses say against the figures between them, if they do"
    change = abs(a['speed']/b['speed']-1)
    if change>.1: return f'the same pass changed by {change:.0%}'
    others = max(a['others'], b['others'])
    if others>.1: return f'other programs took {others:.0%} of a processor'

# --- and how it's told ---
def show(ratios):
    "The table of targets"
    for k,(op,t,what,_) in targets.items():
        v = ratios.get(k)
        ok = v is not None and (v>=t if op=='>=' else v<=t)
        said = 'not run yet' if v is None else f'{v:8.3f} {"" if ok else "missed"}'
        print(f'{k:14}{op} {t:<5}{said:18}{what}')

def about(path, simd):
    "Where and with what this was measured"
    packages = dict(torch='torch', pillow='PIL', simplejpeg='simplejpeg', fastai='fastai',
                    lightning='lightning', torchvision='torchvision')
    git = 'git','describe','--always','--dirty'
    commit = subprocess.run(git, cwd=here, capture_output=True, text=True).stdout.strip()
    machine = dict(cpus=os.cpu_count(), simd=simd, system=platform.system(),
                   python=platform.python_version())
    versions = {k: version(k) for k,o in packages.items() if find_spec(o)}
    own = python('decode_jpeg')
    if own!=sys.executable:
        src = 'from importlib.metadata import version as v\n'
        src += 'print(v("torchvision"), v("torch"))'
        said = subprocess.check_output([own, '-c', src], text=True).split()
        versions['decode_jpeg'] = 'torchvision {}, torch {}'.format(*said)
    return dict(data=Path(path).name, date=time.strftime('%Y-%m-%d'), commit=commit,
                machine=machine, versions=versions)

# --- where it's written ---
def write(fname, res):
    "Write `res` whole, or not at all"
    part = fname.with_suffix('.part')
    part.write_text(json.dumps(res, indent=1)+'\n')
    os.replace(part, fname)

def known(old, parts):
    "What `old` says of `parts`; others are measured no more"
    def of(o): return {k: v for k,v in o.items() if k in parts}
    return dict(of(old), runs=of(old.get('runs', {})))

@call_parse
def main(
    path:Path=None, # Folder with `train` and `val`; else Imagenette or drawn shapes
    only:str='', # Names of parts, with commas between; by default all, `none` for no part
    epochs:int=8, # Length of the training run
    rounds:int=3, # How often most is measured, in turn
    n_files:int=100_000, # How many files are listed
    fname:Path=here/'results.json', # Where the figures are, and go
    check:bool=False, # Compare with the figures in `fname`, which stay as they are?
):
    "Measure, print the targets, and write each part with the machine it was measured on"
    # Python keeps what it has compiled, as it does for most people
    os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
    # in a process of its own: what is imported here, a contestant would share
    src = """import torch
from learner_from_scratch.fetch import book_data
print(torch.backends.cpu.get_cpu_capability())
print(book_data())"""
    out = subprocess.check_output([sys.executable, '-c', src], text=True)
    simd,found = out.split('\n')[:2]
    path = str(path or found)
    folder = None if check else fname.parent
    # `limits` first, as it leaves all files in the system's memory
    parts = dict(limits=lambda: limits(path, rounds),
                 first=lambda: first(path, rounds),
                 disk=lambda: disk(path, rounds), cold=lambda: cold(path, rounds),
                 half=lambda: half(path, rounds), tries=lambda: tries(path, rounds),
                 workers=lambda: workers(path, rounds),
                 fit=lambda: trainings(path, epochs, rounds),
                 passive=lambda: passive(path, rounds), threads=lambda: threads(path),
                 kept=lambda: kept(path, rounds), growth=lambda: growth(path, rounds),
                 files=lambda: listed(path, n_files), start=start,
                 scaling=lambda: script('scaling', folder),
                 overlap=lambda: script('overlap', folder))
    names = only.split(',') if only else list(parts)
    if only=='none': names = []
    if bad := [o for o in names if o not in parts]:
        sys.exit(f'no part is called {bad[0]}; there are {", ".join(parts)}')
    old = json.loads(fname.read_text()) if fname.exists() else {}
    if check and not old.get('ratios'): sys.exit(f'{fname} has no figures to compare with')
    res = dict(runs={}) if check else known(old, parts)
    res['targets'] = {k: o[:3] for k,o in targets.items()}
    where = about(path, simd) # now: what is written below is in git
    pulses = [pulse(path)] if names else []
    for o in names:
        res[o] = parts[o]()
        pulses.append(pulse(path))
        told = noise(*pulses[-2:])
        if told: print(f'{o}: the machine was not quiet: {told}')
        res['runs'][o] = dict(where, noise=told)
        res = json.loads(json.dumps(rounded(res))) # numbers as keys become texts
        res['ratios'] = rounded(ratios(res))
        if not check: write(fname, res)
    res['ratios'] = rounded(ratios(res))
    show(res['ratios'])
    if check:
        if fell := worse(res['ratios'], old['ratios']):
            sys.exit('worse by more than a fifth: '+', '.join(fell))
    else: write(fname, res)
