"A network of ours in PyTorch's modules, and in an ONNX file: the same numbers, or one clear line"
from copy import deepcopy
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from learner_from_scratch import export
from learner_from_scratch.checkpoint import save_model
from learner_from_scratch.cli import lfs_export
from learner_from_scratch.data import imagenette_stats
from learner_from_scratch.export import export_onnx,onnx_bytes,sample_images,to_torch
from learner_from_scratch.finetune import freeze,new_head
from learner_from_scratch.inference import Predictor,find_arch,one_label
from learner_from_scratch.modules import (AdaptivePool,ConvLayer,Linear,Module,Parameter,
                                          Sequential,simple_cnn)
from learner_from_scratch.norm import BatchNorm2d,Dropout,WithBuffers
from learner_from_scratch.resnet import (Conv,ReLU,ResBlock,resnet18,small_resnet,torch_names)

has_onnx = all(map(find_spec, ('onnx','onnxscript','onnxruntime')))
needs_onnx = pytest.mark.skipif(not has_onnx, reason='needs onnx, onnxscript and onnxruntime')

@pytest.fixture
def xb():
    torch.manual_seed(0)
    return torch.randn(4, 3, 32, 32)

class InList(Module):
    "Modules in a list, a parameter, a tensor that is none, and a method of its own"
    def __init__(self):
        super().__init__()
        self.blocks = [ResBlock(3, 4, 2), ResBlock(4, 4)]
        self.register_modules(*self.blocks)
        self.shift,self.pool,self.lin = Parameter(torch.ones(4)),AdaptivePool(),Linear(4, 5)
    def moved(self, x): return x + self.shift
    def forward(self, x):
        for o in self.blocks: x = o(x)
        return self.lin(self.moved(self.pool(x)))

class Steps(WithBuffers):
    "A buffer that each training batch changes"
    buffers = 'n',
    def __init__(self):
        super().__init__()
        self.n,self.lin = torch.tensor(0),Linear(3, 2)
    def forward(self, x):
        if self.training: self.n += 1
        return self.lin(x.mean((2,3)))*(1+self.n)

class Wider(ConvLayer):
    "Another constructor, and the same `forward`"
    def __init__(self, ni): super().__init__(ni, 2*ni, stride=2)

nets = dict(
    simple_cnn=simple_cnn, small_resnet=partial(small_resnet, w=4), resnet18=resnet18,
    new_head=lambda: new_head(small_resnet(5, w=4), 7), in_list=InList, steps=Steps,
    wider=lambda: Sequential(Wider(3), Dropout(.5), AdaptivePool()),
    deep=lambda: Sequential(Sequential(Sequential(Conv(3, 4)), BatchNorm2d(4)), ReLU()))

@pytest.mark.parametrize('name', nets)
def test_same_outputs_and_gradients(name, xb):
    ours = nets[name]()
    theirs = to_torch(ours)
    assert not any(isinstance(o, Module) for o in theirs.modules())
    for train in False,name!='wider': # Dropout draws other numbers
        ours.train(train)
        theirs.train(train)
        torch.testing.assert_close(theirs(xb), ours(xb), atol=1e-4, rtol=1e-4)
    for m in ours,theirs: m(xb).square().mean().backward()
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    if name=='wider': return
    for a,b in pairs: torch.testing.assert_close(b.grad, a.grad, atol=1e-3, rtol=1e-3)
    for k,v in theirs.state_dict().items(): assert v.isfinite().all(), k

def test_a_copy_with_nothing_shared(xb):
    "Training the twin changes nothing here, nor does making it draw random numbers"
    ours = small_resnet(w=4)
    was,rng = {k:v.clone() for k,v in ours.state_dict().items()},torch.get_rng_state()
    theirs = to_torch(ours).train()
    assert torch.equal(torch.get_rng_state(), rng)
    theirs(xb).sum().backward()
    torch.optim.SGD(theirs.parameters(), 1.).step()
    for k,v in ours.state_dict().items(): assert torch.equal(v, was[k]), k
    theirs = to_torch(theirs)
    assert all(isinstance(o, nn.Module) for o in theirs.modules())

def test_mode_frozen_and_names():
    ours = resnet18(10)
    freeze(ours.layer1)
    ours.train()
    theirs = to_torch(ours)
    assert theirs.training and theirs.layer1[0].bn1.training
    assert not to_torch(ours.eval()).training
    frozen = [k for k,p in theirs.named_parameters() if not p.requires_grad]
    assert frozen and all(o.startswith('layer1.') for o in frozen)
    assert torch_names(theirs.state_dict()).keys()==ours.state_dict().keys()
    assert type(theirs.layer1[0]).__name__=='ResBlock' and isinstance(theirs.fc, nn.Linear)

def test_weights_come_back(xb):
    theirs = to_torch(small_resnet(w=4)).train()
    theirs(xb)
    ours = small_resnet(w=4)
    ours.load_state_dict(torch_names(theirs.state_dict()))
    with torch.no_grad(): assert torch.allclose(ours.eval()(xb), theirs.eval()(xb), atol=1e-4)

def test_as_torchvision(torchvision_models):
    theirs = torchvision_models.resnet18(num_classes=10).eval()
    ours = to_torch(resnet18(10))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(ours.eval()(x), theirs(x), atol=1e-4)

@pytest.fixture
def torchvision_models():
    try: from torchvision import models
    except (ImportError,RuntimeError) as e: pytest.skip(f'no torchvision that works: {e}')
    return models

class InDict(Module):
    def __init__(self):
        super().__init__()
        self.lin,self.others = Linear(3, 3),{'a':Linear(3, 3)}
        self.register_modules(self.others['a'])
    def forward(self, x): return self.others['a'](self.lin(self.lin(x)))

def test_parts_in_two_places():
    "They are one part in the twin as well"
    lin,x = Linear(3, 3),torch.rand(2, 3)
    assert len(list(to_torch(Sequential(lin, lin)).parameters()))==2
    ours = InDict()
    theirs = to_torch(ours)
    assert theirs.others['a'] is getattr(theirs, '0')
    for m in ours,theirs: m(x).square().sum().backward()
    for a,b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad)

class Louder(Linear):
    "Its `super` is that of our classes"
    def forward(self, x): return 2*super().forward(x)

class LouderStill(Louder): pass

@pytest.mark.parametrize('cls', [Louder,LouderStill])
def test_super_is_refused(cls):
    "When it is translated, and not when it is called"
    with pytest.raises(ValueError, match=f'{cls.__name__}.forward calls super'):
        to_torch(Sequential(cls(3, 3)))

class Called(Module):
    "Its twin would have PyTorch's `__call__`"
    def __init__(self):
        super().__init__()
        self.lin = Linear(3, 3)
    def __call__(self, x): return 2*super().__call__(x)
    def forward(self, x): return self.lin(x)

class CalledInOrder(Sequential):
    def __call__(self, x): return 2*super().__call__(x)

class Helped(Called):
    __call__ = Module.__call__
    def forward(self, x): return self.helper(x)
    def helper(self, x): return super().forward(x)

class Halved(Helped):
    def forward(self, x): return self.half(self.lin(x))
    def half(self, x): return x/2
    helper = None

class AllParts(Called):
    __call__ = Module.__call__
    def forward(self, x):
        for m in self.children.values(): x = m(x)
        return x

class Skips(Sequential):
    def forward(self, x):
        for l in self.layers: x = x+l(x)
        return x

class InAList(AllParts):
    def forward(self, x): return sum([m(x) for m in self.children.values()])

class Static(AllParts):
    def forward(self, x): return self.helper(self, x)
    @staticmethod
    def helper(me, x): return me.children['lin'](x)

class Extras(AllParts):
    "Methods that nobody calls in a pass, and `params` of something else"
    cfg = SimpleNamespace(params=2)
    def forward(self, x): return self.lin(x)*self.cfg.params
    def info(self): return super().__repr__()
    def n_weights(self): return len(self.params)
    def apply(self, x): return x

class OwnLayers(Sequential):
    @property
    def layers(self): return [self.first]
    def forward(self, x): return self.layers[0](x)

def own_layers():
    m = OwnLayers(Linear(3, 3))
    m.first = Linear(3, 3)
    return m

def in_another_order():
    m = Skips(Linear(3, 3), Linear(3, 3))
    setattr(m, '0', Linear(3, 3)) # it comes last now
    return m

@pytest.mark.parametrize('make', [Extras, own_layers, in_another_order])
def test_what_has_a_twin(make):
    ours,x = make(),torch.rand(2, 3)
    torch.testing.assert_close(to_torch(ours)(x), ours(x))

@pytest.mark.parametrize('make,why', [
    (InAList, 'InAList.forward uses `children`'), (Static, 'Static.helper uses `children`'),
    (Called, 'its own `__call__`'),
    (lambda: CalledInOrder(Linear(3,3)), 'its own `__call__`'),
    (Helped, 'Helped.helper calls super'), (Halved, "Halved.half has the name"),
    (AllParts, 'AllParts.forward uses `children`')])
def test_what_has_no_twin(make, why):
    "It is refused when it is translated, and not wrong, or an error, when it is called"
    with pytest.raises(ValueError, match=why): to_torch(Sequential(make()))

def test_a_sequential_with_another_forward():
    ours,x = Skips(Linear(3, 3), Linear(3, 3)),torch.rand(2, 3)
    torch.testing.assert_close(to_torch(ours)(x), ours(x))

def test_no_network():
    with pytest.raises(TypeError, match='is no network'): to_torch(3)
    with pytest.raises(TypeError, match='a `Predictor` is needed'):
        export_onnx(Linear(1, 1), 'x.onnx')

class Parts(Module):
    "Without a `forward`, for others to look into"
    def __init__(self):
        super().__init__()
        self.lin = Linear(3, 3)

class Asks(Module):
    def __init__(self):
        super().__init__()
        self.parts = Parts()
    def forward(self, x): return self.parts.lin(x)

def test_a_box_of_parts():
    ours,x = Asks(),torch.rand(2, 3)
    torch.testing.assert_close(to_torch(ours)(x), ours(x))

def test_shared_weights_are_refused():
    a,b = Linear(3, 3),Linear(3, 3)
    b.w = a.w
    with pytest.raises(ValueError, match='24 weights for 15'): to_torch(Sequential(a, b))

@pytest.mark.filterwarnings('ignore:.*deprecated')
@pytest.mark.parametrize('name', ['simple_cnn','small_resnet','resnet18','in_list'])
def test_compiled_exported_traced(name, xb):
    net = to_torch(nets[name]().eval())
    want = net(xb)
    close = partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    close(torch.compile(net, backend='eager')(xb), want)
    close(torch.export.export(net, (xb,)).module()(xb), want)
    close(torch.jit.trace(net, xb)(xb[:2]), want[:2])

# --- ONNX ---
def grey_cnn(n): return Sequential(ConvLayer(1, 8, stride=2), AdaptivePool(), Linear(8, n))
preds = dict(
    ours=lambda: Predictor(small_resnet(3, w=4), ['a','ä','$\n'], 32),
    theirs=lambda: Predictor(to_torch(simple_cnn(2)), ['a','b'], (16,24), resize='crop'),
    grey=lambda: Predictor(grey_cnn(2), ['a','b'], (16,24), [[.5],[.2]], one_label, 1, 'pad'))

@needs_onnx
@pytest.mark.parametrize('name', preds)
def test_onnx(name, tmp_path):
    import json,onnx,onnxruntime
    pred,fn = preds[name](),tmp_path/'m.onnx'
    export_onnx(pred, fn)
    assert [o.name for o in tmp_path.iterdir()]==['m.onnx']
    onnx.checker.check_model(str(fn))
    ort = onnxruntime.InferenceSession(str(fn))
    meta = {k:json.loads(v) for k,v in ort.get_modelmeta().custom_metadata_map.items()}
    assert (meta['vocab'],meta['stats'],meta['resize']) == (pred.vocab,pred.stats,pred.resize)
    assert meta['task']=='OneLabel' and meta['channels']==pred.channels
    for n in 1,2,5:
        xb = pred.inputs(*sample_images(n))
        got, = ort.run(None, {'images':xb.numpy()})
        with torch.no_grad(): want = pred.model(xb)
        assert torch.allclose(torch.tensor(got), want, atol=1e-4)

@needs_onnx
def test_other_numbers_are_not_written(tmp_path, monkeypatch):
    "The file that was there stays whole"
    fn = tmp_path/'m.onnx'
    fn.write_bytes(b'old')
    other = onnx_bytes(Predictor(small_resnet(3, w=4), ['a','b','c'], 32))
    monkeypatch.setattr(export, 'onnx_bytes', lambda pred: other)
    with pytest.raises(ValueError, match='other numbers'): export_onnx(preds['ours'](), fn)
    assert fn.read_bytes()==b'old' and len(list(tmp_path.iterdir()))==1

def test_missing_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(export, 'find_spec', lambda o: None)
    with pytest.raises(ImportError, match='pip install onnx onnxscript$'):
        export_onnx(preds['ours'](), tmp_path/'m.onnx')
    assert not list(tmp_path.iterdir())

def refused(*args, **kwargs):
    with pytest.raises(SystemExit) as e: lfs_export(*args, **kwargs)
    line = e.value.code
    assert isinstance(line, str) and line.isprintable() and line.startswith('lfs_export: '), line
    return line

@needs_onnx
def test_command(tmp_path, capsys):
    fn = tmp_path/'m.safetensors'
    pred = Predictor(small_resnet(2), ['a','b'], 32)
    pred.save(fn, 'small_resnet')
    lfs_export(str(fn))
    assert capsys.readouterr().out==f'Saved in {tmp_path/"m.onnx"}\n'
    assert (tmp_path/'m.onnx').stat().st_size > 1e5

def test_command_replaces_no_model(tmp_path):
    "Neither the one that it reads nor another one"
    pred = Predictor(small_resnet(2), ['a','b'], 32)
    for o in 'm.safetensors','m.onnx','b.safetensors': pred.save(tmp_path/o, 'small_resnet')
    a,b,odd = [str(tmp_path/o) for o in ('m.safetensors','b.safetensors','m.onnx')]
    before = Path(a).read_bytes()
    for args in (a, a),(a, b),(odd, None): refused(args[0], onnx=args[1])
    assert all(Path(o).read_bytes()==before for o in (a,b,odd))

own_nets = '''
from learner_from_scratch.modules import *
def small(n): return Sequential(ConvLayer(3, 8, stride=2), AdaptivePool(), Linear(8, n))
class Choosy(Module):
    "No graph can show what it does"
    def __init__(self, n):
        super().__init__()
        self.lin = Linear(3, n)
    def forward(self, x):
        x = x.mean((2,3))
        return self.lin(x if x.sum()>0 else -x)
'''

@needs_onnx
def test_command_with_own_networks(tmp_path, monkeypatch, capsys):
    "By name, as for `lfs_predict`; one that PyTorch can't export is refused in one line"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'exportable.py').write_text(own_nets)
    for name in 'small','Choosy':
        arch = f'exportable:{name}'
        model = find_arch(arch)(2)
        Predictor(model, ['a','b'], 32).save(f'{name}.safetensors', arch)
    line = refused('small.safetensors')
    assert "needs the architecture 'exportable:small'" in line
    lfs_export('small.safetensors', arch='exportable:small', onnx='a\x1b[31m.onnx')
    assert capsys.readouterr().out=="Saved in a\\x1b[31m.onnx\n"
    line = refused('Choosy.safetensors', arch='exportable:Choosy')
    assert "can't be exported" in line and len(line) < 300
    assert not (tmp_path/'Choosy.onnx').exists()

def test_command_with_bad_files(tmp_path):
    assert 'gone' in refused('gone\x1b[31m.safetensors')
    assert 'there is no model.safetensors' in refused('')
    bad = tmp_path/'bad.safetensors'
    bad.write_text('x')
    assert 'bad.safetensors is damaged' in refused(str(bad))
    meta = dict(vocab=['a','b'], size=8, stats=imagenette_stats, arch='os\n')
    save_model(simple_cnn(2), bad, meta)
    assert 'needs the architecture' in refused(str(bad))
    assert len(list(tmp_path.iterdir()))==1

def test_pickle(tmp_path):
    "A twin can be saved whole, copied, and read again, with parts of any depth"
    net = to_torch(small_resnet(3)).eval()
    torch.save(net, tmp_path/'net.pt')
    x = torch.randn(2,3,32,32)
    for o in torch.load(tmp_path/'net.pt', weights_only=False),deepcopy(net):
        assert torch.equal(o(x), net(x)) and not o.training
        assert o.state_dict().keys()==net.state_dict().keys()
