"The page How to, and the first lines of the README: what somebody in a hurry reads"
import re
from contextlib import redirect_stdout
from io import StringIO

import pytest
from project import cfg,lib,lines,nbs,root,text

from finish import kind
from learner_from_scratch.fetch import draw_shapes

page = nbs['95_howto.ipynb'].cells

def anchor(heading):
    "Its address on the page"
    return re.sub(r'[^\w\s-]', '', heading).strip().lower().replace(' ', '-')

def recipes():
    "The cells of each recipe, by its heading"
    res,mine = {},[]
    for c in page:
        md = c.cell_type=='markdown'
        if md and '\n## ' in '\n'+c.source: mine = []
        if md and (m := re.search(r'^### (.*)', c.source, re.M)): mine = res[m[1]] = []
        mine.append(c)
    return res

def test_kinds():
    "What is folded on a page: a block that tests is a test, and what shows something is not"
    assert kind('import a\nimport b')=='Imports' and kind('import a') is None
    assert kind('with folder() as d:\n    d.touch()\n    test_eq(d.ls(), [])')=='Tests'
    assert kind('assert a\nfor o in b: assert o')=='Tests'
    for o in 'for o in b: print(o)', 'test_eq(a, b)\na', 'with d: x = 1\nassert x':
        assert kind(o) is None

def shown(cells):
    "The code on the page"
    return [o for o in cells if o.cell_type=='code' and '#| hide' not in o.source]

@pytest.mark.parametrize('name', recipes())
def test_recipe(name):
    "A link to where it is explained, code, and a test behind it"
    cells = recipes()[name]
    assert re.search(r'\]\(\d\d_\w+\.ipynb', cells[0].source)
    *code,last = shown(cells)
    assert code and kind(last.source)=='Tests'
    assert not any(kind(o.source) for o in code)

def test_contents():
    "All recipes, in their order"
    linked = re.findall(r'\(#([\w-]+)\)', page[1].source)
    assert linked[:-1]==[anchor(o) for o in recipes()]
    assert linked[-1] in linked[:-1]

# --- the first lines of the README ---
def first_block(lang):
    "The first code of that kind in the README"
    return re.search(rf'```{lang}\n(.*?)```', text('README.md'), re.S)[1]

def test_readme_trains(tmp_path):
    "The five lines, as they stand there, but for the names of the reader's files"
    path = draw_shapes(tmp_path/'shapes', 60, 20, size=32)
    photo = next(path.rglob('*.JPEG'))
    src = first_block('python')
    assert len([o for o in src.splitlines() if o])==5
    for name,mine in ('path/to/folder',path),('photo.jpg',photo):
        assert name in src
        src = src.replace(name, mine.as_posix())
    *_,last = src.splitlines()
    scope,out = {},StringIO()
    with redirect_stdout(out): exec(src.replace(last, f'answer = {last}'), scope)
    assert '60 images to train on, 20 to validate with' in out.getvalue()
    assert len(scope['learn'].recorder.rows)==10
    assert scope['answer'].label in scope['dls'].train.ds.vocab

def test_readme_names_the_commands():
    head = text('README.md').partition('## ')[0]
    names = {o.partition('=')[0] for o in lines('console_scripts')}
    assert names==set(re.findall(r'\blfs_\w+', head))
    assert f'pip install git+https://github.com/{cfg["user"]}/{lib}\n' in first_block('sh')

def test_picture():
    "It is what the stored network says, to a percent, and small"
    from picture import drawing
    fn = root/'nbs/images/network.svg'
    assert fn.stat().st_size < 100_000
    texts = drawing(4),fn.read_text(encoding='utf-8')
    new,old = [' '.join(re.findall(r'>([^<>]+)<', o)) for o in texts]
    number = re.compile(r'\d+(?=%)')
    assert number.sub('', new)==number.sub('', old)
    percents = [[int(o) for o in number.findall(words)] for words in (new,old)]
    assert percents[0]==pytest.approx(percents[1], abs=1)
