"`untar_data` with a server on this machine: all of an archive or nothing; and `whole` alone"
import io,os,platform,re,signal,subprocess,sys,tarfile,threading,time,zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from fastdownload.core import path_stats
from learner_from_scratch import fetch as mod
from learner_from_scratch.fetch import SafeDownload,URLs,draw_shapes,fastai_cfg
from learner_from_scratch.fetch import untar_data,whole

link,hard = tarfile.SYMTYPE,tarfile.LNKTYPE
good = {'ds/train/a.txt': b'aa', 'ds/val/b.txt': b'bb'}

def tgz(files, mode='w:gz'):
    "A tar file in memory; a value that is no bytes is a dict of `TarInfo` attributes"
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode=mode) as t:
        for name,o in files.items():
            m = tarfile.TarInfo(name)
            attrs = o if isinstance(o, dict) else dict(size=len(o))
            for k,v in attrs.items(): setattr(m, k, v)
            t.addfile(m, io.BytesIO(o) if m.isreg() else None)
    return buf.getvalue()

def zipped(files, compression=zipfile.ZIP_STORED):
    "A zip file in memory"
    buf = io.BytesIO()
    with zipfile.ZipFile(buf, 'w', compression) as z:
        for name,o in files.items(): z.writestr(name, o)
    return buf.getvalue()

class Server(ThreadingHTTPServer):
    "Serves `bodies[path]`; `gets` has the paths asked for"
    daemon_threads = True
    def __init__(self):
        self.bodies,self.gets,self.sent,self.wait,self.size,self.drip = {},[],1.,0,True,0
        self.n_dripped = 0
        super().__init__(('127.0.0.1', 0), Handler)
    def add(self, name, body):
        self.bodies[f'/{name}'] = body
        return f'http://127.0.0.1:{self.server_port}/{name}'

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args): pass
    def do_GET(self):
        srv = self.server
        srv.gets.append(self.path)
        body = srv.bodies.get(self.path)
        if body is None: return self.send_error(404)
        if srv.drip: return self.drip(body)
        self.send_response(200)
        if srv.size: self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:int(len(body)*srv.sent)])
        self.wfile.flush()
        time.sleep(srv.wait)
    def drip(self, body):
        "A byte at a time; with `drip` set to 404, as the page of an error"
        self.send_response(404 if self.server.drip==404 else 200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        try:
            for b in body:
                self.wfile.write(bytes([b]))
                self.wfile.flush()
                self.server.n_dripped += 1
                time.sleep(.05)
        except OSError: pass # nobody listens any more

@pytest.fixture
def srv():
    with Server() as s:
        threading.Thread(target=s.serve_forever, args=(.01,), daemon=True).start()
        yield s
        s.shutdown()

@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "An empty fastai home, in a folder with a space in its name"
    res = tmp_path/'fastai home'
    monkeypatch.setenv('FASTAI_HOME', str(res))
    monkeypatch.setenv('no_proxy', '*')
    return res

def tree(p):
    "The files in `p`, and what is in them"
    fs = [o for o in p.rglob('*') if o.is_file()]
    return {o.relative_to(p).as_posix(): o.read_bytes() for o in fs}
def inside(files): return {k.split('/', 1)[1]: v for k,v in files.items()}
def left(home):
    "All that's in `home`, the locks aside"
    return sorted(o for o in tree(home) if not o.endswith('.lock')) if home.exists() else []

def fails(url, *words, **kwargs):
    "The message of the error, which is one sentence and has all `words`"
    with pytest.raises(OSError) as e: untar_data(url, **kwargs)
    msg = str(e.value)
    assert '\n' not in msg
    for o in words: assert str(o) in msg, msg
    return msg

def child(code, url):
    "A Python process that is ready to run `code`, once a line is sent to it"
    code = f'''
import sys
from learner_from_scratch.fetch import untar_data
print('ready', flush=True)
input()
url = sys.argv[1]
{code}'''
    cmd,pipe = [sys.executable, '-c', code, url],subprocess.PIPE
    p = subprocess.Popen(cmd, text=True, stdin=pipe, stdout=pipe)
    assert p.stdout.readline() == 'ready\n'
    return p

def go(p): p.stdin.write('\n'); p.stdin.flush()

def wait_for(cond, secs=200):
    end = time.time()+secs
    while not cond():
        assert time.time()<end, 'too late'
        time.sleep(.001)

# What works

@pytest.mark.parametrize('name,pack', [
    ('x.tgz', tgz), ('x.tar.gz', tgz), ('x.zip', zipped), ('x.tar', partial(tgz, mode='w')),
    ('x.tar.xz', partial(tgz, mode='w:xz'))])
def test_good(srv, home, name, pack):
    url = srv.add(name, pack(good))
    assert untar_data(url) == home/'data/x'
    assert untar_data(url) == home/'data/x'
    assert tree(home/'data/x') == inside(good)
    assert srv.gets == [f'/{name}']
    assert left(home) == [f'archive/{name}', 'data/x/train/a.txt', 'data/x/val/b.txt']

def test_names(srv, home):
    "The folder is called like the archive, whatever roots the archive has"
    for files,res in [
        ({'root/a':b'1'}, {'a':b'1'}), ({'x/a':b'1'}, {'a':b'1'}),
        ({'./x/a':b'1'}, {'a':b'1'}), ({'a.csv':b'1'}, {'a.csv':b'1'}),
        ({'p/a':b'1', 'q/b':b'2'}, {'p/a':b'1', 'q/b':b'2'}),
        ({'new/new/a':b'1'}, {'new/a':b'1'}), ({'old/a':b'1'}, {'a':b'1'})]:
        p = untar_data(srv.add('x.tgz', tgz(files)), force_download=True)
        assert p == home/'data/x'
        assert tree(p) == res
        assert os.listdir(home/'data') == ['x']

def test_folders(srv, home, tmp_path):
    url = srv.add('x.tgz', tgz(good))
    p = untar_data(url, archive=tmp_path/'arcs', data=tmp_path/'sets')
    assert p == tmp_path/'sets/x' and (tmp_path/'arcs/x.tgz').exists()
    assert not home.exists()
    assert untar_data(url, c_key='model') == home/'models/x'

def test_config(srv, home, tmp_path):
    "The `config.ini` that fastai wrote counts, and the environment is read anew each time"
    home.mkdir()
    cfg = f'[DEFAULT]\ndata = {tmp_path}/elsewhere\n'
    cfg += 'archive = arcs\nstorage = tmp\nmodel = models\n'
    (home/'config.ini').write_text(cfg)
    assert untar_data(srv.add('x.tgz', tgz(good))) == tmp_path/'elsewhere/x'
    assert (home/'arcs/x.tgz').exists()
    os.environ['FASTAI_HOME'] = str(tmp_path/'other')
    assert fastai_cfg().path('data') == tmp_path/'other/data'

def test_found_unpacked(home):
    "What fastai unpacked is taken as it is: no request, nothing written"
    (home/'data/imagenette2-160').mkdir(parents=True)
    assert untar_data(URLs.IMAGENETTE_160) == home/'data/imagenette2-160'
    assert [o.name for o in home.iterdir()] == ['data']

def test_by_hand(srv, home):
    url = srv.add('x.tgz', b'')
    (home/'archive').mkdir(parents=True)
    (home/'archive/x.tgz').write_bytes(tgz(good))
    assert tree(untar_data(url)) == inside(good)
    assert srv.gets == []

def test_file_url(home, tmp_path):
    arch = tmp_path/'my set.zip'
    arch.write_bytes(zipped(good))
    assert tree(untar_data(f'file://{arch}')) == inside(good)

def test_force(srv, home):
    "A new version replaces the old one whole; if it can't be had, the old one stays"
    url = srv.add('x.tgz', tgz({'ds/old':b'1'}))
    p = untar_data(url)
    srv.add('x.tgz', tgz({'ds/new':b'2'}))
    assert tree(untar_data(url)) == {'old': b'1'}
    assert tree(untar_data(url, force_download=True)) == {'new': b'2'}
    srv.bodies.clear()
    fails(url, '404', force_download=True)
    srv.add('x.tgz', tgz({'ds/a':b'3', '../../evil':b'4'}))
    fails(url, 'evil', force_download=True)
    assert tree(p) == {'new': b'2'}

def test_link_inside(srv):
    links = {'ds/b':dict(type=link, linkname='a'), 'ds/c':dict(type=hard, linkname='ds/a')}
    p = untar_data(srv.add('x.tgz', tgz({'ds/a':b'1'} | links)))
    assert tree(p) == dict(a=b'1', b=b'1', c=b'1')

# Names that are no names

@pytest.mark.parametrize('end', [
    '..tgz', '..', '', '.', '.tgz', '.tar.gz', '.tar.tgz', '...zip', '.hidden.zip', '?x.tgz',
    '..?x', 'a/..tgz', 'a/../..', '..\\..\\x.tgz'])
@pytest.mark.parametrize('force', [False,True])
def test_no_name(srv, home, end, force):
    "Refused before anything is touched: `..tgz` would stand for the folder of all data"
    (home/'data/precious').mkdir(parents=True)
    (home/'archive').mkdir()
    for o in 'data/precious/a','data/b','archive/c.tgz','config': (home/o).write_text(o)
    before = tree(home)
    d = SafeDownload(fastai_cfg())
    for url in f'http://127.0.0.1:{srv.server_port}/{end}',end:
        get = partial(untar_data, force_download=force)
        for f in get,d.get,d.download,d.extract,d.rm,d.paths:
            with pytest.raises(ValueError, match='no name for a data set'): f(url)
    assert tree(home)==before and srv.gets==[]

def test_rm(srv, home):
    url = srv.add('x.tgz', tgz(good))
    other = untar_data(srv.add('y.tgz', tgz(good)))
    untar_data(url)
    SafeDownload(fastai_cfg()).rm(url)
    assert left(home) == ['archive/y.tgz', 'data/y/train/a.txt', 'data/y/val/b.txt']
    assert other.exists()

# Downloads that fail

def test_404(srv, home):
    url = srv.add('x.tgz', b'').replace('x.tgz', 'nope.tgz')
    fails(url, url, '404', home/'archive/nope.tgz')
    assert left(home) == []

@pytest.mark.parametrize('url', [
    'http://127.0.0.1:9/x.tgz', 'http://no.such.host.invalid/x.tgz', 'nothing/x.tgz',
    'file:///no/such/x.tgz'])
def test_no_network(home, url):
    fails(url, url, 'by hand', home/'archive/x.tgz')
    assert left(home) == []

def test_cut(srv, home):
    "A connection that ends half-way leaves nothing, and the next call starts afresh"
    body = tgz({'ds/a': os.urandom(300_000)})
    url,srv.sent = srv.add('x.tgz', body),.5
    fails(url, url, f'{len(body)//2} out of {len(body)} bytes')
    assert left(home) == []
    srv.sent = 1
    assert len(tree(untar_data(url))['a']) == 300_000

def test_cut_unknown_size(srv, home):
    "Without a `Content-Length` the cut shows when unpacking"
    url,srv.sent,srv.size = srv.add('x.tgz', tgz({'ds/a': os.urandom(300_000)})),.5,False
    fails(url, home/'archive/x.tgz', 'delete')
    assert left(home) == ['archive/x.tgz']

def test_stalled(srv, home, monkeypatch):
    "A server that falls silent is given up, after a time that is short here"
    monkeypatch.setattr(SafeDownload, 'timeout', .2)
    url,srv.sent,srv.wait = srv.add('x.tgz', tgz({'ds/a': os.urandom(300_000)})),.5,3
    fails(url, url, 'timed out')
    assert left(home) == []

@pytest.mark.parametrize('drip', [200,404])
def test_dripping(srv, home, monkeypatch, drip):
    "A server that is never silent, but sends a byte now and then, is given up too"
    monkeypatch.setattr(SafeDownload, 'timeout', 1)
    url,srv.drip = srv.add('x.tgz', tgz({'ds/a': os.urandom(300_000)})),drip
    msg = fails(url, url)
    # `timed out` is for a machine with so much to do that a byte takes a second
    assert re.search('404' if drip==404 else r'only \d+ bytes|timed out', msg)
    assert srv.n_dripped < 30_000 # of 300,000
    assert left(home) == []

def test_patience():
    "30 seconds of silence, or of less than a kilobyte a second"
    assert (SafeDownload.timeout,SafeDownload.min_rate) == (30,1000)

def test_slow_but_steady(monkeypatch):
    "What comes slowly, but not too slowly, is waited for through many such times"
    class Dripping:
        "Two bytes a second, by a clock of its own"
        def __init__(self): self.secs,self.left = 0,50
        def monotonic(self): return self.secs
        def read1(self, n):
            self.secs += .5
            self.left -= 1
            return b'x' if self.left>=0 else b''
    def arrived(min_rate):
        web = Dripping()
        monkeypatch.setattr(mod, 'time', web)
        return b''.join(mod._blocks(web, 5, min_rate))
    assert arrived(2)==b'x'*50
    with pytest.raises(TimeoutError, match='only 10 bytes in 5 seconds'): arrived(2.1)

def test_checks(srv, home, tmp_path, monkeypatch):
    body = tgz(good)
    (tmp_path/'ok').write_bytes(body)
    size,md5 = path_stats(tmp_path/'ok')
    url = srv.add('x.tgz', body)
    for bad in [(size+1,md5), (size,'0'*32)]:
        monkeypatch.setitem(URLs.checks, url, bad)
        fails(url, url, size, md5, *bad)
        assert left(home) == []
    (home/'archive/x.tgz').write_bytes(body)
    fails(url, home/'archive/x.tgz', size, md5, *bad)
    assert left(home) == ['archive/x.tgz']
    monkeypatch.setitem(URLs.checks, url, (size,md5))
    assert tree(untar_data(url)) == inside(good)

def test_imagenette_is_checked(home):
    "A wrong archive under the name of Imagenette is not unpacked"
    (home/'archive').mkdir(parents=True)
    (home/'archive/imagenette2-160.tgz').write_bytes(tgz(good))
    fails(URLs.IMAGENETTE_160, home/'archive/imagenette2-160.tgz', 99003388)
    assert left(home) == ['archive/imagenette2-160.tgz']

# Archives that lie

def long_links():
    "A chain of links so long that the system gives up on where it leads: CVE-2025-4517"
    res,path = {},'ds'
    for c in 'abcdefghijklmnop':
        res[f'{path}/{"d"*240}'] = dict(type=tarfile.DIRTYPE)
        res[f'{path}/{c}'] = dict(type=link, linkname='d'*240)
        path += f'/{c}'
    res[f'{path}/{"l"*250}'] = dict(type=link, linkname='../'*16)
    to = f'{path[3:]}/{"l"*250}/../../../../evil'
    return res | {'ds/evil':dict(type=link, linkname=to), 'ds/evil/x':b'2'}

bad = {
    'parent':    {'ds/../../evil':b'2'},
    'absolute':  {'{tmp}/evil':b'2'},
    'link':      {'ds/evil':dict(type=link, linkname='../../..')},
    'abs link':  {'ds/evil':dict(type=link, linkname='/etc')},
    'hard link': {'ds/evil':dict(type=hard, linkname='../../../x')},
    'via link':  {'ds/l':dict(type=link, linkname='.'), 'ds/l/../../evil':b'2'},
    'link to root': {'ds/evil':dict(type=link, linkname='..')}, # soon the folder of all data
    'link later':   {'ds/evil':dict(type=link, linkname='b/c/a/../../d'),
                     'ds/b/c/a':dict(type=link, linkname='../..')},
    'root is link': {'evil':dict(type=link, linkname='ds')},
    'on a link':    {'ds/evil':dict(type=link, linkname='a'), 'ds/evil ':b'2',
                     'ds/evil/x':b'2'},
    'hard to link': {'ds/l':dict(type=link, linkname='a'),
                     'ds/evil':dict(type=hard, linkname='ds/l')},
    'long':      long_links(),
    'device':    {'ds/evil':dict(type=tarfile.CHRTYPE, devmajor=1, devminor=3)},
    'block':     {'ds/evil':dict(type=tarfile.BLKTYPE, devmajor=7, devminor=0)},
    'fifo':      {'ds/evil':dict(type=tarfile.FIFOTYPE)},
    'zip parent':   {'../evil':b'2'},
    'zip absolute': {'{tmp}/evil':b'2'},
    'zip inner':    {'ds/b/../evil':b'2'},
}

@pytest.mark.parametrize('name', bad)
def test_bad_members(srv, home, tmp_path, name):
    "Refused with the member's name, and nothing is extracted, the good members included"
    pack = zipped if 'zip' in name else tgz
    members = {k.format(tmp=tmp_path): v for k,v in bad[name].items()}
    url = srv.add('x.tgz', pack({'ds/a':b'1'} | members))
    fails(url, home/'archive/x.tgz', 'through a link' if name=='long' else 'evil')
    assert left(home) == ['archive/x.tgz']
    assert list((home/'data').iterdir()) == []
    assert not [*tmp_path.rglob('evil')]

noise = {f'ds/{i}': os.urandom(1000) for i in range(9)}
tar = tgz(noise, 'w')
def flipped(b, i): return b[:i] + bytes([b[i]^1]) + b[i+1:]

@pytest.mark.parametrize('body', [
    b'', b'<html>Please log in</html>', tgz(good)[:60], zipped(good)[:60],
    zipped(good).replace(b'aa', b'ab', 1), tar[:3*1536], tar[:3*1536+99],
    flipped(tar, 3*1536+150), flipped(tgz(noise), 5000)],
    ids=['empty', 'html', 'cut tgz', 'cut zip', 'wrong crc', 'cut tar', 'cut header',
         'bad header', 'flipped bit'])
def test_no_archive(srv, home, body):
    fails(srv.add('x.tgz', body), home/'archive/x.tgz', 'delete')
    assert left(home) == ['archive/x.tgz']

# Accidents

big = {f'ds/{i}': b'x'*100 for i in range(2000)}

def test_killed_extracting(srv, home):
    url = srv.add('x.tgz', tgz(big))
    p = child('untar_data(url)', url)
    go(p)
    wait_for(lambda: any(o.is_file() for o in (home/'data').rglob('*')))
    p.kill()
    assert p.wait() == -9
    assert not (home/'data/x').exists()
    assert tree(untar_data(url)) == inside(big)
    assert os.listdir(home/'data') == ['x']
    assert srv.gets == ['/x.tgz']

def test_killed_downloading(srv, home):
    url,srv.sent,srv.wait = srv.add('x.tgz', tgz({'ds/a': os.urandom(300_000)})),.5,2
    p = child('untar_data(url)', url)
    go(p)
    def begun(): return any(o.stat().st_size for o in (home/'archive').glob('.*.part'))
    wait_for(begun)
    p.kill()
    p.wait()
    srv.sent,srv.wait = 1,0
    assert len(tree(untar_data(url))['a']) == 300_000
    assert left(home) == ['archive/x.tgz', 'data/x/a']

def test_two_at_once(srv, home):
    "One request, and both processes get the data"
    url,srv.wait = srv.add('x.tgz', tgz(good)),.5
    ps = [child('print(len([*untar_data(url).rglob("*.txt")]))', url) for _ in range(2)]
    for p in ps: go(p)
    assert [p.communicate(timeout=200)[0] for p in ps] == ['2\n']*2
    assert srv.gets == ['/x.tgz']
    assert tree(home/'data/x') == inside(good)

def test_threads_at_once(srv, home):
    url,res = srv.add('x.tgz', tgz(good)),[]
    def get(): res.append(tree(untar_data(url)))
    ts = [threading.Thread(target=get) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join(200)
    assert res == [inside(good)]*8
    assert srv.gets == ['/x.tgz']

def test_two_archives_of_one_name(srv, home):
    "Both are for the folder `x`: who comes second finds it whole"
    urls = [srv.add(o, pack(big)) for o,pack in (('x.tgz',tgz),('x.zip',zipped))]
    ps = [child('print(len([*untar_data(url).iterdir()]))', url) for url in urls]
    for p in ps: go(p)
    assert [p.communicate(timeout=200)[0] for p in ps] == ['2000\n']*2
    assert tree(home/'data/x') == inside(big)

@pytest.fixture
def full():
    "From here on no file may grow over 100 kB, as on a disk that is full"
    resource = pytest.importorskip('resource')
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)

def test_full_disk_downloading(srv, home, full):
    url = srv.add('x.tgz', tgz({'ds/a': os.urandom(300_000)}))
    fails(url, url, 'Errno')
    assert left(home) == []

deflated = partial(zipped, compression=zipfile.ZIP_DEFLATED)
@pytest.mark.parametrize('pack', [tgz,deflated], ids=['tgz','zip'])
def test_full_disk_extracting(srv, home, full, pack):
    url = srv.add('x.tgz', pack({'ds/a':b'1', 'ds/b':bytes(300_000)}))
    fails(url, home/'archive/x.tgz', 'Errno')
    assert left(home) == ['archive/x.tgz']
    assert list((home/'data').iterdir()) == []

@pytest.mark.parametrize('pack', [tgz,deflated], ids=['tgz','zip'])
@pytest.mark.parametrize('files', [{'ds/b':bytes(300_000)}, big], ids=['large','many'])
def test_bombs(srv, home, pack, files, monkeypatch):
    "The bytes are counted while they are unpacked; some of the free disk is left to others"
    def small(path): return SimpleNamespace(free=200_000)
    monkeypatch.setattr(mod.shutil, 'disk_usage', small)
    fails(srv.add('x.tgz', pack(files)), home/'archive/x.tgz', 'nine tenths of the free disk')
    assert left(home) == ['archive/x.tgz']

def test_read_only_home(srv, home):
    "A home that can't be written to does, as long as the data is there"
    (home/'data/x').mkdir(parents=True)
    home.chmod(0o555)
    try: assert untar_data(srv.add('x.tgz', b'')) == home/'data/x'
    finally: home.chmod(0o755)
    assert os.listdir(home) == ['data']

# The progress bar

def test_bar(srv, capsys, monkeypatch):
    body = tgz({'ds/a': os.urandom(300_000)})
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    for srv.size in [True,False]:
        untar_data(srv.add('x.tgz', body), force_download=True)
        out = capsys.readouterr().out
        assert re.search(rf'[\[ ]{len(body)}/' if srv.size else r'\[\d+/\?', out), out
        assert re.search(r'\d MB/s\]', out)
    assert '\n' not in out

def test_bar_cleared(srv, capsys, monkeypatch):
    "A finished bar leaves an empty line, whether its end was known or not"
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    for srv.size in [True,False]:
        untar_data(srv.add('x.tgz', tgz(good)), force_download=True)
        assert capsys.readouterr().out.split('\r')[-2].strip() == ''

def test_no_terminal(srv, capsys):
    untar_data(srv.add('x.tgz', tgz(good)))
    assert capsys.readouterr() == ('','')

# `whole` by itself

def names(p): return sorted(os.listdir(p))
def write(p, text, folder):
    "The file `p`, or a file in the folder `p`"
    if folder: p.mkdir()
    (p/'a' if folder else p).write_text(text)
def read(p): return (p/'a' if p.is_dir() else p).read_text()
kinds = pytest.mark.parametrize('folder', [False,True], ids=['file','folder'])

@kinds
@pytest.mark.parametrize('old', [False,True], ids=['new','again'])
def test_whole(tmp_path, folder, old):
    path = tmp_path/'x'
    if old: write(path, 'old', folder)
    with whole(path) as tmp:
        assert tmp.parent==tmp_path and not tmp.exists()
        assert tmp.name[0]=='.' and tmp.suffix=='.part'
        write(tmp, 'new', folder)
        assert path.exists()==old and (not old or read(path)=='old')
    assert read(path)=='new' and names(tmp_path)==['x']

@kinds
@pytest.mark.parametrize('old', [False,True], ids=['new','again'])
@pytest.mark.parametrize('error', [ValueError,KeyboardInterrupt,SystemExit,GeneratorExit])
def test_whole_after_an_error(tmp_path, folder, old, error):
    "Nothing is left, and what was there before stays"
    path = tmp_path/'x'
    if old: write(path, 'old', folder)
    with pytest.raises(error):
        with whole(path) as tmp:
            write(tmp, 'new', folder)
            raise error
    assert names(tmp_path)==['x']*old and (not old or read(path)=='old')

@pytest.mark.parametrize('n', [1,2])
@pytest.mark.parametrize('done', [False,True], ids=['before','after'])
def test_whole_interrupted_while_renaming(tmp_path, monkeypatch, n, done):
    "After Ctrl-C before or after each of the two renames, the old folder or the new is whole"
    path,calls,rename = tmp_path/'x',[],type(tmp_path).rename
    write(path, 'old', True)
    def interrupted(self, to):
        calls.append(to)
        if len(calls)==n and not done: raise KeyboardInterrupt
        res = rename(self, to)
        if len(calls)==n: raise KeyboardInterrupt
        return res
    monkeypatch.setattr(type(tmp_path), 'rename', interrupted)
    with pytest.raises(KeyboardInterrupt):
        with whole(path) as tmp: write(tmp, 'new', True)
    assert names(tmp_path)==['x'] and read(path)==('new' if (n,done)==(2,True) else 'old')

def test_whole_without_a_result(tmp_path):
    with pytest.raises(FileNotFoundError, match='x'):
        with whole(tmp_path/'x'): pass
    with pytest.raises(FileNotFoundError, match='nowhere'):
        with whole(tmp_path/'nowhere/x'): pass
    assert names(tmp_path)==[]

def test_whole_at_once(tmp_path):
    "Threads and nested blocks each have a name of their own, and clear away nobody else's"
    path = tmp_path/'x'
    with whole(path) as a, whole(path) as b, whole(path) as c:
        assert len({a,b,c})==3
        for o in a,b,c: o.write_text(o.name)
    assert read(path)==a.name and names(tmp_path)==['x']

def test_whole_of_many_processes(tmp_path):
    "The result is that of one of them"
    code = """
import sys
from learner_from_scratch.fetch import whole
for i in range(30):
    with whole(sys.argv[1]) as tmp: tmp.write_text(sys.argv[2]*100_000)"""
    ps = [subprocess.Popen([sys.executable, '-c', code, tmp_path/'x', o]) for o in '12']
    assert [p.wait(200) for p in ps]==[0,0]
    assert len(set(read(tmp_path/'x')))==1 and names(tmp_path)==['x']

killed = """
import os,signal,sys
from pathlib import Path
from learner_from_scratch.fetch import whole
path,folder = Path(sys.argv[1]),sys.argv[2]=='True'
if sys.argv[3]=='True':
    rename,n = type(path).rename,[0]
    def kill_at_second(self, to):
        n[0] += 1
        if n[0]==2: os.kill(os.getpid(), signal.SIGKILL)
        return rename(self, to)
    type(path).rename = kill_at_second
with whole(path) as tmp:
    if folder: tmp.mkdir()
    (tmp/'a' if folder else tmp).write_text('half')
    if sys.argv[3]!='True': os.kill(os.getpid(), signal.SIGKILL)"""
posix = pytest.mark.skipif(os.name!='posix', reason='needs signals')

@posix
@kinds
@pytest.mark.parametrize('name', ['x', 'a [b]*.tgz', '.hidden'])
def test_whole_after_a_kill(tmp_path, folder, name):
    "What a killed process left goes with the next call, and nothing else does"
    path = tmp_path/name
    write(path, 'old', folder)
    host = platform.node()
    others = [f'.{name}.part', f'.{name}.elsewhere-999999999-0.part',
              f'.{name}2.{host}-999999999-0.part', f'.{name}.{host}-999999999-0.parts',
              f'.{name}.{host}-{os.getppid()}-0.part']
    for o in others: (tmp_path/o).write_text('')
    p = subprocess.run([sys.executable, '-c', killed, path, str(folder), 'False'])
    assert p.returncode==-9 and read(path)=='old' and len(names(tmp_path))==len(others)+2
    with pytest.raises(ValueError):
        with whole(path): raise ValueError # even if it comes to nothing itself
    assert names(tmp_path)==sorted([name,*others]) and read(path)=='old'

@posix
def test_whole_after_a_kill_between_two_renames(tmp_path):
    "The old folder had stepped aside and the new one wasn't there: the old one goes back"
    path = tmp_path/'x'
    write(path, 'old', True)
    assert subprocess.run([sys.executable, '-c', killed, path, 'True', 'True']).returncode==-9
    assert not path.exists() and len(names(tmp_path))==2
    with pytest.raises(ValueError):
        with whole(path): raise ValueError
    assert names(tmp_path)==['x'] and read(path)=='old'

def test_whole_of_an_earlier_process_with_our_number(tmp_path):
    "As in a container, where the program has the same number each time"
    (tmp_path/f'.x.{platform.node()}-{os.getpid()}-0.part').write_text('')
    (tmp_path/f'.x.{platform.node()}-{os.getpid()}-999999.part').mkdir()
    with whole(tmp_path/'x') as tmp: tmp.write_text('new')
    assert names(tmp_path)==['x']

@posix
@kinds
def test_whole_is_on_the_disk(tmp_path, monkeypatch, folder):
    "A file is synced before it gets its name, and then its folder is"
    path,seen = tmp_path/'x',[]
    def fsync(f):
        name = os.path.basename(os.readlink(f'/proc/self/fd/{f}'))
        seen.append((name, path.exists()))
    if not os.path.exists('/proc/self/fd'): pytest.skip('asks /proc')
    monkeypatch.setattr(os, 'fsync', fsync)
    with whole(path) as tmp: write(tmp, 'new', folder)
    assert seen==[(tmp.name,False)]*(not folder)+[(tmp_path.name,True)]

def test_whole_in_place_of_a_link(tmp_path):
    "The link is replaced, and what it led to stays"
    for folder in False,True:
        there,path = tmp_path/f'there{folder}',tmp_path/f'x{folder}'
        write(there, 'old', folder)
        path.symlink_to(there.name, target_is_directory=folder)
        with whole(path) as tmp: write(tmp, 'new', folder)
        assert not path.is_symlink() and read(path)=='new' and read(there)=='old'
    assert names(tmp_path)==['thereFalse','thereTrue','xFalse','xTrue']

@posix
def test_drawing_is_interrupted(tmp_path):
    "Ctrl-C while shapes are drawn leaves no folder, and the next call draws it whole"
    code = "import sys; from learner_from_scratch.fetch import *; draw_shapes(sys.argv[1])"
    cmd = [sys.executable, '-c', code, tmp_path/'shapes']
    p = subprocess.Popen(cmd, stderr=subprocess.DEVNULL)
    wait_for(lambda: len([*tmp_path.rglob('*.JPEG')])>20)
    p.send_signal(signal.SIGINT)
    p.wait(200)
    assert names(tmp_path) in ([],['shapes.lock'])
    assert len([*draw_shapes(tmp_path/'shapes', 20, 10).rglob('*.JPEG')])==30
    assert names(tmp_path) in (['shapes'],['shapes','shapes.lock'])

# What an import does

def test_import_changes_nothing():
    "fastcore, Pillow and what runs in forked children are the same after it as before"
    code = """
import os
import torch,fastcore.all,fastcore.net,fastdownload,filelock,fastprogress,matplotlib.pyplot
import PIL.Image,PIL.ImageDraw,PIL.ImageOps
im,at_fork = PIL.Image,[]
if hasattr(os, 'register_at_fork'): os.register_at_fork = lambda **kw: at_fork.append(kw)
def state():
    registries = [set(im.OPEN), list(im.ID), dict(im.EXTENSION), im._initialized]
    return set(vars(fastcore.net)), set(vars(PIL)), registries
before = state()
from learner_from_scratch import fetch,data
assert state()==before and not at_fork
assert data.untar_data is fetch.untar_data"""
    subprocess.run([sys.executable, '-c', code], check=True)
