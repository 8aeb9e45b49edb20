"""`import_effects.py LIB MODULES` prints what the import of LIB.all changes outside of LIB

`test_design.py` starts it. MODULES are what the library imports. They are imported before the
comparison begins, as what they change is theirs.
"""
import importlib,os,random,signal,sys,warnings

lib,*names = sys.argv[1:]
for o in names: importlib.import_module(o)
import fastcore.net,fastprogress.fastprogress,numpy as np,PIL.Image,torch

def attributes():
    "The attributes of all modules, and of the classes in them"
    res = {}
    for n,m in list(sys.modules.items()):
        if n.split('.')[0] in (lib,'__main__','__mp_main__'): continue
        if not hasattr(m, '__dict__'): continue
        res[n] = dict(vars(m))
        for c in [o for o in vars(m).values() if isinstance(o, type)]:
            res[f'{c.__module__}.{c.__qualname__}'] = dict(vars(c))
    return res

def registries():
    "What the lists and dictionaries of these packages hold"
    res = {}
    for n,m in list(sys.modules.items()):
        if n.split('.')[0] not in ('PIL','fastcore','fastprogress'): continue
        for k,v in vars(m).items():
            kept = type(v) in (dict,list,set) and not k.startswith('__')
            if kept: res[f'{n}.{k}'] = v.copy()
    return res

def process():
    "What belongs to the process as a whole"
    return dict(
        path=list(sys.path), environment=dict(os.environ), folder=os.getcwd(),
        warnings=list(warnings.filters),
        signals=[signal.getsignal(o) for o in signal.valid_signals()],
        python=random.getstate(), numpy=str(np.random.get_state()),
        pytorch=torch.initial_seed(),
        torch=[torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()])

handlers = []
os.register_at_fork = lambda **kw: handlers.append(kw)
torch.set_num_threads(2)
modules,before,was = set(sys.modules),attributes(),process()
held = registries()

importlib.import_module(f'{lib}.all')

after,now,holds = attributes(),process(),registries()
new = set(sys.modules)-modules  # a module of a package is an attribute of it
for m,old in before.items():
    for k in old.keys()|after[m].keys():
        same = old.get(k) is after[m].get(k) and (k in old)==(k in after[m])
        if not same and f'{m}.{k}' not in new: print(f'{m}.{k}')
for k,v in held.items():
    if holds.get(k)!=v: print(f'what {k} holds')
for k in was:
    if was[k]!=now[k]: print(f'{k} of the process')
for o in handlers: print(f'a handler of forks: {o}')

r,w = os.pipe()
if not (pid := os.fork()):
    os.write(w, b'%d' % torch.get_num_threads())
    os._exit(0)
os.waitpid(pid, 0)
if (n := os.read(r, 9).decode())!='2': print(f'threads in a forked child: {n} and not 2')
