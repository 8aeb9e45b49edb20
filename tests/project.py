"What the tests of the repository share: its settings and its notebooks"
import sys
from configparser import ConfigParser
from pathlib import Path

from execnb.nbio import read_nb

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'tools'))

ini = ConfigParser(delimiters=['='])
ini.read(root/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib = cfg['lib_name']
nbs = {o.name: read_nb(o) for o in sorted((root/'nbs').glob('*.ipynb'))}

def lines(k):
    "The lines of the setting `k`"
    return cfg[k].split('\n')[1:]

def code(nb):
    "The code cells of `nb`"
    return [o for o in nb.cells if o.cell_type=='code']

def text(fn): return (root/fn).read_text(encoding='utf-8')
