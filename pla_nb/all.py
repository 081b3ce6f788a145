"The public names: `from pla_nb.all import *`"
from pla_nb.data import *
from pla_nb.backbones import *
from pla_nb.features import *
from pla_nb.describe import (Descriptions, EmbeddedLLM, EngineError, FromFile, Ollama, Rules, default_engine, describe, describe_pairs,
    packaged_descriptions)
from pla_nb.align import *
from pla_nb.pseudolabels import *
from pla_nb.margin import *
from pla_nb.train import *
from pla_nb.evaluate import *
from pla_nb.classifier import *
