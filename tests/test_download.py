"`untar_data` against a server on this machine: every archive arrives whole, or not at all"
import io,os,re,subprocess,sys,tarfile,threading,time,zipfile
from functools import partial
from http.server import BaseHTTPRequestHandler,ThreadingHTTPServer

import pytest
from fastcore.net import urlsave
from fastdownload.core import path_stats
from learner_from_scratch import data as mod
from learner_from_scratch.data import URLs,fastai_cfg,untar_data

link,hard = tarfile.SYMTYPE,tarfile.LNKTYPE
good = {'ds/train/a.txt': b'aa', 'ds/val/b.txt': b'bb'}

def tgz(files, mode='w:gz'):
    "A tar file in memory; a value that is no bytes is a dict of `TarInfo` attributes"
    buf = io.BytesIO()
    with tarfile.open(fileobj=buf, mode=mode) as t:
        for name,o in files.items():
            m = tarfile.TarInfo(name)
            for k,v in (o if isinstance(o, dict) else dict(size=len(o))).items(): setattr(m, k, v)
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
        self.bodies,self.gets,self.sent,self.wait,self.size = {},[],1.,0,True
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
        self.send_response(200)
        if srv.size: self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body[:int(len(body)*srv.sent)])
        self.wfile.flush()
        time.sleep(srv.wait)

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

def tree(p): return {o.relative_to(p).as_posix(): o.read_bytes() for o in p.rglob('*') if o.is_file()}
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
from learner_from_scratch.data import untar_data
print('ready', flush=True)
input()
url = sys.argv[1]
{code}'''
    p = subprocess.Popen([sys.executable, '-c', code, url], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout.readline() == 'ready\n'
    return p

def go(p): p.stdin.write('\n'); p.stdin.flush()

def wait_for(cond, secs=20):
    end = time.time()+secs
    while not cond():
        assert time.time()<end, 'too late'
        time.sleep(.001)

# What works

@pytest.mark.parametrize('name,pack', [('x.tgz', tgz), ('x.tar.gz', tgz), ('x.zip', zipped), ('x.tar', partial(tgz, mode='w')),
                                       ('x.tar.xz', partial(tgz, mode='w:xz'))])
def test_good(srv, home, name, pack):
    url = srv.add(name, pack(good))
    assert untar_data(url) == home/'data/x'
    assert untar_data(url) == home/'data/x'
    assert tree(home/'data/x') == inside(good)
    assert srv.gets == [f'/{name}']
    assert left(home) == [f'archive/{name}', 'data/x/train/a.txt', 'data/x/val/b.txt']

def test_names(srv, home):
    "Whatever the archive calls its root, and however many it has, the data is in the folder called like the archive"
    for files,res in [({'root/a':b'1'}, {'a':b'1'}), ({'x/a':b'1'}, {'a':b'1'}), ({'./x/a':b'1'}, {'a':b'1'}),
                      ({'p/a':b'1', 'q/b':b'2'}, {'p/a':b'1', 'q/b':b'2'}), ({'a.csv':b'1'}, {'a.csv':b'1'}), ({'new/new/a':b'1'}, {'new/a':b'1'}), ({'old/a':b'1'}, {'a':b'1'})]:
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
    (home/'config.ini').write_text(f'[DEFAULT]\ndata = {tmp_path}/elsewhere\narchive = arcs\nstorage = tmp\nmodel = models\n')
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
    p = untar_data(srv.add('x.tgz', tgz({'ds/a':b'1', 'ds/b':dict(type=link, linkname='a'), 'ds/c':dict(type=hard, linkname='ds/a')})))
    assert tree(p) == dict(a=b'1', b=b'1', c=b'1')

# Downloads that fail

def test_404(srv, home):
    url = srv.add('x.tgz', b'').replace('x.tgz', 'nope.tgz')
    fails(url, url, '404', home/'archive/nope.tgz')
    assert left(home) == []

@pytest.mark.parametrize('url', ['http://127.0.0.1:9/x.tgz', 'http://no.such.host.invalid/x.tgz', 'nothing/x.tgz', 'file:///no/such/x.tgz'])
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
    def quick(*args, timeout): return urlsave(*args, timeout=timeout and .2)
    monkeypatch.setattr(mod, 'urlsave', quick)
    url,srv.sent,srv.wait = srv.add('x.tgz', tgz({'ds/a': os.urandom(300_000)})),.5,3
    fails(url, url, 'timed out')
    assert left(home) == []

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
    "A chain of folders and links so long that the system gives up on asking where it leads: CVE-2025-4517"
    res,path = {},'ds'
    for c in 'abcdefghijklmnop':
        res[f'{path}/{"d"*240}'] = dict(type=tarfile.DIRTYPE)
        res[f'{path}/{c}'] = dict(type=link, linkname='d'*240)
        path += f'/{c}'
    res[f'{path}/{"l"*250}'] = dict(type=link, linkname='../'*16)
    return res | {'ds/evil':dict(type=link, linkname=f'{path[3:]}/{"l"*250}/../../../../evil'), 'ds/evil/x':b'2'}

bad = {
    'parent':    {'ds/../../evil':b'2'},
    'absolute':  {'{tmp}/evil':b'2'},
    'link':      {'ds/evil':dict(type=link, linkname='../../..')},
    'abs link':  {'ds/evil':dict(type=link, linkname='/etc')},
    'hard link': {'ds/evil':dict(type=hard, linkname='../../../x')},
    'via link':  {'ds/l':dict(type=link, linkname='.'), 'ds/l/../../evil':b'2'},
    'link to root': {'ds/evil':dict(type=link, linkname='..')}, # which will be the folder of all data
    'link later':   {'ds/evil':dict(type=link, linkname='b/c/a/../../d'), 'ds/b/c/a':dict(type=link, linkname='../..')},
    'root is link': {'evil':dict(type=link, linkname='ds')},
    'on a link':    {'ds/evil':dict(type=link, linkname='a'), 'ds/evil ':b'2', 'ds/evil/x':b'2'},
    'hard to link': {'ds/l':dict(type=link, linkname='a'), 'ds/evil':dict(type=hard, linkname='ds/l')},
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
    url = srv.add('x.tgz', pack({'ds/a':b'1'} | {k.format(tmp=tmp_path): v for k,v in bad[name].items()}))
    fails(url, home/'archive/x.tgz', '' if name=='long' else 'evil')
    assert left(home) == ['archive/x.tgz']
    assert list((home/'data').iterdir()) == []
    assert not [*tmp_path.rglob('evil')]

noise = {f'ds/{i}': os.urandom(1000) for i in range(9)}
tar = tgz(noise, 'w')
def flipped(b, i): return b[:i] + bytes([b[i]^1]) + b[i+1:]

@pytest.mark.parametrize('body', [b'', b'<html>Please log in</html>', tgz(good)[:60], zipped(good)[:60], zipped(good).replace(b'aa', b'ab', 1),
                                  tar[:3*1536], tar[:3*1536+99], flipped(tar, 3*1536+150), flipped(tgz(noise), 5000)],
                         ids=['empty', 'html', 'cut tgz', 'cut zip', 'wrong crc', 'cut tar', 'cut header', 'bad header', 'flipped bit'])
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
    wait_for(lambda: any(o.suffix=='.part' and o.stat().st_size for o in (home/'archive').glob('*')))
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
    assert [p.communicate(timeout=60)[0] for p in ps] == ['2\n']*2
    assert srv.gets == ['/x.tgz']
    assert tree(home/'data/x') == inside(good)

def test_threads_at_once(srv, home):
    url,res = srv.add('x.tgz', tgz(good)),[]
    ts = [threading.Thread(target=lambda: res.append(tree(untar_data(url)))) for _ in range(8)]
    for t in ts: t.start()
    for t in ts: t.join(60)
    assert res == [inside(good)]*8
    assert srv.gets == ['/x.tgz']

def test_two_archives_of_one_name(srv, home):
    "Both are for the folder `x`: who comes second finds it whole"
    urls = [srv.add(o, pack(big)) for o,pack in (('x.tgz',tgz),('x.zip',zipped))]
    ps = [child('print(len([*untar_data(url).iterdir()]))', url) for url in urls]
    for p in ps: go(p)
    assert [p.communicate(timeout=60)[0] for p in ps] == ['2000\n']*2
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

@pytest.mark.parametrize('pack', [tgz, partial(zipped, compression=zipfile.ZIP_DEFLATED)], ids=['tgz','zip'])
def test_full_disk_extracting(srv, home, full, pack):
    url = srv.add('x.tgz', pack({'ds/a':b'1', 'ds/b':bytes(300_000)}))
    fails(url, home/'archive/x.tgz', 'Errno')
    assert left(home) == ['archive/x.tgz']
    assert list((home/'data').iterdir()) == []

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
    "A finished bar leaves an empty line"
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    untar_data(srv.add('x.tgz', tgz(good)))
    assert capsys.readouterr().out.split('\r')[-2].strip() == ''

def test_no_terminal(srv, capsys):
    untar_data(srv.add('x.tgz', tgz(good)))
    assert capsys.readouterr() == ('','')
