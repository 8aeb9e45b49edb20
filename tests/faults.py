"""Faults on purpose: Ctrl-C at any instant of a pass

Each function raises an error when something is lost, and ends the process with a traceback
when something hangs. `python faults.py FUNCTION ARGS` runs one in a process of its own.
"""
import faulthandler,random,signal,sys,threading,time

from fastcore.all import NS
from learner_from_scratch import data
from learner_from_scratch.data import DataLoader

class Tiny:
    "Items that take no time, so that most of a pass is the loader's own work"
    def __init__(self, n=20): self.n = n
    def __len__(self): return self.n
    def batch(self, idxs): return [i*i for i in idxs]

def n_threads(): return len(sys._current_frames())

def threads_are_gone(n, seconds=60):
    "Are there `n` threads at most, in `seconds`?"
    end = time.monotonic()+seconds
    while n_threads() > n and time.monotonic() < end: time.sleep(.001)
    return n_threads() <= n

def when_stopped(f):
    "`f()` is called whenever a pass is told to stop"
    class State(NS):
        def __setattr__(self, k, v):
            super().__setattr__(k, v)
            if v: f()
    data.NS = State

class Passes:
    "Interrupted passes over tiny batches; after each, threads and the next pass are checked"
    def __init__(self, n_workers=2, n=20, patience=100):
        self.dl,self.patience = DataLoader(Tiny(n), bs=4, n_workers=n_workers),patience
        self.want = [[j*j for j in range(i, i+4)] for i in range(0, n, 4)]
        self.threads,self.hits,self.swallowed = n_threads(),0,0

    def read(self): return list(self.dl)

    def interrupted(self, interrupt):
        "Whether Ctrl-C came; one that is lost is an error, and a hang ends the process"
        hit,lost = False,[]
        sys.unraisablehook = lambda o: lost.append(o.exc_type)
        faulthandler.dump_traceback_later(self.patience, exit=True)
        try: fired = interrupt(self.read)
        except KeyboardInterrupt: hit = fired = True
        sys.unraisablehook = sys.__unraisablehook__
        assert hit or not fired, 'an interrupt is lost'
        assert threads_are_gone(self.threads), 'a thread is left'
        assert self.read()==self.want, 'the next pass has other batches'
        faulthandler.cancel_dump_traceback_later()
        self.hits += hit
        self.swallowed += len(lost)
        return hit

def at_instruction(n):
    "Something that interrupts a function at the `n`-th instruction of its Python code"
    def interrupt(f):
        left = n
        def trace(frame, event, arg):
            nonlocal left
            frame.f_trace_opcodes = True
            left -= event=='opcode'
            if left: return trace
            sys.settrace(None)
            raise KeyboardInterrupt
        sys._getframe().f_trace_opcodes = True # Python 3.12 asks for it before settrace
        sys.settrace(trace)
        try: f()
        finally: sys.settrace(None)
        return left<=0
    return interrupt

def every_instruction(n_workers=2):
    "Interrupt a pass at each of its instructions; how many there were"
    passes,n = Passes(n_workers),1
    while passes.interrupted(at_instruction(n)): n += 1
    assert not passes.swallowed, 'an interrupt is lost'
    return passes.hits

def when_condition_is_held(f):
    "Interrupt `f` when it has a condition's lock, and isn't in the block yet"
    def trace(frame, event, arg):
        if event=='return' and frame.f_code is threading.Condition.__enter__.__code__:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace
    sys.settrace(trace)
    try: f()
    finally: sys.settrace(None)

def lock_operations(f):
    "What of Python's own locks `f` touches in this thread"
    res = []
    files = 'threading.py','queue.py','_base.py','thread.py'
    def profile(frame, event, arg):
        if event=='call' and frame.f_code.co_filename.endswith(files):
            res.append(frame.f_code.co_qualname)
        owner = type(getattr(arg, '__self__', None)).__name__.lower()
        if event=='c_call' and 'lock' in owner: res.append(arg.__name__)
    sys.setprofile(profile)
    try: f()
    finally: sys.setprofile(None)
    return res

def random_instants(count, n_workers=2, seed=0):
    "Interrupt `count` passes at random instants by a timer; how many passes it took"
    fired = False
    def alarm(*_):
        nonlocal fired
        fired = True
        raise KeyboardInterrupt
    rnd,passes = random.Random(seed),Passes(n_workers)
    before = signal.signal(signal.SIGALRM, alarm)
    def seconds():
        start = time.perf_counter()
        passes.read()
        return time.perf_counter()-start
    took,n = min(seconds() for _ in range(20)),0
    def interrupt(f):
        nonlocal fired
        fired = False
        signal.setitimer(signal.ITIMER_REAL, rnd.uniform(1e-6, took))
        try: f()
        finally: signal.setitimer(signal.ITIMER_REAL, 0)
        return fired
    while passes.hits < count:
        passes.interrupted(interrupt)
        n += 1
    signal.signal(signal.SIGALRM, before)
    assert not passes.swallowed, 'an interrupt is lost'
    return n

if __name__=='__main__': print(globals()[sys.argv[1]](*map(int, sys.argv[2:])))
