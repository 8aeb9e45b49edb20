"Who takes part: all read the same files and train the same network, and none imports another's library"
import json,random,sys,time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np,torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

n_workers,size,bs,valid_bs,lr = 2,64,128,256,0.1
mean,std = torch.tensor([0.46,0.46,0.43]),torch.tensor([0.26,0.26,0.28])

def files(path, split='train'): return sorted(Path(path).glob(f'{split}/*/*'))

def report(**kw):
    "A line for `bench.py`"
    print(json.dumps(dict(t=time.time(), **kw)), flush=True)

# --- the network and the loop, in plain PyTorch ---
def cnn():
    "The chapter's network, of PyTorch's layers"
    nfs = 3,16,32,64,128
    convs = [o for a,b in zip(nfs, nfs[1:]) for o in (nn.Conv2d(a, b, 3, stride=2, padding=1), nn.ReLU())]
    for o in convs[::2]:
        nn.init.kaiming_normal_(o.weight)
        nn.init.zeros_(o.bias)
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))

def prep(xb): return ((xb-mean)/std).permute(0,3,1,2)

def one_cycle(opt, n_epochs, n):
    "The chapter's schedule"
    return OneCycleLR(opt, lr, epochs=n_epochs, steps_per_epoch=n, pct_start=.25, anneal_strategy='linear', div_factor=10, cycle_momentum=False)

def plain_fit(dls, n_epochs, prep=prep):
    (train,valid),model = dls,cnn()
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    sched = one_cycle(opt, n_epochs, len(train))
    for _ in range(n_epochs):
        model.train()
        for xb,yb in train:
            F.cross_entropy(model(prep(xb)), yb).backward()
            opt.step(); opt.zero_grad(); sched.step()
        model.eval()
        with torch.no_grad(): right = torch.cat([model(prep(xb)).argmax(1)==yb for xb,yb in valid])
        report(acc=right.float().mean().item())

def our_fit(dls, n_epochs):
    from learner_from_scratch.learner import Callback,DataLoaders,Learner,OneCycle,SetupLearnerCB,TrackResults,cross_entropy,simple_cnn
    class Report(Callback):
        def after_epoch(self):
            if not self.model.training: report(acc=sum(track.accs).item()/sum(track.ns))
    track = TrackResults()
    Learner(simple_cnn(), DataLoaders(*dls), cross_entropy, lr, [SetupLearnerCB('cpu'), track, Report(), OneCycle(lr)]).fit(n_epochs)

# --- the contestants: from a folder to training batches, validation batches and a function that fits ---
class Items:
    "Open, resize, floats: an item as most people write it"
    def __init__(self, fns):
        self.fns = fns
        self.vocab = sorted({o.parent.name for o in fns})
    def __len__(self): return len(self.fns)
    def __getitem__(self, i):
        fn = self.fns[i]
        im = Image.open(fn).resize((size,size)).convert('RGB')
        return torch.from_numpy(np.array(im)).float()/255, torch.tensor(self.vocab.index(fn.parent.name))

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
    return *dls, lambda n: our_fit(dls, n)

def pytorch(path):
    kw = dict(num_workers=n_workers, persistent_workers=True)
    dls = [torch.utils.data.DataLoader(Items(files(path,s)), batch_size=b, shuffle=s=='train', **kw) for s,b in (('train',bs),('val',valid_bs))]
    return *dls, lambda n: plain_fit(dls, n)

def torchvision():
    "Import torchvision even if it was built for CUDA and torch was not: of its operators no more than names is needed here"
    try: import torchvision
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
            return [opt],[dict(scheduler=one_cycle(opt, self.trainer.max_epochs, len(dls[0])), interval='step')]
        def training_step(self, b, i): return F.cross_entropy(self.net(prep(b[0])), b[1])
        def on_validation_epoch_start(self): self.right = []
        def validation_step(self, b, i): self.right.append(self.net(prep(b[0])).argmax(1)==b[1])
        def on_validation_epoch_end(self): report(acc=torch.cat(self.right).float().mean().item())
    def fit(n):
        quiet = dict.fromkeys(['logger','enable_checkpointing','enable_progress_bar','enable_model_summary'], False)
        L.Trainer(max_epochs=n, accelerator='cpu', num_sanity_val_steps=0, **quiet).fit(Net(), *dls)
    return *dls, fit

def fastai(path):
    torchvision()
    from fastai.vision.all import Callback,CrossEntropyLossFlat,ImageDataLoaders,Learner,Normalize,Resize,SGD,accuracy
    dls = ImageDataLoaders.from_folder(path, valid='val', item_tfms=Resize(size, 'squish'), bs=bs, val_bs=valid_bs,
                                       batch_tfms=Normalize.from_stats(mean, std), num_workers=n_workers, device='cpu')
    class Report(Callback):
        order = 60 # after the Recorder
        def after_epoch(self): report(acc=self.recorder.values[-1][-1])
    def fit(n):
        learn = Learner(dls, cnn(), CrossEntropyLossFlat(), opt_func=SGD, metrics=accuracy, cbs=Report())
        with learn.no_bar(): learn.fit_one_cycle(n, lr, div=10, pct_start=.25, moms=(0,0,0))
    return *dls, fit

def ours(path, k=1, cache=2**30, workers=n_workers):
    from learner_from_scratch.data import DataLoader,Dataset
    train,valid = Dataset(files(path)*k, size=size, cache=cache),Dataset(files(path,'val'), size=size)
    dls = DataLoader(train, bs, True, workers),DataLoader(valid, valid_bs, n_workers=workers)
    return *dls, lambda n: our_fit(dls, n)

def spawned(path):
    "Our dataset without its cache, in PyTorch's loader with processes that are never forked"
    from learner_from_scratch.data import Dataset
    kw = dict(batch_size=bs, shuffle=True, num_workers=n_workers, multiprocessing_context='spawn', persistent_workers=True)
    return torch.utils.data.DataLoader(Dataset(files(path), size=size, cache=0), **kw),

# --- what is measured: each of these reports once when it begins, and after each of its parts ---
def passes(name, path, n=3, **kw):
    "Seconds of a pass over the training images, `n` times"
    dl = contestants[name](path, **kw)[0]
    report()
    for _ in range(n): report(n=sum(len(yb) for _,yb in dl))

def fit(name, path, n_epochs):
    "Seconds and accuracy of each epoch"
    f = contestants[name](path)[2]
    report()
    f(n_epochs)

def decode_all(fns):
    from learner_from_scratch.data import read_image
    for o in fns: read_image(o, size)
    return len(fns)

def decode(path):
    "The one limit: all images decoded, in processes, and thrown away"
    fns = files(path)+files(path,'val')
    chunks = [fns[i:i+bs] for i in range(0, len(fns), bs)]
    with ProcessPoolExecutor(n_workers, mp_context=get_context('spawn')) as ex:
        list(ex.map(decode_all, chunks[:2*n_workers])) # they have imported all they need
        report()
        for _ in range(2): report(n=sum(ex.map(decode_all, chunks)))

def opening(path):
    "The part of decoding that is Python, so that threads take turns: find the file, read its header"
    fns = files(path)
    report()
    for o in fns:
        with Image.open(o) as im: im.draft('RGB', (size,size))
    report(n=len(fns))

def compute(path, n_epochs=4):
    "The other: all epochs' arithmetic, on batches that are there"
    train,valid,_ = ours(path)
    dls = [[(prep(xb),yb) for xb,yb in dl] for dl in (train,valid)]
    report()
    plain_fit(dls, n_epochs, lambda xb: xb)

contestants = {f.__name__: f for f in (notes,pytorch,lightning,fastai,ours,spawned)}

if __name__=='__main__':
    what,args = sys.argv[1],json.loads(sys.argv[2])
    torch.manual_seed(42)
    globals()[what](**args)
