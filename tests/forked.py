"""`python(code)` is a new process at once, forked from a server that has imported the library

Importing takes seconds, and tests with many processes would spend most of their time on it.
What comes back has what the tests use of a `subprocess.Popen`.
"""
import multiprocessing,os,subprocess,sys,threading,types
from multiprocessing.connection import Connection
from pathlib import Path

can_fork = 'forkserver' in multiprocessing.get_all_start_methods()
ctx = multiprocessing.get_context('forkserver' if can_fork else 'spawn')
if can_fork: ctx.set_forkserver_preload(['pytest','torch._dynamo','learner_from_scratch.all'])

def _main(code, args, cwd, env, *streams):
    "What the new process does"
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for fd,o in enumerate(streams): os.dup2(o.fileno(), fd)
    sys.stdin,sys.stdout,sys.stderr = open(0),open(1, 'w'),open(2, 'w')
    sys.argv = ['-c', *args]
    main = sys.modules['__main__'] = types.ModuleType('__main__')
    exec(code, vars(main))

class Forked:
    "A process that runs `code` with `args`; `out` is a file's number for all that it prints"
    def __init__(self, code, *args, out=None):
        ins,outs,errs = [os.pipe() for _ in range(3)]
        theirs = ins[0],outs[1],errs[1]
        numbers = theirs if out is None else (ins[0],out,out)
        streams = [Connection(os.dup(o)) for o in numbers]
        args = code,[*map(str, args)],os.getcwd(),dict(os.environ),*streams
        self.process = ctx.Process(target=_main, args=args)
        self.process.start()
        for o in theirs: os.close(o)
        for o in streams: o.close()
        self.stdin,self.stdout,self.stderr = open(ins[1], 'w'),open(outs[0]),open(errs[0])
        self.pid = self.process.pid

    @property
    def returncode(self): return self.process.exitcode
    def poll(self): return self.process.exitcode
    def kill(self): self.process.kill()
    def send_signal(self, sig): os.kill(self.pid, sig)

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None: raise subprocess.TimeoutExpired('python', timeout)
        return self.returncode

    def communicate(self, timeout=500):
        "What it prints until it ends, and the errors; one that takes too long is killed"
        guard = threading.Timer(timeout, self.kill)
        guard.start()
        with self.stdin,self.stdout,self.stderr:
            res = self.stdout.read(),self.stderr.read()
        self.process.join()
        guard.cancel()
        return res

def python(code, *args, out=None):
    "Start a process that runs `code`"
    if can_fork: return Forked(code, *args, out=out)
    pipe = subprocess.PIPE
    pipes = dict(stdin=pipe, stdout=out or pipe, stderr=out or pipe)
    return subprocess.Popen([sys.executable, '-c', code, *map(str, args)], text=True, **pipes)

def run(code, *args, timeout=500):
    "What a process prints that runs `code`; fails if it takes too long"
    p = python(code, *args)
    out,err = p.communicate(timeout)
    assert p.returncode==0, err
    return out.strip()

def program(name, *args):
    "Start the console script `name` of this environment"
    code = """import runpy,sys
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name='__main__')"""
    return python(code, Path(sys.executable).with_name(name), *args)
