"Ctrl-C reaches what tests start, even if pytest, in the background of a shell, ignores it"
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)

def pytest_collection_modifyitems(items):
    "Files with few tests that take long come first, or one of them would run alone at the end"
    slow = 'test_soak','test_package','test_distributed','test_faults','test_checkpoint'
    items.sort(key=lambda o: o.path.stem not in slow)
