"""`nbs/images/network.svg`: the network of the page In your browser, at work on one image

All of it comes from the files of that page: `python tools/picture.py`"""
from base64 import b64encode
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from fastcore.script import call_parse
from fastcore.xml import ft,to_xml
from PIL import Image

from learner_from_scratch.inference import Predictor

nbs = Path(__file__).resolve().parent.parent/'nbs'
side,top = 128,44 # of the pictures, and where they begin
blue,pale = np.array([47,91,207]),np.array([240,243,250])

def page_image(i):
    "Image `i` of those on the page"
    row = Image.open(nbs/'live/images.png').convert('RGB')
    return row.crop((64*i, 0, 64*i+64, 64))

def layers(pred, im):
    "What each layer makes of `im`"
    x,res = pred.inputs(im),[]
    with torch.no_grad():
        for layer in pred.model.layers:
            x = layer(x)
            res.append(x[0].numpy())
    return res

def tiles(maps, cols):
    "Maps `(n, h, w)` side by side, each as blue as it is strong, with a line between them"
    n,h,w = maps.shape
    res = np.full((n//cols*(h+1)-1, cols*(w+1)-1, 3), 255.)
    for i,m in enumerate(maps):
        t = (m/max(m.max(), 1e-6))[...,None]
        y,x = i//cols*(h+1),i%cols*(w+1)
        res[y:y+h,x:x+w] = pale + t*(blue-pale)
    return Image.fromarray(res.astype('uint8'))

def picture(im, x):
    "`im` as high as all others, `x` units from the left, and how wide it is"
    data,w = BytesIO(),round(side*im.width/im.height)
    im.save(data, 'png', optimize=True)
    url = f'data:image/png;base64,{b64encode(data.getvalue()).decode()}'
    return w,ft('image', href=url, x=x, y=top, width=w, height=side,
                style='image-rendering:pixelated')

def text(s, x, y, anchor='middle', **kwargs):
    return ft('text', s, x=x, y=y, text_anchor=anchor, **kwargs)

def bars(pred, probs, x):
    "Names of the classes and their probabilities, `x` units from the left"
    res = []
    for i,(name,p) in enumerate(zip(pred.vocab, probs)):
        y = top + 13*i
        weight = dict(font_weight=700) if p==max(probs) else {}
        res += [text(name, x+100, y+10, 'end', **weight),
                ft('rect', x=x+108, y=y+2, width=round(80*p, 1), height=9, fill='#2f5bcf'),
                text(f'{p:.0%}', x+114+round(80*p, 1), y+10, 'start', **weight)]
    return res

def drawing(i):
    "The network at work on image `i`, as SVG"
    pred,im = Predictor.load(nbs/'live/model.safetensors'),page_image(i)
    *convs,pool,scores = layers(pred, im)
    probs = torch.tensor(scores).softmax(0).tolist()
    parts = [('image','64 × 64',im)]
    for maps,cols in zip(convs, (4,4,8,8)):
        n,h,w = maps.shape
        parts.append((f'{n} maps', f'{h} × {w}', tiles(maps, cols)))
    parts.append(('mean', str(len(pool)), tiles(pool.reshape(1,32,4), 1)))
    x,body = 20,[]
    for name,size,o in parts:
        w,img = picture(o, x)
        below = text(size, x+w/2, top+side+20, fill='#4b5563')
        body += [img, text(name, x+w/2, top-14), below]
        x += w+26
    body += bars(pred, probs, x)
    said = pred.vocab[np.argmax(probs)]
    title = f'An image goes through four convolutions to the answer: {said}, {max(probs):.0%}'
    card = ft('rect', width=x+220, height=top+side+40, rx=10, fill='white')
    svg = ft('svg', ft('title', title), card, *body, xmlns='http://www.w3.org/2000/svg',
             viewBox=f'0 0 {x+220} {top+side+40}', font_family='system-ui, sans-serif',
             font_size=12, fill='#1f2937')
    return to_xml(svg, indent=False).replace('viewbox', 'viewBox') # it is XML here

@call_parse
def main(
    i:int=4, # Image of the page, from 0
):
    "Draw the picture of the first page"
    (nbs/'images/network.svg').write_text(drawing(i), encoding='utf-8')
