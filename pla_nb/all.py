"The public names: `from pla_nb.all import *`"
from pla_nb.data import *
from pla_nb.backbones import *
from pla_nb.features import *
from pla_nb.pixels import Pixels, pixels
from pla_nb.describe import (Descriptions, EmbeddedLLM, EngineError, FromFile, Ollama, Rules, default_engine, describe, describe_pairs,
    packaged_descriptions)
from pla_nb.align import *
from pla_nb.pseudolabels import *
from pla_nb.margin import *
from pla_nb.prompts import *
from pla_nb.train import *
from pla_nb.tune import PromptFit, PromptHead, PromptLearner, fit_prompts, log_to, process_group
from pla_nb.evaluate import *
from pla_nb.calibrate import *
from pla_nb.trust import Trust, trust
from pla_nb.classifier import *
from pla_nb.review import Review, review, worth_a_look
