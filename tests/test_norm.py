"BatchNorm, Dropout and AdamW on two ranks, one of which has nothing of the last batch"
import os,subprocess,sys
from pathlib import Path

import torch

root = Path(__file__).parent.parent
env = {**os.environ, 'PYTHONPATH':str(root), 'OMP_NUM_THREADS':'1', 'MPLBACKEND':'agg'}
if sys.platform in ('linux','darwin'):
    env['GLOO_SOCKET_IFNAME'] = 'lo' if sys.platform=='linux' else 'lo0'
torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
            '--local-addr', '127.0.0.1', '--nproc-per-node', '2']

def test_statistics_of_rank_0(tmp_path):
    "After a validation all ranks have the same weights and statistics, and they are numbers"
    cmd = [*torchrun, str(root/'tests/norm_job.py'), str(tmp_path)]
    res = subprocess.run(cmd, env=env, capture_output=True, text=True, timeout=120)
    assert res.returncode==0, res.stderr
    a,b = (torch.load(tmp_path/f'{i}.pt') for i in (0,1))
    assert a.keys()==b.keys() and '1.running_var' in a
    for k in a: assert torch.equal(a[k], b[k]) and a[k].isfinite().all(), k
    assert a['1.num_batches_tracked']==6 # rank 0 has a share of both batches, rank 1 of one
