"Images of rare kinds: decoded right, or refused in one line; and none takes all memory"
import os,shutil,struct,subprocess,sys,warnings,zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from learner_from_scratch.data import Normalize,get_image_files,read_image

# --- files, byte by byte ---
def number(n): return struct.pack('>I', n)
def chunk(kind, data): return number(len(data))+kind+data+number(zlib.crc32(kind+data))

def png(depth, color, rows, key=None):
    "A PNG: colour type 0 is grey, 2 RGB; `rows` are packed pixels, `key` is transparent"
    bits = depth*(1 if color==0 else 3)
    w,h = len(rows[0])*8//bits,len(rows)
    head = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, color, 0, 0, 0))
    trns = b'' if key is None else chunk(b'tRNS', struct.pack(f'>{len(key)}H', *key))
    data = chunk(b'IDAT', zlib.compress(b''.join(b'\0'+o for o in rows)))
    return b'\x89PNG\r\n\x1a\n'+head+trns+data+chunk(b'IEND', b'')

def tiff(depth, photometric, w, h, data):
    "A grey TIFF; with `photometric` 0, 0 is white; with `None` nothing says what is"
    tags = {256:w, 257:h, 258:depth, 259:1, 262:photometric, 273:8, 277:1, 278:h}
    if photometric is None: del tags[262]
    tags[279] = len(data)
    kinds = {273:4, 279:4} # numbers of 4 bytes; others have 2
    ifd = b''.join(struct.pack('<HHII', k, kinds.get(k,3), 1, v) for k,v in tags.items())
    data += b'\0'*(len(data)%2)
    head = b'II*\0'+struct.pack('<I', 8+len(data))
    return head+data+struct.pack('<H', len(tags))+ifd+b'\0'*4

def packed(values, depth):
    "A row of `values` of `depth` bits each"
    bits = ''.join(f'{o:0{depth}b}' for o in values)
    return int(bits, 2).to_bytes(len(bits)//8, 'big')

def ramp(depth, n=8): return [round(i*(2**depth-1)/(n-1)) for i in range(n)]

def grey(d, *key): return png(d, 0, [packed(ramp(d), d)]*8, key or None)
def negative(d): return tiff(d, 0, 8, 8, packed(ramp(d)[::-1], d)*8)

greys = {f'grey{d}': (grey(d), ramp(d), None, d) for d in (1,2,4,8,16)}
keyed = {f'key{d} {k}': (grey(d, ramp(d)[k]), ramp(d), k, d)
         for d in (1,2,4,8) for k in (0,3,5,7)}
white0 = {f'white0 {d}': (negative(d), ramp(d), None, d) for d in (1,2,4,8)}

def expected(values, k, depth):
    "The row as bytes, with what is transparent white"
    res = np.array(values)*255/(2**depth-1)
    if k is not None: res[np.array(values)==values[k]] = 255
    return res

def written(tmp_path, name, data):
    fn = tmp_path/(name.replace(' ','_')+('.tif' if data[:2]==b'II' else '.png'))
    fn.write_bytes(data)
    return fn

right = greys|keyed|white0

@pytest.mark.parametrize('name', right)
def test_right(name, tmp_path):
    data,values,k,depth = right[name]
    got = np.array(read_image(written(tmp_path, name, data), 8)).astype(float)
    want = expected(values, k, depth)
    assert np.abs(got-want[None,:,None]).max() <= 1, (got[0,:,0], want)

deep = [0,0x12,0x1234,0x12ff,0x1300,0x8000,0xfffe,0xffff]
def rgb16(o): return struct.pack('>3H', o, 1, 2)
refused = {
    'key16 high': (png(16, 0, [packed(deep, 16)]*8, [0x1234]), 'transparent colour'),
    'key16 low': (png(16, 0, [packed(deep, 16)]*8, [0x12]), 'transparent colour'),
    'key16 white': (png(16, 0, [packed(deep, 16)]*8, [0xfffe]), 'transparent colour'),
    'key48': (png(16, 2, [b''.join(map(rgb16, deep))]*8, [0x1234,1,2]), 'transparent colour'),
    'tiff12': (tiff(12, 1, 8, 8, packed(ramp(12), 12)*8), '12 bits'),
    'tiff16 unknown': (tiff(16, None, 8, 8, struct.pack('<8H', *ramp(16))*8), '0 for white'),
    'tiff16 white0': (tiff(16, 0, 8, 8, struct.pack('<8H', *ramp(16))*8), '0 for white'),
    'tiff32': (tiff(32, 1, 8, 8, struct.pack('<8I', *ramp(32))*8), '')}

@pytest.mark.parametrize('name', refused)
def test_refused(name, tmp_path):
    data,why = refused[name]
    fn = written(tmp_path, name, data)
    with pytest.raises(OSError) as e: read_image(fn, 8)
    assert str(fn) in str(e.value) and why in str(e.value) and '\n' not in str(e.value)

def test_key_of_rgb(tmp_path):
    row = bytes([9,8,7, 9,8,6])*4
    got = np.array(read_image(written(tmp_path, 'key24', png(8, 2, [row]*8, [9,8,7])), 8))
    assert (got[:,0]==255).all() and (got[:,1]==(9,8,6)).all()

# --- as another decoder sees them ---
magick = shutil.which('magick') or shutil.which('convert')
def is_real():
    "Other programs have these names, too"
    if not magick: return False
    res = subprocess.run([magick, '-version'], capture_output=True)
    return b'ImageMagick Studio' in res.stdout

@pytest.mark.skipif(not is_real(), reason='needs ImageMagick')
def test_as_imagemagick(tmp_path):
    "What isn't refused is the same, on white"
    files = {k: written(tmp_path, k, o[0]) for k,o in (right|refused).items()}
    rng = np.random.default_rng(0)
    im = Image.fromarray(rng.integers(0, 256, (8,8,4), dtype='uint8'))
    for mode in ('RGBA','LA','RGB','L','CMYK','1'):
        for ext in ('png','tif','webp','gif','jpg','jp2','bmp','tga'):
            fn = tmp_path/f'{mode}.{ext}'
            try: im.convert(mode).save(fn, **(dict(lossless=True) if ext=='webp' else {}))
            except (OSError,KeyError,ValueError): continue # has no such mode
            files[fn.name] = fn
    n = 0
    # ImageMagick 6 has white where these files of 2 and 4 bits say black, takes the reserved
    # byte of a BMP for transparency, LA in a TGA for 16 bits, and can not read this JPEG 2000
    for o in 'white0 2','white0 4','RGBA.bmp','LA.tga','CMYK.jp2': files.pop(o, None)
    for name,fn in files.items():
        try: got = np.array(read_image(fn, 8)).astype(int)
        except OSError: continue
        how = '-auto-orient -background white -alpha remove -colorspace sRGB -depth 8 rgb:-'
        res = subprocess.run([magick, f'{fn}[0]', *how.split()], capture_output=True)
        if res.returncode or len(res.stdout)!=8*8*3: continue # a kind that it doesn't know
        want = np.frombuffer(res.stdout, 'uint8').reshape(8,8,3).astype(int)
        tol = 40 if 'CMYK' in name else 6 if fn.suffix in ('.jpg','.jp2') else 1
        assert np.abs(got-want).max() <= tol, (name, got[0,:,0], want[0,:,0])
        n += 1
    assert n > 30

# --- bounds ---
def most_memory():
    "The most memory that this process had since its mark was put back, in MB"
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(int(o.split()[1]) for o in lines if o.startswith('VmHWM:'))/1000

@contextmanager
def little_memory(mb=60):
    "In this block the process grows by less than `mb`; looked at on Linux alone"
    if sys.platform!='linux':
        yield
        return
    Path('/proc/self/clear_refs').write_text('5')
    before = most_memory()
    yield
    assert most_memory()-before < mb

@pytest.mark.skipif(sys.platform!='linux', reason='reads /proc')
def test_memory_is_seen():
    with pytest.raises(AssertionError), little_memory(): bytearray(10**8)

def bomb(fn, side):
    "Write a black PNG of 1 bit a pixel"
    z = zlib.compressobj(9)
    row = b'\0'*(1+(side+7)//8)
    data = b''.join(z.compress(row) for _ in range(side))+z.flush()
    head = struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)
    parts = (b'IHDR',head),(b'IDAT',data),(b'IEND',b'')
    fn.write_bytes(b'\x89PNG\r\n\x1a\n'+b''.join(chunk(*o) for o in parts))

@pytest.mark.parametrize('side', [9_500,13_000,20_000])
def test_bombs(side, tmp_path):
    "One line that says how to allow it, without Pillow's warning, and without the memory"
    fn = tmp_path/'bomb.png'
    bomb(fn, side)
    assert fn.stat().st_size < 100_000
    with little_memory(), warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(OSError) as e: read_image(fn, 64)
    why = 'over 89,478,485 pixels; to allow them, raise PIL.Image.MAX_IMAGE_PIXELS'
    assert str(e.value)==f"can't read image {fn}: {why}"

def test_bound_can_be_raised(tmp_path, monkeypatch):
    Image.new('RGB', (100,100), 'red').save(tmp_path/'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 9_999)
    with pytest.raises(OSError, match='9,999 pixels'): read_image(tmp_path/'a.png', 8)
    for n in (10_000,None):
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', n)
        assert read_image(tmp_path/'a.png', 1).getpixel((0,0))==(255,0,0)

def test_what_counts_for_a_jpeg(tmp_path, monkeypatch):
    "The size at which it is decoded, and twice the bound before that"
    fn = tmp_path/'a.jpg'
    Image.new('RGB', (160,100), 'red').save(fn)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 8_000)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        read_image(fn, 16)
        with pytest.raises(OSError, match='over 8,000 pixels'): read_image(fn, 160)
        monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 7_999)
        with pytest.raises(OSError, match='over 7,999 pixels'): read_image(fn, 16)
    assert Image.MAX_IMAGE_PIXELS==7_999

def sparse(fn, start=b''):
    with open(fn, 'wb') as f:
        f.write(start)
        f.truncate(2**31)
    return fn

@pytest.mark.skipif(os.name!='posix', reason='needs a file with holes')
def test_sparse_file(tmp_path):
    "Two gigabytes of nothing are not read; behind an image they are not looked at"
    Image.new('RGB', (100,100), 'red').save(tmp_path/'a.jpg')
    empty = sparse(tmp_path/'b.jpg')
    start = (tmp_path/'a.jpg').read_bytes()
    image = sparse(tmp_path/'c.jpg', start)
    with little_memory():
        with pytest.raises(OSError, match='not in a format that'): read_image(empty, 8)
        assert read_image(image, 8).getpixel((0,0))[0] > 250

@pytest.mark.parametrize('ext', ['jpg','png','tif','gif','webp','bmp'])
def test_large_files_are_right(ext, tmp_path):
    "What is too large to be read at once comes out the same"
    im = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64,64,3), dtype='uint8'))
    im.save(tmp_path/f'a.{ext}')
    want = read_image(tmp_path/f'a.{ext}', 32)
    with open(tmp_path/f'a.{ext}', 'ab') as f: f.truncate(2**24+1)
    assert read_image(tmp_path/f'a.{ext}', 32)==want

# --- classes and channels ---
@pytest.mark.skipif(os.name!='posix', reason='needs links')
def test_class_that_is_a_link(tmp_path):
    "It has its files, under its own name; only a link back ends there"
    for o in 'train/cat','val/cat': (tmp_path/o).mkdir(parents=True)
    (tmp_path/'train/cat/1.jpg').touch()
    (tmp_path/'train/dog').symlink_to('cat', target_is_directory=True)
    (tmp_path/'val/all').symlink_to('../train', target_is_directory=True)
    (tmp_path/'train/cat/up').symlink_to('../..', target_is_directory=True)
    (tmp_path/'train/cat/again').symlink_to('.', target_is_directory=True)
    got = [o.relative_to(tmp_path).as_posix() for o in get_image_files(f'{tmp_path}/')]
    assert got==['train/cat/1.jpg','train/dog/1.jpg','val/all/cat/1.jpg','val/all/dog/1.jpg']

@pytest.mark.parametrize('std', [0.,-1.,float('nan')])
def test_constant_channel(std):
    stats = [.5]*3,[.2,std,.2]
    with pytest.raises(ValueError, match='is a channel constant'): Normalize(stats)
