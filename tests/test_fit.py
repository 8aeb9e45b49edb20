"A fit that is interrupted, and what `Recorder` shows: to a file, a terminal and a notebook"
import os,re,signal,subprocess,sys,time

import pytest

line = '''
import time,torch
from learner_from_scratch.all import *
x = torch.rand(20,8,1)
batches = [(o,2*o+1) for o in x]
class Slow(list):
    def __iter__(self):
        for o in super().__iter__(): time.sleep(.01); yield o
mse = lambda preds,yb: ((preds-yb)**2).mean()
def learner(n=15, cbs=None): return Learner(Linear(1,1), DataLoaders(Slow(batches[:n]), Slow(batches[15:])), mse, 0.1, [Recorder(mse), *L(cbs)])
'''

interrupted = line + '''
class Log(Callback):
    events = []
    def before_batch(self):
        if self.epoch==1: print('go', flush=True)
    def after_batch(self): self.events.append('batch')
    def after_epoch(self): self.events.append('epoch')
    def after_fit(self): self.events.append('fit')
learn = learner(cbs=Log())
try: learn.fit(10_000)
except KeyboardInterrupt: print('\\ninterrupted', ' '.join(Log.events[-3:]))
rec = learn.recorder
assert len(rec.rows)>=1 and len(rec.losses)>=15
learn.remove_cb(Log)
learn.fit(2)
assert len(learn.recorder.rows)==2 and torch.stack([learn.model.w.sum(),learn.model.b.sum()]).isfinite().all()
print('second fit done')
'''

@pytest.mark.skipif(sys.platform=='win32', reason='Windows has no SIGINT for one process')
def test_ctrl_c():
    p = subprocess.Popen([sys.executable, '-c', interrupted], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while 'go' not in (o := p.stdout.readline()): assert o, p.stderr.read()
        p.send_signal(signal.SIGINT)
        start = time.time()
        out,err = p.communicate(timeout=60)
    finally: p.kill()
    assert p.returncode==0, err
    assert 'interrupted batch epoch fit' in out and 'second fit done' in out
    assert time.time()-start < 30

def test_file(tmp_path):
    "Plain lines only"
    with open(tmp_path/'log.txt', 'w') as f: subprocess.run([sys.executable, '-c', line+'learner(5).fit(3)'], stdout=f, stderr=f, check=True, timeout=120)
    txt = (tmp_path/'log.txt').read_bytes().decode().replace(os.linesep, '\n')
    assert not re.search(r'[^\n -~]', txt), txt
    device,names,*rows = txt.splitlines()
    assert device.startswith('Training on ')
    assert names.split()==['epoch','train_loss','valid_loss','<lambda>','time']
    assert [o.split()[0] for o in rows]==['0','1','2'] and {len(o) for o in rows}=={len(names)}

def screen(s):
    "What a terminal shows after the text `s`"
    rows = []
    for o in s.replace('\r\n', '\n').split('\n'):
        row = []
        for part in o.split('\r'): row[:len(part)] = part
        rows.append(''.join(row).rstrip())
    return rows

@pytest.mark.skipif(sys.platform=='win32', reason='Windows has no pty')
@pytest.mark.parametrize('how', ['', ', cbs=Cancel()'])
def test_terminal(how):
    "A bar while it runs, and the table alone afterwards, even if an epoch is cancelled"
    import pty
    cancel = '\nclass Cancel(Callback):\n    def after_batch(self):\n        if self.model.training and self.num==2: raise CancelEpochException\n'
    parent,child = pty.openpty()
    p = subprocess.Popen([sys.executable, '-c', f'{line}{cancel}learner(5).fit(2{how})'], stdout=child, stderr=child)
    os.close(child)
    out = b''
    try:
        while o := os.read(parent, 4096): out += o
    except OSError: pass  # how Linux says that the other end is closed
    assert p.wait(60)==0, out
    txt = out.decode()
    assert '█' in txt and '%' in txt
    rows = [o for o in screen(txt) if o]
    assert len(rows)==4 and [o.split()[0] for o in rows]==['Training','epoch','0','1'], rows

def test_notebook(tmp_path):
    "One table that grows, and no bar is left, whatever ended the fit"
    nbclient = pytest.importorskip('nbclient')
    from nbformat.v4 import new_code_cell,new_notebook
    stop = 'class Stop(Callback):\n    def after_batch(self):\n        if self.epoch==1 and self.num==2: raise KeyboardInterrupt'
    ends = ['learn.fit(2)', 'try: learn.fit(3, cbs=Stop())\nexcept KeyboardInterrupt: pass']
    nb = new_notebook(cells=[new_code_cell(o) for o in (line, stop, 'learn = learner(5); learn.recorder = learn.cbs[0]', *ends)])
    nbclient.NotebookClient(nb, timeout=120, resources={'metadata': {'path': str(tmp_path)}}).execute()
    for c,n in zip(nb.cells[3:], (2,1)):
        html = [h for o in c.outputs if (h := re.sub(r'<style.*?</style>', '', o.get('data', {}).get('text/html', ''), flags=re.S).strip())]
        assert len(html)==1 and '<progress' not in html[0]
        assert html[0].count('<table')==html[0].count('<img')==1
        assert html[0].count('<tr>')==n+1
