"Two processes on loopback train as one does; one that dies, hangs or never comes ends the job with an error, in time; and a new job goes on"
import os,re,socket,subprocess,sys,time
from pathlib import Path

import pytest
import torch

root = Path(__file__).parent.parent
job = str(root/'tests/distributed_job.py')
loopback = {'linux':{'GLOO_SOCKET_IFNAME':'lo'}, 'darwin':{'GLOO_SOCKET_IFNAME':'lo0'}}.get(sys.platform, {})
env = {**os.environ, 'PYTHONPATH':str(root), 'OMP_NUM_THREADS':'1', 'MPLBACKEND':'agg', **loopback}
torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr', '127.0.0.1', '--nproc-per-node', '2']
posix = pytest.mark.skipif(os.name!='posix', reason='signals are those of Unix')

def run(*cmd): return subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=120)

def start(ranks, *args):
    "Start `ranks` of two, without `torchrun`: nobody watches them"
    with socket.create_server(('127.0.0.1',0)) as s: port = str(s.getsockname()[1])
    where = {**env, 'MASTER_ADDR':'127.0.0.1', 'MASTER_PORT':port, 'WORLD_SIZE':'2'}
    return [subprocess.Popen([sys.executable, job, *map(str, args)], env={**where, 'RANK':str(i), 'LOCAL_RANK':str(i)},
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for i in ranks]

def end(p, timeout=120):
    "Exit code and output of `p`"
    try: out = p.communicate(timeout=timeout)[0]
    finally: p.kill()
    return p.returncode,out

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "What one process and two ranks saved and printed, and where"
    d = tmp_path_factory.mktemp('trained')
    outs = [run(sys.executable, job, str(d)), run(*torchrun, job, str(d))]
    for o in outs: assert o.returncode==0, o.stderr
    return *[torch.load(d/f'{o}.pt') for o in ('0of1','0of2','1of2')], *[o.stdout for o in outs], d

def largest_diff(a, b): return max((a[k]-b[k]).abs().max().item() for k in a)

def test_fit_after_fit(trained):
    one,*two,_,_,_ = trained
    assert [o['again'] for o in (one,*two)]==[[0,1]]*3

def test_weights_of_30_steps(trained):
    "Two ranks with half the batch each, shuffled; each epoch ends with a batch of one item, of which rank 1 gets nothing"
    one,r0,r1,*_ = trained
    assert len(r0['losses'])==30
    assert largest_diff(one['weights'], r0['weights']) < 1e-6
    assert largest_diff(r0['weights'], r1['weights'])==0

def test_metrics_are_those_of_all(trained):
    one,r0,r1,*_ = trained
    for k in 'rows','losses': assert (torch.tensor(one[k])-torch.tensor(r0[k])).abs().max() < 1e-5
    assert (r0['rows'],r0['losses'])==(r1['rows'],r1['losses'])

def test_accumulated(trained):
    "A step for 80 items and one for a single item, of which rank 1 has none: the same weights and the same table"
    one,r0,r1 = [o['accumulated'] for o in trained[:3]]
    assert largest_diff(one['weights'], r0['weights']) < 1e-6
    assert largest_diff(r0['weights'], r1['weights'])==0
    assert (torch.tensor(one['rows'])-torch.tensor(r0['rows'])).abs().max() < 1e-5

def test_only_rank_0_prints(trained):
    *_,one,two,_ = trained
    untimed = lambda o: re.sub(r' *[\d.]+s\n', '\n', o)
    assert untimed(two).startswith(untimed(one)) and 'valid_loss' in one

def test_only_rank_0_saves(trained):
    "Five epochs of 6 batches, a checkpoint every 2 and at the end; and a table"
    d = trained[-1]
    assert max(o.stem for o in (d/'2').glob('*.ckpt'))=='00000020'
    assert (d/'0of2.csv').exists() and not (d/'1of2.csv').exists()

def test_nan_stops_all_in_the_same_step(trained):
    _,r0,r1,_,two,_ = trained
    assert r0['nan']==r1['nan']==(1,3)
    assert two.count('Stopped: the loss is nan in epoch 1, training batch 3')==1

def test_nan_of_one_rank_in_validation_stops_all(trained):
    _,r0,r1,_,two,_ = trained
    assert r0['vnan']==r1['vnan']==(1,1)
    assert 'Stopped by 1 of 2 ranks' in two

@posix
def test_killed_and_resumed(trained, tmp_path):
    "`torchrun` ends the job; started again it goes on from the checkpoint of rank 0, to the same weights"
    res = run(*torchrun, job, str(tmp_path), 'SIGKILL')
    assert res.returncode and 'SIGKILL' in res.stderr
    assert not [*tmp_path.glob('*.pt')] and [*tmp_path.glob('2/*.ckpt')]
    for code,out in map(end, start([0,1], tmp_path)): assert code==0, out
    for i in range(2):
        res = torch.load(tmp_path/f'{i}of2.pt')
        assert largest_diff(res['weights'], trained[1]['weights'])==0
        assert res['rows']==trained[1]['rows']

@posix
def test_stopped_and_never_come(tmp_path):
    "Nothing is closed, rank 1 is only silent, or was never there: after the timeout of 8 s rank 0 gives up"
    (r0,stopped),(alone,) = start([0,1], tmp_path/'a', 'SIGSTOP'),start([0], tmp_path/'b', 'SIGSTOP')
    try:
        began = time.monotonic()
        for p,event in (r0,'DistributedCB'),(alone,''):
            code,out = end(p, 60)
            assert time.monotonic()-began < 60
            assert code==1 and re.search(f'{event}.*[Tt]imed out', out), out
        assert stopped.poll() is None
    finally: stopped.kill(); stopped.communicate()
