"A folder of images as people have them: `make_messy(path)` draws it"
import numpy as np
from learner_from_scratch.fetch import draw_shape
from PIL import Image

classes = {'red ball':'circle', 'blue box':'square',
           'old tree':'triangle', 'big house':'cross'}
counts = {**dict.fromkeys(classes, 8), 'red ball':9, 'with garden':2} # without the HEIC
broken = 'old tree/triangle 0.jpg'
clear = 'red ball/no background.png'
heic = 'blue box/IMG_0001.HEIC'

def cut_in_two(fn): fn.write_bytes(fn.read_bytes()[:fn.stat().st_size//2])

def save_heic(im, fn):
    "Save a photo of a phone; without a plugin, what only looks like one"
    try: import pillow_heif
    except ImportError: fn.write_bytes(b'\0\0\0\x18ftypheic')
    else: pillow_heif.from_pillow(im).save(fn)

def make_messy(path):
    "Four classes with spaces in their names, and all that people leave in a folder"
    rng = np.random.default_rng(0)
    for name,shape in classes.items():
        (path/name).mkdir(parents=True)
        for i in range(8): draw_shape(shape, rng, 32).save(path/name/f'{shape} {i}.jpg')
    cut_in_two(path/broken)
    im = Image.new('RGBA', (40,30), (0,0,0,0))
    im.paste((200,0,0,255), (10,10,30,20))
    im.save(path/clear)
    inner = path/'big house/with garden'
    inner.mkdir()
    for i in range(2): draw_shape('star', rng, 32).save(inner/f'{i}.jpg')
    save_heic(draw_shape('square', rng, 64), path/heic)
    for o in 'blue box/.DS_Store','notes.txt','blue box/Thumbs.db': (path/o).write_text('x')
    return path
