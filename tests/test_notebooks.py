"The comparison of outputs, in `tools/notebooks.py`, finds what has changed and nothing else"
from pathlib import Path

import pytest
from nbformat.v4 import new_code_cell,new_output
import project # which finds the tools

from notebooks import cell_diff,tidy

def printed(s, src='f()'):
    "A cell that has printed `s`"
    return new_code_cell(src, outputs=[new_output('stream', name='stdout', text=s)])

def shown(src='f()', **data):
    "A cell that shows `data`, by its kinds: `text_html` for text/html"
    data = {k.replace('_','/'): v for k,v in data.items()}
    return new_code_cell(src, outputs=[new_output('display_data', data)])

same = dict(
    equal      = ('13394 files', '13394 files'),
    last_place = ('tensor([0.4680, -1.2000])', 'tensor([ 0.4681, -1.2000])'),
    a_thousandth = ('loss 1.60012', 'loss 1.60101'),
    sizes      = ('1.6516e+38', '1.6517e+38'),
    times      = ('1 0.5000 00:12 took 3.4 s', '1 0.5000 01:02 took 12 ms'),
    addresses  = ('<object>', '<object at 0x7f01ab>'),
    warnings   = ('./data.py:480: UserWarning: few', './data.py:484: UserWarning: few'),
    progress   = ('100.00% [74/74 00:12<00:00]', '100.00% [74/74 00:09<00:00]'),
    stopped    = ('14.86% [11/74 00:01<00:06]', '14.86% [11/74 1:00:02<00:11]'))
other = dict(
    count   = ('13394 files', '13395 files'),
    shape   = ('torch.Size([128, 64, 64, 3])', 'torch.Size([128, 3, 64, 64])'),
    float   = ('accuracy 0.4680', 'accuracy 0.4780'),
    sign    = ('0.4680', '-0.4680'),
    coarse  = ('0.5', '0.6'),
    whole   = ('tensor([1., 2.])', 'tensor([1., 3.])'),
    percent = ('44% sure', '43% sure'),
    isnan   = ('0.4680', 'nan'),
    word    = ('Parameter containing', 'Tensor containing'),
    more    = ('a', 'a b'),
    where   = ('./data.py:480: UserWarning: few', './loss.py:480: UserWarning: few'),
    row     = ('labels.csv:480: no file', 'labels.csv:484: no file'),
    numbers = ('0.1000, 0.2000', '0.1000'),
    notime  = ('took 3.4 s', 'took 3.4'))

@pytest.mark.parametrize('a,b', same.values(), ids=same)
def test_same(a, b): assert not cell_diff(printed(a), printed(b))

@pytest.mark.parametrize('a,b', other.values(), ids=other)
def test_other(a, b): assert cell_diff(printed(a), printed(b))

def test_tolerance_of_a_cell():
    a,b = printed('0.46', '#| tol 0.1\nf()'),printed('0.50')
    assert not cell_diff(a, b)
    assert cell_diff(a, printed('0.60'))
    assert not cell_diff(printed('44% sure', '#| tol 0.1\nf()'), printed('43% sure'))
    assert cell_diff(printed('3 of 5', '#| tol 0.9\nf()'), printed('4 of 5'))

def test_varies():
    a = printed('2 cpus', '#| varies\nf()')
    assert not cell_diff(a, printed('64 cpus'))
    assert cell_diff(a, new_code_cell('f()'))

def test_pictures():
    figure = '<Figure size 640x480>'
    a,b = [shown(image_png=o, text_plain=figure) for o in 'xy']
    assert not cell_diff(a, b)
    assert cell_diff(a, shown(text_plain=figure))
    assert cell_diff(a, new_code_cell('f()'))

def test_any_output_counts():
    outputs = [printed('a').outputs + printed(o).outputs for o in '12']
    old,new = [new_code_cell('f()', outputs=o) for o in outputs]
    assert cell_diff(old, new)
    assert not cell_diff(old, old)

def test_drawings():
    a,b = (shown(text_html=o) for o in ('<svg><text>pool</text></svg>','<p>pool</p>'))
    assert cell_diff(a, b)
    assert not cell_diff(a, shown(text_html='<svg height="3"><text>pool</text></svg>'))

def test_what_is_stored():
    cells = [shown(text_html='<style>p {}</style>'), shown(image_png='xx', image_jpeg='x'),
             printed(f'{Path.home()}/a\r\n')]
    c = new_code_cell('f()', outputs=[o for c in cells for o in c.outputs])
    tidy(c)
    assert [o.get('text') or list(o.data) for o in c.outputs]==[['image/jpeg'],'~/a\n']

def test_the_time_of_a_bar():
    "A faster machine has no bar there; what a cell says of its own work is kept"
    words = 'Worked for 00:12','Worked for 1:00:12','Worked for 00:12, or not'
    c = new_code_cell('f()', outputs=[shown(text_html=o).outputs[0] for o in words])
    tidy(c)
    assert [o.data['text/html'] for o in c.outputs]==[words[-1]]

def test_tables():
    style = '<style>p {}</style>'
    def table(loss, time): return f'{style}<tr><td>{loss}</td><td>{time}</td></tr>'
    a,b = [shown(text_html=table(*o)) for o in (('0.4680','00:10'),('0.4681','00:11'))]
    assert not cell_diff(a, b)
    assert cell_diff(a, shown(text_html='<tr><td>0.5680</td><td>00:10</td></tr>'))

def test_stored_source_and_errors():
    assert cell_diff(printed('def f()', '#| exec_doc\nf()'), new_code_cell('f()'))
    assert not cell_diff(new_code_cell('#| exec_doc\nf()'), printed('def f()'))
    failed = new_output('error', ename='ValueError', evalue='a')
    assert cell_diff(printed('a'), new_code_cell('f()', outputs=[failed]))
