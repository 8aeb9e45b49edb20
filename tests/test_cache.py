"Images decoded faster are the same; images decoded once are right, whole and bounded"
import ctypes,errno,mmap,os,pickle,platform,random,shutil,signal,subprocess,sys,time
import warnings
from functools import partial
from threading import Event,Thread,Timer
from zlib import crc32

import numpy as np
import pytest
import test_images
import test_loader
import torch
from PIL import ExifTags,Image
from fastcore.all import NS
from filelock import FileLock
from learner_from_scratch import cache
from learner_from_scratch.cache import FastDataset,cache_key,decode_once,empty_cache,read_fast
from learner_from_scratch.cache import reuse_memory
from learner_from_scratch.data import DataLoader,Dataset,get_image_files,read_image
from learner_from_scratch.fetch import book_data,draw_shapes
from learner_from_scratch.inference import read_rgb
from learner_from_scratch.labels import Images
from test_images import *
from test_loader import linux,test_errors_leave_nothing

resource = pytest.importorskip('resource') # of Unix

posix = pytest.mark.skipif(os.name!='posix', reason='needs fork and signals')
fast = pytest.mark.skipif(cache.simplejpeg is None, reason='needs simplejpeg')

# --- the odd images, and errors of the loader, on the other path ---
def fast_image(fn, size): return Image.fromarray(read_fast(fn, size))

@pytest.fixture(autouse=True)
def by_the_other_path(monkeypatch):
    monkeypatch.setattr(test_images, 'read_image', fast_image)
    monkeypatch.setattr(test_loader, 'Dataset', FastDataset)

@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return draw_shapes(tmp_path_factory.mktemp('data')/'shapes', 60, 10)

@pytest.fixture
def fns(shapes, tmp_path):
    shutil.copytree(shapes/'train', tmp_path/'train') # each test may change its own
    return get_image_files(tmp_path/'train')

# --- decoding ---
def off(fn, size):
    "The largest difference of a pixel from the plain decode"
    return np.abs(read_fast(fn, size).astype(int)-np.array(read_image(fn, size))).max()

def result(read, fn):
    "All pixels that `read` makes of `fn`, or what it says against it"
    try: return np.asarray(read(fn, 32)).tolist()
    except OSError as e: return str(e)

@fast
@pytest.mark.parametrize('size', [1,8,31,64,200])
def test_as_read_image(size, shapes, tmp_path):
    fns = get_image_files(draw_shapes(tmp_path/'large', 10, 0, size=160))
    fns += get_image_files(shapes)[:10]+get_image_files(book_data())[::500]
    assert max(off(fn, size) for fn in fns)<=2

@fast
@pytest.mark.parametrize('kw', [dict(subsampling=o) for o in (0,1,2)]
                         +[dict(progressive=True), dict(quality=30), dict(optimize=True)])
def test_kinds_of_jpeg(kw, tmp_path):
    "These are not left to Pillow, and any sides will do"
    rng = np.random.default_rng(0)
    for h,w in (1,1),(7,300),(300,7),(161,213),(640,480):
        small = Image.fromarray(rng.integers(0, 256, (9,9,3), dtype='uint8'))
        small.resize((w,h)).save(tmp_path/'a.jpg', **kw)
        for size in 8,64:
            assert cache._quick(tmp_path/'a.jpg', size) is not None
            assert off(tmp_path/'a.jpg', size)<=2

def noted(**notes):
    "An Exif with `notes`"
    exif = Image.Exif()
    for k,v in notes.items(): exif[ExifTags.Base[k]] = v
    return exif

@fast
@pytest.mark.parametrize('notes', [dict(Model='a'), dict(Orientation=1), dict(Orientation=6)])
def test_exif(notes, tmp_path):
    "Only an image that is to be turned is left to Pillow; all come out the same"
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90,60,3), dtype='uint8'))
    im.save(tmp_path/'a.jpg', exif=noted(**notes))
    assert (cache._quick(tmp_path/'a.jpg', 32) is None)==(notes.get('Orientation')==6)
    assert off(tmp_path/'a.jpg', 32)<=2

@fast
def test_broken_exif(tmp_path):
    "As Pillow takes it, whatever it says"
    rng = np.random.default_rng(0)
    im = Image.fromarray(rng.integers(0, 256, (90,60,3), dtype='uint8'))
    im.save(tmp_path/'a.jpg', exif=noted(Model='a', Orientation=6))
    data = (tmp_path/'a.jpg').read_bytes()
    start = data.index(b'Exif')
    for _ in range(200):
        bad = bytearray(data)
        bad[start+rng.integers(60)] = rng.integers(256)
        (tmp_path/'a.jpg').write_bytes(bad)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            said = [result(o, tmp_path/'a.jpg') for o in (read_fast,read_image)]
            same = said[0]==said[1]
            assert same or off(tmp_path/'a.jpg', 32)<=2

@pytest.mark.parametrize('kw', [{},dict(dpi=(72,72))])
def test_broken_head_of_exif(kw, tmp_path):
    "A note that makes no sense is no reason to lose a photo"
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90,60,3), dtype='uint8'))
    im.save(tmp_path/'a.jpg', exif=noted(Orientation=6), **kw)
    data = (tmp_path/'a.jpg').read_bytes()
    start = data.index(b'Exif') + 6
    for bad in b'nope',b'II*':
        (tmp_path/'a.jpg').write_bytes(data[:start]+bad+data[start+len(bad):])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            for read in read_fast,read_image: assert np.array(read(tmp_path/'a.jpg', 32)).std()>10
            assert read_rgb(tmp_path/'a.jpg').size==(60,90) # as it is stored

odd = dict(grey=('L',{}), cmyk=('CMYK',{}), rgb=('RGB',dict(keep_rgb=True)),
           turned=('RGB',dict(exif=noted(Orientation=6))))

@pytest.mark.parametrize('name', odd)
def test_left_to_pillow(name, tmp_path):
    mode,kw = odd[name]
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90,60,3), dtype='uint8'))
    im.convert(mode).save(tmp_path/'a.jpg', **kw)
    assert cache._quick(tmp_path/'a.jpg', 32) is None
    assert off(tmp_path/'a.jpg', 32)==0

def test_broken_jpeg(fns, tmp_path):
    "Refused by Pillow in its words, or taken by it"
    data = fns[0].read_bytes()
    for bad in b'',data[:20],data[:len(data)//2],b'\xff\xd8\xff'+b'a'*50:
        (tmp_path/'bad.jpg').write_bytes(bad)
        assert result(read_fast, tmp_path/'bad.jpg')==result(read_image, tmp_path/'bad.jpg')
    (tmp_path/'bad.jpg').write_bytes(data+b'x'*9)
    assert off(tmp_path/'bad.jpg', 32)<=2

def test_without_simplejpeg(fns, monkeypatch):
    monkeypatch.setattr(cache, 'simplejpeg', None)
    assert all(off(fn, 48)==0 for fn in fns[:5])

@pytest.mark.parametrize('n_workers', [0,1,3])
def test_batches(fns, n_workers):
    a,b = [DataLoader(o(fns), bs=16, n_workers=n_workers) for o in (FastDataset,Dataset)]
    for (x,y),(xb,yb) in zip(a, b, strict=True):
        assert (x-xb).abs().max()<=2.1/255 and torch.equal(y, yb)

def test_together(fns, tmp_path):
    "Equal to one by one, whatever is among them; and the first that can't be read is named"
    grey,bad = tmp_path/'grey.jpg',tmp_path/'bad.jpg'
    Image.new('L', (90,60), 128).save(grey)
    bad.write_text('no image')
    some = [*fns[:20],grey,*fns[20:],fns[0]]
    for fn,im in zip(some, cache.read_together(some, 48), strict=True):
        assert np.array_equal(im, read_fast(fn, 48))
    with pytest.raises(OSError, match='bad.jpg'): cache.read_together([*some,bad], 48)
    assert cache.read_together([], 48)==[]

@pytest.mark.parametrize('room', [0,7,999])
def test_all_pixels(room, fns):
    "Those of `pixels`, kept as far as there is room, with indices twice and from the end"
    plain,ds = FastDataset(fns),FastDataset(fns, cache=room*64*64*3)
    idxs = [*range(20),3,-1]
    for _ in range(2):
        assert ds.all_pixels(idxs)==[plain.pixels(i) for i in idxs]
        assert len(ds.decoded)==min(room, 21)
    ds.size = 32
    assert ds.all_pixels([1,-1])==[FastDataset(fns, size=32).pixels(i) for i in (1,-1)]

def test_own_pixels(fns):
    "A subclass with `pixels` or `read` of its own gets its own in a batch, too"
    class Black(FastDataset):
        def pixels(self, i): return bytes(64*64*3)
    class White(FastDataset):
        read = staticmethod(lambda fn, size: np.full((size,size,3), 255, 'uint8'))
    for kind,want in (Black,0),(White,1):
        for xb,_ in DataLoader(kind(fns), bs=16): assert (xb==want).all()

# --- the file of decoded images ---
def all_right(ds, fns):
    "Are all images of `ds` those of `fns`?"
    plain = FastDataset(fns, size=ds.size)
    return all(ds.pixels(i)==plain.pixels(i) for i in range(len(fns)))

def run(fns, folder, **kw):
    "A run of its own: right, and how many images it decoded"
    n = []
    def quick(*args):
        n.append(1)
        return before(*args)
    before,cache._quick = cache._quick,quick
    try:
        ds = decode_once(FastDataset(fns, **kw), folder)
        [ds.pixels(i) for i in range(len(ds))]
    finally: cache._quick = before
    assert all_right(ds, fns)
    return len(n)-1 # one tells the size of a record

def test_second_run(fns, tmp_path):
    assert run(fns, tmp_path/'c')==len(fns)
    assert run(fns, tmp_path/'c')==0

def test_what_is_noticed(fns, tmp_path):
    "A file that is changed, touched, added, deleted or renamed, other sizes, orders, classes"
    folder = tmp_path/'c'
    run(fns, folder)
    Image.open(fns[1]).save(fns[0], 'JPEG')
    assert run(fns, folder)==len(fns)
    os.utime(fns[0], (1,1))
    assert run(fns, folder)==len(fns)
    assert run(fns[1:], folder)==len(fns)-1
    new = fns[0].with_name('new.jpg')
    shutil.copy(fns[3], new)
    assert run(fns+[new], folder)==len(fns)+1
    assert run(fns[::-1], folder)==len(fns)
    assert run(fns, folder, size=32)==len(fns)
    assert cache_key(Dataset(fns))!=cache_key(FastDataset(fns))
    assert run(fns, folder)==0

def test_bound_and_labels_are_not_in_the_key(fns):
    "What doesn't change the pixels decodes nothing again"
    vocab = sorted({o.parent.name for o in fns})
    a,b = FastDataset(fns),FastDataset(fns, vocab[::-1], cache=0)
    assert cache_key(a)==cache_key(b)

def test_other_datasets(fns, tmp_path):
    "Those with shapes of their own, too"
    for kw in dict(size=(24,40)),dict(channels=1),dict(resize='pad'):
        for _ in range(2):
            ds = decode_once(Images(fns, **kw), tmp_path/'c')
            plain = Images(fns, **kw)
            assert all(ds.pixels(i)==plain.pixels(i) for i in range(len(ds)))
        assert len(ds.decoded)==0
    assert len(list((tmp_path/'c').glob('*.npy')))==3

def test_odd_images(tmp_path):
    "Stored as `read_image` has them"
    fns = [written(tmp_path, k, o[0]) for k,o in right.items()]
    ds = decode_once(FastDataset(fns, size=8), tmp_path/'c')
    assert all(ds.pixels(i)==read_image(o, 8).tobytes() for i,o in enumerate(fns))

def test_size_changes(fns, tmp_path):
    ds = decode_once(FastDataset(fns), tmp_path/'c')
    for size in 32,64:
        ds.size = size
        assert all_right(ds, fns)

def test_loader_and_pickle(fns, tmp_path):
    ds = decode_once(FastDataset(fns), tmp_path/'c')
    want = list(DataLoader(FastDataset(fns), bs=16))
    for o in ds,pickle.loads(pickle.dumps(ds)):
        for (xb,yb),(x,y) in zip(DataLoader(o, bs=16, n_workers=2), want, strict=True):
            assert torch.equal(xb, x) and torch.equal(yb, y)

one_pass = '''
import sys
from learner_from_scratch.cache import *
from learner_from_scratch.data import *
def anonymous():
    "MB of memory that has no file behind it, so that it isn't the system's to take back"
    lines = open('/proc/self/status').read().splitlines()
    return next(int(o.split()[1])/1000 for o in lines if o.startswith('RssAnon'))
before = anonymous()
ds = decode_once(FastDataset(get_image_files(sys.argv[1])*17, size=256), sys.argv[2])
most = max(anonymous() for _ in DataLoader(ds, bs=4, n_workers=2))
assert not vars(ds.decoded).get('damaged') and not len(ds.decoded)
print(ds.decoded.stored.nbytes/1e6, most-before)
'''

@linux
def test_larger_than_memory(fns, tmp_path):
    "What is stored can be, as none of it has to stay"
    decode_once(FastDataset(fns*17, size=256), tmp_path/'c')
    cmd = [sys.executable, '-c', one_pass, tmp_path/'train', tmp_path/'c']
    stored,more = map(float, subprocess.check_output(cmd, text=True).split())
    assert stored > 200 and more < 60, (stored,more)
    assert len(list((tmp_path/'c').glob('*.npy')))==1 # it was found

cold_pass = '''
import os,sys
from learner_from_scratch.cache import *
from learner_from_scratch.data import *
from learner_from_scratch.labels import Images
from PIL import Image
class Grey(FastDataset):
    @staticmethod
    def read(fn, size): return Image.new('RGB', (size,size), 'gray')
class Plain(Dataset): read = staticmethod(Grey.read)
class GreyImages(Images):
    def pixels(self, i):
        key = self.key(i)
        return self.decoded.get(key) or self.keep(key, bytes([7])*64*64*3)
kind,fns = globals()[sys.argv[3]],get_image_files(sys.argv[1])
ds = decode_once(kind((fns*10_000)[:10_000]), sys.argv[2])
if len(sys.argv)>4: # the first run only writes it
    def n_read(): return int(open('/proc/self/io').read().split('read_bytes: ')[1].split()[0])
    class Few(DataLoader):
        def order(self): return super().order()[:500]
    before = n_read()
    n = sum(len(yb) for _,yb in Few(ds, 50, True, n_workers=2))
    assert not len(ds.decoded)
    print((n_read()-before)/(n*ds.decoded.records.itemsize))
'''

def forget(folder):
    "Have the system keep nothing of the files in `folder` in memory"
    for o in folder.glob('*.npy'):
        with open(o, 'r+b') as f:
            os.fsync(f)
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

@linux
@pytest.mark.parametrize('kind', ('Grey','GreyImages','Plain'))
def test_reads_no_more_than_it_needs(kind, fns, tmp_path):
    "In random order, of a file that isn't in memory: only the pages with these images"
    cmd = [sys.executable, '-c', cold_pass, tmp_path/'train', tmp_path/'c', kind]
    subprocess.run(cmd, check=True)
    forget(tmp_path/'c')
    read = float(subprocess.check_output([*cmd, 'again'], text=True))
    if not read: pytest.skip('this disk is in memory')
    assert read < 1.7, read # of 12 kB in pages of 4 kB

@pytest.mark.parametrize('kind', (FastDataset,Images))
def test_ahead(kind, fns, tmp_path, monkeypatch):
    "The system is told of all images of a batch, before the first is looked at"
    ds,asked = decode_once(kind(fns), tmp_path/'c'),[]
    real = type(ds.decoded).get
    monkeypatch.setattr(cache, '_will_need', lambda records, idxs: asked.append(list(idxs)))
    monkeypatch.setattr(type(ds.decoded), 'get', lambda *args: asked.append(1) or real(*args))
    ds.batch([3,1])
    assert asked==[[3,1],1,1]
    ds.pixels(3) # of no batch
    assert asked[3:]==[1,[3]]

def test_pages_with_records():
    "They begin at a page, and none of a record is left out"
    told,size = [],mmap.PAGESIZE
    class Records:
        offset,itemsize,base = 128,5000,NS(madvise=lambda *args: told.append(args))
        def __len__(self): return 9
    cache._will_need(Records(), [0,np.uint8(3),-1])
    for (what,start,n),i in zip(told, (0,3,8), strict=True):
        begin,end = 128+i*5000,128+(i+1)*5000
        assert what==mmap.MADV_WILLNEED and start%size==0
        assert begin-size < start <= begin and start+n==end

def test_deaf_system():
    "A hint that isn't taken is no error"
    def deaf(*args): raise OSError(errno.ENOSYS, 'not implemented')
    class Records(list):
        offset,itemsize,base = 128,5000,NS(madvise=deaf)
    cache._will_need(Records(range(9)), [0,3])

def test_no_word_to_the_system(fns, tmp_path, monkeypatch):
    "Windows has none"
    for o in 'MADV_WILLNEED','MADV_RANDOM': monkeypatch.delattr(mmap, o)
    class Records(list): offset,itemsize,base = 128,5000,NS() # without the call
    cache._will_need(Records(range(9)), [0,3])
    ds = decode_once(FastDataset(fns), tmp_path/'c')
    assert isinstance(ds.decoded, cache.Stored)
    assert torch.equal(ds.batch([2,0])[0], FastDataset(fns).batch([2,0])[0])

def test_checksum_reads_the_disk(fns, tmp_path, monkeypatch):
    "It is asked for the mapped bytes and not for a copy, which Python makes with its lock"
    ds,seen = decode_once(FastDataset(fns), tmp_path/'c'),[]
    monkeypatch.setattr(cache, 'crc32', lambda o: seen.append(o) or crc32(o))
    ds.pixels(3)
    assert np.shares_memory(seen[0], ds.decoded.stored)

# --- damage ---
damages = dict(
    empty=lambda b: b'', cut=lambda b: b[:-1], long=lambda b: b+b'!',
    header=lambda b: b'?'*128+b[128:],
    half=lambda b: b[:len(b)//2], other=lambda b: b.replace(b'<u4', b'<u2', 1),
    head=lambda b: b[:20], brace=lambda b: b.replace(b'}', b' ', 1))

@pytest.mark.parametrize('name', damages)
def test_rebuilt(name, fns, tmp_path, capsys):
    "What is seen when the file is opened: one line, and it is written anew"
    run(fns, tmp_path/'c')
    fn, = (tmp_path/'c').glob('*.npy')
    fn.write_bytes(damages[name](fn.read_bytes()))
    capsys.readouterr()
    assert run(fns, tmp_path/'c')==len(fns)
    said = capsys.readouterr().out
    assert said.count('\n')==1 and f'{fn} is damaged: it is written anew' in said
    assert run(fns, tmp_path/'c')==0

def test_any_byte(fns, tmp_path, capsys):
    "A byte of any record, or of its checksum: one line, right images, and then a new file"
    rng = random.Random(0)
    for _ in range(10):
        run(fns, tmp_path/'c')
        fn, = (tmp_path/'c').glob('*.npy')
        data = bytearray(fn.read_bytes())
        for i in rng.sample(range(128, len(data)), 3): data[i] ^= 1<<rng.randrange(8)
        fn.write_bytes(data)
        capsys.readouterr()
        assert 1 <= run(fns, tmp_path/'c') <= 3
        said = capsys.readouterr().out
        assert said.count('\n')==1 and 'is damaged: the next run' in said
        assert not fn.exists()

def test_damaged_and_in_use(fns, tmp_path, monkeypatch, capsys):
    "Windows doesn't delete a file that is mapped, so it isn't said to be gone"
    run(fns, tmp_path/'c')
    ds = decode_once(FastDataset(fns), tmp_path/'c')
    fn, = (tmp_path/'c').glob('*.npy')
    def refuse(*args, **kw): raise PermissionError('in use')
    for o in 'remove','unlink': monkeypatch.setattr(os, o, refuse)
    monkeypatch.setattr(Path, 'unlink', refuse)
    ds.decoded.tell_damaged()
    assert f'{fn} is damaged: delete it\n' in capsys.readouterr().out

# --- full disks, bounds ---
@posix
def test_full_disk(fns, tmp_path, capsys):
    "One line, right images, nothing left behind"
    soft,hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,hard))
    try: ds = decode_once(FastDataset(fns), tmp_path/'c')
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft,hard))
    said = capsys.readouterr().out
    assert said.count('\n')==1 and 'kept in memory only' in said
    assert all_right(ds, fns) and len(ds.decoded)==len(fns)
    assert {o.suffix for o in (tmp_path/'c').iterdir()} <= {'.lock'}

def test_file_of_another_user(fns, tmp_path, monkeypatch, capsys):
    "It is used, though its time can't be changed"
    decode_once(FastDataset(fns), tmp_path)
    def refused(fn): raise PermissionError(errno.EPERM, 'not yours')
    monkeypatch.setattr(os, 'utime', refused)
    assert isinstance(decode_once(FastDataset(fns), tmp_path).decoded, cache.Stored)
    assert not capsys.readouterr().out

def test_no_folder(fns, tmp_path, capsys):
    (tmp_path/'file').touch()
    ds = decode_once(FastDataset(fns), tmp_path/'file')
    assert 'kept in memory only' in capsys.readouterr().out and all_right(ds, fns)

def test_bound(fns, tmp_path, capsys):
    "The files that were used last stay"
    one = len(fns)*(64*64*3+4)
    def files(): return set((tmp_path/'c').glob('*.npy'))
    def made(fns):
        before = files()
        decode_once(FastDataset(fns), tmp_path/'c', most=2.5*one)
        return files()-before
    (a,),(b,) = made(fns),made(fns[::-1])
    os.utime(a, (1,1)), os.utime(b, (2,2))
    made(fns) # used again
    c, = made(fns[1:])
    assert files()=={a,c}
    decode_once(FastDataset(fns*3), tmp_path/'c', most=2.5*one)
    assert 'kept in memory only' in capsys.readouterr().out and files()=={a,c}

def test_bound_to_the_byte(fns, tmp_path, capsys):
    "With the head of the file"
    decode_once(FastDataset(fns), tmp_path/'c')
    size = next((tmp_path/'c').glob('*.npy')).stat().st_size
    for most in size-1,size: decode_once(FastDataset(fns), tmp_path/'d', most=most)
    assert capsys.readouterr().out.count('kept in memory only')==1
    assert next((tmp_path/'d').glob('*.npy')).stat().st_size==size

@posix
def test_bound_of_two_at_once(fns, tmp_path):
    "What the other one is still writing counts in full, and is no file of the dead"
    one,folder,go_on = len(fns)*(64*64*3+4),tmp_path/'c',tmp_path/'go_on'
    def waits(f, *_):
        while not go_on.exists(): time.sleep(.001)
        yield f(range(len(fns)))
    def slow():
        cache.in_threads = waits
        decode_once(FastDataset(fns), folder, most=1.5*one)
        return 7
    pid = fork(slow)
    while size_in(folder, full=True)<one: time.sleep(.001)
    ds = decode_once(FastDataset(fns[1:]), folder, most=1.5*one)
    go_on.touch()
    assert type(ds.decoded) is dict
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])==7
    assert len(list(folder.glob('*.npy')))==1

def test_old_files_make_room(fns, tmp_path, monkeypatch, capsys):
    "What may be deleted counts as free, and goes if the disk has no other room"
    decode_once(FastDataset(fns), tmp_path/'c')
    old, = (tmp_path/'c').glob('*.npy')
    def free(n): monkeypatch.setattr(shutil, 'disk_usage', lambda path: NS(free=n))
    free(1000)
    decode_once(FastDataset(fns*2), tmp_path/'c')
    assert 'kept in memory only' in capsys.readouterr().out and old.exists()
    decode_once(FastDataset(fns[1:]), tmp_path/'c')
    new, = (tmp_path/'c').glob('*.npy')
    assert new!=old and capsys.readouterr().out==''
    free(10**9)
    decode_once(FastDataset(fns), tmp_path/'c')
    assert new.exists() and old.exists()

def test_empty_cache(fns, tmp_path):
    assert empty_cache(tmp_path/'c')==0
    decode_once(FastDataset(fns), tmp_path/'c')
    (tmp_path/f'c/.{"0"*32}.npy.host-1-0.part').write_bytes(b'ab')
    (tmp_path/'c/notes.txt').touch()
    n = sum(o.stat().st_size for o in (tmp_path/'c').glob('*.npy'))
    assert n > len(fns)*64*64*3 and empty_cache(tmp_path/'c')==n+2
    assert [o.name for o in (tmp_path/'c').iterdir()]==['notes.txt']

def test_empty_cache_while_one_writes(tmp_path):
    "What a living process has half-written stays, and is not counted; a dead one's goes"
    other = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    part = tmp_path/f'.{"0"*32}.npy.{platform.node()}-{other.pid}-0.part'
    part.write_bytes(b'abc')
    assert empty_cache(tmp_path)==0 and part.exists()
    other.communicate(b'\n')
    assert empty_cache(tmp_path)==3 and not part.exists()

def test_files_of_others(fns, tmp_path):
    "They stay, if room is made, and if the cache is emptied"
    others = [tmp_path/f'c/{o}' for o in ('mine.npy', '.x.npy.h-1-0.part', 'a.lock')]
    (tmp_path/'c').mkdir()
    for o in others: o.write_bytes(bytes(1000))
    one = len(fns)*(64*64*3+4)
    for o in fns,fns[1:]: decode_once(FastDataset(o), tmp_path/'c', most=1.5*one)
    assert len(list((tmp_path/'c').glob('*.npy')))==2
    assert empty_cache(tmp_path/'c') > len(fns[1:])*64*64*3
    assert sorted((tmp_path/'c').iterdir())==sorted(others)

def test_in_use(fns, tmp_path, capsys):
    "A file that this process uses doesn't go for another one"
    one = len(fns)*(64*64*3+4)
    train = decode_once(FastDataset(fns), tmp_path/'c', most=1.5*one)
    fn, = (tmp_path/'c').glob('*.npy')
    decode_once(FastDataset(fns[1:]), tmp_path/'c', most=1.5*one)
    assert fn.exists() and 'kept in memory only' in capsys.readouterr().out
    del train
    decode_once(FastDataset(fns[1:]), tmp_path/'c', most=1.5*one)
    assert not fn.exists() and capsys.readouterr().out==''

def test_in_use_by_another_name(fns, tmp_path, monkeypatch, capsys):
    "A folder may be named from here, or by a link"
    monkeypatch.chdir(tmp_path)
    one = len(fns)*(64*64*3+4)
    train = decode_once(FastDataset(fns), 'c', most=1.5*one)
    decode_once(FastDataset(fns[1:]), tmp_path/'c', most=1.5*one)
    assert train.decoded.fn.exists() and 'kept in memory only' in capsys.readouterr().out

def test_half_written_files_of_the_dead(fns, tmp_path):
    "They go, also those of other keys"
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead.wait()
    (tmp_path/'c').mkdir()
    part = tmp_path/f'c/.{"0"*32}.npy.{platform.node()}-{dead.pid}-0.part'
    part.write_bytes(bytes(1000))
    decode_once(FastDataset(fns), tmp_path/'c')
    assert not part.exists()

def test_deleted_image(fns, tmp_path):
    "It is named, and is no trouble of the disk"
    fns[3].unlink()
    with pytest.raises(FileNotFoundError, match=fns[3].name):
        decode_once(FastDataset(fns), tmp_path/'c')

def test_what_else_is_in_the_key(fns, monkeypatch):
    "Versions, modules of classes, and any function to read with"
    ds = FastDataset(fns)
    before = cache_key(ds)
    ds.read = partial(read_fast)
    assert cache_key(ds)!=before
    other = type('FastDataset', (FastDataset,), dict(__module__='mine'))
    monkeypatch.setitem(sys.modules, 'mine', NS(FastDataset=other))
    assert cache_key(other(fns))!=before
    monkeypatch.setattr('PIL.__version__', '0')
    assert cache_key(FastDataset(fns))!=before

class Bright:
    "Reads images, and adds `n` to each pixel"
    def __init__(self, n): self.n = n
    def read(self, fn, size): return np.clip(read_fast(fn, size)+self.n, 0, 255).astype('u1')
    __call__ = read

def bright(fn, size, n): return Bright(int(torch.as_tensor(n).max()))(fn, size)

class Brighter(FastDataset):
    "One whose method reads by an attribute"
    n = 0
    def read(self, fn, size): return bright(fn, size, self.n)

def large(n):
    res = np.zeros((64,64,3), int)
    res[30:40] = n
    return res

@pytest.mark.parametrize('make', [
    lambda n: Bright(n).read, lambda n: Bright(n), lambda n: partial(bright, n=n),
    lambda n: partial(bright, n=large(n)), lambda n: partial(bright, n=torch.tensor(n))])
def test_state_of_a_reader(make, fns, tmp_path):
    "What it reads with decides, and is found again"
    def stored(n):
        ds = FastDataset(fns)
        ds.read = make(n)
        decode_once(ds, tmp_path/'c')
        assert type(ds.decoded) is cache.Stored
        return ds.pixels(3)
    for _ in range(2): assert stored(0)!=stored(90)
    assert len(list((tmp_path/'c').glob('*.npy')))==2

@pytest.mark.parametrize('kind', [
    int, np.int64, np.float32, lambda n: [n], lambda n: np.array([n,0]), large, torch.tensor])
def test_attributes_in_the_key(kind, fns):
    "All kinds of them"
    def key(n):
        ds = Brighter(fns)
        ds.n = kind(n)
        return cache_key(ds)
    assert key(0)!=key(90) and key(90)==key(90)

def test_local_readers(fns, tmp_path, capsys):
    "Nobody can tell what is in them: one line, and memory only"
    def closure(n): return lambda fn, size: bright(fn, size, n)
    class Local(FastDataset): pass
    found = []
    for n in 0,90:
        ds = FastDataset(fns)
        ds.read = closure(n)
        found.append(decode_once(ds, tmp_path/'c').pixels(3))
        said = capsys.readouterr().out
        assert said.count('\n')==1 and "in memory only: `read` can't be pickled" in said
    assert found[0]!=found[1]
    decode_once(Local(fns), tmp_path/'c')
    assert "in memory only: `class` can't be pickled" in capsys.readouterr().out
    assert not (tmp_path/'c').exists()

def test_files_are_not_pickled(fns):
    "Nor decoded images, not even if a method of the dataset is in an attribute"
    ds = Brighter(fns)
    key = cache_key(ds)
    ds.all_pixels(range(9))
    assert cache_key(ds)==key
    ds.part = partial(ds.pixels, 3)
    assert len(cache._how(ds)) < 700

other_process = '''
import sys
sys.path.insert(0, sys.argv[1])
from test_cache import *
ds = Brighter(get_image_files(sys.argv[2]))
ds.n,ds.names,ds.x = np.array([3,4,5]),{'a','bc','def'},torch.ones(3)
ds.many = {'k':[1.5,{'x','y'}]}
print(cache_key(ds))
'''

def test_same_key_in_another_process(fns, tmp_path):
    "Whatever the order of sets and the addresses there"
    cmd = [sys.executable, '-c', other_process, os.path.dirname(__file__), tmp_path/'train']
    def key(seed):
        return subprocess.check_output(cmd, env={**os.environ, 'PYTHONHASHSEED':seed})
    assert len({key(o) for o in '123'})==1

def test_unreadable_image(fns, tmp_path):
    "It is named, as always, and no file is left"
    fns[5].write_bytes(b'no image')
    with pytest.raises(OSError, match=fns[5].name):
        decode_once(FastDataset(fns), tmp_path/'c')
    assert not list((tmp_path/'c').glob('*.npy')) and not list((tmp_path/'c').glob('.*.part'))

# --- many processes, and dead ones ---
def fork(f):
    "A child that runs `f` and ends with its number, or with 1 if it fails"
    pid = os.fork()
    if pid: return pid
    try: os._exit(f() or 0)
    finally: os._exit(1)

@posix
def test_two_at_once(fns, tmp_path):
    "One decodes, the others wait and find what it wrote"
    def child():
        n = run(fns*3, tmp_path/'c')
        return {0:10, 3*len(fns):20}.get(n, 1)
    ends = [os.waitpid(o, 0)[1] for o in [fork(child) for _ in range(3)]]
    assert sorted(map(os.waitstatus_to_exitcode, ends))==[10,10,20]

def test_waits_for_another(fns, tmp_path, monkeypatch, capsys):
    "And says so once it has taken a while"
    monkeypatch.setattr(cache._locked.__wrapped__, '__defaults__', (.05,))
    key,held,go_on = cache_key(FastDataset(fns)),Event(),Event()
    def hold():
        with FileLock(tmp_path/f'{key}.lock'):
            held.set()
            go_on.wait(5)
    other = Thread(target=hold)
    other.start()
    held.wait()
    Timer(.5, go_on.set).start()
    decode_once(FastDataset(fns), tmp_path)
    other.join()
    assert capsys.readouterr().out.count('waiting for it')==1
    decode_once(FastDataset(fns), tmp_path)
    assert not capsys.readouterr().out

def size_in(folder, full=False):
    "Bytes on the disk so far, also of what is being written; or those it will have"
    def size(s): return s.st_size if full else s.st_blocks*512
    try: return sum(size(o.stat()) for o in folder.iterdir())
    except FileNotFoundError: return 0

@posix
def test_killed_while_it_writes(fns, tmp_path):
    "At 20 random moments; the next run finds nothing that is half"
    many,rng,n_left = fns*5,random.Random(0),0
    plain = FastDataset(many)
    want = [plain.pixels(i) for i in range(len(many))]
    for i in range(20):
        folder,when = tmp_path/f'c{i}',rng.random()*len(many)*64*64*3
        pid = fork(lambda: decode_once(FastDataset(many), folder) and 0)
        end = time.monotonic()+60
        while size_in(folder)<when and time.monotonic()<end: pass
        time.sleep(rng.random()*.005)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        n_left += bool(list(folder.glob('.*.part')))
        ds = decode_once(FastDataset(many), folder)
        assert [ds.pixels(i) for i in range(len(many))]==want
        assert not list(folder.glob('.*.part'))
        shutil.rmtree(folder)
    assert n_left>3 # it was in the middle of writing

def test_high_is_not_wide(fns, tmp_path):
    "Sizes may be lists, and as many pixels are not the same image"
    for size in [16,32],[32,16]:
        ds = decode_once(Images(fns, size=size), tmp_path/'c')
        assert ds.pixels(3)==Images(fns, size=size).pixels(3)

# --- memory that stays ---
faults = '''
import resource,torch
from learner_from_scratch.all import *
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20): torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt-before
faults()
print(faults())
assert reuse_memory()
faults()
print(faults())
'''

@pytest.mark.skipif(platform.libc_ver()[0]!='glibc', reason='a setting of glibc')
def test_reuse_memory():
    "Pages are not asked for again, from the call on; the import alone changes nothing"
    out = subprocess.check_output([sys.executable, '-c', faults], text=True)
    before,after = map(int, out.split())
    assert after < before/10, out

def test_reuse_memory_elsewhere(monkeypatch):
    "Where the C library has no such setting, it says so"
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: object())
    assert reuse_memory() is False

@pytest.mark.parametrize('most,asked', [
    (2**25, [(-3,2**30),(-3,2**25),(-1,2**30),(-8,1)]), (0, [(-3,2**30),(-3,2**25)])])
def test_reuse_memory_of_an_older_library(most, asked, monkeypatch):
    "It takes 32 MB where it takes no more; where it takes nothing, all stays as it was"
    seen = []
    class Old:
        @staticmethod
        def mallopt(k, v):
            seen.append((k,v))
            return int(k!=-3 or v<=most)
    monkeypatch.setattr(ctypes, 'CDLL', lambda name: Old)
    assert reuse_memory() is bool(most) and seen==asked

def test_deleted_meanwhile(tmp_path):
    "Another process may empty the folder at the same time"
    there = tmp_path/'a'
    there.write_bytes(bytes(7))
    assert {k: o.st_size for k,o in cache._stats([there, tmp_path/'gone']).items()}=={there:7}
