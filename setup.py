"Everything comes from `settings.ini`"
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup

cfg = ConfigParser(delimiters=['='])
cfg.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = cfg['DEFAULT']
lib,minor = cfg['lib_name'],int(cfg['min_python'].split('.')[1])
def lines(k): return cfg[k].split('\n')[1:]

setup(
    name=lib, version=cfg['version'], description=cfg['description'], keywords=cfg['keywords'], license=cfg['license'],
    author=cfg['author'], author_email=cfg['author_email'], url=cfg['git_url'],
    project_urls={'Documentation': cfg['doc_host']+cfg['doc_baseurl']},
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    classifiers=['Development Status :: 3 - Alpha', f'Intended Audience :: {cfg["audience"]}',
                 f'Natural Language :: {cfg["language"]}', 'Topic :: Scientific/Engineering :: Artificial Intelligence',
                 *(f'Programming Language :: Python :: 3.{o}' for o in range(minor, 14))],
    python_requires=f'>={cfg["min_python"]}', packages=[lib], zip_safe=False,
    install_requires=lines('requirements'),
    extras_require={k: lines(f'{k}_requirements') for k in ('dev','site','bench')},
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']})
