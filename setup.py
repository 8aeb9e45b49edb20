"Everything comes from `settings.ini`"
import re
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']
lib,minor = cfg['lib_name'],int(cfg['min_python'].split('.')[1])

extras = 'fast','onnx','metrics','heif','tensorboard','dev','site','bench'

def lines(k): return cfg[k].split('\n')[1:]

# PyPI shows the README, and has no folder `nbs`: pages are on GitHub, and so are the pictures
readme = (here/'README.md').read_text(encoding='utf-8')
for pat,where in (r'(!\[[^]]*\]\()(?=nbs/)','raw'),(r'(\]\()(?=nbs/)','blob'):
    readme = re.sub(pat, rf'\1{cfg["git_url"]}/{where}/{cfg["branch"]}/', readme)

setup(
    name=lib, version=cfg['version'], license=cfg['license'],
    description=cfg['description'], keywords=cfg['keywords'],
    long_description=readme, long_description_content_type='text/markdown',
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host']+cfg['doc_baseurl']},
    classifiers=['Development Status :: 3 - Alpha',
                 f'Intended Audience :: {cfg["audience"]}',
                 f'Natural Language :: {cfg["language"]}',
                 'Topic :: Scientific/Engineering :: Artificial Intelligence',
                 'Typing :: Typed',
                 *(f'Programming Language :: Python :: 3.{o}' for o in range(minor, 14))],
    python_requires=f'>={cfg["min_python"]}',
    packages=[lib], package_data={lib: ['py.typed','live/*']}, zip_safe=False,
    install_requires=lines('requirements'),
    extras_require={k: lines(f'{k}_requirements') for k in extras},
    entry_points={'console_scripts': lines('console_scripts'),
                  'nbdev': [f'{lib}={lib}._modidx:d']})
