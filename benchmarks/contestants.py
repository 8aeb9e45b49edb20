"""Who takes part: all read the same files and train the same network

None imports another's library.
"""
import importlib,json,os,random,resource,sys,time
from concurrent.futures import ProcessPoolExecutor,ThreadPoolExecutor
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np,torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

n_workers,size,bs,valid_bs,lr = 2,64,128,256,0.1
mean,std = torch.tensor([0.46,0.46,0.43]),torch.tensor([0.26,0.26,0.28])

def files(path, split='train'): return sorted(Path(path).glob(f'{split}/*/*'))

def report(**kw):
    "A line for `bench.py`: the time, and how many pages of memory were asked for so far"
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    print(json.dumps(dict(t=time.time(), pages=pages, **kw)), flush=True)

# --- the network and the loop, in plain PyTorch ---
def cnn():
    "The chapter's network, of PyTorch's layers"
    nfs = 3,16,32,64,128
    layers = []
    for a,b in zip(nfs, nfs[1:]):
        conv = nn.Conv2d(a, b, 3, stride=2, padding=1)
        nn.init.kaiming_normal_(conv.weight)
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

def prep(xb): return ((xb-mean)/std).permute(0,3,1,2)

def one_cycle(opt, n_epochs, n):
    "The chapter's schedule"
    return OneCycleLR(opt, lr, epochs=n_epochs, steps_per_epoch=n, pct_start=.25,
                      anneal_strategy='linear', div_factor=10, cycle_momentum=False)

def plain_fit(dls, n_epochs, prep=prep):
    (train,valid),model = dls,cnn()
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    sched = one_cycle(opt, n_epochs, len(train))
    for _ in range(n_epochs):
        model.train()
        for xb,yb in train:
            F.cross_entropy(model(prep(xb)), yb).backward()
            opt.step()
            opt.zero_grad()
            sched.step()
        model.eval()
        with torch.no_grad():
            right = torch.cat([model(prep(xb)).argmax(1)==yb for xb,yb in valid])
        report(acc=right.float().mean().item())

def our_fit(dls, n_epochs, page='callbacks', extra=()):
    "Fit with a `Learner`: `page` is `learner` for the chapter's, `callbacks` for ours"
    m = importlib.import_module(f'learner_from_scratch.{page}')
    class Report(m.Callback):
        def after_epoch(self):
            if not self.model.training: report(acc=sum(track.accs).item()/sum(track.ns))
    track = m.TrackResults()
    cbs = [m.SetupLearnerCB('cpu'), track, Report(), m.OneCycle(lr), *extra]
    m.Learner(m.simple_cnn(), m.DataLoaders(*dls), m.cross_entropy, lr, cbs).fit(n_epochs)

# --- the contestants: from a folder to training batches, validation batches and a fit ---
class Items:
    "Open, resize, floats: an item as most people write it"
    def __init__(self, fns):
        self.fns = fns
        self.vocab = sorted({o.parent.name for o in fns})
    def __len__(self): return len(self.fns)
    def __getitem__(self, i):
        fn = self.fns[i]
        im = Image.open(fn).resize((size,size)).convert('RGB')
        x = torch.from_numpy(np.array(im)).float()/255
        return x, torch.tensor(self.vocab.index(fn.parent.name))

class Tensors(Items):
    "The same with torchvision's decoder and resize"
    def __getitem__(self, i):
        from torchvision.io import ImageReadMode,decode_jpeg,read_file
        from torchvision.transforms import v2
        fn = self.fns[i]
        x = decode_jpeg(read_file(str(fn)), mode=ImageReadMode.RGB)
        x = v2.functional.resize(x, [size,size], antialias=True)
        return x.permute(1,2,0)/255, torch.tensor(self.vocab.index(fn.parent.name))

class Serial:
    "A batch when it's asked for: the notes' loader, less the processes that made it hang"
    def __init__(self, ds, bs, shuffle=False): self.ds,self.bs,self.shuffle = ds,bs,shuffle
    def __len__(self): return (len(self.ds)-1)//self.bs+1
    def __iter__(self):
        n = len(self.ds)
        idxs = random.sample(range(n), n) if self.shuffle else range(n)
        for i in range(0, n, self.bs):
            xs,ys = zip(*map(self.ds.__getitem__, idxs[i:i+self.bs]))
            yield torch.stack(xs),torch.stack(ys)

def notes(path):
    dls = Serial(Items(files(path)), bs, True),Serial(Items(files(path,'val')), valid_bs)
    return *dls, lambda n: our_fit(dls, n, 'learner')

def pytorch(path, items=Items):
    def dl(split, **kw):
        ds = items(files(path, split))
        kw |= dict(num_workers=n_workers, persistent_workers=True)
        return torch.utils.data.DataLoader(ds, **kw)
    dls = dl('train', batch_size=bs, shuffle=True),dl('val', batch_size=valid_bs)
    return *dls, lambda n: plain_fit(dls, n)

def decode_jpeg(path):
    "PyTorch's loader and a plain loop on torchvision's decoder"
    torchvision()
    return pytorch(path, Tensors)

def torchvision():
    "Import torchvision even if it was built for CUDA and torch was not"
    try: import torchvision
    # of its operators no more than names is needed here
    except RuntimeError:
        for o in 'nms','qnms': torch.library.define(f'torchvision::{o}', '() -> ()')
    except ImportError: pass

def lightning(path):
    torchvision()
    import lightning as L
    dls = pytorch(path)[:2]
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = cnn()
        def configure_optimizers(self):
            opt = torch.optim.SGD(self.parameters(), lr=lr)
            sched = one_cycle(opt, self.trainer.max_epochs, len(dls[0]))
            return [opt],[dict(scheduler=sched, interval='step')]
        def training_step(self, b, i): return F.cross_entropy(self.net(prep(b[0])), b[1])
        def on_validation_epoch_start(self): self.right = []
        def validation_step(self, b, i):
            self.right.append(self.net(prep(b[0])).argmax(1)==b[1])
        def on_validation_epoch_end(self):
            report(acc=torch.cat(self.right).float().mean().item())
    def fit(n):
        extras = 'logger','enable_checkpointing','enable_progress_bar','enable_model_summary'
        quiet = dict.fromkeys(extras, False)
        trainer = L.Trainer(max_epochs=n, accelerator='cpu', num_sanity_val_steps=0, **quiet)
        trainer.fit(Net(), *dls)
    return *dls, fit

def fastai(path):
    torchvision()
    from fastai.vision import all as fv
    dls = fv.ImageDataLoaders.from_folder(
        path, valid='val', bs=bs, val_bs=valid_bs, num_workers=n_workers, device='cpu',
        item_tfms=fv.Resize(size, 'squish'), batch_tfms=fv.Normalize.from_stats(mean, std))
    class Report(fv.Callback):
        order = 60 # after the Recorder
        def after_epoch(self): report(acc=self.recorder.values[-1][-1])
    def fit(n):
        learn = fv.Learner(dls, cnn(), fv.CrossEntropyLossFlat(), opt_func=fv.SGD,
                           metrics=fv.accuracy, cbs=Report())
        with learn.no_bar(): learn.fit_one_cycle(n, lr, div=10, pct_start=.25, moms=(0,0,0))
    return *dls, fit

def ours(path, k=1, cache=2**30, workers=n_workers, kind=None, disk=None, keep=True, **kw):
    "Our loader, and the everyday `Learner`; freed memory is kept if `keep`"
    from learner_from_scratch.cache import decode_once,reuse_memory
    from learner_from_scratch.data import DataLoader,Dataset
    if keep: reuse_memory()
    kind = kind or Dataset
    train = kind(files(path)*k, size=size, cache=cache)
    valid = kind(files(path,'val'), size=size)
    if disk: train,valid = [decode_once(o, disk) for o in (train,valid)]
    dls = DataLoader(train, bs, True, workers),DataLoader(valid, valid_bs, n_workers=workers)
    return *dls, lambda n: our_fit(dls, n, **kw)

def fast(path, **kw):
    "The same with the faster decoder; with a folder `disk`, decoded once ever"
    from learner_from_scratch.cache import FastDataset
    return ours(path, kind=FastDataset, **kw)

def once(path, workers=0, **kw):
    "The same, all decoded before the first epoch, into a file; no thread makes the batches"
    from learner_from_scratch.cache import decode_once
    *dls,fit = fast(path, workers=workers, **kw)
    def decode_and_fit(n):
        with TemporaryDirectory() as d:
            for dl in dls: decode_once(dl.ds, d)
            fit(n)
    return *dls, decode_and_fit

def bf16(path, extra=()):
    "The same, computed in bfloat16"
    from learner_from_scratch.callbacks import MixedPrecision
    return once(path, extra=[MixedPrecision(), *extra])

def chapter(path):
    "The same with the chapter's `Learner`"
    return ours(path, page='learner', keep=False)

def spawned(path):
    "Our dataset without its cache, in PyTorch's loader with processes that are never forked"
    from learner_from_scratch.data import Dataset
    ds = Dataset(files(path), size=size, cache=0)
    kw = dict(num_workers=n_workers, multiprocessing_context='spawn', persistent_workers=True)
    return torch.utils.data.DataLoader(ds, batch_size=bs, shuffle=True, **kw),

# --- what is measured: each reports once when it begins, and after each of its parts ---
def passes(name, path, n=3, **kw):
    "Seconds of a pass over the training images, `n` times"
    dl = contestants[name](path, **kw)[0]
    report()
    for _ in range(n): report(n=sum(len(yb) for _,yb in dl))

def at_once(ds, idxs):
    "A batch of stored images, which NumPy gathers in one step"
    found = ds.decoded.stored[idxs]
    assert all(crc32(o)==ds.decoded.crcs[i] for i,o in zip(idxs, found))
    xb = found.reshape(-1, size, size, 3)
    return torch.from_numpy(np.divide(xb, 255, dtype='float32')),ds.y[idxs]

def unchecked(stored, k): return stored.stored[k[0]].tobytes()

def change(how, cache):
    "Have the module `cache` do one thing in another way"
    if how=='a batch at once': cache.FastDataset.batch = at_once
    if how=='no checksums': cache.Stored.get = unchecked
    if how=='one thread for PyTorch': torch.set_num_threads(1)
    if how!='memory given back': cache.reuse_memory()

def again(path, disk, how=None):
    "The first pass of a run that finds its images in `disk`, and all that comes before it"
    from learner_from_scratch import cache
    from learner_from_scratch.data import DataLoader
    change(how, cache)
    report()
    both = files(path),files(path,'val')
    report(step='list')
    both = [cache.FastDataset(o, size=size) for o in both]
    report(step='datasets')
    train,_ = [cache.decode_once(o, disk) for o in both]
    report(step='search')
    report(step='batches', n=sum(len(yb) for _,yb in DataLoader(train, bs, True, n_workers)))

def forget(fn):
    "Have the system keep nothing of the file `fn` in memory"
    with open(fn, 'r+b') as f:
        os.fsync(f)
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

def disk_in_order(fn):
    "Bytes of the file `fn`, read from front to back"
    block,n = bytearray(2**20),0
    with open(fn, 'rb', buffering=0) as f:
        while got := f.readinto(block): n += got
    return n

def disk_in_any_order(fn, idxs, nbytes, n_threads=32):
    "Bytes of the records `idxs`, of `nbytes` each, read by many threads"
    file = os.open(fn, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    def some(k): return sum(len(os.pread(file, nbytes, i*nbytes)) for i in idxs[k::n_threads])
    with ThreadPoolExecutor(n_threads) as ex: return sum(ex.map(some, range(n_threads)))

def cold(path, disk, how=None, k=16):
    "MB of one in eight images, in random order, of a file that isn't in memory"
    from learner_from_scratch import cache
    from learner_from_scratch.data import DataLoader
    cache.reuse_memory()
    if how=='mapped': cache._mapped = lambda fn: np.load(fn, mmap_mode='r')
    if how in ('mapped','each alone'): cache._will_need = lambda records,idxs: None
    ds = cache.FastDataset(files(path)*k, size=size)
    if how is None: return report(), cache.decode_once(ds, disk), report()
    fn, = Path(disk).glob('*.npy')
    forget(fn)
    idxs = torch.randperm(len(ds)).tolist()[:len(ds)//8]
    class Some(DataLoader):
        def order(self): return idxs
    cache.decode_once(ds, disk)
    n = ds.decoded.records.itemsize
    loader = Some(ds, bs, False, n_workers)
    ways = {'disk in order': lambda: disk_in_order(fn),
            'disk in any order': lambda: disk_in_any_order(fn, idxs, n)}
    read = ways.get(how, lambda: sum(len(yb) for _,yb in loader)*n)
    report()
    start = time.process_time()
    nbytes = read()
    report(read=nbytes/1e6, cpu=time.process_time()-start)

def fit(name, path, n_epochs):
    "Seconds and accuracy of each epoch"
    f = contestants[name](path)[2]
    report()
    f(n_epochs)

def decode_all(fns, fast):
    "Decode `fns` in the chapter's way, or in the faster one, and throw them away"
    if fast:
        from learner_from_scratch.cache import read_together
        for i in range(0, len(fns), 16): read_together(fns[i:i+16], size)
    else:
        from learner_from_scratch.data import read_image
        for o in fns: read_image(o, size)
    return len(fns)

def decode(path, fast=False, n=n_workers):
    "The one limit: all images decoded, in `n` processes, and thrown away"
    torch.set_num_threads(1)
    fns = files(path)+files(path,'val')
    chunks = [fns[i:i+bs] for i in range(0, len(fns), bs)]
    with ProcessPoolExecutor(n, mp_context=get_context('spawn')) as ex:
        def all_of(chunks): return sum(ex.map(decode_all, chunks, [fast]*len(chunks)))
        all_of(chunks[:2*n]) # they have imported all they need
        report()
        for _ in range(2): report(n=all_of(chunks))

def pulse(path, n=2000):
    "Always the same pass, in one thread: is the machine as fast as it was?"
    fns = (files(path)*n)[:n]
    decode_all(fns[:100], False)
    report()
    decode_all(fns, False)
    report(n=n)

def threads(name, path, counts=(0,1,2), rounds=8):
    "Epochs on decoded images whose batches are made by none, one or two threads, in turn"
    from learner_from_scratch.callbacks import Callback
    class Turn(Callback):
        order = -90
        def before_epoch(self):
            n = counts[self.epoch%len(counts)]
            for dl in self.dls.train,self.dls.valid: dl.n_workers = n
    f = contestants[name](path, extra=[Turn()])[2]
    report()
    f(rounds*len(counts))

def links(path, d, n):
    "`n` links in `d` to the images of `path`: four to train on for each to validate with"
    for split,k in ('train',n-n//5),('val',n//5):
        fns = files(path, split)
        for i in range(k):
            to = Path(d)/split/f'class{i%20}'
            if i<20: to.mkdir(parents=True)
            (to/f'image_{i:06}.jpg').symlink_to(fns[i%len(fns)])

def listing(path, n=100_000):
    "Lists, labels and splits `n` links to images: CPU seconds, and bytes kept for each"
    import tracemalloc
    from learner_from_scratch.folders import split_files
    from learner_from_scratch.labels import labeled_datasets
    def bare(d): return [Path(p)/o for p,_,names in os.walk(d) for o in names]
    def ours(d):
        parts = split_files(Path(d))
        return [*parts, *[o.map(lambda fn: fn.parent.name) for o in parts]]
    def labeled(d): return labeled_datasets(Path(d)) # as `lfs_train` does
    def secs(f):
        start = time.process_time()
        f(d)
        return time.process_time()-start
    def kept(f):
        tracemalloc.start()
        res = f(d)
        nbytes = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return nbytes/n if res else 0
    with TemporaryDirectory() as d:
        links(Path(path).resolve(), d, n)
        report()
        times = {f.__name__: min(secs(f) for _ in range(3)) for f in (bare,ours,labeled)}
        nbytes = {f.__name__: kept(f) for f in (bare,ours)}
        report(cpu=times, bytes=nbytes)

def opening(path):
    "Find a file and read its header, which is Python: threads take turns"
    from learner_from_scratch import data
    fns = files(path)
    report()
    for o in fns:
        with open(o, 'rb') as f, data._open(BytesIO(f.read())) as im: data._draft(im, size)
    report(n=len(fns))

def compute(path, n_epochs=4):
    "The other: all epochs' arithmetic, on batches that are there"
    train,valid,_ = ours(path)
    dls = [[(prep(xb),yb) for xb,yb in dl] for dl in (train,valid)]
    report()
    plain_fit(dls, n_epochs, lambda xb: xb)

class InHalf(nn.Module):
    "The network `net` on copies of its weights in bfloat16"
    def __init__(self, net):
        super().__init__()
        self.net = net
    def forward(self, xb):
        ps = {k: p.bfloat16() for k,p in self.net.named_parameters()}
        return torch.func.functional_call(self.net, ps, xb.bfloat16()).float()

def resnet():
    from learner_from_scratch.resnet import resnet18
    return resnet18(10)

# the network, and whether `MixedPrecision` is there
precisions = {
    'float32': (cnn,False), 'MixedPrecision': (cnn,True),
    'channels last': (lambda: cnn().to(memory_format=torch.channels_last),True),
    'compiled': (lambda: torch.compile(cnn()),True),
    'network in bfloat16': (lambda: InHalf(cnn()),False),
    'ResNet-18 in float32': (resnet,False), 'ResNet-18': (resnet,True)}

def convolutions(f):
    "Seconds that `f()` spends in convolutions, and in all operations of PyTorch"
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as p: f()
    ops = p.key_averages()
    def secs(ops): return sum(o.self_cpu_time_total for o in ops)/1e6
    return dict(conv=secs(o for o in ops if 'onvolution' in o.key), all=secs(ops))

def half(path, how, n_epochs=4, n_batches=None):
    "Seconds of an epoch on batches that are there, and what of it are convolutions"
    from learner_from_scratch import callbacks as m
    train = islice(ours(path)[0], n_batches)
    batches = [(prep(xb),yb) for xb,yb in train]
    make,mixed = precisions[how]
    cbs = [m.SetupLearnerCB('cpu', tfm=lambda xb: xb)]
    if mixed: cbs.append(m.MixedPrecision())
    learn = m.Learner(make(), m.DataLoaders(batches, []), F.cross_entropy, .01, cbs)
    learn.fit(1) # compiles
    report()
    for _ in range(n_epochs):
        learn.fit(1)
        report()
    report(**convolutions(lambda: learn.fit(1)))

contestants = {f.__name__: f for f in (notes,pytorch,decode_jpeg,lightning,fastai,chapter,
                                       ours,fast,once,bf16,spawned)}

if __name__=='__main__':
    what,args = sys.argv[1],json.loads(sys.argv[2])
    torch.manual_seed(args.pop('seed', 42))
    globals()[what](**args)
