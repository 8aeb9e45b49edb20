"Ctrl-C reaches what tests start, even if pytest, in the background of a shell, ignores it"
import signal

import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)

def pytest_collection_modifyitems(items):
    "Files with few tests that take long come first, or one of them would run alone at the end"
    slow = 'test_soak','test_package','test_distributed','test_faults','test_checkpoint'
    items.sort(key=lambda o: o.path.stem not in slow)

@pytest.fixture
def torchvision():
    "torchvision, also if it was built for CUDA, as torch was not: names of operators will do"
    try: return pytest.importorskip('torchvision')
    except RuntimeError:
        for o in 'nms','qnms': torch.library.define(f'torchvision::{o}', '() -> ()')
        return pytest.importorskip('torchvision')
