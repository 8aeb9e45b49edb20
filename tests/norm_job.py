"""What `test_norm.py` starts on two ranks: `norm_job.py FOLDER`"""
import sys
from bright import Items
from learner_from_scratch.all import *
from learner_from_scratch.optimizers import *
from learner_from_scratch.norm import *

torch.set_num_threads(1)
torch.manual_seed(42+rank_distrib())
with distrib_ctx(60):
    dls = DataLoaders(Shard(DataLoader(Items(17,1), 8, shuffle=True)),
                      Shard(DataLoader(Items(12,2), 8)))
    layers = ConvLayer(3,8,stride=2),BatchNorm2d(8),AdaptivePool(),Dropout(.1),Linear(8,2)
    cbs = [SetupLearnerCB('cpu'), Recorder(), DistributedCB(), Schedule(lr=one_cycle())]
    adamw = lambda ps,lr: AdamW(no_decay(ps), lr, wd=0.05)
    learn = Learner(Sequential(*layers), dls, cross_entropy, 0.01, cbs, adamw)
    learn.fit(3)
    torch.save(learn.model.state_dict(), Path(sys.argv[1])/f'{rank_distrib()}.pt')
