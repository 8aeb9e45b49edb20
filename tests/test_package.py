"""What would go to PyPI works: an sdist, and the wheel built from it in a new environment

Nothing is downloaded. The environment has a path to the packages that the library requires,
and nothing else of the project.
"""
import os,shutil,subprocess,sys,tarfile,venv,zipfile
from email import message_from_string
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from project import cfg,lib,lines,root

outside = {k:v for k,v in os.environ.items() if k!='PYTHONPATH'}

def call(*cmd, **kwargs):
    "What the command `cmd` prints; a command that fails is an error that shows it"
    kw = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=outside)
    res = subprocess.run([*map(str, cmd)], **kw, **kwargs)
    assert not res.returncode, res.stdout
    return res.stdout

@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "The sdist, and the wheel that `build` makes from it"
    src,out = tmp_path_factory.mktemp('src'),tmp_path_factory.mktemp('dist')
    for o in root.iterdir():
        if o.is_file(): shutil.copy(o, src)
    shutil.copytree(root/lib, src/lib, ignore=shutil.ignore_patterns('__pycache__'))
    call(sys.executable, '-m', 'build', '--no-isolation', '-o', out, src, cwd=out)
    (sdist,),(wheel,) = out.glob('*.tar.gz'),out.glob('*.whl')
    return sdist,wheel

@pytest.fixture(scope='module')
def installed(dist, tmp_path_factory):
    "The folder of the programs of a new environment that has the wheel"
    env = tmp_path_factory.mktemp('env')
    venv.create(env, symlinks=os.name!='nt')
    programs = env/('Scripts' if os.name=='nt' else 'bin')
    python = programs/'python'
    pip = sys.executable,'-m','pip','--python',python
    call(*pip, 'install', '--no-deps', '--no-index', dist[1])
    site = call(python, '-c', 'import sysconfig as s; print(s.get_path("purelib"))').strip()
    required = [o for o in sys.path if o.endswith('-packages')]
    Path(site,'required.pth').write_text('\n'.join(required)+'\n')
    return programs

def modules():
    "All files of the library, as paths in it"
    files = [o for o in (root/lib).rglob('*') if o.is_file() and '__pycache__' not in o.parts]
    return {o.relative_to(root/lib).as_posix() for o in files}

def test_pypi_would_take_them(dist):
    out = call(sys.executable, '-m', 'twine', 'check', '--strict', *dist)
    assert out.count('PASSED')==2, out

def test_wheel_has_the_library_alone(dist):
    names = [Path(o) for o in zipfile.ZipFile(dist[1]).namelist()]
    own = {o.relative_to(lib).as_posix() for o in names if o.parts[0]==lib}
    assert own==modules()
    assert {'py.typed','live/page.js'} <= own
    others = {o.parts[0] for o in names} - {lib}
    assert others=={f'{lib}-{cfg["version"]}.dist-info'}

def test_sdist_has_what_a_build_needs(dist):
    with tarfile.open(dist[0]) as f: names = {o.partition('/')[2] for o in f.getnames()}
    build = {'setup.py','settings.ini','pyproject.toml','README.md','LICENSE'}
    assert names >= build | {f'{lib}/{o}' for o in modules()}

def test_metadata_is_that_of_settings(dist):
    name = f'{lib}-{cfg["version"]}.dist-info/METADATA'
    with zipfile.ZipFile(dist[1]) as f: meta = message_from_string(f.read(name).decode())
    assert (meta['Name'],meta['Version'])==(lib,cfg['version'])
    required = {Requirement(o) for o in meta.get_all('Requires-Dist') if 'extra ==' not in o}
    assert required=={*map(Requirement, lines('requirements'))}
    assert '](nbs/' not in meta.get_payload(), 'a link that leads nowhere on PyPI'

def test_import_from_anywhere(installed, tmp_path):
    src = f'import {lib} as lib,{lib}.all as a; print(a.Learner.__name__, lib.__file__)'
    name,where = call(installed/'python', '-c', src, cwd=tmp_path).split(maxsplit=1)
    assert name=='Learner'
    assert Path(where.strip()).is_relative_to(installed.parent), where

def test_commands(installed, tmp_path):
    "All are there, and one of them runs: the others are told apart in `test_cli`"
    for o in lines('console_scripts'):
        assert shutil.which(o.partition('=')[0], path=installed), o
    assert 'usage: lfs_train' in call(installed/'lfs_train', '--help', cwd=tmp_path)
