"Everything of the book, and what its pages import: `from learner_from_scratch.all import *`"
import torch
import matplotlib.pyplot as plt
import numpy as np
import torch.nn.functional as F
from functools import partial
from torch import nn,tensor,Tensor
from fastcore.all import *
from learner_from_scratch.data import *
from learner_from_scratch.modules import *
from learner_from_scratch.loss import *
from learner_from_scratch.learner import *
from learner_from_scratch.callbacks import *
from learner_from_scratch.recorder import *
from learner_from_scratch.checkpoint import *
from learner_from_scratch.inference import *
from learner_from_scratch.distributed import *
from learner_from_scratch.folders import *
from learner_from_scratch.cli import *
