"The loader never hangs, leaves nothing behind, and gives the same batches everywhere"
import gc,multiprocessing,os,pickle,queue,random,shutil
import signal,subprocess,sys,threading,time,traceback
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import faults
from fastcore.all import first
from PIL import Image
from learner_from_scratch import data
from learner_from_scratch.data import Chunk,DataLoader,Dataset,collate,get_files
from learner_from_scratch.data import get_image_files,grandparent_split,in_threads,read_image
from learner_from_scratch.data import show_image,show_images,total_memory,verify_images
from learner_from_scratch.distributed import Shard
from learner_from_scratch.fetch import book_data,draw_shapes

# of other processes, and how long the soak is; test_soak.py has others
setup,n_passes = 'from learner_from_scratch.data import *\n',500

posix = pytest.mark.skipif(os.name!='posix', reason='needs fork and signals')
has_proc = Path('/proc/self/task').exists()
linux = pytest.mark.skipif(not has_proc, reason='counts in /proc, which only Linux has')
some_workers = pytest.mark.parametrize('n_workers', [0,1,2,5])

@pytest.fixture(scope='session')
def fns(tmp_path_factory):
    path = draw_shapes(tmp_path_factory.mktemp('data')/'shapes', 60, 10)
    return get_image_files(path, folders='train')

@pytest.fixture
def ds(fns): return Dataset(fns)

def same(a, b):
    "Compared by NumPy: PyTorch's own threads would hang in a forked child"
    return len(a)==len(b) and all(np.array_equal(o,p) for x,y in zip(a,b) for o,p in zip(x,y))

def run(code, *args, timeout=500):
    "What a new Python prints that runs `code`; fails if it takes too long"
    cmd = [sys.executable, '-c', code, *map(str,args)]
    res = subprocess.run(cmd, capture_output=True, text=True, timeout=timeout)
    assert res.returncode==0, res.stderr
    return res.stdout.strip()

# --- nothing is left behind ---
def alive():
    "Numbers of Python threads, of all threads, of open files and of child processes"
    gc.collect()
    tasks = list(Path('/proc/self/task').iterdir())
    children = [o/'children' for o in tasks if (o/'children').exists()]
    children = sum(len(o.read_text().split()) for o in children)
    return faults.n_threads(),len(tasks),len(os.listdir('/proc/self/fd')),children

def all_is_as(before):
    "A thread that has nothing left to do takes a moment to end"
    end = time.monotonic()+30
    while alive()!=before and time.monotonic() < end: time.sleep(.01)
    return alive()==before

@linux
def test_abandoned_iterators(ds):
    def abandon(n):
        for i in range(n): first(DataLoader(ds, bs=4, shuffle=True, n_workers=i%4))
    abandon(4)
    before = alive()
    abandon(200)
    assert all_is_as(before)

@linux
def test_errors_leave_nothing(fns, tmp_path):
    bad = tmp_path/'bad.jpg'
    bad.write_bytes(fns[0].read_bytes()[:500])
    dl = DataLoader(Dataset([*fns,bad], cache=0), bs=4, n_workers=2)
    before = alive()
    for _ in range(20):
        with pytest.raises(OSError): list(dl)
    assert all_is_as(before)

@some_workers
def test_few_in_flight(n_workers):
    begun = []
    class Counted:
        def __len__(self): return 400
        def batch(self, idxs): begun.append(idxs); return len(idxs)
    for i,_ in enumerate(DataLoader(Counted(), bs=10, n_workers=n_workers)):
        if i%10==5: time.sleep(.02)
        assert len(begun) <= i+1 + n_workers
    assert sorted(sum(begun,[]))==list(range(400))

# --- same batches ---
@pytest.mark.parametrize('shuffle', [False,True])
def test_same_batches_for_all_workers(fns, shuffle):
    def passes(n_workers, cache):
        torch.manual_seed(7)
        ds = Dataset(fns[::2], cache=cache)
        dl = DataLoader(ds, bs=8, shuffle=shuffle, n_workers=n_workers)
        return [*dl,*dl], torch.rand(1)
    want,r = passes(0, 0)
    assert len(want)==8 and shuffle != torch.equal(want[0][0], want[4][0])
    for n_workers in (0,1,2,5):
        for cache in (0, 10*3*64*64, 2**30):
            got,s = passes(n_workers, cache)
            assert same(got, want) and r==s

def test_follows_manual_seed(ds):
    def order(seed):
        torch.manual_seed(seed)
        return torch.cat([xb for xb,_ in DataLoader(ds, bs=8, shuffle=True, n_workers=2)])
    assert torch.equal(order(1), order(1)) and not torch.equal(order(1), order(2))

def test_two_at_once(ds):
    dl = DataLoader(ds, bs=8, n_workers=2)
    want,got = list(dl),list(zip(dl,dl))
    assert same([a for a,_ in got], want) and same([b for _,b in got], want)

def test_other_dataset(ds, fns):
    dl = DataLoader(ds, bs=8)
    dl.ds = Dataset(fns[30:35], ds.vocab)
    assert same(list(dl), [collate(range(5), dl.ds)])

def test_an_image_of_its_own(fns):
    "What a subclass makes of an image is in the batch, too"
    class Grey(Dataset):
        def image(self, i): return super().image(i).convert('L').convert('RGB')
    ds = Grey(fns[:4])
    assert torch.equal(ds.batch([1])[0][0], ds[1][0])
    assert (ds[1][0][...,0]==ds[1][0][...,1]).all()

@pytest.mark.parametrize('n_workers', [0,-1])
def test_without_threads(n_workers):
    "Nobody would ever make the first chunk"
    with pytest.raises(ValueError, match=f'at least 1, got {n_workers}'):
        list(in_threads(len, [[1]], n_workers))

# --- threads and processes ---
def test_in_threads_of_the_caller(ds):
    dl,got = DataLoader(ds, bs=8, n_workers=2),{}
    def read(i): got[i] = list(dl)
    ts = [threading.Thread(target=read, args=(i,), daemon=True) for i in range(4)]
    for t in ts: t.start()
    for t in ts: t.join(30)
    want = list(dl)
    assert len(got)==4 and all(same(o, want) for o in got.values())

class Numbers:
    def __len__(self): return 100_000
    def batch(self, idxs): return len(idxs)

def child(dls, q):
    "Also what PyTorch would spread over threads: a long order to shuffle, and one large item"
    first(DataLoader(Numbers(), bs=8, shuffle=True))
    dls[-1].ds[0]
    collate(range(8), dls[-1].ds)
    def labels(dl): return [yb.tolist() for _,yb in dl]
    q.put([[*labels(dl), sum(float(xb.numpy().sum()) for xb,_ in dl)] for dl in dls])

@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
def test_in_a_child(fns, method, monkeypatch):
    "Also after PyTorch began threads of its own, which a forked child doesn't have"
    monkeypatch.setenv('OMP_NUM_THREADS', '2') # for spawned children; forked ones have ours
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    a = torch.rand(1000,1000)
    (a@a).exp().sum()
    dls = [DataLoader(Dataset(fns, size=size), bs=bs, n_workers=n)
           for n in (0,1,2) for size,bs in ((64,60),(224,8))]
    for dl in dls: first(dl)
    ctx = multiprocessing.get_context(method)
    q = ctx.SimpleQueue()
    it = iter(dls[-1])
    next(it)
    p = ctx.Process(target=child, args=(dls,q), daemon=True)
    p.start()
    p.join(60)
    hangs = p.is_alive()
    p.kill()
    torch.set_num_threads(before)
    assert not hangs and p.exitcode==0
    got = q.get()
    want = [dls[0].ds.y[i:i+bs].tolist() for bs in (60,8) for i in range(0,60,bs)]
    assert [o[:-1] for o in got[:2]]==[want[:1],want[1:]]
    assert got[2:4]==got[:2] and got[4:]==got[:2]

@posix
def test_fork_in_the_middle(ds):
    "The child can drop the pass and begin a new one; going on is an error, not silence"
    dl = DataLoader(ds, bs=4, n_workers=2)
    want,it = list(dl),iter(dl)
    next(it)
    pid = os.fork()
    if not pid:
        signal.alarm(20)
        ok = False
        try: list(it)
        except RuntimeError as e: ok = 'new pass' in str(e)
        finally: os._exit(not (ok and same(list(dl), want)))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==0
    assert same(list(it), want[1:])

@posix
def test_without_posix(fns):
    "Nothing is used of `os` that Windows hasn't got"
    code = '''
import os,sys
import torch,fastcore.all,fastdownload,filelock,matplotlib.pyplot
for o in 'fork','forkpty','register_at_fork','sysconf','mkfifo','O_NONBLOCK': delattr(os, o)
for o in 'getuid','getpgid','killpg': delattr(os, o)
from learner_from_scratch.all import *
dl = DataLoader(Dataset(get_image_files(sys.argv[1])), bs=16, n_workers=2)
Learner(simple_cnn(), DataLoaders(dl,dl), cross_entropy, lr=.1, cbs=SetupLearnerCB()).fit(1)
print(len(dl.ds.decoded))'''
    assert run(code, fns[0].parent.parent)=='60'

forking = """
import os,sys
import torch
torch.set_num_threads(2)
a = torch.rand(1000,1000)
(a@a).exp().sum() # the threads begin
ds = Dataset(get_image_files(sys.argv[1]), size=224)
dl = DataLoader(ds, bs=8, n_workers=2)
def again():
    next(iter(dl))
    torch.set_num_threads(2) # who asks for it gets it
    next(iter(dl))
for f in lambda: 0, lambda: ds[0], lambda: next(iter(dl)), again:
    pid = os.fork()
    if not pid:
        f()
        os._exit(torch.get_num_threads())
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), end=' ')
next(iter(dl)); ds[0]
print(torch.get_num_threads())"""

@posix
def test_threads_of_forked_children(fns):
    "Only a child that uses our loader or dataset computes with one thread"
    assert run(setup+forking, fns[0].parent.parent)=='2 1 1 2 2'

def test_pickle(ds, fns):
    dl = DataLoader(ds, bs=8, shuffle=True, n_workers=2)
    torch.manual_seed(0)
    want = list(dl)
    assert len(ds.decoded)==len(fns)
    s = pickle.dumps(dl)
    assert len(s) < 300*len(fns)+5000 # the decoded images, 12 kB each, stay at home
    new = pickle.loads(s)
    torch.manual_seed(0)
    assert same(list(new), want) and len(new.ds.decoded)==len(fns) and new.ds.vocab==ds.vocab

@pytest.mark.parametrize('method', ['fork','spawn'] if os.name=='posix' else ['spawn'])
def test_in_torch_loader(ds, method):
    dl = torch.utils.data.DataLoader(ds, batch_size=8, num_workers=2,
                                     multiprocessing_context=method, timeout=500)
    assert same(list(dl), list(DataLoader(ds, bs=8, n_workers=2)))

# --- errors and interrupts ---
@some_workers
def test_error_reaches_the_caller(fns, n_workers, tmp_path):
    bad = tmp_path/'broken 猫.jpg'
    shutil.copy(fns[0], bad)
    ds = Dataset([*fns[:30],bad,*fns[30:]], [*Dataset(fns).vocab, tmp_path.name], cache=0)
    dl,good = DataLoader(ds, bs=4, n_workers=n_workers),bad.read_bytes()
    bad.write_bytes(good[:len(good)//2])
    got = []
    with pytest.raises(OSError) as e: got += dl
    assert len(got)==7
    assert str(bad) in str(e.value) and 'truncated' in str(e.value)
    assert 'truncated' in str(e.value.__cause__)
    tb = ''.join(traceback.format_exception(e.value))
    assert all(f'in {o}\n' in tb for o in ('read_image','pixels','batch')) and 'ImageFile.py' in tb
    bad.write_bytes(good)
    assert len(list(dl))==16

@posix
def test_unreadable_folder(tmp_path):
    "An error that names the folder, not a dataset without it. Root reads all: a child gives it up"
    locked = tmp_path/'train'/'locked'
    locked.mkdir(parents=True)
    (tmp_path/'train'/'a.jpg').touch()
    locked.chmod(0)
    tmp_path.chmod(0o755)
    pid = os.fork()
    if not pid:
        try:
            os.chdir(tmp_path)
            if os.getuid()==0: os.setuid(65534)
            get_image_files('train')
        except PermissionError as e: os._exit(e.filename!='train/locked')
        finally: os._exit(2)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    locked.chmod(0o755)
    assert code==0
    assert get_image_files(tmp_path)==[tmp_path/'train'/'a.jpg']

@pytest.mark.parametrize('n_workers', [0,1,2,5])
def test_skip(fns, n_workers, tmp_path):
    "Also when all of a batch is bad; the rest is as if it had never been there"
    bad = [tmp_path/'train'/fns[0].parent.name/f'bad{i}.jpg' for i in range(9)]
    bad[0].parent.mkdir(parents=True)
    for o in bad: o.write_text('no image')
    with pytest.warns(UserWarning, match='9 of 25 images are skipped.*bad0.jpg') as w:
        ds = Dataset([*fns[:8],*bad,*fns[8:16]], on_error='skip')
    assert len(w)==1 and ds.skipped.itemgot(0)==bad and all(str(a) in b for a,b in ds.skipped)
    got = list(DataLoader(ds, bs=4, n_workers=n_workers))
    assert same(got, list(DataLoader(Dataset(fns[:16]), bs=4)))
    with pytest.raises(ValueError, match='at least one image'), pytest.warns(UserWarning):
        Dataset(bad, on_error='skip')

def test_file_disappears(fns, tmp_path):
    f = tmp_path/'gone.jpg'
    shutil.copy(fns[0], f)
    dl = DataLoader(Dataset([f]))
    f.unlink()
    with pytest.raises(OSError, match='gone.jpg.*No such file'): list(dl)

counted = f'''
import atexit,signal,sys,time
sys.path.insert(0, {str(Path(__file__).parent)!r})
import faults
''' + '''
fns = get_image_files(sys.argv[1])
class Counted(Dataset):
    "Knows how many images were begun since Ctrl-C was pressed, and its pass was told to stop"
    begun = pause = 0
    def pixels(self, i):
        Counted.begun += 1
        time.sleep(self.pause)
        return super().pixels(i)
def again(): Counted.begun = 0
faults.when_stopped(again)
def press(*_):
    again()
    raise KeyboardInterrupt
signal.signal(signal.SIGINT, press)
def back(): print('back', Counted.begun, flush=True)
'''

def interrupts(code, path, n, pause=0):
    """Press Ctrl-C `n` times, after each `go` of `code`; how many images were begun then

    Each worker may begin one. More is no matter of time: who has to stop doesn't go on."""
    cmd = [sys.executable, '-c', setup+counted+code, path]
    p = subprocess.Popen(cmd, stdout=subprocess.PIPE, text=True)
    guard = threading.Timer(200, p.kill) # only who hangs is that late
    guard.start()
    try:
        for _ in range(n):
            assert p.stdout.readline()=='go\n'
            time.sleep(random.random()*pause)
            p.send_signal(signal.SIGINT)
            yield int(p.stdout.readline().removeprefix('back '))
        yield from [int(o.removeprefix('back ')) for o in p.stdout]
        assert p.wait()==0
    finally:
        p.kill(); p.stdout.close(); guard.cancel()

# a function, as Python 3.13 may miss the `try` where a loop in it goes back after an `if`
interrupted = '''
def read(n_workers):
    for i,_ in enumerate(DataLoader(many, bs=64, shuffle=True, n_workers=n_workers)):
        if i==1: print('go', flush=True)

for n_workers in (0,1,2,0,1,2):
    try: read(n_workers)
    except KeyboardInterrupt: back()
    assert len(list(DataLoader(Dataset(fns), bs=10, n_workers=n_workers)))==6
    for _ in range(600):
        if len(sys._current_frames())==1: break
        time.sleep(.1)
    assert len(sys._current_frames())==1
'''

@posix
def test_ctrl_c(fns):
    "Control is back before a batch is done, the next pass works, and no thread is left"
    code = f'many = Counted(list(fns)*200, cache=0)\n{interrupted}'
    begun = list(interrupts(code, fns[0].parent.parent, 6, .2))
    assert len(begun)==6 and max(begun)<=2

class Photos(Dataset):
    "A dataset whose images take as long as those of a camera; counts those that were begun"
    begun = at_stop = 0
    def stop(self): self.at_stop = self.begun
    def pixels(self, i):
        self.begun += 1
        time.sleep(.03)
        return super().pixels(i)

def test_error_and_ctrl_c_do_not_wait(fns):
    "What is wrong with the first of 2000 such images is told before another batch is done"
    for e in OSError('first'),KeyboardInterrupt():
        class Bad(Photos):
            def pixels(self, i):
                if i==0: raise e
                return super().pixels(i)
        ds = Bad(fns*100)
        with pytest.raises(type(e)): list(DataLoader(ds, bs=2000, n_workers=2))
        assert ds.begun < 1900 # a minute: the machine may have other things to do

def test_error_waits_for_others_but_not_long(fns):
    "Nor does an error in the second batch wait for the 2000 images of the first one"
    class Bad(Photos):
        def pixels(self, i):
            if i==2000: raise OSError('second batch')
            return super().pixels(i)
    ds = Bad(fns*100)
    dl = DataLoader(ds, bs=2000, n_workers=2)
    with pytest.raises(OSError, match='second batch'): list(dl)
    assert ds.begun < 1900

@linux
@pytest.mark.parametrize('n_workers', [1,2,5])
def test_leaving_does_not_wait(fns, n_workers, monkeypatch):
    "Who leaves doesn't wait for the batches ahead, and no thread works on"
    before,ds = alive(),Photos(fns*10)
    monkeypatch.setattr(data, 'NS', data.NS) # comes back at the end
    faults.when_stopped(ds.stop)
    it = iter(DataLoader(ds, bs=100, n_workers=n_workers))
    next(it)
    del it
    assert all_is_as(before) and ds.at_stop and ds.begun-ds.at_stop <= n_workers

@linux
def test_leaving_a_shard_does_not_wait(fns, monkeypatch):
    "Nor for the part of a batch that is another process's"
    before,ds = alive(),Photos(fns*10)
    monkeypatch.setattr(data, 'NS', data.NS)
    faults.when_stopped(ds.stop)
    it = iter(Shard(DataLoader(ds, bs=100, n_workers=2), rank=0, n_ranks=2))
    next(it)
    del it
    assert all_is_as(before) and ds.at_stop and ds.begun-ds.at_stop <= 2

def test_parts_of_chunks_stop():
    class Flag: stop = False
    chunk = Chunk(range(10), Flag)
    parts = chunk[::2],chunk[1:][2:]
    assert parts==([0,2,4,6,8],[3,4,5,6,7,8,9]) and chunk[-1]==9
    Flag.stop = True
    for o in (chunk,*parts):
        with pytest.raises(RuntimeError, match='nobody waits'): list(o)

@pytest.mark.parametrize('n_workers', [0,1,2])
@pytest.mark.parametrize('own', [False,True])
def test_stop_iteration(fns, n_workers, own):
    "A data set whose own iterator runs dry doesn't end the pass in silence"
    class Dry(Dataset):
        def pixels(self, i):
            if i==20: next(iter([]))
            return super().pixels(i)
        if own:
            def __getitem__(self, i): return super().__getitem__(i)
    got = []
    dl = DataLoader(Dry(fns), bs=8, n_workers=n_workers)
    with pytest.raises(RuntimeError, match='raised StopIteration'): got.extend(dl)
    assert len(got)==2

def test_collected_in_its_own_worker(monkeypatch):
    "The garbage collector closes a pass that nobody reads, and it may run in any thread"
    told,gate,before = [],queue.SimpleQueue(),faults.n_threads()
    monkeypatch.setattr(sys, 'unraisablehook', told.append)
    waits,wait = [],data._wait
    def spy(notes):
        waits.append(threading.current_thread() is threading.main_thread())
        return wait(notes)
    monkeypatch.setattr(data, '_wait', spy)
    def work(o):
        if o[0]: gate.get(timeout=200)
        gc.collect()
        return o
    gc.disable()
    it = in_threads(work, [[i] for i in range(99)], 2)
    next(it)
    loop = [it]
    loop.append(loop)
    del it,loop
    for _ in range(99): gate.put(0)
    gone = faults.threads_are_gone(before)
    gc.enable()
    assert gone and not told and all(waits) # a worker doesn't wait for itself

@pytest.mark.parametrize('n_workers', [1,2,5])
def test_as_many_at_a_time_as_workers(n_workers):
    "Never more: a data set that is not made for threads is safe with one"
    now,most,all_here = [],[],threading.Barrier(n_workers)
    class Counted(Numbers):
        def __len__(self): return 200
        def batch(self, idxs):
            now.append(1)
            most.append(len(now))
            if len(most)<=n_workers: all_here.wait(100)
            time.sleep(.002)
            now.pop()
            return len(idxs)
    assert sum(DataLoader(Counted(), bs=4, n_workers=n_workers))==200
    assert max(most)==n_workers

at_the_end = '''
import torch
from learner_from_scratch.data import DataLoader
class Heavy:
    def __len__(self): return 4000
    def __getitem__(self, i):
        x = torch.rand(3000)
        for _ in range(20): x = (x+1).sin()
        return x,torch.tensor(i)
it = iter(DataLoader(Heavy(), bs=40, n_workers=3))
next(it)'''

def test_end_of_the_program():
    "It may come in the middle of a pass: a thread in PyTorch's code would abort it"
    cmd = [sys.executable, '-c', at_the_end]
    res = subprocess.run(cmd, capture_output=True, text=True, timeout=500)
    assert (res.returncode,res.stderr)==(0,'')

# --- Ctrl-C at any instant ---
def test_no_locks_in_the_main_thread():
    passes = faults.Passes()
    assert faults.lock_operations(passes.read)==[]
    assert not passes.interrupted(faults.when_condition_is_held) # as there is no condition
    assert 'Condition.__enter__' in faults.lock_operations(lambda: threading.Event().set())

def fault(*args):
    "What a function of `faults` says, in a process of its own"
    cmd = [sys.executable, faults.__file__, *map(str, args)]
    res = subprocess.run(cmd, capture_output=True, text=True, timeout=500)
    assert res.returncode==0, res.stderr
    return int(res.stdout)

@pytest.mark.parametrize('n_workers', [0,1,2])
def test_ctrl_c_at_every_instruction(n_workers):
    "No hang, no thread left, and the next pass is right"
    assert fault('every_instruction', n_workers) > 100

@posix
def test_ctrl_c_at_random_instants(): assert fault('random_instants', 300) >= 300

in_the_body = '''
atexit.register(back) # the first that is registered is the last that is called
Counted.pause = .03
for n_workers in (1,2):
    try:
        for b in DataLoader(Counted(fns*9), bs=n_workers*50, n_workers=n_workers):
            print('go', flush=True)
            time.sleep(300)
    except KeyboardInterrupt: back()
'''

@posix
def test_ctrl_c_in_the_body(fns):
    "As most people press it: while a batch is being used, and others are being made"
    first_,second,at_the_end = interrupts(in_the_body, fns[0].parent.parent, 2)
    assert max(first_, second)<=2
    assert at_the_end<=2 # the end of the program waits for nobody either

def test_interrupted_in_jupyter(fns):
    from jupyter_client.manager import start_new_kernel
    km,kc = start_new_kernel()
    def cell(code, hook=lambda o: None):
        reply = kc.execute_interactive(code, timeout=200, output_hook=hook)
        reply = reply['content']
        return reply['status'],reply.get('ename')
    try:
        setup = f"""import os,signal,threading,time
from learner_from_scratch.data import *
fns = get_image_files({str(fns[0].parent.parent)!r})
class Slow(Dataset):
    def pixels(self, i): time.sleep(.03); return super().pixels(i)
dl = DataLoader(Slow(fns*99, cache=0), bs=8, n_workers=2)"""
        assert cell(setup)==('ok',None)
        def press(msg): # at the first batch, and once
            if pressed or msg['msg_type']!='stream': return
            pressed.append(km.interrupt_kernel())
        pressed = []
        code = 'for b in dl: print("go", flush=True)'
        assert cell(code, press)==('error','KeyboardInterrupt') and pressed
        code = 'assert len(list(DataLoader(Dataset(fns), bs=10, n_workers=2)))==6'
        assert cell(code)==('ok',None)
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)

def test_soak(fns):
    "Passes with random ends, some by errors; the program ends in the middle of the last"
    code = setup+'''
import random,sys,time
random.seed(1)
fns = get_image_files(sys.argv[1])[:24]
good,bad = Dataset(fns),Dataset([*fns,'gone.jpg'], cache=0)
for i in range(int(sys.argv[2])):
    ds = bad if i%25==0 else good
    it = iter(DataLoader(ds, bs=4, shuffle=True, n_workers=i%4))
    try:
        for _ in range(random.randint(0,8)): next(it)
    except (StopIteration,OSError): pass
del it
for _ in range(600):
    if len(sys._current_frames())==1: break
    time.sleep(.1)
print(len(sys._current_frames()))
it = iter(DataLoader(good, bs=2, n_workers=3))
next(it)'''
    assert run(code, fns[0].parent.parent, n_passes)=='1'

# --- memory ---
@linux
def test_cache_is_bounded(fns):
    "Ten times the images that it has room for take no more memory; with room for all, much more"
    code = '''
import os,sys
from learner_from_scratch.data import *
fns = get_image_files(sys.argv[1])
mb = lambda: int(open('/proc/self/statm').read().split()[1])*os.sysconf('SC_PAGE_SIZE')/1e6
def most(n, cache):
    dl = DataLoader(Dataset(fns*n, size=160, cache=cache), bs=4, n_workers=2)
    return max(mb() for _ in dl)
one = len(fns)*3*160*160
print(*[most(10,o) for o in (0,one,10*one)], 10*one/1e6)'''
    none,some,free,whole = map(float, run(code, fns[0].parent.parent).split())
    assert some < none+.4*whole and free > some+.5*whole # of 46 MB

# --- draft decoding ---
def plain(fn, size):
    with Image.open(fn) as im: return im.convert('RGB').resize((size,size))

@pytest.mark.parametrize('size', [32,64])
def test_draft_is_close(size, tmp_path):
    "Of 255, no image is off by more than 8 in the mean, nor all by more than 4, nor much lighter"
    fns = get_image_files(draw_shapes(tmp_path/'large', 40, 10, size=160))
    fns += get_image_files(book_data())[::200]
    def read(f): return torch.stack([torch.tensor(np.array(f(o, size))).float() for o in fns])
    drafts,plains = read(read_image),read(plain)
    diff = drafts-plains
    assert diff.abs().mean((1,2,3)).max() < 8 and diff.abs().mean() < 4
    assert diff.mean((1,2,3)).abs().max() < 3
    assert (diff.abs().mean((1,2,3))[:50] > 0).all() # all of these were drafted

# --- sizes and indices ---
def test_other_size(fns):
    "Progressive resizing: what is cached at one size is not taken for another"
    ds = Dataset(fns, size=64)
    dl = DataLoader(ds, bs=8)
    for size in (64,32,96,64):
        ds.size = size
        assert same(list(dl), list(DataLoader(Dataset(fns, size=size), bs=8)))
        assert len(ds.decoded)==len(fns) # and what isn't needed any more is let go

def test_own_items(fns):
    "A subclass that changes the items changes the batches"
    class Negative(Dataset):
        def __getitem__(self, i):
            x,y = super().__getitem__(i)
            return 1-x,y
    for n_workers in (0,2):
        dl = DataLoader(Negative(fns), bs=8, n_workers=n_workers)
        for (a,_),(b,_) in zip(dl, DataLoader(Dataset(fns), bs=8), strict=True):
            assert np.allclose(a, 1-b)

# --- files that are no files, and images that are none ---
@posix
def test_no_regular_files(fns, tmp_path):
    "A pipe isn't waited for, a device without an end isn't read, and a folder is no image"
    os.mkfifo(tmp_path/'pipe.jpg')
    (tmp_path/'endless.jpg').symlink_to('/dev/zero')
    (tmp_path/'folder.jpg').mkdir()
    (tmp_path/'lost.jpg').symlink_to('nowhere')
    whys = dict(verify_images([*fns[:3],*tmp_path.iterdir()], n_workers=1))
    for o in 'pipe.jpg','endless.jpg','folder.jpg':
        assert whys[tmp_path/o]==f"can't read image {tmp_path/o}: not a regular file"
    assert len(whys)==4 and 'No such file' in whys[tmp_path/'lost.jpg']

@posix
def test_programs(fns, tmp_path):
    "Ghostscript isn't started for PostScript"
    ps = tmp_path/'program.jpg'
    head = '%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n'
    ps.write_text(f'{head}%%EndComments\nshowpage\n')
    with Image.open(ps) as im: assert im.format=='EPS'
    (fn,why), = verify_images([*fns[:3],ps], n_workers=1)
    assert fn==ps and 'not in a format that Pillow knows' in why

@posix
def test_linked_folders(fns, tmp_path):
    "Nothing vanishes: what is linked is there under each name, as on every disk"
    (tmp_path/'zz').mkdir()
    shutil.copy(fns[0], tmp_path/'zz'/'1.jpg')
    for o in 'bca': (tmp_path/o).symlink_to('zz', target_is_directory=True)
    assert get_image_files(tmp_path)==[tmp_path/o/'1.jpg' for o in ('a','b','c','zz')]

def test_kinds_of_folders(tmp_path):
    "Hidden ones are left out unless asked for, and so are files beside the folders asked for"
    names = 'a.jpg .b.jpg c.txt train/d.JPG train/sub/e.jpg .hidden/f.jpg val/g.jpg'
    for o in [*names.split(),'train/.h/i.jpg']:
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).touch()
    def found(**kw):
        return [o.relative_to(tmp_path).as_posix() for o in get_files(tmp_path, **kw)]
    jpgs = ['a.jpg','train/d.JPG','train/sub/e.jpg','val/g.jpg']
    assert found(extensions='.jpg')==jpgs and found()==[*jpgs[:1],'c.txt',*jpgs[1:]]
    assert found(extensions=['.JPG','.txt'], recurse=False)==['a.jpg','c.txt']
    assert found(folders='train')==jpgs[1:3]
    assert found(folders=['.','val'], extensions='.jpg')==['a.jpg','val/g.jpg']
    assert found(folders='.hidden')==['.hidden/f.jpg'] and found(folders='.')==['a.jpg','c.txt']

def test_grandparent_split(fns):
    root = fns[0].parent.parent.parent
    both = [root/part/'cat'/f'{i}.jpg' for part in ('val','train') for i in range(3)]
    train,valid = grandparent_split(map(str, both))
    assert train==both[3:] and valid==both[:3]
    with pytest.raises(ValueError, match='other/cat/1.jpg'):
        grandparent_split([*both,'other/cat/1.jpg'])

def test_formats_registered_later(fns, tmp_path, monkeypatch):
    "What a plug-in adds to Pillow is an image from then on"
    shutil.copy(fns[0], tmp_path/'a.jpg')
    (tmp_path/'b.odd').touch()
    assert get_image_files(tmp_path)==[tmp_path/'a.jpg']
    monkeypatch.setattr(Image, 'ID', [*Image.ID,'ODD'])
    monkeypatch.setitem(Image.MIME, 'ODD', 'image/odd')
    monkeypatch.setitem(Image.EXTENSION, '.odd', 'ODD')
    assert get_image_files(tmp_path)==[tmp_path/'a.jpg',tmp_path/'b.odd']

def test_kinds_of_indices(ds, fns):
    for i in (-1,np.int64(59),torch.tensor(59)): assert same([ds[i]], [ds[59]])
    assert len(ds.decoded)==1
    with pytest.raises(IndexError): ds[60]

def test_show_images(ds):
    "A title for each, a grid with room for all, and any array will do"
    xs = [ds[i][0] for i in range(7)]
    show_images(xs, np.array([*'abcdefg']), ncols=3)
    axs = plt.gcf().axes
    assert [o.get_title() for o in axs]==[*'abcdefg','','']
    assert [len(o.images) for o in axs]==[1]*7+[0]*2
    for o in xs[0].permute(2,0,1),xs[0][...,0],xs[0][...,:1],ds.image(0):
        assert show_image(o).images[0].get_array().shape[:2]==(64,64)
    show_images(torch.stack(xs).permute(0,3,1,2))
    assert np.array_equal(plt.gcf().axes[0].images[0].get_array(), xs[0])
    plt.close('all')

def test_default_cache(fns, monkeypatch):
    "An eighth of the memory, of a container's if it has less; of 8 GiB where nobody knows"
    assert Dataset(fns).cache==total_memory()//8
    machine = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')
    for said,n in ('1000000',10**6),('max',machine):
        monkeypatch.setattr(Path, 'read_text', lambda fn: said)
        assert total_memory()==n
    def unknown(name): raise ValueError
    monkeypatch.setattr(os, 'sysconf', unknown)
    assert total_memory()==8*2**30

def test_skipped_by_its_own_reader(tmp_path):
    "A data set with other files tries them in its own way"
    class Arrays(Dataset):
        @staticmethod
        def read(fn, size):
            try: return Image.fromarray(np.load(fn)).resize((size,size))
            except ValueError as e: raise OSError(f'no array in {fn}') from e
    files = [tmp_path/'a'/f'{i}.npy' for i in range(4)]
    files[0].parent.mkdir()
    for o in files[:3]: np.save(o, np.zeros((4,4,3), 'uint8'))
    files[3].write_bytes(b'no array')
    with pytest.warns(UserWarning, match='1 of 4 images are skipped'):
        ds = Arrays(files, on_error='skip')
    assert list(ds.fns)==files[:3] and ds[0][0].shape==(64,64,3)
